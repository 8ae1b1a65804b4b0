"""AP from matches, for weighted images: all images, or all but some. Images are matched once; a
weighting only counts them again.

Intervals are those of the jackknife (Efron and Tibshirani, 1993, chapter 11): metrics without each
image, and Student's distribution. docs/report.md compares it with bootstrap intervals.

Shapes: N images, B weightings, D detections of a class, A ranges of areas, T thresholds, K classes.
"""

from typing import Dict, List, NamedTuple

import numpy as np
from tqdm import tqdm

from tood.app.report.matching import IOU_THRESHOLDS, RANGES, Matches, Table

RECALLS = np.linspace(0.0, 1.0, 101)
AT_75 = int(np.argmin(np.abs(IOU_THRESHOLDS - 0.75)))
NUM_GROUPS = 1000  # of images that are omitted together, at most
# With objects of a class, for an interval.
MIN_IMAGES = 3
# Student's t: the 97.5 % quantile by degrees of freedom, almost linear in their inverse.
DEGREES = np.array([np.inf, 20, 10, 7, 5, 4, 3, 2])
QUANTILES = np.array([1.960, 2.086, 2.228, 2.365, 2.571, 2.776, 3.182, 4.303])


class Interval(NamedTuple):
    """A metric and its 95 % interval; NaN if it is not defined."""

    value: float
    low: float
    high: float
    note: str = ""  # why there is no interval

    def as_values(self) -> Dict:
        """Return "value", "low" and "high", and "note" if there is no interval."""
        values = self._asdict()
        return values if self.note else {k: x for k, x in values.items() if k != "note"}


def average_precision(found: np.ndarray, scores: np.ndarray, num_objects: int) -> float:
    """Compute COCO's AP of one class at one threshold; NaN without objects.

    Args:
        found: (D,) bool, whether each detection finds an object; without those that do not count.
        scores: (D,); detections of equal scores stay in their order.
    """
    found = found[None, np.argsort(-scores, kind="stable")]
    images, number = np.zeros(found.shape[1], dtype=np.int64), np.array([num_objects])
    return float(_average_class(found, np.zeros_like(found), images, number, np.ones((1, 1)))[0, 0])


def make_jackknife_weights(num_images: int) -> np.ndarray:
    """
    Returns:
        (N, B) float32, weights without each image, or without each of 1,000 groups of images.
    """
    num_groups = min(num_images, NUM_GROUPS)
    groups = np.random.default_rng(0).permutation(num_images) % max(num_groups, 1)
    return (groups[:, None] != np.arange(num_groups)).astype(np.float32)


def count_images(table: Table, matches: Matches) -> np.ndarray:
    """
    Returns:
        (A, K) int64, the number of images with objects of each class and range of areas.
    """
    result = np.zeros((len(RANGES), len(table.class_names)), dtype=np.int64)
    for a, counted in enumerate(matches.counted):
        pairs = np.stack([table.gt_classes[counted], table.gt_images[counted]])
        np.add.at(result[a], np.unique(pairs, axis=1)[0], 1)
    return result


def weighted_average_precisions(
    table: Table, matches: Matches, weights: np.ndarray, num_ranges: int = len(RANGES)
) -> np.ndarray:
    """
    Args:
        weights: (N, B), how often each image counts; in float32 for many weightings.
        num_ranges: number of ranges of areas to compute; NaN for the others.

    Returns:
        (A, T, K, B), in [0, 1]; NaN for weightings without objects of the class.
    """
    num_classes = len(table.class_names)
    shape = (len(RANGES), len(IOU_THRESHOLDS), num_classes, weights.shape[1])
    result = np.full(shape, np.nan, dtype=weights.dtype)
    quick = len(table.scores) < 20_000 or weights.shape[1] == 1
    for k in tqdm(range(num_classes), desc="intervals", disable=quick):
        mine = np.flatnonzero(table.classes == k)
        mine = mine[np.argsort(-table.scores[mine], kind="stable")]
        objects = np.flatnonzero(table.gt_classes == k)
        for a in range(num_ranges):
            images = table.gt_images[objects[matches.counted[a, objects]]]
            num_objects = weights[images].sum(axis=0)
            found = matches.objects[a][:, mine] >= 0
            ignored = matches.ignored[a][:, mine]
            result[a, :, k] = _average_class(
                found, ignored, table.images[mine], num_objects, weights
            )
    return result


