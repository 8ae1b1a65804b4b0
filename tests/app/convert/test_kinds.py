"""Kinds of folders in public bug reports, with the right value of each."""

import os

import pytest
from layouts import (
    NAMES,
    SIZE,
    coco,
    found_in,
    labelme,
    list_rows,
    make_boxes,
    notes,
    ordered,
    put,
    put_csv,
    put_image,
    refused,
    voc,
    yolo,
    yolo_set,
)
from PIL import Image

from tood.app.check import check
from tood.app.convert.door import read_data

CLASSES = "\n".join(NAMES) + "\n"


# --- splits ------------------------------------------------------------------------------------


def test_a_word_in_some_names_is_not_a_split(tmp_path):
    images = [f"images/{word}_{i}.jpg" for word in ("train", "bus") for i in range(4)]
    truth = yolo_set(tmp_path, images)
    put(tmp_path, "classes.txt", CLASSES)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_a_word_in_every_name_is_a_split(tmp_path):
    truth = {s: yolo_set(tmp_path, [f"{s}_{i}.jpg" for i in range(3)]) for s in ("train", "val")}
    put(tmp_path, "classes.txt", CLASSES)
    assert found_in(tmp_path) == ordered(truth)


@pytest.mark.parametrize("folders", [("train2017", "val2017"), ("trainval", "test"), ("a", "b")])
def test_names_of_folders(folders, tmp_path):
    expected = {"train2017": "train", "val2017": "val", "trainval": "train", "test": "test"}
    truth = {}
    for folder in folders:
        for i in range(4):
            image = f"{folder}/{folder}{i}.jpg"
            truth.setdefault(expected.get(folder, "all"), {})[image] = boxes = make_boxes(image)
            put_image(tmp_path, image)
            put(tmp_path, image.replace("jpg", "xml"), voc(os.path.basename(image), boxes))
    assert found_in(tmp_path) == ordered(truth)


def test_a_class_that_is_called_train(tmp_path):
    images = [f"{word}/{word}{i}.jpg" for word in ("bus", "car", "train") for i in range(3)]
    truth = yolo_set(tmp_path, images)
    put(tmp_path, "classes.txt", CLASSES)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_labelled_images_beside_the_splits_are_refused(tmp_path):
    yolo_set(tmp_path, [f"{x}/{x}{i}.jpg" for x in ("train", "val", "more") for i in range(3)])
    put(tmp_path, "classes.txt", CLASSES)
    message = refused(tmp_path)
    assert "more/more0.jpg has labels but is in no split" in message and "train/train0" in message


def test_labels_in_folders_of_splits_divide_images_of_one_folder(tmp_path):
    truth = {"train": {}, "val": {}}
    for i in range(6):
        split, image = ("train", "val")[i % 2], f"JPEGImages/{i}.jpg"
        truth[split][image] = make_boxes(i)
        put_image(tmp_path, image)
        put(tmp_path, f"Annotations/{split}/{i}.xml", voc(f"{i}.jpg", make_boxes(i)))
    assert found_in(tmp_path) == ordered(truth)


# --- lists -------------------------------------------------------------------------------------


def voc_lists(root, number=12):
    for i in range(number):
        put_image(root, f"JPEGImages/IMG {i:03d}.jpg")
        put(root, f"Annotations/IMG {i:03d}.xml", voc(f"IMG {i:03d}.jpg", make_boxes(i)))

    def expected(**splits):
        return ordered(
            {
                s: {f"JPEGImages/IMG {i:03d}.jpg": make_boxes(i) for i in x}
                for s, x in splits.items()
            }
        )

    return expected


