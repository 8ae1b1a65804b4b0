"""Folders that were once read wrongly without a word: read rightly now, or refused."""

import json
import os

import pytest
from layouts import (
    NAMES,
    coco,
    found_in,
    make_boxes,
    notes,
    ordered,
    put,
    put_all,
    put_csv,
    put_image,
    refused,
    voc,
    yolo,
)

import tood
from tood.app.convert.door import read_data

CLASSES = "\n".join(NAMES) + "\n"
BOX = 'outside="0" keyframe="1" xtl="5" ytl="5" xbr="25" ybr="30"'


# --- COCO --------------------------------------------------------------------------------------


def test_a_list_that_is_there_twice(tmp_path):
    truth = put_all(tmp_path, ["0.jpg", "1.jpg"])
    first, second = (json.dumps(coco({image: boxes})) for image, boxes in truth.items())
    put(tmp_path, "all.json", f"{first[:-1]}, {second[1:]}")
    assert "the key images twice" in refused(tmp_path)


@pytest.mark.parametrize(
    "homes, chosen",
    [
        (["depth/train", "images/train"], "images/train"),
        (["train/cam0", "train/cam1"], ""),
        (["ir/train", "rgb/train"], ""),
        (["", "images"], "images"),
    ],
)
@pytest.mark.parametrize("form", ["{}.png", "./{}.png", "{}"])
def test_two_folders_with_images_of_equal_names(tmp_path, homes, chosen, form):
    truths = {
        home: put_all(tmp_path, [f"{home}/{i}.png".lstrip("/") for i in range(4)]) for home in homes
    }
    truth = truths[chosen or homes[0]]
    names = {form.format(os.path.basename(i)[:1]): boxes for i, boxes in truth.items()}
    put(tmp_path, "annotations/instances_train.json", json.dumps(coco(names)))
    if chosen:
        assert found_in(tmp_path) == ordered({"train": truth})
    else:
        assert f"{form.format(0)!r} could mean" in refused(tmp_path)


# --- percent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coco", "csv", "voc"])
def test_boxes_in_percent_are_named(tmp_path, kind):
    size = (640, 480)
    truth = {f"{i}.png": make_boxes(i) for i in range(4)}

    def put_truth():
        for image, boxes in truth.items():
            put_image(tmp_path, image, size)
            if kind == "voc":
                put(tmp_path, image.replace("png", "xml"), voc(image, boxes, size))
        if kind == "csv":
            put_csv(tmp_path, "a.csv", [[i, *b[1:], b[0]] for i, x in truth.items() for b in x])
        if kind == "coco":
            put(tmp_path, "a.json", coco(truth, size=size))

    put_truth()
    assert "boxes all end before pixel 100, as if they were percent" in notes(tmp_path)
    truth["3.png"] = [["disc", 200, 100, 300, 200], *truth["3.png"]]
    put_truth()
    assert "percent" not in notes(tmp_path)


# --- CVAT --------------------------------------------------------------------------------------


def put_tracks(root, frames, size=""):
    boxes = "".join(f'<box frame="{n}" {BOX}/>' for n in frames)
    meta = f"<meta><task><size>{size}</size></task></meta>" if size else ""
    text = f'<annotations>{meta}<track id="0" label="disc">{boxes}</track></annotations>'
    put(root, "annotations.xml", text)


@pytest.mark.parametrize("size", [8, ""])
def test_frames_from_0_and_images_from_1(tmp_path, size):
    put_all(tmp_path, [f"frame_{i:06d}.png" for i in range(1, 9)])
    put_tracks(tmp_path, range(3, 7), size)
    assert "counts frames from 0" in refused(tmp_path)


def test_a_first_frame_that_was_removed(tmp_path):
    put_all(tmp_path, [f"frame_{i:06d}.png" for i in range(1, 8)])
    put_tracks(tmp_path, range(3, 7), 8)
    found = found_in(tmp_path)["all"]
    assert [name for name, boxes in found.items() if boxes] == [
        f"frame_{i:06d}.png" for i in range(3, 7)
    ]


