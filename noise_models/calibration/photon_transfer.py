"""Photon-transfer calibration of a camera: variance against mean, with limits that hold together (EMVA 1288).

The temporal variance of a code rises with its mean along a line whose slope is the gain in DN per electron, because
photo-electrons are Poisson; what is left without light is the read noise. See `noise_credit` for what the dark
frames are worth and `converter` for the code widths.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import hypot, isfinite, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

from noise_models.base import Frame
from noise_models.calibration.converter import CodeWidths, code_widths
from noise_models.calibration.dark_current import DarkCurrent, dark_current
from noise_models.calibration.document import Calibration, Interval
from noise_models.calibration.exposures import Frames, Series, planned, take_frames
from noise_models.calibration.frame_statistics import CalibratedCamera, Level, shape_of
from noise_models.calibration.line_fit import Line, fit_line, limits_of, ratio, root
from noise_models.calibration.noise_credit import (
    ROUNDING_VARIANCE,
    NoiseCredit,
    noise_credit,
    normal_quantile,
)
from noise_models.calibration.verdict import BY_CONSTRUCTION, UNKNOWN, VOUCHED, assumptions, findings
from noise_models.errors import UsageError

__all__ = ["CalibratedCamera", "calibrate", "planned"]

DARK_FRAMES: Final = 1536
LEAST_DARK_FRAMES: Final = 64
LEAST_PIXELS: Final = 1024
CONFIDENCE: Final = 0.99
BETA: Final = 1e-6
VALID_DAYS: Final = 30.0

# Below this variance (rounding included) a rounded normal's moments are not those of normal plus uniform.
_ROUND_ENOUGH: Final = 0.7
# Two-sided limits are set for so many quantities; more are not reported.
_PARAMETERS: Final = 16


def calibrate(
    device: CalibratedCamera,
    *,
    dark_frames: int = DARK_FRAMES,
    confidence: float = CONFIDENCE,
    beta: float = BETA,
    valid_days: float = VALID_DAYS,
    ideal_converter: bool = False,
    now: datetime | None = None,
    tell: Callable[[int, str], None] = lambda taken, what: None,
) -> Calibration:
    """Take frames of a camera and say what it is, and what its noise is worth.

    Args:
        device: the camera; it must stay undisturbed for the frames that are taken.
        dark_frames: dark frames at the dark setting, even; the more, the nearer the credit to the noise.
        confidence: probability with which all limits hold together (Bonferroni).
        beta: probability that the credit is wrong, on its own.
        valid_days: how long the calibration holds.
        ideal_converter: whoever calibrates vouches that the camera's converter is ideal and uniform and hands out raw
            codes. No measurement shows that its thresholds are where they should be, and a dark-frame release relies
            on them (THEORY T4): without, only a device whose converter is ideal by construction passes.
        now: time of the calibration; None is the clock's.
        tell: hears how many frames were taken and what is being taken.

    Returns:
        the calibration, which has not `passed` where a check failed.
    Raises:
        UsageError: a value out of its range, or a device without a camera.
        DeviceError: the device failed.
    """
    _refuse(device, dark_frames, confidence, beta, valid_days)
    frames = take_frames(device, dark_frames, shape_of(device), tell)
    known = BY_CONSTRUCTION if device.ideal_converter else VOUCHED if ideal_converter else UNKNOWN
    return _reduce(device, frames, confidence, beta, valid_days, known, now or datetime.now(UTC))


def _refuse(
    device: CalibratedCamera, dark_frames: int, confidence: float, beta: float, valid_days: float
) -> None:
    if dark_frames % 2 or not LEAST_DARK_FRAMES <= dark_frames <= 10**6:
        raise UsageError(
            f"dark frames of the calibration are {dark_frames}; take an even number from {LEAST_DARK_FRAMES} to 1000000"
        )
    if not 0.5 <= confidence <= 1 - 1e-9:
        raise UsageError(f"confidence is {confidence}; it must be from 0.5 to below 1, such as 0.99")
    if not 1e-15 <= beta <= 0.01:
        raise UsageError(f"beta is {beta}; it must be from 1e-15 to 0.01 (it is added to delta)")
    if not (isfinite(valid_days) and 0 < valid_days <= 3650):
        raise UsageError(f"the calibration is to hold {valid_days} days; it must be above 0 and at most 3650")
    if device.dark_pixels < 1:
        # Devices without a camera say what to use instead.
        device.expose(1, light=0.0, seconds=None, setting=Frame.DARK)
    if device.dark_pixels < LEAST_PIXELS:
        raise UsageError(
            f"a frame has {device.dark_pixels} pixels; a calibration needs at least {LEAST_PIXELS}: choose a larger "
            "region of interest"
        )


def _reduce(
    device: CalibratedCamera,
    frames: Frames,
    confidence: float,
    beta: float,
    valid_days: float,
    thresholds: str,
    now: datetime,
) -> Calibration:
    z = float(-special.ndtri((1 - confidence) / (2 * _PARAMETERS)))
    moments = frames.dark
    variance, _ = moments.cumulants()
    pixels = len(variance)
    pooled, pooled_error = float(variance.mean()), float(variance.std()) / sqrt(pixels)
    image = moments.image
    common = float(np.std(moments.frame_means, ddof=1)) / sqrt(moments.frames)
    level, level_error = float(image.mean()), max(common, sqrt(pooled / (moments.frames * pixels)))
    saturation = max(frames.dark_setting.saturated.highest, frames.data_setting.saturated.highest)

    lit = frames.dark_setting.lit
    line = _transfer(lit, level, (pooled, pooled_error)) if lit else None
    gain = limits_of(line.slope, line.slope_error, z) if line is not None and line.slope > 0 else None
    thermal = dark_current(frames.shutter, moments, level, level_error, _declared_exposure(device))
    dark_shot, own_shot = _dark_shot(thermal, line, variance, normal_quantile(beta))
    credit = noise_credit(moments, dark_shot, own_shot, saturation, beta)
    before = sqrt(max(0.0, pooled - ROUNDING_VARIANCE))
    widths = code_widths(moments.histogram, image, before, moments.frames) if before > 0 else None

    found: dict[str, Interval] = {}
    if gain is not None:
        found["gain_dn_per_electron"] = gain
        if thermal is not None:
            found |= _noises(pooled, pooled_error, gain, thermal, z)
            found["dark_current_electrons_per_second"] = ratio(limits_of(*thermal.rate, z), gain)
        found["dsnu_electrons"] = ratio(_pattern(image, pooled / moments.frames, z), gain)
    found["dark_level_dn"] = limits_of(level, level_error, z)
    found["dark_drift_dn"] = _drift(moments.frame_means, pooled / pixels, z)
    data = _data_setting(frames.data_setting, z)
    found |= data
    found["data_light_level_dn"] = limits_of(frames.nominal.mean, frames.nominal.mean_error, z)
    if gain is not None and "data_gain_dn_per_electron" in data:
        found["dark_amplification"] = ratio(gain, data["data_gain_dn_per_electron"])
    if lit:
        found["nonlinearity"] = _nonlinearity((frames.dark_setting.black, *lit), z)
    if widths is not None:
        found["dnl_codes"] = Interval(*widths.largest((1 - confidence) / _PARAMETERS))
    failed = findings(
        frames, credit, widths, found, line.p_value if line else None, thermal, thresholds, saturation
    )
    passed = not failed
    return Calibration(
        camera=device.name,
        camera_fingerprint=device.camera_fingerprint(),
        taken_at=now.isoformat(timespec="seconds"),
        expires_at=(now + timedelta(days=valid_days)).isoformat(timespec="seconds"),
        frames=frames.taken,
        confidence=confidence,
        beta=beta,
        parameters=found,
        credit_dn=credit.std,
        credit_lower_dn=credit.lower if passed else 0.0,
        step_dn=1.0,
        clipped_mass=min(1.0, credit.clipped_mass),
        dark_level_dn=level,
        light_level_dn=frames.nominal.mean,
        saturation_dn=float(saturation),
        passed=passed,
        findings=failed,
        assumptions=assumptions(credit, widths, found, thresholds, now + timedelta(days=valid_days)),
        curves=_curves(frames, level, pooled, line, widths, credit),
    )


def _transfer(lit: tuple[Level, ...], level: float, dark: tuple[float, float] | None) -> Line:
    """Variance against mean signal; the errors of both count (effective variance)."""
    x = np.array([one.mean - level for one in lit])
    y = np.array([one.variance for one in lit])
    error = np.array([one.variance_error for one in lit])
    across = np.array([one.mean_error for one in lit])
    if dark is not None:
        x, y = np.append(0.0, x), np.append(dark[0], y)
        error, across = np.append(dark[1], error), np.append(0.0, across)
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    return fit_line(x, y, np.hypot(error, slope * across))


def _declared_exposure(device: CalibratedCamera) -> float | None:
    declared = device.camera().get("dark_exposure_seconds")
    return None if declared is None else float(declared)


def _dark_shot(
    thermal: DarkCurrent | None, line: Line | None, variance: npt.NDArray[np.float64], z: float
) -> tuple[Interval, npt.NDArray[np.float64]]:
    """Shot noise of the dark current in DN², pooled and each pixel's upper limit; nothing is left where it, or the
    gain, is not known."""
    if thermal is None or line is None:
        everything = float(variance.max())
        return Interval(0.0, 0.0, everything), np.full(len(variance), everything)
    upper_gain = line.slope + z * line.slope_error
    return thermal.shot(line.slope, upper_gain, z), thermal.own_shot(variance, upper_gain, z)


def _noises(
    pooled: float, pooled_error: float, gain: Interval, thermal: DarkCurrent, z: float
) -> dict[str, Interval]:
    """Read noise: what the dark variance holds besides rounding and the dark current's shot noise."""
    offset, error = thermal.offset
    low, high = max(0.0, offset - z * error), max(0.0, offset + z * error)
    square = Interval(
        pooled - ROUNDING_VARIANCE - gain.value * max(0.0, min(offset, high)) * (low > 0),
        pooled - z * pooled_error - ROUNDING_VARIANCE - gain.upper * high,
        pooled + z * pooled_error - ROUNDING_VARIANCE - gain.lower * low,
    )
    noise = root(square)
    return {"read_noise_electrons": ratio(noise, gain), "read_noise_dn": noise}


