"""Data sets by file: what is accepted, and one clear sentence for what is not."""

import io
import json
import os
import pathlib
import shutil
import tempfile

import conftest
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tood import add_tood_config
from tood.config.read import run_options
from tood.data.datasets import load_own_data, prepare_datasets
from tood.data.entries import OwnData, parse_own_data
from tood.data.mapper import CheckedMapper
from tood.data.shapes import SHAPES
from tood.evaluation.coco import CleanCOCOEvaluator
from tood.utils.errors import UserError


@pytest.fixture
def own(shapes, tmp_path):
    """A copy of the shapes that a test may spoil: its annotations, and a way to write them."""
    shutil.copytree(shapes / "images", tmp_path / "images")
    annotations = json.loads((shapes / "annotations.json").read_text())

    class Own:
        file = tmp_path / "annotations.json"
        images = tmp_path / "images"
        entry = f"{file}:{images}"
        content = annotations

        def save(self):
            self.file.write_text(json.dumps(self.content))
            return self.entry

    return Own()


def config(train=(), test=(), num_classes=4):
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.TOOD.NUM_CLASSES = num_classes
    return run_options(cfg).data


def complaint(data, training=True):
    return conftest.complaint(prepare_datasets, data, training=training)


@pytest.mark.parametrize(
    "entry, expected",
    [
        ("coco_2017_train", None),
        ("a/train.json:a/images", OwnData("a/train.json", "a/images")),
        ("a/train.json", OwnData("a/train.json", "a")),
        ("train.json", OwnData("train.json", ".")),
        (r"C:\d\a.json:D:\images", OwnData(r"C:\d\a.json", r"D:\images")),
    ],
)
def test_parse_own_data(entry, expected):
    assert parse_own_data(entry) == expected


def test_own_data_is_registered_with_its_class_names(own):
    entry = own.save()
    prepare_datasets(config([entry], [entry]), training=True)
    assert MetadataCatalog.get(entry).thing_classes == list(SHAPES)
    records = DatasetCatalog.get(entry)
    assert len(records) == 8
    assert sum(len(r["annotations"]) for r in records) == len(own.content["annotations"])
    prepare_datasets(config([entry], [entry]), training=True)  # again does no harm


def test_images_that_are_trained_on_and_evaluated_on(own):
    entry = own.save()
    for data, training, number in (
        (config([entry], [entry]), True, 8),
        (config([entry]), True, 0),
        (config([entry], [entry]), False, 0),
    ):
        findings = [f for r in prepare_datasets(data, training=training) for f in r.findings]
        assert sum(f.number for f in findings if "also trained on" in f.what) == number


def test_no_data_named():
    assert "--train-data" in complaint(config())
    assert "--val-data" in complaint(config(), training=False)


def test_unknown_name():
    sentence = complaint(config(["coco_2017_trian"]))
    assert "'coco_2017_trian'" in sentence and "coco_2017_train?" in sentence


def test_registered_data_that_is_not_there():
    sentence = complaint(config(["coco_2017_train"], num_classes=80))
    assert "instances_train2017.json" in sentence and "DETECTRON2_DATASETS" in sentence


def test_missing_annotation_file(tmp_path):
    sentence = complaint(config([f"{tmp_path}/nothing.json"]))
    assert "nothing.json" in sentence and "No such file" in sentence


def test_annotation_file_cut_off(own):
    own.save()
    own.file.write_text(own.file.read_text()[:200])
    assert "annotations.json cannot be read: " in complaint(config([own.entry]))


