"""What data state beside boxes: marks, scores, splits of images, and numbers of classes."""

import json
import unicodedata

import pytest
from conftest import app_error
from layouts import (
    NAMES,
    coco,
    found_in,
    labelme,
    make_boxes,
    notes,
    ordered,
    put,
    put_csv,
    put_image,
    refused,
    voc,
    yolo,
)

import tood
from tood.app.convert.door import read_data

HEADER = "filename,xmin,ymin,xmax,ymax,label"
NOTE = "files with difficult objects, which are marked iscrowd unless kept"
SCORES = "boxes have scores, as those that a model found"


def put_marked(root, kind, mark, value):
    """Write an image with three objects, the first of which has a mark; return them."""
    boxes = make_boxes(kind)
    put_image(root, "0.png")
    if kind == "csv":
        values = [value, "0", ""]
        put_csv(root, "a.csv", [["0.png", *b[1:], b[0], v] for b, v in zip(boxes, values)])
        path = root / "a.csv"
        path.write_text(path.read_text().replace(HEADER, f"{HEADER},{mark}"))
    elif kind == "labelme":
        content = labelme("0.png", boxes)
        content["shapes"][0]["flags"] = {mark: value, "other": True}
        put(root, "0.json", content)
    elif kind == "anylabeling":
        content = labelme("0.png", boxes)
        content["shapes"][0][mark] = value
        put(root, "0.json", content)
    elif kind == "cvat":
        corners = [zip(("xtl", "ytl", "xbr", "ybr"), b[1:]) for b in boxes]
        texts = [" ".join(f'{k}="{v}"' for k, v in some) for some in corners]
        inner = [f'<attribute name="{mark}">{value}</attribute>', "", ""]
        shapes = [
            f'<box label="{b[0]}" {text}>{x}</box>' for b, text, x in zip(boxes, texts, inner)
        ]
        text = f'<image name="0.png" width="64" height="48">{"".join(shapes)}</image>'
        put(root, "annotations.xml", f"<annotations>{text}</annotations>")
    else:
        first, rest = voc("0.png", boxes[:1], more=f"<{mark}>{value}</{mark}>"), boxes[1:]
        others = voc("0.png", rest).partition("</size>")[2]
        put(root, "0.xml", first.replace("</annotation>", others))
    return boxes


@pytest.mark.parametrize(
    "kind, mark, value, is_difficult",
    [
        ("csv", "difficult", "1", True),
        ("csv", "Is_Difficult", "yes", True),
        ("csv", "iscrowd", "1", False),
        ("csv", "IsGroupOf", "1", False),
        ("labelme", "difficult", True, True),
        ("labelme", "iscrowd", True, False),
        ("csv", "difficult", "1.0", True),
        ("anylabeling", "difficult", True, True),
        ("cvat", "difficult", "true", True),
        ("cvat", "is_crowd", "true", False),
        ("voc", "difficult", "1", True),
    ],
)
def test_marks_of_objects(tmp_path, kind, mark, value, is_difficult):
    boxes = put_marked(tmp_path, kind, mark, value)
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes}})
    assert (NOTE in notes(tmp_path)) == is_difficult
    for keep in (False, True):
        (part,) = read_data(str(tmp_path), keep_difficult=keep).parts.values()
        marked = [bool(a["iscrowd"]) for a in part.content["annotations"]]
        assert sorted(marked) == [False, False, not (is_difficult and keep)]


@pytest.mark.parametrize("kind", ["csv", "labelme", "cvat", "voc"])
def test_marks_that_are_neither_set_nor_not(tmp_path, kind):
    boxes = put_marked(tmp_path, kind, "iscrowd", "3")
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes}})
    assert "marks iscrowd that say neither yes nor no, and are not used" in notes(tmp_path)
    (part,) = read_data(str(tmp_path)).parts.values()
    assert not any(a["iscrowd"] for a in part.content["annotations"])


