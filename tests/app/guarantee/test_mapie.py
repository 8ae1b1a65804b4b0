"""Thresholds of MAPIE, another implementation of the same methods, on the same losses."""

import warnings

import numpy as np
import pytest

from tood.app.guarantee.certify import Promise, certify
from tood.app.guarantee.misses import NEVER, Outcome
from tood.app.guarantee.risk import bound_expectation, compute_p_value

methods = pytest.importorskip("mapie.risk_control.methods", reason="an oracle of tests only")


def draw_outcome(seed, n):
    """Return n images of one to seven objects, of which some are never found."""
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(n), rng.integers(1, 8, n))
    difficulty = rng.beta(2, 2, n)[units]
    scores = np.round(rng.uniform(size=len(units)) ** difficulty, 3)
    scores[rng.uniform(size=len(units)) < 0.03] = NEVER
    nothing = np.zeros(0)
    return Outcome(["a"], scores, units * 0, units, n, n, nothing, nothing.astype(int))


def compute_losses(outcome):
    """Return (n, T) losses at all candidates."""
    missed = outcome.scores[:, None] < outcome.candidates
    totals = np.zeros((outcome.num_units, len(outcome.candidates)))
    np.add.at(totals, outcome.units, missed)
    return totals / np.bincount(outcome.units)[:, None]


@pytest.mark.parametrize("n", [30, 100, 400])
@pytest.mark.parametrize("limit", [0.1, 0.2, 0.35])
def test_thresholds_are_those_of_mapie(n, limit):
    for seed in range(10):
        outcome = draw_outcome(seed, n)
        candidates, losses = outcome.candidates, compute_losses(outcome)
        risk, bound = methods.get_r_hat_plus(losses, candidates, "crc", None, None, None)
        for i in (0, len(candidates) // 2, -1):
            total = outcome.sum_losses(candidates[i])
            assert float(total / n) == pytest.approx(risk[i], abs=1e-12)
            assert float(bound_expectation(total, n)) == pytest.approx(bound[i], abs=1e-12)
        ours = certify(outcome, Promise(limit)).score_threshold
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a risk that cannot be controlled
            theirs = methods.find_best_predict_param(candidates, bound, np.array([limit]))[0]
        assert ours == (theirs if bound[0] < limit else None)


@pytest.mark.parametrize("n", [30, 100, 400])
@pytest.mark.parametrize("limit", [0.1, 0.2, 0.35])
def test_fixed_sequences_are_those_of_mapie(n, limit):
    from mapie.risk_control._base_controller import ltt_procedure

    for seed in range(10):
        outcome = draw_outcome(seed, n)
        # Rounded up, n times a risk that is a whole number would become the next one there.
        risk = compute_losses(outcome).mean(axis=0) * (1 - 1e-12)
        p_values = methods.compute_hoeffding_bentkus_p_value(risk, n, limit)[:, 0]
        for i in range(0, len(risk), 1 + len(risk) // 20):
            total = outcome.sum_losses(outcome.candidates[i])
            expected = min(p_values[i], 1.0)
            assert compute_p_value(total, n, limit) == pytest.approx(expected, abs=1e-9)
        arrays = (risk[None], np.array([[limit]]), 0.1, np.full((1, len(risk)), n))
        valid = ltt_procedure(*arrays, fwer_method="fixed_sequence")[0][0]
        ours = certify(outcome, Promise(limit, 0.9)).score_threshold
        assert ours == (outcome.candidates[max(valid)] if len(valid) else None)
