"""Folders that must not be read as they are: output of the program, images that are listed twice,
pipes, devices, links without end, and files that change.
"""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import complaint
from layouts import (
    NAMES,
    coco,
    found_in,
    labelme,
    make_boxes,
    ordered,
    put,
    put_csv,
    put_image,
    refused,
    voc,
    yolo,
)

import tood
from tood.app.check import check
from tood.app.convert.door import read_data
from tood.app.predict import find_inputs
from tood.data.annotations import read_annotations
from tood.data.images import images_in
from tood.utils.errors import UserError
from tood.utils.files import check_folder, write_image, write_json
from tood.utils.folders import MARK, is_drawing, is_output, walk_folders

A, B = make_boxes(1), make_boxes(2)


def list_rows(data):
    return [f"{name}: {text}" for name, text in read_data(str(data)).ledger.rows()]


def voc_set(root, number=3):
    for i in range(number):
        put_image(root, f"{i}.jpg")
        put(root, f"{i}.xml", voc(f"{i}.jpg", make_boxes(i)))
    return ordered({"all": {f"{i}.jpg": make_boxes(i) for i in range(number)}})


# --- own output --------------------------------------------------------------------------------


def test_only_new_folders_are_marked(tmp_path):
    check_folder(str(tmp_path), "--output")
    assert not is_output(str(tmp_path))
    check_folder(str(tmp_path / "data"), "--output", is_data=True)
    assert os.listdir(tmp_path / "data") == []
    check_folder(str(tmp_path / "a" / "b"), "--output")
    assert os.listdir(tmp_path / "a") == ["b"] and os.listdir(tmp_path / "a" / "b") == [MARK]


def test_drawings_and_runs_below_photographs_are_not_data(tmp_path):
    """Drawings have the names of the photographs, beside labels for them; runs have JSON files."""
    truth = voc_set(tmp_path)
    for folder in ("found", "output/run/data"):
        check_folder(str(tmp_path / folder), "--output")
    shutil.copy(tmp_path / "0.jpg", tmp_path / "found" / "0.png")
    put(tmp_path, "output/run/data/train.json", coco({"../../../0.jpg": A}))
    write_image(np.zeros((9, 9, 3), np.uint8), str(tmp_path / "0.png"))
    write_image(np.zeros((9, 9, 3), np.uint8), str(tmp_path / "why.jpg"))
    assert found_in(tmp_path) == truth
    rows = list_rows(tmp_path)
    assert "ignored files: 2: an output folder of tood, not data, e.g. found/" in rows
    assert "ignored files: 2: a drawing by tood, not data, e.g. 0.png" in rows
    assert "ignored files: an output folder of tood, not data" in str(check(str(tmp_path)))
    # By its name, it is what the user wants.
    named = f"{tmp_path}/output/run/data/train.json:{tmp_path}/output/run/data"
    (image,) = read_data(named).parts["all"].content["images"]
    assert image["width"] == 64
    assert "found is an output folder of tood" in refused(tmp_path / "found")


def test_a_link_to_output_is_not_data(tmp_path):
    truth = voc_set(tmp_path / "photos")
    check_folder(str(tmp_path / "found"), "--output")
    put_image(tmp_path, "found/0.png")
    os.symlink(tmp_path / "found", tmp_path / "photos" / "link")
    assert found_in(tmp_path / "photos") == truth


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".PNG", ".jpeg"])
def test_drawings_are_marked(suffix, tmp_path):
    path = str(tmp_path / f"a{suffix}")
    write_image(np.zeros((9, 9, 3), np.uint8), path)
    put_image(tmp_path, f"b{suffix}")
    assert is_drawing(path) and not is_drawing(str(tmp_path / f"b{suffix}"))
    assert images_in(str(tmp_path)) == [str(tmp_path / f"b{suffix}")]
    assert find_inputs([str(tmp_path), path], None)[0] == [str(tmp_path / f"b{suffix}"), path]


