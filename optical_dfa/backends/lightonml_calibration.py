"""What an optical projector turns out to be when known patterns are shown: gain, offset, noise, linearity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from noise_models.errors import DeviceError, apart

# Sign patterns that are shown, each twice; the gain's relative error is about 1 / (2 sqrt(PROBES · outputs)).
PROBES: Final = 128
_AT_A_TIME: Final = 16
_SEED: Final = 0x0F17  # the patterns are public
# Beyond, sums of answers are not answers to sums.
MOST_NONLINEARITY: Final = 0.5
# lightonml's own limit for its 8-bit camera.
MOST_SATURATED: Final = 0.005
_TOP: Final = 255
LEAST_SIGNAL_DN: Final = 1.0

Frames = npt.NDArray[np.uint8]
Answer = Callable[[Frames], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ProjectorCalibration:
    """Measured at the start, with public patterns.

    Attributes:
        gain: readout units for one unit of B, whose entries have variance 1.
        offset: root mean square over outputs of the answer to no mirror at all, in units of B; it cancels in
            differences of frames.
        noise: standard deviation of one frame's answer, in units of B.
        nonlinearity: part of an answer that is neither linear nor noise, relative.
    """

    gain: float
    offset: float
    noise: float
    nonlinearity: float


@dataclass(frozen=True)
class CameraLevels:
    """Of an 8-bit camera behind the projector, in DN.

    Attributes:
        dark: mean level with no mirror on.
        signal: what half the mirrors add to it.
        saturated: share of pixels at the top code then.
    """

    dark: float
    signal: float
    saturated: float


def calibrate(answer: Answer, in_features: int, name: str) -> ProjectorCalibration:
    """Show sign patterns s as two frames each: answer(s > 0) − answer(s < 0) = gain · B s + noise, E (B s)² = n.

    Repetitions tell noise from signal: products of two answers to one pattern have none of its variance.

    Args:
        answer: readout of 0/1 frames of shape (m, in_features), shape (m, outputs).
        name: of the backend, for messages.

    Raises:
        DeviceError: it does not answer, or not linearly.
    """
    rng = np.random.default_rng(_SEED)
    zero = np.zeros((_AT_A_TIME, in_features), dtype=np.uint8)
    dark, full = answer(zero).mean(axis=0), answer(1 - zero).mean(axis=0)
    power = noise = residual = 0.0
    for _ in range(0, PROBES, _AT_A_TIME):
        on = rng.integers(0, 2, size=zero.shape, dtype=np.uint8)
        frames = np.concatenate((on, 1 - on))
        first, second = answer(frames), answer(frames)
        (p1, m1), (p2, m2) = np.split(first, 2), np.split(second, 2)
        power += float(np.mean((p1 - m1) * (p2 - m2), dtype=np.float64))
        noise += float(np.mean(np.square(first - second), dtype=np.float64)) / 2
        misfits = ((p1 + m1) - (dark + full)) * ((p2 + m2) - (dark + full))
        residual += float(np.mean(misfits, dtype=np.float64))
    steps = PROBES // _AT_A_TIME
    power, noise, residual = power / steps, noise / steps, residual / steps
    if not 0.0 < power < float("inf"):
        raise DeviceError(
            f"backend {name} answers every probe pattern alike (signal power {power:.3g}); check light and shutter"
        )
    # The means of dark and full carry 2/_AT_A_TIME of the noise into both factors.
    nonlinearity = max(0.0, residual - 2 * noise / _AT_A_TIME) / power
    if nonlinearity > MOST_NONLINEARITY**2:
        found, most = apart(nonlinearity**0.5, MOST_NONLINEARITY)
        raise DeviceError(
            f"backend {name} is not linear: {found} of an answer is no sum of its parts' answers (up to {most} is "
            f"allowed); lower the exposure"
        )
    gain = (power / in_features) ** 0.5
    return ProjectorCalibration(
        gain=gain,
        offset=float(np.sqrt(np.mean(np.square(dark), dtype=np.float64))) / gain,
        noise=noise**0.5 / gain,
        nonlinearity=nonlinearity**0.5,
    )


def camera_levels(image: Answer, in_features: int, name: str) -> CameraLevels:
    """Look at raw camera images of no mirror and of random halves of them.

    Args:
        image: raw 8-bit codes of 0/1 frames.

    Raises:
        DeviceError: hardly any light, or too much.
    """
    rng = np.random.default_rng(_SEED)
    shape = (_AT_A_TIME, in_features)
    dark = float(image(np.zeros(shape, dtype=np.uint8)).mean(dtype=np.float64))
    lit = image(rng.integers(0, 2, size=shape, dtype=np.uint8))
    levels = CameraLevels(dark, float(lit.mean(dtype=np.float64)) - dark, float(np.mean(lit >= _TOP)))
    if not levels.signal >= LEAST_SIGNAL_DN:
        raise DeviceError(
            f"backend {name}: half the mirrors add {levels.signal:.3g} DN to the camera's {levels.dark:.3g}; "
            "check laser and shutter, or raise exposure_us in config_file"
        )
    if levels.saturated > MOST_SATURATED:
        found, most = apart(levels.saturated, MOST_SATURATED)
        raise DeviceError(
            f"backend {name}: {found} of the camera's pixels are saturated, more than {most}; "
            "lower exposure_us in config_file"
        )
    return levels
