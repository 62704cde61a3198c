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


def test_random_devices_keep_the_bound() -> None:
    assert 0.8 < t10.worst_share() <= 1 + 1e-9


def test_each_condition_is_needed() -> None:
    found = t10.demonstrations()
    assert all(d.as_it_should_be for d in found)
    assert sum(bool(d.dropped) for d in found) == 6


def test_a_photon_transfer_gain_under_common_noise_finds_a_third_of_the_light() -> None:
    assert t10.excess_noise() == pytest.approx(1 / 3)
    assert math.sqrt(t10.excess_noise()) == pytest.approx(0.577, abs=1e-3)