def test_frames_between_key_frames(tmp_path):
    """CVAT's own file has a box in each frame of a track; one of key frames alone lacks most."""
    put_all(tmp_path, [f"frame_{i:06d}.png" for i in range(12)])
    put_tracks(tmp_path, [0, 5, 6])
    text = "frames lack a track between two of its boxes; export all frames"
    (found,) = [x for x in read_data(str(tmp_path)).ledger.noted() if x[0] == text]
    assert found[1:] == (4, "frame_000001.png")
    put_tracks(tmp_path, range(7))
    assert text not in notes(tmp_path)
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text().replace('frame="2" outside="0"', 'frame="2" outside="1"'))
    assert text not in notes(tmp_path)
    put_tracks(tmp_path, [0, 10**9])
    assert text in notes(tmp_path)  # in no time


def test_images_do_not_dilute_the_share_of_absent_frames(tmp_path):
    put_all(tmp_path, [f"{i:06d}.png" for i in range(8)])
    put_tracks(tmp_path, [100, 101, 102, 3])
    assert "3 of 4 frames with objects" in refused(tmp_path)


@pytest.mark.parametrize("subset", ["Val_2", "valid"])
def test_subsets_of_cvat(tmp_path, subset):
    subsets = ["Train", "Train", subset]
    for i in range(3):
        put_image(tmp_path, f"{i}.jpg")
    images = "".join(
        f'<image name="{i}.jpg" subset="{x}" width="64" height="48">'
        '<box label="disc" xtl="5" ytl="5" xbr="25" ybr="30"/></image>'
        for i, x in enumerate(subsets)
    )
    put(tmp_path, "annotations.xml", f"<annotations>{images}</annotations>")
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"train": 2, "val": 1}
    put(tmp_path, "annotations.xml", f"<annotations>{images.replace(subset, '')}</annotations>")
    assert "has nothing as its split, and others have 'Train'" in refused(tmp_path)


# --- tables ------------------------------------------------------------------------------------


def put_splits(root, values):
    truth = put_all(root, [f"{i}.jpg" for i in range(len(values))])
    rows = [[x, i, *b[1:], b[0]] for x, (i, boxes) in zip(values, truth.items()) for b in boxes]
    put_csv(root, "labels.csv", rows, header="split,filename,xmin,ymin,xmax,ymax,label")
    return truth


def test_words_of_a_split_column(tmp_path):
    truth = put_splits(tmp_path, ["TRAIN"] * 4 + ["VALIDATE"] * 2)
    train, val = (dict(list(truth.items())[x]) for x in (slice(4), slice(4, 6)))
    assert found_in(tmp_path) == ordered({"train": train, "val": val})


@pytest.mark.parametrize("value, shown", [("UNASSIGNED", "'UNASSIGNED'"), ("", "nothing")])
def test_values_of_a_split_column_that_are_not_known(tmp_path, value, shown):
    put_splits(tmp_path, ["TRAIN"] * 4 + [value] * 2)
    message = refused(tmp_path)
    assert f"labels.csv, line 14, has {shown} as its split" in message and "'TRAIN'" in message


def test_a_column_that_divides_nothing_is_told(tmp_path):
    truth = put_splits(tmp_path, ["a"] * 4 + ["b"] * 2)
    assert found_in(tmp_path) == ordered({"all": truth})
    assert "splits other than train, val and test" in notes(tmp_path)


def test_more_cells_than_the_header(tmp_path):
    truth = put_all(tmp_path, [f"{i}.jpg" for i in range(4)])
    rows = [[i, *b[1:], b[0], ""] for i, boxes in truth.items() for b in boxes]
    put_csv(tmp_path, "labels.csv", rows)  # of empty cells, as spreadsheets write them
    assert found_in(tmp_path) == ordered({"all": truth})
    put_csv(tmp_path, "labels.csv", [*rows[:-1], [*rows[-1][:-1], " small"]])
    assert "line 13 has 7 columns, more than the 6 of its first line" in refused(tmp_path)


