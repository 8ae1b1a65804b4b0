"""Folders of data sets for the tests, written without the package's help."""

import csv
import json
import random

from PIL import Image

from tood.app.convert.door import read_data
from tood.utils.errors import UserError

NAMES = ["disc", "square", "star"]
SIZE = (64, 48)
# Formats with a file of labels for each image, and how these end.
OF_ONE_IMAGE = {"yolo": "txt", "voc": "xml", "labelme": "json"}


def make_boxes(seed, names=NAMES, number=3):
    """Return [class, x1, y1, x2, y2] of objects, whole pixels."""
    rng, found = random.Random(str(seed)), []
    for i in range(number):
        x, y = 20 * i + rng.randrange(2, 8), rng.randrange(2, 20)
        found.append([rng.choice(names), x, y, x + rng.randrange(5, 12), y + rng.randrange(5, 25)])
    return found


def put_image(root, name, size=SIZE, **save):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    color = tuple(random.Random(name).randrange(256) for _ in range(3))
    Image.new("RGB", size, color).save(path, **save)


def put(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")


def yolo(boxes, names=NAMES, size=SIZE):
    (w, h), lines = size, ""
    for name, x1, y1, x2, y2 in boxes:
        values = [(x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h]
        lines += " ".join(map(str, [names.index(name), *values])) + "\n"
    return lines


def voc(image, boxes, size=SIZE, first=1, more=""):
    """``first``: number of the first pixel; ``more``: elements of each object."""
    text = f"<filename>{image}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
    text += "<depth>3</depth></size>"
    for name, x1, y1, x2, y2 in boxes:
        box = (
            f"<xmin>{x1 + first}</xmin><ymin>{y1 + first}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        )
        text += f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"
    return f"<annotation>{text}</annotation>"


def labelme(image, boxes, size=SIZE, **more):
    shapes = [
        {"label": name, "shape_type": "rectangle", "points": [[x2, y1], [x1, y2]]}
        for name, x1, y1, x2, y2 in boxes
    ]
    content = {"version": "5.0", "imagePath": image, "imageData": "A" * 9000, "shapes": shapes}
    return {**content, "imageWidth": size[0], "imageHeight": size[1], **more}


def coco(truth, names=NAMES, size=SIZE):
    """``truth``: image -> boxes."""
    images, annotations = [], []
    for i, (image, boxes) in enumerate(truth.items(), 1):
        images.append({"id": i, "file_name": image, "width": size[0], "height": size[1]})
        for name, x1, y1, x2, y2 in boxes:
            record = {"id": len(annotations) + 1, "image_id": i, "category_id": names.index(name)}
            annotations.append({**record, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    return {"images": images, "categories": categories, "annotations": annotations}


def put_csv(root, name, rows, header="filename,xmin,ymin,xmax,ymax,label", delimiter=","):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, delimiter=delimiter)
        writer.writerows([header.split(","), *rows] if header else rows)


def put_labels_of_one(root, kind, file, image, boxes):
    """Write the labels of one image: ``file`` without its ending, ``image`` as they state it."""
    text = {"voc": voc, "labelme": labelme}[kind](image, boxes) if kind != "yolo" else yolo(boxes)
    put(root, f"{file}.{OF_ONE_IMAGE[kind]}", text)
    if kind == "yolo":
        put(root, "classes.txt", "\n".join(NAMES))


def put_set(root, kind, file, truth, subset=""):
    """Write a file of the labels of several images: name -> boxes."""
    if kind == "coco":
        put(root, f"{file}.json", coco(truth))
    elif kind == "csv":
        put_csv(root, f"{file}.csv", [[i, *b[1:], b[0]] for i, some in truth.items() for b in some])
    else:
        text = ""
        for image, boxes in truth.items():
            corners = [zip(("xtl", "ytl", "xbr", "ybr"), b[1:]) for b in boxes]
            inner = "".join(
                f'<box label="{b[0]}" {" ".join(f"""{k}="{v}" """ for k, v in some)}/>'
                for b, some in zip(boxes, corners)
            )
            text += f'<image name="{image}" width="64" height="48"{subset}>{inner}</image>'
        put(root, f"{file}.xml", f"<annotations>{text}</annotations>")


def put_stated(root, kind, stated):
    """Write one file whose images state their splits: (name, split, boxes)."""
    if kind == "csv":
        rows = [[name, *b[1:], b[0], split] for name, split, boxes in stated for b in boxes]
        put_csv(root, "a.csv", rows, header="filename,xmin,ymin,xmax,ymax,label,split")
        return
    text = ""
    for name, split, boxes in stated:
        put_set(root, kind, "a", {name: boxes}, subset=f' subset="{split}"')
        text += (root / "a.xml").read_text()
    put(root, "a.xml", text.replace("</annotations><annotations>", ""))


def found_in(data, **options):
    """Return what is read: split -> image -> sorted [class, x1, y1, x2, y2]."""
    return list_truth(read_data(str(data), **options))


def list_truth(converted):
    """``converted``: a data set that was read, or COCO's lists."""
    contents = {"all": converted}
    if not isinstance(converted, dict):
        contents = {name: part.content for name, part in converted.parts.items()}
    found = {}
    for name, content in contents.items():
        classes = {c["id"]: c["name"] for c in content["categories"]}
        files = {i["id"]: i["file_name"] for i in content["images"]}
        found[name] = {file: [] for file in files.values()}
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            box = [round(float(v), 3) for v in (x, y, x + w, y + h)]
            found[name][files[a["image_id"]]].append([classes[a["category_id"]], *box])
    return ordered(found)


def ordered(truth):
    return {s: {i: sorted(boxes) for i, boxes in images.items()} for s, images in truth.items()}


def refused(data):
    """Return the sentence with which data are refused."""
    try:
        read_data(str(data))
    except UserError as error:
        message = str(error)
        assert "\n" not in message and message.endswith(".") and not message.startswith(".:")
        return message
    raise AssertionError("not refused")


def notes(data):
    """Return the account of data as one text."""
    return " | ".join(f"{name}: {text}" for name, text in read_data(str(data)).ledger.rows())


def put_all(root, images):
    """Write images; return their truth."""
    for image in images:
        put_image(root, image)
    return {image: make_boxes(image) for image in images}


def yolo_set(root, images, labels=None, names=NAMES):
    """Write images and labels; return the truth."""
    truth = {}
    for i, image in enumerate(images):
        truth[image] = make_boxes(image, names)
        put_image(root, image)
        label = (
            labels[i] if labels else image.replace("images", "labels").rsplit(".", 1)[0] + ".txt"
        )
        put(root, label, yolo(truth[image], names))
    return truth


def list_rows(data):
    return [f"{name}: {text}" for name, text in read_data(str(data)).ledger.rows()]
