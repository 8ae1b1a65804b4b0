"""Bounds on the risk: the mean over future units of a loss from 0 to 1, from the losses of n units
that were drawn like them. A unit is an image, or a group of images.

Two kinds of bound. In expectation: conformal risk control (Angelopoulos, Bates, Fisch, Lei,
Schuster 2022, arXiv 2208.02814). With a confidence: Learn then Test (Angelopoulos, Bates, Candes,
Jordan, Lei 2021, arXiv 2110.01052), whose hypotheses are tested one after the other from the safe
end. A loss that only rises with the threshold needs no grid that is fixed beforehand: the tests may
go through all thresholds, because their p-values only rise as well.

Sums of losses and limits are fractions, so that no rounding decides at a limit.
"""

import math
from fractions import Fraction
from typing import Callable, Optional

from tood.utils.errors import UserError

MOST_UNITS = 10**7  # that are said to be needed


def read_fraction(value: float) -> Fraction:
    """Return the number that a user has typed: 0.1 is a tenth, not the float beside it."""
    return Fraction(repr(float(value)))


def bound_expectation(total: Fraction, n: int) -> Fraction:
    """Return n / (n + 1) R + 1 / (n + 1), the bound of conformal risk control (Theorem 1
    there, for losses of at most 1).

    Args:
        total: sum of the losses of n units, n R.
    """
    return (total + 1) / (n + 1)


def compute_p_value(total: Fraction, n: int, limit: float) -> float:
    """Return the Hoeffding-Bentkus p-value of the hypothesis that the risk is above a limit
    (Learn then Test; Bates, Angelopoulos, Lei, Malik, Jordan 2021, arXiv 2101.02703).

    Args:
        total: sum of the losses of n independent units.
        limit: between 0 and 1.
    """
    binom = _import_binom()
    risk = min(float(total / n), limit)
    hoeffding = math.exp(-n * _relative_entropy(risk, limit))
    bentkus = math.e * float(binom.cdf(math.ceil(total), n, limit))
    return min(hoeffding, bentkus, 1.0)


def _import_binom():
    try:
        from scipy.stats import binom  # takes a second to import
    except ImportError as error:
        raise UserError(
            "The package scipy is missing, which --confidence needs: pip install -e .[guarantee]"
        ) from error
    return binom


def _relative_entropy(a: float, b: float) -> float:
    """Return the relative entropy of Bernoulli's distributions of the means a and b."""
    first = a * math.log(a / b) if a > 0 else 0.0
    second = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def bound_with_confidence(total: Fraction, n: int, confidence: float) -> float:
    """Return the smallest limit, within 1e-9, for which :func:`is_certified` is true: an upper
    confidence bound on the risk.
    """
    error = float(1 - read_fraction(confidence))
    low, high = float(total / n), 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if compute_p_value(total, n, middle) <= error:
            high = middle
        else:
            low = middle
    return high


def is_certified(total: Fraction, n: int, limit: float, confidence: Optional[float]) -> bool:
    """Return whether the losses of n units show that the risk is at most a limit.

    Args:
        confidence: None for the bound in expectation.
    """
    if confidence is None:
        return bound_expectation(total, n) <= read_fraction(limit)
    error = float(1 - read_fraction(confidence))
    return compute_p_value(total, n, limit) <= error


def find_last(number: int, is_met: Callable[[int], bool]) -> int:
    """Return the last of ``number`` positions up to which a condition is met, -1 for none. It must
    be met at all positions before one that meets it, like a bound on a risk that only rises.
    """
    low, high = -1, number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_met(middle) else (low, middle)
    return low


def estimate_needed(risk: Fraction, limit: float, confidence: Optional[float]) -> Optional[int]:
    """Return the number of units, of the same mean loss, that would certify a limit; None if no
    number would.
    """
    if risk >= read_fraction(limit):
        return None
    high = 1
    while not is_certified(risk * high, high, limit, confidence):
        high *= 2
        if high > MOST_UNITS:
            return None
    rest = find_last(high, lambda i: not is_certified(risk * (i + 1), i + 1, limit, confidence))
    return rest + 2