def test_names_in_lists(tmp_path):
    """Names with spaces, with endings, twice, flagged, and of missing images."""
    expected = voc_lists(tmp_path)
    lines = ["IMG 000", "IMG 001.jpg", "IMG 002", "IMG 002", "IMG 003  1", "GONE 1"]
    put(tmp_path, "ImageSets/Main/train.txt", "\n".join(lines))
    put(tmp_path, "ImageSets/Main/val.txt", "\n".join(f"IMG {i:03d}" for i in range(4, 8)))
    put(tmp_path, "ImageSets/Main/disc_train.txt", "IMG 000 1")
    assert found_in(tmp_path) == expected(train=range(4), val=range(4, 8))
    rows = list_rows(tmp_path)
    assert any(row.endswith("train.txt names are not there (1 of 5), e.g. GONE") for row in rows)
    assert any(row.startswith("ignored files: 4: in no list of images") for row in rows)


def test_empty_lists_are_not_splits(tmp_path):
    expected = voc_lists(tmp_path)
    put(tmp_path, "ImageSets/Main/train.txt", "")
    assert found_in(tmp_path) == expected(all=range(12))


def test_lists_that_name_few_of_the_images(tmp_path):
    voc_lists(tmp_path)
    put(tmp_path, "ImageSets/Main/train.txt", "IMG 000\nx\ny\nz")
    assert "train.txt names are not there, for example x; more than half" in refused(tmp_path)


@pytest.mark.parametrize("with_train", [True, False])
def test_trainval_is_not_a_second_set(with_train, tmp_path):
    expected = voc_lists(tmp_path)
    lists = {"trainval": range(8), "val": range(4, 8), "test": range(8, 12)}
    lists.update({"train": range(4)} if with_train else {})
    for name, some in lists.items():
        put(tmp_path, f"ImageSets/Main/{name}.txt", "\n".join(f"IMG {i:03d}" for i in some))
    assert found_in(tmp_path) == expected(train=range(4), val=range(4, 8), test=range(8, 12))


def test_two_lists_of_one_split(tmp_path):
    expected = voc_lists(tmp_path)
    lists = {"train": range(4), "ImageSets/Main/train": range(4), "val": range(4, 12)}
    for name, some in lists.items():
        ending = "" if "/" in name else ".jpg"  # one in names, one in files
        put(tmp_path, f"{name}.txt", "\n".join(f"IMG {i:03d}{ending}" for i in some))
    assert found_in(tmp_path) == expected(train=range(4), val=range(4, 12))
    put(tmp_path, "ImageSets/Main/train.txt", "IMG 000\nIMG 001")
    assert "are lists of one split, and name other images; leave one" in refused(tmp_path)


def test_lists_of_yolo(tmp_path):
    truth = yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(6)])
    put(tmp_path, "classes.txt", CLASSES)
    for split, some in (("train", "012"), ("val", "34")):
        put(tmp_path, f"{split}.txt", "".join(f"./images/{i}.jpg\n" for i in some))
    found = found_in(tmp_path)
    assert [sorted(images) for images in found.values()] == [
        [f"images/{i}.jpg" for i in range(3)],
        [f"images/{i}.jpg" for i in (3, 4)],
    ]
    assert found["val"]["images/3.jpg"] == sorted(truth["images/3.jpg"])
    assert "ignored files: 1: in no list of images, e.g. images/5.jpg" in list_rows(tmp_path)


@pytest.mark.parametrize("line", ["{}", "./images/{}.jpg", "images\\{}.jpg annotations/{}.xml"])
@pytest.mark.parametrize("write", ["voc", "labelme"])
def test_lists_beside_the_folders(line, write, tmp_path):
    truth = {"train": {}, "val": {}}
    for i in range(6):
        split, image = "train" if i < 4 else "val", f"images/{i}.jpg"
        truth[split][image] = make_boxes(i)
        put_image(tmp_path, image)
        WRITE[write](tmp_path, f"annotations/{i}", f"{i}.jpg", make_boxes(i))
    for split, some in (("train", range(4)), ("valid", (4, 5))):
        put(tmp_path, f"{split}.txt", "".join(line.format(i, i) + "\r\n" for i in some))
    assert found_in(tmp_path) == ordered(truth)


# --- classes -----------------------------------------------------------------------------------


