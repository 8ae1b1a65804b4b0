"""Large images in tiles: their borders, the objects to train on, and objects across seams."""

import json
import pickle

import analyze_alignment
import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIG, TINY
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tood
import train_net
from tood.app import draw
from tood.config.read import load_config
from tood.data import tiles as data_tiles
from tood.data.check import InputSize, check_data
from tood.data.mapper import CheckedMapper
from tood.data.tiles import LargeImage, clip_to, largest_shares, tile_records, visible_in
from tood.engine import train as engine_train
from tood.inference.predictor import Predictor
from tood.inference.tiles import ResizedTOOD, TiledTOOD, seen_whole_elsewhere
from tood.inference.views import find_view
from tood.modeling.postprocess import suppress_non_maxima
from tood.utils.errors import UserError
from tood.utils.tiles import Tile, TileOptions, make_tiles


@pytest.mark.slow
@settings(max_examples=300)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 80), st.data())
def test_tiles_cover_the_image(width, height, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    tiles = make_tiles(width, height, size, overlap)
    seen = np.zeros((height, width), dtype=int)
    for x, y, w, h in tiles:
        assert (w, h) == (min(size, width), min(size, height))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        seen[y : y + h, x : x + w] += 1
    assert seen.min() >= 1 and len(set(tiles)) == len(tiles)
    for side, starts in ((width, {t.x for t in tiles}), (height, {t.y for t in tiles})):
        starts = sorted(starts)
        assert all(b - a <= size - overlap for a, b in zip(starts, starts[1:]))
        # No more of them than needed.
        needed = 1 if side <= size else 1 + -(-(side - size) // (size - overlap))
        assert len(starts) == needed


def test_tiles_by_hand():
    assert make_tiles(100, 60, 60, 20) == [Tile(0, 0, 60, 60), Tile(40, 0, 60, 60)]
    assert make_tiles(50, 30, 60, 20) == [Tile(0, 0, 50, 30)]
    assert [t.x for t in make_tiles(130, 60, 60, 20)] == [0, 35, 70]


def test_the_number_of_tiles_is_bounded():
    assert len(make_tiles(100, 100, 1, 0)) == 10_000
    for numbers in ((101, 100, 1, 0), (640, 480, 64, 63), (10**6, 10**6, 32, 0)):
        with pytest.raises(UserError, match=r"of \d+ x \d+ into .*; at most 10,000 are possible"):
            make_tiles(*numbers)


def test_what_is_seen_of_a_box():
    tile = Tile(10, 10, 20, 20)
    boxes = np.array([[12, 12, 5, 5], [0, 10, 20, 10], [40, 40, 5, 5], [5, 5, 30, 30.0]])
    assert visible_in(boxes, tile) == pytest.approx([1, 0.5, 0, 400 / 900])
    assert clip_to(boxes[0], tile) == [2, 2, 5, 5]
    assert clip_to(boxes[1], tile) == [0, 0, 10, 10]
    assert clip_to(boxes[3], tile) == [0, 0, 20, 20]


@pytest.mark.slow
@settings(max_examples=100)
@given(st.integers(1, 90), st.data())
def test_the_tile_that_shows_the_most_of_a_box(size, data):
    options = TileOptions(size, data.draw(st.integers(0, size - 1)))
    side = st.integers(1, 100)
    image_sizes = data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=4))
    boxes, expected = [], []
    for width, height in image_sizes:
        x, y = (data.draw(st.integers(-3, side - 1)) for side in (width, height))
        w, h = (data.draw(st.integers(max(1, 1 - start), 250)) for start in (x, y))
        inside = np.array([clip_to([x, y, w, h], Tile(0, 0, width, height))])
        tiles = make_tiles(width, height, options.size, options.overlap)
        boxes.append([x, y, w, h])
        expected.append(max(visible_in(inside, tile).item() for tile in tiles))
    shares = largest_shares(np.array(boxes), np.array(image_sizes), options)
    assert shares == pytest.approx(np.array(expected))


def make_record(boxes, width=100, height=60, **more):
    annotations = [{"bbox": list(map(float, b)), "category_id": i} for i, b in enumerate(boxes)]
    return {"file_name": "a", "width": width, "height": height, "annotations": annotations, **more}


