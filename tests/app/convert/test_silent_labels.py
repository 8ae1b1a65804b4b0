"""Labels of single images that were once read wrongly without a word: YOLO's and Pascal VOC's."""

import json

import pytest
from layouts import (
    NAMES,
    SIZE,
    coco,
    found_in,
    make_boxes,
    notes,
    ordered,
    put,
    put_all,
    put_image,
    refused,
    voc,
    yolo,
)

import tood
from tood.app.convert.door import read_data

CLASSES = "\n".join(NAMES) + "\n"
BOX = 'outside="0" keyframe="1" xtl="5" ytl="5" xbr="25" ybr="30"'


# --- YOLO --------------------------------------------------------------------------------------


def put_labels(root, line, number=6):
    put(root, "classes.txt", "face\n")
    for i in range(number):
        put_image(root, f"images/{i}.jpg")
        put(root, f"labels/{i}.txt", line(i))


@pytest.mark.parametrize("marks", ["", " 2"])
def test_key_points_are_not_a_polygon(tmp_path, marks):
    points = ("0.46 0.45", "0.54 0.45", "0.5 0.5", "0.46 0.55", "0.54 0.55", "0.5 0.52")
    text = " ".join(f"{point}{marks}" for point in points)
    put_labels(tmp_path, lambda i: f"0 0.5 0.5 0.3{i} 0.4 {text}\n")
    assert "add kpt_shape" in refused(tmp_path)


def test_polygons_of_as_many_points_are_read(tmp_path):
    """Around a circle, as programs write ellipses."""
    turns = [(0.1, 0.0), (0.05, 0.09), (-0.05, 0.09), (-0.1, 0.0), (-0.05, -0.09), (0.05, -0.09)]
    outline = " ".join(f"{0.6 + x:.2f} {0.6 + y:.2f}" for x, y in turns)
    put_labels(tmp_path, lambda i: f"0 {outline}\n")
    box = [0.5 * SIZE[0], 0.51 * SIZE[1], 0.7 * SIZE[0], 0.69 * SIZE[1]]
    expected = [["face", *(round(x, 3) for x in box)]]
    assert found_in(tmp_path)["all"] == {f"images/{i}.jpg": expected for i in range(6)}


@pytest.mark.parametrize(
    "names, word",
    [("[{0: face}, {1: cat}]", "'0': 'face'"), ("{0: face, 1: }", "''"), ("['', face]", "''")],
)
def test_names_that_are_none(tmp_path, names, word):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").unlink()
    put(tmp_path, "data.yaml", f"train: images\nnames: {names}\n")
    message = refused(tmp_path)
    assert "among the names of its classes" in message and word in message


def test_a_list_of_classes_that_begins_with_an_empty_line(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path, "classes.txt", "\nface\n")
    assert "empty line before a name" in refused(tmp_path)


