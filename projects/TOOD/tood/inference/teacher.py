"""The teacher of a training, ``MODEL.TOOD.TEACHER``: a trained detector, checked to fit."""

import contextlib
import math
import os
from typing import Any, Dict, Iterator, List, Sequence, Set, Tuple

from tood.checkpoint.locate import find_model, find_moved
from tood.config.check import get_key
from tood.config.read import read_origin
from tood.data.annotations import join_names
from tood.data.datasets import list_images
from tood.inference.predictor import Predictor
from tood.modeling.teacher import Teacher, find_levels
from tood.utils.errors import UserError

KEY = "MODEL.TOOD.TEACHER"
NOT_CHECKED = "not checked whether the teacher was trained on images to validate on"
# Both see the same images.
EQUAL_KEYS = ("INPUT.FORMAT", "INPUT.BIT_DEPTH", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")


def load_teacher(
    path: str, weight: float, *, student: Any, class_names: Sequence[str], values: Dict[str, Any]
) -> Teacher:
    """
    Args:
        path: output folder of a training, a checkpoint, or the name of a released model.
        weight: factor of its losses.
        student: the TOOD that is trained, or one without numbers; None: its levels are not checked.
        class_names: names of its classes.
        values: those of ``EQUAL_KEYS`` in its config, "MODEL.DEVICE" and "OUTPUT_DIR".

    Raises:
        UserError: if the teacher does not exist, finds other classes, takes other images,
            does not have the levels of the student, or would be overwritten.
    """
    with named():
        found = Predictor(path, device=values["MODEL.DEVICE"], score_threshold="from-config")
    about = f"The detector {path} ({KEY})"
    if os.path.realpath(os.path.dirname(found.options.weights)) == os.path.realpath(
        values["OUTPUT_DIR"]
    ):
        raise UserError(f"{about} is in the output folder of this training; name another one.")
    if found.class_names != list(class_names):
        raise UserError(
            f"{about} finds {join_names(found.class_names)}; the classes of this training are "
            f"{join_names(class_names)}; name a detector of the same classes."
        )
    for key in EQUAL_KEYS:
        value = get_key(found.cfg, key)
        if not _is_equal(value, values[key]):
            raise UserError(
                f"{about} has {key} {value}, and this training {values[key]}; name a detector with "
                "the same value: both see the same images."
            )
    if student is not None:
        _check_levels(found.model, student, about)
    return Teacher(found.model, weight)


def list_training_data(path: str) -> List[str]:
    """Return the names of the data sets that a teacher and its own teachers were trained on, by
    their configs, and the path of one that is not there any more.

    Args:
        path: as of :func:`load_teacher`; "" for no teacher.
    """
    names: List[str] = []
    seen: Set[str] = set()
    while path and path not in seen:  # a folder may be that of an earlier student
        seen.add(path)
        try:
            config_file = _find_config(os.path.expanduser(path))
            train, teacher = read_origin(config_file)
        except UserError:
            return [*names, path]
        names += [find_moved(name, os.path.dirname(config_file)) for name in train]
        path = teacher
    return names


def _find_config(path: str) -> str:
    """Return the config of a teacher, whose checkpoint may be gone."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    beside = os.path.join(folder, "config.yaml")
    is_there = os.path.exists(path) and os.path.isfile(beside)
    return beside if is_there else find_model(path).config_file


def list_taught_images(path: str) -> Tuple[List[str], List[str]]:
    """
    Returns:
        the images that a teacher and its own teachers were trained on, as far as they are there,
        and the names of the data sets of which none is, or whose files are not known.
    """
    found = {name: list_images(name) for name in list_training_data(path)}
    images = [image for paths in found.values() for image in paths]
    return images, [name for name, paths in found.items() if not paths]


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Name the key in the UserError of a teacher that cannot be used."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{KEY} cannot be used: {error.sentence().partition(';')[0].rstrip('.')}; name the "
            "output folder of a training, or a checkpoint in it."
        ) from error


def _is_equal(a: Any, b: Any) -> bool:
    """Compare numbers as far as they are rounded."""
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_is_equal, a, b))
    return a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-6))


def _check_levels(teacher: Any, student: Any, about: str) -> None:
    try:
        find_levels(teacher.strides, student.strides)
        if student.size_divisibility % teacher.size_divisibility:
            raise ValueError(
                f"it takes images of multiples of {teacher.size_divisibility} pixels, not "
                f"{student.size_divisibility}"
            )
    except ValueError as error:
        raise UserError(f"{about} does not fit: {error}; name another detector.") from error
