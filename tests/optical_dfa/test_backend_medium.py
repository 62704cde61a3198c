"""The scattering medium against the closed forms of fully developed speckle. Fixed seeds; 6 standard errors."""

from __future__ import annotations

from math import exp, pi, sqrt

import pytest
import torch
from scipy import stats

from noise_models.errors import UsageError
from optical_dfa.backends.medium import Medium, speckle_correlation

SIGMAS = 6.0


def matrix(medium: Medium) -> torch.Tensor:
    """T, shape (pixels, inputs), complex."""
    re, im = medium.columns.double().chunk(2, dim=1)
    return torch.complex(re, im).t() / sqrt(2)


def test_field_is_circular_gaussian_and_intensity_exponential() -> None:
    # False alarm of each Kolmogorov-Smirnov test: 1e-6.
    x = torch.zeros(20, dtype=torch.complex128)
    x[:13] = 1
    field = matrix(Medium(20, 20_000, 1)) @ x / sqrt(13)
    assert stats.kstest(field.real.numpy() * sqrt(2), "norm").pvalue > 1e-6
    assert stats.kstest(field.imag.numpy() * sqrt(2), "norm").pvalue > 1e-6
    assert stats.kstest(field.abs().square().numpy(), "expon").pvalue > 1e-6
    assert stats.kstest(field.angle().numpy(), stats.uniform(-pi, 2 * pi).cdf).pvalue > 1e-6
    # Circular: E[E²] = 0, real and imaginary part alike and uncorrelated.
    assert abs(complex(field.square().mean())) < SIGMAS * sqrt(2 / 20_000)


@pytest.mark.parametrize("grain", [1.0, 2.5, 6.0])
def test_grain_follows_the_circular_pupil(grain: float) -> None:
    # 100 patterns of 60 x 60 pixels; a patch of grain² pixels holds about one independent speckle. What is left
    # besides is the lattice of the transform: 0.015.
    t = matrix(Medium(100, 3600, 2, grain=grain)).t().reshape(100, 60, 60)
    tolerance = SIGMAS * grain / sqrt(100 * 3000) + 0.015
    assert float(t.abs().square().mean()) == pytest.approx(1, abs=tolerance)
    for rows, columns in ((0, 1), (1, 0), (2, 0), (2, 2), (3, 4), (0, 9)):
        shifted, still = t[:, rows:, columns:], t[:, : 60 - rows, : 60 - columns]
        measured = complex((shifted * still.conj()).mean())
        expected = speckle_correlation(sqrt(rows**2 + columns**2), grain)
        assert measured.real == pytest.approx(expected, abs=tolerance)
        assert measured.imag == pytest.approx(0, abs=tolerance)
        # Intensities: |correlation of the field|² (Siegert).
        bright, other = shifted.abs().square(), still.abs().square()
        covariance = float((bright * other).mean() - bright.mean() * other.mean())
        assert covariance == pytest.approx(expected**2, abs=3 * tolerance)


def test_speckle_correlation_has_its_first_zero_at_1_22_grains() -> None:
    assert speckle_correlation(0.0, 3.0) == 1.0
    assert speckle_correlation(1.2197 * 3, 3.0) == pytest.approx(0, abs=1e-4)
    assert speckle_correlation(1.0, 3.0) > speckle_correlation(2.0, 3.0) > 0


def test_grained_speckle_is_exponential_over_media() -> None:
    # One pixel of many inputs: independent draws.
    medium = Medium(2000, 4, 3, grain=3.0)
    assert stats.kstest(matrix(medium)[0].abs().square().numpy(), "expon").pvalue > 1e-6


@pytest.mark.parametrize("grain", [None, 2.0])
def test_ageing_is_an_ornstein_uhlenbeck_process(grain: float | None) -> None:
    medium = Medium(200, 400, 4, grain=grain, decorrelation_seconds=10.0)
    first = matrix(medium)
    standard_error = (grain or 1.0) / sqrt(first.numel())
    elapsed = 0.0
    for seconds in (1.0, 4.0, 10.0):
        medium.advance(seconds)
        elapsed += seconds
        now = matrix(medium)
        correlation = complex((now * first.conj()).mean())
        assert correlation.real == pytest.approx(exp(-elapsed / 10), abs=SIGMAS * standard_error)
        assert correlation.imag == pytest.approx(0, abs=SIGMAS * standard_error)
        assert float(now.abs().square().mean()) == pytest.approx(1, abs=SIGMAS * standard_error)
        bright, other = now.abs().square(), first.abs().square()
        covariance = float((bright * other).mean() - bright.mean() * other.mean())
        assert covariance == pytest.approx(exp(-2 * elapsed / 10), abs=3 * SIGMAS * standard_error)


def test_a_stable_medium_never_moves() -> None:
    medium = Medium(5, 7, 5)
    before = medium.columns
    medium.advance(1e6)
    assert medium.columns is before
    assert not medium.moved


def test_kept_pixels_age_as_they_would_have() -> None:
    whole = Medium(3, 50, 6, decorrelation_seconds=1.0)
    part = Medium(3, 50, 6, decorrelation_seconds=1.0)
    part.keep(torch.tensor([1, 8, 40]))
    for medium in (whole, part):
        medium.advance(0.5)
    assert torch.equal(matrix(part), matrix(whole)[[1, 8, 40]])


def test_media_of_different_seeds_are_unrelated() -> None:
    one, other = matrix(Medium(50, 400, 1)), matrix(Medium(50, 400, 2))
    assert abs(complex((one * other.conj()).mean())) < SIGMAS / sqrt(one.numel())


@pytest.mark.parametrize("grain", [0.5, 65.0, float("nan")])
def test_grain_out_of_range(grain: float) -> None:
    with pytest.raises(UsageError, match="grain"):
        Medium(2, 2, 1, grain=grain)
