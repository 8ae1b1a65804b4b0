"""Refuse calibration images that a model has seen: it misses fewer objects there than elsewhere."""

import logging
import os
import shlex
from typing import List, NamedTuple, Sequence

from tood.app.trained import Trained
from tood.checkpoint.locate import WEIGHTS
from tood.config.options import read_training_options
from tood.config.read import load_config, run_options
from tood.data.copies import find_alike, trained_on
from tood.data.datasets import list_images
from tood.inference.teacher import list_training_data
from tood.utils.errors import UserError, shorten
from tood.utils.logs import at_level
from tood.utils.tensors import read_tensors

MOST_COMPARED = 20_000  # images whose pixels are read, a few milliseconds each


class Seen(NamedTuple):
    """Data of a training, and the rule that may have ended it, by its config."""

    train: Sequence[str]  # names of data, those of its teachers as well
    val: Sequence[str]
    patience: int = 0  # evaluations without better weights that end the training, 0 for never
    max_iter: int = 0


def read_seen(trained: Trained) -> Seen:
    """Return the facts of a training, by its config and those of its teachers, which have passed on
    what they have learned.
    """
    with at_level("tood", logging.ERROR):  # the predictor says what there is to say of the config
        cfg = load_config(trained.config_file, trained.options())
    data, options = run_options(cfg).data, read_training_options(cfg)
    train = dict.fromkeys([*data.train, *list_training_data(options.active_teacher)])
    return Seen([*train], data.test, options.early_stop_patience, cfg.SOLVER.MAX_ITER)


def check_unseen(paths: Sequence[str], seen: Seen, weights: str) -> List[str]:
    """
    Args:
        paths: paths of the calibration images.
        weights: path of the model's checkpoint.

    Returns:
        sentences on what could not be checked.

    Raises:
        UserError: for training images, copies of them, and validation images if the weights, or
            the length of their training, were chosen by these.
    """
    notes = _refuse_shared(
        paths,
        seen.train,
        "that the model was trained on",
        "it misses less there than elsewhere; name others with --calibration-data",
    )
    name, why = os.path.basename(weights), "name others with --calibration-data"
    is_stopped, is_best = _was_stopped_early(weights, seen), _are_chosen(weights)
    if not (is_stopped or is_best):
        return notes
    if is_best and not is_stopped:
        folder = shlex.quote(os.path.dirname(weights) or ".")
        why += f", or take the last weights, {folder}/{WEIGHTS[1]}"
    chosen = f"{name} was chosen as the best" if is_best else f"the training of {name} was ended"
    return notes + _refuse_shared(paths, seen.val, f"to validate on, by which {chosen}", why)


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
        notes += _list_alike(known, paths, role)
    return notes


def _list_alike(known: Sequence[str], paths: Sequence[str], role: str) -> List[str]:
    if len(known) > MOST_COMPARED:
        return [f"Not checked: copies of the {len(known)} images {role} that were saved again."]
    alike = find_alike(known, paths)
    if not alike:
        return []
    mine, other = map(shorten, alike[0])
    return [
        f"{len(alike)} of the {len(paths)} calibration images look like images {role}, for example "
        f"{mine} like {other}: if they are copies, or frames of the same video, remove them, or "
        "what follows from them does not hold for new images."
    ]


def _are_chosen(weights: str) -> bool:
    """Return whether weights are the best ones of several evaluations: they contain their AP."""
    if os.path.basename(weights) == WEIGHTS[0]:
        return True
    return os.path.isfile(weights) and read_tensors(weights).get("AP") is not None


def _was_stopped_early(weights: str, seen: Seen) -> bool:
    """Return whether evaluations have ended the training of some weights."""
    path = os.path.join(os.path.dirname(weights), WEIGHTS[1])  # written at the end
    if not (seen.patience and os.path.isfile(path)):
        return False
    iteration = read_tensors(path).get("iteration")
    return isinstance(iteration, int) and iteration + 1 < seen.max_iter
