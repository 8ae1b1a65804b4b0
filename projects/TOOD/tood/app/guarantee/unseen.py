"""Refuse calibration images that a model has seen: it misses fewer objects there than elsewhere."""

import logging
import os
import shlex
from typing import List, Sequence

from tood.app.trained import Trained
from tood.config.options import DataOptions
from tood.config.read import load_config, run_options
from tood.data.copies import trained_on
from tood.data.datasets import list_images
from tood.inference.locate import WEIGHTS
from tood.utils.errors import UserError, shorten
from tood.utils.files import read_tensors
from tood.utils.logs import at_level


def read_seen(trained: Trained) -> DataOptions:
    """Return the data that a model was trained and validated on, by its config."""
    with at_level("tood", logging.ERROR):  # the predictor says what there is to say of the config
        cfg = load_config(trained.config_file, trained.options())
    return run_options(cfg).data


def check_unseen(
    paths: Sequence[str], train: Sequence[str], val: Sequence[str], weights: str
) -> List[str]:
    """
    Args:
        paths: of the calibration images.
        train, val: names of the data that the model was trained and validated on.
        weights: path of its checkpoint.

    Returns:
        sentences on what could not be checked.

    Raises:
        UserError: for training images, copies of them, and validation images if the weights were
            chosen by these.
    """
    notes = _refuse_shared(
        paths,
        train,
        "that the model was trained on",
        "it misses less there than elsewhere; name others with --calibration-data",
    )
    if not _are_chosen(weights):
        return notes
    folder = shlex.quote(os.path.dirname(weights) or ".")
    return notes + _refuse_shared(
        paths,
        val,
        f"to validate on, by which {os.path.basename(weights)} was chosen as the best",
        f"name others with --calibration-data, or take the last weights, {folder}/{WEIGHTS[1]}",
    )


def _refuse_shared(paths: Sequence[str], entries: Sequence[str], role: str, why: str) -> List[str]:
    notes = []
    for entry in entries:
        known = list_images(entry)
        shared = trained_on(known, paths)
        if shared:
            raise UserError(
                f"{len(shared)} of the {len(paths)} calibration images are images {role}, or "
                f"copies of them, for example {shorten(shared[0])}: {why}."
            )
        if not known:
            notes.append(
                f"Not checked: the images {role} ({entry}) are not on this machine, or not named "
                "by a file; none of the calibration images may be among them."
            )
    return notes


def _are_chosen(weights: str) -> bool:
    """Return whether weights are the best ones of several evaluations: they contain their AP."""
    if os.path.basename(weights) == WEIGHTS[0]:
        return True
    return os.path.isfile(weights) and read_tensors(weights).get("AP") is not None