def test_a_crowd_that_is_difficult_stays_a_crowd(tmp_path):
    box = make_boxes(0)[0]
    put_image(tmp_path, "0.png")
    rows = [["0.png", *box[1:], box[0], 1, 1]]
    put_csv(tmp_path, "a.csv", rows, header=f"{HEADER},difficult,iscrowd")
    for keep in (False, True):
        (part,) = read_data(str(tmp_path), keep_difficult=keep).parts.values()
        assert [a["iscrowd"] for a in part.content["annotations"]] == [1]


def test_marks_in_lists_of_flags_and_in_attributes(tmp_path):
    put_image(tmp_path, "labelme/0.png")
    content = labelme("0.png", make_boxes(0))
    content["shapes"][0]["flags"] = ["difficult"]
    content["shapes"][1]["attributes"] = {"difficult": "true"}
    put(tmp_path, "labelme/0.json", content)
    put_image(tmp_path, "voc/0.png")
    more = "<attribute><name>difficult</name><value>True</value></attribute>"
    more = f"<attributes>{more}</attributes>"
    put(tmp_path, "voc/0.xml", voc("0.png", make_boxes(0)[:1], more=more))
    for name, marked in (("voc", [1]), ("labelme", [1, 1, 0])):
        (part,) = read_data(str(tmp_path / name)).parts.values()
        assert [a["iscrowd"] for a in part.content["annotations"]] == marked


def test_marks_that_coco_does_not_define(tmp_path):
    """They are named, and a crowd of COCO's stays one whatever else it is marked as."""
    put_image(tmp_path, "0.png")
    content = coco({"0.png": make_boxes(0)})
    first, second, third = content["annotations"]
    first["attributes"], second["is_difficult"] = {"difficult": True, "truncated": True}, 0
    third.update(iscrowd=1, difficult="false")
    put(tmp_path, "a.json", content)
    assert "marks difficult are not used; COCO's are iscrowd and ignore" in notes(tmp_path)
    assert "is_difficult" not in notes(tmp_path) and "truncated" not in notes(tmp_path)
    (part,) = read_data(str(tmp_path), keep_difficult=True).parts.values()
    assert [a["iscrowd"] for a in part.content["annotations"]] == [0, 0, 1]


def test_flags_of_a_whole_image(tmp_path):
    put_image(tmp_path, "0.png")
    for value in (False, True):
        put(tmp_path, "0.json", labelme("0.png", make_boxes(0), flags={"blurred": value}))
        assert ("flags of whole images, which are not used" in notes(tmp_path)) == value


@pytest.mark.parametrize("kind", ["csv", "labelme", "anylabeling", "cvat", "voc"])
def test_marks_that_are_not_set(tmp_path, kind):
    put_marked(tmp_path, kind, "difficult", "0" if kind in ("csv", "voc") else "false")
    (part,) = read_data(str(tmp_path)).parts.values()
    assert not any(a["iscrowd"] for a in part.content["annotations"])


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "coco", "labelme"])
@pytest.mark.parametrize(
    "scores", [[0.9, 0.4, 0.7], [0.9, None, None], ["87%", None, 1], [1, 1, 1], [1, 1.0, None]]
)
def test_scores_are_named(tmp_path, kind, scores):
    boxes = make_boxes(0)
    put_image(tmp_path, "0.png")
    if kind == "csv":
        put_csv(tmp_path, "a.csv", [["0.png", *b[1:], b[0], s] for b, s in zip(boxes, scores)])
        path = tmp_path / "a.csv"
        path.write_text(path.read_text().replace(HEADER, f"{HEADER},confidence"))
    else:
        content = coco({"0.png": boxes}) if kind == "coco" else labelme("0.png", boxes)
        for entry, score in zip(content["annotations" if kind == "coco" else "shapes"], scores):
            entry["score"] = score
        put(tmp_path, "0.json", content)
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes}})
    assert (SCORES in notes(tmp_path)) == any(x in scores for x in (0.9, "87%"))


