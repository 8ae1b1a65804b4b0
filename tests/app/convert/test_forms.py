"""Labels that are broken, lists of classes and configurations, and forms of single programs."""

import json

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
    put_set,
    refused,
    voc,
    yolo,
)

from tood.app.convert.door import read_data

HEADER = "filename,xmin,ymin,xmax,ymax,label"


# --- broken labels -----------------------------------------------------------------------------


BROKEN = ["0 0.5 0.5 0.2\n", "0,0.5,0.5,0.2,0.2\n", "nan 0.5 0.5 0.2 0.2\n", "disc 0.5 0.5 0.2 0.2"]


@pytest.mark.parametrize("line", BROKEN)
@pytest.mark.parametrize("home", ["photos", "images"])
def test_broken_lines_are_not_negatives(tmp_path, line, home):
    for i in range(3):
        put_image(tmp_path, f"{home}/{i}.png")
        put(tmp_path, f"labels/{i}.txt", yolo(make_boxes(i)) if i else line + yolo(make_boxes(0)))
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    assert "labels/0.txt, line 1, cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("kind, broken", [("voc", ""), ("voc", "<other/>"), ("labelme", "")])
@pytest.mark.parametrize("home", ["", "labels/"])
def test_a_broken_file_of_labels_is_not_a_negative(tmp_path, kind, broken, home):
    suffix = "xml" if kind == "voc" else "json"
    for i in range(3):
        put_image(tmp_path, f"photos/{i}.png" if home else f"{i}.png")
        make = voc if kind == "voc" else labelme
        text = make(f"{i}.png", make_boxes(i)) if i else broken
        put(tmp_path, f"{home}{i}.{suffix}", text)
    assert f"0.{suffix} is at the place of the labels of" in refused(tmp_path)
    put(tmp_path, f"{home}0.{suffix}", voc("0.png", []) if kind == "voc" else labelme("0.png", []))
    assert len(found_in(tmp_path)["all"]) == 3


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_files_of_another_program_beside_images(tmp_path, kind):
    suffix = "xml" if kind == "voc" else "json"
    for i in range(3):
        put_image(tmp_path, f"images/{i}.png")
        put(tmp_path, f"images/{i}.{suffix}", "<exif/>" if kind == "voc" else {"iso": 100})
        if i:
            make = voc if kind == "voc" else labelme
            put(tmp_path, f"labels/{i}.{suffix}", make(f"{i}.png", make_boxes(i)))
    assert found_in(tmp_path)["all"]["images/0.png"] == []


@pytest.mark.parametrize("number", ["0.000000000000000000e+00", "0.0", "0e0"])
def test_classes_written_as_fractions(tmp_path, number):
    put_image(tmp_path, "images/0.png")
    put(tmp_path, "labels/0.txt", f"{number} 5.0e-01 5.0e-01 2.5e-01 2.5e-01\n")
    put(tmp_path, "classes.txt", "disc")
    assert found_in(tmp_path) == {"all": {"images/0.png": [["disc", 24, 18, 40, 30]]}}


# --- classes and configurations ----------------------------------------------------------------


HEADINGS = ["id,name\n0,disc\n1,star\n", "names:\n  0: disc\n  1: star\n", "Classes:\ndisc\nstar\n"]


@pytest.mark.parametrize("text", HEADINGS)
@pytest.mark.parametrize("kind", ["yolo", "data.yaml", "voc"])
def test_a_heading_in_a_list_of_classes(tmp_path, text, kind):
    put_image(tmp_path, "0.png")
    if kind == "voc":
        put(tmp_path, "0.xml", voc("0.png", [["disc", 1, 1, 9, 9]]))
    else:
        put(tmp_path, "0.txt", "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path, "names.txt" if kind == "data.yaml" else "classes.txt", text)
    if kind == "data.yaml":
        put(tmp_path, "data.yaml", "train: .\nnames: names.txt\n")
    assert "which would be the name of a class" in refused(tmp_path)


@pytest.mark.parametrize("names", [["90 degrees", "0 degrees"], ["upside down", "0 degrees"]])
def test_names_that_look_like_a_heading(tmp_path, names):
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.txt", yolo(make_boxes(0, names), names))
    put(tmp_path, "classes.txt", "\n".join(names))
    assert found_in(tmp_path) == ordered({"all": {"0.png": make_boxes(0, names)}})


def test_names_in_one_line(tmp_path):
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.txt", "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path, "classes.txt", "disc, star\n")
    assert "a list of classes has one line with commas, which is one class" in notes(tmp_path)


def test_a_class_that_yolo_would_not_read_again(tmp_path):
    put_image(tmp_path / "in", "0.png")
    put(tmp_path, "in/a.json", coco({"0.png": make_boxes(0, ["# a"])}, ["# a"]))
    arguments = ("--to", "yolo", "--output", tmp_path / "out")
    assert "'# a', which yolo cannot keep" in app_error("convert", tmp_path / "in", *arguments)


