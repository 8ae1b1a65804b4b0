"""AP from matches, for weighted images: of the data set as it is, of its bootstrap samples, or
without one of its images. Images are matched once; a sample only counts them again.

Shapes: N images, B samples, D detections of a class, A ranges of areas, T thresholds, K classes.
"""

from typing import Dict, NamedTuple

import numpy as np
from tqdm import tqdm

from tood.app.report.matching import IOU_THRESHOLDS, RANGES, Matches, Table

RECALLS = np.linspace(0.0, 1.0, 101)
AT_75 = int(np.argmin(np.abs(IOU_THRESHOLDS - 0.75)))
NUM_SAMPLES = 1000
COVERAGE = 0.95


class Interval(NamedTuple):
    """A metric, and the interval in which it lies for most samples; NaN if it is not defined."""

    value: float
    low: float
    high: float


def average_precision(found: np.ndarray, scores: np.ndarray, num_objects: int) -> float:
    """COCO's AP of one class at one threshold.

    Args:
        found: (D,) bool, whether each detection finds an object; without those that do not count.
        scores: (D,); detections of equal scores stay in their order.
        num_objects: that count; without any the AP is NaN.
    """
    if not num_objects:
        return float("nan")
    found = found[np.argsort(-scores, kind="stable")]
    hits = np.cumsum(found)
    recall = hits / num_objects
    precision = hits / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].sum() / len(RECALLS))


def all_average_precisions(table: Table, matches: Matches) -> np.ndarray:
    """
    Returns:
        (A, T, K), in [0, 1]; NaN for classes without objects.
    """
    num_classes = len(table.class_names)
    result = np.full((len(RANGES), len(IOU_THRESHOLDS), num_classes), np.nan)
    for k in range(num_classes):
        mine = np.flatnonzero(table.classes == k)
        for a in range(len(RANGES)):
            num_objects = int(matches.counted[a, table.gt_classes == k].sum())
            for t in range(len(IOU_THRESHOLDS)):
                valid = mine[~matches.ignored[a, t, mine]]
                found = matches.objects[a, t, valid] >= 0
                result[a, t, k] = average_precision(found, table.scores[valid], num_objects)
    return result


def bootstrap_weights(num_images: int, num_samples: int = NUM_SAMPLES, seed: int = 0) -> np.ndarray:
    """
    Returns:
        (N, B) float32, how often each sample has each image. Each has N, drawn with replacement.
    """
    generator = np.random.default_rng(seed)
    shares = np.full(num_images, 1 / max(num_images, 1))
    drawn = generator.multinomial(num_images, shares, size=num_samples)
    return np.ascontiguousarray(drawn.T, dtype=np.float32)


def weighted_average_precisions(
    table: Table, matches: Matches, weights: np.ndarray, num_ranges: int = len(RANGES)
) -> np.ndarray:
    """
    Args:
        weights: (N, B) float32, how often each image counts; 0 leaves it out.
        num_ranges: of areas that are wanted; NaN for the others.

    Returns:
        (A, T, K, B), in [0, 1]; NaN for samples without objects of the class.
    """
    num_classes = len(table.class_names)
    shape = (len(RANGES), len(IOU_THRESHOLDS), num_classes, weights.shape[1])
    result = np.full(shape, np.nan, dtype=np.float32)
    quick = len(table.scores) < 20_000
    for k in tqdm(range(num_classes), desc="resampling", disable=quick):
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
        num_objects: (B,) float32.
        weights: (N, B).

    Returns:
        (T, B).
    """
    result = np.full((len(found), len(num_objects)), np.nan, dtype=np.float32)
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
    """COCO's metrics, in percent, from :func:`all_average_precisions` (A, T, K) or the weighted
    ones (A, T, K, B).

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


def make_interval(value: float, samples: np.ndarray) -> Interval:
    """
    Args:
        value: of the data set.
        samples: (B,) of the metric.
    """
    samples = samples[~np.isnan(samples)]
    if not len(samples) or np.isnan(value):
        return Interval(float(value), float("nan"), float("nan"))
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def without_each(table: Table, matches: Matches, images: np.ndarray) -> np.ndarray:
    """Compute what each image costs.

    Args:
        images: (I,), indices.

    Returns:
        (I,), the AP of the data set without each of them, less that with it, in percent.
    """
    weights = np.ones((len(table.image_ids), len(images) + 1), dtype=np.float32)
    weights[images, np.arange(len(images))] = 0
    # All areas, the first range, are enough for AP.
    AP = coco_metrics(weighted_average_precisions(table, matches, weights, num_ranges=1))["AP"]
    return AP[:-1] - AP[-1]
