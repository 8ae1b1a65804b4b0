"""Everything that a report says of detections, as plain values: the content of ``report.json``."""

from typing import Dict, List, NamedTuple, Sequence

import numpy as np

from tood.app.report import curves, errors
from tood.app.report.curves import Curve
from tood.app.report.errors import CORRECT, IGNORED, Errors
from tood.app.report.intervals import (
    class_intervals,
    class_metrics,
    coco_intervals,
    coco_metrics,
    count_images,
    make_jackknife_weights,
    weighted_average_precisions,
    without_each,
)
from tood.app.report.matching import Matches, Pairs, Table, make_table, match, overlaps
from tood.evaluation.coco import COCO_LIMIT
from tood.utils.errors import UserError

# Images, of those with the most errors, of which it is computed what they cost.
MOST_TRIED = 200
# Points of curves in report.json.
CURVE_POINTS = 101
# Bins of the sizes of objects, and what is added on both sides: a part of an octave.
SIZE_BINS, SIZE_STEP = 24, 0.1
NOT_DISTINGUISHABLE = "not distinguishable"


class Analysis(NamedTuple):
    """Detections beside the objects of a data set, and what was counted."""

    table: Table
    pairs: Pairs
    matches: Matches
    errors: Errors
    curves: List[Curve]  # of each class
    pooled: Curve
    thresholds: np.ndarray  # (K,), the scores of the best F1
    aps: np.ndarray  # (A, T, K)
    without: np.ndarray  # (A, T, K, B), aps without each of B groups of images
    num_images: np.ndarray  # (A, K), with objects

    @property
    def above(self) -> np.ndarray:
        """(D,) bool, the detections of at least the threshold of their class that count."""
        is_above = self.table.scores >= self.thresholds[self.table.classes]
        return is_above & (self.errors.kinds != IGNORED)

    @property
    def missed_above(self) -> np.ndarray:
        """(G,) bool, the objects that count and are not found at the thresholds."""
        missed = self.matches.counted[0].copy()
        missed[self.matches.objects[0, 0, self.above & (self.errors.kinds == CORRECT)]] = False
        return missed


def analyze(content: Dict, detections: Sequence[Dict], source: str = "the results") -> Analysis:
    """Match and count; arguments as of :func:`tood.app.report.matching.make_table`."""
    table = make_table(content, detections, source)
    pairs = overlaps(table)
    matches = match(table, pairs)
    of_classes, pooled = curves.class_curves(table, matches), curves.pooled_curve(table, matches)
    num_images = len(table.image_ids)
    everything = np.ones((num_images, 1))
    return Analysis(
        table,
        pairs,
        matches,
        errors.find_errors(table, pairs, matches),
        of_classes,
        pooled,
        curves.best_thresholds(of_classes, pooled),
        weighted_average_precisions(table, matches, everything)[..., 0],
        weighted_average_precisions(table, matches, make_jackknife_weights(num_images)),
        count_images(table, matches),
    )


def summarize_analysis(analysis: Analysis) -> Dict:
    """Return the content of ``report.json``: numbers, texts, lists and dicts. A metric with an
    interval is {"value", "low", "high"}; NaN if it is not defined, and without an interval, "note"
    says why.
    """
    table = analysis.table
    return {
        "data": _data(analysis),
        "metrics": {
            name: x.as_values()
            for name, x in coco_intervals(
                analysis.aps, analysis.without, analysis.num_images
            ).items()
        },
        "classes": _classes(analysis),
        "all_classes": _at_best(analysis.pooled),
        "confusion": {
            "labels": [*table.class_names, "background"],
            "rows": errors.confusion_matrix(
                table, analysis.pairs, analysis.matches, analysis.thresholds
            ).tolist(),
        },
        "errors": _errors(analysis),
        "calibration": [
            x._asdict() for x in curves.calibration(table, analysis.pairs, analysis.matches)
        ],
        "curves": {
            "recall": np.linspace(0, 1, CURVE_POINTS).tolist(),
            "precision": [x.precision_at_recalls().tolist() for x in analysis.curves],
            "score": np.linspace(0, 1, CURVE_POINTS).tolist(),
            "f1": [_f1_over_score(x) for x in analysis.curves],
            "f1_of_all": _f1_over_score(analysis.pooled),
        },
        "box_sizes": _measure_boxes(table.gt_areas[analysis.matches.counted[0]]),
        "worst_images": worst_images(analysis),
    }


def _measure_boxes(areas: np.ndarray) -> Dict:
    """Return a histogram of the sizes of objects, square roots of their areas."""
    sizes = np.sqrt(areas[areas > 0])
    low, high = np.log2([sizes.min(), sizes.max()]) if len(sizes) else (0, 1)
    edges = np.logspace(low - SIZE_STEP, high + SIZE_STEP, SIZE_BINS + 1, base=2)
    return {"edges": edges.tolist(), "numbers": np.histogram(sizes, edges)[0].tolist()}


def _data(analysis: Analysis) -> Dict:
    table, counted = analysis.table, analysis.matches.counted
    names = ("objects", "small", "medium", "large")
    return {
        "images": len(table.image_ids),
        **{name: int(x.sum()) for name, x in zip(names, counted)},
        "crowds": int(table.gt_crowd.sum()),
        "detections": len(table.scores),
        "all_detections": table.max_detections > COCO_LIMIT,
    }


