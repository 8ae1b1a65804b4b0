"""Augmentations keep boxes on their objects. Objects are filled rectangles, each of another value,
so that their boxes can be found again from the pixels alone.
"""

import itertools
import json

import numpy as np
import pytest
from conftest import CONFIG, SMALL
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tood.config.read import load_config, run_options
from tood.data.augmentation import (
    AUGMENTATION_REGISTRY,
    Mosaic,
    PasteRare,
    QuarterTurn,
    Sample,
    ScaleJitter,
    TrainingSamples,
    VerticalFlip,
    paste,
)
from tood.data.datasets import prepare_datasets
from tood.data.mapper import CheckedMapper
from tood.engine.trainer import Trainer
from tood.utils.errors import UserError

ALL = ["mosaic", "paste_rare", "color_jitter", "scale_jitter", "vertical_flip", "rotate90"]
SIDES = st.integers(6, 40)


def paint(seed, width, height, first=1, most=4):
    """A sample with up to ``most`` rectangles that do not overlap, with values from ``first``;
    classes are these values.
    """
    rng = np.random.default_rng(seed)
    image, rows = np.zeros((height, width, 3), np.uint8), []
    for _ in range(rng.integers(most + 1)):
        x1, x2 = np.sort(rng.choice(width + 1, 2, replace=False))
        y1, y2 = np.sort(rng.choice(height + 1, 2, replace=False))
        if not image[y1:y2, x1:x2].any():
            image[y1:y2, x1:x2, 0] = first + len(rows)
            rows.append((x1, y1, x2, y2))
    boxes, classes = np.array(rows, float).reshape(-1, 4), first + np.arange(len(rows))
    return Sample(image, boxes, classes, rng.random(len(rows)) < 0.3)


def find(image, value):
    """The box of the pixels of a value, and their number."""
    ys, xs = np.nonzero(image[..., 0] == value)
    if not len(ys):
        return None, 0
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], len(ys)


def assert_boxes_are_right(sample, sources):
    """Every object of the sources of which a quarter is left has the box of its pixels, and no
    other has one.
    """
    expected = {}
    for source in sources:
        for value, is_crowd in zip(source.gt_classes.tolist(), source.is_crowd.tolist()):
            box, number = find(sample.image, value)
            if number >= 0.25 * find(source.image, value)[1]:
                expected[value] = (box, is_crowd)
    found = {
        k: (box, crowd)
        for box, k, crowd in zip(
            sample.gt_boxes.tolist(), sample.gt_classes.tolist(), sample.is_crowd.tolist()
        )
    }
    assert found == expected and len(sample.gt_boxes) == len(found)
    assert sample.image.dtype == np.uint8


class Listed:
    """Training images in a fixed order."""

    def __init__(self, samples):
        self.draw = iter(samples).__next__


@given(st.lists(st.tuples(SIDES, SIDES), min_size=4, max_size=4), st.integers(0, 10**6))
def test_a_mosaic_has_the_objects_that_are_seen_in_it(sizes, seed):
    samples = [paint(seed + i, w, h, first=1 + 10 * i) for i, (w, h) in enumerate(sizes)]
    before = [x.image.copy() for x in samples]
    np.random.seed(seed)
    result = Mosaic([0, 0, 9], probability=1.0)(samples[0], Listed(samples[1:]))
    assert result.image.shape == samples[0].image.shape
    assert_boxes_are_right(result, samples)
    assert all(np.array_equal(x.image, y) for x, y in zip(samples, before))


def test_four_images_meet_with_their_corners():
    """Pixels encode their image and their position in it."""
    y, x = np.mgrid[:40, :60]
    sources = [
        Sample(np.stack([0 * x + i, x, y], 2).astype(np.uint8), *paint(0, 6, 6, most=0)[1:])
        for i in range(4)
    ]
    points, orders = set(), set()
    for seed in range(40):
        np.random.seed(seed)
        image = Mosaic([9, 9, 9], probability=1.0)(sources[0], Listed(sources[1:])).image
        x = np.flatnonzero(image[0, :, 0] != image[0, 0, 0])[0]
        y = np.flatnonzero(image[:, 0, 0] != image[0, 0, 0])[0]
        assert 15 <= x <= 45 and 10 <= y <= 30
        order = image[y - 1 : y + 1, x - 1 : x + 1, 0].ravel().tolist()
        assert sorted(order) == [0, 1, 2, 3]
        a, b, c, d = (sources[n].image for n in order)
        upper = np.hstack([a[40 - y :, 60 - x :], b[40 - y :, : 60 - x]])
        lower = np.hstack([c[: 40 - y, 60 - x :], d[: 40 - y, : 60 - x]])
        assert np.array_equal(image, np.vstack([upper, lower]))
        points.add((x, y))
        orders.add(tuple(order))
    assert len(points) > 20 and len(orders) > 10


