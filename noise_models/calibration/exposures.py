"""The exposures of a calibration: which frames are taken of a camera whose sensitivity nobody knows yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np

from noise_models.base import Frame
from noise_models.calibration.frame_statistics import (
    CalibratedCamera,
    DarkMoments,
    Level,
    measure_dark,
    measure_level,
)

LEVELS: Final = 7
_PROBE: Final = 2  # frames of a look at a light level
# Exposure times of dark frames for the dark current: the longest in seconds, and its fractions.
_LONGEST, _SHORTEST = 1.0, 1e-6
_FRACTIONS: Final = (1 / 16, 1 / 4, 1 / 2, 1.0)
_EXPOSURE_FRAMES: Final = 16
_ROOM: Final = 0.95  # of the range, that no pixel of such frames leaves
_RISE: Final = 4.0  # standard deviations of noise that the longest of them adds at most
_DIMMEST: Final = 2.0**-24
_BRIGHTEST: Final = 16.0
_REACH: Final = 6.0  # standard deviations of shot noise kept below saturation
_PIXELS: Final = 1 << 20  # of all frames of a level together, within the limits below
_FEWEST, _MOST = 8, 24

Tell = Callable[[int, str], None]


@dataclass(frozen=True)
class Series:
    """Lit frames of one setting.

    Attributes:
        black: frames with the shutter closed.
        lit: frames at rising light, below saturation; () where light changes nothing.
        saturated: frames at the most light.
    """

    black: Level
    lit: tuple[Level, ...]
    saturated: Level


@dataclass(frozen=True)
class Frames:
    """All that a calibration takes.

    Attributes:
        taken: number of frames.
        dark: the dark frames whose noise is credited.
        shutter: dark frames of rising exposure time, at the dark setting; those with a pixel near an end are left out.
        dark_setting, data_setting: photon-transfer series of both settings.
        nominal: data frames at nominal light.
        closing: dark frames taken last, which must look like the first ones.
    """

    taken: int
    dark: DarkMoments
    shutter: tuple[Level, ...]
    dark_setting: Series
    data_setting: Series
    nominal: Level
    closing: Level


def frames_of_level(pixels: int) -> int:
    """Frames of one light level: even, more for small sensors."""
    return min(_MOST, max(_FEWEST, _PIXELS // pixels // 2 * 2))


def planned(pixels: int, dark_frames: int) -> int:
    """Frames a calibration takes, up to the looks at light levels."""
    n = frames_of_level(pixels)
    return dark_frames + len(_FRACTIONS) * _EXPOSURE_FRAMES + 2 * (LEVELS * n + n) + 2 * n + 16


def take_frames(device: CalibratedCamera, dark_frames: int, shape: tuple[int, int], tell: Tell) -> Frames:
    """Take them all.

    Args:
        device: the camera.
        dark_frames: even number of dark frames.
        shape: rows and columns of a frame.
        tell: hears the number of frames taken so far and what is being taken.

    Raises:
        UsageError, DeviceError: as the camera says.
    """
    taker = _Taker(device, tell)
    dark = measure_dark(device, dark_frames, shape, taker.count("dark frames"))
    n = frames_of_level(device.dark_pixels)
    dark_setting = taker.series(Frame.DARK, n)
    data_setting = taker.series(Frame.DATA, n)
    shutter = taker.shutter(dark, dark_setting.saturated.highest)
    nominal = taker.level(n, light=1.0, setting=Frame.DATA, what="nominal light")
    closing = taker.level(n, light=0.0, setting=Frame.DARK, what="dark frames once more")
    return Frames(taker.taken, dark, shutter, dark_setting, data_setting, nominal, closing)


class _Taker:
    """Takes levels and counts their frames."""

    def __init__(self, device: CalibratedCamera, tell: Tell) -> None:
        self._device = device
        self._tell = tell
        self.taken = 0

    def count(self, what: str) -> Callable[[int], None]:
        """What to tell of the next frames."""

        def told(frames: int) -> None:
            self.taken += frames
            self._tell(self.taken, what)

        return told

    def level(
        self, frames: int, *, light: float, setting: Frame, what: str, seconds: float | None = None
    ) -> Level:
        """Frames of one light, reduced."""
        found = measure_level(self._device, frames, light=light, setting=setting, seconds=seconds)
        self.count(what)(frames)
        return found

    def shutter(self, dark: DarkMoments, top: int) -> tuple[Level, ...]:
        """Dark frames of rising exposure time, up to a second or until the dark current is plain to see."""

        def exposed(frames: int, seconds: float) -> Level:
            return self.level(frames, light=0.0, setting=Frame.DARK, what="dark current", seconds=seconds)

        def has_room(level: Level) -> bool:
            return level.lowest > 0 and level.highest <= _ROOM * top

        noise = sqrt(max(0.0, float(dark.cumulants()[0].mean())))
        highest = float(np.mean(dark.frame_means)) + _RISE * noise
        longest = _LONGEST
        probe = exposed(_PROBE, longest)
        while longest > _SHORTEST and not (has_room(probe) and probe.mean <= highest):
            longest /= 4
            probe = exposed(_PROBE, longest)
        levels = (exposed(_EXPOSURE_FRAMES, longest * fraction) for fraction in _FRACTIONS)
        return tuple(level for level in levels if has_room(level))

    def series(self, setting: Frame, frames: int) -> Series:
        """Lit frames from a seventh of the usable range up to all of it."""
        what = f"lit frames, {setting} setting"
        black = self.level(frames, light=0.0, setting=setting, what=what)
        light = 1.0
        saturated = probe = self.level(_PROBE, light=light, setting=setting, what=what)
        while light < _BRIGHTEST and not _is_saturated(saturated):
            light *= 4
            saturated = self.level(_PROBE, light=light, setting=setting, what=what)
        range_dn = saturated.highest - black.mean
        # Down until nothing is clipped, and up again while there is little to see.
        light = min(light, 1.0)
        while light > _DIMMEST and probe.mean - black.mean > 0.3 * range_dn:
            light /= 4
            probe = self.level(_PROBE, light=light, setting=setting, what=what)
        while light < _BRIGHTEST and probe.mean - black.mean < 0.05 * range_dn:
            light *= 2
            probe = self.level(_PROBE, light=light, setting=setting, what=what)
        signal = probe.mean - black.mean
        if not signal > 10 * (probe.mean_error + black.mean_error) or range_dn <= 0:
            return Series(black, (), saturated)
        gain = max(0.0, probe.variance - black.variance) / signal
        highest = _usable(range_dn, black.variance, gain)
        lights = np.linspace(1 / LEVELS, 1.0, LEVELS) * highest * light / signal
        lit = tuple(self.level(frames, light=float(x), setting=setting, what=what) for x in lights)
        rises = lit[-1].mean - lit[0].mean > 10 * (lit[-1].mean_error + lit[0].mean_error)
        return Series(black, lit if rises else (), saturated)


def _is_saturated(level: Level) -> bool:
    """Whether the pixels stand at one and the same largest code."""
    return level.highest - level.mean < 0.02


def _usable(range_dn: float, variance: float, gain: float) -> float:
    """Largest signal S with S + reach · sqrt(variance + gain S) within 95 % of the range, in DN."""
    signal = 0.9 * range_dn
    for _ in range(50):
        signal = max(0.05 * range_dn, 0.95 * range_dn - _REACH * sqrt(variance + gain * signal))
    return float(signal)
