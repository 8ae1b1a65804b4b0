"""Data sets in the forms that people have: one set in each, and folders that are wrong."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from tood.data.annotations import class_names, read_annotations
from tood.data.check import InputSize
from tood.data.datasets import DataOptions, prepare_datasets
from tood.data.entries import parse_own_data
from tood.utils.errors import UserError

pytest.importorskip("supervision", reason="an extra, from Python 3.10 on")

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
    found_name, parts = find_parts(str(folder))
    assert found_name == name and len(parts) == 1
    own_data = parse_own_data(str(folder))
    found = read_annotations(*own_data, to_train=True)
    assert class_names(found) == NAMES
    assert boxes_of(found) == pytest.approx(boxes_of(content), abs=1e-3)
    assert labels_of(found) == labels_of(content)
    for image in found["images"]:
        with Image.open(folder / image["file_name"]) as pixels:
            assert pixels.size == (image["width"], image["height"])


def sorted_objects(content):
    files = {i["id"]: i["file_name"].rpartition("/")[2] for i in content["images"]}
    names = {c["id"]: c["name"] for c in content["categories"]}
    return sorted(
        (files[a["image_id"]], *map(round, a["bbox"]), names[a["category_id"]], tuple(a["bbox"]))
        for a in content["annotations"]
    )


def boxes_of(content):
    return np.array([x[-1] for x in sorted_objects(content)])


def labels_of(content):
    return [(x[0], x[-2]) for x in sorted_objects(content)]


def test_every_form_is_an_entry_of_a_training(new, content):
    """And all of them are checked, and matched by their names, together."""
    entries = [str(as_voc(new, content))]
    shutil.move(entries[0], f"{entries[0]}_voc")
    entries = [f"{entries[0]}_voc", str(as_roboflow(new, content))]
    size = InputSize(64, 96)
    data = DataOptions(entries, entries[1:], 4, True, size, size, 8)
    reports = prepare_datasets(data, training=True)
    assert [r.num_objects for r in reports] == [len(content["annotations"])] * 2


def test_what_was_not_as_usual_is_told(new, content):
    folder = as_roboflow(new, content)
    _, remarks = read_entry(str(folder))
    assert remarks == ["left out the class 'shapes', which only groups the others"]
    for path in folder.iterdir():
        shutil.rmtree(path)
    _, remarks = read_entry(str(as_cvat(new, content)))
    (remark,) = remarks
    assert "8 images by their names alone, for example task 7/00000.jpg" in remark


def test_a_root_that_has_objects_stays(new, content):
    folder = as_roboflow(new, content)
    path = folder / "train" / "_annotations.coco.json"
    changed = json.loads(path.read_text())
    changed["annotations"][0]["category_id"] = 0
    write_json(path, changed)
    assert class_names(read_annotations(str(folder), str(folder), to_train=True))[0] == "shapes"


def test_names_that_two_images_have_are_not_guessed(new, content):
    folder = as_label_studio(new, content)
    shutil.copytree(folder / "images", folder / "a")
    shutil.copytree(folder / "images", folder / "b")
    shutil.rmtree(folder / "images")
    found, remarks = read_entry(str(folder))
    assert not remarks
    assert all(i["file_name"].startswith("../../data") for i in found["images"])


def test_parts_of_a_folder(new, content):
    folder = as_yolo(new, content)
    shutil.copytree(folder / "train", folder / "valid")
    for path in list((folder / "valid").rglob("0000[2-7].*")):
        path.unlink()
    data = {"train": "train/images", "val": "valid/images", "names": dict(enumerate(NAMES))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    assert list(find_parts(str(folder))[1]) == ["train", "val"]
    with pytest.raises(UserError, match="has the parts train, val; name one of them"):
        read_entry(str(folder))
    for part, number in (("train", 8), ("val", 2), ("valid", 2)):
        assert len(read_entry(f"{folder}:{part}")[0]["images"]) == number
    assert len(read_entry(f"{folder}/data.yaml:val")[0]["images"]) == 2
    with pytest.raises(UserError, match="has no part 'test', but train, val"):
        read_entry(f"{folder}:test")


def test_classes_keep_an_order_that_is_stated(new, content):
    folder = as_labelme(new, content)
    names = ["triangle", "unused", *NAMES[:3]]
    (folder / "labels.txt").write_text("\n".join(["__ignore__", *names]))
    found = read_annotations(str(folder), str(folder), to_train=True)
    assert class_names(found) == names
    assert labels_of(found) == labels_of(content)


# Folders that are wrong


def refused(path):
    with pytest.raises(UserError) as error:
        read_entry(str(path))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty")
    assert "holds no files; looked for were a COCO JSON file, a YOLO data.yaml" in message


def test_images_alone(new):
    assert "holds 8 files (8 of .jpg); looked for" in refused(new())


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
    found, remarks = read_entry(str(folder))  # a negative
    assert len(found["images"]) == 8
    assert any("1 of 8 images have no file of labels, for example" in x for x in remarks)
    for path in labels[1:5]:
        path.unlink()
    message = refused(folder)
    assert "5 of 8 images have no file of labels" in message and "more than half" in message


@pytest.mark.parametrize("name, writer", [x for x in WRITERS if x[0] != "COCO"])
def test_labels_without_images(name, writer, new, content):
    folder = writer(new, content)
    images = sorted(folder.rglob("*.jpg"))
    images[0].unlink()
    found, remarks = read_entry(str(folder))
    assert len(found["images"]) == 7
    assert any("1 of 8" in remark and "00000" in remark for remark in remarks)
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
    message = refused(folder)
    assert "1 of 8 files state another size" in message and "00002.xml says (640, 64)" in message


@pytest.mark.parametrize(
    "writer, pattern, text, expected",
    [
        (as_yolo, "*/*/00001.txt", "1 0.5 0.5", "00001.txt cannot be read"),
        (as_yolo, "*/*/00001.txt", "a 0.5 0.5 0.1 0.1", "00001.txt cannot be read"),
        (as_yolo, "data.yaml", "train: gone\nnames: [a]", "its train, gone, is not there"),
        (as_yolo, "data.yaml", "train: train\nnames: {1: a}", "keys of names must be 0 to 0"),
        (as_voc, "*/00001.xml", "<annotation><object>", "00001.xml is not XML"),
        (as_labelme, "00001.json", '{"shapes": 3, "imagePath": ""}', "not a LabelMe file"),
        (as_labelme, "00001.json", '{"shapes": [', "not a LabelMe file"),
        (as_csv, "boxes.csv", "filename,xmin,ymin,xmax,ymax,label\na,1,2", "line 2 has 3 columns"),
        (as_csv, "boxes.csv", "00001.jpg,1,2,5,9,a\n00001.jpg,1,2,b,9,a", "line 2 must have four"),
    ],
)
def test_broken_files(writer, pattern, text, expected, new, content):
    folder = writer(new, content)
    (path,) = folder.glob(pattern)
    path.write_text(text)
    assert expected in refused(folder)


def test_a_folder_that_is_not_there():
    assert "There is no folder nowhere" in refused("nowhere")
