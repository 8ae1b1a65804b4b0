"""The table of ``tood train``, its plan and its training: one set of values."""

import json
import os
import re

import pytest
import torch
import yaml
from conftest import CONFIG, SMALL, TINY, app_error, complaint
from detectron2.data import DatasetCatalog

import tood
from tood.app import cli
from tood.app import train as command
from tood.app.plan.choose import MODELS, find_base
from tood.app.plan.state import Wishes
from tood.config.zoo import get_config_file
from tood.engine import train as engine_train
from tood.utils.errors import UserError

TYPED = [*SMALL, "SOLVER.MAX_ITER", "8", "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture
def train_and_read(photo_folder, tmp_path, monkeypatch, capsys):
    """A function that returns the table, the plan's content and the config of the training."""
    seen = []
    monkeypatch.setattr(
        command, "_run", lambda run, out: seen.append(run) or command.Trained("", "", out)
    )

    def run(*argv):
        cli.main(["train", "photos", "--output", "out", *argv])
        rows = re.findall(r"^(\S[\w ]*?)  +(\S.*)$", capsys.readouterr().out, re.MULTILINE)
        cfg, _ = engine_train.check(seen.pop())
        return dict(rows), yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text()), cfg

    return run


def test_what_is_shown_is_what_runs(train_and_read):
    table, plan, cfg = train_and_read(
        *TYPED, "SOLVER.BASE_LR", "0.5", "TEST.DETECTIONS_PER_IMAGE", "7"
    )
    assert table["schedule"] == "8 iterations, 2.67 times all images; learning rate 0.5"
    assert table["images per step"] == "2" and table["detections"] == "at most 7 of an image"
    assert table["image size"].startswith("64, longer side at most 64: ")
    assert table["options"] == "MODEL.FPN.OUT_CHANNELS 32"  # the first that no row shows
    assert "instead" not in str(table)
    solver, size = plan["SOLVER"], plan["INPUT"]
    assert (solver["MAX_ITER"], solver["IMS_PER_BATCH"], solver["BASE_LR"]) == (8, 2, 0.5)
    assert solver["STEPS"] == [5, 7] and size["MIN_SIZE_TRAIN"] == [64]  # scaled with the length
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (8, 2, 0.5)
    assert cfg.SOLVER.STEPS == (5, 7) and cfg.INPUT.MIN_SIZE_TRAIN == (64,)


def test_flags_are_shown_as_they_run(train_and_read):
    table, plan, cfg = train_and_read("--epochs", "4", "--images-per-step", "3", *SMALL)
    assert table["schedule"] == "8 iterations, 4 times all images; learning rate 0.0075"
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (8, 3)
    assert cfg.SOLVER.BASE_LR == plan["SOLVER"]["BASE_LR"] == pytest.approx(0.0075)


@pytest.mark.usefixtures("without_steps")
def test_short_flags_are_values_of_the_plan(train_and_read):
    flags = ["--image-size", "96", "--batch", "2", "--epochs", "4", "--lr", "0.004", "--seed", "7"]
    table, plan, cfg = train_and_read(*flags, "--device", "cpu", "--model", "R18")
    assert table["model"].startswith("tood_R18_GN_small_data") and table["options"] == "SEED 7"
    assert table["image size"].startswith("96, longer side at most 128")
    assert table["schedule"] == "12 iterations, 4 times all images; learning rate 0.004"
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((96,), 96)
    assert (cfg.SOLVER.BASE_LR, cfg.SEED, cfg.MODEL.DEVICE) == (0.004, 7, "cpu")
    assert plan["SOLVER"]["IMS_PER_BATCH"] == 2


def test_models_have_short_names():
    for name, config in MODELS.items():
        assert find_base(Wishes(model=name)) == config and os.path.isfile(get_config_file(config))
    assert find_base(Wishes(config="mine.yaml")) == "mine.yaml" and find_base(Wishes()) == ""
    with pytest.raises(UserError, match="--model is N, and --config-file mine.yaml; omit one"):
        find_base(Wishes(model="N", config="mine.yaml"))
    with pytest.raises(
        UserError, match="no --model 'M'; the models are N, N_P2, Pico, S, R18, R50"
    ):
        find_base(Wishes(model="M"))


