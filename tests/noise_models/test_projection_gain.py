"""Gain, offset and matrix of a projection from probe patterns, where they are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from noise_models.calibration.projection_gain import measure_projection
from noise_models.errors import DeviceError, UsageError


@dataclass
class Linear:
    """y = offset + B e + noise, B drawn at random."""

    in_features: int = 8
    out_features: int = 300
    std: float = 2.0
    noise: float = 0.5
    offset: float = 0.25
    seed: int = 0
    name: str = "linear"
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.B = self.std * self.rng.standard_normal((self.out_features, self.in_features))

    def project(self, e: Tensor) -> Tensor:
        noise = self.noise * self.rng.standard_normal((len(e), self.out_features))
        return (e.double() @ torch.from_numpy(self.B.T) + self.offset + torch.from_numpy(noise)).float()


def test_matrix_offset_and_gain() -> None:
    device = Linear()
    found = measure_projection(device, repeats=8)
    error = np.linalg.norm(found.matrix - device.B) / np.linalg.norm(device.B)
    # 2400 entries: the estimate of the relative error is good to 2 % (one standard deviation).
    assert found.relative_error == pytest.approx(error, rel=0.1)
    assert found.relative_error == pytest.approx(0.5 / 4 / 2, rel=0.1)
    # Offsets and noise at 6 standard errors of 300: false alarm 1e-6.
    assert np.abs((found.offset - 0.25) / found.offset_error).max() < 6
    assert found.noise.mean() == pytest.approx(0.5, rel=0.02)
    expected = np.linalg.norm(device.B, axis=1) / (2 * np.sqrt(8))
    np.testing.assert_allclose(found.gain, expected, atol=0.2)
    assert found.probes == 2 * 8 * 8


def test_the_limit_of_the_relative_error_holds() -> None:
    # At 90 % it fails in 10 of 100; more than 22 come with probability 1e-4.
    failures = 0
    for seed in range(100):
        device = Linear(in_features=4, out_features=50, seed=seed)
        found = measure_projection(device, repeats=4, confidence=0.9)
        failures += (
            np.linalg.norm(found.matrix - device.B) / np.linalg.norm(device.B) > found.relative_error_upper
        )
    assert failures <= 22


def test_a_noiseless_projection_and_blocks_of_inputs() -> None:
    device = Linear(in_features=70, out_features=2000, noise=0.0)  # more than is held at a time
    found = measure_projection(device, repeats=20, amplitude=0.5)
    np.testing.assert_allclose(found.matrix, device.B, atol=1e-5)
    assert found.relative_error_upper < 1e-5


def test_refusals() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        measure_projection(Linear(), repeats=1)
    with pytest.raises(DeviceError, match="not finite"):
        measure_projection(Linear(offset=float("nan")))
