"""Calibrated scores in use: the curves that ``tood calibrate`` has written beside the weights. They
add values to detections; raw scores, thresholds and the order of detections stay as they are.
"""

import json
import os
import shlex
from typing import Dict, List, NamedTuple

import numpy as np

from tood.inference.drift import STATISTICS
from tood.inference.thresholds import Model, find_difference, find_weights_hash
from tood.utils.errors import UserError
from tood.utils.reading import MAX_TEXT, guard_reading, read_regular

CALIBRATION = "calibration.json"
# Field of the Instances -> the key of its curve, and the key in JSON.
FIELDS = {
    "calibrated_scores": ("precision", "calibrated_score"),
    "expected_ious": ("iou", "expected_iou"),
}


class Curve(NamedTuple):
    """A function of a score: linear between points, constant beyond them."""

    scores: np.ndarray  # (P,), ascending
    values: np.ndarray  # (P,), in [0, 1]

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Return the values at some scores."""
        return np.interp(scores, self.scores, self.values)

    def as_values(self) -> Dict:
        """Return plain values, for JSON."""
        return {name: x.tolist() for name, x in self._asdict().items()}


class Calibration(NamedTuple):
    """The content of a calibration that detections and the watch need."""

    path: str
    curves: List[Dict[str, Curve]]  # of each class, by the keys in FIELDS
    thresholds: List[float]  # (K,), those in use when it was written
    reference: np.ndarray  # (M, S), of :func:`tood.inference.drift.measure`, M images
    seed: int

    def add_values(self, instances) -> None:
        """Set the fields of ``FIELDS`` of Detectron2's ``Instances``, on the CPU."""
        scores, classes = instances.scores.numpy(), instances.pred_classes.numpy()
        for field, (key, _) in FIELDS.items():
            values = np.zeros(len(scores), dtype=np.float32)
            for k in np.unique(classes):
                values[classes == k] = self.curves[k][key].apply(scores[classes == k])
            instances.set(field, instances.scores.new_tensor(values))


def find_calibration(model: Model) -> str:
    """Return the path that the calibration of a model has, or would have."""
    return os.path.join(model.folder, CALIBRATION)


def read_calibration(model: Model, settings: Dict[str, object]) -> Calibration:
    """Return the calibration beside a model.

    Args:
        settings: settings of the inference, keys of the config and their values.

    Raises:
        UserError: if the file does not exist, cannot be read, or is on other weights, classes or
            settings.
    """
    path = find_calibration(model)
    command = f"tood calibrate {shlex.quote(model.weights)} --calibration-data DATA"
    if not os.path.exists(path):
        raise UserError(f"There is no {path}; {command} writes it.")
    again = f"{command} --overwrite writes it again"
    with guard_reading(path, again):
        content = json.loads(read_regular(path, MAX_TEXT))
        known, used = find_weights_hash(content), dict(content["settings"])
        found = {x["name"]: x for x in content["classes"]}
    if known != model.compute_hash():
        raise UserError(f"{path} is on other weights than {model.weights}; {again}.")
    different = find_difference(settings, used)
    if different:
        raise UserError(f"{path} is for {different}; {again}.")
    missing = [name for name in model.class_names if name not in found]
    if missing:
        raise UserError(f"{path} has no class {missing[0]!r}; {again}.")
    with guard_reading(path, again):
        mine = [found[name] for name in model.class_names]
        return Calibration(
            path,
            [{key: _read_curve(x[key]) for key, _ in FIELDS.values()} for x in mine],
            [float(x["score_threshold"]) for x in mine],
            _read_reference(content["reference"]["values"]),
            int(content["reference"]["seed"]),
        )


def _read_curve(content: Dict) -> Curve:
    curve = Curve(*(np.array(content[name], dtype=float) for name in Curve._fields))
    scores, values = curve
    is_sound = scores.ndim == 1 and scores.shape == values.shape and len(scores)
    if not (is_sound and (np.diff(scores) >= 0).all() and ((values >= 0) & (values <= 1)).all()):
        raise ValueError("a curve is not one of scores and values from 0 to 1")
    return curve


def _read_reference(content: List) -> np.ndarray:
    reference = np.array(content, dtype=float)
    number = len(STATISTICS)
    if reference.ndim != 2 or reference.shape[1] != number or not np.isfinite(reference).all():
        raise ValueError(f"the reference does not have {number} numbers for each image")
    return reference
