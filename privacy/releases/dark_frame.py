"""`dark-frame`: the noise is the device's own, from frames without data, with a digital dither (THEORY T4).

A camera returns integers: a sum on a finer grid plus a multiple of these would show the sum modulo that multiple,
untouched, at any noise. So each pixel Q(n_k) gets a rounded Gaussian dither from a cryptographic generator:

    Z_k = a Q(n_k) + round(rho xi_k),   a = floor(std / sqrt(sigma_G² + TAU²)),   rho² = std² - a² sigma_G² >= a² TAU²,

in grid steps, whose density before it is rounded is that of an ideal N(0, std²), convolved with a uniform law, times
1 ± eta, with eta = 2 sum_j exp(-2 pi² j² v), v = sigma_G² TAU² / (sigma_G² + TAU²) or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.converter import dither_ripple
from noise_models.calibration.document import Calibration
from noise_models.errors import UsageError
from noise_models.health.monitor import RELEASED_FALSE_ALARM
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from privacy.contributions.protocols import DarkFrames
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.device_health import DeviceHealth
from privacy.releases.source import Departure, NoiseSource, Parts, WholeNormals, with_camera

TAU = 1.5  # dither, in converter steps: eta < 1e-16 from sigma_G = 2.5 steps on


class DarkFrameNoise(NoiseSource):
    """Z from fresh dark frames, each used once, and none before the device passed its health tests.

    Attributes:
        codes, counts: histogram of the start-up frames, which are never released; empty before `start_up`.
        offset: their mean, the dark level (a public constant); as credited before `start_up`.
        sigma: the credited Gaussian part of one pixel, in converter steps.
    """

    name = "dark-frame"

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
            dither: generator of xi; the guarantee rests on its secrecy.
            calibration: what the camera's noise was measured to be; None credits what its model knows.
            known: digests of dark frames that earlier parts of the run logged.
        Raises:
            UsageError: no device, or one without creditable dark frames.
        """
        device = with_camera(device)
        credit = device.noise.credit(Frame.DARK) if calibration is None else calibration.credit()
        if credit.std <= 0 or credit.step <= 0:
            measure = (
                "calibrate it and give --calibration FILE" if calibration is None else "calibrate it again"
            )
            raise UsageError(
                f"the dark frames of backend {device.name} earn no credit ({credit.argument}); {measure}, or use "
                "--release digital"
            )
        self.calibration = calibration
        self._device = device
        self._dither = dither
        self._normals = WholeNormals()
        self._credit = credit
        self.sigma = credit.std / credit.step
        self.device_share = self.sigma**2 / (self.sigma**2 + TAU**2)
        self.beta = credit.beta
        self.assumptions = (
            *credit.assumptions,
            credit.argument,
            "a fault of the device lasts to the end of the step it begins in, where it is tested on frames that are "
            "not released",
            "the dither's generator (AES-256 in counter mode) cannot be told from random bits",
        )
        self._health = DeviceHealth(device, calibration, known)
        self.offset = credit.level
        self.codes: list[int] = []
        self.counts: list[int] = []

    def start_up(self) -> dict[str, Any]:
        frames, found = self._health.start_up()
        values, counts = torch.unique(frames.to(torch.int64), return_counts=True)
        self.codes, self.counts = values.tolist(), counts.tolist()
        self.offset = self._health.level
        return found

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return (self._dither, *self._device.generators)

    def histogram(self) -> dict[str, Any]:
        """Of the start-up frames, against the credited law; never of noise that was released."""
        pixels = self._device.dark_pixels
        return {
            "codes": self.codes,
            "counts": self.counts,
            "black_level_dn": self.offset,
            "sigma_dn": self._credit.std,
            "step_dn": self._credit.step,
            "frames": sum(self.counts) // pixels,
            "pixels": pixels,
            "note": "dark frames taken at the start of the run and not released",
        }

    def describe(self) -> dict[str, Any]:
        return {
            "gaussian_std_steps": self.sigma,
            "least_dither_std_steps": TAU,
            "ripple": dither_ripple(self.sigma, TAU),
            "argument": self._credit.argument,
            "health": self._health.describe(),
            "device": self._device.describe(),
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
        if not self.counts:
            raise UsageError("the device has not passed its start-up test; call start_up first")
        scale, dither = self._shares(std)
        pixels = self._device.dark_pixels
        noise = torch.empty(min(pixels, len(total)), dtype=torch.float64)
        for start in range(0, len(total), pixels):
            part = total[start : start + pixels]
            block = noise[: len(part)]
            self._shift(self._health.take()[0], block)
            block.mul_(scale).sub_(round(scale * self.offset))
            self._normals.add(block, dither, self._dither)
            part.add_(block.to(total))

    def _shift(self, frame: Tensor, out: Tensor) -> None:
        """Fill `out` from a random pixel on, round the end: a pattern of the camera does not add up over steps."""
        first = int(self._dither.uint64(1)[0]) % len(frame)
        before_end = min(len(out), len(frame) - first)
        out[:before_end].copy_(frame[first : first + before_end])
        out[before_end:].copy_(frame[: len(out) - before_end])

    def vouch(self) -> None:
        self._health.vouch()

    def shown(self) -> tuple[str, ...]:
        return self._health.shown()


@ReleaseCard(
    summary="noise from the device's dark frames, with a digital dither",
    statement="{drawn}. To the sum, noise {size}{each}: the device's dark frames and a digital dither together. What it"
    " lacks of a normal law is counted in epsilon{only}",
    dark_frames=True,
    isotropic=True,
)
def make(parts: Parts) -> ClippedRelease:
    """This release."""
    source = DarkFrameNoise(parts.device, parts.generator("dither"), parts.calibration, parts.known)
    return ClippedRelease.of(parts, source)
