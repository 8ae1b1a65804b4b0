"""Where images, labels and lists may be, so that a person sees what belongs together."""

import json

import pytest
from layouts import (
    NAMES,
    found_in,
    labelme,
    make_boxes,
    notes,
    ordered,
    put,
    put_csv,
    put_image,
    put_set,
    put_stated,
    refused,
    voc,
    yolo,
)

HEADER = "filename,xmin,ymin,xmax,ymax,label"


SETS = ["coco", "csv", "cvat"]
PLACES = [  # of a split's file, of its image, and the name that the file says
    ("{}", "images/{}.png", "{}.png"),
    ("{}/labels", "{}/images/1.png", "1.png"),
    ("{}/labels", "{}/1.png", "1.png"),
    ("annotations/{}", "images/{}/1.png", "1.png"),
    ("{}", "{}_images/1.png", "1.png"),
    ("test_data/{}/labels", "test_data/{}/1.png", "1.png"),
    ("training/{}/labels", "training/{}/1.png", "1.png"),
    ("training/{}", "images/{}.png", "{}.png"),
    ("test_data/{}", "images/{}/1.png", "1.png"),
]


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("file, image, name", PLACES)
def test_a_file_for_each_split(tmp_path, kind, file, image, name):
    expected = {}
    for split, word in (("train", "train"), ("val", "validation")):
        boxes = make_boxes(split)
        put_image(tmp_path, image.format(word))
        put_set(tmp_path, kind, file.format(word), {name.format(word): boxes})
        expected[split] = {image.format(word): boxes}
    assert found_in(tmp_path) == ordered(expected)


@pytest.mark.parametrize("kind", SETS)
def test_one_file_for_one_of_two_folders(tmp_path, kind):
    for split in ("train", "test"):
        put_image(tmp_path, f"{split}/1.png")
    boxes = make_boxes(0)
    put_set(tmp_path, kind, "train", {"1.png": boxes})
    assert found_in(tmp_path) == ordered({"train": {"train/1.png": boxes}})


def test_folders_of_splits_in_one_file_of_cvat(tmp_path):
    truth = {f"images/{split}/1.png": make_boxes(split) for split in ("train", "val")}
    for image in truth:
        put_image(tmp_path, image)
    put_set(tmp_path, "cvat", "annotations", {i[len("images/") :]: b for i, b in truth.items()})
    expected = {split: {f"images/{split}/1.png": make_boxes(split)} for split in ("train", "val")}
    assert found_in(tmp_path) == ordered(expected)


@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_equal_names_in_stated_splits(tmp_path, kind):
    truth = {split: make_boxes(split) for split in ("train", "val")}
    for split in truth:
        put_image(tmp_path, f"images/{split}/1.png")
    if kind == "csv":
        rows = [["1.png", *b[1:], b[0], split] for split, boxes in truth.items() for b in boxes]
        put_csv(tmp_path, "a.csv", rows, header=f"{HEADER},split")
    else:
        text = ""
        for split, boxes in truth.items():
            put_set(tmp_path, kind, "a", {"1.png": boxes}, subset=f' subset="{split}"')
            text += (tmp_path / "a.xml").read_text()
        put(tmp_path, "a.xml", text.replace("</annotations><annotations>", ""))
    expected = {split: {f"images/{split}/1.png": boxes} for split, boxes in truth.items()}
    assert found_in(tmp_path) == ordered(expected)


