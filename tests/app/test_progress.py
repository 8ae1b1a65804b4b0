"""Output of ``tood train``: one live line, one line per evaluation, and what to do next."""

import importlib
import io
import logging
import os
import re
import types

import pytest
from conftest import SMALL
from detectron2.utils.events import EventStorage
from tqdm import tqdm

import tood
from tood.app import cli
from tood.app.plan.advice import Advice, format_advice
from tood.app.trained import Trained
from tood.engine import progress as module
from tood.engine.progress import Progress, count_evaluations, describe_evaluation, format_clock
from tood.utils.logs import WarningsAboveBars, keep_logs_to_files

demo = importlib.import_module("tood.app.demo")  # tood.demo is its function


class Stream(io.StringIO):
    encoding = "utf-8"

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def stepped(monkeypatch):
    """A function that shows four steps of 10 s on a stream, with evaluations of 5 s after two."""

    def show(stream):
        clock = [0.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr("sys.stdout", stream)
        trainer = types.SimpleNamespace(
            start_iter=0,
            max_iter=4,
            evaluated=-1,
            stopped_early=False,
            options=types.SimpleNamespace(eval_period=2, ims_per_batch=2),
            _trainer=types.SimpleNamespace(data_loader=None),
        )
        progress = Progress()
        progress.trainer = trainer
        with EventStorage() as storage, progress.shown():
            progress.before_train()
            for trainer.iter in range(4):
                progress.before_step()
                storage.put_scalar("total_loss", 2.0 - trainer.iter / 4)
                clock[0] += 10
                progress.after_step()
                if trainer.iter % 2:
                    print("a table of a library")
                    clock[0] += 5
                    AP = (19.24, 18.0)[trainer.iter // 2]
                    trainer.evaluated = trainer.iter
                    trainer.best_results = {"bbox": {"AP": AP, "AP50": 41.0}}
                    trainer.best = types.SimpleNamespace(AP=19.24, iteration=1)
        return stream.getvalue()

    return show


def test_lines_without_a_terminal(stepped):
    """Printed at the first step, and then every 30 s."""
    assert stepped(Stream(is_terminal=False)).splitlines() == [
        "step 1/4 · loss 2.00 · 0:30 left",
        "step 2: AP 19.2, AP50 41.0; best so far",
        "step 4/4 · loss 1.62 · AP 19.2 (best 19.2) · 0:05 left",
        "step 4: AP 18.0, AP50 41.0; best 19.2 at step 2",
    ]


def test_a_bar_on_a_terminal(stepped, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(tqdm, "mininterval", 0, raising=False)
    text = stepped(Stream(is_terminal=True))
    assert "step 2: evaluating ..." in text
    lines = [x.strip() for x in re.split(r"[\r\n]", text)]
    assert "step 2: AP 19.2, AP50 41.0; best so far" in lines
    assert "step 4: AP 18.0, AP50 41.0; best 19.2 at step 2" in lines
    assert "a table" not in text and text.endswith("\r")  # nothing of it is left


@pytest.mark.parametrize("columns", [30, 45, 60, 200])
def test_a_narrow_terminal_keeps_the_time_that_is_left(stepped, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(tqdm, "update", lambda self, n=1: self.refresh())  # not now and then
    text = stepped(Stream(is_terminal=True))
    last = [x for x in text.split("\r") if "step 3/4" in x][-1].rstrip()
    assert "AP 19.2" in last and last.endswith(" left")
    assert ("(best 19.2)" in last) == (columns > 50) and last.startswith(" " * 11) == (columns > 60)


def test_times_are_those_of_a_clock():
    times = {9.4: "0:09", 130: "2:10", 754: "12:34", 3730: "1:02:10"}
    assert {seconds: format_clock(seconds) for seconds in times} == times


def test_evaluations_are_counted_with_the_last():
    assert [count_evaluations(*x) for x in ((72, 18), (73, 18), (1, 18), (5, 0))] == [4, 5, 1, 1]


def test_an_evaluation_without_objects():
    nothing = {"bbox": {"AP": float("nan")}}
    line = "step 8: evaluated; AP is not defined without objects"
    assert describe_evaluation(7, nothing, types.SimpleNamespace(AP=None, iteration=-1)) == line


def test_warnings_of_the_package_alone_reach_the_terminal(monkeypatch):
    stream = Stream(is_terminal=False)
    monkeypatch.setattr("sys.stdout", stream)
    loggers = [logging.getLogger(name) for name in ("tood", "fvcore")]
    before = [list(x.handlers) for x in loggers]
    try:
        for logger in loggers:
            logger.handlers[:] = [logging.StreamHandler(stream)]
        keep_logs_to_files(["tood", "fvcore"])
        assert all(isinstance(x.handlers[0], WarningsAboveBars) for x in loggers)
        logging.getLogger("tood.engine").warning("Resumed with other values.")
        logging.getLogger("tood.engine").info("saved")
        logging.getLogger("fvcore.common").warning("not found in the checkpoint")
    finally:
        for logger, handlers in zip(loggers, before):
            logger.handlers[:] = handlers
    assert stream.getvalue() == "warning: Resumed with other values.\n"


@pytest.mark.slow
def test_a_training_prints_little_and_logs_all(photo_folder, tmp_path, capsys):
    options = [*SMALL, "TEST.EVAL_PERIOD", "2"]
    cli.main(["train", "photos", "--output", "brief", "--epochs", "2", "--no-report", *options])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "Output: brief"
    lines = lines[lines.index(lines[1], 2) + 1 :]  # after the plan
    assert lines.pop(0).startswith("3 steps; the rule takes 150, about ")
    assert re.fullmatch(r"step 1/3 · epoch 1/2 · loss \d\.\d\d · 0:\d\d left", lines[0])
    evaluated = [x for x in lines if re.match(r"step \d: AP \d+\.\d, AP50 \d+\.\d; best", x)]
    assert [x[:6] for x in evaluated] == ["step 2", "step 3"]
    assert "Weights: brief/model_best.pth, AP " in printed.out
    advice = lines[lines.index("What next:") :]
    assert advice[1].startswith("- ") and "Export it" not in printed.out
    assert len(lines) < 20 and "[" not in printed.out + printed.err
    log = (tmp_path / "brief" / "log.txt").read_text()
    assert "Average Precision  (AP) @[ IoU=0.50:0.95" in log and "Saving checkpoint" in log
    # The loggers are as before: nothing is left for the next run.
    assert not logging.getLogger("tood").handlers and tood.load("brief").advice == ""
    assert format_advice([Advice("a", "b")]) == "What next:\n- a\n    b"


def test_the_demo_runs_twice(tmp_path, monkeypatch, capsys):
    """Each time in another folder, which it prints; at the end, the commands for others."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def train(data, *, config, output):
        os.makedirs(output)
        seen.append((data, config, output))
        return Trained("", "w.pth", output, {"AP": 84.25}, f"{output}/report/report.html")

    monkeypatch.setattr(demo, "write_shapes", lambda *_: None)
    monkeypatch.setattr(demo, "train", train)
    tood.demo()
    text = str(tood.demo())
    assert seen[1] == ("output/demo-2/shapes", "demo_shapes", "output/demo-2")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Drawing 500 + 100 images of shapes in output/demo/shapes ..."
    assert printed[3].endswith("--config-file demo_shapes --output output/demo-2")
    assert "AP 84.2; look at\n  output/demo-2/predictions.png\n" in text
    for command in ("check photos/ ", "train photos/ ", "predict output/photos new_photos/ "):
        assert f"\n  tood {command}" in text
    assert all(len(line) <= 80 for line in text.splitlines())