def test_rows_in_another_order_without_a_header(tmp_path):
    truth = put_all(tmp_path, [f"{i}.jpg" for i in range(6)])
    boxes = [(i, *b) for i, some in truth.items() for b in some]
    rows = [[i, NAMES.index(name), *box] for i, name, *box in boxes]
    put_csv(tmp_path, "labels.csv", rows, header="")
    assert "add a header" in refused(tmp_path)
    rows = [[i, a, b, c - a, d - b, name] for i, name, a, b, c, d in boxes]
    put_csv(tmp_path, "labels.csv", rows, header="")
    assert "as if they were x, y, width, height" in refused(tmp_path)
    rows = [[i, *box, NAMES.index(name)] for i, name, *box in boxes]
    put_csv(tmp_path, "labels.csv", rows, header="")
    by_number = {i: [[str(NAMES.index(n)), *box] for n, *box in x] for i, x in truth.items()}
    assert found_in(tmp_path) == ordered({"all": by_number})


def test_names_of_classes_beside_their_numbers(tmp_path):
    truth = put_all(tmp_path, [f"{i}.jpg" for i in range(4)])
    rows = [[i, *b[1:], NAMES.index(b[0]), b[0]] for i, x in truth.items() for b in x]
    put_csv(tmp_path, "a.csv", rows, header="filename,xmin,ymin,xmax,ymax,class,name")
    assert found_in(tmp_path) == ordered({"all": truth})


# --- splits ------------------------------------------------------------------------------------


def test_splits_in_a_folder_named_as_one(tmp_path):
    truth = {
        "train": put_all(tmp_path, [f"training/train/{i}.jpg" for i in range(6)]),
        "val": put_all(tmp_path, [f"training/val/{i}.jpg" for i in range(3)]),
        "test": put_all(tmp_path, [f"testing/{i}.jpg" for i in range(3)]),
    }
    for images in truth.values():
        for image, boxes in images.items():
            put(tmp_path, image.replace("jpg", "xml"), voc(image.split("/")[-1], boxes))
    assert found_in(tmp_path) == ordered(truth)


def test_a_class_named_as_a_split_in_folders_of_splits(tmp_path):
    truth = {}
    for split in ("train", "val"):
        images = [f"{split}/{name}/{name}{i}.jpg" for name in ("bus", "train") for i in range(3)]
        truth[split] = put_all(tmp_path, images)
        for image, boxes in truth[split].items():
            put(tmp_path, image.replace("jpg", "xml"), voc(image.split("/")[-1], boxes))
    assert found_in(tmp_path) == ordered(truth)


@pytest.mark.parametrize("first", ["gone.jpg", "gone.png"])
def test_a_list_whose_first_image_is_not_there(tmp_path, first):
    names = [f"images/{i}.jpg" for i in range(10)]
    truth = put_all(tmp_path, names)
    for image, boxes in truth.items():
        put(tmp_path, image.replace("images", "labels").replace("jpg", "txt"), yolo(boxes))
    put(tmp_path, "classes.txt", CLASSES)
    put(tmp_path, "train.txt", "\n".join(names[:7]))
    put(tmp_path, "val.txt", "\n".join([f"images/{first}", *names[7:]]))
    parts = {"train": names[:7], "val": names[7:]}
    assert found_in(tmp_path) == ordered({k: {i: truth[i] for i in v} for k, v in parts.items()})
    assert "images that" in notes(tmp_path) and first in notes(tmp_path)


@pytest.mark.parametrize("more", [" 5,5,20,20,0 9,9,30,30,1", "\tmasks/0.png", " 1 0.5"])
def test_a_list_with_more_than_names(tmp_path, more):
    truth = put_all(tmp_path, [f"my images/{i}.jpg" for i in range(4)])
    for image, boxes in truth.items():
        put(tmp_path, image.replace("jpg", "xml"), voc(image, boxes))
    images = list(truth)
    put(tmp_path, "train.txt", "".join(f"{image}{more}\n" for image in images[:3]))
    put(tmp_path, "val.txt", f"{images[3]}{more}\n")
    parts = {"train": images[:3], "val": images[3:]}
    assert found_in(tmp_path) == ordered({k: {i: truth[i] for i in v} for k, v in parts.items()})


