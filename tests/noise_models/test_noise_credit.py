"""What is not Gaussian in a pixel's noise: random telegraph noise of any occupancy, alike or not in all pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from noise_models.calibration.document import Interval
from noise_models.calibration.frame_statistics import GROUPS, DarkMoments
from noise_models.calibration.noise_credit import NoiseCredit, noise_credit, telegraph_variance

SIGMA = 4.0


def cumulants(p: float) -> tuple[float, float]:
    """k3 and k4 of a two-level noise of variance 1, from scipy's moments of the Bernoulli law."""
    skew, kurtosis = stats.bernoulli.stats(p, moments="sk")
    return float(skew), float(kurtosis)


@given(p=st.floats(0.01, 0.99), variance=st.floats(1e-3, 1e3))
def test_two_levels_of_any_occupancy_give_their_variance_back(p: float, variance: float) -> None:
    third, fourth = cumulants(p)
    found = telegraph_variance(third**2 * variance**3, fourth * variance**2)
    assert found == pytest.approx(variance, rel=1e-6)


@given(q=st.floats(0, 1e4), more=st.floats(0, 1e4), k4=st.floats(-1e4, 0), less=st.floats(0, 1e4))
def test_larger_cumulants_give_more(q: float, more: float, k4: float, less: float) -> None:
    smaller, larger = telegraph_variance(q, k4), telegraph_variance(q + more, k4 - less)
    assert larger >= smaller * (1 - 1e-9) >= 0.0


def credit_of(noise: np.ndarray, shape: tuple[int, int]) -> NoiseCredit:
    moments = DarkMoments(shape)
    for part in np.array_split((100 + noise).round().astype(np.int32), 8):
        moments.add(part)
    return noise_credit(moments, Interval(0, 0, 0), np.zeros(shape[0] * shape[1]), 255, 1e-6)


@pytest.mark.parametrize("share", [0.25, 0.35])
@pytest.mark.parametrize("occupancy", ["skew", "mixed"])
def test_telegraph_noise_that_the_mean_fourth_cumulant_does_not_show(share: float, occupancy: str) -> None:
    # At occupancy 0.2113 k4 is 0; at 0.5 and 0.1464 it is opposite.
    rng = np.random.default_rng(1)
    pixels = 1024
    p = (
        np.full(pixels, 0.2113248654)
        if occupancy == "skew"
        else np.where(np.arange(pixels) % 2, 0.5, 0.1464466)
    )
    variance = SIGMA**2 * share
    height = np.sqrt(variance / (p * (1 - p)))
    noise = height * ((rng.random((4096, pixels)) < p) - p)
    noise += np.sqrt(SIGMA**2 - variance) * rng.standard_normal(noise.shape)
    found = credit_of(noise, (32, 32))
    assert found.lower < np.sqrt(SIGMA**2 - variance)
    # What is charged covers it (in the mixture, k3 and k4 of different pixels are charged together).
    assert variance <= found.non_gaussian.upper <= 2.2 * variance
    assert abs(found.excess_kurtosis.value) < 0.02


def test_gaussian_noise_is_charged_little_and_nothing_is_seen_in_it() -> None:
    noise = SIGMA * np.random.default_rng(2).standard_normal((1024, 4096))
    found = credit_of(noise, (64, 64))
    assert found.non_gaussian.value == found.non_gaussian.lower == 0.0
    assert found.non_gaussian.upper < 3.0
    assert found.std == pytest.approx(SIGMA, rel=0.01)


@pytest.mark.parametrize("block", [2, 16, 64])
def test_groups_of_frames_are_independent_estimates(block: int) -> None:
    # Against scipy's k-statistics; every block size fills every group with as many frames.
    noise = np.random.default_rng(3).gamma(4.0, 2.0, (64, 256)).round()
    moments = DarkMoments((16, 16))
    for start in range(0, 64, block):
        moments.add(noise[start : start + block].astype(np.int32))
    third, fourth = moments.grouped_cumulants()
    assert third.shape == fourth.shape == (GROUPS, 256)
    centred = noise - noise.mean(1, keepdims=True)
    if block == 64:
        groups = np.split(centred, GROUPS)
        np.testing.assert_allclose(
            third[1], [stats.kstat(column, 3) for column in groups[1].T], rtol=1e-3, atol=1e-2
        )
        np.testing.assert_allclose(
            fourth[2], [stats.kstat(column, 4) for column in groups[2].T], rtol=1e-3, atol=1e-1
        )
    # The products of groups have the square's expectation: 5 standard errors.
    products = (third.sum(0) ** 2 - (third**2).sum(0)) / (GROUPS * (GROUPS - 1))
    skew = 2 * 4.0 * 2.0**3  # of the gamma law
    assert abs(products.mean() - skew**2) < 5 * products.std() / 16