def test_each_folder_by_its_list_of_classes(tmp_path):
    truth = {}
    for folder, names in (("a", NAMES), ("b", NAMES[::-1])):
        truth.update(
            yolo_set(tmp_path, [f"{folder}/{folder}{i}.jpg" for i in range(4)], None, names)
        )
        put(tmp_path, f"{folder}/classes.txt", "\n".join(names))
    assert found_in(tmp_path) == ordered({"all": truth})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_texts_as_programs_of_windows_write_them(encoding, tmp_path):
    truth = yolo_set(tmp_path, [f"{i}.jpg" for i in range(3)])
    put(tmp_path, "classes.txt", CLASSES)
    for path in tmp_path.glob("*.txt"):
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes((b"\xfe\xff" if encoding == "utf-16-be" else b"") + text.encode(encoding))
    assert found_in(tmp_path) == ordered({"all": truth})
    for path in tmp_path.glob("0.txt"):
        path.write_bytes("1 0.5 0.5 0.1 0.1 é".encode("latin-1"))
    assert "0.txt is not in UTF-8" in refused(tmp_path)


def test_an_empty_line_between_names_of_classes(tmp_path):
    yolo_set(tmp_path, [f"{i}.jpg" for i in range(4)])
    put(tmp_path, "classes.txt", "disc\n\nsquare\nstar\n\n")
    assert "classes.txt has an empty line before a name" in refused(tmp_path)


def test_labels_between_two_lists_of_classes(tmp_path):
    yolo_set(tmp_path, [f"c/{i}.jpg" for i in range(4)])
    put(tmp_path, "a/classes.txt", CLASSES)
    put(tmp_path, "b/classes.txt", "\n".join(NAMES[::-1]))
    message = refused(tmp_path)
    assert "a/classes.txt and" in message and "b/classes.txt number the classes" in message
    assert "neither is above" in message and "c/0.txt" in message


def test_a_list_of_classes_that_contradicts_the_configuration(tmp_path):
    yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(4)])
    put(tmp_path, "labels/classes.txt", "\n".join(NAMES[::-1]))
    put(tmp_path, "data.yaml", f"train: images\nnames: {NAMES}")
    assert "number the classes differently" in refused(tmp_path)


def test_two_lists_of_classes_in_one_folder(tmp_path):
    yolo_set(tmp_path, [f"{i}.jpg" for i in range(4)])
    put(tmp_path, "classes.txt", CLASSES)
    put(tmp_path, "obj.names", "\n".join(NAMES[::-1]))
    message = refused(tmp_path)
    assert "classes.txt and" in message and "obj.names number the classes differently" in message


@pytest.mark.parametrize(
    "text, names",
    [
        ("nc: 3\nnames: [yes, off, 007]", ["yes", "off", "007"]),
        ("names: {0: yes, 1: off, 2: null}", ["yes", "off", "null"]),
        ("nc: 3\nnames: disc, square, star", NAMES),
        ("nc: 3\nnames: disc square star", NAMES),
        ("names: \"['disc', 'square', 'star']\"", NAMES),
        ("nc: 1\nnames: traffic light", ["traffic light"]),
    ],
)
def test_names_of_classes(text, names, tmp_path):
    truth = yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(4)], None, names)
    put(tmp_path, "data.yaml", f"train: images\n{text}\n")
    converted = read_data(str(tmp_path))
    assert [c["name"] for c in converted.parts["train"].content["categories"]] == names
    assert found_in(tmp_path) == ordered({"train": truth})


@pytest.mark.parametrize(
    "text, expected",
    [
        ("nc: 4\nnames: [disc, square, star]", "4 classes (nc), but names 3: disc, square, star"),
        ("names: [disc, square, disc]", "the class 'disc' twice"),
        ("names: {1: disc}", "keys of names must be 0 to 0"),
        ("names: {a: disc}", "keys of names must be 0 to 0"),
        ("nc: 3", "data.yaml does not name its classes; add the key names"),
        ("names: [disc, square", "data.yaml cannot be read: while "),
        ("names:\n\t- disc", "data.yaml cannot be read: while "),
    ],
)
def test_names_that_contradict_themselves(text, expected, tmp_path):
    yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(4)])
    put(tmp_path, "data.yaml", f"train: images\n{text}\n")
    assert expected in refused(tmp_path)


