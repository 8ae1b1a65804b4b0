"""tools/count_deaths.py: what counts as dead, and a short count."""

import count_deaths
import pytest
from conftest import CONFIG, TINY


def steps_of(*mean_ious, **last):
    steps = [
        dict(mean_iou=x, objects_without_positive=0.5, grad_norm=3.0 + i, largest_side=90.0)
        for i, x in enumerate(mean_ious)
    ]
    steps[-1].update(last)
    return steps


@pytest.mark.parametrize(
    "steps, dead",
    [
        (steps_of(*[0.01] * 14, 0.3, 0.3), False),
        (steps_of(*[0.30] * 14, 0.04, 0.05), True),  # the last two of sixteen count
        (steps_of(0.3, 0.3, 0.3), False),
        ([*steps_of(0.3, 0.3), {"not finite": True}], True),
        ([*steps_of(0.3, 0.3), {"objects_without_positive": 1.0}], True),  # no positives at all
    ],
)
def test_dead(steps, dead):
    assert count_deaths.is_dead(steps) == dead


def test_summary_and_table():
    found = count_deaths.summary(steps_of(0.1, 0.2, 0.4, largest_side=1e9))
    assert found == {
        "dead": False,
        "mean_iou": 0.4,
        "without_positive": 0.5,
        "largest_grad_norm": 5.0,
        "largest_side": 1e9,
    }
    dead = dict(found, dead=True, mean_iou=0.0, largest_grad_norm=7.0)
    *_, row = count_deaths.markdown_table({"a.json": [found, dead]}).splitlines()
    assert row == "| a.json | 1 of 2 | 0.200 | 50% | 6 |"


def test_a_training_is_recorded(shapes, fresh_loggers):
    entry = f"{shapes}/annotations.json:{shapes}/images"
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"]
    steps = count_deaths.train(CONFIG, entry, [*TINY, *sizes], seed=1, iterations=4)
    assert len(steps) == 4
    keys = {"mean_iou", "objects_without_positive", "grad_norm", "largest_side", "loss_box_reg"}
    assert all(keys <= set(step) for step in steps)
    assert all(step["grad_norm"] > 0 and step["largest_side"] > 1 for step in steps)
    assert not count_deaths.is_dead(steps)
    again = count_deaths.train(CONFIG, entry, [*TINY, *sizes], seed=1, iterations=4)
    assert steps == again