@pytest.mark.parametrize("others", [None, NAMES, NAMES[::-1]])
def test_a_configuration_that_names_classes_alone(tmp_path, others):
    for split in ("train", "val"):
        put_image(tmp_path, f"{split}/images/{split}.png")
        put(tmp_path, f"{split}/labels/{split}.txt", yolo(make_boxes(split)))
    count = "nc: 3\n" if others is None else ""
    put(tmp_path, "data.yaml", f"{count}names: {json.dumps(NAMES)}\n")
    if others:
        put(tmp_path, "classes.txt", "\n".join(others))
    if others == NAMES[::-1]:
        assert "names other classes than their list, which applies" in notes(tmp_path)
        return
    expected = {s: {f"{s}/images/{s}.png": make_boxes(s)} for s in ("train", "val")}
    assert found_in(tmp_path) == ordered(expected)


def test_a_list_of_names_beside_another_format(tmp_path):
    put_image(tmp_path, "0.png")
    put(tmp_path, "a.json", coco({"0.png": make_boxes(0)}))
    for name in ("model.yaml", "data.yaml", "other/data.yaml"):
        put(tmp_path, name, "nc: 80\nnames: coco.names\n")
    put(tmp_path, "train.labels", "0.png 1\n")
    assert found_in(tmp_path) == ordered({"all": {"0.png": make_boxes(0)}})
    (tmp_path / "a.json").unlink()
    put(tmp_path, "0.txt", yolo(make_boxes(0)))
    assert "coco.names, which is not there" in refused(tmp_path)
    for name in ("data.yaml", "other/data.yaml"):
        put(tmp_path, name, f"names: {json.dumps(NAMES)}\n")
    assert found_in(tmp_path) == ordered({"all": {"0.png": make_boxes(0)}})
    put(tmp_path, "0.xml", voc("0.png", make_boxes(0)))
    assert found_in(tmp_path) == ordered({"all": {"0.png": make_boxes(0)}})
    (tmp_path / "0.xml").unlink()
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    for text in ("names: Alice and Bob\n", "nc: 4\nnames: {1: a, 2: b}\n"):
        put(tmp_path, "data.yaml", text)
        assert found_in(tmp_path) == ordered({"all": {"0.png": make_boxes(0)}})


@pytest.mark.parametrize("keys", [("train", "validation"), ("training", "dev"), ("Train", "VAL")])
def test_other_words_for_splits_in_a_configuration(tmp_path, keys):
    for split in ("train", "val"):
        put_image(tmp_path, f"images/{split}/1.png")
        put(tmp_path, f"labels/{split}/1.txt", yolo(make_boxes(split)))
    text = f"{keys[0]}: images/train\n{keys[1]}: images/val\nnames: {json.dumps(NAMES)}\n"
    put(tmp_path, "data.yaml", text)
    expected = {s: {f"images/{s}/1.png": make_boxes(s)} for s in ("train", "val")}
    assert found_in(tmp_path) == ordered(expected)


@pytest.mark.parametrize("value", ["0.2", "true", "5"])
def test_keys_of_a_configuration_that_are_no_splits(tmp_path, value):
    for split in ("train", "val"):
        put_image(tmp_path, f"images/{split}/1.png")
        put(tmp_path, f"labels/{split}/1.txt", yolo(make_boxes(split)))
    text = f"train: images/train\nval: images/val\nvalidation: {value}\n"
    put(tmp_path, "data.yaml", f"{text}names: {json.dumps(NAMES)}\n")
    assert list(found_in(tmp_path)) == ["train", "val"]


HEADS = [
    "# label : color (RGB) : 'body' parts : actions\n",
    "# label:color_rgb:parts:actions\n",
    "",
]


@pytest.mark.parametrize("head", HEADS)
def test_the_list_of_classes_of_cvat(tmp_path, head):
    put_image(tmp_path, "0.png")
    put(tmp_path, "0.xml", voc("0.png", [["star", 1, 1, 9, 9]]))
    put(tmp_path, "labelmap.txt", f"{head}background:::\nstar:128,0,0::\ndisc:::\n")
    (part,) = read_data(str(tmp_path)).parts.values()
    assert [c["name"] for c in part.content["categories"]] == ["star", "disc"]


def test_a_text_of_other_lines_that_is_called_like_a_list_of_classes(tmp_path):
    put_image(tmp_path, "0.png")
    put_set(tmp_path, "csv", "a", {"0.png": make_boxes(0)})
    put(tmp_path, "labels.txt", "# image x y w h label\n0.png 1 2 3 4 disc\n")
    assert found_in(tmp_path) == ordered({"all": {"0.png": make_boxes(0)}})


