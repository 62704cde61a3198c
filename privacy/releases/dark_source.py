"""What the two ways of drawing Z from dark frames share: the device, its credit and its health (THEORY T4, T12)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.document import Calibration
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.protocols import DarkFrames
from privacy.releases.device_health import FAULT_LASTS, DeviceHealth
from privacy.releases.source import NoiseSource, with_camera


class DarkFrameSource(NoiseSource):
    """Pixels of fresh dark frames, each used once, and none before the device passed its health tests.

    Attributes:
        codes, counts: histogram of the start-up frames, which are never released; empty before `start_up`.
        offset: their mean, the dark level (a public constant); as credited before `start_up`.
        sigma: the credited Gaussian part of one pixel, in converter steps.
    """

    name = "dark-frame"
    calibration: Calibration | None

    def __init__(
        self,
        device: DarkFrames | None,
        places: NoiseGenerator,
        calibration: Calibration | None = None,
        known: Iterable[str] = (),
    ) -> None:
        """
        Args:
            device: the camera.
            places: generator of the pixel that a frame is read from on.
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
        self._places = places
        self._credit = credit
        self.sigma = credit.std / credit.step
        self.beta = credit.beta
        self.assumptions = (
            *credit.assumptions,
            credit.argument,
            FAULT_LASTS,
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
        return self._device.generators

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
            "argument": self._credit.argument,
            "health": self._health.describe(),
            "device": self._device.describe(),
        }

    def _take(self, out: Tensor) -> None:
        """Fill `out` from one fresh frame.

        It begins at a random pixel and goes on round the end: a pattern of the camera does not add up over steps.

        Raises:
            HealthError: a frame that may not be released.
            UsageError: before `start_up`.
        """
        if not self.counts:
            raise UsageError("the device has not passed its start-up test; call start_up first")
        frame = self._health.take()[0]
        first = int(self._places.uint64(1)[0]) % len(frame)
        before_end = min(len(out), len(frame) - first)
        out[:before_end].copy_(frame[first : first + before_end])
        out[before_end:].copy_(frame[: len(out) - before_end])

    def vouch(self) -> None:
        self._health.vouch()

    def shown(self) -> tuple[str, ...]:
        return self._health.shown()
