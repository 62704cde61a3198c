"""`dark-frame`: the noise is the device's own, from frames without data, with a digital dither (THEORY T4).

A camera returns integers: a real-valued sum plus integer noise would show the sum modulo the converter's step,
untouched, at any noise. So each pixel Q(n_k) gets a Gaussian dither of TAU steps from a cryptographic generator:

    Z_k = s (Q(n_k) + TAU xi_k),   s = std / sqrt(sigma_G² + TAU²),

whose density is that of an ideal N(0, std²), convolved with a uniform law, times 1 ± eta, with
eta = 2 sum_j exp(-2 pi² j² v), v = sigma_G² TAU² / (sigma_G² + TAU²).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.errors import DeviceError, UsageError
from noise_models.generator import NORMAL_TAIL_MASS, NoiseGenerator
from privacy.protocols import DarkFrames
from privacy.releases.source import Cost, NoiseSource, add_secret_normals

TAU = 1.5  # dither, in converter steps: eta < 1e-16 from sigma_G = 2.5 steps on
START_UP_PIXELS = 1 << 20
START_UP_SIGMAS = 6.5  # two-sided false alarm of each of the two start-up tests: 8e-11


class DarkFrameNoise(NoiseSource):
    """Z from fresh dark frames, each used once.

    Attributes:
        codes, counts: histogram of the start-up frames, which are never released.
        offset: their mean, the dark level (a public constant).
        sigma: the credited Gaussian part of one pixel, in converter steps.
    """

    name = "dark-frame"

    def __init__(self, device: DarkFrames | None, dither: NoiseGenerator) -> None:
        """
        Args:
            device: the camera.
            dither: generator of xi; the guarantee rests on its secrecy.
        Raises:
            UsageError: no device, or one without creditable dark frames.
            DeviceError: its dark frames do not look as calibrated.
        """
        if device is None:
            raise UsageError(
                "the training rule uses no device, so there are no dark frames; use --rule dfa with --backend "
                "simulated-opu, or --release digital"
            )
        if device.dark_pixels < 1:
            raise UsageError(
                f"backend {device.name} has no dark frames; use --backend simulated-opu, or --release digital"
            )
        credit = device.noise.credit(Frame.DARK)
        if credit.std <= 0 or credit.step <= 0:
            raise UsageError(
                f"the dark frames of backend {device.name} earn no credit ({credit.argument}); use --release digital"
            )
        self._device = device
        self._dither = dither
        self._credit = credit
        self.sigma = credit.std / credit.step
        self.device_share = self.sigma**2 / (self.sigma**2 + TAU**2)
        self.beta = credit.beta
        self.assumptions = (
            *credit.assumptions,
            credit.argument,
            "the dither's generator (AES-256 in counter mode) cannot be told from random bits",
        )
        self._start_up()

    def _start_up(self) -> None:
        """Look at dark frames that are not released: level and variance must be as credited."""
        frames = math.ceil(START_UP_PIXELS / self._device.dark_pixels)
        codes = self._device.dark(frames).to(torch.int64).flatten()
        values, counts = torch.unique(codes, return_counts=True)
        self.codes, self.counts = values.tolist(), counts.tolist()
        centred = codes.double() - codes.double().mean()
        self.offset = float(codes.double().mean())
        # The spread of a sample variance needs the fourth moment; the credited law is near normal.
        measured = float(centred.square().mean()) / self._credit.step**2 - 1 / 12
        spread = float((centred.square().var() / len(codes)).sqrt()) / self._credit.step**2
        if abs(measured - self.sigma**2) > START_UP_SIGMAS * spread or len(values) < 3:
            raise DeviceError(
                f"dark frames of {self._device.name} have a Gaussian variance of {measured:.4g} steps² where "
                f"{self.sigma**2:.4g} is credited; calibrate the device again (nothing was released)"
            )
        off = abs(self.offset - self._credit.level) / float((centred.square().mean() / len(codes)).sqrt())
        if off > START_UP_SIGMAS:
            raise DeviceError(
                f"dark frames of {self._device.name} have a level of {self.offset:.5g} where "
                f"{self._credit.level:.5g} is credited; calibrate the device again (nothing was released)"
            )

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return (self._dither, *self._device.generators)

    def calibration(self) -> dict[str, Any]:
        """Histogram of the start-up frames against the credited law; never of noise that was released."""
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
            "dither_std_steps": TAU,
            "ripple": dither_ripple(self.sigma, TAU),
            "argument": self._credit.argument,
            "device": self._device.describe(),
        }

    def cost(self, dimension: int) -> Cost:
        eta = dither_ripple(self.sigma, TAU)
        return Cost(
            log_ratio=dimension * (math.log1p(eta) - math.log1p(-eta)),
            log_inflation=dimension * math.log1p(eta),
            mass=dimension * (self._credit.clipped_mass + NORMAL_TAIL_MASS),
        )

    def add_noise(self, total: Tensor, std: float) -> None:
        scale = std / (self._credit.step * math.hypot(self.sigma, TAU))
        pixels = self._device.dark_pixels
        noise = torch.empty(min(pixels, len(total)), dtype=total.dtype)
        for start in range(0, len(total), pixels):
            part = total[start : start + pixels]
            block = noise[: len(part)]
            block.copy_(self._device.dark(1)[0, : len(part)])
            block.sub_(self.offset)
            add_secret_normals(block, TAU * self._credit.step, self._dither)
            part.add_(block.to(total.device), alpha=scale)


def dither_ripple(sigma: float, tau: float) -> float:
    """eta of THEORY T4: relative ripple of the density of a rounded and dithered Gaussian.

    Args:
        sigma: standard deviation of the Gaussian before rounding, in converter steps.
        tau: standard deviation of the dither, in converter steps.
    """
    v = sigma**2 * tau**2 / (sigma**2 + tau**2)
    if v == 0:
        return math.inf
    eta = 0.0
    for j in range(1, 1000):
        term = 2 * math.exp(-2 * math.pi**2 * j**2 * v)
        eta += term
        if term < 1e-20 * eta or term == 0:
            break
    return eta
