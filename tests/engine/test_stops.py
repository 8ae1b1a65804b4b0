"""Signals to the whole group of processes, as timeout(1), systemd, schedulers and Ctrl-C send them:
at each stage of a training, once and twice.
"""

import shlex
import signal
import sys

import pytest
import torch
from conftest import SMALL
from stages import run_program

from tood.utils.signals import TOGETHER

TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL
LAST = 5  # iteration
VALUES = {
    **dict(zip(SMALL[::2], SMALL[1::2])),
    **{"DATALOADER.NUM_WORKERS": "2", "SOLVER.IMS_PER_BATCH": "2", "SEED": "1"},
    **{"SOLVER.MAX_ITER": str(LAST + 1), "TEST.EVAL_PERIOD": "3", "MODEL.TOOD.ATSS_ITERS": "2"},
    **{"SOLVER.STEPS": "()", "SOLVER.CHECKPOINT_PERIOD": "100"},
}
OPTIONS = [x for item in VALUES.items() for x in item]
READING = "tood.app.train:read_training_data"
BUILDING = "tood.engine.trainer:Trainer.build_experiment"
FORWARD = "tood.modeling.detector:TOOD.forward"
BETWEEN = "tood.engine.hooks:StopOnSignal.before_step"
BACKWARD = "torch:Tensor.backward"
EVALUATION = "tood.evaluation.coco:CleanCOCOEvaluator.evaluate"
INFERENCE = "tood.evaluation.coco:CleanCOCOEvaluator.process"
SAVING = "torch:save."  # before the file gets its name
REPORT = "tood.app.train:report_on"
DRAWING = "tood.app.draw:draw_predictions"


@pytest.fixture
def train(warm_python, shapes, tmp_path, monkeypatch):
    """Train in the folder "out"; return exit status, output and the command that continues."""
    monkeypatch.chdir(tmp_path)

    def run(*stages, flags=()):
        argv = ["train", *flags, str(shapes), "--output", str(tmp_path / "out"), *OPTIONS]
        return run_program(warm_python, argv, tmp_path / "log", stages)

    return run


def check_stop(status, log, number, command):
    """Check the line of the log, and the command."""
    assert status == 128 + number, log
    assert "Traceback" not in log and "DataLoader" not in log
    *_, stopped, last = log.splitlines()
    assert stopped == f"error: stopped by {signal.Signals(number).name}; continue with"
    assert log.count("stopped by") == 1 and last == command


def list_files(folder):
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


def resume_command(tmp_path, shapes):
    return plain_command(tmp_path, shapes).replace(" train ", " train --resume ", 1)


def plain_command(tmp_path, shapes):
    words = ["train", str(shapes), "--output", str(tmp_path / "out"), *OPTIONS]
    return shlex.join([sys.executable, "-m", "tood", *words])