def _pattern(image: npt.NDArray[np.float64], temporal: float, z: float) -> Interval:
    """Standard deviation over pixels of what is the same in every frame.

    Args:
        image: mean over frames of each pixel.
        temporal: variance that temporal noise leaves in it.
    """
    centred = image - image.mean()
    spread = float(np.square(centred).mean()) * len(image) / (len(image) - 1)
    error = sqrt(max(0.0, float((centred**4).mean()) - spread**2) / len(image))
    return root(limits_of(spread - temporal, error, z))


def _drift(means: list[float], variance: float, z: float) -> Interval:
    """Rise of the dark level over the frames, by a straight line through their means."""
    t = np.linspace(-0.5, 0.5, len(means))
    error = np.full(len(means), max(sqrt(variance), float(np.std(means))))
    line = fit_line(t, np.array(means), error)
    return limits_of(line.slope, line.slope_error, z)


def _nonlinearity(levels: tuple[Level, ...], z: float) -> Interval:
    """Largest distance of the mean from a straight line over light, as a fraction of the range covered."""
    x = np.array([one.light for one in levels])
    y = np.array([one.mean for one in levels])
    error = np.array([one.mean_error for one in levels])
    line = fit_line(x, y, error)
    covered = float(np.ptp(y))
    residual, z_all = np.abs(line.residuals), float(-special.ndtri(special.ndtr(-z) / len(x)))
    return Interval(
        float(residual.max()) / covered,
        float(np.maximum(0.0, residual - z_all * error).max()) / covered,
        float((residual + z_all * error).max()) / covered,
    )


