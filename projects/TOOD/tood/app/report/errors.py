"""Kinds of error, as TIDE names them (Bolya et al., ECCV 2020), what each costs, and which classes
are taken for which: at an IoU of 0.5, counted from COCO's matches.

Shapes: G objects and D detections of all images, K classes.
"""

from typing import Dict, NamedTuple, Tuple

import numpy as np

from tood.app.report.intervals import average_precision
from tood.app.report.matching import MIN_IOU, Matches, Pairs, Table

IOU = 0.5
# Of detections; a missed object is the sixth kind.
KINDS = ("classification", "localization", "both", "duplicate", "background")
CORRECT, IGNORED = -1, -2  # in the place of a kind


class Errors(NamedTuple):
    """The kind of every detection and object."""

    kinds: np.ndarray  # (D,) int64, index into KINDS, or CORRECT, or IGNORED
    objects: np.ndarray  # (D,) int64, the object that an error of the first two kinds is about
    missed: np.ndarray  # (G,) bool, not found, nor the object of such an error


def find_errors(table: Table, pairs: Pairs, matches: Matches) -> Errors:
    """Find the kind of each wrong detection.

    In this order: *localization*, an object of its class overlaps by 0.1 to 0.5 and none more;
    *classification*, an object of another class by 0.5 or more; *duplicate*, an object of its class
    by 0.5 or more, which a detection of a higher score has found; *background*, no object by 0.1;
    *both*, the others. An object that no detection finds and none of the first two is about is
    *missed*.
    """
    plain = ~table.gt_crowd[pairs.objects]
    same = table.classes[pairs.detections] == table.gt_classes[pairs.objects]
    same_ious, same_objects = _find_best(table, pairs, plain & same)
    other_ious, other_objects = _find_best(table, pairs, plain & ~same)
    found, ignored = matches.objects[0, 0] >= 0, matches.ignored[0, 0]
    conditions = {
        "localization": (same_ious >= MIN_IOU) & (same_ious < IOU),
        "classification": other_ious >= IOU,
        "duplicate": same_ious >= IOU,
        "background": np.maximum(same_ious, other_ious) < MIN_IOU,
    }
    places = [KINDS.index(kind) for kind in conditions]
    kinds = np.select(
        [ignored, found, *conditions.values()], [IGNORED, CORRECT, *places], KINDS.index("both")
    )
    choices = [kinds == KINDS.index(kind) for kind in ("classification", "localization")]
    objects = np.select(choices, [other_objects, same_objects], -1)
    missed = matches.counted[0].copy()
    missed[matches.objects[0, 0, found]] = False
    missed[objects[objects >= 0]] = False
    return Errors(kinds, objects, missed)


def _find_best(table: Table, pairs: Pairs, chosen: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Return the largest IoU of each detection, 0 for none, and its object, -1."""
    detections, objects, ious = (x[chosen] for x in pairs)
    order = np.lexsort((ious, detections))
    best, best_objects = np.zeros(len(table.scores)), np.full(len(table.scores), -1)
    best[detections[order]] = ious[order]  # the last one stays
    best_objects[detections[order]] = objects[order]
    return best, best_objects


def costs(table: Table, matches: Matches, errors: Errors) -> Dict[str, float]:
    """Return how many points of AP50 are lost by each kind: what it would be if the errors of this
    kind alone were corrected, minus the present one.

    An error of the first two kinds becomes right, if its object is not found yet and no such error
    of a higher score is about it; otherwise, and for the other kinds, the detection goes. Missed
    objects go.
    """
    found, valid, counted = errors.kinds == CORRECT, errors.kinds != IGNORED, matches.counted[0]
    is_found = np.zeros(len(counted), dtype=bool)
    is_found[matches.objects[0, 0, found]] = True
    base = _mean_AP50(table, found, table.classes, valid, counted)
    result = {}
    for i, kind in enumerate(KINDS):
        mine = errors.kinds == i
        right = np.flatnonzero(mine & (errors.objects >= 0))
        right = right[~is_found[errors.objects[right]]]
        right = right[np.argsort(-table.scores[right], kind="stable")]
        # Of the detections about the same object, the one with the highest score.
        right = right[np.unique(errors.objects[right], return_index=True)[1]]
        repaired, kept, classes = found.copy(), valid & ~mine, table.classes.copy()
        kept[right] = repaired[right] = True
        classes[right] = table.gt_classes[errors.objects[right]]
        result[kind] = _mean_AP50(table, repaired, classes, kept, counted) - base
    seen = counted & ~errors.missed
    return {**result, "missed": _mean_AP50(table, found, table.classes, valid, seen) - base}


def _mean_AP50(table: Table, found, classes, valid, counted) -> float:
    aps = []
    for k in np.unique(table.gt_classes[counted]):
        mine = valid & (classes == k)
        number = int(counted[table.gt_classes == k].sum())
        aps.append(average_precision(found[mine], table.scores[mine], number))
    return 100 * float(np.mean(aps)) if aps else float("nan")


def count_kinds(kinds: np.ndarray, missed: np.ndarray) -> Dict[str, int]:
    """Return how many of some detections and objects are errors of each kind."""
    numbers = {kind: int((kinds == i).sum()) for i, kind in enumerate(KINDS)}
    return {**numbers, "missed": int(missed.sum())}


def confusion_matrix(
    table: Table, pairs: Pairs, matches: Matches, thresholds: np.ndarray
) -> np.ndarray:
    """Count which classes are taken for which.

    Args:
        thresholds: (K,), score of each class from which on detections count.

    Returns:
        (K + 1, K + 1) int64: rows are the classes of objects, columns those of detections, the last
        ones the background. The diagonal is what COCO's matching finds; the others of both are
        matched between classes, in the order of the scores, with the object of the largest IoU of
        at least 0.5.
    """
    K = len(table.class_names)
    objects, free = matches.objects[0, 0], matches.counted[0].copy()
    left = (table.scores >= thresholds[table.classes]) & ~matches.ignored[0, 0]
    found = left & (objects >= 0)
    free[objects[found]] = left[found] = False
    matrix = np.diag(np.bincount(table.classes[found], minlength=K + 1))
    order = np.flatnonzero((pairs.ious >= IOU) & left[pairs.detections])
    detections = pairs.detections[order]
    order = order[np.lexsort((-pairs.ious[order], detections, -table.scores[detections]))]
    for d, g in zip(pairs.detections[order].tolist(), pairs.objects[order].tolist()):
        if left[d] and free[g]:
            left[d] = free[g] = False
            matrix[table.gt_classes[g], table.classes[d]] += 1
    matrix[K] += np.bincount(table.classes[left], minlength=K + 1)
    matrix[:, K] += np.bincount(table.gt_classes[free], minlength=K + 1)
    return matrix
