"""Kinds of error, as TIDE names them (Bolya et al., ECCV 2020), what each costs, and which classes
are taken for which: at an IoU of 0.5, counted from COCO's matches.

Shapes: G objects and D detections of all images, K classes.
"""

from typing import Dict, List, NamedTuple, Tuple

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


class _Best(NamedTuple):
    """The object that each detection overlaps most, among some objects."""

    ious: np.ndarray  # (D,), 0 where it overlaps none
    objects: np.ndarray  # (D,), -1


def find_errors(table: Table, pairs: Pairs, matches: Matches) -> Errors:
    """Tell the kind of each wrong detection.

    In this order: *localization*, an object of its class overlaps by 0.1 to 0.5 and none more;
    *classification*, an object of another class by 0.5 or more; *duplicate*, an object of its class
    by 0.5 or more, which a detection of a higher score has found; *background*, no object by 0.1;
    *both*, what is left. An object that no detection finds and none of the first two is about is
    *missed*.
    """
    plain = ~table.gt_crowd[pairs.objects]
    same = table.classes[pairs.detections] == table.gt_classes[pairs.objects]
    same, other = (_find_best(table, pairs, plain & x) for x in (same, ~same))
    found = matches.objects[0, 0] >= 0
    conditions = (
        (other.ious >= IOU),
        (same.ious >= MIN_IOU) & (same.ious < IOU),
        np.zeros(len(found), dtype=bool),
        same.ious >= IOU,
        np.maximum(same.ious, other.ious) < MIN_IOU,
    )
    kinds = np.full(len(found), KINDS.index("both"))
    for kind in ("background", "duplicate", "classification", "localization"):  # the last wins
        kinds[conditions[KINDS.index(kind)]] = KINDS.index(kind)
    kinds[found] = CORRECT
    kinds[matches.ignored[0, 0]] = IGNORED
    objects = np.full(len(found), -1)
    for kind, best in (("classification", other), ("localization", same)):
        mine = kinds == KINDS.index(kind)
        objects[mine] = best.objects[mine]
    missed = matches.counted[0].copy()
    missed[matches.objects[0, 0, found]] = False
    missed[objects[objects >= 0]] = False
    return Errors(kinds, objects, missed)


def _find_best(table: Table, pairs: Pairs, chosen: np.ndarray) -> _Best:
    detections, objects, ious = (x[chosen] for x in pairs)
    order = np.lexsort((ious, detections))
    best = _Best(np.zeros(len(table.scores)), np.full(len(table.scores), -1))
    best.ious[detections[order]] = ious[order]  # the last one stays
    best.objects[detections[order]] = objects[order]
    return best


def costs(table: Table, matches: Matches, errors: Errors) -> Dict[str, float]:
    """Return how many points of AP50 are lost by each kind: what it would be if the errors of this
    kind alone were corrected, minus the present one.

    An error of the first two kinds becomes right, if its object is not found yet and no such error
    of a higher score is about it; otherwise, and for the other kinds, the detection goes. Missed
    objects go.
    """
    found, counted = errors.kinds == CORRECT, matches.counted[0]
    is_found = np.zeros(len(counted), dtype=bool)
    is_found[matches.objects[0, 0, found]] = True
    base = _mean_AP50(table, found, table.classes, errors.kinds != IGNORED, counted)
    result = {}
    for i, kind in enumerate(KINDS):
        mine = np.flatnonzero(errors.kinds == i)
        repaired, classes, valid = found.copy(), table.classes.copy(), errors.kinds != IGNORED
        valid[mine] = False
        right = _firsts(mine[errors.objects[mine] >= 0], errors.objects, table.scores)
        right = right[~is_found[errors.objects[right]]] if len(right) else right
        valid[right] = repaired[right] = True
        classes[right] = table.gt_classes[errors.objects[right]]
        result[kind] = _mean_AP50(table, repaired, classes, valid, counted) - base
    seen = counted & ~errors.missed
    result["missed"] = _mean_AP50(table, found, table.classes, errors.kinds != IGNORED, seen) - base
    return result


def _firsts(detections: np.ndarray, objects: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return, of the detections about the same object, the one with the highest score."""
    order = detections[np.argsort(-scores[detections], kind="stable")]
    _, first = np.unique(objects[order], return_index=True)
    return order[first]


def _mean_AP50(table: Table, found, classes, valid, counted) -> float:
    aps = []
    for k in range(len(table.class_names)):
        mine = valid & (classes == k)
        number = int(counted[table.gt_classes == k].sum())
        aps.append(average_precision(found[mine], table.scores[mine], number))
    aps = [x for x in aps if not np.isnan(x)]
    return 100 * float(np.mean(aps)) if aps else float("nan")


def counts(errors: Errors) -> Dict[str, int]:
    """Return how many errors there are of each kind."""
    result = {kind: int((errors.kinds == i).sum()) for i, kind in enumerate(KINDS)}
    return {**result, "missed": int(errors.missed.sum())}


def confusion_matrix(
    table: Table, pairs: Pairs, matches: Matches, thresholds: np.ndarray
) -> np.ndarray:
    """Count which classes are taken for which.

    Args:
        thresholds: (K,), score of each class from which on detections count.

    Returns:
        (K + 1, K + 1) int64: rows are the classes of objects, columns those of detections, the last
        ones the background. The diagonal is what COCO's matching finds; what is left of both is
        matched between classes, in the order of the scores, with the object of the largest IoU of
        at least 0.5.
    """
    K = len(table.class_names)
    matrix = np.zeros((K + 1, K + 1), dtype=np.int64)
    above = (table.scores >= thresholds[table.classes]) & ~matches.ignored[0, 0]
    for d, g in confused_pairs(table, pairs, matches, above):
        row = K if g < 0 else table.gt_classes[g]
        column = K if d < 0 else table.classes[d]
        matrix[row, column] += 1
    return matrix


def confused_pairs(
    table: Table, pairs: Pairs, matches: Matches, above: np.ndarray
) -> List[Tuple[int, int]]:
    """Return (detection, object) of every detection above the thresholds, (D,) bool, and of every
    object that counts; -1 in the place of the one that is not there.
    """
    found = above & (matches.objects[0, 0] >= 0)
    result = [(int(d), int(matches.objects[0, 0, d])) for d in np.flatnonzero(found)]
    free = matches.counted[0].copy()
    free[matches.objects[0, 0, found]] = False
    left = above & ~found
    order = np.flatnonzero((pairs.ious >= IOU) & left[pairs.detections])
    order = order[
        np.lexsort(
            (-pairs.ious[order], pairs.detections[order], -table.scores[pairs.detections[order]])
        )
    ]
    for d, g in zip(pairs.detections[order].tolist(), pairs.objects[order].tolist()):
        if left[d] and free[g]:
            left[d] = free[g] = False
            result.append((d, g))
    result += [(int(d), -1) for d in np.flatnonzero(left)]
    return result + [(-1, int(g)) for g in np.flatnonzero(free)]