def _classes(analysis: Analysis) -> List[Dict]:
    intervals = class_intervals(analysis.aps, analysis.without, analysis.num_images)
    columns = zip(analysis.table.class_names, analysis.curves, analysis.thresholds, intervals)
    return [
        {
            "name": name,
            "objects": curve.num_objects,
            **{key: x.as_values() for key, x in metrics.items()},
            "threshold": float(threshold),
            **curve.at(threshold)._asdict(),
        }
        for name, curve, threshold, metrics in columns
    ]


def _at_best(curve: Curve) -> Dict:
    if curve.best() < 0:
        return {"threshold": float("nan"), **curve.at(float("inf"))._asdict()}
    threshold = float(curve.thresholds[curve.best()])
    return {"threshold": threshold, **curve.at(threshold)._asdict()}


def _errors(analysis: Analysis) -> List[Dict]:
    kinds, missed = analysis.errors.kinds, analysis.errors.missed
    cost = errors.costs(analysis.table, analysis.matches, analysis.errors)
    number = errors.count_kinds(kinds, missed)
    above = errors.count_kinds(kinds[analysis.above], analysis.missed_above)
    return [
        {"kind": kind, "AP50_lost": cost[kind], "count": number[kind], "count_above": above[kind]}
        for kind in cost
    ]


def _f1_over_score(curve: Curve) -> List[float]:
    return [curve.at(x).f1 for x in np.linspace(0, 1, CURVE_POINTS)]


def worst_images(analysis: Analysis, number: int = 12) -> List[Dict]:
    """Return the images without which AP would be the highest, the worst first."""
    table, num_images = analysis.table, len(analysis.table.image_ids)
    mistakes = analysis.above & (analysis.errors.kinds >= 0)
    wrong = np.bincount(table.images[mistakes], minlength=num_images)
    missed = np.bincount(table.gt_images[analysis.missed_above], minlength=num_images)
    tried = np.argsort(-(wrong + missed), kind="stable")[:MOST_TRIED]
    tried = tried[(wrong + missed)[tried] > 0]
    lost = without_each(table, analysis.matches, tried)
    return [
        {
            "file_name": table.file_names[i],
            "image": int(i),
            "AP_lost": float(AP_lost),
            "missed": int(missed[i]),
            "wrong": int(wrong[i]),
        }
        for i, AP_lost in sorted(zip(tried, lost), key=lambda x: -x[1])[:number]
        if AP_lost > 0
    ]


def explain_miss(analysis: Analysis, g: int) -> str:
    """Return one sentence, from the detections alone, on an object that is not found at the
    thresholds.
    """
    table, pairs = analysis.table, analysis.pairs
    names, k = table.class_names, int(table.gt_classes[g])
    finder = np.flatnonzero(analysis.matches.objects[0, 0] == g)
    if len(finder):
        score = table.scores[finder[0]]
        return f"found with the score {score:.2f}, below the threshold {analysis.thresholds[k]:.2f}"
    mine = pairs.objects == g
    detections, ious = pairs.detections[mine], pairs.ious[mine]
    classes, scores = table.classes[detections], table.scores[detections]
    other, own = (classes != k) & (ious >= errors.IOU), classes == k
    if other.any():
        best = np.where(other, scores, -1).argmax()
        return f"found as {names[classes[best]]}, with the score {scores[best]:.2f}"
    if not own.any():
        return "no detection of its class overlaps it by 0.1"
    best = np.where(own, ious, -1).argmax()
    if ious[best] >= errors.IOU:
        return "its detections have found a neighbour of the same class"
    return f"the best box of its class overlaps by {ious[best]:.2f} only, score {scores[best]:.2f}"


def compare_analyses(here: Analysis, there: Analysis) -> List[Dict]:
    """Compare the metrics of two detectors on the same images, without the same of them each time:
    chance in the choice of the images cancels out.

    Returns:
        for each metric and the AP of each class "name", "here", "there", the difference "value"
        with its interval "low" and "high" (or a "note"), and a "verdict".

    Raises:
        UserError: if images or classes are not the same.
    """
    for name in ("image_ids", "class_names"):
        if getattr(here.table, name) != getattr(there.table, name):
            kind = name.replace("_ids", "s").replace("_", " ")
            raise UserError(f"Two results cannot be compared: their {kind} differ.")
    difference = (here.aps - there.aps, here.without - there.without, here.num_images, -100.0)
    intervals = coco_intervals(*difference)
    values = [coco_metrics(x.aps) for x in (here, there)]
    rows = [(name, x, *(v[name] for v in values)) for name, x in intervals.items()]
    values = [class_metrics(x.aps)["AP"] for x in (here, there)]
    for name, x, *pair in zip(here.table.class_names, class_intervals(*difference), *values):
        rows.append((f"AP of {name}", x["AP"], *pair))
    return [
        {
            **{"name": name, "here": float(first), "there": float(second)},
            **interval.as_values(),
            "verdict": _judge(interval),
        }
        for name, interval, first, second in rows
    ]


def _judge(difference) -> str:
    if difference.low > 0:
        return "better here"
    return "better there" if difference.high < 0 else NOT_DISTINGUISHABLE
