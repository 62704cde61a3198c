"""Correlated noise: its covariance, and its smallest eigenvalue against dense linear algebra."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noise_models.base import Frame
from noise_models.correlated import CorrelatedNoise
from noise_models.errors import UsageError
from noise_models.randomness.generator import NORMAL_TAIL_MASS, NoiseGenerator


def covariance(noise: CorrelatedNoise) -> np.ndarray:
    """Σ of the docstring, written down entry by entry."""
    size = noise.rows * noise.columns
    sigma = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            (r, c), (s, d) = divmod(i, noise.columns), divmod(j, noise.columns)
            steps = (abs(r - s), abs(c - d))
            if max(steps) <= 1:
                sigma[i, j] += noise.std**2 * noise.neighbour ** sum(steps)
            sigma[i, j] += noise.row_std**2 * (r == s) + noise.column_std**2 * (c == d)
    return sigma


@pytest.mark.parametrize(
    "noise",
    [
        CorrelatedNoise(4, 5, 2.0),
        CorrelatedNoise(4, 5, 2.0, neighbour=0.3),
        CorrelatedNoise(5, 3, 1.0, neighbour=-0.5),
        CorrelatedNoise(3, 4, 1.0, neighbour=0.2, row_std=0.7, column_std=1.5),
        CorrelatedNoise(1, 6, 1.0, neighbour=0.4, row_std=2.0),
    ],
)
def test_sampled_covariance(noise: CorrelatedNoise) -> None:
    # Every entry of the sample covariance at 6 sigma, 400 at most: false alarm 8e-7 a case.
    n = 50_000
    signal = torch.linspace(-5, 5, noise.rows * noise.columns, dtype=torch.float64).repeat(n, 1)
    before = signal.clone()
    x = noise.sample(signal, NoiseGenerator.seeded(1, str(noise)), Frame.DATA) - signal
    assert torch.equal(signal, before)
    sigma = covariance(noise)
    spread = np.sqrt((np.outer(np.diag(sigma), np.diag(sigma)) + sigma**2) / n)
    assert (np.abs((x.T @ x).numpy() / n - sigma) < 6 * spread).all()
    assert (np.abs(x.mean(0).numpy()) < 6 * np.sqrt(np.diag(sigma) / n)).all()
    assert noise.variance(signal, Frame.DATA)[0].numpy() == pytest.approx(np.diag(sigma))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    std=st.floats(0.1, 5),
    neighbour=st.floats(-0.5, 0.5),
    shared=st.tuples(st.floats(0, 5), st.floats(0, 5)),
)
def test_credit_is_the_smallest_eigenvalue(
    rows: int, columns: int, std: float, neighbour: float, shared: tuple[float, float]
) -> None:
    own = CorrelatedNoise(rows, columns, std, neighbour)
    tolerance = 1e-10 * std**2
    assert own.least_variance() == pytest.approx(np.linalg.eigvalsh(covariance(own))[0], abs=tolerance)
    noise = CorrelatedNoise(rows, columns, std, neighbour, *shared)
    sigma = covariance(noise)
    least = np.linalg.eigvalsh(sigma)[0]
    assert noise.least_variance() <= least + 1e-10 * np.trace(sigma)
    # A part of the frame, which a release's last frame uses, keeps as much.
    part = np.linalg.eigvalsh(sigma[: rows * columns // 2 + 1, : rows * columns // 2 + 1])[0]
    assert noise.least_variance() <= part + 1e-10 * np.trace(sigma)


def test_credit() -> None:
    noise = CorrelatedNoise(100, 200, 2.0, neighbour=0.1, row_std=1.0)
    dark = noise.credit(Frame.DARK)
    assert dark == noise.credit(Frame.DATA)
    assert dark.std == pytest.approx(2.0 * 0.8, rel=1e-3)
    assert (dark.step, dark.beta) == (0.0, 0.0)
    assert NORMAL_TAIL_MASS <= dark.clipped_mass < 1.1 * NORMAL_TAIL_MASS
    assert any("0.1" in text for text in dark.assumptions)
    assert CorrelatedNoise(100, 200, 2.0, neighbour=0.5).credit(Frame.DARK).std < 1e-3
    assert json.loads(json.dumps(noise.describe()))["row_std_dn"] == 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 1, 1.0),
        (1, 0, 1.0),
        (2, 2, -1.0),
        (2, 2, float("nan")),
        (2, 2, 1.0, 0.51),
        (2, 2, 1.0, float("nan")),
        (2, 2, 1.0, 0.0, -1.0),
        (2, 2, 1.0, 0.0, 0.0, float("inf")),
    ],
)
def test_refusals(arguments: tuple[float, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        CorrelatedNoise(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_only_whole_frames() -> None:
    with pytest.raises(UsageError, match="6"):
        CorrelatedNoise(2, 3, 1.0).sample(torch.zeros(4, 5), NoiseGenerator.seeded(1, "x"), Frame.DARK)
