"""Gain, offset and, at will, the matrix itself of a projection, from probe patterns with known answers' shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from torch import Tensor

from noise_models.errors import DeviceError, UsageError
from noise_models.places import on_cpu

# Outputs that are projected at a time, in numbers.
_HELD: Final = 1 << 22

Reals = npt.NDArray[np.float64]


class Projection(Protocol):
    """A device that answers `B e` with noise; shapes as in its attributes."""

    @property
    def name(self) -> str:
        """Registered name."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def std(self) -> float:
        """Declared standard deviation of B's entries."""

    def project(self, e: Tensor) -> Tensor:
        """`B e` for each row, (m, in_features) -> (m, out_features)."""


@dataclass(frozen=True)
class ProjectionGain:
    """What probe patterns showed of a projection `y = offset + B e + noise`.

    Attributes:
        matrix: estimate of B, shape (out_features, in_features).
        offset: of each output, shape (out_features,).
        offset_error: standard error of each offset.
        gain: norm of each row of B over its declared expectation std · sqrt(in_features), noise taken off.
        noise: standard deviation of each output's noise under a probe, shape (out_features,).
        relative_error: ‖matrix − B‖ / ‖B‖ (Frobenius), from the scatter of repeats.
        relative_error_upper: its limit.
        confidence: of that limit.
        probes: patterns shown.
    """

    matrix: Reals
    offset: Reals
    offset_error: Reals
    gain: Reals
    noise: Reals
    relative_error: float
    relative_error_upper: float
    confidence: float
    probes: int


def measure_projection(
    device: Projection,
    *,
    repeats: int = 16,
    amplitude: float = 1.0,
    confidence: float = 0.99,
    tell: Callable[[int], None] = lambda probes: None,
) -> ProjectionGain:
    """Show every input alone, both signs, `repeats` times each.

    A column of B is half the difference of the answers to +amplitude and −amplitude at that input, the offset the
    mean of all. The error is the scatter of repeats: what the encoding's quantisation does to an amplitude it
    cannot show exactly is no scatter, and is not in it; an even response to e cancels.

    Args:
        device: the projection.
        repeats: 2 or more.
        amplitude: of a probe; one the device's encoding shows exactly.
        confidence: of the error's limit.
        tell: hears how many patterns were shown.

    Raises:
        UsageError: too few repeats.
        DeviceError: answers that are not finite.
    """
    if repeats < 2:
        raise UsageError(f"repeats of a probe pattern are {repeats}; its scatter needs at least 2")
    n_in, n_out = device.in_features, device.out_features
    matrix, offset, scatter = np.empty((n_out, n_in)), np.zeros(n_out), np.zeros(n_out)
    block = max(1, _HELD // (2 * repeats * n_out))
    for first in range(0, n_in, block):
        n = min(block, n_in - first)
        probe = torch.zeros(n, 2, repeats, n_in)
        at = torch.arange(n)
        probe[at, 0, :, first + at] = amplitude
        probe[at, 1, :, first + at] = -amplitude
        answer = (
            on_cpu(device.project(probe.view(-1, n_in)), torch.float64).numpy().reshape(n, 2, repeats, n_out)
        )
        if not np.isfinite(answer).all():
            raise DeviceError(f"{device.name} answered a probe pattern with numbers that are not finite")
        mean = answer.mean(2)
        matrix[:, first : first + n] = ((mean[:, 0] - mean[:, 1]) / (2 * amplitude)).T
        offset += mean.sum((0, 1))
        scatter += answer.var(2, ddof=1).sum((0, 1))
        tell(2 * repeats * n)
    offset /= 2 * n_in
    noise = scatter / (2 * n_in)
    each = noise / (2 * repeats * amplitude**2)  # error variance of one entry
    error, power = n_in * float(each.sum()), float(np.square(matrix).sum())
    signal = max(power - error, 1e-300)
    # The squared error over its expectation has a relative variance of 2 (1/entries + 1/degrees of freedom).
    free = 2 * n_in * (repeats - 1)
    weight = float(np.square(each).sum()) / float(each.sum()) ** 2 if error > 0 else 0.0
    slack = float(special.ndtri(confidence)) * sqrt(
        2 * weight * (1 / n_in + 1 / free) + 4 * error / (signal * n_in)
    )
    row_power = np.maximum(0.0, np.square(matrix).sum(1) - n_in * each)
    return ProjectionGain(
        matrix=matrix,
        offset=offset,
        offset_error=np.sqrt(noise / (2 * n_in * repeats)),
        gain=np.sqrt(row_power) / (device.std * sqrt(n_in)),
        noise=np.sqrt(noise),
        relative_error=sqrt(error / signal),
        relative_error_upper=sqrt(error / signal * (1 + slack)),
        confidence=confidence,
        probes=2 * n_in * repeats,
    )