# --- boxes -------------------------------------------------------------------------------------


def voc_set(root, number, change=lambda i, boxes: boxes, first=1, **more):
    truth = {}
    for i in range(number):
        truth[f"{i}.jpg"] = boxes = change(i, make_boxes(i))
        put_image(root, f"{i}.jpg")
        put(root, f"{i}.xml", voc(f"{i}.jpg", boxes, first=first, **more))
    return truth


@pytest.mark.parametrize(
    "change",
    [
        lambda i, boxes: boxes if i else [*boxes, ["disc", 0, 0, *SIZE]],
        lambda i, boxes: boxes if i else [[n, a + 0.25, b, c, d] for n, a, b, c, d in boxes],
    ],
    ids=["a zero", "a fraction"],
)
def test_voc_that_counts_from_0(change, tmp_path):
    truth = voc_set(tmp_path, 4, change, first=0)
    assert found_in(tmp_path) == ordered({"all": truth})
    rows = list_rows(tmp_path)
    assert "note: boxes count pixels from 0, as a 0 or a fraction shows, e.g. 0.xml" in rows


def test_fractions_of_pascals_database_do_not_count_from_0(tmp_path):
    truth = voc_set(tmp_path, 4, lambda i, boxes: [[n, a + 0.5, *b] for n, a, *b in boxes])
    for path in tmp_path.glob("*.xml"):
        source = "<annotation><source><database>The VOC2012 Database</database></source>"
        path.write_text(path.read_text().replace("<annotation>", source))
    assert found_in(tmp_path) == ordered({"all": truth})


def test_difficult_objects(tmp_path):
    truth = voc_set(tmp_path, 4, more="<difficult>1</difficult>")
    note = "note: files with difficult objects, which are marked iscrowd unless kept, e.g. 0.xml"
    assert note in list_rows(tmp_path)
    for keep in (False, True):
        converted = read_data(str(tmp_path), keep_difficult=keep)
        found = converted.parts["all"].content["annotations"]
        assert [a["iscrowd"] for a in found] == [int(not keep)] * sum(map(len, truth.values()))
    assert "marked iscrowd" in check(str(tmp_path)).error
    put(tmp_path, "0.xml", voc("0.jpg", truth["0.jpg"]))
    assert not check(str(tmp_path)).error


def test_corners_in_another_order(tmp_path):
    truth = voc_set(tmp_path / "voc", 3)
    rows = [[i, x2, y2, x1, y1, n] for i, b in truth.items() for n, x1, y1, x2, y2 in b]
    put_csv(tmp_path / "csv", "boxes.csv", rows)
    for image, boxes in truth.items():
        put_image(tmp_path / "csv", image)
        turned = [[n, x2 - 1, y1, x1 + 1, y2] for n, x1, y1, x2, y2 in boxes]
        put(tmp_path / "voc", image.replace("jpg", "xml"), voc(image, turned))
    for kind in ("voc", "csv"):
        assert found_in(tmp_path / kind) == ordered({"all": truth})
        assert any("boxes whose corners were swapped" in row for row in list_rows(tmp_path / kind))


WRITE = {
    "voc": lambda root, stem, image, boxes, *size: put(
        root, f"{stem}.xml", voc(image, boxes, *size)
    ),
    "labelme": lambda root, stem, image, boxes, *size: put(
        root, f"{stem}.json", labelme(image, boxes, *size)
    ),
}


@pytest.mark.parametrize("write, size", [("voc", (128, 96)), ("labelme", (128.0, "96"))])
def test_stated_sizes_that_are_not_the_images(write, size, tmp_path):
    for i in range(4):
        put_image(tmp_path, f"{i}.jpg")
        WRITE[write](tmp_path, str(i), f"{i}.jpg", make_boxes(i), size if i == 2 else SIZE)
    message = refused(tmp_path)
    assert "1 of 4 images have another size" in message
    assert "2.jpg, stated (128, 96), is (64, 48)" in message