def test_half_of_the_images_are_a_mosaic():
    np.random.seed(0)
    sample = paint(1, 20, 20)
    samples = Listed(itertools.repeat(paint(2, 20, 20, first=11)))
    changed = [Mosaic([0, 0, 9])(sample, samples) is not sample for _ in range(400)]
    assert 160 < sum(changed) < 240


@given(SIDES, SIDES, st.integers(0, 10**6))
def test_scale_jitter_crops_or_pads(width, height, seed):
    sample = paint(seed, width, height)
    np.random.seed(seed)
    result = sample.transform(ScaleJitter(pad_value=99).get_transform(sample.image))
    assert_boxes_are_right(result, [sample])
    scale = np.divide(sample.image.shape[:2], result.image.shape[:2])
    assert (scale > 0.6).all() and (scale < 1.6).all()  # sides of 6 are rounded
    # The image is seen once at most, and all the rest is padding.
    number = (result.image[..., 1] == 0).sum()
    assert number == min(result.image.shape[0], height) * min(result.image.shape[1], width)


def test_scale_jitter_makes_objects_smaller_and_larger_in_images_of_one_size():
    image, factors = np.zeros((480, 640, 3), np.uint8), []
    box, resize = np.array([[200.0, 150, 400, 350]]), T.ResizeShortestEdge([240], 320, "choice")
    for seed in range(150):
        np.random.seed(seed)
        augmented = T.AugInput(image)
        transforms = T.AugmentationList([ScaleJitter(), resize])(augmented)
        assert np.abs(np.subtract(augmented.image.shape[:2], (240, 320))).max() <= 1
        x1, y1, x2, y2 = transforms.apply_box(box)[0]
        assert x2 - x1 == pytest.approx(y2 - y1, rel=0.01)
        factors.append((x2 - x1) / 100)
    assert 0.69 < min(factors) < 0.73 and 1.35 < max(factors) < 1.42
    assert 55 < sum(f < 1 for f in factors) < 100


@given(SIDES, SIDES, st.integers(0, 10**6))
def test_turns_and_flips(width, height, seed):
    sample = paint(seed, width, height)
    np.random.seed(seed)
    result = sample.transform(QuarterTurn().get_transform(sample.image))
    assert_boxes_are_right(result, [sample])
    flips = [VerticalFlip().get_transform(sample.image) for _ in range(20)]
    results = [sample.transform(flip) for flip in flips]
    is_flipped = [np.array_equal(x.image, sample.image[::-1]) for x in results]
    assert any(is_flipped)  # one in a million is not
    for result, flipped in zip(results, is_flipped):
        assert flipped or np.array_equal(result.image, sample.image)
        assert_boxes_are_right(result, [sample])


def test_all_four_turns_come():
    image, results = np.arange(6, dtype=np.uint8).reshape(2, 3, 1), set()
    for seed in range(30):
        np.random.seed(seed)
        turned = QuarterTurn().get_transform(image).apply_image(image)
        results.add(str(turned[..., 0].tolist()))
    turns = [[[0, 1, 2], [3, 4, 5]], [[2, 5], [1, 4], [0, 3]], [[5, 4, 3], [2, 1, 0]]]
    assert results == {str(x) for x in (*turns, [[3, 0], [4, 1], [5, 2]])}


def make_samples(samples):
    """Training images that are these samples."""
    records = [
        {"i": i, "annotations": [{"category_id": k} for k in x.gt_classes[~x.is_crowd].tolist()]}
        for i, x in enumerate(samples)
    ]
    return TrainingSamples(records, lambda record: samples[record["i"]])


