"""Writing data sets, and reading what was written."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import (
    NAMES,
    SIZE,
    coco,
    found_in,
    list_truth,
    make_boxes,
    ordered,
    put,
    put_image,
    voc,
)

import tood.app.convert.write as write
from tood.app.convert.command import convert
from tood.app.convert.door import read_data
from tood.utils.errors import UserError

FORMATS = ("coco", "yolo", "voc", "labelme")
# The last digit that a format has, in pixels of an image 64 pixels wide.
PRECISION = {"coco": 1e-9, "yolo": 64e-8, "voc": 0.5, "labelme": 1e-9}


@pytest.fixture
def photos(tmp_path):
    """Make COCO files of two splits."""
    truth = {}
    for split, number in (("train", 4), ("val", 2)):
        truth[split] = {f"photos/{split}{i}.jpg": make_boxes(split + str(i)) for i in range(number)}
        truth[split][f"photos/{split}0.jpg"] = []
        for image in truth[split]:
            put_image(tmp_path / "set", image)
        put(tmp_path / "set", f"{split}.json", coco(truth[split]))
    return tmp_path / "set", truth


def names_only(truth):
    return {s: {os.path.basename(i): b for i, b in x.items()} for s, x in truth.items()}


@pytest.mark.parametrize("to", FORMATS)
def test_a_round_trip(to, photos, tmp_path):
    folder, truth = photos
    conversion = convert(str(folder), output=str(tmp_path / "out"), to=to)
    assert list(conversion.entries) == ["train", "val"]
    assert names_only(found_in(tmp_path / "out")) == names_only(ordered(truth))
    for split, entry in conversion.entries.items():
        (found,) = names_only(found_in(entry)).values()
        assert found == names_only(ordered(truth))[split]
    categories = [c["name"] for c in read_data(entry).parts.popitem()[1].content["categories"]]
    assert categories == NAMES
    with open(tmp_path / "out" / "ledger.json") as f:
        ledger = json.load(f)
    assert ledger["format"] == "COCO" and ledger["objects"]["kept"] == 12
    assert all((tmp_path / "out" / file).is_file() for file in ledger["written"])
    assert "12 of 12 in 2 files" in str(conversion) and entry in str(conversion)


boxes = st.tuples(
    st.sampled_from(["disc", "yes", "a: b", "Küche", "<&>", "#007"]),
    st.floats(0, 40, width=32),
    st.floats(0, 30, width=32),
    st.floats(2, 20, width=32),
    st.floats(2, 15, width=32),
)
images = st.dictionaries(
    st.sampled_from(
        ["0.jpg", "0.png", "a/0.jpg", "a/b/0.jpg", "train.jpg", "classes.png", "x y .jpg"]
    ),
    st.lists(boxes, max_size=4, unique=True),
    min_size=2,
    max_size=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(images=images, to=st.sampled_from(FORMATS), has_splits=st.booleans())
def test_any_round_trip_is_equal_to_the_last_digit(images, to, has_splits, tmp_path_factory):
    root = tmp_path_factory.mktemp("trip")
    number_labelled = sum(map(bool, images.values()))
    if number_labelled * 2 < len(images) or not number_labelled:
        return
    names = sorted({b[0] for x in images.values() for b in x})
    truth = {i: [[n, x, y, x + w, y + h] for n, x, y, w, h in b] for i, b in images.items()}
    for image in truth:
        put_image(root / "set", image)
    splits = {"train": truth, "val": truth} if has_splits else {"labels": truth}
    for split, some in splits.items():
        put(root / "set", f"{split}.json", coco(some, names))
    convert(str(root / "set"), output=str(root / "out"), to=to)
    back = read_data(str(root / "out"))
    assert list(back.parts) == (["train", "val"] if has_splits else ["all"])
    for part in back.parts.values():
        assert [c["name"] for c in part.content["categories"]] == names
        objects = {i["id"]: [] for i in part.content["images"]}
        for a in part.content["annotations"]:
            objects[a["image_id"]].append((names[a["category_id"]], a["bbox"]))
        # Images keep their order, unless folders are sorted; equal pixels identify them.
        pixels = {(root / "set" / i).read_bytes(): i for i in truth}
        for image in part.content["images"]:
            path = os.path.join(part.image_root, image["file_name"])
            with open(path, "rb") as f:
                expected = truth[pixels[f.read()]]
            found = objects[image["id"]]
            assert [n for n, _ in found] == [b[0] for b in expected]
            for (_, (x, y, w, h)), (_, *box) in zip(found, expected):
                assert (x, y, x + w, y + h) == pytest.approx(box, abs=2 * PRECISION[to])


def test_images_are_not_copied(photos, tmp_path):
    folder, _ = photos
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    convert(str(folder), output=str(tmp_path / "link" / "out"))
    assert sorted(os.listdir(tmp_path / "link" / "out")) == [
        "ledger.json",
        "train.json",
        "val.json",
    ]
    with open(tmp_path / "link" / "out" / "val.json") as f:
        (name, *_) = (image["file_name"] for image in json.load(f)["images"])
    assert name == "../../../set/photos/val0.jpg"
    assert (tmp_path / "link" / "out" / name).is_file()


def test_one_split_is_written(photos, tmp_path):
    entries = convert(f"{photos[0]}:val", output=str(tmp_path / "out")).entries
    assert entries == {"val": f"{tmp_path}/out/val.json:{tmp_path}/out"}
    assert [len(x) for x in found_in(entries["val"]).values()] == [2]


def test_images_on_another_drive_have_absolute_names(photos, tmp_path, monkeypatch):
    def relpath(*_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")  # as on Windows

    converted = read_data(f"{photos[0]}:val")
    monkeypatch.setattr(os.path, "relpath", relpath)
    write.write_dataset(converted.parts.values(), "coco", str(tmp_path / "out"))
    (name, _) = (
        x["file_name"] for x in json.loads((tmp_path / "out/val.json").read_text())["images"]
    )
    assert os.path.isabs(name) and os.path.isfile(name)


def test_detections_are_written_with_their_scores(photos, tmp_path):
    part = read_data(f"{photos[0]}:val").parts["val"]
    detections = [{"image_id": 1, "category_id": 2, "bbox": [1.5, 2, 3, 4], "score": 0.75}]
    content = {**part.content, "annotations": detections}
    for to in FORMATS:
        written = write.write_dataset(part._replace(content=content), to, str(tmp_path / to))
        assert all((tmp_path / to / file).is_file() for file in written.files)
    found = json.loads((tmp_path / "coco" / "val.json").read_text())
    assert found["annotations"] == detections
    text = (tmp_path / "yolo" / "labels" / "val" / "val0.txt").read_text()
    assert text == "2 0.04687500 0.08333333 0.04687500 0.08333333\n"


def test_what_a_format_cannot_express_is_counted(tmp_path):
    content = coco({"0.jpg": make_boxes(0), "1.jpg": make_boxes(1)})
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["ignore"] = 1
    content["annotations"][2]["bbox"] = [100, 5, 10, 10]
    content["annotations"][3]["bbox"] = [60, 40, 30, 30]
    put_image(tmp_path / "set", "0.jpg")
    put_image(tmp_path / "set", "1.jpg")
    put(tmp_path / "set", "labels.json", content)
    counts = {}
    for to in FORMATS:
        counts[to] = convert(str(tmp_path / "set"), output=str(tmp_path / to), to=to).omitted
    assert counts["coco"] == {}
    assert counts["yolo"] == {write.CROWDS: 2, write.OUTSIDE: 1}
    assert counts["voc"] == {write.OUTSIDE: 1}
    assert counts["labelme"] == {write.CROWDS: 2}
    found = read_data(str(tmp_path / "voc")).parts["all"].content["annotations"]
    assert [a["iscrowd"] for a in found] == [1, 1, 0, 0, 0]
    assert found[2]["bbox"] == [60, 40, 4, 8]


def test_overwriting_removes_only_what_a_conversion_wrote(photos, tmp_path):
    folder, output = str(photos[0]), str(tmp_path / "out")
    convert(folder, output=output, to="yolo")
    with pytest.raises(UserError, match="already contains files; .* add --overwrite"):
        convert(folder, output=output, to="voc")
    put(tmp_path, "out/notes.md", "mine")
    convert(folder, output=output, to="voc", overwrite=True)
    assert (tmp_path / "out" / "notes.md").exists()
    assert not (tmp_path / "out" / "data.yaml").exists()
    assert read_data(output).format == "Pascal VOC"
    put(tmp_path, "mine/notes.md", "mine")
    with pytest.raises(UserError, match="files that no conversion wrote"):
        convert(folder, output=str(tmp_path / "mine"), overwrite=True)


def test_what_is_refused(photos, tmp_path):
    folder = str(photos[0])
    with pytest.raises(UserError, match="'vox' is not a format to write; use one of coco, yolo"):
        convert(folder, output=str(tmp_path / "out"), to="vox")
    with pytest.raises(UserError, match="contains the data"):
        convert(folder, output=folder, overwrite=True)
    for change, expected in (
        (lambda x: x["annotations"][0].pop("bbox"), "entry 0 of its annotations needs a 'bbox'"),
        (lambda x: x["annotations"][0].update(image_id=7), "1 .* has image_id 7; correct"),
        (lambda x: x["annotations"][0].update(category_id=7), "1 .* has category_id 7; correct"),
        (lambda x: x["images"][0].update(width=640), r"upright it has 64 x 48, not 640 x 48"),
        (lambda x: x["images"][0].update(file_name="x"), "1 images that are not there, as .*/x;"),
        (lambda x: x["categories"][0].update(name="star"), "the category 'star' twice"),
    ):
        content = coco({"photos/val1.jpg": make_boxes(1)})
        change(content)
        put(tmp_path, "broken.json", content)
        with pytest.raises(UserError, match=expected):
            convert(f"{tmp_path}/broken.json:{folder}", output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pascal_voc_is_converted(tmp_path):
    truth = {}
    for i in range(3):
        put_image(tmp_path / "set", f"{i}.jpg")
        truth[f"{i}.jpg"] = make_boxes(i)
        put(tmp_path / "set", f"{i}.xml", voc(f"{i}.jpg", make_boxes(i), SIZE))
    conversion = convert(str(tmp_path / "set"), output=str(tmp_path / "out"))
    converted = read_data(conversion.entries["all"])
    assert names_only(list_truth(converted)) == ordered({"all": truth})
