"""The last lines of a training's log: its result, its curves, and the next commands."""

import os
import shlex
from typing import List, Optional

from tood.engine.hooks import BestWeights

NOTHING_FOUND = (
    "AP is 0: the model finds nothing yet. Train longer, or look at the data as the trainer sees "
    "it with tood check DATA --output data.png."
)


def closing_lines(folder: str, best: BestWeights, num_test_sets: int) -> List[str]:
    """Return a line for each question.

    Args:
        folder: the output folder.
        best: the best weights; its AP is None if nothing was evaluated.
        num_test_sets: number of validation data sets.
    """
    weights = best.path if best.AP is not None else os.path.join(folder, "model_final.pth")
    return [
        _result(weights, best.AP, best.iteration, num_test_sets),
        f"Look at the curves of losses and metrics: tensorboard --logdir {shlex.quote(folder)}",
        f"Next, find objects in images: tood predict {shlex.quote(weights)} IMAGES",
    ]


def make_report_hint(folder: str) -> str:
    """Return the line that names the command of the report, if nothing else writes it."""
    return f"See what it gets wrong, and why: tood report {shlex.quote(folder)}"


def _result(weights: str, AP: Optional[float], iteration: int, num_test_sets: int) -> str:
    if AP is None:
        reason = "" if num_test_sets else ", because there are no validation data (--val-data)"
        return f"Final weights: {weights}; nothing was evaluated{reason}."
    return (
        f"Best weights: {weights}, AP {AP:.2f} after iteration {iteration}."
        + (f" Of {num_test_sets} data sets, the first counts." if num_test_sets > 1 else "")
        + (f" {NOTHING_FOUND}" if AP == 0 else "")
    )