def test_rare_classes_have_less_than_half_of_the_mean():
    samples = make_samples([paint(0, 9, 9, most=0)])
    samples.num_objects = {0: 100, 1: 40, 3: 10, 7: 22}  # the mean is 43
    assert paste.find_rare(samples) == [3]
    PasteRare().check(samples)
    samples.num_objects = {0: 100, 1: 60}
    with pytest.raises(UserError, match="no class of the training data is rare: each has 50%"):
        PasteRare().check(samples)
    with pytest.raises(UserError, match="no class of the training data is rare"):
        PasteRare().check(make_samples([paint(0, 9, 9, most=0)]))


@pytest.fixture
def at_their_size(monkeypatch):
    monkeypatch.setattr(paste, "SCALES", (1.0, 1.0))
    monkeypatch.setattr(paste, "MAX_OVERLAP", 0.0)
    monkeypatch.setattr(paste, "find_rare", lambda samples: [101])


@given(SIDES, SIDES, st.integers(0, 10**6))
@settings(max_examples=60)
def test_pasted_objects_have_their_boxes(at_their_size, width, height, seed):
    sample, source = paint(seed, width, height), paint(seed + 1, 30, 20, first=101, most=6)
    samples = make_samples([sample, source])
    if 101 not in samples.num_objects:
        return
    np.random.seed(seed)
    result = PasteRare()(sample, samples)
    number = len(sample.gt_boxes)
    assert np.array_equal(result.gt_boxes[:number], sample.gt_boxes)  # the old ones come first
    for box, k in zip(result.gt_boxes, result.gt_classes.tolist()):
        x1, y1, x2, y2 = box.astype(int)
        assert [x1, y1, x2, y2] == box.tolist()
        if k == 101 or k < 101:  # others fade in the margin of the copy
            assert (result.image[y1:y2, x1:x2, 0] == k).all()
    copies = (result.gt_classes == 101).sum()
    assert (result.image[..., 0] == 101).sum() == copies * find(source.image, 101)[1]


def test_copies_are_pasted_at_about_their_size_with_a_soft_margin(at_their_size, monkeypatch):
    monkeypatch.setattr(paste, "SCALES", (0.8, 1.25))
    empty = Sample(np.full((90, 90, 3), 30, np.uint8), np.empty((0, 4)), *np.empty((2, 0), int))
    image = np.full((60, 60, 3), 90, np.uint8)
    image[20:40, 10:40] = 210
    source = Sample(image, np.array([[10.0, 20, 40, 40]]), np.array([101]), np.array([False]))
    samples, numbers, sizes = make_samples([empty, source]), [], []
    for seed in range(40):
        np.random.seed(seed)
        result = PasteRare()(empty, samples)
        numbers.append(len(result.gt_boxes))
        sizes += np.diff(result.gt_boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 2).tolist()
        if numbers[-1] == 1:
            rows, columns = np.nonzero(result.image[..., 0] > 130)
            low, high = [columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]
            assert np.abs(result.gt_boxes[0] - [*low, *high]).max() < 1.5
            around = result.image[..., 0][low[1] + 5, low[0] - 4 : low[0]]
            assert around[0] < around[-1] and 29 < around[0] < 70  # from 30 to 90
    sizes = np.array(sizes)
    assert set(numbers) == {0, 1, 2, 3}
    assert 23 <= sizes[:, 0].min() < 26 and 35 < sizes[:, 0].max() <= 38.5
    assert np.allclose(sizes[:, 0] / sizes[:, 1], 1.5, rtol=0.06)


def test_copies_cover_a_tenth_of_the_smaller_box_at_most():
    sample = Sample(
        np.zeros((50, 50, 3), np.uint8),
        np.array([[0.0, 0, 20, 50], [26, 26, 50, 50]]),
        np.array([0, 1]),
        np.array([False, True]),  # not on crowds either
    )
    cut = Sample(np.zeros((16, 14, 3), np.uint8), np.empty((0, 4)), *np.empty((2, 0), int))
    places = set()
    for seed in range(100):
        np.random.seed(seed)
        place = paste.find_place(sample, cut)
        if place is None:
            continue
        places.add(place)
        mask = np.zeros((50, 50), bool)
        mask[place[1] : place[1] + 16, place[0] : place[0] + 14] = True
        assert mask.sum() == 14 * 16
        assert mask[:, :20].sum() <= 0.1 * 224 and mask[26:, 26:].sum() <= 0.1 * 224
    assert len(places) > 30
    assert paste.find_place(cut, sample) is None  # larger than the image


