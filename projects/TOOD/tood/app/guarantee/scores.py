"""Calibration of scores: how often detections of a score are right, and how well they lie.

A curve maps a raw score to a probability that the detection is right (it finds an object at an IoU
of 0.5, as COCO matches), or to the IoU that it has on average (0 for a detection that finds
nothing). Errors of a calibration are those of Kuppers et al. 2020 (arXiv 2004.13546, D-ECE) and of
Kuzucu et al. 2024 (arXiv 2405.20459, LaECE_0).

Shapes: D detections, N groups of images (one image each, unless images belong together), K
classes, J bins, B draws of a bootstrap.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from tood.app.report.matching import Matches, Pairs, Table, match, overlaps
from tood.inference.calibration import Curve
from tood.utils.errors import UserError

MIN_ISOTONIC = 100  # right detections of a class, for isotonic regression
MIN_OWN = 10  # for a separate curve
NUM_BINS = 25  # of both errors, as Kuzucu et al.
NUM_FOLDS = 5
NUM_DRAWS = 1000
# Logits at which a logistic curve is kept as points.
LOGITS = np.linspace(-10, 10, 201)
ISOTONIC, PLATT, POOLED = "isotonic", "Platt", "all classes"


class Detections(NamedTuple):
    """Detections that count, in columns."""

    scores: np.ndarray  # (D,), raw
    classes: np.ndarray  # (D,) int64
    groups: np.ndarray  # (D,) int64, below N
    right: np.ndarray  # (D,) bool
    ious: np.ndarray  # (D,), with the object that each one finds at any IoU, 0 for none
    num_groups: int  # N
    num_classes: int  # K
    has_objects: np.ndarray  # (K,) bool

    def select(self, kept: np.ndarray) -> "Detections":
        """Return some of the detections, by a mask (D,) or indices."""
        columns = ("scores", "classes", "groups", "right", "ious")
        return self._replace(**{name: getattr(self, name)[kept] for name in columns})


class Fit(NamedTuple):
    """The curves of a class."""

    method: str  # ISOTONIC, PLATT or POOLED
    precision: Curve
    iou: Curve


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class Errors(NamedTuple):
    """A calibration error before and after the calibration."""

    before: Estimate
    after: Estimate
    fall: Estimate  # before - after, on the same draws


def import_scipy() -> None:
    """
    Raises:
        UserError: if SciPy is missing, or too old.
    """
    try:
        from scipy.optimize import isotonic_regression  # noqa: F401
    except ImportError as error:
        raise UserError(
            "SciPy 1.12 or newer is missing: pip install -e .[guarantee] installs it."
        ) from error


def list_detections(table: Table, groups: Optional[Sequence[Sequence[int]]] = None) -> Detections:
    """Match detections to objects. Those in crowds, which count neither way, are not among them.

    Args:
        groups: indices of the images that belong together, for each group; default: each image is
            one.
    """
    pairs = overlaps(table)
    matches: Matches = match(table, pairs)
    objects, ignored = matches.objects[0, 0], matches.ignored[0, 0]  # of all areas, IoU 0.5
    number = len(table.image_ids)
    group_of_image = np.arange(number)
    for i, members in enumerate(groups or ()):
        group_of_image[list(members)] = i
    found = Detections(
        scores=table.scores,
        classes=table.classes,
        groups=group_of_image[table.images],
        right=(objects >= 0) & ~ignored,
        ious=find_ious(table, pairs),
        num_groups=number if groups is None else len(groups),
        num_classes=len(table.class_names),
        has_objects=np.bincount(table.gt_classes[~table.gt_crowd], minlength=len(table.class_names))
        > 0,
    )
    return found.select(~ignored)


def find_ious(table: Table, pairs: Pairs) -> np.ndarray:
    """
    Returns:
        (D,), the IoU of each detection with the object that it finds if any overlap of at least
        ``MIN_IOU`` is enough: in the order of their scores, detections of an image take the object
        of their class that they overlap most, of those that are left.
    """
    ious = np.zeros(len(table.scores))
    taken = np.zeros(len(table.gt_images), dtype=bool)
    same = table.classes[pairs.detections] == table.gt_classes[pairs.objects]
    same &= ~table.gt_crowd[pairs.objects]
    order = np.lexsort((-pairs.ious, pairs.detections))
    for i in order[same[order]]:
        d, g = pairs.detections[i], pairs.objects[i]
        if ious[d] == 0 and not taken[g]:
            ious[d], taken[g] = pairs.ious[i], True
    return ious


def fit_isotonic(scores: np.ndarray, targets: np.ndarray) -> Curve:
    """Fit the curve that rises nowhere less than 0 and has the least squared error. Between its
    points it is linear, beyond them constant.

    Args:
        scores: (D,), at least one.
        targets: (D,), in [0, 1].
    """
    from scipy.optimize import isotonic_regression  # the rest of the program needs no SciPy

    x, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(inverse.reshape(-1), targets) / counts
    y = np.clip(isotonic_regression(means, weights=counts).x, 0, 1)
    # The ends of a block of equal values are enough.
    is_end = np.ones(len(x), dtype=bool)
    is_end[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return Curve(x[is_end].astype(float), y[is_end])


def fit_platt(scores: np.ndarray, targets: np.ndarray) -> Curve:
    """Fit a logistic curve of the scores' logits by maximum likelihood, with Platt's smoothed
    targets (1999, section 2.2) and a slope that is not negative.

    Args:
        scores, targets: see :func:`fit_isotonic`.
    """
    from scipy.optimize import minimize

    x = to_logits(scores)
    positive = targets.sum()
    high, low = (positive + 1) / (positive + 2), 1 / (len(targets) - positive + 2)
    t = targets * high + (1 - targets) * low

    def compute_loss(parameters: np.ndarray):
        z = parameters[0] * x + parameters[1]
        error = 1 / (1 + np.exp(-z)) - t
        loss = (np.logaddexp(0, z) - t * z).mean()
        return loss, np.array([(error * x).mean(), error.mean()])

    bounds = [(0, 50), (-50, 50)]
    found = minimize(compute_loss, [1.0, 0.0], jac=True, bounds=bounds, method="L-BFGS-B")
    slope, intercept = found.x
    return Curve(1 / (1 + np.exp(-LOGITS)), 1 / (1 + np.exp(-(slope * LOGITS + intercept))))


def to_logits(scores: np.ndarray) -> np.ndarray:
    """Return the logits of scores, within those at which curves are kept."""
    low = 1 / (1 + np.exp(-LOGITS[0]))
    scores = np.clip(scores, low, 1 - low)
    return np.log(scores) - np.log1p(-scores)


def fit_classes(detections: Detections) -> List[Fit]:
    """
    Args:
        detections: detections, at least one.

    Returns:
        the curves of each class: by isotonic regression if at least ``MIN_ISOTONIC`` of its
        detections are right, by Platt's method if ``MIN_OWN`` are, or else those of all classes
        with objects together.
    """
    number = np.bincount(detections.classes[detections.right], minlength=detections.num_classes)
    known = detections.select(detections.has_objects[detections.classes])
    pooled = _fit(known if len(known.scores) else detections, int(number.sum()))
    fits = []
    for k in range(detections.num_classes):
        if number[k] < MIN_OWN:
            fits.append(pooled._replace(method=POOLED))
        else:
            fits.append(_fit(detections.select(detections.classes == k), number[k]))
    return fits


def _fit(detections: Detections, num_right: int) -> Fit:
    is_many = num_right >= MIN_ISOTONIC
    fit = fit_isotonic if is_many else fit_platt
    curves = [fit(detections.scores, x) for x in (detections.right.astype(float), detections.ious)]
    return Fit(ISOTONIC if is_many else PLATT, *curves)


def apply_fits(fits: Sequence[Fit], detections: Detections, name: str = "precision") -> np.ndarray:
    """Return the values (D,) of the curves "precision" or "iou" at the raw scores."""
    values = np.full(len(detections.scores), np.nan)
    for k, fit in enumerate(fits):
        mine = detections.classes == k
        values[mine] = getattr(fit, name).apply(detections.scores[mine])
    return values


def cross_fit(detections: Detections, seed: int = 0) -> Dict[str, np.ndarray]:
    """Return calibrated values, those of each group of images by curves that were fitted without
    it: an error measured on them is not one of values that were fitted to their own images.

    Returns:
        "precision" and "iou", (D,); NaN if no other group has a detection.
    """
    num_folds = min(NUM_FOLDS, detections.num_groups)
    folds = np.random.default_rng(seed).permutation(detections.num_groups) % max(num_folds, 1)
    values = {name: np.full(len(detections.scores), np.nan) for name in ("precision", "iou")}
    for fold in range(num_folds):
        mine = folds[detections.groups] == fold
        if mine.all() or not mine.any():
            continue
        fits = fit_classes(detections.select(~mine))
        for name, x in values.items():
            x[mine] = apply_fits(fits, detections.select(mine), name)
    return values


def measure_errors(
    detections: Detections,
    before: np.ndarray,
    after: np.ndarray,
    *,
    by_iou: bool,
    seed: int = 0,
) -> Errors:
    """Measure a calibration error before and after, with bootstrap intervals over the groups of
    images: sum over bins of (share of detections) * |mean value - mean target|.

    Args:
        before, after: (D,), values that should be equal to the target on average.
        by_iou: LaECE_0, whose target is the IoU, of each class with objects and detections, and
            averaged over these classes; otherwise D-ECE, whose target is 1 for a right detection,
            of all classes together.
        seed: random seed of the draws.
    """
    target = detections.ious if by_iou else detections.right.astype(float)
    parts = np.arange(detections.num_classes) if by_iou else np.zeros(1, dtype=np.int64)
    classes = detections.classes if by_iou else np.zeros_like(detections.classes)
    rng = np.random.default_rng(seed)
    n = detections.num_groups
    draws = rng.multinomial(n, np.full(n, 1 / n), size=NUM_DRAWS)
    weights = np.concatenate([np.ones((1, n)), draws])  # the first is the estimate itself
    found = []
    for values in (before, after):
        each = []
        for k in parts:
            mine = classes == k
            if mine.any() and (detections.has_objects[k] or not by_iou):
                x, t, g = values[mine], target[mine], detections.groups[mine]
                each.append(_measure_gaps(x, t, g, weights))
        found.append(np.nanmean(each, axis=0) if each else np.full(len(weights), np.nan))
    return Errors(*(_summarize(x) for x in (*found, found[0] - found[1])))


def _measure_gaps(
    values: np.ndarray, target: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the binned error for each weighting (B, N) of the groups; NaN without detections."""
    bins = np.clip(np.ceil(values * NUM_BINS) - 1, 0, NUM_BINS - 1).astype(np.int64)
    gaps = np.zeros((weights.shape[1], NUM_BINS))
    np.add.at(gaps, (groups, bins), values - target)
    counts = weights @ np.bincount(groups, minlength=weights.shape[1])
    with np.errstate(invalid="ignore"):
        return np.abs(weights @ gaps).sum(axis=1) / counts


def _summarize(values: np.ndarray) -> Estimate:
    """Return the first value, and the basic bootstrap interval from the others. A binned error is
    too large on average, that of a draw even more; the basic interval subtracts it.
    """
    value, draws = values[0], values[1:][~np.isnan(values[1:])]
    if np.isnan(value) or not len(draws):
        return Estimate(float(value), np.nan, np.nan)
    low, high = 2 * value - np.quantile(draws, (0.975, 0.025))
    return Estimate(*map(float, (value, low, high)))