def put_voc_in(root, folders):
    names = [(x, f"{'ab'[n]}{i}") for n, x in enumerate(folders) for i in range(3)]
    truth = put_all(root, [f"{folder}/{name}.jpg" for folder, name in names])
    for image, boxes in truth.items():
        put(root, image.replace("jpg", "xml"), voc(image, boxes))
    return truth


@pytest.mark.parametrize(
    "folders", ["trainset testset", "TrainImages ValImages", "train evaluation"]
)
def test_other_names_of_splits(tmp_path, folders):
    put_voc_in(tmp_path, folders.split())
    assert {split: len(images) for split, images in found_in(tmp_path).items()} in (
        {"train": 3, "test": 3},
        {"train": 3, "val": 3},
    )


@pytest.mark.parametrize("folders", ["cells_train cells_val", "train holdout"])
def test_names_that_speak_of_splits(tmp_path, folders):
    truth = put_voc_in(tmp_path, folders.split())
    assert found_in(tmp_path) == ordered({"all": truth})
    assert "folders that speak of splits, and divide nothing" in notes(tmp_path)


@pytest.mark.parametrize("name", ["train_list", "ImageSets/Main/train_set1"])
def test_lists_that_divide_nothing(tmp_path, name):
    truth = put_voc_in(tmp_path, ["a"])
    put(tmp_path, f"{name}.txt", "a0\na1\n")
    assert found_in(tmp_path) == ordered({"all": truth})
    assert "lists of images that speak of splits, and divide nothing" in notes(tmp_path)


def test_lists_of_folds(tmp_path):
    put_voc_in(tmp_path, ["a"])
    for fold in range(3):
        put(tmp_path, f"fold{fold}/val.txt", f"a/a{fold}.jpg\n")
        put(tmp_path, f"fold{fold}/train.txt", f"a/a{(fold + 1) % 3}.jpg\n")
    assert "both list a/a" in refused(tmp_path)


# --- names -------------------------------------------------------------------------------------


def test_dates_are_no_prefix(tmp_path):
    """The labels of one day are not those of another day's photograph."""
    truth = put_all(tmp_path, [f"images/2023010{i}-cam{i}.jpg" for i in range(9)])
    for image, boxes in list(truth.items())[:8]:
        put(tmp_path, image.replace("images", "labels").replace("jpg", "txt"), yolo(boxes))
    put(tmp_path, "labels/20230208-cam8.txt", yolo(make_boxes(1)))
    put(tmp_path, "classes.txt", CLASSES)
    truth["images/20230108-cam8.jpg"] = []
    assert found_in(tmp_path) == ordered({"all": truth})
    assert "no image" in notes(tmp_path)


@pytest.mark.parametrize("side", ["image", "label"])
def test_a_prefix_on_one_side(tmp_path, side):
    prefix = {"image": "", "label": "", side: "1234abcd-"}
    image = f"images/{prefix['image']}IMG_1.jpg"
    put_image(tmp_path, image)
    put(tmp_path, f"labels/{prefix['label']}IMG_1.txt", yolo(make_boxes(1)))
    put(tmp_path, "classes.txt", CLASSES)
    assert found_in(tmp_path) == ordered({"all": {image: make_boxes(1)}})


def test_paths_of_windows_say_nothing_of_splits(tmp_path):
    truth = put_all(tmp_path, [f"train/{i}.jpg" for i in range(4)])
    content = coco({f"C:\\dev\\photos\\{k.replace('/', chr(92))}": v for k, v in truth.items()})
    put(tmp_path, "labels.json", content)
    assert found_in(tmp_path) == ordered({"all": truth})


