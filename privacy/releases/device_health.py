"""When a device's health is tested: a start-up, every frame that is released, and a last look before each release.

The last look is at further dark frames (`look_frames`: a public number of them, with LOOK_PIXELS pixels or more) and
one lit frame, taken AFTER the frames of Z and never released, so that a fault which began before the release, and
lasts, is seen before the release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.document import Calibration, Document
from noise_models.calibration.frame_statistics import shape_of
from noise_models.errors import DeviceError, HealthError, UsageError
from noise_models.health.limits import Reference
from noise_models.health.monitor import START_UP_PIXELS, HealthMonitor, look_frames
from privacy.contributions.protocols import DarkFrames

# What every release assumes that has its device tested so.
FAULT_LASTS = (
    "a fault of the device lasts to the end of the step it begins in, where it is tested on frames that are "
    "not released"
)


def refuse_other(calibration: Document, fingerprint: str) -> None:
    """
    Raises:
        HealthError: the calibration is another device's, or expired.
    """
    try:
        calibration.refuse_other(fingerprint)
    except DeviceError as error:
        finding = {"test": "calibration", "value": fingerprint, "limit": calibration.fingerprint}
        raise HealthError(f"{error} (nothing more is released)", finding) from error


class DeviceHealth:
    """Takes the frames of one device and has a monitor test every one of them."""

    def __init__(
        self,
        device: DarkFrames,
        calibration: Calibration | None = None,
        known: Iterable[str] = (),
    ) -> None:
        """
        Args:
            device: the camera.
            calibration: what its healthy frames look like; None is what its noise model knows by construction.
            known: digests of frames that earlier parts of the run logged.
        Raises:
            UsageError: frames too small, or noise too weak, to be tested.
        """
        self._device = device
        self._calibration = calibration
        if calibration is None:
            variance = float(device.noise.variance(torch.zeros(1), Frame.DARK))
            reference = Reference.of_credit(device.noise.credit(Frame.DARK), variance)
        else:
            reference = Reference.of_calibration(calibration)
        self._monitor = HealthMonitor(reference, shape_of(device), known=known)
        self._has_lamp = False

    @property
    def level(self) -> float:
        """Mean of the start-up's dark frames, in DN."""
        return self._monitor.level

    def start_up(self) -> tuple[Tensor, dict[str, Any]]:
        """Test dark frames, and the lamp where the device shows it.

        Returns:
            the frames, which are never released, shape (frames, dark_pixels); what was found, for the ledger.
        Raises:
            DeviceError: a test failed, or the calibration does not serve this camera now.
        """
        self._refuse_other_camera()
        frames = self._device.dark(2 * math.ceil(START_UP_PIXELS / (2 * self._device.dark_pixels)))
        found = self._monitor.start_up(frames)
        closed = self._lamp(0.0)
        if closed is not None and (lit := self._lamp(1.0)) is not None:
            self._has_lamp = True
            found |= self._monitor.lamp(closed, lit)
        return frames, {**found, "lamp_tested": self._has_lamp}

    def take(self) -> Tensor:
        """One fresh dark frame to be released, shape (1, dark_pixels).

        Raises:
            HealthError: it may not be.
        """
        frame = self._device.dark(1)
        self._monitor.released(frame)
        return frame

    def vouch(self) -> None:
        """The last look before a release.

        Raises:
            DeviceError: a test failed, or the calibration expired; nothing drawn so far may be released.
        """
        self._refuse_other_camera()
        self._monitor.dark(self._device.dark(look_frames(self._device.dark_pixels)))
        if self._has_lamp:
            self._monitor.lit(self._device.expose(1, light=1.0, seconds=None, setting=Frame.DATA))

    def shown(self) -> tuple[str, ...]:
        """Digests of the frames taken since this was last asked, released or not."""
        return self._monitor.shown()

    def describe(self) -> dict[str, Any]:
        """Tests, limits and false alarms (JSON types)."""
        return self._monitor.describe()

    def _refuse_other_camera(self) -> None:
        if self._calibration is not None:
            refuse_other(self._calibration, self._device.camera_fingerprint())

    def _lamp(self, light: float) -> Tensor | None:
        """A frame of the lamp alone; None from a device that cannot show it."""
        try:
            return self._device.expose(1, light=light, seconds=None, setting=Frame.DATA)
        except UsageError:
            return None
