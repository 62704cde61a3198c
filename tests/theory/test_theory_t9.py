"""T9: composition at fixed settings by accountants that share no code; an odometer exceeds its delta."""

from __future__ import annotations

import pytest

from experiments.theory import t9
from experiments.theory.gaussians import gaussian_delta
from privacy.accounting.discretisation import Group
from privacy.accounting.numerical import NumericalComposition
from privacy.notions import Adjacency


def test_accountants_agree() -> None:
    found = t9.accountants()
    assert found["pld"] == pytest.approx(found["numerical"], rel=1e-3)
    assert found["prv"] == pytest.approx(found["numerical"], rel=0.02)
    assert found["numerical"] < found["rdp"] < 1.3 * found["numerical"]


def test_an_odometer_exceeds_its_delta_and_a_preset_budget_does_not() -> None:
    assert t9.preset() == pytest.approx(t9.NOMINAL, rel=5e-3)
    assert t9.odometer() > 5 * t9.NOMINAL


def test_the_dynamic_programme_is_exact_where_there_is_nothing_to_choose() -> None:
    assert t9.best_stop(lambda t: 1.0, mu=0.5, steps=1) == pytest.approx(gaussian_delta(1.0, 0.5), rel=2e-3)
    assert t9.best_stop(lambda t: 2.0, mu=0.25, steps=16) == pytest.approx(gaussian_delta(2.0, 1.0), rel=5e-3)


def test_the_larger_direction_counts() -> None:
    adding, removing = t9.one_direction(0.5, 1.0, 0.5)
    assert removing > 5 * adding
    claim = NumericalComposition((Group(0.5, 1.0, 1),), Adjacency.ADD_REMOVE).delta(0.5)
    assert claim == pytest.approx(max(adding, removing), rel=2e-3)
