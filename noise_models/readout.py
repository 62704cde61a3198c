"""The last stage of a readout: black level and an ideal uniform converter with saturation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import ndtr
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator


@dataclass(frozen=True)
class IdealConverter(NoiseModel):
    """code = clip(round(black + signal), 0, 2^bits − 1), signal in DN.

    `PhysicalCamera` has this stage built in, and the non-ideal converter; this one ends a `CompositeNoise`.

    **Credit.** None in either kind of frame: rounding is a function of what is rounded, nothing random. What
    it does to the credit of the noise before it is the step of 1 DN and the clipped mass that
    `CompositeNoise` states.

    Attributes:
        bits: resolution, 2 to 16.
        black: black level, in DN.
    """

    bits: int
    black: float

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16 or self.bits != int(self.bits):
            raise UsageError(f"the converter has {self.bits} bits; it must have 2 to 16")
        if not 0.0 <= self.black <= self.top:
            raise UsageError(f"black level is {self.black} DN; allowed is 0 to {self.top}")

    @property
    def top(self) -> int:
        """Largest code."""
        return int(2**self.bits - 1)

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        """Codes as floating-point numbers, black level included; NaN stays NaN."""
        return (signal + self.black).round_().clamp_(0, self.top)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """1/12 DN²: the rounding error of a signal that wanders over several codes."""
        return torch.full_like(signal, 1 / 12)

    def clipped_probability(self, std: float) -> float:
        """Probability that black + N(0, std²) lies beyond either end (exact normal tails)."""
        if std == 0.0:
            return 0.0
        return float(ndtr(-(self.black + 0.5) / std) + ndtr(-(self.top + 0.5 - self.black) / std))

    def credit(self, frame: Frame) -> Credit:
        return Credit.none("rounding is not random", step=1.0, level=self.black)

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "ideal-converter", "bits": self.bits, "black_dn": self.black}