def test_names_of_classes_in_each_split(tmp_path):
    """As Roboflow exports darknet's form."""
    for split in ("train", "valid"):
        put_image(tmp_path, f"{split}/{split}.png")
        put(tmp_path, f"{split}/{split}.txt", yolo(make_boxes(split)))
        put(tmp_path, f"{split}/_darknet.labels", "\n".join(NAMES))
    expected = {
        s: {f"{w}/{w}.png": make_boxes(w)} for s, w in (("train", "train"), ("val", "valid"))
    }
    assert found_in(tmp_path) == ordered(expected)


@pytest.mark.parametrize("line", ["{}/{}.xml", "{1}.xml"])
def test_lists_of_files_of_labels(tmp_path, line):
    truth = {"train": make_boxes(0), "val": make_boxes(1)}
    for i, (split, boxes) in enumerate(truth.items()):
        put_image(tmp_path, f"images/{i}.png")
        put(tmp_path, f"annotations/{i}.xml", voc(f"{i}.png", boxes))
        put(tmp_path, f"{split}.txt", line.format("annotations", i) + "\n")
    expected = {s: {f"images/{i}.png": b} for i, (s, b) in enumerate(truth.items())}
    assert found_in(tmp_path) == ordered(expected)


@pytest.mark.parametrize("line", ["{}.xml", "/content/d/train/annotations/{}.xml"])
def test_lists_of_labels_that_could_be_several(tmp_path, line):
    """As before, the folders divide the images."""
    for split in ("train", "val"):
        for i in range(2):
            put_image(tmp_path, f"{split}/images/{i}.png")
            put(
                tmp_path,
                f"{split}/annotations/{i}.xml",
                voc(f"{i}.png", make_boxes(split + str(i))),
            )
        put(tmp_path, f"{split}.txt", "\n".join(map(line.format, range(2))))
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"train": 2, "val": 2}


# --- forms of single programs ------------------------------------------------------------------


def put_numbered(root, numbers, frames, size, start=0, stop=None):
    for number in numbers:
        put_image(root, f"IMG_{number:04d}.png")
    boxes = "".join(
        f'<box frame="{n}" outside="0" xtl="{n}" ytl="2" xbr="30" ybr="30"/>' for n in frames
    )
    stop = start + size - 1 if stop is None else stop
    meta = f"<size>{size}</size><start_frame>{start}</start_frame><stop_frame>{stop}</stop_frame>"
    text = f"<meta><task>{meta}</task></meta><track label='disc'>{boxes}</track>"
    put(root, "annotations.xml", f"<annotations>{text}</annotations>")


@pytest.mark.parametrize(
    "numbers, frames",
    [
        (range(3, 8), [3, 4]),
        ([0, 1, 2, 3, *range(5, 11)], range(5, 10)),
        (range(0, 20, 2), range(10)),
    ],
)
def test_tracks_of_photographs_with_other_numbers(tmp_path, numbers, frames):
    put_numbered(tmp_path, numbers, frames, size=len(numbers))
    assert "annotations.xml" in refused(tmp_path)


@pytest.mark.parametrize("numbers, start", [(range(5), 0), (range(5, 10), 5)])
def test_tracks_of_images_with_the_numbers_of_frames(tmp_path, numbers, start):
    put_numbered(tmp_path, numbers, [start + 1], size=5, start=start)
    found = found_in(tmp_path)["all"]
    assert [name for name, boxes in found.items() if boxes] == [f"IMG_{start + 1:04d}.png"]


def test_first_frames_that_were_removed(tmp_path):
    put_numbered(tmp_path, range(2, 12), range(12), size=12)
    found = found_in(tmp_path)["all"]
    assert found["IMG_0002.png"] == [["disc", 2, 2, 30, 30]] and len(found) == 10


def test_a_stray_image_beside_frames(tmp_path):
    put_numbered(tmp_path, [*range(9), 20], range(9), size=10)
    assert len(found_in(tmp_path)["all"]) == 9


def test_frames_in_another_folder_than_their_file(tmp_path):
    put_numbered(tmp_path / "frames", range(5), range(4), size=5)
    put_image(tmp_path, "export/preview_7.png")
    (tmp_path / "frames" / "annotations.xml").rename(tmp_path / "export" / "annotations.xml")
    assert len(found_in(tmp_path)["all"]) == 5


def test_frames_of_two_videos(tmp_path):
    for split in ("train", "val"):
        put_numbered(tmp_path / split / "images", range(3), range(3), size=3)
        home = tmp_path / split
        (home / "images" / "annotations.xml").rename(home / "annotations.xml")
    assert {k: len(v) for k, v in found_in(tmp_path).items()} == {"train": 3, "val": 3}