# --- COCO --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("id"),
        lambda a: a.update(id=a["id"] + 100, bbox=[float(x) for x in a["bbox"]]),
        lambda a: a.update(id=a["id"] + 100, segmentation=[]),
        lambda a: a.update(id=a["id"] + 100, area=1.5),
    ],
)
def test_an_object_that_is_written_twice(tmp_path, change):
    truth = put_all(tmp_path, [f"{i}.jpg" for i in range(4)])
    content = coco(truth)
    copies = [dict(a) for a in content["annotations"]]
    for copy in copies:
        change(copy)
    content["annotations"] += copies
    put(tmp_path, "labels.json", content)
    assert found_in(tmp_path) == ordered({"all": truth})
    assert f"{len(copies)}: the same class and box twice" in notes(tmp_path)


def test_a_root_named_as_the_only_class(tmp_path):
    truth = put_all(tmp_path, ["0.jpg"])
    content = coco(truth)
    content["categories"] = [
        {"id": 0, "name": "disc", "supercategory": "none"},
        {"id": 1, "name": "disc", "supercategory": "disc"},
    ]
    for a in content["annotations"]:
        a["category_id"] = 1
    put(tmp_path, "labels.json", content)
    expected = [["disc", *box[1:]] for box in truth["0.jpg"]]
    assert found_in(tmp_path) == ordered({"all": {"0.jpg": expected}})


# --- files of other programs -------------------------------------------------------------------


def test_files_of_other_programs_do_not_stop_a_folder(tmp_path):
    truth = put_all(tmp_path, [f"images/{i}.jpg" for i in range(4)])
    for image, boxes in truth.items():
        put(tmp_path, image.replace("images", "labels").replace("jpg", "txt"), yolo(boxes))
    put(tmp_path, "classes.txt", CLASSES)
    put(tmp_path, "labels/README.txt", "Labels of our photographs, 2023.\n")
    put(tmp_path, "model.json", {"shapes": {"input": [1, 3]}})
    (tmp_path / "cache.data").write_bytes(bytes(range(256)))
    (tmp_path / "settings.json").write_bytes('{"theme": "dark"}'.encode("utf-16"))
    assert found_in(tmp_path) == ordered({"all": truth})