def test_crowds_are_not_copied_and_what_is_beside_an_object_is():
    image = np.zeros((60, 60, 3), np.uint8)
    boxes = np.array([[10.0, 10, 30, 20], [40, 40, 60, 60], [10, 22, 30, 25], [32, 0, 60, 30]])
    classes, crowds = np.array([5, 5, 6, 7]), np.array([False, True, False, False])
    for seed in range(20):
        np.random.seed(seed)
        cut, alpha = paste.cut_object(Sample(image, boxes, classes, crowds), 5)
        # 4 pixels around the first: 2 of the 3 rows of the third, and a corner of the last.
        assert cut.gt_classes.tolist() == [5, 6] and not cut.is_crowd.any()
        assert cut.image.shape[:2] == alpha.shape
        height, width = alpha.shape
        assert 28 * 0.8 - 1 < width < 28 * 1.25 + 1 and 18 * 0.8 - 1 < height < 18 * 1.25 + 1
    assert paste.cut_object(Sample(image, boxes, classes, crowds), 8) is None
    assert paste.cut_object(Sample(image, boxes[1:], classes[1:], crowds[1:]), 5) is None


# The whole way: from files to a batch.


# Width, height, and objects: class, x, y, width, height; a crowd has a sixth number.
IMAGES = [
    (90, 60, [(0, 4, 4, 20, 30), (0, 60, 8, 30, 20), (1, 30, 40, 12, 20)]),
    (60, 90, [(0, 0, 0, 25, 25), (3, 30, 40, 12, 16), (1, 10, 60, 12, 20)]),  # of 16 bits
    (72, 72, []),
    (120, 80, [(0, 10, 10, 40, 40), (1, 60, 10, 50, 20, 1), (0, 70, 50, 30, 20)]),
    (48, 40, [(0, 5, 5, 20, 30), (2, 28, 5, 20, 20), (0, 30, 30, 12, 9), (2, 1, 1, 3, 3)]),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The entry of a data set of these images."""
    folder = tmp_path_factory.mktemp("painted")
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": "abcd"[i]} for i in range(4)]
    for i, (width, height, objects) in enumerate(IMAGES):
        pixels = np.zeros((height, width, 3), np.uint8)
        for k, x, y, w, h, *crowd in objects:
            pixels[y : y + h, x : x + w] = 100 + 40 * k
            row = {"category_id": k, "bbox": [x, y, w, h], "iscrowd": int(bool(crowd))}
            row.update(id=len(content["annotations"]) + 1, image_id=i)
            content["annotations"].append(row)
        image = Image.fromarray(pixels)
        if i == 1:
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
        image.save(folder / f"{i}.png")
        size = {"width": width, "height": height}
        content["images"].append({"id": i, "file_name": f"{i}.png", **size})
    (folder / "a.json").write_text(json.dumps(content))
    return f"{folder}/a.json:{folder}"


def make_cfg(data, names, *opts):
    opts = [*SMALL, "MODEL.TOOD.NUM_CLASSES", "4", "SEED", "3", *opts]
    cfg = load_config(CONFIG, [*opts, "INPUT.AUGMENTATIONS", str(list(names))], [data])
    cfg.DATASETS.TEST = ()
    prepare_datasets(run_options(cfg).data, training=True)
    return cfg


def take(loader, number=6):
    """The contents of some batches, to compare."""
    return [
        (x["file_name"], x["image"].numpy().tobytes(), x["image"].shape, str(x["instances"]))
        for batch in itertools.islice(loader, number)
        for x in batch
    ]


@pytest.mark.parametrize("filter_empty", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_an_augmentation_takes_effect(data, name, filter_empty):
    keep = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(filter_empty)]
    batches = take(Trainer.build_train_loader(make_cfg(data, [name], *keep)), 20)
    plain = take(Trainer.build_train_loader(make_cfg(data, [], *keep)), 20)
    assert [x[0] for x in batches] == [x[0] for x in plain]  # in the same order
    changed = [x[1:] != y[1:] for x, y in zip(batches, plain)]
    assert sum(changed) > 0.3 * len(changed)
    assert any("2.png" in x[0] for x in batches) != filter_empty
    if name != "rotate90":
        shapes = np.array([[x[2], y[2]] for x, y in zip(batches, plain)])
        assert np.abs(shapes[:, 0] - shapes[:, 1]).max() <= 1


@pytest.mark.parametrize("tiles", [[], ["INPUT.TILES.SIZE", "40", "INPUT.TILES.OVERLAP", "10"]])
def test_images_follow_from_seed_and_key_alone(data, tiles):
    cfg = make_cfg(data, ALL, *tiles)
    loader = Trainer.build_train_loader(cfg)
    whole = take(loader)
    np.random.seed(5)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert take(Trainer.build_train_loader(cfg)) == whole
    assert take(loader.restart(3, skip=2), 4) == whole[-len(whole) * 4 // 6 :]
    assert take(loader.restart(4, skip=0)) != whole


def test_without_names_images_and_boxes_are_detectron2s(data):
    cfg = make_cfg(data, [])
    mapper = CheckedMapper(cfg, is_train=True)
    assert mapper.sample_augmentations is None
    cfg.INPUT.AUGMENTATIONS = ["color_jitter"]
    other = CheckedMapper(cfg, is_train=True)
    other.augmentations.augs.pop()  # the same way through, without a change
    for record in Trainer.build_train_loader(cfg).dataset.records:
        np.random.seed(1)
        expected = mapper(record)
        np.random.seed(1)
        found = other(record)
        assert found.keys() == expected.keys()
        assert (found["image"] == expected["image"]).all()
        assert str(found["instances"]) == str(expected["instances"])


def test_boxes_of_all_together_are_on_objects(data):
    """Objects are bright, and everything else is black."""
    names = ["mosaic", "scale_jitter", "vertical_flip", "rotate90"]
    cfg = make_cfg(data, names, "MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]", "INPUT.RANDOM_FLIP", "none")
    number = 0
    for batch in itertools.islice(Trainer.build_train_loader(cfg), 20):
        for x in batch:
            for box in x["instances"].gt_boxes.tensor.round().int().tolist():
                inside = x["image"][0, box[1] : box[3], box[0] : box[2]].float()
                assert (inside > 60).float().mean() > 0.7, (x["file_name"], box)
                number += 1
    assert number > 50


def test_one_image_is_enough(tmp_path):
    Image.fromarray(paint(11, 60, 40, most=6).image * 40).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": 60, "height": 40}
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 20, 9], "iscrowd": 0}]
    content = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    entry = f"{tmp_path}/a.json:{tmp_path}"
    opts = ["MODEL.TOOD.NUM_CLASSES", "1"]
    assert take(Trainer.build_train_loader(make_cfg(entry, ["mosaic"], *opts)))
    with pytest.raises(UserError, match="no class of the training data is rare"):
        Trainer.build_train_loader(make_cfg(entry, ["paste_rare"], *opts))


def test_a_broken_image_that_was_drawn_is_named(data, tmp_path):
    cfg = make_cfg(data, ["mosaic"])
    records = [*Trainer.build_train_loader(cfg).dataset.records]
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = {**records[0], "file_name": str(tmp_path / "broken.png")}
    mapper = CheckedMapper(cfg, is_train=True, records=[broken])
    mapper.sample_augmentations[0].probability = 1.0
    with pytest.raises(UserError, match="broken.png cannot be used"):
        mapper(records[0])


def test_subsets_and_augmentations_of_several_images_are_refused(data):
    subset = ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"]
    with pytest.raises(UserError, match="the loader does not name them"):
        Trainer.build_train_loader(make_cfg(data, ["mosaic"], *subset))


def test_images_of_rare_classes_come_more_often(data):
    repeat = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
    cfg = make_cfg(data, [], *repeat, "DATALOADER.REPEAT_THRESHOLD", "0.9")
    loader = Trainer.build_train_loader(cfg)
    names = [x[0][-5] for x in take(loader, 100)]
    # Classes 2 and 3 are in one image of four, class 1 in three (of one a crowd).
    counts = [names.count(x) for x in "0134"]
    assert np.allclose(np.divide(counts, counts[0]), [1, 1.73, 1, 1.73], atol=0.1)
    assert loader.batches.repeat_factors.tolist() == pytest.approx([1.095, 1.897] * 2, 1e-3)


def test_every_name_is_built_from_a_config(tiny_cfg):
    assert {name for name, _ in AUGMENTATION_REGISTRY} >= set(ALL)
    for name in ALL:
        assert AUGMENTATION_REGISTRY.get(name)(tiny_cfg) is not None