def _data_setting(series: Series, z: float) -> dict[str, Interval]:
    """What the data setting's frames show; only levels whose noise is wide enough to survive rounding count."""
    found = {"data_saturation_dn": Interval(*[float(series.saturated.highest)] * 3)}
    lit = tuple(one for one in series.lit if one.variance >= _ROUND_ENOUGH)
    if len(lit) < 3:
        return found
    line = _transfer(lit, series.black.mean, None)
    if line.slope - z * line.slope_error <= 0:
        return found
    gain = limits_of(line.slope, line.slope_error, z)
    found["data_gain_dn_per_electron"] = gain
    response = fit_line(
        np.array([one.light for one in lit]),
        np.array([one.mean for one in lit]),
        np.array([one.mean_error for one in lit]),
    )
    black = limits_of(response.intercept, response.intercept_error, z)
    found["data_black_dn"] = black
    top = series.saturated.highest
    found["data_full_well_electrons"] = ratio(
        Interval(top - black.value, top - black.upper, top - black.lower), gain
    )
    found["data_nonlinearity"] = _nonlinearity(lit, z)
    low, high = lit[0], lit[-1]
    temporal = low.variance / low.frames + high.variance / high.frames
    signal = limits_of(high.mean - low.mean, hypot(high.mean_error, low.mean_error), z)
    found["prnu"] = ratio(_pattern(high.image - low.image, temporal, z), signal)
    return found


def _curves(
    frames: Frames,
    level: float,
    pooled: float,
    line: Line | None,
    widths: CodeWidths | None,
    credit: NoiseCredit,
) -> dict[str, list[float]]:
    """Points for the picture: photon transfer of both settings, residuals, code widths, law of the dark frames."""
    curves: dict[str, list[float]] = {}
    for name, series, black in (
        ("dark", frames.dark_setting, level),
        ("data", frames.data_setting, frames.data_setting.black.mean),
    ):
        curves[f"{name}_light"] = [one.light for one in series.lit]
        curves[f"{name}_signal_dn"] = [one.mean - black for one in series.lit]
        curves[f"{name}_variance_dn2"] = [one.variance for one in series.lit]
        curves[f"{name}_variance_error_dn2"] = [one.variance_error for one in series.lit]
    curves["dark_floor_dn2"] = [pooled]
    if line is not None:
        curves["dark_line"] = [line.intercept, line.slope]
        curves["dark_residual_dn2"] = [float(x) for x in line.residuals]
    if widths is not None:
        curves["codes"] = [float(x) for x in widths.codes]
        curves["width_errors"] = [float(x) for x in widths.errors]
        curves["width_standard_errors"] = [float(x) for x in widths.standard_errors]
    counts = frames.dark.histogram
    shown = np.flatnonzero(counts)
    curves["histogram_codes"] = [float(x) for x in shown]
    curves["histogram"] = [float(x) for x in counts[shown]]
    curves["frame_means_dn"] = [float(x) for x in np.array(frames.dark.frame_means).reshape(-1, 2).mean(1)]
    return curves