# --- splits ------------------------------------------------------------------------------------


def put_coco(root, splits, name="all.json"):
    """Write a file whose images state their splits; return the truth of each."""
    truth = {f"{i}.png": make_boxes(i) for i in range(len(splits))}
    content = coco(truth)
    for image, split in zip(content["images"], splits):
        put_image(root, image["file_name"])
        image.update({"split": split} if split is not None else {})
    put(root, name, content)
    truths = {}
    for (image, boxes), split in zip(truth.items(), splits):
        truths.setdefault(split, {})[image] = boxes
    return truths


def test_splits_that_images_of_coco_state(tmp_path):
    truths = put_coco(tmp_path, ["train", "test", "train", "val", "val"])
    assert found_in(tmp_path) == ordered(truths)


@pytest.mark.parametrize("read", [int, float, str])
def test_ids_of_images_in_splits(tmp_path, read):
    """As in Python, 1.0 is 1."""
    truths = put_coco(tmp_path, ["train", "val"])
    content = json.loads((tmp_path / "all.json").read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] = read(annotation["image_id"])
    if read is str:
        for image in content["images"]:
            image["id"] = str(image["id"])
    put(tmp_path, "all.json", content)
    assert found_in(tmp_path) == ordered(truths)


def test_an_image_that_is_listed_twice(tmp_path):
    truths = put_coco(tmp_path, ["train", "val"])
    content = json.loads((tmp_path / "all.json").read_text())
    more = [{**content["images"][0], "id": 9, "split": split} for split in ("Train", None)]
    for image in more:
        put(tmp_path, "all.json", {**content, "images": [image, *content["images"]]})
        assert found_in(tmp_path) == ordered(truths)


def test_links_to_an_image_in_two_splits(tmp_path):
    put_coco(tmp_path, ["train", "val"])
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").symlink_to(tmp_path / "0.png")
    assert "into train and into val" in refused(tmp_path)


def test_the_split_of_a_file_and_of_its_images(tmp_path):
    put_coco(tmp_path, ["fold1", None], "train.json")
    assert list(found_in(tmp_path)) == ["train"]
    put_coco(tmp_path, ["val", None], "train.json")
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"val": 1, "train": 1}
    assert "images in a file of another split than they state, which applies" in notes(tmp_path)


def test_difficult_objects_of_a_converted_data_set(tmp_path):
    boxes = put_marked(tmp_path / "csv", "csv", "difficult", "1")
    tood.convert(str(tmp_path / "csv"), output=str(tmp_path / "out"))
    (part,) = read_data(str(tmp_path / "out"), keep_difficult=True).parts.values()
    assert [a["iscrowd"] for a in part.content["annotations"]] == [0] * len(boxes)


def test_an_object_twice_of_which_one_is_difficult(tmp_path):
    box = make_boxes(0)[0]
    put_image(tmp_path, "0.png")
    rows = [["0.png", *box[1:], box[0], mark] for mark in (0, 1)]
    put_csv(tmp_path, "a.csv", rows, header=f"{HEADER},difficult")
    (part,) = read_data(str(tmp_path)).parts.values()
    assert [a["iscrowd"] for a in part.content["annotations"]] == [0]
    assert "1: the same class and box twice" in notes(tmp_path)


def test_two_images_of_one_id_are_not_divided(tmp_path):
    """So that the check refuses them."""
    put_coco(tmp_path, ["train", "val"])
    content = json.loads((tmp_path / "all.json").read_text())
    content["images"][1]["id"] = content["images"][0]["id"]
    put(tmp_path, "all.json", content)
    assert list(read_data(str(tmp_path)).parts) == ["all"]
    assert "id" in app_error("convert", tmp_path, "--output", tmp_path / "out")


