"""``MODEL.TOOD.TEACHER`` in whole trainings: its losses, and teachers that do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CONFIG, SMALL, app_error, complaint, get_error, load_extension
from detectron2.modeling import build_model

import tood
import train_net
from tood.app import cli
from tood.engine.train import check
from tood.engine.trainer import attach_teacher, get_class_names
from tood.modeling.teacher import Teacher

KEY, TEACHER_WEIGHT = "MODEL.TOOD.TEACHER", "MODEL.TOOD.TEACHER_WEIGHT"


def read_metrics(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.slow
def test_train_net(command, out, trained):
    train_net.cli(command(opts=[KEY, str(trained), "MODEL.TOOD.EMA_DECAY", "0.9"]))
    losses = read_metrics(out)
    assert losses["loss_teacher_cls"] > 0 and "loss_teacher_box_reg" in losses
    names = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert not [x for x in names if "teacher" in x]


@pytest.mark.slow
@pytest.mark.usefixtures("without_steps")
def test_the_app(photo_folder, trained, tmp_path, fresh_loggers):
    options = [*SMALL, KEY, str(trained), "MODEL.TOOD.TEACHER_WEIGHT", "0.5"]
    cli.main(
        [
            "train",
            "photos",
            "--model",
            "R18",
            "--output",
            "out",
            "--epochs",
            "1",
            "--no-report",
            *options,
        ]
    )
    assert read_metrics(tmp_path / "out")["loss_teacher_cls"] > 0


def test_images_to_validate_on_that_a_teacher_knows(
    command, trained, entry, photo_folder, without_steps
):
    _, news = check(train_net.parse_args(command(opts=[KEY, str(trained)])))
    words = "images that the teacher (MODEL.TOOD.TEACHER) was trained on, or copies of such images"
    assert f"{words}: 8, for example" in " ".join(news[0].split())
    for opts in ([], [KEY, str(trained), TEACHER_WEIGHT, "0"]):
        _, news = check(train_net.parse_args(command(opts=opts)))
        assert "teacher" not in "".join(news)
    flags = dict(model="R18", images_per_step=2, dry_run=True, options=[*SMALL, KEY, str(trained)])
    plan = " ".join(tood.train("photos", **flags).plan.split())
    assert f"teacher {trained}; it was trained on 2 of the images to validate on: AP may" in plan
    message = complaint(tood.train, "photos", calibration_share=0.25, **flags)
    assert f"{KEY} {trained} was trained on 2 of the images to calibrate on, for " in message
    assert "train it with the same --calibration-share" in message
    path = trained / "config.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace(entry, "shapes_elsewhere"))
        plan = " ".join(tood.train("photos", **flags).plan.split())
        _, news = check(train_net.parse_args(command(opts=[KEY, str(trained)])))
    finally:
        path.write_text(text)
    says = "ot checked whether the teacher was trained on images to validate on (shapes_elsewhere"
    assert f"; n{says}" in plan and f"N{says}" in "".join(news)


@pytest.fixture
def others(trained, tmp_path):
    """Copies of the training with another config, or other names of classes."""

    def copy(change=lambda text: text, class_names=None):
        folder = tmp_path / "other"
        folder.mkdir()
        text = (trained / "config.yaml").read_text()
        assert class_names or change(text) != text
        (folder / "config.yaml").write_text(change(text))
        content = torch.load(trained / "model_final.pth", weights_only=True)
        content["class_names"] = class_names or content["class_names"]
        torch.save(content, folder / "model_final.pth")
        return str(folder)

    return copy


def test_a_teacher_that_is_not_there(command, out, photo_folder):
    message = get_error(command(opts=[KEY, "nowhere"]))
    assert f"{KEY} cannot be used: No checkpoint or output folder at nowhere; name " in message
    assert not out.exists()
    message = app_error("train", "photos", "--output", "app", *SMALL, KEY, "nowhere")
    assert f"{KEY} cannot be used: " in message and not (photo_folder.parent / "app").exists()


def test_a_teacher_of_other_classes(command, out, others):
    message = get_error(command(opts=[KEY, others(class_names=["a", "b", "c", "d"])]))
    assert "finds a, b, c, d; the classes of this training are " in message
    assert not out.exists()


PIXELS = {
    "INPUT.FORMAT BGR, and this training RGB": ("FORMAT: RGB", "FORMAT: BGR"),
    "INPUT.BIT_DEPTH 12, and this training 16": ("BIT_DEPTH: 16", "BIT_DEPTH: 12"),
    "MODEL.PIXEL_MEAN [1": ("PIXEL_MEAN:\n  - 123.675", "PIXEL_MEAN:\n  - 1"),
    "MODEL.PIXEL_STD [1": ("PIXEL_STD:\n  - 58.395", "PIXEL_STD:\n  - 1"),
}


@pytest.mark.parametrize("says", PIXELS)
def test_a_teacher_of_other_pixels(command, out, others, says):
    folder = others(lambda text: text.replace(*PIXELS[says], 1))
    assert f"has {says}" in get_error(command(opts=[KEY, folder]))
    assert not out.exists()


def test_rounded_pixels_are_equal(command, others, tmp_path):
    """As timm's are, which are computed."""
    folder = others(lambda text: text.replace("- 57.12\n", "- 57.120000000000005\n", 1))
    cfg, _ = check(train_net.parse_args(command(opts=[KEY, folder, TEACHER_WEIGHT, "0.5"])))
    model = build_model(cfg)
    attach_teacher(cfg, model, get_class_names(cfg))
    assert model.teacher.weight == 0.5
    cfg.MODEL.TOOD.TEACHER_WEIGHT = 0.0
    model = build_model(cfg)
    attach_teacher(cfg, model, get_class_names(cfg))
    assert model.teacher is None


