"""`dark-frame`: the noise is the device's own, from frames without data, with a digital dither (THEORY T4).

A camera returns integers: a sum on a finer grid plus a multiple of these would show the sum modulo that multiple,
untouched, at any noise. So each pixel Q(n_k) gets a rounded Gaussian dither from a cryptographic generator:

    Z_k = a Q(n_k) + round(rho xi_k),   a = floor(std / sqrt(sigma_G² + TAU²)),   rho² = std² - a² sigma_G² >= a² TAU²,

in grid steps, whose density before it is rounded is that of an ideal N(0, std²), convolved with a uniform law, times
1 ± eta, with eta = 2 sum_j exp(-2 pi² j² v), v = sigma_G² TAU² / (sigma_G² + TAU²) or more.

With the option `digits` several pixels a coordinate take the dither's place (`privacy.releases.dark_digits`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from noise_models.calibration.converter import dither_ripple
from noise_models.calibration.document import Calibration
from noise_models.errors import UsageError
from noise_models.health.monitor import RELEASED_FALSE_ALARM
from noise_models.places import staging
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from privacy.contributions.protocols import DarkFrames
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.dark_digits import DarkFrameDigits
from privacy.releases.dark_source import DarkFrameSource
from privacy.releases.source import Departure, Parts, WholeNormals

TAU = 1.5  # dither, in converter steps: eta < 1e-16 from sigma_G = 2.5 steps on


class DarkFrameNoise(DarkFrameSource):
    """Z from one fresh pixel and a secret dither a coordinate."""

    def __init__(
        self,
        device: DarkFrames | None,
        dither: NoiseGenerator,
        calibration: Calibration | None = None,
        known: Iterable[str] = (),
    ) -> None:
        """
        Args:
            device: the camera.
            dither: generator of xi, on whose secrecy the guarantee rests, and of the pixel a frame is read from on.
            calibration: what the camera's noise was measured to be; None credits what its model knows.
            known: digests of dark frames that earlier parts of the run logged.
        Raises:
            UsageError: no device, or one without creditable dark frames.
        """
        super().__init__(device, dither, calibration, known)
        self._dither = dither
        self._normals = WholeNormals()
        self.device_share = self.sigma**2 / (self.sigma**2 + TAU**2)
        self.assumptions = (
            *self.assumptions,
            "the dither's generator (AES-256 in counter mode) cannot be told from random bits",
        )

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return (self._dither, *super().generators)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "theorem": "T4",
            "why": "no release option digits: one pixel a coordinate, and a dither that also smooths the converter",
            "least_dither_std_steps": TAU,
            "ripple": dither_ripple(self.sigma, TAU),
        }

    def cost(self, dimension: int) -> Departure:
        eta = dither_ripple(self.sigma, TAU)
        if not eta < 1:
            raise UsageError(
                f"the density of a dark frame's noise with its dither ripples by {eta:.2g} (noise of "
                f"{self.sigma:.3g} steps); use --release device-entropy"
            )
        frames = math.ceil(dimension / self._device.dark_pixels)
        # Only frames that pass are released: conditioning on that costs what a healthy frame fails with.
        return Departure(
            log_ratio=dimension * (math.log1p(eta) - math.log1p(-eta)),
            log_inflation=dimension * math.log1p(eta),
            mass=dimension * (self._credit.clipped_mass + TAIL_MASS) + frames * RELEASED_FALSE_ALARM,
        )

    def prepare(self, std: float) -> None:
        scale, dither = self._shares(std)
        self._normals.prepare(dither)
        self.device_share = (scale * self._credit.std / std) ** 2

    def _shares(self, std: float) -> tuple[int, float]:
        """Whole grid steps for one code of the camera, and the dither's standard deviation in them.

        The dither is TAU converter steps, and what the whole number leaves of the noise besides.

        Raises:
            UsageError: noise that is less than a grid step a code.
        """
        scale = math.floor(std / (self._credit.step * math.hypot(self.sigma, TAU)))
        if scale < 1:
            raise UsageError(
                f"noise of {std:.3g} grid steps is less than a step for each of the camera's codes, which spread by "
                f"{self._credit.std:.3g}; take a smaller epsilon, or --release digital"
            )
        return scale, math.sqrt(std**2 - (scale * self._credit.std) ** 2)

    def add_noise(self, total: Tensor, std: float) -> None:
        """
        Raises:
            HealthError: a frame that may not be released.
            UsageError: before `start_up`.
        """
        scale, dither = self._shares(std)
        pixels = self._device.dark_pixels
        noise = staging(min(pixels, len(total)), torch.float64, total.device)
        for start in range(0, len(total), pixels):
            part = total[start : start + pixels]
            block = noise[: len(part)]
            self._take(block)
            block.mul_(scale).sub_(round(scale * self.offset))
            self._normals.add(block, dither, self._dither)
            part.add_(block.to(total))


@ReleaseCard(
    summary="noise from the device's dark frames, with a digital dither or several pixels a coordinate",
    statement="{drawn}. To the sum, noise {size}{each}: the device's dark frames, and a digital dither for what they "
    "leave of it. What it lacks of a normal law is counted in epsilon{only}",
    dark_frames=True,
    calibration="noise_models.calibration.document:Calibration",
    isotropic=True,
    workers=True,
    options=("digits",),
)
def make(parts: Parts) -> ClippedRelease:
    """This release: T12 where the option `digits` is given, T4 otherwise.

    Raises:
        UsageError: `digits` out of range, or a device that it does not serve.
    """
    digits = parts.options.get("digits")
    calibration = cast("Calibration | None", parts.calibration)  # the engine saw to it
    if digits is None:
        source: DarkFrameSource = DarkFrameNoise(
            parts.device, parts.generator("dither"), calibration, parts.known
        )
    else:
        source = DarkFrameDigits(parts.device, parts.generator("places"), digits, calibration, parts.known)
    return ClippedRelease.of(parts, source)
