"""What a noisy readout is: the contract every noise model keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator


class Frame(StrEnum):
    """Whether a frame carried data. The two are never confused: they earn different credit (THEORY, Noise credit)."""

    DARK = "dark"
    DATA = "data"


@dataclass(frozen=True)
class Credit:
    """How much Gaussian noise may be counted on, per pixel and in readout units (DN).

    The readout's law is `round_to(step, N(mean, std²) + something independent)`, clipped to its range.

    Attributes:
        std: standard deviation of the credited Gaussian part, at its LOWER confidence limit, in DN; 0 is
            no credit.
        step: distance between two codes of the converter, in DN; 0 where the readout is not quantised.
        clipped_mass: upper bound on the probability that a pixel's readout is clipped at either end, plus, in
            a simulated device, the total-variation error of its sampler.
        beta: probability that `std` or `clipped_mass` is wrong (calibration confidence, THEORY T8); 0 by
            construction.
        level: mean readout, in DN.
        argument: one sentence: why this much may be counted on.
        assumptions: what has to hold besides; printed with every guarantee that uses the credit.
    """

    std: float
    step: float
    clipped_mass: float
    beta: float
    argument: str
    assumptions: tuple[str, ...] = ()
    level: float = 0.0

    @classmethod
    def none(cls, argument: str, *, step: float = 0.0, level: float = 0.0) -> Self:
        """Nothing may be counted on, and why."""
        return cls(std=0.0, step=step, clipped_mass=0.0, beta=0.0, argument=argument, level=level)


class NoiseModel(ABC):
    """Turns the analog signal of a frame into its readout, and says what the noise is worth."""

    @abstractmethod
    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        """Readout (same shape, DN) of an analog `signal` in DN above the black level."""

    @abstractmethod
    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """Variance of the readout of `signal`, in DN², before clipping at the ends of the range."""

    @abstractmethod
    def credit(self, frame: Frame) -> Credit:
        """Noise credit of such frames (THEORY, Noise credit)."""

    @abstractmethod
    def describe(self) -> dict[str, float | int | str]:
        """Every parameter, with units in its key; goes into the ledger."""


class NoNoise(NoiseModel):
    """A readout without noise: digital backends, and lightonml's own simulated device."""

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        return signal

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        return torch.zeros_like(signal)

    def credit(self, frame: Frame) -> Credit:
        return Credit.none("there is no noise")

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "none"}


class UncalibratedNoise(NoiseModel):
    """A physical device's noise before anybody measured it: it is there, and earns nothing."""

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        raise UsageError("the device's noise has not been calibrated; it cannot be simulated")

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        raise UsageError("the device's noise has not been calibrated; its variance is not known")

    def credit(self, frame: Frame) -> Credit:
        return Credit.none("the noise was not calibrated")

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "uncalibrated"}
