"""The weighted line against numpy, and limits of quotients by trying."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise_models.calibration.document import Interval
from noise_models.calibration.line_fit import fit_line, limits_of, ratio, root


def test_line_against_numpy() -> None:
    rng = np.random.default_rng(1)
    x, error = np.sort(rng.uniform(0, 10, 9)), rng.uniform(0.1, 0.5, 9)
    y = 2.0 - 0.7 * x + error * rng.standard_normal(9)
    line = fit_line(x, y, error)
    (slope, intercept), covariance = np.polyfit(x, y, 1, w=1 / error, cov="unscaled")
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert (line.slope_error, line.intercept_error) == pytest.approx(np.sqrt(np.diag(covariance)))
    np.testing.assert_allclose(line.residuals, y - intercept - slope * x, atol=1e-12)
    assert 0.001 < line.p_value < 1
    assert fit_line(x, y + 10 * (x > 5), error).p_value < 1e-6


def test_p_values_are_uniform() -> None:
    # Share below 0.1 of 2000 lines, 4 standard deviations.
    rng = np.random.default_rng(2)
    x, error = np.arange(6.0), np.full(6, 0.3)
    low = sum(fit_line(x, x + 0.3 * rng.standard_normal(6), error).p_value < 0.1 for _ in range(2000))
    assert abs(low - 200) < 4 * np.sqrt(180)


bounds = st.tuples(
    st.floats(-5, 5), st.floats(0, 3), st.floats(0.1, 5), st.floats(0, 0.09), st.floats(0, 1), st.floats(0, 1)
)


@given(bounds)
def test_a_quotient_of_anything_within_limits_is_within_its_limits(
    case: tuple[float, float, float, float, float, float],
) -> None:
    above, spread, below, narrow, i, j = case
    top, bottom = limits_of(above, spread, 1), limits_of(below, narrow, 1)
    found = ratio(top, bottom)
    x = top.lower + i * (top.upper - top.lower)
    y = bottom.lower + j * (bottom.upper - bottom.lower)
    assert found.lower - 1e-9 <= x / y <= found.upper + 1e-9


def test_root() -> None:
    assert root(Interval(4.0, -1.0, 9.0)) == Interval(2.0, 0.0, 3.0)
