"""Additive Gaussian read noise with no converter behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.places import on_cpu
from noise_models.randomness.generator import NORMAL_TAIL_MASS, NoiseGenerator

# The assumption of a readout that no converter ends.
REAL_READOUT: Final = "the readout is a real number: no converter rounds it (THEORY T4)"


def add_noise(signal: Tensor, std: float, generator: NoiseGenerator) -> Tensor:
    """`signal + std N(0, 1)` in a new contiguous tensor of signal's dtype (float32 or float64) and device."""
    noisy = on_cpu(signal).clone()
    return generator.add_normal_(noisy, std).to(signal.device)


@dataclass(frozen=True)
class GaussianNoise(NoiseModel):
    """Readout = signal + N(0, std²), the same in dark and data frames, un-quantised.

    **Credit.** All of it, in both kinds of frame: the noise is Gaussian, white and does not know the signal.

    Attributes:
        std: standard deviation, in DN.
    """

    std: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.std < float("inf"):
            raise UsageError(f"read noise is {self.std} DN; it must be finite and not negative")

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        return add_noise(signal, self.std, generator)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        return torch.full_like(signal, self.std**2)

    def credit(self, frame: Frame) -> Credit:
        return Credit(
            std=self.std,
            step=0.0,
            clipped_mass=NORMAL_TAIL_MASS,
            beta=0.0,
            argument="the simulated noise is Gaussian and does not depend on the signal, by construction",
            assumptions=(REAL_READOUT,),
        )

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "gaussian", **{f"{key}_dn": value for key, value in asdict(self).items()}}