def test_detections_beside_photographs_are_not_data(trained, tmp_path):
    truth = voc_set(tmp_path)
    found = tmp_path / "found.json"
    tood.predict(trained, tmp_path, output=str(tmp_path / "found"), json=str(found))
    assert found_in(tmp_path) == truth
    rows = list_rows(tmp_path)
    assert "ignored files: 1: detections by tood predict, not data, e.g. found.json" in rows
    assert len(read_data(f"{found}:/").parts["all"].content["images"]) == 3
    # Again, and for all below the folder: the same photographs.
    inputs, note = find_inputs(str(tmp_path / "**"), None)
    assert [os.path.basename(x) for x in inputs] == ["0.jpg", "1.jpg", "2.jpg"]
    assert f"1 drawings and output folders of tood are not among them, as {tmp_path}/found" in note
    # Labels to correct are data.
    for to in ("coco", "yolo"):
        saved = tmp_path / to
        tood.predict(trained, tmp_path, output=str(saved), save_as=to, score_threshold=0)
        assert len(read_data(str(saved)).parts["all"].content["images"]) == 3


def test_conversions_are_data(tmp_path):
    truth = voc_set(tmp_path / "photos")
    tood.convert(tmp_path / "photos", output=tmp_path / "new" / "coco")
    assert not is_output(str(tmp_path / "new" / "coco"))
    (images,) = found_in(tmp_path / "new" / "coco").values()
    assert sorted(images.values()) == sorted(truth["all"].values())
    # Into what a stopped command has left.
    check_folder(str(tmp_path / "left"), "--output")
    tood.convert(tmp_path / "photos", output=tmp_path / "left")
    assert not is_output(str(tmp_path / "left"))


def test_training_in_the_folder_of_the_photographs(photo_folder, monkeypatch):
    from conftest import SMALL

    monkeypatch.chdir(photo_folder)
    before = read_data(".").parts["all"].content
    tiny = [*SMALL, "SOLVER.STEPS", "()", "MODEL.TOOD.ATSS_ITERS", "1"]
    tood.train(".", epochs=0.5, images_per_step=2, report=False, options=tiny)
    assert is_output("output/photos")
    assert read_data(".").parts["all"].content == before


# --- one image, listed twice -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.jpg", "./0.jpg", "sub/../0.jpg", "link.jpg", "sub/link.jpg"])
def test_records_of_one_image_are_united(name, tmp_path):
    for image in ("0.jpg", "1.jpg"):
        put_image(tmp_path, image)
    (tmp_path / "sub").mkdir()
    os.symlink("0.jpg", tmp_path / "link.jpg")
    os.symlink("../0.jpg", tmp_path / "sub" / "link.jpg")
    content = coco({"0.jpg": A, "1.jpg": B})
    content["images"].append({"id": 9, "file_name": name, "width": 64, "height": 48})
    for a in content["annotations"][1:3]:
        a["image_id"] = 9
    content["annotations"].append({**content["annotations"][0], "id": 77, "image_id": 9})
    put(tmp_path, "a.json", content)
    for data in (tmp_path, tmp_path / "a.json"):
        converted = read_data(str(data))
        (part,) = converted.parts.values()
        assert [i["file_name"] for i in part.content["images"]] == ["0.jpg", "1.jpg"]
        assert found_in(data) == ordered({"all": {"0.jpg": A, "1.jpg": B}})
        assert any("images that a COCO file lists twice" in x for x in list_rows(data))
        assert any("1: the same class and box twice" in x for x in list_rows(data))
    # As train_net.py and the evaluation read it.
    clean = read_annotations(str(tmp_path / "a.json"), str(tmp_path), to_train=True)
    assert [i["id"] for i in clean["images"]] == [1, 2]
    assert [a["image_id"] for a in clean["annotations"]] == [1] * 3 + [2] * 3
    assert clean["repairs"]["images that are listed twice, united"] == [name]
    assert len(clean["repairs"]["objects that such images list twice, kept once"]) == 1


def test_objects_of_an_image_that_is_listed_once_stay(tmp_path):
    put_image(tmp_path, "0.jpg")
    put(tmp_path, "a.json", coco({"0.jpg": [*A, A[0]]}))
    clean = read_annotations(str(tmp_path / "a.json"), str(tmp_path), to_train=True)
    assert len(clean["annotations"]) == 4 and "images that are listed twice" not in str(clean)


