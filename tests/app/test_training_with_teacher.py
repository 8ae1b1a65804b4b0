"""``MODEL.TOOD.TEACHER`` in whole trainings: its losses, and teachers that do not fit."""

import json

import pytest
import torch
from conftest import SMALL, app_error, get_error

import train_net
from tood.app import cli

KEY = "MODEL.TOOD.TEACHER"


def read_metrics(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.slow
def test_train_net(command, out, trained):
    train_net.cli(command(opts=[KEY, str(trained), "MODEL.TOOD.EMA_DECAY", "0.9"]))
    losses = read_metrics(out)
    assert losses["loss_teacher_cls"] > 0 and losses["loss_teacher_box_reg"] >= 0
    names = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert not [x for x in names if "teacher" in x]


@pytest.mark.slow
def test_the_app(photo_folder, trained, tmp_path, fresh_loggers):
    options = [*SMALL, KEY, str(trained), "MODEL.TOOD.TEACHER_WEIGHT", "0.5"]
    cli.main(["train", "photos", "--model", "R18", "--output", "out", "--epochs", "1", *options])
    assert read_metrics(tmp_path / "out")["loss_teacher_cls"] > 0


@pytest.fixture
def others(trained, tmp_path):
    """Copies of the training with another config, or other names of classes."""

    def copy(change=lambda text: text, class_names=None):
        folder = tmp_path / "other"
        folder.mkdir()
        text = (trained / "config.yaml").read_text()
        assert change is None or class_names or change(text) != text
        (folder / "config.yaml").write_text(change(text))
        content = torch.load(trained / "model_final.pth", weights_only=True)
        content["class_names"] = class_names or content["class_names"]
        torch.save(content, folder / "model_final.pth")
        return str(folder)

    return copy


def test_a_teacher_that_is_not_there(command, out, photo_folder):
    message = get_error(command(opts=[KEY, "nowhere"]))
    assert f"{KEY} cannot be used: " in message and "nowhere" in message
    assert not out.exists()
    message = app_error("train", "photos", "--output", "app", *SMALL, KEY, "nowhere")
    assert f"{KEY} cannot be used: " in message and not (photo_folder.parent / "app").exists()


def test_a_teacher_of_other_classes(command, out, others):
    message = get_error(command(opts=[KEY, others(class_names=["a", "b", "c", "d"])]))
    assert "finds a, b, c, d; the classes of this training are " in message
    assert not out.exists()


def test_a_teacher_of_other_pixels(command, out, others):
    folder = others(lambda text: text.replace("FORMAT: RGB", "FORMAT: BGR", 1))
    message = get_error(command(opts=[KEY, folder]))
    assert "has INPUT.FORMAT BGR, and this training RGB" in message
    assert not out.exists()


def test_a_teacher_of_other_levels(command, out, trained):
    wider = ["MODEL.RESNETS.OUT_FEATURES", "['res2','res3','res4','res5']"]
    wider += ["MODEL.FPN.IN_FEATURES", "['res2','res3','res4','res5']"]
    wider += [
        "MODEL.TOOD.IN_FEATURES",
        "['p2','p3']",
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "[[32],[64]]",
    ]
    message = get_error(command(opts=[KEY, str(trained), *wider]))
    assert "its levels have the strides [8, 16, 32, 64, 128], not [4, 8]" in message
    assert not out.exists()


def test_a_negative_weight(command, trained):
    message = get_error(command(opts=[KEY, str(trained), "MODEL.TOOD.TEACHER_WEIGHT", "-1.0"]))
    assert "MODEL.TOOD.TEACHER_WEIGHT is -1.0; it must be at least 0" in message