@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_an_image_in_two_splits(tmp_path, kind):
    for i in range(3):
        put_image(tmp_path, f"images/{i}.png")
    stated = [("0.png", "train"), ("1.png", "train"), ("0.png", "val"), ("2.png", "val")]
    put_stated(tmp_path, kind, [(*x, make_boxes(i)) for i, x in enumerate(stated)])
    assert "puts 0.png into train and into val" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_an_absent_image_of_another_split(tmp_path, kind):
    """Its objects are not those of an image of its name in the first split."""
    for name in ("images/0.png", "images/2.png"):
        put_image(tmp_path, name)
    stated = [("0.png", "train"), ("other/0.png", "val"), ("2.png", "val")]
    put_stated(tmp_path, kind, [(*x, make_boxes(i)) for i, x in enumerate(stated)])
    expected = {"train": {"images/0.png": make_boxes(0)}, "val": {"images/2.png": make_boxes(2)}}
    assert found_in(tmp_path) == ordered(expected)
    assert "3: its image is not there, e.g. other/0.png" in notes(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_a_split_whose_images_are_not_there(tmp_path, kind):
    stated = [
        (f"{s}/{i}.png", s) for s, n in (("train", 4), ("val", 2), ("test", 2)) for i in range(n)
    ]
    for name, split in stated:
        if split != "test":
            put_image(tmp_path, f"images/{name}")
    put_stated(tmp_path, kind, [(*x, make_boxes(i)) for i, x in enumerate(stated)])
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"train": 4, "val": 2}
    assert "6: its image is not there" in notes(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_the_folder_of_a_split_before_others(tmp_path, kind):
    for name in ("images/1.png", "images/train/1.png", "images/val/1.png"):
        put_image(tmp_path, name)
    put_stated(tmp_path, kind, [("1.png", s, make_boxes(s)) for s in ("train", "val")])
    expected = {s: {f"images/{s}/1.png": make_boxes(s)} for s in ("train", "val")}
    assert found_in(tmp_path) == ordered(expected)


@pytest.mark.parametrize("kind", ["yolo", "voc", "labelme"])
def test_folders_of_labels_in_another_split(tmp_path, kind):
    for i, split in enumerate(("train", "val", "train")):
        boxes = make_boxes(i)
        put_image(tmp_path, f"images/{i}.png")
        suffix = {"yolo": "txt", "voc": "xml", "labelme": "json"}[kind]
        text = (
            yolo(boxes)
            if kind == "yolo"
            else (voc if kind == "voc" else labelme)(f"{i}.png", boxes)
        )
        put(tmp_path, f"labels/training/{split}/{i}.{suffix}", text)
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    assert {k: [*v] for k, v in found_in(tmp_path).items()} == {
        "train": ["images/0.png", "images/2.png"],
        "val": ["images/1.png"],
    }


def test_files_of_cvat_some_of_which_speak_of_splits(tmp_path):
    for i, name in enumerate(("train", "val", "more")):
        put_image(tmp_path, f"{i}.png")
        put_set(tmp_path, "cvat", name, {f"{i}.png": make_boxes(i)})
    assert list(found_in(tmp_path)) == ["all"]
    assert "files that speak of splits beside others, and divide nothing" in notes(tmp_path)


def test_a_folder_of_cvat_that_is_called_like_a_split(tmp_path):
    truth = {f"images/{x}.png": make_boxes(x) for x in ("dev/a", "park/b")}
    for image in truth:
        put_image(tmp_path, image)
    put_set(tmp_path, "cvat", "annotations", {i[7:]: b for i, b in truth.items()})
    assert found_in(tmp_path) == ordered({"all": truth})
    assert "folders that speak of splits, and divide nothing" in notes(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_a_file_named_by_itself_and_the_folder_of_its_split(tmp_path, kind):
    for split in ("train", "val"):
        put_image(tmp_path, f"images/{split}/1.png")
        put_set(tmp_path, kind, split, {"1.png": make_boxes(split)})
    suffix = "xml" if kind == "cvat" else kind
    expected = {"images/val/1.png": make_boxes("val")}
    found = found_in(tmp_path / f"val.{suffix}")
    assert list(found) in (["all"], ["val"])
    assert [*found.values()][0]["images/val/1.png"] == sorted(expected["images/val/1.png"])


def test_images_of_another_table_are_not_negatives(tmp_path):
    truth = {f"images/{i}.png": make_boxes(i) for i in range(4)}
    for image in truth:
        put_image(tmp_path, image)
    for table, images in (("a", [0, 1]), ("b", [2])):
        rows = [[f"{i}.png", *b[1:], b[0]] for i in images for b in truth[f"images/{i}.png"]]
        put_csv(tmp_path, f"{table}.csv", rows)
    put(tmp_path, "c.csv", '"\n')
    put(tmp_path, "d.csv", "label,xmin,ymin,xmax,ymax,filename\ndisc,1,2,3,4,7.png\nEnd\n")
    expected = {f"images/{i}.png": truth[f"images/{i}.png"] for i in (0, 1)}
    assert found_in(tmp_path / "a.csv") == ordered({"all": {**expected, "images/3.png": []}})
    text = notes(tmp_path / "a.csv")
    assert "1: labelled by another table than the named one, e.g. images/2.png" in text
    assert "3: beside the file that is named, e.g. b.csv" in text


# --- images that are not there -----------------------------------------------------------------


def test_absent_files_of_absolute_paths(tmp_path):
    """An image of the same name in another folder is another one."""
    for i in range(4):
        for home in ("a", "c"):
            put_image(tmp_path, f"images/{home}/{i}.png")
            put(tmp_path, f"labels/{home}/{i}.txt", yolo(make_boxes(home + str(i))))
    lines = {"train": [f"a/{i}" for i in range(4)] + ["b/3"], "val": [f"c/{i}" for i in range(4)]}
    for split, some in lines.items():
        put(tmp_path, f"{split}.txt", "\n".join(f"{tmp_path}/images/{x}.png" for x in some))
    text = f"train: train.txt\nval: val.txt\nnames: {json.dumps(NAMES)}\n"
    put(tmp_path, "data.yaml", text)
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"train": 4, "val": 4}


@pytest.mark.parametrize("kind", ["csv", "cvat", "both"])
def test_an_absent_image_and_the_folder_of_another_split(tmp_path, kind):
    for i in range(4):
        put_image(tmp_path, f"val/{i}.png")
        if i < 3:
            put_image(tmp_path, f"train/{i}.png")
    stated = [(f"{i}.png", s) for s, n in (("train", 4), ("val", 3)) for i in range(n)]
    if kind == "both":
        for split in ("train", "val"):
            truth = {name: make_boxes(name) for name, own in stated if own == split}
            put_set(tmp_path, "csv", split, truth)
    else:
        put_stated(tmp_path, kind, [(*x, make_boxes(i)) for i, x in enumerate(stated)])
    assert "'3.png' is not in" in refused(tmp_path)


def test_stated_splits_of_a_cvat_file_that_is_named_by_itself(tmp_path):
    stated = [(f"{i}.png", "train" if i < 4 else "val") for i in range(6)]
    for name, _ in stated:
        put_image(tmp_path, f"images/{name}")
    put_stated(tmp_path, "cvat", [(*x, make_boxes(i)) for i, x in enumerate(stated)])
    for data in (tmp_path, tmp_path / "a.xml"):
        assert {k: len(v) for k, v in found_in(data).items()} == {"train": 4, "val": 2}


@pytest.mark.parametrize("name", ["training/annotations", "my_test_labels"])
@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_the_name_of_one_file_and_the_folders_of_its_images(tmp_path, name, kind):
    home = "training" if "/" in name else "images"
    truth = {
        f"{split}/{split}{i}.png": make_boxes(i) for split in ("train", "val") for i in range(2)
    }
    for image in truth:
        put_image(tmp_path, f"{home}/{image}")
    put_set(tmp_path, kind, name, truth)
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"train": 2, "val": 2}


