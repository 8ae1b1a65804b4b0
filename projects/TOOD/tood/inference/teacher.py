"""The teacher of a training, ``MODEL.TOOD.TEACHER``: a trained detector, checked to fit."""

from typing import Any, Dict, Sequence

from tood.config.check import get_key
from tood.data.annotations import join_names
from tood.inference.predictor import Predictor
from tood.modeling.teacher import Teacher, find_levels
from tood.utils.errors import UserError

KEY = "MODEL.TOOD.TEACHER"
# Both see the same images.
EQUAL_KEYS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")


def load_teacher(
    path: str, weight: float, *, student: Any, class_names: Sequence[str], values: Dict[str, Any]
) -> Teacher:
    """
    Args:
        path: output folder of a training, a checkpoint, or the name of a released model.
        weight: factor of its losses.
        student: the TOOD that is trained, or one without numbers.
        class_names: names of its classes.
        values: those of ``EQUAL_KEYS`` in its config, and "MODEL.DEVICE".

    Raises:
        UserError: if there is no such teacher, or if it finds other classes, takes other images, or
            does not have the levels of the student.
    """
    try:
        found = Predictor(path, device=values["MODEL.DEVICE"], score_threshold="from-config")
    except UserError as error:
        raise UserError(f"{KEY} cannot be used: {error.sentence()}") from error
    if found.class_names != list(class_names):
        raise UserError(
            f"{KEY}, {path}, finds {join_names(found.class_names)}; the classes of this training "
            f"are {join_names(class_names)}; name a detector of the same classes."
        )
    for key in EQUAL_KEYS:
        value = get_key(found.cfg, key)
        if value != values[key]:
            raise UserError(
                f"{KEY}, {path}, has {key} {value}, and this training {values[key]}; name a "
                "detector with the same value: both see the same images."
            )
    try:
        find_levels(found.model.strides, student.strides)
        if student.size_divisibility % found.model.size_divisibility:
            raise ValueError(
                f"it takes images of multiples of {found.model.size_divisibility} pixels, not "
                f"{student.size_divisibility}"
            )
    except ValueError as error:
        raise UserError(f"{KEY}, {path}, does not fit: {error}; name another detector.") from error
    return Teacher(found.model, weight)