def test_sizes_of_a_table_that_are_not_the_images(tmp_path):
    rows = []
    for i in range(4):
        put_image(tmp_path, f"{i}.jpg")
        rows += [[f"{i}.jpg", 128, 96, n, *box] for n, *box in make_boxes(i)]
    put_csv(tmp_path, "labels.csv", rows, "filename,width,height,class,xmin,ymin,xmax,ymax")
    assert "stated (128, 96), is (64, 48)" in refused(tmp_path)


def in_pixels(n, x1, y1, x2, y2):
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def as_corners(n, x1, y1, x2, y2):
    return x1 / 64, y1 / 48, x2 / 64, y2 / 48


@pytest.mark.parametrize(
    "values, kind, number",
    [(in_pixels, "pixels", 8), (in_pixels, "pixels", 1), (as_corners, "corners", 8)],
)
def test_yolo_in_other_units(values, kind, number, tmp_path):
    yolo_set(tmp_path, [f"{i}.jpg" for i in range(8)])
    put(tmp_path, "classes.txt", CLASSES)
    for i in range(number):
        lines = [f"0 {' '.join(map(str, values(*box)))}" for box in make_boxes(i)]
        put(tmp_path, f"{i}.txt", "\n".join(lines))
    message = refused(tmp_path)
    assert f"seems to be in {kind}" in message and "relative to the image's size" in message


@pytest.mark.parametrize("write", ["voc", "csv", "coco"])
def test_most_objects_outside_of_their_images(write, tmp_path):
    truth = {}
    for i in range(4):
        put_image(tmp_path, f"{i}.jpg")
        truth[f"{i}.jpg"] = [[n, a + 90, b, c + 90, d] for n, a, b, c, d in make_boxes(i)]
        if write == "voc":
            put(tmp_path, f"{i}.xml", voc(f"{i}.jpg", truth[f"{i}.jpg"]))
    if write == "csv":
        put_csv(tmp_path, "b.csv", [[i, *b, n] for i, boxes in truth.items() for n, *b in boxes])
    if write == "coco":
        put(tmp_path, "b.json", coco(truth))
    assert "12 of 12 objects lie outside of their images" in refused(tmp_path)


def test_few_objects_outside_of_their_images_are_noted(tmp_path):
    voc_set(tmp_path, 3, lambda i, boxes: [*boxes, ["disc", 70, 5, 80, 9]] if i == 1 else boxes)
    found = ("objects lie outside of their images", 1, "[70.0, 5.0, 80.0, 9.0] in 1.jpg, 64 x 48")
    assert read_data(str(tmp_path)).ledger.noted() == [found]
    assert f"note: {found[0]}, e.g. {found[2]}" in list_rows(tmp_path)


def test_a_tiff_with_an_orientation(tmp_path):
    exif, truth = Image.Exif(), {}
    exif[0x0112] = 6
    for i in range(2):
        put_image(tmp_path, f"{i}.tif", (SIZE[1], SIZE[0]), exif=exif)
        truth[f"{i}.tif"] = make_boxes(i)
        put(tmp_path, f"{i}.txt", yolo(make_boxes(i)))
    put(tmp_path, "classes.txt", CLASSES)
    assert found_in(tmp_path) == ordered({"all": truth})
    content = read_data(str(tmp_path)).parts["all"].content
    assert {(i["width"], i["height"]) for i in content["images"]} == {SIZE}


