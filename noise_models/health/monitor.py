"""Health of a camera as a noise source: start-up and continuous tests of its frames (NIST SP 800-90B §4).

Three kinds of frames, three kinds of tests:
* dark frames that are never released meet every test; a stable pattern cancels in the difference of two of them;
* frames whose noise is released meet only tests that a healthy device fails with a probability below
  RELEASED_FALSE_ALARM a frame, because releasing what passed conditions it;
* lit frames without data show the lamp and the gain.
A failure raises HealthError; the caller then releases nothing. Not found: old frames that come again rotated or
shifted by whole pixels, whose every statistic is a healthy frame's (`noise_models.health.replays`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from noise_models.errors import HealthError, UsageError, apart
from noise_models.health.limits import (
    HealthLimits,
    Reference,
    limits,
    normal_misfit,
    rare_count_limit,
    same_probability,
    sum_limit,
    variance_limits,
)
from noise_models.health.replays import REPLAY_FALSE_ALARM, Replays
from noise_models.places import on_cpu

FALSE_ALARM: Final = 5e-7  # of a look at dark frames that are not released, all its tests together
START_UP_PIXELS: Final = 1 << 20
LOOK_PIXELS: Final = 1 << 17  # of every later look
LEAST_PIXELS: Final = 1024  # of a frame; below, the tests see nothing
LEAST_STD: Final = 1.0  # converter steps; below, a rounded normal no longer has the laws the limits rest on
_VARIANCE_ALARM: Final = 2.0**-90  # either side, of a released frame
_REPEAT_ALARM: Final = 2.0**-90  # of a released frame and the one before or after it
# Each of the last two is compared with a released frame: the frame before it, and the frame after it.
RELEASED_FALSE_ALARM: Final = REPLAY_FALSE_ALARM + 2 * _VARIANCE_ALARM + 2 * _REPEAT_ALARM
LAMP_DRIFT: Final = 0.1  # of the lamp's signal, both ways
RELEASED_SLACK: Final = 0.03  # of a released frame's variance, for the error of the start-up's own estimate
LEAST_LIGHT: Final = 8.0  # converter steps that the lamp must give
_DARK_TESTS: Final = 9
_LARGEST: Final = 2**24  # float32 holds every integer up to it

Codes = npt.NDArray[Any]
Reals = npt.NDArray[np.float32]

_REMEDY: Final = {
    "replay": "restart the camera and its driver",
    "repeated pixels": "restart the camera and its driver",
    "repetition count": "restart the camera, or calibrate without its dead pixels",
    "saturation": "check shutter and black level",
    "lamp": "check the lamp, then calibrate again",
}
_OTHER_REMEDY: Final = "check the device, then calibrate it again"


def look_frames(pixels: int) -> int:
    """Frames of so many pixels that a look at unreleased dark frames takes: in pairs, and LOOK_PIXELS or more."""
    return 2 * math.ceil(LOOK_PIXELS / (2 * pixels))


class HealthMonitor:
    """Tests the frames of one camera, and remembers what it was shown.

    Attributes:
        frames: frames shown so far.
        level: mean of the start-up's dark frames, in DN.
    """

    def __init__(
        self,
        reference: Reference,
        shape: tuple[int, int],
        *,
        false_alarm: float = FALSE_ALARM,
        known: Iterable[str] = (),
    ) -> None:
        """
        Args:
            reference: what healthy frames look like.
            shape: rows and columns of a frame.
            false_alarm: of one look at unreleased dark frames, all tests together.
            known: hexadecimal digests of frames from earlier parts of the run; showing one again is a replay.

        Raises:
            UsageError: a frame has fewer than LEAST_PIXELS pixels, or less noise than LEAST_STD converter steps.
        """
        self._rows, self._columns = shape
        self._pixels = self._rows * self._columns
        if self._pixels < LEAST_PIXELS:
            raise UsageError(
                f"a dark frame has {self._pixels} pixels; the health tests need at least {LEAST_PIXELS}: choose a "
                "larger region of interest"
            )
        if not reference.credited >= LEAST_STD * reference.step:
            found, least = apart(reference.credited / reference.step, LEAST_STD)
            raise UsageError(
                f"the dark noise is {found} converter steps; the health tests need at least {least}: "
                "raise the analog gain of dark frames"
            )
        self.reference = reference
        self.frames = 0
        self.level = reference.level
        self._alarm = false_alarm / _DARK_TESTS
        self._replays = Replays(self._pixels, known)
        self._unlogged: list[str] = []
        self._last: Codes | None = None  # unreleased
        self._previous: Codes | None = None  # released or not
        self._runs = np.zeros(self._pixels, dtype=np.int32)
        self._variance = reference.expected**2 + reference.step**2 / 12
        self._closed = self._signal = math.nan
        self._limits: dict[tuple[int, int], HealthLimits] = {}
        self._released_limits = variance_limits(self._pixels, _VARIANCE_ALARM)
        self._repeats = rare_count_limit(self._pixels, same_probability(reference), _REPEAT_ALARM)

    # ---- what is shown to it

    def start_up(self, codes: Tensor) -> dict[str, Any]:
        """Dark frames taken before anything else, which are never released.

        Args:
            codes: shape (frames, pixels), an even number of frames, START_UP_PIXELS pixels or more altogether.
        Returns:
            what was found (JSON types), with the digests of two of the frames.
        Raises:
            HealthError: a test failed.
            UsageError: too few frames.
        """
        frames = self._read(codes)
        if len(frames) % 2 or frames.size < START_UP_PIXELS:
            raise UsageError(
                f"the start-up test was given {frames.shape} pixels; take an even number of frames with "
                f"{START_UP_PIXELS} pixels or more"
            )
        digests = self._refuse_replay(frames)
        limit = self._cut(len(frames), len(frames) // 2).run
        self._fail_if(_has_run(frames[1:] == frames[:-1], limit), "repetition count", limit, limit)
        found = self._examine(frames, frames[1::2].astype(np.float32) - frames[::2].astype(np.float32))
        self._last = self._previous = frames[-1]
        self.level = float(frames.mean(dtype=np.float64))
        self._variance = float(np.square(frames - self.level).mean(dtype=np.float64))
        return {**found, "frames": len(frames), "digests": [digests[0].hex(), digests[-1].hex()]}

    def dark(self, codes: Tensor) -> dict[str, float]:
        """A look at fresh dark frames which are never released.

        Args:
            codes: shape (frames, pixels), an even number of frames; fewer than `look_frames` see less.
        Returns:
            what was found.
        Raises:
            HealthError: a test failed.
            UsageError: before `start_up`, or an odd number of frames.
        """
        if self._last is None:
            raise UsageError("no healthy frame is known yet; run the start-up test first")
        frames = self._read(codes)
        if len(frames) % 2 or not len(frames):
            raise UsageError(
                f"a look was given {len(frames)} dark frames; take an even number of them, 2 or more"
            )
        self._refuse_replay(frames)
        self._refuse_repeats(frames[0])
        longest = 0
        for before, frame in zip((self._last, *frames[:-1]), frames, strict=True):
            self._runs += 1
            self._runs *= frame == before
            longest = max(longest, int(self._runs.max()) + 1)
        limit = self._cut(len(frames), len(frames) // 2).run
        self._fail_if(longest >= limit, "repetition count", longest, limit)
        found = self._examine(frames, frames[1::2].astype(np.float32) - frames[::2].astype(np.float32))
        self._last = self._previous = frames[-1]
        return found

    def released(self, codes: Tensor) -> None:
        """One frame whose noise is about to be released, shape (1, pixels).

        Raises:
            HealthError: it or a part of it was seen before, it has too many pixels of the frame before, or its
                variance is far from the start-up's.
        """
        frames = self._read(codes)
        self._refuse_replay(frames)
        frame = frames[0]
        centred = frame.astype(np.float32)
        centred -= centred.mean()
        ratio = float(centred @ centred) / self._pixels / self._variance
        low, high = self._released_limits
        slack = RELEASED_SLACK + 2 * (self.reference.drift + self.reference.rise)
        self._within("variance", ratio, low - slack, high + slack, 2 * _VARIANCE_ALARM)
        self._refuse_repeats(frame)
        self._previous = frame

    def lamp(self, closed: Tensor, lit: Tensor) -> dict[str, float]:
        """The start-up's frames at the data setting, shape (1, pixels) each: shutter closed, and nominal light.

        Raises:
            HealthError: the lamp gives no light, or another amount than calibrated.
        """
        self._closed = float(self._read(closed)[0].mean(dtype=np.float64))
        known = self.reference.light
        self._signal = self._light(lit) if known is None else known - self._closed
        self._fail_if(
            not self._signal >= LEAST_LIGHT * self.reference.step,
            "lamp",
            self._signal,
            LEAST_LIGHT * self.reference.step,
        )
        if known is not None:
            self._compare_light(self._light(lit))
        return {"closed_dn": self._closed, "light_dn": self._signal}

    def lit(self, codes: Tensor) -> None:
        """One lit frame without data at the data setting, shape (1, pixels).

        Raises:
            HealthError: it was seen before, or the light is another than at the start.
        """
        self._compare_light(self._light(codes))

    def shown(self) -> tuple[str, ...]:
        """Hexadecimal digests of the frames shown since this was last asked; `known` to the next part of the run."""
        digests, self._unlogged = tuple(self._unlogged), []
        return digests

    def describe(self) -> dict[str, Any]:
        """Tests, limits and false alarms (JSON types), for the ledger."""
        return {
            "reference": asdict(self.reference),
            "start_up_pixels": START_UP_PIXELS,
            "look_frames": look_frames(self._pixels),
            "false_alarm_look": self._alarm * _DARK_TESTS,
            "false_alarm_released_frame": RELEASED_FALSE_ALARM,
            "limits": asdict(self._cut(look_frames(self._pixels), look_frames(self._pixels) // 2)),
            "released_variance_ratio": list(self._released_limits),
            "released_repeated_pixels": self._repeats,
            "lamp_drift": LAMP_DRIFT,
        }

    # ---- the tests

    def _examine(self, codes: Codes, differences: Reals) -> dict[str, float]:
        """All tests of dark frames but those over time.

        Args:
            codes: shape (frames, pixels).
            differences: of disjoint pairs of such frames, shape (pairs, pixels).
        """
        ref, limit = self.reference, self._cut(len(codes), len(differences))
        repeated = int(differences.size - np.count_nonzero(differences))
        flat = differences.ravel()
        flat -= flat.mean()  # a level that moved within its allowance is no correlation
        power = float(flat @ flat)
        variance = power / (2 * flat.size)
        # First: where the gain fell, pixels repeat too, and the gain is what to look at.
        self._within("variance", variance, limit.variance_low, limit.variance_high)
        self._fail_if(repeated >= limit.repeated, "repeated pixels", repeated, limit.repeated)
        image = codes.reshape(-1, self._columns)
        for equal in (codes.ravel()[1:] == codes.ravel()[:-1], image[1:] == image[:-1]):
            self._fail_if(_has_run(equal, limit.run), "repetition count", limit.run, limit.run)
        histogram, low = _histogram(codes)
        common = int(histogram.max())
        self._fail_if(common >= limit.common, "adaptive proportion", common, limit.common)
        level = float(histogram @ (np.arange(len(histogram)) + low)) / codes.size
        self._within("level", level, ref.level - limit.level, ref.level + limit.level)
        clipped = int(np.count_nonzero(np.abs(flat) >= limit.reach))
        self._fail_if(clipped >= limit.clipped, "saturation", clipped, limit.clipped)
        worst = 0.0
        for lag in self._lags():
            correlation = float(flat[:-lag] @ flat[lag:]) / power
            self._within("correlation", correlation, -limit.correlation, limit.correlation)
            worst = max(worst, abs(correlation))
        stack = differences.reshape(-1, self._columns)
        rows = float(np.square(stack.sum(1)).sum()) / (2 * variance * self._columns)
        self._fail_if(rows >= limit.rows, "row means", rows, limit.rows)
        columns = np.square(differences.reshape(-1, self._rows, self._columns).sum(1)).sum()
        columns = float(columns) / (2 * variance * self._rows)
        self._fail_if(columns >= limit.columns, "column means", columns, limit.columns)
        if ref.normal and (fit := normal_misfit(histogram, low, level)) is not None:
            most = sum_limit(fit[1], self._alarm)
            self._fail_if(fit[0] >= most, "code law", fit[0], most)
        return {
            "gaussian_std_dn": math.sqrt(max(0.0, variance - ref.step**2 / 12)),
            "level_dn": level,
            "correlation": worst,
        }

    def _lags(self) -> tuple[int, ...]:
        """Neighbours along the row and two apart, the row above and its two diagonals."""
        along = (1, 2) if self._columns > 2 else ()
        above = (self._columns - 1, self._columns, self._columns + 1) if self._rows > 1 else ()
        return tuple(dict.fromkeys(lag for lag in (*along, *above) if lag < self._pixels))

    def _light(self, codes: Tensor) -> float:
        frames = self._read(codes)
        self._refuse_replay(frames, noise=False)
        return float(frames.mean(dtype=np.float64)) - self._closed

    def _compare_light(self, light: float) -> None:
        low, high = (1 - LAMP_DRIFT) * self._signal, (1 + LAMP_DRIFT) * self._signal
        self._within("lamp", light, low, high, 1e-12)

    def _refuse_replay(self, frames: Codes, *, noise: bool = True) -> list[bytes]:
        digests, chunks = self._replays.show(frames, noise=noise)
        self._unlogged += [digest.hex() for digest in digests]
        self._fail_if(chunks > 0, "replay", chunks, 0, REPLAY_FALSE_ALARM)
        return digests

    def _refuse_repeats(self, frame: Codes) -> None:
        """Pixels, wherever they are, that kept their codes of the frame before, which may be a released one."""
        if self._previous is not None:
            repeated = int(np.count_nonzero(frame == self._previous))
            self._fail_if(
                repeated >= self._repeats, "repeated pixels", repeated, self._repeats, _REPEAT_ALARM
            )

    def _read(self, codes: Tensor) -> Codes:
        """As integers, shape (frames, pixels); counts them."""
        frames = on_cpu(codes).numpy()
        self.frames += len(frames)
        if frames.dtype.kind == "f":
            whole = np.clip(np.nan_to_num(frames), 0, _LARGEST).astype(np.int32)
            self._fail_if(not np.array_equal(whole, frames), "codes", math.nan, math.nan)
            frames = whole
        return frames

    def _cut(self, frames: int, pairs: int) -> HealthLimits:
        """Limits for so many frames and differences."""
        if (frames, pairs) not in self._limits:
            self._limits[frames, pairs] = limits(
                self.reference, self._alarm, frames, pairs, self._rows, self._columns, len(self._lags())
            )
        return self._limits[frames, pairs]

    def _within(
        self, test: str, value: float, low: float, high: float, false_alarm: float | None = None
    ) -> None:
        self._fail_if(not low <= value <= high, test, value, low if value < low else high, false_alarm)

    def _fail_if(
        self, failed: bool, test: str, value: float, limit: float, false_alarm: float | None = None
    ) -> None:
        if not failed:
            return
        finding = {
            "test": test,
            "value": _finite(value),
            "limit": _finite(limit),
            "frame": self.frames,
            "false_alarm": self._alarm if false_alarm is None else false_alarm,
        }
        found, allowed = apart(value, limit)
        raise HealthError(
            f"health test {test!r} failed after {self.frames} frames: {found}, limit {allowed}; "
            f"{_REMEDY.get(test, _OTHER_REMEDY)} (nothing more is released)",
            finding,
        )


def _has_run(equal: npt.NDArray[np.bool_], length: int) -> bool:
    """Whether `length` codes in a row are equal down the first axis.

    Args:
        equal: whether a code equals the one before it on that axis.
    """
    needed, have = length - 1, 1
    while have < needed:
        step = min(have, needed - have)
        if len(equal) <= step:
            return False
        equal = equal[step:] & equal[:-step]
        have += step
    return bool(equal.any())


def _histogram(codes: Codes) -> tuple[npt.NDArray[np.intp], int]:
    """Counts of the codes from the smallest one on, and that code."""
    if codes.dtype == np.uint8:
        return np.bincount(codes.ravel(), minlength=256), 0
    low = int(codes.min())
    return np.bincount((codes - low).ravel()), low


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
