"""What the calibration of a light path (THEORY T10) asks of a device, and frames of it as they are worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from noise_models.errors import DeviceError

Reals = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Runs = npt.NDArray[np.int64]

_HELD: Final = 1 << 21  # pixels at a time


class ProbedLight(Protocol):
    """A light path that shows public patterns: two cameras behind a half mirror, macro-pixels of mirrors, a reference.

    Attributes:
        name: of the device, for messages.
        inputs: p, entries of a column; each has a positive and a negative macro-pixel.
        rows: pixels of a camera that are read.
        most: K, mirrors of a macro-pixel.
        step: distance of two codes in DN; 0 where they are not rounded.
        top: largest code in DN; inf where there is none.
    """

    name: str
    inputs: int
    rows: int
    most: int
    step: float
    top: float

    def probe(self, runs: Runs, *, light: float, phase: float = 0.0, reference: float = 1.0) -> Reals:
        """Raw codes of both cameras, an exposure a pattern, shape (m, 2, rows).

        Args:
            runs: first mirror that is open and the one after the last, of every macro-pixel: shape (m, 2, p, 2), the
                positive macro-pixels first.
            light: κ as it is set, the same at which a run shows its columns.
            phase: by which the reference is turned, in radians: 0 or π/2.
            reference: its power over that of a run, at one exposure time (attenuated); 0 is a closed shutter.
        """

    def fingerprint(self) -> str:
        """Identity of device and light path, whatever part of its pixels is read."""


class PatternFrames:
    """Takes frames of a device and counts them.

    Attributes:
        taken: so far.
    """

    def __init__(self, path: ProbedLight, tell: Callable[[int, str], None]) -> None:
        self.path, self.taken, self._tell = path, 0, tell

    def exposed(
        self, runs: Runs, what: str, *, light: float, phase: float = 0.0, reference: float = 1.0
    ) -> Reals:
        """Codes, shape (m, 2, rows).

        Raises:
            DeviceError: they are not finite, or a pixel is at the end of its range.
        """
        codes = self.path.probe(runs, light=light, phase=phase, reference=reference)
        if not np.isfinite(codes).all():
            raise DeviceError(f"{self.path.name} answered a public pattern with numbers that are not finite")
        if float(codes.max()) >= self.path.top:
            raise DeviceError(
                f"pixels of {self.path.name} reach the largest code, {self.path.top:g}, while {what} is measured: dim "
                "the reference, or lower the cameras' gain"
            )
        if self.path.step > 0 and float(codes.min()) <= 0:
            raise DeviceError(
                f"pixels of {self.path.name} reach code 0 while {what} is measured: raise the cameras' black level"
            )
        self.taken += len(runs)
        self._tell(self.taken, what)
        return codes

    def steady(self, frames: int, what: str, *, reference: float, phase: float = 0.0) -> Iterator[Reals]:
        """So many frames without a column, in even chunks; shape (m, 2, rows)."""
        path = self.path
        step = max(2, _HELD // (2 * path.rows) // 2 * 2)
        dark = np.zeros((step, 2, path.inputs, 2), np.int64)
        for start in range(0, frames, step):
            count = min(step, frames - start)
            yield self.exposed(dark[:count], what, light=0.0, phase=phase, reference=reference)

    def chunk(self, frames: int = 1) -> int:
        """Patterns of so many frames each that are held at a time."""
        return max(1, _HELD // (2 * self.path.rows * frames))
