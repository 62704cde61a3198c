"""Statistics of a camera's frames, taken as they stream by: no more than a few frames are held at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.residues import Residues
from noise_models.errors import DeviceError
from noise_models.places import on_cpu

Reals = npt.NDArray[np.float64]

# Moments are kept of so many groups of frames, whose cumulants are independent estimates.
GROUPS: Final = 4

# Pixels that are held at a time, in whole frames.
_HELD = 1 << 21


class Sensor(Protocol):
    """What has frames of pixels."""

    @property
    def dark_pixels(self) -> int: ...

    @property
    def frame_shape(self) -> tuple[int, int]: ...


def shape_of(device: Sensor) -> tuple[int, int]:
    """Rows and columns of a device's frames; one row where its shape does not fit its pixels."""
    rows, columns = device.frame_shape
    return (rows, columns) if rows * columns == device.dark_pixels else (1, device.dark_pixels)


class CalibratedCamera(Sensor, Protocol):
    """A device whose camera takes frames without data.

    Attributes:
        dark_pixels: pixels of a frame.
        frame_shape: its rows and columns.
        ideal_converter: whether its converter is known to be ideal and uniform, by construction.
    """

    @property
    def name(self) -> str:
        """Registered name of the device."""

    @property
    def ideal_converter(self) -> bool: ...

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        """Raw codes of fresh frames of the lamp alone, shape (frames, dark_pixels); light 0 is a closed shutter."""

    def camera(self) -> dict[str, Any]:
        """What identifies the camera; `dark_exposure_seconds` in it, if any, is the dark setting's exposure."""

    def camera_fingerprint(self) -> str:
        """Identity of the camera."""


@dataclass(frozen=True)
class Level:
    """Frames of one light, exposure and setting.

    Attributes:
        light, seconds: as asked; seconds None is the setting's own exposure.
        frames: how many.
        mean, mean_error: mean code and its standard error, in DN.
        variance, variance_error: temporal variance of a pixel, pooled over pixels, from differences of
            successive frames (EMVA 1288: fixed patterns and slow drift cancel), in DN².
        image: mean code of each pixel, shape (pixels,).
        lowest, highest: codes.
    """

    light: float
    seconds: float | None
    frames: int
    mean: float
    mean_error: float
    variance: float
    variance_error: float
    image: Reals
    lowest: int
    highest: int