def _average_class(
    found: np.ndarray,
    ignored: np.ndarray,
    images: np.ndarray,
    num_objects: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """
    Args:
        found, ignored: (T, D) bool, in the order of the scores.
        images: (D,) of the detections.
        num_objects: (B,).
        weights: (N, B).

    Returns:
        (T, B).
    """
    result = np.full((len(found), len(num_objects)), np.nan, dtype=weights.dtype)
    some = num_objects > 0
    result[:, some] = 0.0
    hits = found & ~ignored
    # Nothing is read after the last detection that finds something.
    last = np.flatnonzero(hits.any(axis=0))[-1:] + 1
    if not len(last):
        return result
    rows = np.flatnonzero(~ignored[:, : last[0]].all(axis=0))
    hits, ignored, images = hits[:, rows], ignored[:, rows], images[rows]
    # Only sums at detections that find something are read.
    stops = np.flatnonzero(hits.any(axis=0))
    counts = np.add.reduceat(weights[images], np.r_[0, stops[:-1] + 1], axis=0)
    before = np.cumsum(counts, axis=0)  # (stops, B)
    for t in range(len(found)):
        at = np.flatnonzero(hits[t, stops])
        if not len(at):
            continue
        total = before[at]
        skipped = np.flatnonzero(ignored[t])
        if len(skipped):
            sums = np.cumsum(weights[images[skipped]], axis=0)
            earlier = np.searchsorted(skipped, stops[at])
            total = total - np.where((earlier > 0)[:, None], sums[earlier - 1], 0)
        hit = np.cumsum(weights[images[stops[at]]], axis=0)
        result[t, some] = _area_below(hit[:, some], total[:, some], num_objects[some])
    return result


def _area_below(hits: np.ndarray, total: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """
    Args:
        hits, total: (H, B), how many found something, and how many there were, up to each of the
            detections that find something.
        num_objects: (B,), positive.

    Returns:
        (B,), the mean precision at the 101 recalls.
    """
    precision = hits / np.maximum(total, 1)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # How many of the 101 recalls are reached. To the last bit, not all are multiples of 0.01.
    recall = hits / num_objects.astype(np.float64)
    nearest = (recall * 100 + 0.5).astype(np.int64)
    reached = nearest + (recall >= RECALLS[nearest])
    first = np.diff(reached, axis=0, prepend=0)
    return (precision * first).sum(axis=0) / len(RECALLS)


def coco_metrics(aps: np.ndarray) -> Dict[str, np.ndarray]:
    """Compute COCO's metrics, in percent.

    Args:
        aps: (A, T, K) or (A, T, K, B).

    Returns:
        "AP", "AP50", "AP75", "APs", "APm", "APl": each () or (B,), NaN without objects.
    """
    sizes = {name: _mean(aps[a], axis=(0, 1)) for a, name in enumerate(RANGES)}
    fixed = {"AP50": _mean(aps[0, 0], axis=0), "AP75": _mean(aps[0, AT_75], axis=0)}
    values = {"AP": sizes.pop("AP"), **fixed, **sizes}
    return {name: 100 * np.asarray(x) for name, x in values.items()}


def class_metrics(aps: np.ndarray) -> Dict[str, np.ndarray]:
    """
    Returns:
        "AP" and "AP50" of each class, in percent: (K,) or (K, B).
    """
    return {"AP": 100 * _mean(aps[0], axis=0), "AP50": 100 * aps[0, 0]}


def _mean(values: np.ndarray, axis) -> np.ndarray:
    """Return the mean of the defined values."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def coco_intervals(
    aps: np.ndarray, without: np.ndarray, num_images: np.ndarray, lowest: float = 0.0
) -> Dict[str, Interval]:
    """Compute COCO's metrics, or differences of two detectors' metrics, with their intervals.

    Args:
        aps: (A, T, K).
        without: (A, T, K, B), the same with :func:`make_jackknife_weights`.
        num_images: (A, K), of :func:`count_images`.
        lowest: lowest possible value in percent, -100 for differences.
    """
    values, others = coco_metrics(aps), coco_metrics(without)
    counts = dict(zip(RANGES, num_images))
    return {
        name: make_interval(x, others[name], counts.get(name, num_images[0]), lowest)
        for name, x in values.items()
    }


def class_intervals(
    aps: np.ndarray, without: np.ndarray, num_images: np.ndarray, lowest: float = 0.0
) -> List[Dict[str, Interval]]:
    """Compute "AP" and "AP50" of each class with their intervals; as :func:`coco_intervals`."""
    values, others = class_metrics(aps), class_metrics(without)
    return [
        {
            name: make_interval(x[k], others[name][k], num_images[0, [k]], lowest)
            for name, x in values.items()
        }
        for k in range(len(num_images[0]))
    ]


def make_interval(
    value: float, without: np.ndarray, num_images: np.ndarray, lowest: float = 0.0
) -> Interval:
    """
    Args:
        value: metric of all images, in percent.
        without: (B,), the metric without each group of images.
        num_images: (K,), images with objects of each class of which the metric is the mean.
        lowest: see :func:`coco_intervals`.
    """
    some, value = num_images[num_images > 0], float(value)
    rare = int((some < MIN_IMAGES).sum())
    if 2 * rare >= len(some):
        note = f"{rare} of {len(some)} classes are in fewer than {MIN_IMAGES} images"
        return Interval(value, np.nan, np.nan, note if rare else "there are no objects")
    without = without[~np.isnan(without)]
    spread = np.sqrt((len(without) - 1) * without.var())
    margin = float(spread * np.interp(1 / (some.max() - 1), 1 / DEGREES, QUANTILES))
    return Interval(value, max(value - margin, lowest), min(value + margin, 100.0))


def without_each(table: Table, matches: Matches, images: np.ndarray) -> np.ndarray:
    """Return the AP without each of some images, less that with it, in percent.

    Args:
        images: (I,), indices.
    """
    weights = np.ones((len(table.image_ids), len(images) + 1), dtype=np.float32)
    weights[images, np.arange(len(images))] = 0
    # All areas, the first range, are enough for AP.
    AP = coco_metrics(weighted_average_precisions(table, matches, weights, num_ranges=1))["AP"]
    return AP[:-1] - AP[-1]