def test_records_of_tiles():
    options = TileOptions(60, 20, min_visible=0.5, empty_share=1.0)
    # One in both tiles, one cut in half by the first, a quarter of one in the second.
    boxes = [(42, 5, 10, 10), (50, 30, 20, 10), (25, 45, 20, 8)]
    left, right = tile_records([make_record(boxes, image_id=3)], options)
    assert (left["tile"], left["width"], left["height"]) == ((0, 0, 60, 60), 60, 60)
    assert left["image_id"] == 3 and left["whole_size"] == (100, 60)
    assert [a["category_id"] for a in left["annotations"]] == [0, 1, 2]
    assert left["annotations"][1]["bbox"] == [50, 30, 10, 10]
    assert right["tile"] == (40, 0, 60, 60)
    assert [(a["category_id"], a["bbox"]) for a in right["annotations"]] == [
        (0, [2, 5, 10, 10]),
        (1, [10, 30, 20, 10]),
    ]


def test_tiles_without_objects():
    wide = make_record([(5, 5, 10, 10)], width=1000)  # 24 tiles, one with the object
    nothing = make_record([], width=1000)
    number = len(make_tiles(1000, 60, 60, 20))
    for share, expected in ((0.0, 0), (2.0, 2), (5.0, 5), (999.0, 2 * number - 1)):
        options = TileOptions(60, 20, empty_share=share)
        records = tile_records([wide, nothing], options)
        assert [bool(r["annotations"]) for r in records] == [True] + [False] * expected
    options = TileOptions(60, 20, empty_share=999.0)
    assert len(tile_records([wide, nothing], options, empty=False)) == number
    again = tile_records([wide, nothing], TileOptions(60, 20, empty_share=5.0))
    assert again == tile_records([wide, nothing], TileOptions(60, 20, empty_share=5.0))
    # A sliver of an object: neither one of its objects, nor a tile without.
    cut = make_record([(95, 5, 10, 10)], width=200)
    options = TileOptions(100, 0, min_visible=0.6, empty_share=999.0)
    assert tile_records([cut], options) == []


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ["raw.tif", "lzw.tif", "a.png"])
def test_parts_of_images(tmp_path, name, mode):
    shape = (90, 70, 3) if mode == "RGB" else (90, 70)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    Image.fromarray(pixels).save(tmp_path / name, **options)
    whole = pixels if mode == "RGB" else np.repeat(pixels[:, :, None], 3, axis=2)
    for order, expected in (("RGB", whole), ("BGR", whole[:, :, ::-1])):
        image = LargeImage(str(tmp_path / name), order)
        assert (image.width, image.height) == (70, 90)
        for x, y, w, h in ((0, 0, 70, 90), (10, 20, 30, 40), (69, 89, 1, 1)):
            found = image.read(Tile(x, y, w, h))
            assert np.array_equal(found, expected[y : y + h, x : x + w])


def test_strips_of_a_tiff(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(90, 70, 3), dtype=np.uint8)
    # 16 rows a strip; Pillow takes the rows from the tag RowsPerStrip.
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={278: 16})
    image = LargeImage(str(tmp_path / "a.tif"))
    for x, y, w, h in ((0, 0, 70, 90), (3, 15, 9, 2), (0, 16, 70, 16), (5, 31, 60, 50)):
        assert np.array_equal(image.read(Tile(x, y, w, h)), pixels[y : y + h, x : x + w])


