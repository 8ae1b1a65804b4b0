"""Precision, recall and F1 over the score, the threshold of the best F1, and calibration: all at an
IoU of 0.5, counted from COCO's matches.

Shapes: D detections of a class, S thresholds, K classes.
"""

from typing import List, NamedTuple

import numpy as np

from tood.app.report.intervals import RECALLS
from tood.app.report.matching import Matches, Pairs, Table

NUM_BINS = 10


class Curve(NamedTuple):
    """Quality of the detections above each score, from high to low."""

    scores: np.ndarray  # (S,), all different
    precision: np.ndarray  # (S,)
    recall: np.ndarray  # (S,), NaN without objects
    num_objects: int

    @property
    def thresholds(self) -> np.ndarray:
        """(S,) half-way to the next score, so that rounding elsewhere does not matter."""
        return (self.scores + np.append(self.scores, 0.0)[1:]) / 2

    @property
    def f1(self) -> np.ndarray:
        """(S,) harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return np.where(total > 0, 2 * self.precision * self.recall / np.maximum(total, 1e-12), 0)

    def best(self) -> int:
        """Return the index of the highest F1, the highest threshold of equal ones; -1 for none."""
        if not len(self.scores) or not self.num_objects or not self.f1.max() > 0:
            return -1
        return int(self.f1.argmax())

    def precision_at_recalls(self) -> np.ndarray:
        """Return COCO's interpolated precision at its 101 recalls."""
        if not self.num_objects:
            return np.full(len(RECALLS), np.nan)
        precision = np.maximum.accumulate(self.precision[::-1])[::-1]
        at = np.searchsorted(self.recall, RECALLS, side="left")
        return np.append(precision, 0.0)[at]

    def at(self, threshold: float) -> "Counts":
        """Return what detections of this score or more are worth."""
        above = int((self.scores >= threshold).sum()) - 1
        if above < 0:
            return Counts(float("nan"), 0.0 if self.num_objects else float("nan"), 0.0)
        return Counts(*(float(x[above]) for x in (self.precision, self.recall, self.f1)))


class Counts(NamedTuple):
    """Quality of the detections above a threshold."""

    precision: float
    recall: float
    f1: float


class CalibrationBin(NamedTuple):
    """Detections of similar scores."""

    low: float
    high: float
    number: int
    mean_score: float
    correct: float  # share that finds an object
    mean_iou: float  # with the object of the class that overlaps most; 0 where none does


def make_curve(found: np.ndarray, scores: np.ndarray, num_objects: int) -> Curve:
    """
    Args:
        found: (D,) bool, whether each detection finds an object; without those that do not count.
        scores: (D,).
        num_objects: number of objects that count.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(found[order])
    # Detections of one score are above a threshold together.
    ends = np.flatnonzero(np.r_[np.diff(scores) != 0, True]) if len(scores) else order
    recall = hits[ends] / num_objects if num_objects else np.full(len(ends), np.nan)
    return Curve(scores[ends], hits[ends] / (ends + 1), recall, num_objects)


def class_curves(table: Table, matches: Matches) -> List[Curve]:
    """Return the curve of each class."""
    classes = range(len(table.class_names))
    return [_make_curve(table, matches, table.classes == k, table.gt_classes == k) for k in classes]


def pooled_curve(table: Table, matches: Matches) -> Curve:
    """Return the curve of the detections of all classes together, with one threshold for all."""
    return _make_curve(table, matches, table.classes >= 0, table.gt_classes >= 0)


def _make_curve(table: Table, matches: Matches, mine: np.ndarray, objects: np.ndarray) -> Curve:
    mine = mine & ~matches.ignored[0, 0]
    num_objects = int(matches.counted[0, objects].sum())
    return make_curve(matches.objects[0, 0, mine] >= 0, table.scores[mine], num_objects)


def best_thresholds(curves: List[Curve], pooled: Curve) -> np.ndarray:
    """
    Returns:
        (K,), of each class that of its best F1; of a class that nothing is found of, the one for
        all classes; 0.5 where nothing is found at all.
    """
    common = pooled.thresholds[pooled.best()] if pooled.best() >= 0 else 0.5
    return np.array([c.thresholds[c.best()] if c.best() >= 0 else common for c in curves])


def calibration(table: Table, pairs: Pairs, matches: Matches) -> List[CalibrationBin]:
    """Return what scores say about correctness and IoU, in ten bins of scores."""
    same = table.classes[pairs.detections] == table.gt_classes[pairs.objects]
    same &= ~table.gt_crowd[pairs.objects]
    ious = np.zeros(len(table.scores))
    np.maximum.at(ious, pairs.detections[same], pairs.ious[same])
    valid = ~matches.ignored[0, 0]
    scores, ious = table.scores[valid], ious[valid]
    correct = matches.objects[0, 0, valid] >= 0
    bins = np.clip((scores * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
    result = []
    for i in range(NUM_BINS):
        mine = bins == i
        columns = (scores, correct, ious)
        means = [float(x[mine].mean()) if mine.any() else float("nan") for x in columns]
        result.append(CalibrationBin(i / NUM_BINS, (i + 1) / NUM_BINS, int(mine.sum()), *means))
    return result
