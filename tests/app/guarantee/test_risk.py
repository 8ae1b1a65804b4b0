"""Bounds on the risk, against literal values, slow loops and draws of known risk."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tood.app.guarantee.risk import (
    bound_expectation,
    bound_with_confidence,
    compute_p_value,
    estimate_needed,
    find_last,
    is_certified,
    read_fraction,
)


def test_the_bound_in_expectation_is_the_formula():
    # 9 images, of which one misses a third and one a half: 9/10 * (5/6)/9 + 1/10 = 11/60.
    assert bound_expectation(Fraction(5, 6), 9) == Fraction(11, 60)
    assert bound_expectation(Fraction(0), 9) == Fraction(1, 10)


def test_no_rounding_decides_at_the_limit():
    """Floats would decide wrong: 0.1 * 3 is above 0.3, and a third three times is below or at 1."""
    assert is_certified(Fraction(0), 9, 0.1, None)  # 1/10 <= 0.1
    assert not is_certified(Fraction(0), 8, 0.1, None)
    thirds = sum([Fraction(1, 3)] * 6, Fraction(0))
    assert is_certified(thirds, 9, 0.3, None)  # (2 + 1) / 10 <= 0.3
    assert not is_certified(thirds + Fraction(1, 10**20), 9, 0.3, None)
    assert read_fraction(0.1) == Fraction(1, 10)
    # (1 - 0.1)^29 = 0.047, (1 - 0.1)^28 = 0.052: so many images without a miss are needed.
    assert is_certified(Fraction(0), 29, 0.1, 0.95)
    assert not is_certified(Fraction(0), 28, 0.1, 0.95)


def test_p_values_are_those_of_the_formula():
    """Computed by hand: n = 100, risk 0.05, limit 0.1. Hoeffding: the entropy is 0.05 log 0.5 +
    0.95 log(0.95 / 0.9) = 0.016706, exp(-1.6706) = 0.1881. Bentkus: e P(Bin(100, 0.1) <= 5) =
    2.71828 * 0.057577 = 0.15651, the smaller one.
    """
    assert compute_p_value(Fraction(5), 100, 0.1) == pytest.approx(0.156511, abs=1e-6)
    # n = 10, risk 0: 0.5^10; Bentkus is e times that.
    assert compute_p_value(Fraction(0), 10, 0.5) == pytest.approx(0.5**10, rel=1e-12)
    for risk in (0.1, 0.2, 1):
        assert compute_p_value(Fraction(risk) * 100, 100, 0.1) == 1.0


@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.05, 0.1, 0.3, 0.8]))
def test_p_values_rise_with_the_losses(total, n, limit):
    """So that tests one after the other stop where the last certified threshold is."""
    values = [compute_p_value(Fraction(x, 7), n, limit) for x in range(0, 7 * n + 1, 3)]
    assert all(x <= y + 1e-15 for x, y in zip(values, values[1:]))
    assert 0 <= values[0] and values[-1] == 1.0


def test_the_bound_with_a_confidence_is_where_the_test_turns():
    for total, n in ((Fraction(0), 30), (Fraction(7, 2), 50), (Fraction(50), 50)):
        bound = bound_with_confidence(total, n, 0.9)
        assert bound == 1 or compute_p_value(total, n, bound) <= 0.1
        assert compute_p_value(total, n, bound - 1e-6) > 0.1
    # Of no loss in n: the solution of (1 - a)^n = 0.1.
    assert bound_with_confidence(Fraction(0), 30, 0.9) == pytest.approx(1 - 0.1 ** (1 / 30))


@given(st.lists(st.booleans(), max_size=40).map(lambda x: sorted(x, reverse=True)))
def test_the_last_position_of_a_condition(are_met):
    assert find_last(len(are_met), are_met.__getitem__) == sum(are_met) - 1


def test_units_that_would_do():
    # (n R + 1) / (n + 1) <= a: n >= (1 - a) / (a - R) = 0.9 / 0.05 = 18.
    assert estimate_needed(Fraction(1, 20), 0.1, None) == 18
    assert estimate_needed(Fraction(0), 0.1, None) == 9
    assert estimate_needed(Fraction(0), 0.1, 0.95) == 29
    assert estimate_needed(Fraction(1, 10), 0.1, None) is None
    assert estimate_needed(Fraction(1, 5), 0.1, 0.95) is None
    needed = estimate_needed(Fraction(1, 20), 0.1, 0.95)
    assert is_certified(Fraction(1, 20) * needed, needed, 0.1, 0.95)
    assert 150 < needed < 260


def choose_by_loop(scores, thresholds, limit, confidence):
    """The largest threshold that is certified, one test after the other; None for none."""
    chosen = None
    for t in thresholds:
        total = sum((Fraction(int((row < t).sum()), row.size) for row in scores), Fraction(0))
        if not is_certified(total, len(scores), limit, confidence):
            break
        chosen = t
    return chosen


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_the_chosen_threshold_is_that_of_the_loop(confidence):
    rng = np.random.default_rng(0)
    for n in (12, 60):
        scores = rng.random((n, 5)).round(2)  # with ties
        candidates = np.unique(scores)

        def is_met(i, scores=scores, candidates=candidates):
            total = Fraction(int((scores < candidates[i]).sum()), 5)
            return is_certified(total, len(scores), 0.3, confidence)

        last = find_last(len(candidates), is_met)
        expected = choose_by_loop(scores, candidates, 0.3, confidence)
        assert (candidates[last] if last >= 0 else None) == expected


def find_most(n, objects, limit, confidence):
    """Return how many missed objects of all are still certified, -1 for not even none."""

    def is_met(k):
        return is_certified(Fraction(k, objects), n, limit, confidence)

    return find_last(objects * n + 1, is_met)


def certify_draws(draws, n, objects, limit, confidence):
    """Return the largest certified threshold of each draw of n images. Scores of the objects of an
    image are uniform, so that the risk at a threshold is the threshold itself.
    """
    scores = np.sort(np.random.default_rng(0).random((draws, objects * n)), axis=1)
    return scores[:, find_most(n, objects, limit, confidence)]


@pytest.mark.parametrize("n, objects", [(20, 1), (20, 5), (100, 1), (100, 5)])
def test_mean_risk_of_10000_draws_of_known_risk(n, objects):
    """At most the limit, and the mean of an order statistic: within four standard errors."""
    risks = certify_draws(10_000, n, objects, 0.2, None)
    error = risks.std() / 100
    expected = (find_most(n, objects, 0.2, None) + 1) / (objects * n + 1)
    assert expected <= 0.2 and abs(risks.mean() - expected) < 4 * error
    # A control that must fail: the mean of the losses alone, without a correction.
    scores = np.sort(np.random.default_rng(1).random((10_000, objects * n)), axis=1)
    naive = scores[:, math.floor(round(0.2 * objects * n, 9))]
    assert naive.mean() - 4 * naive.std() / 100 > 0.2


@pytest.mark.parametrize("n, objects", [(30, 1), (30, 5), (100, 1), (100, 5)])
def test_share_of_10000_draws_with_a_higher_risk(n, objects):
    """At most 10 % with a confidence of 90 %: as often as a binomial number is small enough."""
    above = int((certify_draws(10_000, n, objects, 0.2, 0.9) > 0.2).sum())
    exact = stats.binom.cdf(find_most(n, objects, 0.2, 0.9), objects * n, 0.2)
    assert exact <= 0.1
    assert stats.binomtest(above, 10_000, exact).pvalue > 0.001
    # A control that must fail: the threshold of the bound in expectation.
    above = int((certify_draws(10_000, n, objects, 0.2, None) > 0.2).sum())
    assert stats.binomtest(above, 10_000).proportion_ci(0.999).low > 0.1
