"""Data sets in the forms that programs export, and folders that are wrong."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import EXTENSIONS, ROOT
from layouts import boxes_of, coco, put, put_image, refused
from PIL import Image

from tood.app.convert import door
from tood.app.convert.door import read_data
from tood.data.annotations import clean_annotations

NAMES = ["disc", "square", "star", "triangle"]


@pytest.fixture(scope="module")
def content(shapes):
    """The shapes with their classes in the order of their names, in whole pixels."""
    content = json.loads((shapes / "annotations.json").read_text())
    ids = {c["id"]: NAMES.index(c["name"]) for c in content["categories"]}
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
        x, y, w, h = annotation["bbox"]
        x2, y2 = round(x + w), round(y + h)
        annotation["bbox"] = [round(x), round(y), x2 - round(x), y2 - round(y)]
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    return content


@pytest.fixture
def new(shapes, tmp_path):
    """Makes a folder with the images in a folder of it."""

    def make(images="."):
        folder = tmp_path / "set"
        shutil.copytree(shapes / "images", folder / images, dirs_exist_ok=True)
        return folder

    return make


def objects_of(content, image):
    for annotation in content["annotations"]:
        if annotation["image_id"] == image["id"]:
            x, y, w, h = annotation["bbox"]
            yield NAMES[annotation["category_id"]], (x, y, x + w, y + h)


def stem(image):
    return image["file_name"].removesuffix(".jpg")


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def as_coco(new, content):
    folder = new("photos")
    write_json(folder / "labels.json", content)
    return folder


def as_roboflow(new, content):
    folder = new("train")
    categories = [{"id": 0, "name": "shapes", "supercategory": "none"}]
    categories += [{"id": i + 1, "name": n, "supercategory": "shapes"} for i, n in enumerate(NAMES)]
    annotations = [{**a, "category_id": a["category_id"] + 1} for a in content["annotations"]]
    changed = {**content, "categories": categories, "annotations": annotations}
    write_json(folder / "train" / "_annotations.coco.json", changed)
    return folder


def as_cvat(new, content):
    folder = new("images/default")
    images = [{**i, "file_name": f"task 7/{i['file_name']}"} for i in content["images"]]
    write_json(folder / "annotations" / "instances_default.json", {**content, "images": images})
    return folder


def as_label_studio(new, content):
    folder = new("images")
    images = [
        {**i, "file_name": f"../../data/upload/1/0a1b2c3d-{i['file_name']}"}
        for i in content["images"]
    ]
    write_json(folder / "result.json", {**content, "images": images})
    return folder


def as_yolo(new, content):
    folder = new("train/images")
    (folder / "train" / "labels").mkdir()
    for image in content["images"]:
        lines = []
        for i, (name, (x1, y1, x2, y2)) in enumerate(objects_of(content, image)):
            w, h = image["width"], image["height"]
            values = [(x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h]
            if i % 2:  # as a polygon
                values = [x1 / w, y1 / h, x2 / w, y1 / h, x2 / w, y2 / h, x1 / w, y2 / h]
            lines.append(" ".join(map(str, [NAMES.index(name), *values])))
        (folder / "train" / "labels" / f"{stem(image)}.txt").write_text("\n".join(lines))
    data = {"train": "../train/images", "nc": 4, "names": NAMES}  # as Roboflow writes it
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder


def as_yolo_beside(new, content):
    """Images and labels in one folder, with the names of classes in a file."""
    folder = as_yolo(new, content)
    for path in [*folder.glob("train/*/*.jpg"), *folder.glob("train/*/*.txt")]:
        path.rename(folder / path.name)
    shutil.rmtree(folder / "train")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def as_voc(new, content):
    folder = new("JPEGImages")
    (folder / "Annotations").mkdir()
    for image in content["images"]:
        size = f"<width>{image['width']}</width><height>{image['height']}</height>"
        text = f"<filename>{image['file_name']}</filename><size>{size}<depth>3</depth></size>"
        for name, (x1, y1, x2, y2) in objects_of(content, image):
            # VOC counts pixels from 1, and the last is within.
            box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            text += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        path = folder / "Annotations" / f"{stem(image)}.xml"
        path.write_text(f"<annotation>{text}</annotation>")
    return folder


def as_labelme(new, content):
    folder = new()
    for image in content["images"]:
        shapes = [
            {"label": name, "shape_type": "rectangle", "points": [[x2, y1], [x1, y2]]}
            for name, (x1, y1, x2, y2) in objects_of(content, image)
        ]
        # LabelMe writes the image into the file, before or after the shapes.
        start = {"version": "5.0", "imageData": "A" * 9000, "imagePath": image["file_name"]}
        size = {"imageHeight": image["height"], "imageWidth": image["width"]}
        write_json(folder / f"{stem(image)}.json", {**start, "shapes": shapes, **size})
    return folder


def write_csv(path, header, rows):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([header, *rows] if header else rows)


def as_csv(new, content):
    folder = new("images")
    rows = [
        [image["file_name"], *box, name]
        for image in content["images"]
        for name, box in objects_of(content, image)
    ]
    write_csv(folder / "boxes.csv", ["filename", "xmin", "ymin", "xmax", "ymax", "label"], rows)
    return folder


def as_open_images(new, content):
    folder = new("images")
    codes = {name: f"/m/0{i}x" for i, name in enumerate(NAMES)}
    rows = []
    for image in content["images"]:
        w, h = image["width"], image["height"]
        for name, (x1, y1, x2, y2) in objects_of(content, image):
            box = (x1 / w, x2 / w, y1 / h, y2 / h)
            rows.append([stem(image), "xclick", codes[name], 1, *box, 0, 0, 0])
    header = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"]
    header += ["IsOccluded", "IsTruncated", "IsGroupOf"]
    write_csv(folder / "annotations-bbox.csv", header, rows)
    write_csv(folder / "class-descriptions.csv", None, [[c, name] for name, c in codes.items()])
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
    assert boxes_in(found) == pytest.approx(boxes_in(content), abs=1e-3)
    assert labels_in(found) == labels_in(content)
    for image in found["images"]:
        with Image.open(folder / image["file_name"]) as pixels:
            assert pixels.size == (image["width"], image["height"])
    if name != "COCO":  # nothing was to be repaired
        assert found["repairs"] == {}
    ledger = converted.ledger
    assert ledger.objects_in == ledger.objects_out == len(content["annotations"])


def sorted_objects(content):
    files = {i["id"]: i["file_name"].rpartition("/")[2] for i in content["images"]}
    names = {c["id"]: c["name"] for c in content["categories"]}
    return sorted(
        (files[a["image_id"]], *map(round, a["bbox"]), names[a["category_id"]], tuple(a["bbox"]))
        for a in content["annotations"]
    )


def boxes_in(content):
    return np.array([x[-1] for x in sorted_objects(content)])


def labels_in(content):
    return [(x[0], x[-2]) for x in sorted_objects(content)]


def content_of(data):
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
    write_json(path, changed)
    assert content_of(folder)["categories"][0]["name"] == "shapes"


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
    assert list(converted.ledger.files.values())[-1] == ("labels", "8 images")
    found = content_of(folder / "labels.json")
    assert {i["file_name"][:7] for i in found["images"]} == {"photos/"}
    missing = content_of(f"{folder}/labels.json:{tmp_path}/nowhere")
    assert missing == content


def test_records_of_one_image_are_joined(new, content):
    folder = as_coco(new, content)
    more = [{**image, "id": image["id"] + 100} for image in content["images"]]
    moved = [{**a, "image_id": a["image_id"] + 100} for a in content["annotations"][::2]]
    annotations = content["annotations"][1::2] + moved
    images = content["images"] + more
    write_json(folder / "labels.json", {**content, "images": images, "annotations": annotations})
    found = content_of(folder)
    assert len(found["images"]) == 8 and labels_in(found) == labels_in(content)


def test_other_tasks_of_coco_are_not_second_sets(new, content):
    folder = new("val2017")
    for task in ("instances", "person_keypoints", "captions"):
        write_json(folder / "annotations" / f"{task}_val2017.json", content)
    write_json(folder / "annotations" / "image_info_test2017.json", {**content, "annotations": 0})
    converted = read_data(str(folder))
    assert list(converted.parts) == ["val"]
    reason = ("ignored", "it has no annotations")
    assert converted.ledger.files["annotations/image_info_test2017.json"] == reason


def test_the_tree_of_coco(tmp_path):
    for folder in ("train2014", "train2017", "val2017"):
        truth = {f"{i}.jpg": boxes_of(folder + str(i), NAMES) for i in range(3)}
        for image in truth:
            put_image(tmp_path, f"{folder}/{image}")
        if folder != "train2014":
            put(tmp_path, f"annotations/instances_{folder}.json", coco(truth, NAMES))
    for split, part in read_data(str(tmp_path)).parts.items():
        assert {i["file_name"][:-5] for i in part.content["images"]} == {f"{split}2017/"}


def test_missing_sizes_are_those_of_the_images(new, content):
    folder = as_coco(new, content)
    images = [{"id": i["id"], "file_name": i["file_name"]} for i in content["images"]]
    write_json(folder / "labels.json", {**content, "images": images})
    assert {(i["width"], i["height"]) for i in content_of(folder)["images"]} == {
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
        assert len(content_of(f"{folder}:{part}")["images"]) == number
    assert len(content_of(f"{folder}/data.yaml:val")["images"]) == 2
    assert "has no part 'test', but train, val" in refused(f"{folder}:test")


def test_classes_keep_an_order_that_is_stated(new, content):
    folder = as_labelme(new, content)
    names = ["triangle", "unused", *NAMES[:3]]
    (folder / "labels.txt").write_text("\n".join(["__ignore__", *names]))
    found = content_of(folder)
    assert [c["name"] for c in found["categories"]] == names
    assert labels_in(found) == labels_in(content)


def test_keypoints_of_yolo_are_ignored(tmp_path):
    put_image(tmp_path, "images/0.jpg")
    put(tmp_path, "labels/0.txt", "0 0.5 0.5 0.2 0.2 " + "0.5 0.5 2 " * 3)
    put(tmp_path, "data.yaml", "train: images\nnames: [disc]\nkpt_shape: [3, 3]")
    (annotation,) = content_of(tmp_path)["annotations"]
    assert annotation["bbox"] == pytest.approx([25.6, 19.2, 12.8, 9.6])


def test_a_new_format_is_a_file_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "FORMATS", [*door.FORMATS])
    for i in range(3):
        put_image(tmp_path, f"images/{i}.png")
        boxes = boxes_of(i)
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
    write_json(folder / "old.json", content)
    assert "two sets that nothing tells apart, labels.json and old.json" in refused(folder)


@pytest.mark.parametrize("name, writer", [x for x in WRITERS if x[0] in ("YOLO", "Pascal VOC")])
def test_images_without_labels(name, writer, new, content):
    folder = writer(new, content)
    labels = sorted(p for p in folder.rglob("0*") if p.suffix in (".txt", ".xml"))
    labels[0].unlink()
    assert len(content_of(folder)["images"]) == 8  # a negative
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
    assert len(content_of(folder)["images"]) == 7
    assert any("(1 of 8)" in text and "00000" in found[0] for text, found in ledger.notes.items())
    if name != "CSV":
        with pytest.raises(door.UserError, match="1 files of labels that belong to no image"):
            ledger.refuse_orphans()
    for path in images[1:5]:
        path.unlink()
    assert "5 of 8" in refused(folder)


def test_a_yolo_class_beyond_the_names(new, content):
    folder = as_yolo(new, content)
    (folder / "train" / "labels" / "00003.txt").write_text("4 0.5 0.5 0.2 0.2")
    message = refused(folder)
    assert "00003.txt has the class 4, but there are 4 classes, counted from 0 (disc" in message


def test_voc_sizes_that_disagree(new, content):
    folder = as_voc(new, content)
    path = folder / "Annotations" / "00002.xml"
    path.write_text(path.read_text().replace("<width>64", "<width>640"))
    assert "00002.jpg, stated (640, 64), is (64, 64)" in refused(folder)


@pytest.mark.parametrize(
    "writer, pattern, text, expected",
    [
        (as_yolo, "*/*/00001.txt", "1 0.5 0.5", "00001.txt, line 1, cannot be read"),
        (as_yolo, "*/*/00001.txt", "a 0.5 0.5 0.1 0.1", "00001.txt, line 1, cannot be read"),
        (as_yolo, "data.yaml", "train: gone\nnames: [a]", "its entry gone is not there"),
        (as_yolo, "data.yaml", "train: train\nnames: {1: a}", "keys of names must be 0 to 0"),
        (as_voc, "*/00001.xml", "<annotation><object>", "00001.xml is not XML"),
        (as_labelme, "00001.json", '{"shapes": 3, "imagePath": ""}', "not a LabelMe file"),
        (as_labelme, "00001.json", '{"shapes": [', "00001.json is not JSON"),
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
