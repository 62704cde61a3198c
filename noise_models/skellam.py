"""Balanced detection: the difference of two Poisson counts (Skellam 1946)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.shot import poisson


@dataclass(frozen=True)
class SkellamNoise(NoiseModel):
    """Difference of the photo-electrons of two detectors that see |E ± R|²/2.

    The arms receive `background ± signal/2` electrons, so the readout of a signal s is
    Skellam(b + s/2, b − s/2): mean s, variance 2b whatever the signal, while every higher odd cumulant is s. A
    signal beyond ±2b would need negative light; it is clipped there.

    **Credit.** None in either kind of frame. Light changes the RATES, it does not shift the law: Skellam(b +
    s/2, b − s/2) is not Skellam(b, b) + s, and taking it for that understates the divergence (THEORY T6),
    which is bounded by the pair of Poisson counts. In frames without data the counts are whole numbers: no
    part of them is Gaussian. The Skellam MECHANISM (Agarwal, Kairouz, Liu 2021) is something else: digital
    integer noise.

    Attributes:
        background: mean electrons on each detector at no signal, 0 to 1e17.
    """

    background: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.background <= 1e17:
            raise UsageError(f"background is {self.background} electrons; it must lie between 0 and 1e17")

    def arms(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Mean electrons on the two detectors."""
        half = (signal / 2).clamp(-self.background, self.background)
        return self.background + half, self.background - half

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        """Difference of counts, electrons, of signal's shape and dtype (float32 or float64); NaN stays NaN."""
        bright, dark = self.arms(signal)
        return poisson(bright, generator) - poisson(dark, generator)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """2 background, in electrons²."""
        return torch.full_like(signal, 2 * self.background)

    def credit(self, frame: Frame) -> Credit:
        argument = (
            "light changes the detectors' rates: the noise is not the same for neighbouring inputs (THEORY T6)"
            if frame is Frame.DATA
            else "photo-electrons are counted in whole numbers; no part of them is Gaussian (THEORY, Noise credit)"
        )
        return Credit.none(argument)

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "skellam", "background_electrons": self.background}