def test_a_file_of_names_that_is_not_there(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").unlink()
    put(tmp_path, "obj.data", "classes = 1\ntrain = images\nnames = data/obj.names\n")
    assert "data/obj.names, which is not there" in refused(tmp_path)


def test_a_split_that_is_not_there_is_not_another_one(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path, "data.yaml", "train: images\nval: ../valid/images\nnames: [face]\n")
    assert "its entry ../valid/images is not there" in refused(tmp_path)


def test_capital_letters_in_keys(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").unlink()
    put(tmp_path, "data.yaml", "Train: images\nNames: [face]\n")
    assert len(found_in(tmp_path)["train"]) == 6


@pytest.mark.parametrize(
    "file, text",
    [
        ("data.yaml", "train: images\nnames: [face]\nNames: [hand]\n"),
        ("data.yaml", "train: images\nnames: [face]\nnames: [hand]\n"),
        ("obj.data", "train = train.txt\nnames = a.names\nnames = b.names\n"),
    ],
)
def test_a_key_that_is_there_twice(file, text, tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").unlink()
    put(tmp_path, file, text)
    message = refused(tmp_path)
    assert file in message and "the key names twice" in message


@pytest.mark.parametrize("values", [6, 8, 10])
def test_poses_of_which_a_point_is_outside(tmp_path, values):
    line = ["0", "0.35", "0.64", "0.1", "0.04", "0.298", "0.62", "0.4", "0.62", "0.4", "0.66"][
        : values + 1
    ]
    inner = ["0", "0.35", "0.64", "0.1", "0.04", "0.34", "0.63", "0.36", "0.63", "0.36", "0.65"][
        : values + 1
    ]
    put_labels(tmp_path, lambda i: " ".join(inner if i else line) + "\n", number=12)
    assert "a box and key points in each line" in refused(tmp_path)


def test_other_lines_than_kpt_shape_says(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2 0.5 0.5 0.4 0.4\n")
    put(tmp_path, "data.yaml", "train: images\nnames: [face]\nkpt_shape: [6, 3]\n")
    assert "kpt_shape says that there are 4 or 22" in refused(tmp_path)


def test_polygons_are_named(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.1 0.1 0.3 0.1 0.2 0.3\n")
    assert "lines of polygons, whose boxes are kept" in notes(tmp_path)


def test_a_comment_among_classes(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path, "classes.txt", "# classes\nface\n")
    assert "the line '# classes'" in refused(tmp_path)


def test_labels_of_an_image_named_classes(tmp_path):
    truth = put_all(tmp_path, ["images/classes.jpg", "images/1.jpg"])
    for image, boxes in truth.items():
        put(tmp_path, image.replace("images", "labels").replace("jpg", "txt"), yolo(boxes))
    put(tmp_path, "data.yaml", f"train: images\nnames: {NAMES}\n")
    assert found_in(tmp_path) == ordered({"train": truth})


def test_what_ultralytics_detected(tmp_path):
    put_labels(tmp_path, lambda i: "0 0.5 0.5 0.2 0.2\n")
    put_image(tmp_path, "runs/detect/predict/0.jpg")
    put(tmp_path, "runs/detect/predict/labels/0.txt", "0 0.5 0.5 0.2 0.2\n")
    assert len(found_in(tmp_path)["all"]) == 6
    assert "what Ultralytics wrote" in notes(tmp_path)


def test_a_folder_that_contains_several_splits(tmp_path):
    names = [f"{split}/{i}.jpg" for split in ("train", "val") for i in range(3)]
    truth = put_all(tmp_path, [f"images/{name}" for name in names])
    for image, boxes in truth.items():
        put(tmp_path, image.replace("images", "labels").replace("jpg", "txt"), yolo(boxes))
    put(tmp_path, "data.yaml", f"train: images/train\nval: images/val\nnames: {NAMES}\n")
    found = found_in(tmp_path / "images")
    assert {split: len(images) for split, images in found.items()} == {"train": 3, "val": 3}
    put(tmp_path, "data.yaml", f"train: [images/train, images/val]\nnames: {NAMES}\n")
    refused(tmp_path / "images" / "train")  # a part of its split alone


# --- Pascal VOC --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new", [("<annotation>", '<annotation xmlns="a">'), ("object>", "Object>")]
)
def test_other_elements(tmp_path, old, new):
    truth = put_all(tmp_path, ["0.jpg"])
    put(tmp_path, "0.xml", voc("0.jpg", truth["0.jpg"]).replace(old, new))
    assert found_in(tmp_path) == ordered({"all": truth})


def test_labels_of_another_kind(tmp_path):
    truth = put_all(tmp_path, [f"{i}.jpg" for i in range(4)])
    for image, boxes in truth.items():
        name, text = (
            ("3.txt", yolo(boxes)) if image == "3.jpg" else (image[0] + ".xml", voc(image, boxes))
        )
        put(tmp_path, name, text)
    assert "3.jpg has no objects in Pascal VOC's form, but some in" in refused(tmp_path)


@pytest.mark.parametrize("broken", [{"images": [3]}, {"annotations": [{"image_id": [1]}]}])
def test_labels_of_another_kind_beside_broken_records(tmp_path, broken):
    truth = put_all(tmp_path, ["0.jpg"])
    put(tmp_path, "0.txt", yolo(truth["0.jpg"]))
    put(tmp_path, "a.json", json.dumps({**coco(truth), **broken}))
    with pytest.raises(tood.UserError):
        tood.check(tmp_path)


def test_labels_of_an_image_that_is_not_there(tmp_path):
    images = [f"train/images/site{s}/{i}.jpg" for s, i in ("A1", "A2", "B0", "B1", "B2")]
    truth = put_all(tmp_path, [*images, "val/images/siteA/3.jpg", "val/images/siteB/3.jpg"])
    for site, i in ("A0", "A1", "A2", "A3", "B1", "B2", "B3"):
        put(tmp_path, f"labels/site{site}/{i}.txt", yolo(make_boxes(f"{site}{i}")))
    put(tmp_path, "classes.txt", CLASSES)
    assert truth and "has no image in its place" in refused(tmp_path)


def put_voc(root, change=lambda text: text, number=4, encoding="utf-8"):
    truth = put_all(root, [f"{i}.jpg" for i in range(number)])
    for image, boxes in truth.items():
        path = root / image.replace("jpg", "xml")
        path.write_bytes(change(voc(image, boxes)).encode(encoding))
    return truth


def test_several_boxes_of_an_object(tmp_path):
    second = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    truth = put_voc(tmp_path, lambda text: text.replace("</bndbox>", f"</bndbox>{second}", 1))
    found = found_in(tmp_path)["all"]
    assert all(len(found[image]) == len(boxes) + 1 for image, boxes in truth.items())


def test_objects_in_an_element_of_their_own(tmp_path):
    def change(text):
        head, _, tail = text.partition("<object>")
        return f"{head}<objects><object>{tail}".replace("</annotation>", "</objects></annotation>")

    truth = put_voc(tmp_path, change)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_difficult_in_words(tmp_path):
    put_voc(tmp_path, lambda text: text.replace("<bndbox>", "<difficult>True</difficult><bndbox>"))
    content = read_data(str(tmp_path)).parts["all"].content
    assert all(a["iscrowd"] == 1 for a in content["annotations"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8"])
def test_a_file_whose_beginning_says_nothing(tmp_path, encoding):
    truth = put_voc(tmp_path, lambda text: f"<!-- {'x' * 5000} -->{text}", encoding=encoding)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_objects_without_boxes(tmp_path):
    put_voc(tmp_path, lambda text: text.replace("bndbox", "polygon"))
    message = refused(tmp_path)
    assert "0.xml has objects without a bndbox" in message
