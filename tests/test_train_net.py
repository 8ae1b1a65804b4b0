"""``train_net.py`` as its users call it: small real runs, and mistakes."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY

import train_net

CONFIG = str(ROOT / "configs" / "tood_R18_GN_small_data.yaml")


@pytest.fixture(autouse=True)
def quiet_loggers():
    """Detectron2 adds handlers for each output folder; later tests must not write there."""
    yield
    for name in ("detectron2", "fvcore", "tood"):
        logging.getLogger(name).handlers.clear()
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()


@pytest.fixture
def command(shapes, tmp_path):
    """Builds the arguments of a run of four iterations on the shapes."""
    entry = f"{shapes}/annotations.json:{shapes}/images"

    def build(*flags, opts=(), train=entry, val=entry):
        data = ["--train-data", train, "--val-data", val]
        sizes = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
        run = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "SOLVER.IMS_PER_BATCH", "2"]
        classes = ["MODEL.TOOD.NUM_CLASSES", "4", "MODEL.TOOD.WARMUP_ITERS", "2"]
        output = ["OUTPUT_DIR", str(tmp_path / "out")]
        return [
            *("--config-file", CONFIG, *flags, *data),
            *(*TINY, *sizes, *run, *classes, *output, *opts),
        ]

    return build


def error_of(argv):
    with pytest.raises(SystemExit) as error:
        train_net.cli(argv)
    message = str(error.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_train_evaluate_and_resume(command, tmp_path):
    train_net.cli(command())
    out = tmp_path / "out"
    log = (out / "log.txt").read_text()
    assert "AP50" in log
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box_reg", "bbox/AP"} <= set().union(*metrics)
    assert (out / "inference" / "coco_instances_results.json").is_file()

    # On with it: the schedule starts where it stopped, not at zero.
    train_net.cli(command("--resume", opts=["SOLVER.MAX_ITER", "6"]))
    log = (out / "log.txt").read_text()
    assert "Starting training from iteration 4" in log

    # The checkpoint alone gives the figures of the end of training.
    expected = json.loads((out / "metrics.json").read_text().splitlines()[-1])["bbox/AP"]
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "eval")]
    args = train_net.parse_args(command("--eval-only", opts=weights))
    results = train_net.main(args)
    assert results["bbox"]["AP"] == pytest.approx(expected, nan_ok=True)


def test_same_seed_same_weights(command, tmp_path):
    states = []
    for run in ("a", "b"):
        out = tmp_path / run
        train_net.cli(command(opts=["OUTPUT_DIR", str(out), "TEST.EVAL_PERIOD", "0"]))
        states.append(torch.load(out / "model_final.pth", map_location="cpu")["model"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_resume_without_a_checkpoint_says_so(command, tmp_path):
    train_net.cli(command("--resume", opts=["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "--resume: no checkpoint in" in log and "training from the start" in log


def test_no_gpu_is_said_and_the_cpu_is_used(command, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("WARNING", logger="tood"):
        cfg = train_net.load_config(CONFIG)
    assert cfg.MODEL.DEVICE == "cpu"
    assert "No GPU found" in caplog.text


def test_eval_only_needs_weights(command, tmp_path):
    assert "--eval-only needs weights" in error_of(command("--eval-only"))
    assert "--eval-only needs weights" in error_of(command("--eval-only", "--resume"))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there(command):
    message = error_of(command(opts=["MODEL.WEIGHTS", "no/such.pth"]))
    assert "no/such.pth" in message and "MODEL.WEIGHTS" in message


def test_missing_config_file():
    assert "no.yaml does not exist" in error_of(["--config-file", "no.yaml"])


@pytest.mark.parametrize(
    "opts, says",
    [
        (["MODEL.TOOD.NUM_CLASES", "3"], "MODEL.TOOD.NUM_CLASES"),
        (["SOLVER.MAX_ITER", "many"], "many"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER"),
    ],
)
def test_wrong_option(opts, says):
    assert says in error_of(["--config-file", CONFIG, *opts])


def test_wrong_data_leaves_no_output(command, tmp_path):
    message = error_of(command(train=f"{tmp_path}/missing.json"))
    assert "missing.json cannot be read" in message
    assert not (tmp_path / "out").exists()


def test_exit_status_and_message_of_the_command(shapes, tmp_path, command):
    # An image that a worker process cannot read, in a process of its own.
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (shapes / "images").iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:200])
    argv = command(
        train=f"{shapes}/annotations.json:{broken}", opts=["DATALOADER.NUM_WORKERS", "1"]
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *argv], capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: The image ") and "cannot be used" in last
    assert str(broken) in last