def test_objects_that_are_written_twice(tmp_path):
    truth = yolo_set(tmp_path / "yolo", [f"{i}.jpg" for i in range(4)])
    put(tmp_path / "yolo", "classes.txt", CLASSES)
    rows = [[i, *b, n] for i, boxes in truth.items() for n, *b in boxes]
    put_csv(tmp_path / "csv", "boxes.csv", [*rows, *rows])
    content = coco(truth)
    more = [{**a, "id": a["id"] + 100} for a in content["annotations"]]
    put(tmp_path / "coco", "b.json", {**content, "annotations": content["annotations"] + more})
    for image, boxes in truth.items():
        put(tmp_path / "yolo", image.replace("jpg", "txt"), yolo(boxes) * 2)
        put(tmp_path / "voc", image.replace("jpg", "xml"), voc(image, boxes * 2))
        for kind in ("csv", "voc", "coco"):
            put_image(tmp_path / kind, image)
    for kind in ("yolo", "csv", "voc", "coco"):
        assert found_in(tmp_path / kind) == ordered({"all": truth})
        ledger = read_data(str(tmp_path / kind)).ledger
        assert ledger.ignored_objects == {"the same class and box twice": 12}
        assert (ledger.objects_in, ledger.objects_out) == (24, 12)


# --- images of labels --------------------------------------------------------------------------


def test_an_equal_name_in_another_folder_is_a_negative(tmp_path):
    truth = yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(4)])
    for i in range(3):
        put_image(tmp_path, f"images/background/{i}.jpg")
        truth[f"images/background/{i}.jpg"] = []
    put(tmp_path, "classes.txt", CLASSES)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_one_folder_of_labels_for_equal_names_is_refused(tmp_path):
    put(tmp_path, "classes.txt", CLASSES)
    for i in range(4):
        put_image(tmp_path, f"images/a/{i}.jpg")
        put_image(tmp_path, f"images/b/{i}.jpg")
        put(tmp_path, f"labels/{i}.txt", yolo(make_boxes(i)))
    message = refused(tmp_path)
    assert all(x in message for x in ("labels/0.txt could", "images/a/0.jpg", "images/b/0.jpg"))


def test_one_folder_of_labels_for_different_names(tmp_path):
    images = [f"images/{folder}/{folder}{i}.jpg" for folder in "ab" for i in range(3)]
    labels = [f"labels/{os.path.basename(x)[:-4]}.txt" for x in images]
    truth = yolo_set(tmp_path, images, labels)
    put(tmp_path, "classes.txt", CLASSES)
    assert found_in(tmp_path) == ordered({"all": truth})


def test_two_files_of_labels_for_an_image(tmp_path):
    yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(4)])
    put(tmp_path, "images/2.txt", yolo(make_boxes("other")))
    put(tmp_path, "classes.txt", CLASSES)
    message = refused(tmp_path)
    assert "images/2.jpg has two files of labels" in message
    assert "images/2.txt and" in message and "labels/2.txt" in message


def test_two_images_for_a_file_of_labels(tmp_path):
    yolo_set(tmp_path, [f"{i}.jpg" for i in range(4)])
    put_image(tmp_path, "1.png")
    put(tmp_path, "classes.txt", CLASSES)
    message = refused(tmp_path)
    assert "1.txt could belong to" in message and "1.jpg or" in message and "1.png" in message


def test_an_ending_that_labels_state_decides(tmp_path):
    truth = voc_set(tmp_path, 4)
    put_image(tmp_path, "1.png")
    assert found_in(tmp_path) == ordered({"all": truth})
    assert "perhaps masks or copies, e.g. 1.png" in notes(tmp_path)


def test_labels_whose_image_may_be_one_without_labels_elsewhere(tmp_path):
    yolo_set(tmp_path, [f"images/{i}.jpg" for i in range(4)])
    put(tmp_path, "labels/7.txt", yolo(make_boxes(7)))
    put_image(tmp_path, "images/background/7.jpg")
    put(tmp_path, "classes.txt", CLASSES)
    message = refused(tmp_path)
    assert "labels/7.txt has no image in its place" in message and "background/7.jpg" in message


@pytest.mark.parametrize("write", ["voc", "labelme"])
def test_a_stated_name_that_contradicts_the_name_of_the_file(write, tmp_path):
    for i in range(4):
        put_image(tmp_path, f"{i}.jpg")
        text = (voc if write == "voc" else labelme)(f"{(i + 1) % 4}.jpg", make_boxes(i))
        put(tmp_path, f"{i}.{'xml' if write == 'voc' else 'json'}", text)
    message = refused(tmp_path)
    assert "could belong to" in message and "0.jpg or" in message and "1.jpg" in message