@pytest.mark.parametrize("kind", ["labelme", "voc"])
def test_a_file_of_a_name_in_another_split(tmp_path, kind):
    suffix = "xml" if kind == "voc" else "json"
    for split in ("train", "val"):
        for i in range(3):
            put_image(tmp_path, f"{split}/{split}{i}.png")
            make = voc if kind == "voc" else labelme
            put(tmp_path, f"{split}/{split}{i}.{suffix}", make(f"{split}{i}.png", make_boxes(i)))
    put_image(tmp_path, "val/notes.png")
    put(tmp_path, f"train/notes.{suffix}", "<a/>" if kind == "voc" else {"a": 1})
    assert found_in(tmp_path)["val"]["val/notes.png"] == []


def test_a_text_of_the_name_of_an_image_with_other_labels(tmp_path):
    for home in ("a", "b"):
        for i in range(2):
            put_image(tmp_path, f"{home}/images/{home}{i}.png")
            put(tmp_path, f"{home}/labels/{home}{i}.txt", yolo(make_boxes(i)))
    put_image(tmp_path, "b/images/intro.png")
    put(tmp_path, "b/labels/intro.txt", yolo(make_boxes(5)))
    put(tmp_path, "a/labels/intro.txt", "About this data set")
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    assert len(found_in(tmp_path)["all"]) == 5