def test_an_image_in_two_splits(tmp_path):
    put_coco(tmp_path, ["train", "val"])
    content = json.loads((tmp_path / "all.json").read_text())
    content["images"][1]["file_name"] = f"./{content['images'][0]['file_name']}"
    put(tmp_path, "all.json", content)
    assert "puts 0.png into train and into val" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["coco", "csv"])
def test_stated_splits_against_folders(tmp_path, kind):
    truth = {"train/0.png": make_boxes(0), "val/1.png": make_boxes(1)}
    for image in truth:
        put_image(tmp_path, image)
    splits = dict(zip(truth, ("val", "train")))
    if kind == "csv":
        rows = [[i, *b[1:], b[0], splits[i]] for i, boxes in truth.items() for b in boxes]
        put_csv(tmp_path, "a.csv", rows, header=f"{HEADER},split")
    else:
        content = coco(truth)
        for image in content["images"]:
            image["split"] = splits[image["file_name"]]
        put(tmp_path, "a.json", content)
    found = {splits[image]: {image: boxes} for image, boxes in truth.items()}
    assert found_in(tmp_path) == ordered(found)
    assert "images in a folder of another split than they state, which applies" in notes(tmp_path)


def test_splits_of_images_that_a_file_named_by_itself_states(tmp_path):
    truths = put_coco(tmp_path, ["train", "val"])
    file = tmp_path / "all.json"
    assert found_in(file) == ordered({"all": {k: v for x in truths.values() for k, v in x.items()}})
    assert "splits that images state divide nothing in a file" in notes(file)


def test_other_words_for_the_splits_of_images(tmp_path):
    put_coco(tmp_path, ["a", "b"])
    assert list(found_in(tmp_path)) == ["all"]
    assert "splits other than train, val and test, which divide nothing" in notes(tmp_path)


@pytest.mark.parametrize("other", ["holdout", None])
def test_an_image_of_coco_without_a_known_split(tmp_path, other):
    put_coco(tmp_path, ["train", "val", other])
    assert "2.png has" in refused(tmp_path) and "'val'" in refused(tmp_path)


def test_splits_of_images_against_those_of_files(tmp_path):
    put_coco(tmp_path / "train", ["train", "val"], "a.json")
    put_coco(tmp_path / "val", ["val", "val"], "a.json")
    assert "has 'val' as its split, but its file is that of 'train'" in refused(tmp_path)
    put_coco(tmp_path / "train", ["train", "Training"], "a.json")
    assert list(found_in(tmp_path)) == ["train", "val"]


def test_splits_of_images_beside_the_file_of_another_split(tmp_path):
    truths = put_coco(tmp_path / "a", ["train", "val"], "train.json")
    put_coco(tmp_path / "b", ["test"], "test.json")
    found = found_in(tmp_path)
    assert list(found) == ["train", "val", "test"]
    assert {k: [*v.values()] for k, v in found.items()}["val"] == [sorted(truths["val"]["1.png"])]
    put_coco(tmp_path / "c", ["val", "test"], "val.json")
    assert "has 'val' as its split, but its file is that of 'train'" in refused(tmp_path)


def test_a_split_in_two_files_of_other_splits(tmp_path):
    put_coco(tmp_path / "a", ["train", "test"], "train.json")
    put_coco(tmp_path / "b", ["val", "test"], "val.json")
    assert "has 'test' as its split, but its file is that of 'val'" in refused(tmp_path)


def test_a_part_to_test_on_without_labels(tmp_path):
    for split in ("train", "test"):
        put_image(tmp_path, f"{split}/images/{split}.png")
    put(tmp_path, "train/labels/train.txt", yolo(make_boxes(0)))
    put(tmp_path, "data.yaml", f"train: train\ntest: test\nnames: {json.dumps(NAMES)}\n")
    assert list(found_in(tmp_path)) == ["train"]
    assert "the images of its part 'test' have no labels; name train" in refused(f"{tmp_path}:test")


