"""Kinds of folders in public bug reports that one format or program writes, with the right value of
each."""

import base64
import io
import json
import os
import shutil

import pytest
import yaml as yaml_library
from layouts import (
    NAMES,
    SIZE,
    found_in,
    labelme,
    list_rows,
    make_boxes,
    ordered,
    put,
    put_csv,
    put_image,
    refused,
    yolo_set,
)
from PIL import Image

from tood.app.convert.door import read_data

CLASSES = "\n".join(NAMES) + "\n"


# --- configurations of YOLO --------------------------------------------------------------------


def two_splits(root):
    return {
        s: yolo_set(root, [f"images/{s}/{s}{i}.jpg" for i in range(3)]) for s in ("train", "val")
    }


def entries_with(path=""):
    return f"{path}train: images/train\nval: images/val\ntest:\nnames: {NAMES}\n"


def test_an_absolute_path(tmp_path):
    truth = two_splits(tmp_path)
    put(tmp_path, "data.yaml", entries_with(f"path: {tmp_path}\n"))
    assert found_in(tmp_path) == found_in(tmp_path / "data.yaml") == ordered(truth)
    put(tmp_path, "data.yaml", entries_with("path: /content/other_machine\n"))
    assert found_in(tmp_path) == ordered(truth)


@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_configuration_outside_of_its_data(is_absolute, tmp_path):
    truth = two_splits(tmp_path / "sets" / "a")
    base = tmp_path / "sets" / "a" if is_absolute else "../sets/a"
    put(tmp_path, "configs/data.yaml", entries_with(f"path: {base}\n"))
    found = found_in(tmp_path / "configs" / "data.yaml")
    expected = {s: {f"../sets/a/{i}": b for i, b in x.items()} for s, x in truth.items()}
    assert found == ordered(expected)
    part = read_data(str(tmp_path / "configs")).parts["val"]
    for image in part.content["images"]:
        assert os.path.isfile(os.path.join(part.image_root, image["file_name"]))


def test_paths_without_a_base_outside_of_the_folder(tmp_path):
    two_splits(tmp_path / "sets")
    text = f"train: {tmp_path}/sets/images/train\nval: {tmp_path}/sets/images/val\nnames: {NAMES}"
    put(tmp_path, "configs/data.yaml", text)
    assert [len(images) for images in found_in(tmp_path / "configs").values()] == [3, 3]


def test_a_path_that_could_be_two_folders(tmp_path):
    yolo_set(tmp_path / "set", [f"train/images/{i}.jpg" for i in range(3)])
    yolo_set(tmp_path, [f"train/images/{i}.jpg" for i in range(3)])
    put(tmp_path / "set", "data.yaml", f"train: ../train/images\nnames: {NAMES}")
    assert "could be" in refused(tmp_path / "set")


def test_two_configurations_are_refused(tmp_path):
    for folder in "ab":
        two_splits(tmp_path / folder)
        put(tmp_path, f"{folder}/data.yaml", entries_with())
    message = refused(tmp_path)
    assert "a/data.yaml and" in message and "b/data.yaml each describe a data set" in message


def test_one_folder_to_train_and_to_validate_on(tmp_path):
    truth = yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(4)])
    put(tmp_path, "data.yaml", f"train: images\nval: images\nnames: {NAMES}")
    assert found_in(tmp_path) == ordered({"train": truth, "val": truth})
    assert read_data(str(tmp_path)).ledger.objects_out == 12


def test_what_a_configuration_does_not_name_is_ignored(tmp_path):
    truth = two_splits(tmp_path)
    yolo_set(tmp_path, [f"images/old/old{i}.jpg" for i in range(3)])
    put(tmp_path, "data.yaml", entries_with())
    assert found_in(tmp_path) == ordered(truth)
    row = "ignored files: 6: not named by data.yaml, e.g. images/old/old0.jpg"
    assert row in list_rows(tmp_path)


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(delimiter, tmp_path):
    truth = {f"{i}.jpg": [[n, a + 0.5, *b] for n, a, *b in make_boxes(i)] for i in range(4)}
    for image in truth:
        put_image(tmp_path, image)
    rows = [[i, *b, n] for i, boxes in truth.items() for n, *b in boxes]
    if delimiter != ",":  # as Excel writes numbers in German
        rows = [[str(cell).replace("0.5", "0,5").replace(".5", ",5") for cell in r] for r in rows]
    put_csv(tmp_path, "boxes.csv", rows, delimiter=delimiter)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_relative_values_within_the_tolerance(tmp_path):
    rows = []
    for i in range(4):
        put_image(tmp_path, f"{i}.jpg", (100, 100))
        rows.append([f"{i}.jpg", 0.1, 0.2, 1.0004, 0.5, "disc"])
    put_csv(tmp_path, "boxes.csv", rows)
    found = found_in(tmp_path)["all"]
    assert found["2.jpg"] == [["disc", 10, 20, 100.04, 50]]