def test_a_teacher_is_not_overwritten(command, others):
    folder = others(lambda text: text + "\n")
    before = (Path(folder) / "config.yaml").read_text()
    message = get_error(command(opts=[KEY, folder, "OUTPUT_DIR", folder]))
    assert "is in the output folder of this training; name another one." in message
    assert (Path(folder) / "config.yaml").read_text() == before


def test_a_teacher_for_a_head_of_a_user(command, out):
    """Which is not built before the training."""
    load_extension("head")
    head = ["MODEL.TOOD.HEAD", "UncertainHead"]
    assert f"{KEY} cannot be used" in get_error(command(opts=[KEY, "nowhere", *head]))
    assert not out.exists()


def test_a_plan_of_a_config_has_the_teacher(photo_folder, trained, monkeypatch):
    calls = []
    arguments = ["train", "photos", "--config-file", CONFIG, "--dry-run", *SMALL]
    predict = Teacher.predict
    monkeypatch.setattr(Teacher, "predict", lambda *x: calls.append(x) or predict(*x))
    cli.main([*arguments, KEY, str(trained)])
    assert calls
    assert f"{KEY} cannot be used" in app_error(*arguments, KEY, "nowhere")


@pytest.mark.slow
@pytest.mark.usefixtures("without_steps")
def test_a_teacher_that_was_moved(photo_folder, trained, tmp_path, monkeypatch, fresh_loggers):
    shutil.copytree(trained, "n")
    begin = ["train", str(photo_folder), "--output", str(tmp_path / "out"), "--model", "R18"]
    begin.append("--no-report")
    options = [*SMALL, "SOLVER.STEPS", "()", "SOLVER.MAX_ITER"]
    cli.main([*begin, *options, "2", KEY, "n"])
    assert f"TEACHER: {tmp_path}/n" in (tmp_path / "out" / "plan.yaml").read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # it is found from there
    again = [*begin, "--resume", *options]
    cli.main([*again, "3", KEY, "../n"])
    (tmp_path / "n").rename(tmp_path / "moved")
    assert "cannot be used" in app_error(*again, "4", KEY, "../n")
    assert "cannot be used" in app_error(*begin, "--resume", "--dry-run", *options, "4")
    cli.main([*again, "4", KEY, "../moved"])
    assert read_metrics(tmp_path / "out")["iteration"] >= 3


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