def read_final(tmp_path):
    return torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def whole(warm_python, shapes, tmp_path_factory):
    """The final weights of a training that is not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    argv = ["train", str(shapes), "--output", str(folder / "out"), "--no-report", *OPTIONS]
    status, log = run_program(warm_python, argv, folder / "log")
    assert status == 0, log
    return read_final(folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage, number", [(READING, TERM), (READING, INT), (BUILDING, HUP)])
def test_before_the_first_step(train, shapes, tmp_path, stage, number):
    """The plain command is the one that continues until the folder is used."""
    status, log = train((stage, 1, number, 0))
    command = plain_command if stage == READING else resume_command
    check_stop(status, log, number, command(tmp_path, shapes))
    assert not [x for x in list_files(tmp_path / "out") if x.endswith((".part", ".pth"))]
    if stage == READING:
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages, iteration",
    [
        ([(FORWARD, 6, TERM, 0)], 1),  # four calls are the plan's
        ([(FORWARD, 6, INT, 0)] * 2, 1),  # two at a time, as timeout(1) sends them, are one
        ([(BACKWARD, 6, INT, 0)], 1),
        ([(EVALUATION, 1, TERM, 0)], 2),
        ([(SAVING, 2, HUP, 0)], 2),  # the best weights, after the evaluation
        # The second one while the checkpoint of the first is written.
        ([(BETWEEN, 3, INT, 0), (SAVING, 2, INT, TOGETHER)], 1),
    ],
)
def test_a_training_stops_with_a_checkpoint(train, whole, shapes, tmp_path, stages, iteration):
    number = stages[0][2]
    status, log = train(*stages, flags=["--no-report"])
    command = resume_command(tmp_path, shapes)
    check_stop(status, log, number, command.replace("--resume", "--resume --no-report"))
    files = list_files(tmp_path / "out")
    assert not [x for x in files if x.endswith(".part")] and "model_final.pth" not in files
    last = (tmp_path / "out" / "last_checkpoint").read_text()
    assert last in files and last == f"model_{iteration:07d}.pth"
    if stages[0][0] == EVALUATION:  # bit by bit as if nothing had happened
        status, log = train(flags=["--resume", "--no-report"])
        assert status == 0, log
        for name, weight in read_final(tmp_path).items():
            assert torch.equal(weight, whole[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stage, number", [(REPORT, TERM), (DRAWING, INT)])
def test_while_a_report_is_made(train, shapes, tmp_path, stage, number):
    status, log = train((stage, 1, number, 0))
    check_stop(status, log, number, resume_command(tmp_path, shapes))
    files = list_files(tmp_path / "out")
    assert "model_final.pth" in files and "predictions.png" not in files


@pytest.mark.slow
def test_a_second_signal_ends_at_once(train, shapes, tmp_path):
    """The signal arrives in a long step; no file of it remains."""
    status, log = train((FORWARD, 5, TERM, 0), (BACKWARD, 5, TERM, TOGETHER))
    check_stop(status, log, TERM, resume_command(tmp_path, shapes))
    assert "SIGTERM again: stopping at once, without another checkpoint." in log
    assert not [x for x in list_files(tmp_path / "out") if x.endswith((".part", ".pth"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, call, purpose",
    [(BACKWARD, 5, "training"), (INFERENCE, 1, "evaluation")],
)
def test_a_killed_worker_is_one_sentence(train, shapes, tmp_path, stage, call, purpose):
    """The training continues from a checkpoint of the last step."""
    flags = ["--no-report", "--val-data", str(shapes)]
    status, log = train((stage, call, KILL, 0), flags=flags)
    last = (tmp_path / "out" / "last_checkpoint").read_text()
    assert (status, "Traceback" in log, "DataLoader worker" in log) == (1, False, False), log
    (line,) = [x for x in log.splitlines() if x.startswith("error: ")]
    assert f"images for the {purpose} was killed" in line and "NUM_WORKERS" in line
    assert line.endswith(f"--resume continues from {last}.")
    assert f"Stopped after {int(last[6:13]) + 1} iterations;" in log
    assert purpose != "evaluation" or last == "model_0000002.pth"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, call, number, command",
    [
        (
            "tood.app.predict:write_image",
            2,
            TERM,
            "predict {trained} {shapes}/images --output {out}",
        ),
        ("tood.app.report.make:write_whole", 1, INT, "report {trained} --output {out}"),
        ("torch.jit:save.", 1, TERM, "export {trained} --output {out}/x.ts --format torchscript"),
        ("tood.app.convert.write:_copy", 2, INT, "convert {shapes} --output {out} --to yolo"),
    ],
)
def test_other_commands(warm_python, trained, shapes, tmp_path, stage, call, number, command):
    """Files that were written are whole."""
    words = command.format(trained=trained, shapes=shapes, out=tmp_path / "out").split()
    stages = [(stage, call, number, 0)]
    status, log = run_program(warm_python, words, tmp_path / "log", stages)
    assert status == 128 + number, log
    assert log.splitlines()[-1] == f"error: stopped by {signal.Signals(number).name}."
    assert "Traceback" not in log and log.count("error: ") == 1
    names = {"predict": ["00000.jpg"]}.get(words[0], [])
    assert [x for x in list_files(tmp_path / "out") if x != ".tood-output"] == names