@pytest.mark.parametrize(
    "image, label",
    [
        ("images/Küche {}.jpg", "labels/K%C3%BCche%20{}.txt"),
        ("images/Küche {}.jpg", "labels/3f9ac07b-K%C3%BCche_{}.txt"),
        ("images/3f9ac07b-photo{}.jpg", "labels/photo{}.txt"),
        ("Images/IMG_{}.JPG", "Labels/img_{}.txt"),
        ("Images/train/{}.jpg", "labels/Train/{}.TXT"),
        ("train_images/{}.jpg", "train_labels/{}.txt"),
        ("pictures/{}.jpg", "boxes/{}.txt"),
    ],
)
def test_names_that_programs_change(image, label, tmp_path):
    images = [image.format(i) for i in range(4)]
    truth = yolo_set(tmp_path, images, [label.format(i) for i in range(4)])
    put(tmp_path, "classes.txt", CLASSES)
    (found,) = found_in(tmp_path).values()
    assert {"all": found} == ordered({"all": truth})


def test_names_of_label_studio_in_coco(tmp_path):
    truth = {f"images/Küche {i}.jpg": make_boxes(i) for i in range(4)}
    for image in truth:
        put_image(tmp_path, image)
    changed = {f"images/1a2b3c4d-K%C3%BCche_{i}.jpg": make_boxes(i) for i in range(4)}
    put(tmp_path, "result.json", coco(changed))
    assert found_in(tmp_path) == ordered({"all": truth})
    assert any("images found by their names alone" in row for row in list_rows(tmp_path))
    by_file = found_in(f"{tmp_path}/result.json:{tmp_path}")
    assert by_file == ordered({"all": truth})


def test_a_path_whose_folder_is_not_there_is_not_an_image_elsewhere(tmp_path):
    rows = []
    for image in ("images/0.jpg", "images/1.jpg", "images/a/2.jpg"):
        put_image(tmp_path, image.replace("a/", ""))
        rows += [[image, *b, n] for n, *b in make_boxes(image)]
    put_csv(tmp_path, "boxes.csv", rows)
    assert found_in(tmp_path)["all"]["images/2.jpg"] == []
    assert any("are not there (1 of 3), e.g. images/a/2.jpg" in row for row in list_rows(tmp_path))


def test_two_names_that_could_mean_one_image(tmp_path):
    put_image(tmp_path, "images/1.jpg")
    put(tmp_path, "a.json", coco({"x/1.jpg": make_boxes(1), "y/1.jpg": make_boxes(2)}))
    assert "'x/1.jpg' or 'y/1.jpg'" in refused(tmp_path)


def test_links(tmp_path):
    """Links to the folder itself, to a folder of images, to an image, and to nothing."""
    truth = yolo_set(tmp_path / "set", [f"images/{i}.jpg" for i in range(4)])
    put(tmp_path / "set", "classes.txt", CLASSES)
    for link, target in (("loop", "."), ("up", ".."), ("a", "images"), ("images/9.jpg", "0.jpg")):
        (tmp_path / "set" / link).symlink_to(target)
    (tmp_path / "set" / "gone.jpg").symlink_to("nothing.jpg")
    assert found_in(tmp_path / "set") == ordered({"all": truth})
    files = read_data(str(tmp_path / "set")).ledger.files
    assert files["images/9.jpg"] == ("ignored", "the same file as images/0.jpg")
    assert files["loop/"] == files["a/"] == ("ignored", "a link to a folder that is read elsewhere")
    assert files["gone.jpg"][0] == "ignored"


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    truth = yolo_set(tmp_path / "far", [f"{i}.jpg" for i in range(4)])
    put(tmp_path / "set", "classes.txt", CLASSES)
    (tmp_path / "set" / "photos").symlink_to(tmp_path / "far")
    assert found_in(tmp_path / "set") == ordered(
        {"all": {f"photos/{i}": b for i, b in truth.items()}}
    )
