"""The most that fields, measured with known errors, are as matrices (THEORY T10; docs/theory.md, calibration)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi, sqrt

import numpy as np

from noise_models.calibration.probed_light import Complex, Reals
from noise_models.errors import DeviceError


@dataclass(frozen=True)
class Fields:
    """Numbers are relative to the reference at a pixel, for all mirrors of a macro-pixel at light `light`.

    Attributes:
        light: κ as it was set.
        columns: estimates of the fields of every macro-pixel, the positive ones first, shape (rows, 2 p).
        noise: standard deviation of Re and Im of one of them, limit, shape (rows,).
        together: field of all macro-pixels at once, by itself, shape (rows,).
        slow: largest relative error that is common to a part of the measurement: phase, brightness.
        fast: standard deviation of that of single frames.
        size, repeats: patterns, and frames of each.
        attenuator: settings of κ, rising, and how much κ may be over the setting, times that at `light`; limits.
        mirrors: largest departure of a mirror from the mean of its macro-pixel, complex, relative.
        share: the most that a single mirror's field is over its part of its macro-pixel's, mean over mirrors.
        oblique: |E/r|² over the sum of the squares of both quadratures, limit.
        drift: largest angle of the reference over the measurement, in radians.
        jitter: standard deviation of the angle from frame to frame.
        leak: largest field that passes mirrors which are off, at the brightest light, limit.
        affine: how far fields of parts may be off that of the whole, relative, without showing.
        beta: of each of the bounds that are made of these.
    """

    light: float
    columns: Complex
    noise: Reals
    together: Complex
    slow: float
    fast: float
    size: int
    repeats: int
    attenuator: tuple[tuple[float, float], ...]
    mirrors: float
    share: float
    oblique: float
    drift: float
    jitter: float
    leak: float
    affine: float
    beta: float


@dataclass(frozen=True)
class Bounds:
    """Of a matrix of fields, rows weighted: what is measured, and the most it may be off.

    Attributes:
        norm, norm_error: of [Re; Im] of the mean of both signs, and of half their difference, added.
        full, full_error: the same as a map of complex columns.
        row: largest norm of a row of either sign, limit.
        reach: largest sum of moduli along a row, limit.
    """

    norm: float
    norm_error: float
    full: float
    full_error: float
    row: float
    reach: float


def bounds(found: Fields, weights: Reals) -> Bounds:
    """Of the fields with their rows weighted, all mirrors open, at the light they were measured at.

    Args:
        found: fields.
        weights: upper limits, shape (rows,).
    """
    inputs = found.columns.shape[1] // 2
    rows = len(weights)
    measured = found.columns * weights[:, None]
    first, second = measured[:, :inputs], -measured[:, inputs:]
    mean, half = (first + second) / 2, (first - second) / 2
    spread = float((found.noise * weights).max())
    whole = float(np.linalg.norm(measured, 2)) + complex_norm_of_noise(spread, rows, 2 * inputs, found.beta)
    t = sqrt(2 * log(1 / found.beta))
    random = average_of_single(found.fast, rows, 2 * inputs, found.repeats, found.beta)
    constant = found.fast * (sqrt(2 * inputs / found.size) + t / sqrt(found.size)) / sqrt(2 * found.repeats)
    # ‖P‖ <= 2 (slow + random) (whole + ‖P‖) + 2 (slow + constant) lit
    share, rest = 2 * (found.slow + random), 2 * (found.slow + constant)
    if share > 0.25:
        raise DeviceError(
            f"phase and brightness leave an error of {share:.3g} of the fields; take more frames, or steady the light"
        )
    # All macro-pixels together are half of each pattern; shown by themselves, with √(N/2) the noise of a column.
    lit = float(np.linalg.norm(found.together * weights)) + sqrt(found.size / 2) * spread * (
        sqrt(2 * rows) + t
    )
    off = (share * whole + rest * lit / (1 - 2 * share)) / (1 - share)
    part = complex_norm_of_noise(spread / sqrt(2), rows, inputs, found.beta)
    stacked = [np.concatenate([one.real, one.imag]) for one in (mean, half)]
    # Halves of sum and difference: a factor 1/√2 of the matrix of both signs.
    single = _norm_of_noise(spread / sqrt(2), 2 * rows, inputs, found.beta) + off / sqrt(2)
    widest = np.abs(measured) ** 2
    both = np.maximum(widest[:, :inputs], widest[:, inputs:])
    largest = np.sqrt(both)
    t_rows = sqrt(2 * log(rows / found.beta))
    row = np.sqrt(both.sum(1)) + found.noise * weights * (sqrt(4 * inputs) + t_rows)
    reach = largest.sum(1) + found.noise * weights * (sqrt(pi / 2) * 2 * inputs + sqrt(2 * inputs) * t_rows)
    return Bounds(
        norm=sum(float(np.linalg.norm(one, 2)) for one in stacked),
        norm_error=2 * single,
        full=sum(float(np.linalg.norm(one, 2)) for one in (mean, half)),
        full_error=2 * (part + off / sqrt(2)),
        row=float(row.max()) + off,
        reach=float(reach.max()) + off * sqrt(2 * inputs),
    )


def average_of_single(fast: float, rows: int, columns: int, repeats: int, beta: float) -> float:
    """What errors of single frames, of this deviation each, leave in a matrix of columns, relative to its norm, except
    with probability β (Tropp 2012)."""
    return fast * sqrt(log(2 * (rows + columns) / beta) / repeats)


def _norm_of_noise(std: float, rows: int, columns: int, beta: float) -> float:
    """Of independent normal numbers of this deviation or less, except with probability β (Davidson, Szarek 2001)."""
    return std * (sqrt(rows) + sqrt(columns) + sqrt(2 * log(1 / beta)))


def complex_norm_of_noise(std: float, rows: int, columns: int, beta: float) -> float:
    """The same of complex numbers, Re and Im of this deviation each."""
    return 2 * _norm_of_noise(std, rows, columns, beta / 2)