def test_images_are_decoded_once_for_their_tiles(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    pixels = np.random.default_rng(0).integers(256, size=(3, 40, 50, 3), dtype=np.uint8)
    for path, x in zip(paths, pixels):
        Image.fromarray(x).save(path)
    decoded = []
    opened = data_tiles.opened
    monkeypatch.setattr(data_tiles, "opened", lambda path: decoded.append(path) or opened(path))
    recent = data_tiles.RecentImages(max_bytes=2 * 40 * 50 * 3)
    for i in (0, 0, 1, 0, 2, 0, 1):  # 1 was used longest ago when 2 came
        found = recent.open(paths[i], "RGB").read(Tile(10, 5, 20, 30))
        assert np.array_equal(found, pixels[i, 5:35, 10:30])
        assert np.array_equal(recent.read(paths[i]), pixels[i])
    assert decoded == [paths[i] for i in (0, 1, 2, 1)]
    assert not pickle.loads(pickle.dumps(recent))._images  # for the processes of a loader

    small = data_tiles.RecentImages(max_bytes=100)
    for _ in range(2):
        small.open(paths[0], "RGB")
    assert decoded[4:] == [paths[0]] * 2  # too large to be kept
    few = data_tiles.RecentImages(max_images=1)
    for i in (0, 1, 0):
        few.open(paths[i], "RGB")
    assert decoded[6:] == [paths[i] for i in (0, 1, 0)]


def test_the_mapper_cuts_tiles_and_keeps_what_it_cuts_from(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(path)

    class Darken(T.Augmentation):
        def get_transform(self, image):
            image[:] = 0  # in place, as transforms should not
            return T.NoOpTransform()

    record = {"file_name": path, "width": 20, "height": 30, "annotations": []}
    record.update(tile=(10, 5, 20, 30), whole_size=(50, 40))
    mapper = CheckedMapper(is_train=True, augmentations=[], image_format="RGB")
    for _ in range(2):
        found = mapper(record)["image"].numpy()
        assert np.array_equal(found, pixels[5:35, 10:30].transpose(2, 0, 1))
        mapper.augmentations = T.AugmentationList([Darken()])
        assert not mapper(record)["image"].any()
        mapper.augmentations = T.AugmentationList([])
    with pytest.raises(UserError, match="a.png cannot be used .*Mismatched image shape"):
        mapper({**record, "whole_size": (51, 40)})


class Spots(torch.nn.Module):
    """A detector that knows where the objects are: what it sees of each is its box."""

    def __init__(self, boxes, scores=None):
        super().__init__()
        self.boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        self.scores = torch.tensor(scores or [0.9] * len(boxes))

    def find_candidates(self, batch):
        found = []
        for x in batch:
            # The pixels say where in the image the tile lies.
            left, top = x["image"][0, 0, 0].item(), x["image"][1, 0, 0].item()
            height, width = x["image"].shape[1:]
            limits = torch.tensor([width, height] * 2)
            boxes = (self.boxes - torch.tensor([left, top] * 2)).clamp(min=0).minimum(limits)
            seen = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            instances = Instances((height, width), pred_boxes=Boxes(boxes[seen]))
            instances.scores = self.scores[seen]
            instances.pred_classes = torch.zeros(int(seen.sum()), dtype=torch.int64)
            found.append(instances)
        return found

    def suppress(self, candidates):
        return suppress_non_maxima(candidates, 0.6, 100)


def coordinates(width, height):
    """An image (3, H, W) whose pixels are their own positions."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)])


def detect(model, columns, rows, options, **more):
    tiled = TiledTOOD(model, options, model)
    image = {"image": coordinates(columns, rows), **more}
    found = tiled([image])[0]["instances"]
    return sorted(found.pred_boxes.tensor.tolist())


def test_an_object_on_a_seam_is_found_once_and_whole():
    options = TileOptions(60, 20)
    boxes = [
        [42, 10, 58, 26],  # in both tiles, whole
        [50, 30, 66, 46],  # cut by the first, whole in the second
        [0, 0, 10, 10],  # at the image's border, which is not a seam
        [90, 50, 100, 60],
        [30, 2, 44, 9],  # cut by the second
    ]
    assert detect(Spots(boxes), 100, 60, options) == sorted(boxes)
    # In a grid of nine tiles, with a surer detection of the cut part.
    boxes = [[45, 45, 58, 58], [62, 62, 76, 76], [30, 80, 41, 97]]
    for scores in ([0.9, 0.8, 0.7], [0.1, 0.2, 0.3]):
        assert detect(Spots(boxes, scores), 140, 140, options) == sorted(boxes)


def test_an_object_larger_than_the_overlap_is_found_in_parts():
    found = detect(Spots([[10, 10, 90, 50]]), 100, 60, TileOptions(60, 20))
    assert found == [[10, 10, 60, 50], [40, 10, 90, 50]]


@pytest.mark.slow
@settings(max_examples=100)
@given(st.data())
def test_objects_away_from_each_other_are_found_as_in_one_piece(data):
    width, height = data.draw(st.integers(20, 220)), data.draw(st.integers(20, 220))
    size = data.draw(st.integers(45, 100))
    overlap = data.draw(st.integers(26, size - 10))
    boxes = []
    # One object in each cell of a grid, none larger than the overlap less the seams.
    for y in range(0, height - 20, 24):
        for x in range(0, width - 20, 24):
            if data.draw(st.booleans()):
                w, h = data.draw(st.integers(3, 20)), data.draw(st.integers(3, 20))
                boxes.append([x, y, x + w, y + h])
    model = Spots(boxes)
    whole = detect(model, width, height, TileOptions(10_000))
    assert detect(model, width, height, TileOptions(size, overlap)) == whole == sorted(boxes)


def test_boxes_are_returned_for_the_size_that_is_asked_for():
    found = detect(Spots([[10, 10, 20, 20]]), 100, 60, TileOptions(60, 20), height=120, width=200)
    assert found == [[20, 20, 40, 40]]


def test_tiles_are_resized():
    class Model:
        def find_candidates(self, batch):
            self.shapes = [tuple(x["image"].shape) for x in batch]
            return [
                Instances((120, 120), pred_boxes=Boxes(torch.tensor([[12.0, 24.0, 36.0, 48.0]])))
                for _ in batch
            ]

    model = Model()
    finder = ResizedTOOD.__new__(ResizedTOOD)
    torch.nn.Module.__init__(finder)
    finder.model, finder.resize = model, T.ResizeShortestEdge([120, 120], 1000)
    (found,) = finder.find_candidates([{"image": torch.zeros(3, 60, 60, dtype=torch.uint8)}])
    assert model.shapes == [(3, 120, 120)]
    assert found.pred_boxes.tensor.tolist() == [[6, 12, 18, 24]]


def test_which_boxes_a_neighbour_sees_whole():
    tiles = make_tiles(100, 60, 60, 20)
    boxes = torch.tensor([[50.0, 5, 60, 20], [30, 5, 60, 20], [45, 5, 55, 20], [50, 5, 59, 60]])
    assert seen_whole_elsewhere(boxes, tiles[0], tiles, (100, 60)).tolist() == [
        True,  # in the overlap
        False,  # reaches further to the left than the second tile
        False,  # not near to the seam
        True,  # at the lower border of the image
    ]


# --- training, evaluation, prediction --------------------------------------------------------


def train(entry, folder):
    """A training of a few steps on tiles of drawn images; its folder."""
    opts = [
        *(*TINY, "OUTPUT_DIR", str(folder), "TEST.EVAL_PERIOD", "4", "SOLVER.WARMUP_ITERS", "1"),
        *("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()", "MODEL.TOOD.ATSS_ITERS", "2"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
        *("SOLVER.IMS_PER_BATCH", "2", "MODEL.TOOD.SCORE_THRESH_TEST", "0.0"),
        *("INPUT.TILES.SIZE", "40", "INPUT.TILES.OVERLAP", "16", "MODEL.TOOD.VAL_LOSS", "True"),
    ]
    data = ["--train-data", entry, "--val-data", entry]
    engine_train.main(train_net.parse_args(["--config-file", CONFIG, *data, *opts]))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_training_and_evaluation_in_tiles(shapes, entry, tmp_path, monkeypatch):
    folder = train(entry, tmp_path / "out")
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert any("val_loss/loss_cls" in row for row in metrics)
    AP = next(row["bbox/AP"] for row in metrics if "bbox/AP" in row)
    tood.report(str(folder))
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["metrics"]["AP"]["value"] == pytest.approx(AP, abs=1e-9)
    assert report["alignment"] == {}
    # Objects of the tiles, some in two tiles, in the tiles' size.
    assert sum(x["objects"] for x in report["positives"]) >= report["data"]["objects"] * 0.9
    # Of other data.
    tood.report(str(folder), val_data=entry, output=str(tmp_path / "other"))
    other = json.loads((tmp_path / "other" / "report.json").read_text())
    assert other["data"] == report["data"]
    # The predictor finds what the evaluation found, by file and by array.
    results = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    predictor = Predictor(folder / "model_final.pth", score_threshold=0.0)
    path = sorted((shapes / "images").iterdir())[0]
    by_file, by_array = predictor(path), predictor(cv2.imread(str(path)))
    expected = [x["score"] for x in results if x["image_id"] == 1]
    assert by_file.scores.tolist() == pytest.approx(expected, abs=1e-6) and len(expected) == 100
    assert by_array.scores.tolist() == pytest.approx(by_file.scores.tolist(), abs=1e-6)
    # Boxes lie in the whole image, and not in its first tile alone.
    assert by_file.pred_boxes.tensor[:, 2:].max() > 50
    files = str(folder / "config.yaml"), str(folder / "model_final.pth")
    views = ["TEST.AUG.MIN_SIZES", "(64,)"]
    augmented = Predictor(*files, augment=True, score_threshold=0.0, opts=views)(path)
    assert augmented.pred_boxes.tensor[:, 2:].max() > 50
    view = find_view(predictor, path, [50.0, 50, 10, 10])
    assert (view.x, view.y, view.scale) == (24, 24, 1.6) and view.image.shape == (3, 64, 64)
    # And so does what draws it.
    drawn = []
    monkeypatch.setattr(draw, "draw_boxes", lambda *args, **_: drawn.append(args) or args[0])
    tood.draw(files[1], num_images=1, score_threshold=0.0, output=str(tmp_path / "a.png"))
    assert np.array_equal(drawn[0][1], by_file.pred_boxes.tensor)
    argv = ["--model", "a", *files, "--output", str(tmp_path / "table")]
    with pytest.raises(UserError, match="INPUT.TILES.SIZE is 40"):
        analyze_alignment.main(analyze_alignment.parse_args(argv))


def test_epochs_are_passes_over_the_tiles(shapes, entry):
    content = json.loads((shapes / "annotations.json").read_text())
    tiles = 0
    for image in content["images"]:
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        for tile in make_tiles(image["width"], image["height"], 40, 10):
            tiles += any(visible_in(np.array([box]), tile).item() >= 0.5 for box in boxes)
    flags = ["--config-file", str(CONFIG), "--train-data", entry, "--epochs", "6", *TINY]
    tiled = ["INPUT.TILES.SIZE", "40", "INPUT.TILES.OVERLAP", "10"]
    tiled += ["INPUT.TILES.EMPTY_SHARE", "0.0"]
    cfg, _ = engine_train.check(train_net.parse_args([*flags, *tiled]))
    assert tiles > len(content["images"])
    assert cfg.SOLVER.MAX_ITER == round(6 * tiles / cfg.SOLVER.IMS_PER_BATCH)


@pytest.mark.parametrize(
    "opts, says",
    [
        (["INPUT.TILES.SIZE", "64", "INPUT.TILES.OVERLAP", "64"], "OVERLAP is 64; it must be less"),
        (["INPUT.TILES.SIZE", "-1"], "INPUT.TILES.SIZE is -1; it must be at least 0"),
        (["INPUT.TILES.MIN_VISIBLE", "0.0"], "MIN_VISIBLE is 0.0; it must be more than 0"),
        (
            ["INPUT.TILES.SIZE", "64", "DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"],
            "RandomSubsetTrainingSampler, which does not know tiles",
        ),
    ],
)
def test_tiles_that_cannot_be(opts, says):
    with pytest.raises(UserError, match=says):
        load_config(CONFIG, opts)


def test_data_checks_know_tiles():
    whole, tiled = InputSize(800, 1333), InputSize(800, 1333, TileOptions(400))
    sides = np.array([4000]), np.array([3000])
    assert whole.scale(*sides).item() == pytest.approx(800 / 3000, rel=1e-3)
    assert tiled.scale(*sides).item() == 2


def test_data_checks_name_boxes_that_tiles_cut():
    boxes = [
        [0, 0, 60, 30],  # in the first tile
        [45, 10, 15, 20],  # in both
        [30, 10, 50, 20],  # 40 of 50 pixels in the second
        [0, 0, 100, 60],  # 60 of 100
    ]
    content = {
        "images": [{"id": 1, "file_name": "a", "width": 100, "height": 60}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }

    def found(min_visible, **kwargs):
        size = InputSize(60, 60, TileOptions(60, 20, min_visible))
        findings = check_data("x.json", content, size, 8, **kwargs).findings
        return {f.what: (f.number, f.example[:12], f.consequence) for f in findings}

    size = "raise INPUT.TILES.SIZE"
    overlap = "raise INPUT.TILES.OVERLAP"
    lost = f"not trained on, but background in the tiles that show them; {size}"
    whole = "boxes that no tile shows whole"
    in_parts = f"trained on in parts; {overlap}"
    assert found(0.5) == {whole: (2, "annotation 2", in_parts)}
    assert found(0.7) == {
        "boxes of which no tile shows 70%": (1, "annotation 3", lost),
        whole: (1, "annotation 2", in_parts),
    }
    missed = {whole: (2, "annotation 2", f"found in parts, or missed; {overlap}")}
    assert found(0.7, to_train=False) == missed
