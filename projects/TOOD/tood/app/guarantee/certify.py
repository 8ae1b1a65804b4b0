"""The threshold that the losses of a data set certify, what it costs, and the words for it."""

import math
from fractions import Fraction
from typing import Dict, List, NamedTuple, Optional

import numpy as np

from tood.app.guarantee.misses import NEVER, Outcome
from tood.app.guarantee.risk import (
    bound_expectation,
    bound_with_confidence,
    estimate_needed,
    find_last,
    is_certified,
    read_fraction,
)

CURVE_POINTS = 101


class Promise(NamedTuple):
    """The promise that is asked for."""

    miss_rate: float  # between 0 and 1
    confidence: Optional[float] = None  # between 0 and 1; None: in expectation
    unit: str = "image"  # or "group"


class Certificate(NamedTuple):
    """A threshold that is certified, or the reason why none is."""

    score_threshold: Optional[float]  # the highest one that is certified
    certifiable: bool
    num_units: int
    num_objects: int
    # At the threshold; without one, if all detections count. NaN if it is not defined.
    empirical_miss_rate: float
    bound: float
    false_per_image: float
    precision: float
    images_needed: Optional[int]  # about, or groups; None if no number would do


def certify(outcome: Outcome, promise: Promise) -> Certificate:
    """Return the certificate of the highest score threshold at which the bound on the risk is at
    most the miss rate.
    """
    candidates, n, confidence = outcome.candidates, outcome.num_units, promise.confidence

    def is_met(i: int) -> bool:
        total = outcome.sum_losses(candidates[i])
        return is_certified(total, n, promise.miss_rate, confidence)

    last = find_last(len(candidates), is_met)
    threshold = float(candidates[last]) if last >= 0 else None
    at = NEVER if threshold is None else threshold
    # No detection has the score NEVER, but objects that none finds.
    lowest = candidates[0] if len(candidates) else np.inf
    needed = None
    if threshold is None and n and len(candidates):
        risk = outcome.sum_losses(lowest) / n
        needed = estimate_needed(risk, promise.miss_rate, confidence)
    return Certificate(
        threshold,
        threshold is not None,
        n,
        len(outcome.scores),
        **_measure(outcome, max(at, lowest), confidence),
        images_needed=needed,
    )


def is_near_refusal(outcome: Outcome, promise: Promise) -> bool:
    """Return whether other images like these might well certify nothing: the bound, if all
    detections count, is within two standard errors of the miss rate. The promise in expectation is
    then one over such choices as well, on which no threshold is used.
    """
    if promise.confidence is not None or not len(outcome.candidates):
        return False
    lowest, n = outcome.candidates[0], outcome.num_units
    bound = float(bound_expectation(outcome.sum_losses(lowest), n))
    error = float(outcome.list_losses(lowest).std()) / math.sqrt(n)
    return bound <= promise.miss_rate < bound + 2 * error


def _measure(outcome: Outcome, threshold: float, confidence: Optional[float]) -> Dict[str, float]:
    """Return the miss rate at a threshold, the bound on it, and its price."""
    n, total = outcome.num_units, outcome.sum_losses(threshold)
    false, found = outcome.count_false(threshold), outcome.count_found(threshold)
    return {
        "empirical_miss_rate": float(total / n) if n else math.nan,
        "bound": _bound(total, n, confidence) if n else math.nan,
        "false_per_image": false / outcome.num_images,
        "precision": found / (found + false) if found + false else math.nan,
    }


def _bound(total: Fraction, n: int, confidence: Optional[float]) -> float:
    if confidence is None:
        return float(bound_expectation(total, n))
    return bound_with_confidence(total, n, confidence)


def trace_curve(outcome: Outcome, promise: Promise) -> Dict[str, List[float]]:
    """Return the values of a certificate at some of the scores at which objects are found, by the
    names of its fields; "score_threshold" rises.
    """
    candidates = outcome.candidates
    chosen = np.unique(np.linspace(0, len(candidates) - 1, CURVE_POINTS).round().astype(int))
    thresholds = candidates[chosen].tolist() if len(candidates) else []
    rows = [_measure(outcome, t, promise.confidence) for t in thresholds]
    names = ("empirical_miss_rate", "bound", "false_per_image", "precision")
    return {"score_threshold": thresholds, **{x: [row[x] for row in rows] for x in names}}


def describe(certificate: Certificate, promise: Promise, class_name: str = "") -> str:
    """Return what is promised, or why nothing is, and the price, in sentences."""
    c = certificate
    objects = f"{class_name} objects" if class_name else "objects"
    if not c.num_objects:
        return f"Not certifiable: there are no {objects} in the calibration data."
    if not c.certifiable:
        return _explain_refusal(c, promise, objects)
    text = _promise(c, promise, objects, f" with {objects}" if class_name else "")
    return (
        f"{text} It is not a promise for each single {promise.unit}. In "
        f"these, {percent(c.empirical_miss_rate)} were missed; the price is "
        f"{c.false_per_image:.2f} detections per image that find no object (precision "
        f"{c.precision:.2f})."
    )


def _promise(c: Certificate, promise: Promise, objects: str, of_class: str) -> str:
    unit, units = promise.unit, f"{promise.unit}s"
    these = f"these {c.num_units}" if c.num_units > 1 else "this one"
    start = (
        f"If detections of at least {floor_score(c.score_threshold)} count, at most "
        f"{percent(promise.miss_rate)} of the {objects} of {'an' if unit == 'image' else 'a'} "
        f"{unit} are missed on average, over new {units}{of_class} like {these}"
    )
    if promise.confidence is None:
        return f"{start} and over the choice of {these.partition(' ')[0]}."
    error = float(1 - read_fraction(promise.confidence))
    number = f"{c.num_units} {unit if c.num_units == 1 else units}"
    return (
        f"{start}; with a confidence of {percent(promise.confidence)}: of {percent(error)} of such "
        f"choices of {number}, at most, the threshold would miss more."
    )


def _explain_refusal(c: Certificate, promise: Promise, objects: str) -> str:
    number = f"{c.num_units} {promise.unit}{'s' * (c.num_units != 1)}"
    if c.precision == 0 or math.isnan(c.precision):
        return (
            f"Not certifiable with {number}: no detection finds one of the {c.num_objects} "
            f"{objects}, so that there is no threshold to choose."
        )
    start = (
        f"Not certifiable with {number}: even if all detections count, "
        f"{percent(c.empirical_miss_rate)} of the {objects} are missed here, and the bound on this "
        f"is {percent(c.bound)}, above {percent(promise.miss_rate)}; "
    )
    if c.images_needed is None:
        return f"{start}more {promise.unit}s would not help, but a better detector would."
    return f"{start}about {c.images_needed} {promise.unit}s would do."


def percent(share: float) -> str:
    """Return a share in percent, of three digits."""
    return f"{100 * share:.3g} %"


def floor_score(score: float) -> str:
    """Return a score with four decimals, rounded down: who types it promises no less."""
    return f"{math.floor(score * 1e4) / 1e4:g}"