def test_a_folder_of_a_split_in_another_one_of_it(tmp_path):
    put_image(tmp_path, "training/train/0.png")
    put_image(tmp_path, "validation/val/1.png")
    for image in ("training/train/0.png", "validation/val/1.png"):
        put(tmp_path, image.replace("png", "txt"), yolo(make_boxes(image)))
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    assert "folders of several names" not in notes(tmp_path)


def test_folders_of_two_names_for_one_split(tmp_path):
    for home in ("train", "val", "dev"):
        boxes = make_boxes(home)
        put_image(tmp_path, f"images/{home}/{home}.png")
        put(tmp_path, f"labels/{home}/{home}.txt", yolo(boxes))
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    assert "folders of several names are one split, val: dev, val" in notes(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "coco", "cvat"])
@pytest.mark.parametrize("broken", ["train", "val", "test"])
def test_a_file_of_another_form_beside_that_of_another_split(tmp_path, kind, broken):
    suffix = {"csv": "csv", "coco": "json", "cvat": "xml"}[kind]
    other = "train" if broken != "train" else "val"
    boxes = make_boxes(0)
    put_image(tmp_path, "0.png")
    if kind == "csv":
        put_csv(tmp_path, f"{other}_boxes.csv", [["0.png", *b[1:], b[0]] for b in boxes])
    elif kind == "coco":
        put(tmp_path, f"{other}_boxes.json", coco({"0.png": boxes}))
    else:
        put_marked(tmp_path, "cvat", "a", "b")
        (tmp_path / "annotations.xml").rename(tmp_path / f"{other}_boxes.xml")
    put(tmp_path, f"{broken}_boxes.{suffix}", "<a/>" if kind == "cvat" else '["x", "y"]')
    assert "1: named as a split, but not labels of this format" in notes(tmp_path)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_file_named_by_itself_beside_that_of_another_split(tmp_path, name):
    boxes = {"train": make_boxes(0), "val": make_boxes(1)}
    for split, some in boxes.items():
        put_image(tmp_path, f"{split}.png")
        put_csv(tmp_path, f"{split}.csv", [[f"{split}.png", *b[1:], b[0]] for b in some])
    assert found_in(tmp_path / f"{name}.csv") == ordered({"all": {f"{name}.png": boxes[name]}})
    text = notes(tmp_path / f"{name}.csv")
    assert "1: labelled by another table than the named one" in text
    assert "1: beside the file that is named" in text


# --- classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{} {}", "{}: {}", "{}\t{}"])
def test_numbers_before_the_names_of_classes(tmp_path, form):
    boxes = make_boxes(0)
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.txt", yolo(boxes))
    put(tmp_path, "classes.txt", "\n".join(form.format(*x) for x in enumerate(NAMES)))
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes}})
    assert "numbers before the names of classes, which are not part" in notes(tmp_path)


def test_numbers_in_a_file_of_names_that_a_configuration_names(tmp_path):
    boxes = make_boxes(0)
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.txt", yolo(boxes))
    put(tmp_path, "mine.txt", "\n".join(f"{i} {name}" for i, name in enumerate(NAMES)))
    put(tmp_path, "data.yaml", "train: .\nnames: mine.txt\n")
    assert found_in(tmp_path) == ordered({"train": {"0.png": boxes}})
    assert "numbers before the names of classes, which are not part" in notes(tmp_path)
    assert read_data(str(tmp_path)).ledger.files["mine.txt"][0] == "list of classes"


def test_numbers_in_the_names_of_a_configuration_and_in_a_list(tmp_path):
    """In a data.yaml, they are part of the names."""
    names = [f"{i} {name}" for i, name in enumerate(NAMES)]
    boxes = make_boxes(0, names)
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.txt", yolo(boxes, names))
    put(tmp_path, "classes.txt", "\n".join(names))
    put(tmp_path, "data.yaml", f"train: .\nnames: {json.dumps(names)}\n")
    assert found_in(tmp_path) == ordered({"train": {"0.png": boxes}})