# --- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["yolo", "voc", "labelme"])
def test_boxes_without_an_area_are_not_written_as_objects(tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    truth = put_all(tmp_path / "data", ["0.jpg"])
    content = coco(truth)
    first = content["annotations"][0]
    for i, box in enumerate([[10, 10, 0, 5], [45, 33, -20, -19], [60, 10, 10, 5]]):
        content["annotations"].append({**first, "id": 10 + i, "bbox": box})
    put(tmp_path, "data/labels.json", content)
    conversion = tood.convert("data", output="out", to=to)
    assert conversion.omitted == {"objects without width or height": 2}
    cut = {} if to == "labelme" else {"boxes, cut at the edges of their image": 1}
    assert conversion.changed == cut and all(x in str(conversion) for x in cut)
    assert len(found_in("out")["all"].popitem()[1]) == len(truth["0.jpg"]) + 1


@pytest.mark.parametrize("to", ["yolo", "voc", "labelme"])
def test_classes_that_a_format_cannot_tell_apart(tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    content = coco(put_all(tmp_path / "data", ["0.jpg"]), names=["disc", "square", "star"])
    content["categories"].append({"id": 9, "name": "disc "})
    put(tmp_path, "data/labels.json", content)
    with pytest.raises(tood.utils.errors.UserError, match="called 'disc' but for spaces"):
        tood.convert("data", output="out", to=to)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# --- tables, and conversions -------------------------------------------------------------------


def test_four_corners_in_a_table(tmp_path):
    put_image(tmp_path, "0.jpg")
    header = "filename,x1,y1,x2,y2,x3,y3,x4,y4,label"
    put_csv(tmp_path, "a.csv", [["0.jpg", 5, 9, 9, 5, 13, 9, 9, 13, "disc"]], header)
    assert "columns of four corners" in refused(tmp_path)


@pytest.mark.parametrize("extra", ["name", "image_id"])
def test_columns_of_the_same_meaning(tmp_path, extra):
    truth = put_all(tmp_path, [f"{i}.jpg" for i in range(3)])
    number = {name: str(i) for i, name in enumerate(NAMES)}
    rows = []
    for image, boxes in truth.items():
        for n, (name, *box) in enumerate(boxes):
            # The numbers of rows are names of other images; a person has labelled many classes.
            label = number[name] if extra == "name" else name
            rows.append(["bob" if extra == "name" else (n + 1) % 3, image, *box, label])
    put_csv(tmp_path, "a.csv", rows, f"{extra},path,xmin,ymin,xmax,ymax,class")
    found = found_in(tmp_path)["all"]
    if extra == "name":
        found = {
            i: [[NAMES[int(label)], *box] for label, *box in boxes] for i, boxes in found.items()
        }
    assert {"all": found} == ordered({"all": truth})


def test_conversions_into_the_data(tmp_path):
    truth = put_all(tmp_path, ["0.jpg"])
    put(tmp_path, "0.xml", voc("0.jpg", truth["0.jpg"]))
    with pytest.raises(tood.UserError, match="would be read as one"):
        tood.convert(tmp_path, output=tmp_path / "out", to="voc")
    tood.convert(tmp_path, output=tmp_path / "out", to="coco")


@pytest.mark.parametrize("to", ["yolo", "voc", "labelme"])
@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", " ", "_background_"])
def test_names_of_classes_that_are_not_read_again(tmp_path, name, to):
    put_image(tmp_path, "0.jpg")
    put(tmp_path, "a.json", json.dumps(coco({"0.jpg": [(name, 5, 5, 20, 20)]}, [name, "disc"])))
    if name == "_background_" and to != "labelme":
        assert tood.convert(tmp_path, output=tmp_path / "out", to=to)
    else:
        with pytest.raises(tood.UserError):
            tood.convert(tmp_path, output=tmp_path / "out", to=to)


@pytest.mark.parametrize("name", [".a.png", "a\nb.png", "a"])
def test_names_of_images_that_are_not_read_again(tmp_path, name):
    put_image(tmp_path, "0.png")
    os.rename(tmp_path / "0.png", tmp_path / name)
    put(tmp_path, "a.json", json.dumps(coco({name: [("disc", 5, 5, 20, 20)]})))
    with pytest.raises(tood.UserError):
        tood.convert(f"{tmp_path}/a.json:{tmp_path}", output=tmp_path / "out", to="yolo")


def test_images_of_odd_names(tmp_path):
    names = ["ledger.png", "__MACOSXa.png", "a\\b.png", "b.png"]
    truth = put_all(tmp_path, names)
    put(tmp_path, "a.json", json.dumps(coco(truth)))
    assert found_in(tmp_path) == ordered({"all": truth})
    tood.convert(tmp_path, output=tmp_path / "out", to="labelme")
    boxes = sorted(map(repr, found_in(tmp_path / "out")["all"].values()))
    assert boxes == sorted(map(repr, found_in(tmp_path / "a.json")["all"].values()))


@pytest.mark.parametrize(
    "header, cells, says",
    [
        ("label,class_name", ["verified", "disc"], "has the columns label and class_name, which"),
        ("class,category", ["toy", "disc"], "has the columns class and category"),
        ("class,name", ["1", "disc"], ""),
        ("class,name", ["disc", "bob"], ""),
    ],
)
def test_two_columns_of_classes(tmp_path, header, cells, says):
    put_all(tmp_path, ["0.jpg"])
    first = ["0.jpg", 5, 5, 20, 20, *cells]
    other = [{"disc": "ring", "1": "2"}.get(x, x) for x in cells]
    rows = [first, ["0.jpg", 8, 8, 20, 20, *other]]
    put_csv(tmp_path, "a.csv", rows, f"filename,xmin,ymin,xmax,ymax,{header}")
    if says:
        assert says in refused(tmp_path)
    else:
        found = {name for name, *_ in found_in(tmp_path)["all"]["0.jpg"]}
        assert found == {"disc", "ring"}


def test_columns_that_are_no_other_class(tmp_path):
    truth = put_all(tmp_path, ["0.jpg", "1.jpg"])
    rows = [
        [image[:-4], image, *box, name] for image, boxes in truth.items() for name, *box in boxes
    ]
    put_csv(tmp_path, "a.csv", rows, "name,image_path,xmin,ymin,xmax,ymax,label")
    assert found_in(tmp_path) == ordered({"all": truth})
    number = {name: str(i) for i, name in enumerate(NAMES)}
    rows = [[*row[1:], number[row[-1]]] for row in rows] + [["1.jpg", *[""] * 5, "0"]]
    put_csv(tmp_path, "a.csv", rows, "filename,xmin,ymin,xmax,ymax,label,class")
    assert found_in(tmp_path) == ordered({"all": truth})


def test_spaces_before_quotes_of_a_table(tmp_path):
    put_image(tmp_path, "0.jpg")
    put(tmp_path, "a.csv", 'filename, xmin, ymin, xmax, ymax, label\n"0.jpg", 5, 5, 9, 9, "disc"\n')
    assert found_in(tmp_path) == {"all": {"0.jpg": [["disc", 5, 5, 9, 9]]}}


def test_names_without_endings_that_contain_dots(tmp_path):
    truth = put_all(tmp_path, ["shot.jpg", "shot.1.jpg"])
    put(tmp_path, "ann_0.xml", voc("shot.1", truth["shot.1.jpg"]))
    assert found_in(tmp_path) == ordered({"all": {**truth, "shot.jpg": []}})
    (tmp_path / "shot.jpg").unlink()
    assert found_in(tmp_path) == ordered({"all": {"shot.1.jpg": truth["shot.1.jpg"]}})


@pytest.mark.parametrize("follows", [" 1 1 2", " 7", " -1", ""])
@pytest.mark.parametrize("stem", ["cat_{}", "my cat {}"])
def test_numbers_behind_the_names_of_a_list(tmp_path, stem, follows):
    """As the lists of Oxford-IIIT Pet have; names may end in a number as well."""
    names = [stem.format(i) for i in range(6)]
    truth = put_all(tmp_path, [f"images/{name}.jpg" for name in names])
    for image, boxes in truth.items():
        put(tmp_path, f"xmls/{image[7:-4]}.xml", voc(image[7:], boxes))
    for split, part in (("trainval", names[:4]), ("test", names[4:])):
        put(tmp_path, f"{split}.txt", "".join(f"{name}{follows}\n" for name in part))
    found = found_in(tmp_path)
    assert {k: len(v) for k, v in found.items()} == {"train": 4, "test": 2}


def test_names_of_a_list_that_are_not_there(tmp_path):
    """They are not another image's name and a number, and a log is not a list."""
    truth = put_all(tmp_path, ["photo.jpg", "photo 2.jpg", "photo 3.jpg", "1.jpg"])
    for image, boxes in truth.items():
        put(tmp_path, f"{image[:-4]}.xml", voc(image, boxes))
    put(tmp_path, "train.txt", "photo 2\nphoto 4\n1\n")
    put(tmp_path, "val.txt", "photo\nphoto 3\n")
    found = found_in(tmp_path)
    assert {k: sorted(v) for k, v in found.items()} == {
        "train": ["1.jpg", "photo 2.jpg"],
        "val": ["photo 3.jpg", "photo.jpg"],
    }
    put(tmp_path, "train.txt", "step loss of the run\n1 200\n2 150\n")
    (tmp_path / "val.txt").unlink()
    assert len(found_in(tmp_path)["all"]) == 4


def test_a_list_that_begins_with_absent_images(tmp_path):
    truth = put_all(tmp_path, [f"{i}.jpg" for i in range(3)])
    for image, boxes in truth.items():
        put(tmp_path, f"{image[:-4]}.txt", yolo(boxes))
    put(tmp_path, "classes.txt", CLASSES)
    gone = "".join(f"images/of/another/place/{i:05}.jpg\n" for i in range(10, 200))
    put(tmp_path, "train.txt", f"{gone}0.jpg\n1.jpg\n")
    put(tmp_path, "val.txt", "2.jpg\n")
    assert "train.txt names are not there" in refused(tmp_path)


def test_a_folder_with_the_ending_of_a_file(tmp_path):
    root = tmp_path / "cars.data"
    truth = put_all(root, ["0.jpg"])
    put(root, "0.xml", voc("0.jpg", truth["0.jpg"]))
    assert found_in(root) == ordered({"all": truth})


def test_conversions_of_boxes_in_other_units(tmp_path):
    put_image(tmp_path / "a", "0.jpg")
    content = coco({"0.jpg": [["disc", 0.1, 0.2, 0.5, 0.6]]})
    put(tmp_path, "a/all.json", content)
    with pytest.raises(tood.UserError, match="boxes, all of which are relative"):
        tood.convert(tmp_path / "a", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    ["0 0,5 0,5 0,2 0,2", "0,0.5,0.5,0.2,0.2", "disc 0.5 0.5 0.2 0.2", "Car 0.00 0 -1.58 5 5"],
)
def test_labels_of_yolo_in_other_lines(tmp_path, line):
    for i in range(3):
        put_image(tmp_path, f"images/{i}.jpg")
        put(tmp_path, f"labels/{i}.txt", f"\n{line}\n")
    put(tmp_path, "data.yaml", f"train: images\nnames: {NAMES}\n")
    assert f"labels/0.txt begins with '{line}', but YOLO's lines are" in refused(tmp_path)


def test_photographs_in_heic(tmp_path, monkeypatch):
    monkeypatch.setattr("tood.app.convert.build.IMAGE_SUFFIXES", {".jpg"})
    truth = put_all(tmp_path, ["0.jpg"])
    put(tmp_path, "0.txt", yolo(truth["0.jpg"]))
    put(tmp_path, "IMG_1.txt", yolo(truth["0.jpg"]))
    put(tmp_path, "IMG_1.HEIC", "")
    put(tmp_path, "classes.txt", CLASSES)
    assert "IMG_1.HEIC is in HEIC, which needs another package: pip install" in refused(tmp_path)


def test_images_to_test_on_without_labels(tmp_path):
    for split in ("train", "val", "test"):
        truth = put_all(tmp_path, [f"images/{split}/{split}{i}.jpg" for i in range(3)])
        for image, boxes in truth.items() if split != "test" else ():
            put(tmp_path, image.replace("images", "labels").replace(".jpg", ".txt"), yolo(boxes))
    keys = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test"))
    put(tmp_path, "data.yaml", f"{keys}names: {NAMES}\n")
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"train": 3, "val": 3}
    assert "3: images to test on without labels, e.g. images/test/test0.jpg" in notes(tmp_path)
    put(tmp_path, "labels/test/test0.txt", "")  # one without objects
    assert "images have no labels (2 of 3" in refused(tmp_path) or "2 of 3 images" in refused(
        tmp_path
    )


@pytest.mark.parametrize("more", [0, 1])
def test_sizes_of_boxes_in_a_table(tmp_path, more):
    truth = put_all(tmp_path, ["0.jpg", "1.jpg"])
    rows = [
        [image, x1, y1, x2, y2, x2 - x1 + more, y2 - y1 + more, name]
        for image, boxes in truth.items()
        for name, x1, y1, x2, y2 in boxes
    ]
    put_csv(tmp_path, "a.csv", rows, "image,x1,y1,x2,y2,width,height,label")
    assert found_in(tmp_path) == ordered({"all": truth})
