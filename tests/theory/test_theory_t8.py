"""T8: simultaneous lower limits cover with 1 − beta, beta enters delta, and Rényi statements do not survive it."""

from __future__ import annotations

import pytest

from experiments.theory import t8
from experiments.theory.gaussians import gaussian_delta
from privacy import accounting
from privacy.notions import Adjacency


def test_the_factor_of_a_million_pixels() -> None:
    assert t8.credit_factor(1e6, 1e-6, 1000) == pytest.approx(0.86, abs=0.005)


def test_simultaneous_limits_cover_and_others_do_not() -> None:
    """4000 calibrations; the failure rates' lower limits are at 99.9 %."""
    assert 0.02 < t8.failures(t8.credit_factor(t8.PIXELS, t8.BETA, t8.FRAMES)) <= t8.BETA
    assert t8.failures(t8.credit_factor(1, t8.BETA, t8.FRAMES)) > 0.9
    assert t8.failures(1.0) > 0.99


def test_beta_left_out_of_delta_is_exceeded() -> None:
    found = t8.with_failing_calibrations(4.0, 1.0, 1e-3)
    assert gaussian_delta(4.0, 1.0) < found <= gaussian_delta(4.0, 1.0) + 1e-3


def test_the_accountant_takes_beta_off_delta_once() -> None:
    run = {accounting.gaussian(0.02, 1.0): 100}
    assert accounting.epsilon(run, 1e-5, Adjacency.ADD_REMOVE, "numerical", beta=4e-6) == pytest.approx(
        accounting.epsilon(run, 6e-6, Adjacency.ADD_REMOVE, "numerical")
    )


def test_a_renyi_statement_does_not_survive_a_failing_calibration() -> None:
    assert t8.renyi_with_failing_calibrations(1e-3, 1.0, 10.0) > 50 * 4.0