def test_classes_are_united_by_their_names(own, tmp_path, caplog):
    """A validation set in another order of ids, and without one of the classes."""
    train = own.save()
    labels = {a["id"]: a["category_id"] - 1 for a in own.content["annotations"]}
    own.content["annotations"] = [a for a in own.content["annotations"] if labels[a["id"]] != 1]
    own.content["categories"] = [
        {"id": 10 - i, "name": name} for i, name in enumerate(SHAPES) if i != 1
    ]
    for annotation in own.content["annotations"]:
        annotation["category_id"] = 10 - labels[annotation["id"]]
    own.file = tmp_path / "val.json"
    own.entry = f"{own.file}:{own.images}"
    data = config([train], [own.save()])
    prepare_datasets(data, training=True)
    assert f"{own.entry} has no class {SHAPES[1]!r}" in caplog.text
    assert MetadataCatalog.get(own.entry).thing_classes == list(SHAPES)
    records = {r["image_id"]: r for r in DatasetCatalog.get(own.entry)}
    for record in DatasetCatalog.get(train):
        expected = [a["category_id"] for a in record["annotations"] if a["category_id"] != 1]
        found = records[record["image_id"]]["annotations"]
        assert [a["category_id"] for a in found] == expected
    evaluator = CleanCOCOEvaluator(own.entry, distributed=False)
    evaluator.reset()
    for record in records.values():
        instances = Instances((64, 64))
        xywh = torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
        instances.scores = torch.ones(len(xywh))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()["bbox"]
    classes = {name: results[f"AP-{name}"] for name in SHAPES}
    assert classes.pop(SHAPES[1]) != classes[SHAPES[0]]  # NaN
    assert list(classes.values()) == pytest.approx([100] * 3, abs=0.1)
    # One number of classes, whichever set is looked at first.
    data = data._replace(num_classes=3)
    assert "together have 4 classes" in complaint(data)
    assert "set it to 4" in complaint(data)


def test_classes_of_two_worlds(own, tmp_path):
    train = own.save()
    for category in own.content["categories"]:
        category["name"] += " (other)"
    own.file = tmp_path / "val.json"
    own.entry = f"{own.file}:{own.images}"
    sentence = complaint(config([train], [own.save()], num_classes=8))
    assert "have no class in common: one has 'disc', the other 'disc (other)'" in sentence


def test_classes_of_the_weights_come_first(own):
    own.content["categories"] = own.content["categories"][1:]
    own.content["annotations"] = [a for a in own.content["annotations"] if a["category_id"] > 1]
    data = config(test=[own.save()])
    prepare_datasets(data, training=False, known_classes=SHAPES)
    assert MetadataCatalog.get(own.entry).thing_classes == list(SHAPES)
    # Other names for as many classes: their order decides, as without names in the weights.
    others = ["a", "b", "c"]
    prepare_datasets(data._replace(num_classes=3), training=False, known_classes=others)
    assert MetadataCatalog.get(own.entry).thing_classes == list(SHAPES[1:])


def remove(records, index, key):
    return lambda content: content[records][index].pop(key)


def change_boxes(change):
    return lambda content: [a.update(bbox=change(*a["bbox"])) for a in content["annotations"]]


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda x: x.clear(), "not in COCO's instances format"),
        (lambda x: x.pop("annotations"), "not in COCO's instances format"),
        (lambda x: x.update(images={}), "not in COCO's instances format"),
        (lambda x: x.update(images=[]), "lists no images"),
        (change_boxes(lambda *_: [5, 5, 0, 9]), "nothing to train on"),
        (remove("annotations", 2, "category_id"), "entry 2 of its annotations needs a 'category"),
        (remove("images", 1, "file_name"), "entry 1 of its images needs a 'file_name'"),
        (lambda x: x["images"][1].update(id=1), "two images with the id 1"),
        (
            change_boxes(lambda *box: [x / 64 for x in box]),
            "all of which are relative (0 to 1)",
        ),
        (change_boxes(lambda *box: [x / 64 for x in box]), "pixels are needed"),
    ],
)
def test_annotations_that_cannot_be_trained_on(own, spoil, says):
    spoil(own.content)
    assert says in complaint(config([own.save()]))


def test_what_is_not_trained_on_is_evaluated_on(own):
    for annotation in own.content["annotations"]:
        annotation["iscrowd"] = 1
    own.content["annotations"][0]["ignore"] = 1
    number = len(own.content["annotations"])
    says = f"{number} annotations, all of which are marked ignore or iscrowd"
    for _ in range(2):
        assert says in complaint(config([own.save()]))
        prepare_datasets(config(test=[own.entry]), training=False)
        own.content["annotations"], says = [], "nothing to train on"


