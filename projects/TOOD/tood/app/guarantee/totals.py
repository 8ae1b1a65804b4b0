"""Totals of objects from a detector's counts on all images, and true counts on a random sample: the
difference estimator of survey sampling (Cochran 1977, section 7; as "prediction-powered" in
Angelopoulos et al. 2023, arXiv 2301.09633).

Shapes: N images, n of them audited, B draws.
"""

from typing import List, NamedTuple, Sequence, Tuple

import numpy as np

ERROR = 0.05  # of the intervals, both sides together
NUM_DRAWS = 2000
LARGEST_WEIGHT = 0.8  # of a value in the Bernstein bound; below 1
FEW = 10  # audited images that differ, for a bootstrap that can be relied on


class Total(NamedTuple):
    """The total of a class in all images, and two 95 % intervals."""

    name: str
    detected: int  # sum of the detector's counts
    estimate: float  # detected + correction
    bootstrap: Tuple[float, float]  # bootstrap-t; NaN if all differences are equal
    bernstein: Tuple[float, float]  # empirical Bernstein bound
    most: int  # objects in an image, at most, that the bound assumes
    num_differing: int  # audited images whose count differs from the detector's


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
        name: name of the class.
        detected: (N,), the detector's counts.
        chosen: (n,), indices of the audited images, at least two, drawn at random.
        true: (n,), their true counts.
        most: maximum number of objects in an image; default, and at least: the largest known
            count.
        seed: random seed of the bootstrap.

    Returns:
        the total. Intervals lie within what is certain: the audited objects are there, and no other
        image has more than ``most``.
    """
    detected, true = np.asarray(detected, dtype=float), np.asarray(true, dtype=float)
    num_images, n, total = len(detected), len(true), detected.sum()
    differences = true - detected[list(chosen)]
    most = int(max(most, true.max(), detected.max()))
    span = -detected.max(), most - detected.min()
    certain = true.sum(), true.sum() + (num_images - n) * most
    estimate = total + num_images * differences.mean()
    ends = (
        bootstrap_t(differences, num_images, seed),
        bound_mean(differences, num_images, span, seed),
    )
    intervals = [tuple(np.clip(total + num_images * np.array(x), *certain).tolist()) for x in ends]
    return Total(
        name,
        int(total),
        float(np.clip(estimate, *certain)),
        *intervals,
        most,
        int((differences != 0).sum()),
    )


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


def bound_mean(
    differences: np.ndarray, num_images: int, span: Tuple[float, float], seed: int = 0
) -> Tuple[float, float]:
    """Return an interval for the mean of N values that misses it with a probability of at most 5 %,
    for any values: the empirical Bernstein bound for samples without replacement
    (Waudby-Smith and Ramdas 2020, arXiv 2006.04347).

    Args:
        differences: (n,), drawn without replacement, n at least 2.
        span: the least and the largest that one of the N values may be.
        seed: random seed of the order in which they are taken.
    """
    n, width = len(differences), span[1] - span[0]
    if n == num_images or width == 0:
        return differences.mean(), differences.mean()
    x = (np.random.RandomState(seed).permutation(differences) - span[0]) / width
    before = np.arange(n)  # number of earlier values
    earlier = np.cumsum(x) - x
    # Means of the earlier values and of two more with the mean 1/2 and the variance 1/4.
    means = (0.5 + np.cumsum(x)) / (before + 2)
    squares = np.cumsum((x - means) ** 2)
    variances = (0.25 + np.r_[0, squares[:-1]]) / (before + 1)
    previous = np.r_[0.5, means[:-1]]
    log = np.log(2 / ERROR)
    weights = np.minimum(np.sqrt(2 * log / (n * variances)), LARGEST_WEIGHT)
    left = num_images - before
    scale = (weights * num_images / left).sum()
    center = (weights * (x + earlier / left)).sum() / scale
    margin = (log + ((x - previous) ** 2 * (-np.log1p(-weights) - weights)).sum()) / scale
    return tuple(float(span[0] + width * y) for y in (center - margin, center + margin))
