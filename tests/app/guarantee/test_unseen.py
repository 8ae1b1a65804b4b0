"""Calibration images that the model has seen are refused."""

import json
import shutil

import pytest
import torch
from conftest import SMALL, complaint
from PIL import Image

import tood
from tood.app.guarantee.unseen import Seen, check_unseen, read_seen
from tood.app.trained import find_trained
from tood.data.shapes import write_shapes_dataset


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Three data sets of other images: to train on, to validate on, and new ones."""
    root = tmp_path_factory.mktemp("parts")
    for seed, name in enumerate(("train", "val", "new")):
        write_shapes_dataset(str(root / name), num_images=3, seed=seed, size=64)
    return root


def check(parts, names, weights, train="train", val="val", **more):
    seen = [[f"{parts}/{x}/annotations.json:{parts}/{x}/images"] for x in (train, val)]
    return check_unseen([str(parts / name) for name in names], Seen(*seen, **more), str(weights))


@pytest.fixture
def final(tmp_path):
    torch.save({"model": {"x": torch.zeros(1)}, "iteration": 3}, tmp_path / "model_final.pth")
    return tmp_path / "model_final.pth"


def test_new_images_are_accepted(parts, final):
    names = [f"new/images/0000{i}.jpg" for i in range(3)]
    assert check(parts, names, final) == []
    assert check(parts, names, "elsewhere/model_best.pth") == []


def test_training_images_and_their_copies_are_refused(parts, final, tmp_path):
    shutil.copy(parts / "train" / "images" / "00002.jpg", tmp_path / "renamed.jpg")
    new = "new/images/00001.jpg"
    for seen in ("train/images/00001.jpg", tmp_path / "renamed.jpg"):
        sentence = complaint(check, parts, [new, seen], final)
        assert "1 of the 2 calibration images are images that the model was trained on" in sentence
        assert str(seen).rpartition("/")[2] in sentence


def test_what_a_teacher_has_seen_has_been_seen(trained, tmp_path):
    """By the configs of four generations of trainings, the first of which is gone; the second has
    no checkpoint any more, and the data of the third were moved with it.
    """
    text = (trained / "config.yaml").read_text()
    assert text.count("TEACHER: ''") == 1
    line = next(x for x in text.splitlines() if "annotations.json" in x)
    entry = line.strip(" -")
    for name, teacher in (("a", "gone"), ("b", "a"), ("c", "b")):
        (tmp_path / name).mkdir()
        found = text.replace("TEACHER: ''", f"TEACHER: {tmp_path / teacher}")
        found = found.replace(entry, "/old/b/data/train.json") if name == "b" else found
        (tmp_path / name / "config.yaml").write_text(found)
        if name != "a":
            shutil.copy(trained / "model_final.pth", tmp_path / name)
    (tmp_path / "b" / "data").mkdir()
    (tmp_path / "b" / "data" / "train.json").write_text("{}")
    last, moved = find_trained(str(tmp_path / "c")), str(tmp_path / "b/data/train.json")
    assert list(read_seen(last).train) == [entry, moved, str(tmp_path / "gone")]
    path = tmp_path / "a" / "config.yaml"  # trained once more, by its student
    path.write_text(path.read_text().replace(str(tmp_path / "gone"), str(tmp_path / "c")))
    assert list(read_seen(last).train) == [entry, moved]
    (tmp_path / "c" / "config.yaml").write_text(
        (tmp_path / "c" / "config.yaml")
        .read_text()
        .replace("TEACHER_WEIGHT: 1.0", "TEACHER_WEIGHT: 0.0")
    )
    assert list(read_seen(last).train) == [entry]  # nothing was learned from it


def test_copies_that_were_saved_again_are_named(parts, final, tmp_path, monkeypatch):
    """Copies with another name, quality, size or orientation are found; other images are not."""
    with Image.open(parts / "train" / "images" / "00002.jpg") as image:
        original = image.convert("RGB").resize((256, 256), Image.BICUBIC)
    original.save(tmp_path / "a.jpg", quality=75)
    original.resize((100, 100), Image.BICUBIC).save(tmp_path / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    original.transpose(Image.ROTATE_90).save(tmp_path / "c.jpg", exif=exif)
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "d.jpg")
    (tmp_path / "e.jpg").write_bytes(b"broken")
    names = [f"new/images/0000{i}.jpg" for i in range(3)]
    names += [tmp_path / f"{x}" for x in ("a.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg")]
    (note,) = check(parts, names, final)
    assert note.startswith("3 of the 8 calibration images look like images that the model was")
    assert f"{tmp_path}/a.jpg like " in note and "train/images/00002.jpg: if they are" in note
    monkeypatch.setattr("tood.app.guarantee.unseen.MOST_COMPARED", 2)
    (note,) = check(parts, names, final)
    assert note.startswith("Not checked: copies of the 3 images that the model was trained on")


def test_validation_images_are_refused_if_they_chose_the_weights(parts, final, tmp_path):
    names = ["val/images/00001.jpg", "new/images/00002.jpg"]
    assert check(parts, names, final) == []  # the last weights, whichever they are
    best = tmp_path / "best_of_all.pth"  # under another name: it contains its AP
    torch.save({"model": {"x": torch.zeros(1)}, "AP": 40.0}, best)
    for weights in (best, "output/model_best.pth"):
        sentence = complaint(check, parts, names, weights)
        name = str(weights).rpartition("/")[2]
        assert f"1 of the 2 calibration images are images to validate on, by which {name}" in (
            sentence
        )
        assert sentence.endswith("/model_final.pth.")


def test_validation_images_are_refused_if_they_ended_the_training(parts, final):
    """The final weights of iteration 3, the fourth."""
    names = ["val/images/00001.jpg", "new/images/00002.jpg"]
    assert check(parts, names, final, patience=2, max_iter=4) == []
    assert check(parts, names, final, patience=0, max_iter=9) == []
    sentence = complaint(check, parts, names, final, patience=2, max_iter=9)
    assert "to validate on, by which the training of model_final.pth was ended" in sentence
    averaged, best = final.parent / "model_final_ema.pth", final.parent / "model_best.pth"
    for path in (averaged, best):  # without an iteration
        torch.save({"model": {"x": torch.zeros(1)}}, path)
        sentence = complaint(check, parts, names, path, patience=2, max_iter=9)
        assert sentence.endswith(": name others with --calibration-data.")
    assert check(parts, names[1:], averaged, patience=2, max_iter=9) == []


def test_what_cannot_be_checked_is_said(parts, final):
    (note,) = check(parts, ["new/images/00001.jpg"], final, train="gone")
    assert note.startswith("Not checked: the images that the model was trained on (")
    assert "/gone/annotations.json:" in note


@pytest.mark.slow
def test_a_model_refuses_its_own_images(trained, entry, tmp_path):
    """A control that must fail: a guarantee from training images."""
    sentence = complaint(
        tood.guarantee, trained, calibration_data=entry, miss_rate=0.5, output=str(tmp_path / "out")
    )
    assert "8 of the 8 calibration images are images that the model was trained on" in sentence
    assert not (tmp_path / "out").exists()


class _Stop(Exception):
    pass


def _stop_with(images):
    raise _Stop(images)


@pytest.mark.slow
@pytest.mark.usefixtures("without_steps")
def test_a_training_keeps_a_part_to_calibrate_on(shapes, tmp_path, fresh_loggers, monkeypatch):
    """Groups are drawn as wholes, neither trained nor validated on, and are the default data."""
    data, out = tmp_path / "photos", tmp_path / "out"
    content = json.loads((shapes / "annotations.json").read_text())
    (data / "images").mkdir(parents=True)
    for i, x in enumerate(content["images"]):
        old, x["file_name"] = x["file_name"], f"v{i // 2}_{i}.jpg"
        shutil.copy(shapes / "images" / old, data / "images" / x["file_name"])
    (data / "annotations.json").write_text(json.dumps(content))
    flags = dict(calibration_share=0.5, val_share=0.5, epochs=1, report=False, options=SMALL)
    flags["group"] = r"^images/v\d+_"
    assert "to calibrate on  4 images" in str(tood.train(data, dry_run=True, **flags))
    tood.train(data, output=str(out), **flags)
    found = {}
    for part in ("train", "val", "calibration"):
        written = json.loads((out / "data" / f"{part}.json").read_text())
        found[part] = {x["file_name"].rpartition("/")[2] for x in written["images"]}
    assert [len(x) for x in found.values()] == [2, 2, 4] and len(set().union(*found.values())) == 8
    assert len({x[:2] for x in found["calibration"]}) == 2
    summary = tood.guarantee(out, miss_rate=0.9).summary  # in the groups of the training
    assert (summary["num_images"], summary["num_units"], summary["unit"]) == (4, 2, "group")
    monkeypatch.setattr("tood.app.guarantee.calibrate._refuse_few", _stop_with)
    (images,) = pytest.raises(_Stop, tood.calibrate, out).value.args
    assert (len(images.content["images"]), len(images.groups)) == (4, 2)
    assert summary["notes"] == [x for x in summary["notes"] if not x.startswith("Not checked")]
    sentence = complaint(tood.train, data, output=str(out), resume=True, calibration_share=0.2)
    assert "was begun with --calibration-share 0.5, not with --calibration-share 0.2" in sentence
