"""Totals of objects from a detector's counts on all images, and true counts on a random sample: the
difference estimator of survey sampling (Cochran 1977, section 7; as "prediction-powered" in
Angelopoulos et al. 2023, arXiv 2301.09633).

Shapes: N images, n of them audited, B draws.
"""

from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

ERROR = 0.05  # of the intervals, both sides together
NUM_DRAWS = 2000


class Total(NamedTuple):
    """The total of a class in all images, and two 95 % intervals."""

    name: str
    detected: int  # sum of the detector's counts
    estimate: float  # detected + correction
    bootstrap: Tuple[float, float]  # bootstrap-t; NaN if all differences are equal
    bernstein: Tuple[float, float]  # empirical Bernstein-Serfling bound
    most: int  # objects in an image, at most, that the bound assumes


def choose_sample(num_images: int, size: int, seed: int) -> List[int]:
    """Return the indices of images that are drawn at random without replacement, ascending. The
    generator is one whose numbers no version of NumPy changes.
    """
    return sorted(np.random.RandomState(seed).permutation(num_images)[:size].tolist())


def estimate_total(
    name: str,
    detected: Sequence[int],
    chosen: Sequence[int],
    true: Sequence[int],
    *,
    most: int = 0,
    seed: int = 0,
) -> Total:
    """
    Args:
        name: of the class.
        detected: (N,), the detector's counts.
        chosen: (n,), indices of the audited images, at least two, drawn at random.
        true: (n,), their true counts.
        most: that an image may have; default, and at least: the largest count that is known.
        seed: of the bootstrap.

    Returns:
        the total. Intervals lie within what is certain: the audited objects are there, and no other
        image has more than ``most``.
    """
    detected, true = np.asarray(detected, dtype=float), np.asarray(true, dtype=float)
    num_images, n, total = len(detected), len(true), detected.sum()
    differences = true - detected[list(chosen)]
    most = int(max(most, true.max(), detected.max()))
    span = most - detected.min() + detected.max()
    certain = true.sum(), true.sum() + (num_images - n) * most
    estimate = total + num_images * differences.mean()
    low, high = bootstrap_t(differences, num_images, seed)
    margin = bound_mean(differences, num_images, span)
    intervals = [
        tuple(float(x) for x in np.clip(total + num_images * np.array(ends), *certain))
        for ends in ((low, high), (differences.mean() - margin, differences.mean() + margin))
    ]
    return Total(name, int(total), float(np.clip(estimate, *certain)), *intervals, most)


def bootstrap_t(differences: np.ndarray, num_images: int, seed: int = 0) -> Tuple[float, float]:
    """Return the bootstrap-t interval (Efron and Tibshirani 1993, section 12.5) of the mean of N
    values from n that were drawn without replacement: the standard error has the finite population
    correction. NaN if all n are equal; infinite if too many draws of them are.

    Args:
        differences: (n,), n at least 2.
    """
    n, mean, spread = len(differences), differences.mean(), differences.std(ddof=1)
    error = spread * np.sqrt((1 - n / num_images) / n)
    if n == num_images:
        return mean, mean
    if spread == 0:
        return np.nan, np.nan
    draws = np.random.default_rng(seed).choice(differences, (NUM_DRAWS, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (draws.mean(axis=1) - mean) / (draws.std(axis=1, ddof=1) / np.sqrt(n))
    t = np.where(np.isnan(t), 0, t)  # a draw of equal values whose mean is right
    low, high = np.quantile(t, (ERROR / 2, 1 - ERROR / 2), method="inverted_cdf")
    return mean - high * error, mean - low * error


def bound_mean(differences: np.ndarray, num_images: int, span: float) -> float:
    """Return the distance from the mean of n values to the mean of all N that is exceeded with a
    probability of at most 5 %, whatever the values are (empirical Bernstein-Serfling inequality:
    Bardenet and Maillard 2015, theorem 4.3, for both sides).

    Args:
        differences: (n,), drawn without replacement, n at least 2.
        span: difference of the largest and the smallest that the N values may be.
    """
    n, share = len(differences), len(differences) / num_images
    if n == num_images:
        return 0.0
    rho = 1 - (n - 1) / num_images if share <= 0.5 else (1 - share) * (1 + 1 / n)
    log = np.log(2 * 5 / ERROR)
    spread = differences.std(ddof=1)
    return float(spread * np.sqrt(2 * rho * log / n) + (7 / 3 + 3 / np.sqrt(2)) * span * log / n)