@pytest.mark.parametrize("train", ["[images, images]", "[images, ./images/]", "train.txt"])
def test_images_that_yolo_lists_twice(train, tmp_path):
    truth = {}
    for i in range(3):
        truth[f"images/{i}.jpg"] = make_boxes(i)
        put_image(tmp_path, f"images/{i}.jpg")
        put(tmp_path, f"labels/{i}.txt", yolo(make_boxes(i)))
    put(tmp_path, "train.txt", "".join(f"images/{i}.jpg\n./images/{i}.jpg\n" for i in range(3)))
    put(tmp_path, "data.yaml", f"train: {train}\nnames: {NAMES}")
    assert found_in(tmp_path) == ordered({"train": truth})
    row = "note: images that are listed more than once in a split, e.g. images/0.jpg"
    assert row in list_rows(tmp_path)


@pytest.mark.parametrize("write", ["voc", "labelme"])
def test_two_files_of_labels_that_state_one_image_are_refused(write, tmp_path):
    for i in range(3):
        put_image(tmp_path, f"{i}.jpg")
        put(tmp_path, f"{i}.xml", voc(f"{i}.jpg", A)) if write == "voc" else put(
            tmp_path, f"{i}.json", labelme(f"{i}.jpg", A)
        )
    put(tmp_path, "b.xml", voc("0.jpg", B)) if write == "voc" else put(
        tmp_path, "b.json", labelme("0.jpg", B)
    )
    assert "0.jpg has two files of labels" in refused(tmp_path)


def test_two_spellings_in_tables(tmp_path):
    for i in range(2):
        put_image(tmp_path, f"{i}.jpg")
    names = ("0.jpg", "./0.jpg", "1.jpg")
    rows = [[n, *box[1:], box[0]] for n, box in zip(names, (A[0], B[1], A[2]))]
    put_csv(tmp_path / "", "a.csv", rows)
    assert found_in(tmp_path) == ordered({"all": {"0.jpg": [A[0], B[1]], "1.jpg": [A[2]]}})


# --- kinds of files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.jpg", "0.xml", "a.json", "data.yaml", "a.csv", "classes.txt"])
def test_pipes_in_a_folder_are_not_waited_for(name, tmp_path):
    voc_set(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    row = f"ignored files: 1: a link to nothing, or not a file, e.g. {name}"
    assert row in list_rows(tmp_path)


@pytest.mark.parametrize("name", ["a.json", "data.yaml", "a.csv", "annotations.xml"])
def test_pipes_that_are_named_are_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    assert name in refused(tmp_path / name)
    if name == "a.json":
        pipe = str(tmp_path / name)
        assert "is not a regular file" in complaint(read_annotations, pipe, to_train=True)


def test_pipes_as_images_and_videos(trained, tmp_path, capsys):
    put_image(tmp_path, "0.jpg")
    put(tmp_path, "a.json", coco({"0.jpg": A}))
    (tmp_path / "0.jpg").unlink()
    for name in ("0.jpg", "v.mp4"):
        os.mkfifo(tmp_path / name)
    assert "images that are not there" in check(f"{tmp_path}/a.json").error
    put(tmp_path, "list.mp4", "ffconcat version 1.0\nfile 'v.mp4'\n")
    inputs = [str(tmp_path / name) for name in ("0.jpg", "v.mp4", "list.mp4")]
    with pytest.raises(UserError, match="None of the inputs could be read"):
        tood.predict(trained, inputs, output=str(tmp_path / "found"))
    assert capsys.readouterr().err.count("not a ") == 3


@pytest.mark.parametrize(
    "train, says",
    [
        ("/dev/zero", "is not a regular file"),
        ("/", "the whole disk"),
        (".hidden/images\npath: .", "is in a hidden folder"),
        ("found", "is in a hidden folder or in an output folder"),
    ],
)
def test_entries_that_are_not_folders_of_data(train, says, tmp_path):
    put_image(tmp_path, ".hidden/images/0.jpg")
    check_folder(str(tmp_path / "found"), "--output")
    put(tmp_path, "data.yaml", f"train: {train}\nnames: [a]")
    assert says in refused(tmp_path)


def test_links_without_end_are_entered_once(tmp_path):
    truth = voc_set(tmp_path)
    for i in range(20):
        os.symlink(".", tmp_path / f"loop{i}")
    os.symlink("b.jpg", tmp_path / "a.jpg")
    os.symlink("a.jpg", tmp_path / "b.jpg")
    assert found_in(tmp_path) == truth
    assert list(walk_folders(str(tmp_path))) == [str(tmp_path)]
    inputs, _ = find_inputs(str(tmp_path / "**" / "*.jpg"), None)
    assert [os.path.basename(x) for x in inputs] == ["0.jpg", "1.jpg", "2.jpg"]


def test_sizes_are_bounded(tmp_path):
    """Tested by sparse files, which are not read."""
    for name, size in (("0.txt", 2**24), ("data.yaml", 2**20), ("a.json", 2**30)):
        put_image(tmp_path / name, "0.jpg")
        put(tmp_path / name, "classes.txt", "a")
        put(tmp_path / name, name, {"0.txt": "0 0.5 0.5 0.1 0.1"}.get(name, "names: [a]\n"))
        os.truncate(tmp_path / name / name, size + 1)
        assert f"{name} " in refused(tmp_path / name)


def test_entities_of_xml_are_refused(tmp_path):
    voc_set(tmp_path)
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))
    text = f'<!DOCTYPE a [<!ENTITY e0 "lol">{entities}]><annotation><x>&e12;</x></annotation>'
    put(tmp_path, "0.xml", text)
    assert "0.xml cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("name", ["a\ud800", "a\0b"])
