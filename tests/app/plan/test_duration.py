"""Estimates of the duration of a training."""

import types

import pytest
from conftest import ROOT, TINY

from tood.app import cli
from tood.app.plan import duration as module
from tood.app.plan.duration import Duration, format_seconds, warn_if_short


def test_a_duration_is_one_line():
    assert str(Duration(800, 4, 2.1, 30.0)) == (
        "800 steps, about 30 min: 2.1 s a step, 4 evaluations of 30 s"
    )
    assert str(Duration(20, 1, 0.052, 4.0)) == (
        "20 steps, about 5 s: 0.052 s a step, 1 evaluation of 4 s"
    )
    assert str(Duration(90, 0, 2.0)) == "90 steps, about 3 min: 2 s a step"
    assert str(Duration(800, 4)) == "800 steps"  # a GPU
    times = {89.0: "89 s", 90.0: "2 min", 5399.0: "90 min", 9000.0: "2.5 h"}
    assert {x: format_seconds(x) for x in times} == times


def test_far_fewer_steps_than_the_rule_are_said():
    solver = types.SimpleNamespace(IMS_PER_BATCH=4)
    plan = types.SimpleNamespace(cfg=types.SimpleNamespace(SOLVER=solver), num_images=200)
    few = Duration(45, 4, 2.1, 15.0)
    line = "45 steps; the rule takes 800, about 29 min; expect little."
    assert warn_if_short(plan, few) == line
    line = "399 steps; the rule takes 800; expect little."
    assert warn_if_short(plan, Duration(399, 4)) == line
    assert warn_if_short(plan, Duration(400, 4)) == ""


@pytest.mark.parametrize(
    "error, row", [("out of memory", "time             1 steps\n"), ("a shape", "")]
)
def test_a_step_that_does_not_fit_is_the_users_choice(
    photo_folder, monkeypatch, capsys, error, row
):
    def fail(*_):
        raise RuntimeError(error)

    monkeypatch.setattr("tood.app.plan.memory.time_step", fail)
    monkeypatch.setattr(module, "time_step", fail)
    argv = ["train", "photos", "--dry-run", *TINY, "SOLVER.IMS_PER_BATCH", "8"]
    argv += ["SOLVER.MAX_ITER", "1"]
    if row:
        cli.main(argv)
        assert row in capsys.readouterr().out
    else:
        with pytest.raises(RuntimeError, match="a shape"):
            cli.main(argv)


def test_the_documented_plan_has_the_labels_of_the_table(photo_folder, capsys):
    cli.main(["train", "photos", "--dry-run", *TINY])
    printed = capsys.readouterr().out
    documented = (ROOT / "docs" / "own_data.md").read_text().partition("bccd --dry-run\n")[2]
    documented = documented.partition("```")[0]

    def labels(text):
        return {line[:17].strip() for line in text.splitlines() if line[:1].isalpha()} - {
            "Output: output/ph",
            "Output: output/bc",
        }

    assert "Output: output/" in printed and "Output: output/" in documented
    mine = {x for x in labels(printed) if not x.startswith("Nothing")}
    assert mine - {"options"} <= labels(documented)
    assert labels(documented) - mine <= {"ignored files"}  # of these data
    assert all(len(line) <= 80 for line in printed.splitlines() + documented.splitlines())
