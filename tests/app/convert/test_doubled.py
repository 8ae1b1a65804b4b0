"""Files of images that are copies of others, or have several pages."""

import shutil

import pytest
from layouts import (
    OF_ONE_IMAGE,
    coco,
    found_in,
    make_boxes,
    notes,
    ordered,
    put,
    put_csv,
    put_image,
    put_labels_of_one,
    refused,
    voc,
)
from PIL import Image

from tood.app.convert import copies
from tood.app.convert.door import read_data

AGAIN = "an image that another folder has as well, with the same labels"
SHARED = "images that are also trained on, or copies of such images"


def put_labels(root, kind, image, boxes):
    put_labels_of_one(root, kind, image.rsplit(".", 1)[0], image.rpartition("/")[2], boxes)


@pytest.fixture(params=OF_ONE_IMAGE)
def doubled(tmp_path, request):
    """Return a data set that lies in its folder twice."""
    for i in range(3):
        put_image(tmp_path, f"ds/{i}.png")
        put_labels(tmp_path, request.param, f"ds/{i}.png", make_boxes(i))
    shutil.copytree(tmp_path / "ds", tmp_path / "ds2")
    (tmp_path / "ds2").rename(tmp_path / "ds" / "ds")
    return tmp_path, request.param


def test_a_data_set_that_lies_in_the_folder_twice(doubled):
    root, _ = doubled
    ledger = read_data(str(root)).ledger
    assert found_in(root) == ordered({"all": {f"ds/{i}.png": make_boxes(i) for i in range(3)}})
    assert ledger.files["ds/ds/0.png"] == ("ignored", AGAIN)
    assert (ledger.objects_in, ledger.objects_out) == (18, 9)
    assert (f"ignored files: {AGAIN}", 3, "ds/ds/0.png") in ledger.noted()


def test_copies_with_other_labels_are_kept_and_named(doubled):
    root, kind = doubled
    put_labels(root, kind, "ds/ds/1.png", make_boxes(7))
    assert list(found_in(root)["all"]) == ["ds/0.png", "ds/1.png", "ds/2.png", "ds/ds/1.png"]
    text = "images that are copies of others, with other labels, e.g. ds/ds/1.png"
    assert text in notes(root)


def test_copies_by_another_name_are_kept_and_named(tmp_path):
    for name in ("a.png", "a_1.png", "a_2.png"):
        put_image(tmp_path, "a.png")
        shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
        (tmp_path / "b.png").rename(tmp_path / name)
        put_labels(tmp_path, "voc", name, make_boxes(0))
    assert found_in(tmp_path) == ordered(
        {"all": {name: make_boxes(0) for name in ("a.png", "a_1.png", "a_2.png")}}
    )
    found = ("images that are copies of others by another name, all kept", 2, "a_1.png")
    assert found in read_data(str(tmp_path)).ledger.noted()


def test_images_that_coco_lists_are_kept(tmp_path):
    put_image(tmp_path, "a/0.png")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/0.png", tmp_path / "b/0.png")
    truth = {"a/0.png": make_boxes(0), "b/0.png": make_boxes(0)}
    put(tmp_path, "a.json", coco(truth))
    assert found_in(tmp_path) == ordered({"all": truth})
    assert "copies of others by another name, all kept, e.g. b/0.png" in notes(tmp_path)


def test_images_of_a_table_in_two_folders(tmp_path):
    put_image(tmp_path, "a/0.png")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/0.png", tmp_path / "b/0.png")
    put_csv(tmp_path, "a.csv", [[f"{x}/0.png", 1, 2, 30, 40, "disc"] for x in "ab"])
    assert found_in(tmp_path) == {"all": {"a/0.png": [["disc", 1, 2, 30, 40]]}}
    assert AGAIN in notes(tmp_path)


def test_many_images_that_coco_lists_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "MAX_IMAGES_LOOKED_AT", 1)
    put_image(tmp_path, "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    put(tmp_path, "a.json", coco({"a.png": [], "b.png": []}))
    assert "copies" not in notes(tmp_path)


def put_folds(root, kind, form="fold_{}/{}/{}.png", number=6):
    for fold in range(2):
        for i in range(number):
            name = form.format(fold, "val" if i % 2 == fold else "train", i)
            put_image(root, "image.png")
            Image.new("RGB", (64, 48), (i, i, i)).save(root / "image.png")
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "image.png").rename(root / name)
            put_labels(root, kind, name, make_boxes(i))


@pytest.mark.parametrize("kind", OF_ONE_IMAGE)
@pytest.mark.parametrize("form", ["fold_{}/{}/{}.png", "fold_{}/images/{}/{}.png"])
def test_folders_of_folds(tmp_path, kind, form):
    put_folds(tmp_path, kind, form)
    message = refused(tmp_path)
    assert f"{tmp_path / 'fold_0'} and {tmp_path / 'fold_1'} are several divisions" in message
    shutil.rmtree(tmp_path / "fold_1")
    assert {split: len(x) for split, x in found_in(tmp_path).items()} == {"train": 3, "val": 3}


def test_images_to_train_and_to_validate_on(tmp_path):
    put_folds(tmp_path, "voc")
    shutil.rmtree(tmp_path / "fold_1")
    for end in ("png", "xml"):
        shutil.copy(tmp_path / f"fold_0/train/1.{end}", tmp_path / f"fold_0/val/1.{end}")
    assert {split: len(x) for split, x in found_in(tmp_path).items()} == {"train": 3, "val": 4}
    assert (SHARED, 1, "fold_0/val/1.png") in read_data(str(tmp_path)).ledger.noted()


def test_two_data_sets_that_share_an_image(tmp_path):
    put_folds(tmp_path, "voc")
    for path in (tmp_path / "fold_1").rglob("*.png"):
        if path.stem != "1":
            Image.new("RGB", (64, 48), (99, int(path.stem), 0)).save(path)
    assert {split: len(x) for split, x in found_in(tmp_path).items()} == {"train": 6, "val": 6}
    assert (SHARED, 1, "fold_1/val/1.png") in read_data(str(tmp_path)).ledger.noted()


@pytest.mark.parametrize("end", ["tif", "gif", "webp"])
def test_files_of_several_pages(tmp_path, end):
    pages = [Image.new("L", (64, 48), 80 * i) for i in range(3)]
    for name, more in ((f"0.{end}", []), (f"1.{end}", pages[1:])):
        pages[0].save(tmp_path / name, save_all=True, append_images=more)
        put(tmp_path, f"{name[0]}.xml", voc(name, make_boxes(name)))
    assert len(found_in(tmp_path)["all"]) == 2
    found = ("images of several pages or frames, the first of which is used", 1, f"1.{end}")
    assert found in read_data(str(tmp_path)).ledger.noted()
