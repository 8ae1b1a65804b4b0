"""Data sets in the forms that programs export, and folders that are wrong."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import EXTENSIONS, ROOT
from layouts import (
    NAMES,
    SIZE,
    coco,
    labelme,
    list_truth,
    make_boxes,
    ordered,
    put,
    put_csv,
    put_image,
    refused,
    voc,
    yolo,
)
from PIL import Image

from tood.app.convert import door
from tood.app.convert.door import read_data
from tood.app.convert.formats.coco import unused_root
from tood.data.annotations import clean_annotations

TRUTH = {f"{i:05d}.jpg": make_boxes(i) for i in range(8)}


@pytest.fixture
def content():
    return coco(TRUTH)


@pytest.fixture
def new(tmp_path):
    """Makes a folder with the images in a folder of it."""

    def make(images="."):
        for image in TRUTH:
            put_image(tmp_path / "set" / images, image)
        return tmp_path / "set"

    return make


def as_coco(new, content):
    folder = new("photos")
    put(folder, "labels.json", content)
    return folder


def as_roboflow(new, content):
    folder = new("train")
    categories = [{"id": 0, "name": "shapes", "supercategory": "none"}]
    categories += [{"id": i + 1, "name": n, "supercategory": "shapes"} for i, n in enumerate(NAMES)]
    annotations = [{**a, "category_id": a["category_id"] + 1} for a in content["annotations"]]
    changed = {**content, "categories": categories, "annotations": annotations}
    put(folder, "train/_annotations.coco.json", changed)
    return folder


def as_cvat(new, content):
    folder = new("images/default")
    changed = coco({f"task 7/{image}": boxes for image, boxes in TRUTH.items()})
    put(folder, "annotations/instances_default.json", changed)
    return folder


def as_label_studio(new, content):
    folder = new("images")
    names = {f"../../data/upload/1/0a1b2c3d-{image}": boxes for image, boxes in TRUTH.items()}
    put(folder, "result.json", coco(names))
    return folder


def as_yolo(new, content):
    folder = new("train/images")
    for image, boxes in TRUTH.items():
        name, *box = boxes[-1]
        x1, y1, x2, y2 = (value / size for value, size in zip(box, SIZE * 2))
        polygon = f"{NAMES.index(name)} {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}"
        put(folder, f"train/labels/{image[:-4]}.txt", yolo(boxes[:-1]) + polygon)
    data = {"train": "../train/images", "nc": 3, "names": NAMES}  # as Roboflow writes it
    put(folder, "data.yaml", yaml.safe_dump(data))
    return folder


def as_yolo_beside(new, content):
    """Images and labels in one folder, with the names of classes in a file."""
    folder = new()
    put(folder, "classes.txt", "\n".join(NAMES) + "\n")
    for image, boxes in TRUTH.items():
        put(folder, f"{image[:-4]}.txt", yolo(boxes))
    return folder


def as_voc(new, content):
    folder = new("JPEGImages")
    for image, boxes in TRUTH.items():
        put(folder, f"Annotations/{image[:-4]}.xml", voc(image, boxes))
    return folder


def as_labelme(new, content):
    folder = new()
    for image, boxes in TRUTH.items():
        put(folder, f"{image[:-4]}.json", labelme(image, boxes))
    return folder


def as_csv(new, content):
    folder = new("images")
    put_csv(folder, "boxes.csv", [[i, *b, n] for i, boxes in TRUTH.items() for n, *b in boxes])
    return folder


def as_open_images(new, content):
    folder, (w, h) = new("images"), SIZE
    codes = {name: f"/m/0{i}x" for i, name in enumerate(NAMES)}
    rows = [
        [image[:-4], "xclick", codes[n], 1, x1 / w, x2 / w, y1 / h, y2 / h, 0, 0, 0]
        for image, boxes in TRUTH.items()
        for n, x1, y1, x2, y2 in boxes
    ]
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"
    put_csv(folder, "annotations-bbox.csv", rows, f"{header},IsOccluded,IsTruncated,IsGroupOf")
    put_csv(folder, "class-descriptions.csv", [[c, name] for name, c in codes.items()], "")
    return folder


FORMS = {
    "COCO": (as_coco, as_roboflow, as_cvat, as_label_studio),
    "YOLO": (as_yolo, as_yolo_beside),
    "Pascal VOC": (as_voc,),
    "LabelMe": (as_labelme,),
    "CSV": (as_csv, as_open_images),
}
WRITERS = [(name, writer) for name, writers in FORMS.items() for writer in writers]


@pytest.mark.parametrize("name, writer", WRITERS, ids=[writer.__name__ for _, writer in WRITERS])
def test_one_set_in_every_form(name, writer, new, content):
    folder = writer(new, content)
    converted = read_data(str(folder))
    (part,) = converted.parts.values()
    assert converted.format == name and part.image_root == str(folder)
    found = clean_annotations(dict(part.content), part.source, part.image_root)
    assert [c["name"] for c in found["categories"]] == NAMES
    assert labels_in(found) == labels_in(content)
    for image in found["images"]:
        with Image.open(folder / image["file_name"]) as pixels:
            assert pixels.size == (image["width"], image["height"])
    if name != "COCO":  # nothing was to be repaired
        assert found["repairs"] == {}
    ledger = converted.ledger
    assert ledger.objects_in == ledger.objects_out == len(content["annotations"])


def labels_in(content):
    """Return [class, x1, y1, x2, y2] of each image, by its name without folders."""
    (found,) = list_truth(content).values()
    return {image[-9:]: boxes for image, boxes in ordered({"": found})[""].items()}


def load_content(data):
    (part,) = read_data(str(data)).parts.values()
    return part.content


def test_what_was_not_as_usual_is_noted(new, content):
    folder = as_roboflow(new, content)
    notes = read_data(str(folder)).ledger.notes
    assert list(notes) == ["ignored the class 'shapes', which only groups the others"]
    for path in folder.iterdir():
        shutil.rmtree(path)
    notes = read_data(str(as_cvat(new, content))).ledger.notes
    (names,) = notes.values()
    assert list(notes) == ["images found by their names alone"]
    assert len(names) == 8 and names[0] == "task 7/00000.jpg"


def test_a_root_that_has_objects_stays(new, content):
    folder = as_roboflow(new, content)
    path = folder / "train" / "_annotations.coco.json"
    changed = json.loads(path.read_text())
    changed["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(changed))
    assert load_content(folder)["categories"][0]["name"] == "shapes"


@pytest.mark.parametrize("name", [[], {}, None, 3])
def test_a_name_that_is_no_text_is_no_root(name):
    categories = [{"id": 1, "name": "a"}, {"id": 0, "name": name}]
    assert unused_root({"categories": categories, "annotations": []}) is None


def test_names_that_two_images_have_are_not_guessed(new, content):
    folder = as_label_studio(new, content)
    shutil.copytree(folder / "images", folder / "a")
    shutil.copytree(folder / "images", folder / "b")
    shutil.rmtree(folder / "images")
    message = refused(folder)
    assert "00000.jpg' could mean" in message and "a/00000.jpg or" in message


def test_a_coco_file_by_itself(new, content, tmp_path):
    """Its images are at their places below a folder; others are searched there, or kept."""
    folder = as_coco(new, content)
    data = f"{folder}/labels.json:{folder}/photos"
    converted = read_data(data)
    assert converted.parts["all"] == ("all", content, f"{folder}/photos", data)
    assert ("labels", "8 images") in converted.ledger.files.values()
    found = load_content(folder / "labels.json")
    assert {i["file_name"][:7] for i in found["images"]} == {"photos/"}
    missing = load_content(f"{folder}/labels.json:{tmp_path}/nowhere")
    assert missing == content


def test_records_of_one_image_are_joined(new, content):
    folder = as_coco(new, content)
    more = [{**image, "id": image["id"] + 100} for image in content["images"]]
    moved = [{**a, "image_id": a["image_id"] + 100} for a in content["annotations"][::2]]
    annotations = content["annotations"][1::2] + moved
    images = content["images"] + more
    put(folder, "labels.json", {**content, "images": images, "annotations": annotations})
    found = load_content(folder)
    assert len(found["images"]) == 8 and labels_in(found) == labels_in(content)


def test_other_tasks_of_coco_are_not_second_sets(new, content):
    folder = new("val2017")
    for task in ("instances", "person_keypoints", "captions"):
        put(folder, f"annotations/{task}_val2017.json", content)
    put(folder, "annotations/image_info_test2017.json", {**content, "annotations": 0})
    converted = read_data(str(folder))
    assert list(converted.parts) == ["val"]
    reason = ("ignored", "it has no annotations")
    assert converted.ledger.files["annotations/image_info_test2017.json"] == reason


def test_the_tree_of_coco(tmp_path):
    for folder in ("train2014", "train2017", "val2017"):
        truth = {f"{i}.jpg": make_boxes(folder + str(i), NAMES) for i in range(3)}
        for image in truth:
            put_image(tmp_path, f"{folder}/{image}")
        if folder != "train2014":
            put(tmp_path, f"annotations/instances_{folder}.json", coco(truth, NAMES))
    for split, part in read_data(str(tmp_path)).parts.items():
        assert {i["file_name"][:-5] for i in part.content["images"]} == {f"{split}2017/"}


def test_missing_sizes_are_those_of_the_images(new, content):
    folder = as_coco(new, content)
    images = [{"id": i["id"], "file_name": i["file_name"]} for i in content["images"]]
    put(folder, "labels.json", {**content, "images": images})
    assert {(i["width"], i["height"]) for i in load_content(folder)["images"]} == {
        (i["width"], i["height"]) for i in content["images"]
    }


def test_parts_of_a_folder(new, content):
    folder = as_yolo(new, content)
    shutil.copytree(folder / "train", folder / "valid")
    for path in list((folder / "valid").rglob("0000[2-7].*")):
        path.unlink()
    data = {"train": "train/images", "val": "valid/images", "names": dict(enumerate(NAMES))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    assert list(read_data(str(folder)).parts) == ["train", "val"]
    for part, number in (("train", 8), ("val", 2), ("valid", 2)):
        assert len(load_content(f"{folder}:{part}")["images"]) == number
    assert len(load_content(f"{folder}/data.yaml:val")["images"]) == 2
    assert "has no part 'test', but train, val" in refused(f"{folder}:test")


def test_classes_keep_an_order_that_is_stated(new, content):
    folder = as_labelme(new, content)
    names = ["triangle", "unused", *NAMES]
    (folder / "labels.txt").write_text("\n".join(["__ignore__", *names]))
    found = load_content(folder)
    assert [c["name"] for c in found["categories"]] == names
    assert labels_in(found) == labels_in(content)


def test_keypoints_of_yolo_are_ignored(tmp_path):
    put_image(tmp_path, "images/0.jpg")
    put(tmp_path, "labels/0.txt", "0 0.5 0.5 0.2 0.2 " + "0.5 0.5 2 " * 3)
    put(tmp_path, "data.yaml", "train: images\nnames: [disc]\nkpt_shape: [3, 3]")
    (annotation,) = load_content(tmp_path)["annotations"]
    assert annotation["bbox"] == pytest.approx([25.6, 19.2, 12.8, 9.6])


def test_a_new_format_is_a_file_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "FORMATS", [*door.FORMATS])
    for i in range(3):
        put_image(tmp_path, f"images/{i}.png")
        boxes = make_boxes(i)
        put(tmp_path, f"toys/{i}.toy", "".join(f"{' '.join(map(str, b))}\n" for b in boxes))
    text = (EXTENSIONS / "format.py").read_text()
    assert len(text.splitlines()) <= 40 and text in (ROOT / "docs" / "extending.md").read_text()
    exec(text, {})
    converted = read_data(str(tmp_path))
    assert converted.format == "Toy" and len(converted.parts["all"].content["annotations"]) == 9


def test_importing_the_door_needs_no_pytorch():
    code = "import sys, tood.app.convert.door, tood.app.convert.command; "
    code += "sys.exit('torch' in sys.modules or 'detectron2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Folders that are wrong


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty")
    assert "contains no files; looked for were a COCO JSON file, a YOLO data.yaml" in message


def test_sentences_about_the_present_folder(new, content, monkeypatch):
    folder = as_voc(new, content)
    monkeypatch.chdir(folder)
    assert read_data(".:all").parts["all"].image_root == "."
    for path in sorted(folder.rglob("*.jpg"))[:5]:
        path.unlink()
    assert refused(".").startswith("5 of 8 files of labels have no image, for example Annotations")
    shutil.rmtree(folder / "Annotations")
    assert refused(".").startswith(f"{folder} contains 3 files")


def test_images_alone(new):
    assert "contains 8 files (8 of .jpg); looked for" in refused(new())


def test_two_formats(new, content):
    as_yolo(new, content)
    folder = as_csv(new, content)
    assert "in 2 formats, YOLO (data.yaml) and CSV (boxes.csv)" in refused(folder)


def test_two_sets_of_one_part(new, content):
    folder = as_coco(new, content)
    put(folder, "old.json", content)
    assert "two sets without different names, labels.json and old.json" in refused(folder)


@pytest.mark.parametrize("name, writer", [x for x in WRITERS if x[0] in ("YOLO", "Pascal VOC")])
def test_images_without_labels(name, writer, new, content):
    folder = writer(new, content)
    labels = sorted(p for p in folder.rglob("0*") if p.suffix in (".txt", ".xml"))
    labels[0].unlink()
    assert len(load_content(folder)["images"]) == 8  # a negative
    assert "images have no labels (1 of 8)" in read_data(str(folder)).ledger.notes
    for path in labels[1:5]:
        path.unlink()
    message = refused(folder)
    assert "5 of 8 images have no labels" in message and "more than half" in message


@pytest.mark.parametrize("name, writer", [x for x in WRITERS if x[0] != "COCO"])
def test_labels_without_images(name, writer, new, content):
    folder = writer(new, content)
    images = sorted(folder.rglob("*.jpg"))
    images[0].unlink()
    ledger = read_data(str(folder)).ledger
    assert len(load_content(folder)["images"]) == 7
    assert any("(1 of 8)" in text and "00000" in found[0] for text, found in ledger.notes.items())
    if name != "CSV":
        with pytest.raises(door.UserError, match="1 files of labels that belong to no image"):
            ledger.refuse_orphans()
    for path in images[1:5]:
        path.unlink()
    assert "5 of 8" in refused(folder)


def test_a_yolo_class_beyond_the_names(new, content):
    folder = as_yolo(new, content)
    (folder / "train" / "labels" / "00003.txt").write_text("3 0.5 0.5 0.2 0.2")
    message = refused(folder)
    assert "00003.txt has the class 3, but there are 3 classes, counted from 0 (disc" in message


def test_voc_sizes_that_disagree(new, content):
    folder = as_voc(new, content)
    path = folder / "Annotations" / "00002.xml"
    path.write_text(path.read_text().replace("<width>64", "<width>640"))
    assert "00002.jpg, stated (640, 48), is (64, 48)" in refused(folder)


@pytest.mark.parametrize(
    "writer, pattern, text, expected",
    [
        (as_yolo, "*/*/00001.txt", "1 0.5 0.5", "00001.txt, line 1, cannot be read"),
        (as_yolo, "*/*/00001.txt", "a 0.5 0.5 0.1 0.1", "00001.txt, line 1, cannot be read"),
        (as_yolo, "data.yaml", "train: gone\nnames: [a]", "its entry gone is not there"),
        (as_yolo, "data.yaml", "train: train\nnames: {1: a}", "keys of names must be 0 to 0"),
        (
            as_voc,
            "*/00001.xml",
            "<annotation><object>",
            "00001.xml cannot be read: no element",
        ),
        (as_labelme, "00001.json", '{"shapes": 3, "imagePath": ""}', "not a LabelMe file"),
        (as_labelme, "00001.json", '{"shapes": [', "00001.json cannot be read: Expecting value"),
        (as_csv, "boxes.csv", "filename,xmin,ymin,xmax,ymax,label\na,1,2", "line 2 has 3 columns"),
        (
            as_csv,
            "boxes.csv",
            "00001.jpg,1,2,5,9,a\n00001.jpg,1,2,b,9,a",
            "line 2 must have an image, four",
        ),
    ],
)
def test_broken_files(writer, pattern, text, expected, new, content):
    folder = writer(new, content)
    (path,) = folder.glob(pattern)
    path.write_text(text)
    assert expected in refused(folder)


def test_yolo_without_names_of_classes(new, content):
    folder = as_yolo_beside(new, content)
    (folder / "classes.txt").unlink()
    assert "nothing names the classes; add a classes.txt" in refused(folder)