def test_names_of_classes_that_cannot_be_written(name, tmp_path):
    put_image(tmp_path, "0.jpg")
    write_json(coco({"0.jpg": A}, names=[*NAMES, name]), str(tmp_path / "a.json"))
    assert "which is not Unicode text" in complaint(check, str(tmp_path))


def test_names_of_files_in_another_encoding(tmp_path, capsysbinary):
    put_image(tmp_path, "0.jpg")
    os.rename(tmp_path / "0.jpg", os.fsencode(tmp_path) + b"/\xe9.jpg")
    put(tmp_path, "a.json", coco({os.fsdecode(b"\xe9.jpg"): []}))
    checked = check(str(tmp_path))
    assert checked.error == "" and "\\udce9.jpg" in str(checked)


# --- files that change -------------------------------------------------------------------------


def test_images_that_change_after_the_check(tmp_path):
    """Removed, cut off, of another size: one sentence each that names the image."""
    from conftest import CONFIG, SMALL

    from tood.config.read import load_config
    from tood.data.datasets import load_own_data
    from tood.data.mapper import CheckedMapper

    put_image(tmp_path, "0.jpg")
    put(tmp_path, "a.json", coco({"0.jpg": A}))
    assert check(f"{tmp_path}/a.json").error == ""
    (record,) = load_own_data(str(tmp_path / "a.json"), str(tmp_path))
    mapper, path = CheckedMapper(load_config(CONFIG, SMALL)), tmp_path / "0.jpg"
    assert mapper(record)["image"].shape[0] == 3
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "0.jpg cannot be used" in complaint(mapper, record)
    put_image(tmp_path, "0.jpg", size=(32, 32))
    assert "Mismatched image shape" in complaint(mapper, record)
    path.unlink()
    assert "No such file" in complaint(mapper, record)
    os.mkfifo(path)
    assert "not a regular file" in complaint(mapper, record)


def test_annotations_are_read_once(tmp_path, monkeypatch):
    """The checked content is converted, even if the file has changed since."""
    put_image(tmp_path, "0.jpg")
    put(tmp_path, "a.json", coco({"0.jpg": A}))
    converted = read_data(str(tmp_path))
    put(tmp_path, "a.json", json.dumps({"images": []}))
    assert len(converted.parts["all"].content["annotations"]) == len(A)
    put(tmp_path, "a.json", "")
    assert "contains" in refused(tmp_path)