def take(
    device: CalibratedCamera,
    frames: int,
    *,
    light: float,
    setting: Frame,
    seconds: float | None = None,
    held: int | None = None,
) -> Any:
    """Iterate over fresh frames in blocks of an even number of them, each an array (n, pixels) of codes."""
    block = held or max(2, _HELD // device.dark_pixels // 2 * 2)
    for start in range(0, frames, block):
        n = min(block, frames - start)
        codes = on_cpu(device.expose(n, light=light, seconds=seconds, setting=setting)).numpy()
        if codes.shape != (n, device.dark_pixels):
            raise DeviceError(
                f"{device.name} answered frames of shape {codes.shape} where ({n}, {device.dark_pixels}) was "
                "asked for; check its driver"
            )
        yield codes


def measure_level(
    device: CalibratedCamera,
    frames: int,
    *,
    light: float,
    setting: Frame,
    seconds: float | None = None,
) -> Level:
    """Take `frames` frames (even, 2 or more) and reduce them."""
    pixels = device.dark_pixels
    image = np.zeros(pixels)
    frame_means: list[float] = []
    squares = fourths = 0.0
    lowest, highest = 2**31, -1
    for codes in take(device, frames, light=light, setting=setting, seconds=seconds):
        values = codes.astype(np.float32)
        image += values.sum(0)
        frame_means += values.mean(1, dtype=np.float64).tolist()
        lowest, highest = min(lowest, int(codes.min())), max(highest, int(codes.max()))
        difference = values[0::2] - values[1::2]
        difference -= difference.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        np.square(difference, out=difference)
        squares += float(difference.sum(dtype=np.float64))
        fourths += float(np.vdot(difference, difference))
    image /= frames
    pairs = frames // 2 * (pixels - 1)
    variance = squares / (2 * pairs)
    spread = max(0.0, fourths / (4 * pairs) - variance**2)
    # Where frames share a fluctuation (lamp), their means show it.
    common = float(np.std(frame_means, ddof=1)) / sqrt(frames)
    return Level(
        light=light,
        seconds=seconds,
        frames=frames,
        mean=float(np.mean(frame_means)),
        mean_error=max(common, sqrt(max(variance, 1e-12) / (frames * pixels))),
        variance=variance,
        variance_error=sqrt(spread / pairs),
        image=image,
        lowest=lowest,
        highest=highest,
    )


class DarkMoments:
    """Per-pixel moments up to the fourth, histogram, correlations and repeats of many frames of one scene.

    The mean of a frame is taken off each of its pixels first: what moves all pixels together is no pixel's noise
    (it is kept in `frame_means`).

    Attributes:
        frames: frames so far.
        frame_means: mean code of each, in DN.
        histogram: counts of codes 0, 1, …
        repeats: frames that equal an earlier one.
        residues: of single pixels' codes.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        """
        Args:
            shape: rows and columns of a frame.
        """
        self._columns = shape[1]
        self._pixels = shape[0] * shape[1]
        self._sums = np.zeros((GROUPS, 4, self._pixels))
        self._grouped = np.zeros(GROUPS, dtype=np.int64)
        self._blocks = 0
        self._reference: npt.NDArray[np.float32] | None = None
        self._digests: set[bytes] = set()
        lags = (1, self._columns, self._columns + 1, self._columns - 1)
        self._lags = tuple(lag for lag in dict.fromkeys(lags) if 0 < lag < self._pixels)
        self._products = np.zeros(len(self._lags))
        self._power = 0.0
        self._differences = 0
        self.frames = 0
        self.frame_means: list[float] = []
        self.histogram = np.zeros(1, dtype=np.int64)
        self.repeats = 0
        self.residues = Residues(self._pixels)

    def add(self, codes: npt.NDArray[Any]) -> None:
        """Frames, shape (n, pixels) with n even, non-negative integers."""
        for frame in codes:
            found = hashlib.sha256(np.ascontiguousarray(frame).data).digest()[:16]
            self.repeats += found in self._digests
            self._digests.add(found)
        counts = np.bincount(codes.ravel(), minlength=len(self.histogram))
        counts[: len(self.histogram)] += self.histogram
        self.histogram = counts
        self.residues.add(codes)
        x = codes.astype(np.float32)
        if self._reference is None:
            self._reference = np.rint(x.mean(0))
        means = x.mean(1, dtype=np.float64)
        self.frame_means += means.tolist()
        x -= self._reference
        x -= x.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        self._correlate(x[0::2] - x[1::2])
        ends = np.arange(GROUPS + 1) * len(x) // GROUPS
        for turn in range(GROUPS):
            # Groups take turns, so that blocks of two frames fill all of them.
            self._sum((turn + self._blocks) % GROUPS, x[ends[turn] : ends[turn + 1]])
        self._blocks += 1
        self.frames += len(codes)

    def _sum(self, group: int, x: npt.NDArray[np.float32]) -> None:
        """Add powers of `x` to a group's sums; destroys it."""
        square = np.square(x)
        sums = self._sums[group]
        sums[0] += x.sum(0)
        sums[1] += square.sum(0)
        x *= square
        sums[2] += x.sum(0)
        np.square(square, out=square)
        sums[3] += square.sum(0)
        self._grouped[group] += len(x)

    def _correlate(self, difference: npt.NDArray[np.float32]) -> None:
        flat = difference.ravel()
        self._power += float(np.vdot(flat, flat))
        self._differences += flat.size
        for index, lag in enumerate(self._lags):
            self._products[index] += float(np.vdot(flat[:-lag], flat[lag:]))

    @property
    def image(self) -> Reals:
        """Mean code of each pixel, shape (pixels,)."""
        assert self._reference is not None
        image: Reals = self._reference + self._sums[:, 0].sum(0) / self.frames
        image += float(np.mean(self.frame_means)) - image.mean()
        return image

    def cumulants(self) -> tuple[Reals, Reals]:
        """Unbiased second and fourth cumulant of each pixel (Fisher's k-statistics), shapes (pixels,)."""
        second, _, fourth = _k_statistics(self._sums.sum(0), self.frames)
        # The frame's mean holds a share 1/pixels of every pixel's noise.
        return second * (self._pixels / max(1, self._pixels - 1)), fourth

    def grouped_cumulants(self) -> tuple[Reals, Reals]:
        """Unbiased third and fourth cumulant of each pixel by each group of frames, shapes (GROUPS, pixels)."""
        found = [_k_statistics(sums, int(n)) for sums, n in zip(self._sums, self._grouped, strict=True)]
        return np.stack([third for _, third, _ in found]), np.stack([fourth for _, _, fourth in found])

    def neighbours(self) -> tuple[Reals, float]:
        """Correlation with the four neighbours ahead (one along the row, three in the next), and its standard
        error; a pixel has as many behind it."""
        if self._power == 0.0:
            return np.zeros(len(self._lags)), 0.0
        return self._products / self._power, 1 / sqrt(self._differences)

    def successive(self) -> tuple[float, float]:
        """Correlation of a pixel's noise in successive frames (von Neumann's ratio), and its standard error."""
        variance = float(self.cumulants()[0].mean())
        if variance <= 0.0 or self._differences == 0:
            return 0.0, 0.0
        ratio = self._power / (2 * self._differences) / variance * (self._pixels / (self._pixels - 1))
        return 1 - ratio, sqrt(2 / (self.frames * self._pixels))


def _k_statistics(sums: Reals, n: int) -> tuple[Reals, Reals, Reals]:
    """Fisher's k-statistics 2, 3 and 4 from sums of the first four powers of n (4 or more) values."""
    mean = sums[0] / n
    second = sums[1] - n * mean**2
    third = sums[2] - 3 * mean * sums[1] + 2 * n * mean**3
    fourth = sums[3] - 4 * mean * sums[2] + 6 * mean**2 * sums[1] - 3 * n * mean**4
    k4 = n * (n + 1) * fourth / ((n - 1) * (n - 2) * (n - 3)) - 3 * second**2 / ((n - 2) * (n - 3))
    return second / (n - 1), n * third / ((n - 1) * (n - 2)), k4


def measure_dark(
    device: CalibratedCamera, frames: int, shape: tuple[int, int], tell: Callable[[int], None]
) -> DarkMoments:
    """Moments of `frames` dark frames (even) at the dark setting; `tell` hears how many were taken."""
    moments = DarkMoments(shape)
    for codes in take(device, frames, light=0.0, setting=Frame.DARK):
        moments.add(codes)
        tell(len(codes))
    return moments