def test_a_table_in_two_units(tmp_path):
    put_image(tmp_path, "0.jpg")
    put_image(tmp_path, "1.jpg")
    rows = [["0.jpg", *b, n] for n, *b in make_boxes(0)] + [["1.jpg", 0, 0.2, 1, 0.5, "disc"]]
    put_csv(tmp_path, "boxes.csv", rows)
    message = refused(tmp_path)
    assert "1 of 4 boxes in relative values, for example of 1.jpg, and others in pixels" in message


def test_images_that_a_table_does_not_list_are_negatives(tmp_path):
    truth = {f"images/{i}.jpg": make_boxes(i) if i < 5 else [] for i in range(8)}
    for image in truth:
        put_image(tmp_path, image)
    rows = [[i[7:], *b, n] for i, boxes in truth.items() for n, *b in boxes]
    put_csv(tmp_path, "train.csv", rows)
    assert found_in(tmp_path) == ordered({"train": truth})
    assert "images: 8: train 8, 3 without objects" in list_rows(tmp_path)


def test_a_column_of_splits(tmp_path):
    truth = {"train": {}, "val": {}}
    for i in range(6):
        put_image(tmp_path, f"{i}.jpg")
        truth[("train", "val")[i % 2]][f"{i}.jpg"] = make_boxes(i)
    rows = [[s, i, *b, n] for s, x in truth.items() for i, boxes in x.items() for n, *b in boxes]
    put_csv(tmp_path, "boxes.csv", rows, "split,filename,xmin,ymin,xmax,ymax,label")
    assert found_in(tmp_path) == ordered(truth)


def test_a_table_for_each_split(tmp_path):
    truth = {"train": {}, "test": {}}
    for i in range(6):
        put_image(tmp_path, f"images/{i}.jpg")
        truth[("train", "test")[i % 2]][f"images/{i}.jpg"] = make_boxes(i)
    for split, images in truth.items():
        rows = [[i, *b, n] for i, boxes in images.items() for n, *b in boxes]
        put_csv(tmp_path, f"{split}_labels.csv", rows)
    assert found_in(tmp_path) == ordered(truth)


# --- LabelMe -----------------------------------------------------------------------------------


def test_shapes_without_a_type_are_polygons(tmp_path):
    for i in range(2):
        put_image(tmp_path, f"{i}.jpg")
        shape = {"label": "disc", "points": [[5, 6], [20, 8], [12, 30]]}
        put(tmp_path, f"{i}.json", labelme(f"{i}.jpg", [], shapes=[shape]))
    assert found_in(tmp_path)["all"]["1.jpg"] == [["disc", 5, 6, 20, 30]]


def test_groups_are_objects_and_counted(tmp_path):
    put_image(tmp_path, "0.jpg")
    content = labelme("0.jpg", make_boxes(0, ["disc"]))
    for shape, group in zip(content["shapes"], (1, 1, None)):
        shape["group_id"] = group
    content["shapes"].append({"label": "x", "shape_type": "point", "points": [[3, 3]]})
    put(tmp_path, "0.json", content)
    (_, x1, y1, _, _), (_, _, b1, x2, b2), third = make_boxes(0, ["disc"])
    joined = ["disc", x1, min(y1, b1), x2, max(make_boxes(0, ["disc"])[0][4], b2)]
    assert found_in(tmp_path) == ordered({"all": {"0.jpg": [joined, third]}})
    assert read_data(str(tmp_path)).ledger.ignored_objects == {
        "further shapes of a group, which is one object": 1,
        "shapes of the type point": 1,
    }


