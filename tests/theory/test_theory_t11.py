"""T11: rounding a Gaussian loses nothing to anybody: δ(ε) of rounded pairs against that of the Gaussian pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import numpy.typing as npt
import pytest

from noise_models.randomness.rounded_gaussian import rounded_mass
from privacy.accounting.gdp import gaussian_delta

EPSILONS = (-1.0, 0.0, 0.1, 0.5, 1.0, 3.0, 8.0)


def thresholds(
    shift: int, std: float, epsilon: float, rate: float, *, removed: bool
) -> tuple[mpmath.mpf, mpmath.mpf]:
    """δ(ε) of shifted noise, seen with probability `rate`, against noise: of the rounded Gaussian and the Gaussian.

    The ratio of the worlds rises with the value (both laws are log-concave), so the best event is a half line: it
    begins where the Gaussians' ratio is e^ε, and for whole numbers next to that place.
    """
    sign = -1 if removed else 1  # δ of the second world against the first: the half line is the other one
    s, bound = mpmath.mpf(std), mpmath.e ** (sign * mpmath.mpf(epsilon))
    inside = (bound - (1 - rate)) / rate
    if inside <= 0:
        return (mpmath.mpf(0), mpmath.mpf(0)) if removed else (1 - bound, 1 - bound)
    best = s**2 / shift * mpmath.log(inside) + mpmath.mpf(shift) / 2

    def excess(place: mpmath.mpf) -> mpmath.mpf:
        def beyond(edge: mpmath.mpf) -> mpmath.mpf:
            return mpmath.ncdf(sign * -edge / s)

        without = beyond(place)
        seen = (1 - rate) * without + rate * beyond(place - shift)
        one, other = (without, seen) if removed else (seen, without)
        return one - mpmath.e ** mpmath.mpf(epsilon) * other

    near = mpmath.floor(best)
    half = mpmath.mpf(1) / 2
    rounded = max(excess(near + offset + half) for offset in (-1, 0, 1))
    return max(rounded, mpmath.mpf(0)), excess(best)


@pytest.mark.parametrize("rate", [1.0, 0.01])
@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("std", [1.0, 1.7, 10.0, 1e3, 3.3e4, 1e5])
def test_a_rounded_gaussians_delta_is_never_above_the_gaussians(
    std: float, removed: bool, rate: float
) -> None:
    """At 60 digits: the two agree to fifteen at s = 10⁵, where the curve is flat about its best place."""
    with mpmath.workdps(60):
        for multiplier in (0.5, 1.0, 4.0):
            shift = max(1, round(std / multiplier))
            for epsilon in EPSILONS:
                rounded, gaussian = thresholds(shift, std, epsilon, rate, removed=removed)
                assert 0 <= rounded <= gaussian
                assert float(gaussian - rounded) <= 0.5 * shift / std**2
                if rate == 1.0:
                    assert float(gaussian) == pytest.approx(
                        gaussian_delta(shift / std, epsilon), rel=1e-9, abs=0
                    )


def law(std: float, reach: float = 12.0) -> npt.NDArray[np.float64]:
    """P(round(Z) = k), |k| ≤ reach · std + 3."""
    edge = math.ceil(reach * std) + 3
    half = np.array([float(rounded_mass(k, Fraction(std) ** 2, 30)) for k in range(edge + 1)])
    return np.concatenate((half[:0:-1], half))


def shifted(p: npt.NDArray[np.float64], *by: int) -> npt.NDArray[np.float64]:
    for axis, steps in enumerate(by):
        p = np.roll(p, steps, axis)  # what comes in at the other end is below 1e-30
    return p


def hockey_stick(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64], epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("std", [1.0, 4.0, 150.0])
def test_a_half_line_gives_the_sum_over_whole_numbers(std: float, rate: float) -> None:
    p = law(std)
    for shift in (1, 2, max(1, round(std))):
        seen = (1 - rate) * p + rate * shifted(p, shift)
        for epsilon in EPSILONS:
            for removed, found in (
                (False, hockey_stick(seen, p, epsilon)),
                (True, hockey_stick(p, seen, epsilon)),
            ):
                with mpmath.workdps(40):
                    rounded, gaussian = thresholds(shift, std, epsilon, rate, removed=removed)
                assert found == pytest.approx(float(rounded), rel=1e-9, abs=1e-13)
                assert found <= float(gaussian) + 1e-13


@pytest.mark.parametrize("move", [(1, 0), (1, 1), (2, 1), (3, -2)])
@pytest.mark.parametrize("std", [1.0, 2.5])
def test_in_the_plane_rounding_loses_nothing_in_any_direction(std: float, move: tuple[int, int]) -> None:
    """Rounding is not isotropic: the guarantee is that of the shift's length all the same."""
    p = np.outer(law(std), law(std))
    for epsilon in EPSILONS:
        found = hockey_stick(shifted(p, *move), p, epsilon)
        assert found <= gaussian_delta(math.hypot(*move) / std, epsilon) + 1e-13


def largest_excess(p: npt.NDArray[np.float64], over: Callable[[float], float]) -> float:
    return max(hockey_stick(shifted(p, 1), p, epsilon) - over(epsilon) for epsilon in np.linspace(0, 3, 301))


def test_the_discrete_gaussian_is_above_the_gaussian_where_the_rounded_one_is_not() -> None:
    """s = D = 1: by 0.016. The Gaussian's accountants are not for it."""
    k = np.arange(-20, 21)
    discrete = np.exp(-(k**2) / 2)
    discrete /= discrete.sum()

    def over(epsilon: float) -> float:
        return gaussian_delta(1.0, epsilon)

    assert largest_excess(discrete, over) == pytest.approx(0.016, abs=5e-4)
    assert largest_excess(law(1.0), over) <= 1e-13