def test_an_epoch_has_the_images_that_are_trained_on(train_and_read, photo_folder):
    """A named config ignores images without objects; the engine counts the same."""
    path = photo_folder / "annotations.json"
    content = json.loads(path.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == content["images"][1]["id"])
    path.write_text(json.dumps(content))
    data = ["--val-data", "photos/annotations.json:photos/images"]
    flags = ["--epochs", "10", "--images-per-step", "1"]
    table, _, cfg = train_and_read("--config-file", CONFIG, *flags, *data, *TYPED[: len(SMALL)])
    assert cfg.SOLVER.MAX_ITER == 60 and table["schedule"].startswith("60 iterations, 10 times")
    options = engine_train.run_options(cfg)
    engine_train.prepare_datasets(options.data, training=True)
    records = engine_train.get_detection_dataset_dicts(
        options.data.train, options.data.filter_empty
    )
    assert len(records) == 6


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--epochs", "3", "SOLVER.MAX_ITER", "9"], "--epochs 3 sets SOLVER.MAX_ITER to 4, but "),
        (["--images-per-step", "2", "SOLVER.IMS_PER_BATCH", "3"], "IMS_PER_BATCH 3 is typed as"),
        (["--config-file", CONFIG, "--epochs", "3", "SOLVER.MAX_ITER", "9"], "9 is typed as well"),
        (["DATASETS.TEST", "('a',)"], "takes no DATASETS.TEST; name the data as --val-data"),
        (["DATASETS.TRAIN", "('a',)"], "takes no DATASETS.TRAIN; name the data as DATA"),
        (["--output", "a", "OUTPUT_DIR", "b"], "--output is a, and OUTPUT_DIR b; omit one"),
        (
            ["--val-data", "photos", "--val-share", "0.5"],
            "--val-share is 0.5, but nothing is split",
        ),
        (["--val-data", "photos", "--group", "x"], "--group is x, but nothing is split off"),
        (["--lr", "0.1", "SOLVER.BASE_LR", "0.2"], "--lr is 0.1, and SOLVER.BASE_LR 0.2; omit one"),
        (["--seed", "1", "SEED", "2"], "--seed is 1, and SEED 2; omit one of them"),
        (["--image-size", "8"], "--image-size is 8; it must be at least 32 pixels."),
    ],
)
@pytest.mark.usefixtures("without_steps")
def test_two_values_of_one_thing(photo_folder, tmp_path, argv, says):
    first = next((i for i, x in enumerate(argv) if x[0].isupper()), len(argv))
    message = app_error("train", "photos", *argv[:first], *TINY, *argv[first:])
    assert says in message
    assert not (tmp_path / "output").exists() and not (tmp_path / "a").exists()


def test_data_to_validate_on_keep_their_order(photo_folder):
    """A registered name before a folder."""
    DatasetCatalog.register("mine_registered", list)
    try:
        wishes = command.Wishes("photos", val_data=["mine_registered", "photos"])
        found = command.read_training_data(wishes)
    finally:
        DatasetCatalog.remove("mine_registered")
    assert found.val_names == ["mine_registered", "photos"] and len(found.val) == 1


@pytest.mark.parametrize("number, says", [(2, "asks for 2 GPUs, but this machine has 0"), (-1, "")])
def test_gpus_that_are_not_there(photo_folder, monkeypatch, number, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for dry_run in (False, True):
        message = complaint(tood.train, "photos", num_gpus=number, dry_run=dry_run)
        assert message.startswith("--num-gpus") and says in message
    for device, gpus in (("cuda", 0), ("cpu", 2)):
        message = complaint(engine_train._check_device, device, gpus)
        assert message.startswith(f"--num-gpus is {gpus}, but MODEL.DEVICE is {device};")


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.usefixtures("without_steps")
def test_no_gpu_and_no_report_are_said_once(photo_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = [*TYPED[2:], "SOLVER.MAX_ITER", "1"]  # without MODEL.DEVICE
    trained = tood.train("photos", output="out", options=options)
    assert caplog.text.count("No GPU found") == 1
    assert "tood report" not in (tmp_path / "out" / "log.txt").read_text() and trained.report
    trained = tood.train("photos", output="other", options=options, report=False)
    assert "tood report other" in (tmp_path / "other" / "log.txt").read_text()
    caplog.clear()
    tood.evaluate("out", num_gpus=0)
    tood.train("photos", output="new", options=options, dry_run=True)
    assert caplog.text.count("No GPU found") == 1  # the device of the evaluation is in its config