def test_number_of_classes(own):
    sentence = complaint(config([own.save()], num_classes=80))
    assert "has 4 classes" in sentence and "NUM_CLASSES is 80" in sentence


def test_number_of_classes_of_data_registered_in_python(own):
    own.save()
    name = str(own.file) + " in Python"
    register_coco_instances(name, {}, str(own.file), str(own.images))
    assert "has 4 classes" in complaint(config([name], num_classes=3))
    prepare_datasets(config([name]), training=True)


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("category_id", 17, "annotation 1 has category_id 17"),
        ("image_id", 99, "annotation 1 has image_id 99"),
        ("bbox", [1, 2, 3], "annotation 1 has bbox [1, 2, 3]"),
        ("bbox", [1, 2, 3, float("nan")], "annotation 1 has bbox [1, 2, 3, nan]"),
        ("bbox", None, "entry 0 of its annotations needs a 'bbox' of type list; it is None"),
        ("ignore", "maybe", "entry 0 of its annotations needs a 'ignore' of type int; it is"),
        ("id", 2, "two annotations with the id 2"),
        ("id", [1], "entry 0 of its annotations needs a 'id' of type int; it is [1]"),
        ("iscrowd", "maybe", "entry 0 of its annotations needs a 'iscrowd' of type int; it is"),
    ],
)
def test_annotation_that_cannot_be(own, key, value, says):
    own.content["annotations"][0][key] = value
    assert says in complaint(config([own.save()]))


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-5, 10)])
def test_boxes_without_size_are_ignored_with_a_warning(own, caplog, size):
    own.content["annotations"][0]["bbox"][2:] = size
    own.save()
    with caplog.at_level("WARNING", logger="tood"):
        records = load_own_data(str(own.file), str(own.images))
    total = sum(len(r["annotations"]) for r in records)
    assert total == len(own.content["annotations"]) - 1
    assert "ignored 1 annotations" in caplog.text and "annotations.json" in caplog.text


def test_integer_boxes_are_resized_as_others(own, tiny_cfg):
    """Detectron2 would round them down to pixels of the network's input."""
    boxes, tiny_cfg.INPUT.RANDOM_FLIP = [], "none"
    for number in (int, float):
        for a in own.content["annotations"]:
            a["bbox"] = [number(round(x)) for x in a["bbox"]]
        own.save()
        record = load_own_data(str(own.file), str(own.images))[0]
        boxes.append(CheckedMapper(tiny_cfg)(record)["instances"].gt_boxes.tensor)
    assert torch.equal(*boxes) and (boxes[0] % 1).any()


def test_missing_image(own):
    (own.images / "00003.jpg").unlink()
    sentence = complaint(config([own.save()]))
    assert "has 1 images that are not there" in sentence
    assert "00003.jpg; name their folder" in sentence


@pytest.mark.parametrize("spoil", ["cut off", "empty", "text", "other size"])
def test_image_that_cannot_be_used(own, tiny_cfg, spoil):
    own.save()
    path = own.images / "00000.jpg"
    if spoil == "cut off":
        path.write_bytes(path.read_bytes()[:300])
    elif spoil == "other size":
        Image.new("RGB", (10, 10)).save(path)
    else:
        path.write_bytes(b"" if spoil == "empty" else b"not an image")
    record = load_own_data(str(own.file), str(own.images))[0]
    for is_train in (True, False):
        with pytest.raises(UserError, match=r"00000\.jpg cannot be used") as error:
            CheckedMapper(tiny_cfg, is_train)(dict(record))
        assert "\n" not in error.value.sentence()


def test_sentence_of_an_error_from_a_worker_process():
    inner = "The image a.jpg cannot be used (cut off); repair it."
    wrapped = (
        f"Caught UserError in a worker.\nTraceback ...\ntood.utils.errors.UserError: {inner}\n"
    )
    assert UserError(wrapped).sentence() == inner
    assert UserError(inner).sentence() == inner
    assert UserError("About a UserError: no").sentence() == "About a UserError: no"