@pytest.mark.parametrize("lines", ["0 _background_\n1 disc\n2 star\n", "0 disc\n1 star\n"])
def test_numbers_before_the_names_of_voc(tmp_path, lines):
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.xml", voc("0.png", [["star", 1, 1, 9, 9]]))
    put(tmp_path, "labels.txt", lines)
    (part,) = read_data(str(tmp_path)).parts.values()
    assert [c["name"] for c in part.content["categories"]] == ["disc", "star"]
    assert "numbers before the names of classes, which are not part" in notes(tmp_path)


def test_a_list_of_one_class_beside_a_longer_one(tmp_path):
    for home, number in (("train", 3), ("val", 1)):
        put_image(tmp_path, f"{home}/{home}.png")
        put(tmp_path, f"{home}/{home}.txt", yolo([["disc", 1, 1, 9, 9]]))
        lines = [f"{i} {name}" for i, name in enumerate(NAMES[:number])]
        put(tmp_path, f"{home}/classes.txt", "\n".join(lines))
    found = found_in(tmp_path)
    assert {x[0] for images in found.values() for boxes in images.values() for x in boxes} == {
        "disc"
    }


@pytest.mark.parametrize("number", [2, 12])
def test_labels_that_have_the_numbers_of_a_list(tmp_path, number):
    names = [f"{i} {chr(122 - i)}" for i in range(number)]
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.xml", voc("0.png", [[name, 1, 1, 9, 9] for name in names]))
    put(tmp_path, "labels.txt", "\n".join(names))
    (part,) = read_data(str(tmp_path)).parts.values()
    assert [c["name"] for c in part.content["categories"]] == names


@pytest.mark.parametrize(
    "names",
    [
        ["1 euro", "2 euro", "3 cents"],
        ["0 fingers", "1 fingers", "2 fingers"],
        ["0.5", "1.2", "2.7"],
        ["0 a", "2 b"],
    ],
)
def test_names_of_classes_that_begin_with_a_number(tmp_path, names):
    boxes = make_boxes(0, names)
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.txt", yolo(boxes, names))
    put(tmp_path, "classes.txt", "\n".join(names))
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes}})


@pytest.mark.parametrize("kind", ["csv", "voc", "labelme", "yolo"])
def test_letters_that_are_written_in_two_ways(tmp_path, kind):
    composed, split = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    truth = {f"{i}.png": make_boxes(i, [composed]) for i in range(2)}
    for i, (image, boxes) in enumerate(truth.items()):
        put_image(tmp_path, image)
        other = [[split, *b[1:]] for b in boxes] if i else boxes
        if kind == "voc":
            put(tmp_path, f"{i}.xml", voc(image, other))
        elif kind == "labelme":
            put(tmp_path, f"{i}.json", labelme(image, other))
        elif kind == "yolo":
            put(tmp_path, f"{i}.txt", yolo(boxes, [composed]))
    if kind == "csv":
        rows = [
            [x, *b[1:], n] for x, n in (("0.png", composed), ("1.png", split)) for b in truth[x]
        ]
        put_csv(tmp_path, "a.csv", rows)
    if kind in ("yolo", "labelme"):
        put(tmp_path, "classes.txt", split)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_a_category_in_another_spelling_in_each_file(tmp_path):
    names = [unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD")]
    for split, name in zip(("train", "val"), names):
        put_image(tmp_path, f"{split}/{split}.png")
        boxes = make_boxes(split, [name])
        put(tmp_path, f"{split}/a.json", coco({f"{split}.png": boxes}, [name]))
    parts = read_data(str(tmp_path)).parts.values()
    assert [[c["name"] for c in p.content["categories"]] for p in parts] == [names[:1]] * 2


def test_a_category_in_two_spellings_of_a_letter(tmp_path):
    names = [unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD")]
    put_image(tmp_path, "0.png")
    put(tmp_path, "a.json", coco({"0.png": make_boxes(0, names)}, names))
    assert "names the category 'Käfer' twice" in refused(tmp_path)
