"""The detections of an image, for notebooks and scripts."""

import io
import sys
import types

import numpy as np
import pytest
import torch
from conftest import complaint
from detectron2.structures import Boxes, Instances
from PIL import Image

import tood
from tood.inference.results import Result


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (90, 60), (200, 200, 200)).save(path)
    boxes = Boxes(torch.tensor([[1.5, 2.25, 30.1, 40.0], [50.0, 10.0, 80.0, 50.0]]))
    found = Instances((60, 90), pred_boxes=boxes, scores=torch.tensor([0.87, 0.1]))
    found.pred_classes = torch.tensor([1, 0])
    read = lambda: np.asarray(Image.open(path))[:, :, ::-1]  # noqa: E731
    return Result(found, ["WBC", "RBC"], str(path), read)


def test_numbers_print_as_numbers(result):
    text = "[[1.5, 2.25, 30.1, 40.0], [50.0, 10.0, 80.0, 50.0]] [0.87, 0.1] ['RBC', 'WBC']"
    assert f"{result.boxes} {result.scores} {result.labels}" == text
    assert len(result) == 2 and repr(result) == f"<{result.path}: 1 RBC, 1 WBC>"
    assert np.array_equal(np.float32(result.scores), result.instances.scores)
    assert repr(Result(result.instances[:0], ["WBC"])) == "<an array: nothing>"


def test_saving(result, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert result.save("~/found/") == f"{tmp_path}/found/photo.jpg"
    assert result.save(tmp_path / "a.png") == f"{tmp_path}/a.png"
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size == (90, 60) and np.asarray(drawn).std() > 10
    assert "already exists" in complaint(result.save, tmp_path / "a.png")
    assert result.save(tmp_path / "a.png", overwrite=True) == f"{tmp_path}/a.png"
    before = (tmp_path / "photo.jpg").read_bytes()
    for path in (tmp_path, result.path):
        assert "is the image itself" in complaint(result.save, path, overwrite=True)
    assert (tmp_path / "photo.jpg").read_bytes() == before
    assert "must end in .png or .jpg" in complaint(result.save, tmp_path / "new" / "a.txt")
    assert not (tmp_path / "new").exists()


def test_in_a_notebook(result, monkeypatch):
    assert Image.open(io.BytesIO(result._repr_png_())).size == (90, 60)
    shown = []
    shell = types.SimpleNamespace(kernel=None)
    display = types.SimpleNamespace(display=shown.append)
    notebook = types.SimpleNamespace(get_ipython=lambda: shell, display=display)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    result.show()
    assert shown == [result]


def test_without_a_screen(result, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    terminal = types.SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    sentence = 'There is no screen to show it on; use result.save("FILE.png").'
    assert complaint(result.show) == sentence


def test_a_frame_whose_pixels_are_not_kept(result):
    frame = Result(result.instances, ["WBC", "RBC"], "a.mp4#3")
    assert frame._repr_png_() is None
    assert "The pixels of a.mp4#3 are not kept" in complaint(frame.draw)
    assert frame.draw(np.zeros((60, 90, 3), np.uint8)).shape == (60, 90, 3)


def test_a_model_detects_and_writes_nothing(trained, photos, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = sorted(tmp_path.rglob("*")), sorted(trained.rglob("*"))
    model = tood.load(trained)
    results = model.predict("~/photos", score_threshold=0.0)
    assert [x.path for x in results] == [str(x) for x in sorted(photos.iterdir())]
    assert capfd.readouterr() == ("", "")
    assert (sorted(tmp_path.rglob("*")), sorted(trained.rglob("*"))) == before
    (detect,) = model._predictors.values()
    pixels = np.asarray(Image.open(photos / "00001.jpg"))[:, :, ::-1]
    again = model.predict([pixels, photos / "00001.jpg"], score_threshold=0.0)
    assert [*model._predictors.values()] == [detect]  # one model is built
    assert [x.path for x in again] == ["", str(photos / "00001.jpg")]
    assert again[0].scores == again[1].scores == results[1].scores
    assert model.predict([]) == []
    assert "no image or video at nothing" in complaint(model.predict, "nothing")
    (photos / "v.mp4").touch()
    assert "v.mp4 is a video; use tood.predict" in complaint(model.predict, photos)


def test_a_predictor_takes_what_commands_take(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(trained.parent))
    names = trained, f"~/{trained.name}", trained / "model_best.pth"
    assert {tood.Predictor(x).options.weights for x in names} == {f"{trained}/model_best.pth"}
    assert "contains no checkpoint" in complaint(tood.Predictor, tmp_path)
    assert "No checkpoint or output folder at cells" in complaint(tood.Predictor, "cells")