@pytest.mark.parametrize("group", ["", -1, None])
def test_shapes_without_a_group(tmp_path, group):
    put_image(tmp_path, "0.png")
    boxes = [["disc", 1, 2, 9, 9], ["disc", 30, 5, 50, 20]]
    content = labelme("0.png", boxes)
    for shape in content["shapes"]:
        shape["group_id"] = group
    put(tmp_path, "0.json", content)
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes}})


def test_turned_boxes_of_anylabeling(tmp_path):
    put_image(tmp_path, "0.png")
    content = labelme("0.png", [["disc", 0, 0, 1, 1]])
    points = [[30, 5], [50, 10], [45, 20], [25, 15]]
    content["shapes"] = [
        {"label": "disc", "shape_type": "rotation", "direction": 0.2, "points": points}
    ]
    put(tmp_path, "0.json", content)
    assert found_in(tmp_path) == {"all": {"0.png": [["disc", 25, 5, 50, 20]]}}


def test_names_of_images_in_their_addresses(tmp_path):
    """As in LVIS's files."""
    put_image(tmp_path, "train2017/1.png")
    content = coco({"1.png": make_boxes(0)})
    (image,) = content["images"]
    del image["file_name"]
    put(tmp_path, "lvis_v1_train.json", content)
    assert "needs a 'file_name'" in app_error("convert", tmp_path, "--output", tmp_path / "out")
    image["coco_url"] = "http://images.example.org/train2017/1.png"
    put(tmp_path, "lvis_v1_train.json", content)
    assert found_in(tmp_path) == ordered({"train": {"train2017/1.png": make_boxes(0)}})


def test_a_table_with_sizes_and_without_a_header(tmp_path):
    put_image(tmp_path, "0.png")
    boxes = make_boxes(0)
    put_csv(tmp_path, "a.csv", [["0.png", *b[1:], b[0], 64, 48] for b in boxes], header="")
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes}})
    put_csv(tmp_path, "a.csv", [["0.png", *b[1:], b[0], 64, 64] for b in boxes], header="")
    assert "another size than stated" in refused(tmp_path)


@pytest.mark.parametrize("name", ["losses.csv", "gps.csv"])
def test_other_numbers_are_not_a_table(tmp_path, name):
    put_image(tmp_path, "a.png")
    put(tmp_path, "a.txt", yolo(make_boxes(0)))
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    put(tmp_path, name, "1,0.5,0.4,0.3,0.2,0.1,3,4\n2,0.5,0.4,0.3,0.2,0.1,3,4\n")
    assert found_in(tmp_path) == ordered({"all": {"a.png": make_boxes(0)}})


def test_rows_without_a_box_and_sizes_of_boxes(tmp_path):
    boxes = make_boxes(0)
    for i in range(2):
        put_image(tmp_path, f"{i}.png")
    rows = [["0.png", *b[1:], b[0], b[3] - b[1], b[4] - b[2]] for b in boxes]
    put_csv(tmp_path, "a.csv", [*rows, ["1.png", *["NaN"] * 7]], header=f"{HEADER},width,height")
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes, "1.png": []}})


@pytest.mark.parametrize("empty", ["nan", "NaN", "null", "<NA>", ""])
@pytest.mark.parametrize("header", ["", HEADER])
def test_rows_without_a_box(tmp_path, empty, header):
    boxes = make_boxes(0)
    for i in range(2):
        put_image(tmp_path, f"{i}.png")
    rows = [["1.png", *[empty] * 5]] + [["0.png", *b[1:], b[0]] for b in boxes]
    put_csv(tmp_path, "a.csv", rows, header=header)
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes, "1.png": []}})


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "sep=;;;;;"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_that_states_its_delimiter(tmp_path, first, end):
    put_image(tmp_path, "0.png")
    rows = [first, HEADER.replace(",", ";"), "0.png;1;2;30;40;disc"]
    (tmp_path / "a.csv").write_bytes(end.join(rows).encode())
    assert found_in(tmp_path) == {"all": {"0.png": [["disc", 1, 2, 30, 40]]}}
    put(tmp_path, "a.csv", "\n".join([*rows, "0.png;1;2;x;40;disc"]))
    assert "line 4" in refused(tmp_path)


@pytest.mark.parametrize("encoding", ["gbk", "GB2312", "big5", "shift_jis", "utf-8"])
def test_encodings_of_xml(tmp_path, encoding):
    put_image(tmp_path, "0.png")
    text = f"<?xml version='1.0' encoding='{encoding}'?>" + voc("0.png", [["中", 1, 1, 9, 9]])
    (tmp_path / "0.xml").write_bytes(text.encode(encoding))
    assert found_in(tmp_path) == {"all": {"0.png": [["中", 1, 1, 9, 9]]}}
