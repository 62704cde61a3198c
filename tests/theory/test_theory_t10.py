"""T10: shot noise of a sum that light carries, by exact divergences, and each condition dropped."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.theory import t10


@given(st.floats(0.0, 0.95), st.floats(0.0, 2 * math.pi), st.floats(0.0, 0.95), st.floats(0.0, 2 * math.pi))
def test_both_arms_move_by_no_more_than_gamma_lets_them(
    radius: float, angle: float, other: float, turn: float
) -> None:
    """Any two fields in the disc: the sharp bound of T10, with the reference as 1."""
    ratio = max(radius, other)
    first, second = radius * np.exp(1j * angle), other * np.exp(1j * turn)
    moved = sum((abs(1 + sign * second) - abs(1 + sign * first)) ** 2 / 2 for sign in (1, -1))
    change = second - first
    assert moved <= change.real**2 + ratio**2 / (1 + ratio**2) * change.imag**2 + 1e-14


def test_gamma_is_sharp() -> None:
    """At the edge of the disc a step along the tightest direction attains it: γ² cannot be smaller."""
    ratio, step = 0.6, 1e-4
    best = 0.0
    for angle in np.linspace(0, math.pi, 181):
        start = ratio * np.exp(1j * angle)
        for direction in np.linspace(0, math.pi, 721):
            change = step * np.exp(1j * direction)
            end = start + change
            moved = sum((abs(1 + sign * end) - abs(1 + sign * start)) ** 2 / 2 for sign in (1, -1))
            best = max(
                best, (moved - change.real**2) / change.imag**2 if abs(change.imag) > step / 20 else 0.0
            )
    assert best == pytest.approx(ratio**2 / (1 + ratio**2), rel=0.01)


@given(st.floats(0.0, 0.95), st.floats(0.0, 2 * math.pi), st.floats(0.0, 0.95), st.floats(0.0, 2 * math.pi))
def test_one_arm_moves_by_no_more_than_its_factors_let_it(
    radius: float, angle: float, other: float, turn: float
) -> None:
    """Any two fields in the disc: (1 + ρ) e'² + ρ e''², which two arms need less of."""
    ratio = max(radius, other)
    first, second = radius * np.exp(1j * angle), other * np.exp(1j * turn)
    moved = (abs(1 + second) - abs(1 + first)) ** 2
    change = second - first
    assert moved <= (1 + ratio) * change.real**2 + ratio * change.imag**2 + 1e-14


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.7])
def test_the_factors_of_one_arm_are_sharp(ratio: float) -> None:
    """A field at the edge of the disc, where what is counted leans from the reference's phase as far as it gets."""
    start = 1 + ratio * np.exp(1j * (math.pi / 2 + math.asin(ratio)))
    lean = start.imag / start.real  # of the amplitude's gradient
    change = 1e-5 * (1 + 1j * lean * (1 + ratio) / ratio)  # divided by the factors: where both sides meet
    moved = (abs(start + change) - abs(start)) ** 2
    allowed = (1 + ratio) * change.real**2 + ratio * change.imag**2
    assert moved / allowed == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("arms", [1, 2])
def test_random_devices_keep_the_bound(arms: int) -> None:
    assert 0.8 < t10.worst_share(arms) <= 1 + 1e-9


def test_each_condition_is_needed() -> None:
    found = t10.demonstrations()
    assert all(d.as_it_should_be for d in found)
    assert sum(bool(d.dropped) for d in found) == 8


def test_a_photon_transfer_gain_under_common_noise_finds_a_third_of_the_light() -> None:
    assert t10.excess_noise() == pytest.approx(1 / 3)
    assert math.sqrt(t10.excess_noise()) == pytest.approx(0.577, abs=1e-3)