@pytest.mark.parametrize(
    "encoding, says", [("utf-8-sig", None), ("utf-16", "UTF-16"), ("gbk", "decode byte")]
)
def test_encodings(own, encoding, says):
    own.content["categories"][0]["name"] = "圆盘"
    own.file.write_bytes(json.dumps(own.content, ensure_ascii=False).encode(encoding))
    if says is None:
        prepare_datasets(config([own.entry], [own.entry]), training=True)
        assert MetadataCatalog.get(own.entry).thing_classes[0] == "圆盘"
    else:
        sentence = complaint(config([own.entry]))
        assert says in sentence and "UTF-8" in sentence


def make_table(own):
    (report,) = prepare_datasets(config([own.save()]), training=True)
    return str(report)


@pytest.mark.parametrize("size", [{"width": -1, "height": -1}, {"width": 0}, {"height": None}])
def test_sizes_of_images_are_read_from_them(own, size):
    own.content["images"][0].update(size)
    del own.content["images"][1]["width"]
    assert "- images whose size was taken from their file: 2" in make_table(own)
    assert all(r["width"] == r["height"] == 64 for r in DatasetCatalog.get(own.entry))
    own.content["images"][0]["file_name"] = "gone.jpg"
    sentence = complaint(config([own.save()]))
    assert "has no width and height" in sentence and "gone.jpg" in sentence


def test_backslashes_in_names_of_files(own, tmp_path):
    for image in own.content["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    own.entry = f"{own.file}:{tmp_path}"
    own.images = tmp_path
    assert "whose backslashes are read as /" in make_table(own)
    assert all("\\" not in r["file_name"] for r in DatasetCatalog.get(own.entry))


names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\\0"),
    min_size=1,
    max_size=9,
).filter(lambda name: name.strip(". ") == name)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "latin-1", "cp1252"]


@pytest.mark.slow
def test_paths_and_encodings(tmp_path):
    """A set in folders of any name is taken as it is, or its file is refused for its encoding."""
    picture = io.BytesIO()
    Image.new("RGB", (40, 30)).save(picture, "png")

    @settings(max_examples=80, derandomize=True, database=None)
    @given(
        st.lists(names, min_size=1, max_size=3),
        names,
        st.sampled_from("/\\"),
        st.sampled_from(ENCODINGS),
    )
    def check(parts, class_name, separator, encoding):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            image = pathlib.Path(folder, *parts[:-1], f"{parts[-1]}.png")
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(picture.getvalue())
            file_name = separator.join([*parts[:-1], image.name])
            content = {
                "images": [{"id": 1, "file_name": file_name, "width": 40, "height": 30}],
                "categories": [{"id": 1, "name": class_name}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20]}],
            }
            text = json.dumps(content, ensure_ascii=False)
            json_file = pathlib.Path(folder, "annotations.json")
            json_file.write_bytes(text.encode(encoding, errors="replace"))
            entry = f"{json_file}:{folder}"
            written = json_file.read_bytes()
            try:
                is_utf8 = json.loads(written.decode("utf-8-sig")) == content
            except ValueError:
                is_utf8 = False
            if is_utf8:
                prepare_datasets(config([entry], num_classes=1), training=True)
                (record,) = DatasetCatalog.get(entry)
                assert os.path.samefile(record["file_name"], image)
                assert MetadataCatalog.get(entry).thing_classes == [class_name]
            elif b"?" not in written:
                sentence = complaint(config([entry], num_classes=1))
                assert "UTF-8" in sentence

    check()


def test_a_home_folder(own, monkeypatch):
    own.save()
    monkeypatch.setenv("HOME", str(own.file.parent))
    entry = "~/annotations.json:~/images"
    prepare_datasets(config([entry]), training=True)
    assert len(DatasetCatalog.get(entry)) == 8


def test_corners_are_suspected(own):
    assert "only as corners" not in make_table(own)
    for annotation in own.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    assert "boxes that make sense only as corners" in make_table(own)