def test_an_image_that_is_only_inside_of_its_file(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", SIZE).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    for i in range(4):
        put(tmp_path, f"{i}.json", labelme(f"{i}.png", make_boxes(i), imageData=data))
    assert "4 of 4 LabelMe files contain their image only inside (imageData)" in refused(tmp_path)
    for i in range(3):
        put_image(tmp_path, f"{i}.png")
    assert len(found_in(tmp_path)["all"]) == 3
    ledger = read_data(str(tmp_path)).ledger
    assert ledger.orphans() == ["3.json"] and any("imageData" in text for text in ledger.notes)


# --- CVAT --------------------------------------------------------------------------------------

CVAT = "<annotations><meta><task><labels>{}</labels>{}</task></meta>{}</annotations>"
LABELS = "".join(f"<label><name>{n}</name></label>" for n in NAMES[::-1])


def test_images_of_cvat(tmp_path):
    truth, text = {}, ""
    for i in range(4):
        put_image(tmp_path, f"images/{i}.jpg")
        truth[f"images/{i}.jpg"] = make_boxes(i) if i else []
        text += f'<image id="{i}" name="{i}.jpg" width="64" height="48">'
        for n, x1, y1, x2, y2 in truth[f"images/{i}.jpg"]:
            text += f'<box label="{n}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
        text += '<polyline label="disc" points="1,2;3,4"/></image>'
    put(tmp_path, "annotations.xml", CVAT.format(LABELS, "", text))
    assert found_in(tmp_path) == found_in(tmp_path / "annotations.xml") == ordered({"all": truth})
    converted = read_data(str(tmp_path))
    assert [c["name"] for c in converted.parts["all"].content["categories"]] == NAMES[::-1]
    assert converted.ledger.ignored_objects == {"shapes of the type polyline": 4}


def test_other_shapes_of_cvat(tmp_path):
    put_image(tmp_path, "0.jpg")
    text = '<image id="0" name="0.jpg"><polygon label="disc" points="5,6;20,8;12,30"/>'
    text += '<ellipse label="star" cx="20" cy="20" rx="5" ry="4"/>'
    text += '<box label="star" xtl="10" ytl="20" xbr="30" ybr="24" rotation="90"/></image>'
    put(tmp_path, "annotations.xml", CVAT.format(LABELS, "", text))
    expected = [["disc", 5, 6, 20, 30], ["star", 15, 16, 25, 24], ["star", 18, 12, 22, 32]]
    assert found_in(tmp_path)["all"]["0.jpg"] == expected


@pytest.mark.parametrize("first", [0, 1])
def test_tracks_of_cvat(first, tmp_path):
    truth, tracks = {}, dict.fromkeys(NAMES, "")
    for i in range(5):
        image = f"images/frame_{i + first:06d}.PNG"
        put_image(tmp_path, image)
        truth[image] = [["disc", 5 + i, 6, 20 + i, 20]] if i < 3 else []
        outside = int(i >= 3)
        tracks["disc"] += f'<box frame="{i}" outside="{outside}" xtl="{5 + i}" ytl="6" '
        tracks["disc"] += f'xbr="{20 + i}" ybr="20"/>'
    text = "".join(f'<track id="0" label="{n}">{x}</track>' for n, x in tracks.items())
    size = "<original_size><width>64</width><height>48</height></original_size>"
    put(tmp_path, "annotations.xml", CVAT.format(LABELS, size, text))
    if first:  # as ffmpeg numbers them
        assert "counts frames from 0, but the images begin with" in refused(tmp_path)
    else:
        assert found_in(tmp_path) == ordered({"all": truth})


def test_yolo_of_cvat(tmp_path):
    images = [f"obj_train_data/frame_{i:06d}.PNG" for i in range(4)]
    truth = yolo_set(tmp_path, images)
    put(tmp_path, "obj.names", CLASSES)
    text = "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    put(tmp_path, "obj.data", text)
    put(tmp_path, "train.txt", "".join(f"data/{image}\n" for image in images))
    assert found_in(tmp_path) == ordered({"train": truth})


def roboflow_set(root, splits=("train", "valid")):
    """Write a data set whose data.yaml names a test split, as Roboflow's does; return the truth."""
    truth = {}
    for name in splits:
        images = [f"{name}/images/{name}_{i}.jpg" for i in range(3)]
        truth["val" if name == "valid" else name] = yolo_set(root, images)
    splits = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    put(root, "data.yaml", yaml_library.safe_dump({**splits, "nc": 3, "names": NAMES}))
    return truth


def test_a_test_split_that_was_not_exported(tmp_path):
    truth = roboflow_set(tmp_path)
    assert found_in(tmp_path) == ordered(truth)
    assert "note: its test images are not there, e.g. ../test/images" in list_rows(tmp_path)
    for name, folder in (("train", "train"), ("val", "valid")):  # others are needed
        shutil.move(tmp_path / folder, tmp_path / "away")
        assert f"../{folder}/images is not there" in refused(tmp_path), name
        shutil.move(tmp_path / "away", tmp_path / folder)


def test_a_part_is_named_by_its_folder(tmp_path, monkeypatch):
    truth = roboflow_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    for data in (tmp_path / "train", "train", "./train/"):
        assert found_in(data) == ordered({"train": truth["train"]})
        rows = [x for x in list_rows(data) if "is read as a part" in x]
        assert len(rows) == 1 and "data.yaml:train" in rows[0]
    assert found_in("valid") == ordered({"val": truth["val"]})
    yolo_set(tmp_path, ["other/images/a.jpg"])  # which the configuration does not name
    assert "nothing names the classes" in refused("other")


def test_files_that_are_not_there_or_not_data(tmp_path):
    put(tmp_path, "set.zip", "PK")
    put(tmp_path, "a.json", {"images": [], "info": 1})
    put(tmp_path, "b.json", '{"images": [')
    assert "is an archive; unpack it" in refused(tmp_path / "set.zip")
    assert "There is no folder nowhere" in refused("nowhere")
    assert "gone.json cannot be read" in refused(tmp_path / "gone.json")
    assert "a.json is not in COCO's instances format" in refused(tmp_path / "a.json")
    assert "b.json cannot be read: Expecting value" in refused(tmp_path / "b.json")
    assert "is not a data set" in refused(__file__)
    assert json.loads((tmp_path / "a.json").read_text())["info"] == 1
