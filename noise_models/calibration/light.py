"""Calibration of a light path whose shot noise protects (THEORY T10, T8): limits that hold together, as a document.

Upper limits of what a record moves the amplitudes of all counts by (κ M) and of the field (ρ), a lower one of the
reference's, all in √photo-electrons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite, sqrt
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import ConfigDict
from scipy import special

from noise_models.calibration.document import BETA_RANGE, DRIFT_ALLOWANCE, FORMAT, Document, Interval, moment
from noise_models.calibration.electrons import INTENSITY_REACH, Electrons, measure_electrons
from noise_models.calibration.field_bounds import Fields, bounds
from noise_models.calibration.light_fields import (
    QUARTER,
    FieldProbe,
    unsquared,
)
from noise_models.calibration.probed_light import Complex, PatternFrames, ProbedLight, Reals
from noise_models.errors import DeviceError, UsageError

FRAMES: Final = 16_384
BETA: Final = 1e-6
VALID_DAYS: Final = 30.0
_LOOKS: Final = 64  # frames of each pattern and phase, when a run begins
_PAIRS: Final = 16  # of patterns and their complements
_ALARM: Final = 1e-6  # of a run's first look, where nothing moved


@dataclass(frozen=True)
class LightCalibration(Document):
    """What public patterns showed of one light path. Amplitudes are in √photo-electrons.

    Attributes:
        device: name of the backend that was calibrated.
        device_fingerprint: identity of device and light path; a calibration serves no other one.
        taken_at, expires_at: UTC, ISO 8601.
        frames: number of frames that were taken.
        beta: probability that a limit is wrong, all together; enters delta (THEORY T8).
        parameters: what was measured, between its limits, by name with unit; all pixels are within them.
        upper_limits: of what should be nothing, by name.
        norm: upper limit of M over κ, whatever the reference's phase.
        row: upper limit of what a column of unit norm moves one amplitude by, times √2, likewise.
        reach: upper limit of |E| for entries of 1 at most, likewise.
        least: lower limit of |r|.
        attenuator: settings, rising, and upper limits of κ over the setting.
        reference_dn: mean code of the reference above black, of both cameras' pixels.
        columns_light: κ as set, at which fields were measured.
        columns_real, columns_imaginary: E/r of every macro-pixel with all its mirrors open, a row each pixel, the
            positive ones first.
        columns_noise: mean square error of one of them.
        inputs, rows, most: p; pixels of a camera; K, whole numbers from -K to K.
        assumptions: what has to hold besides.
        kind, format: of the document.

    Raises:
        ValueError: values that contradict themselves or lie out of range.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    of: ClassVar[str] = "light path"
    again: ClassVar[str] = (
        "calibrate this one: optical-dfa calibrate --photon, with the run's --seed and --backend-option, and its "
        "inputs and outputs by --in-features and --out-features"
    )

    device: str
    device_fingerprint: str
    taken_at: str
    expires_at: str
    frames: int
    beta: float
    parameters: dict[str, Interval]
    upper_limits: dict[str, float]
    norm: float
    row: float
    reach: float
    least: float
    attenuator: tuple[tuple[float, float], ...]
    reference_dn: tuple[tuple[float, ...], ...]
    columns_light: float
    columns_real: tuple[tuple[float, ...], ...]
    columns_imaginary: tuple[tuple[float, ...], ...]
    columns_noise: float
    inputs: int
    rows: int
    most: int
    assumptions: tuple[str, ...]
    kind: Literal["light"] = "light"
    format: Literal[1] = FORMAT

    def __post_init__(self) -> None:
        for holds, what in (
            (
                BETA_RANGE[0] <= self.beta <= BETA_RANGE[1],
                f"beta lies in {BETA_RANGE[0]:g} … {BETA_RANGE[1]:g}",
            ),
            (
                min(self.norm, self.row, self.reach, self.least, self.columns_light, self.columns_noise) > 0,
                "norm, row, reach, least, light and noise are positive",
            ),
            (
                [len(one) for one in self.reference_dn] == [self.rows] * 2
                and min(min(one) for one in self.reference_dn) > 0
                and [len(one) for one in (*self.columns_real, *self.columns_imaginary)]
                == [2 * self.inputs] * 2 * self.rows,
                "every pixel has a reference and fields",
            ),
            (bool(self.attenuator) and _rises(self.attenuator), "settings rise, and all is positive"),
            (
                min(self.inputs, self.rows, self.most, self.frames) >= 1,
                "there are pixels, mirrors and frames",
            ),
            (bool(self.assumptions), "a calibration has assumptions"),
            (moment(self.taken_at) < moment(self.expires_at), "it expires after it was taken"),
        ):
            if not holds:
                raise ValueError(f"contradiction: {what}")

    @property
    def fingerprint(self) -> str:
        return self.device_fingerprint

    def refuse_larger(self, inputs: int, rows: int, most: int) -> None:
        """Raise unless what is to be used was measured: the macro-pixels as they are, and no pixel more.

        Raises:
            DeviceError: it was not.
        """
        for what, value, measured, holds in (
            ("entries of a column", inputs, self.inputs, inputs == self.inputs),
            ("mirrors of a macro-pixel", most, self.most, most == self.most),
            ("pixels of a camera", rows, self.rows, rows <= self.rows),
        ):
            if not holds:
                raise DeviceError(
                    f"calibration {self.digest[:16]} is of {measured} {what}, and the run uses {value}; {self.again}"
                )

    def setting(self, light: float) -> float | None:
        """The largest setting of the attenuator at which κ is at most `light`; None where there is none.

        Between two settings that were measured the larger of their limits holds.
        """
        for (setting, factor), (above, factor_above) in zip(
            reversed(self.attenuator), reversed((*self.attenuator[1:], self.attenuator[-1])), strict=True
        ):
            found = min(above, light / max(factor, factor_above))
            if found >= setting:
                return found
        return None


def planned(path: ProbedLight, frames: int) -> int:
    """Frames that a calibration takes, about."""
    mirrors = 4 * path.most * max(16, frames // path.most) if path.most > 1 else 0
    return 40 * frames + mirrors


def calibrate_light(
    path: ProbedLight,
    *,
    frames: int = FRAMES,
    beta: float = BETA,
    valid_days: float = VALID_DAYS,
    now: datetime | None = None,
    tell: Callable[[int, str], None] = lambda taken, what: None,
    keep: Callable[[Complex], None] = lambda response: None,
) -> LightCalibration:
    """Show public patterns and say within which limits the light path is.

    Args:
        path: the light path; it must stay undisturbed.
        frames: of each of some 30 parts; the more, the nearer the limits to the truth.
        beta: probability that a limit is wrong.
        valid_days: how long the calibration holds.
        now: time of the calibration; None is the clock's.
        tell: hears how many frames were taken and what is being measured.
        keep: hears the response, shape (rows, p): the field over the reference's, for an entry of 1 and one unit of
            light, as estimated. Any estimate serves for reading back.

    Raises:
        UsageError: a value out of its range.
        DeviceError: something cannot be bounded; the message says what.
    """
    if not BETA_RANGE[0] <= beta <= BETA_RANGE[1]:
        raise UsageError(f"beta is {beta}; it must be from 1e-15 to 0.01 (it is added to delta)")
    if not (isfinite(valid_days) and 0 < valid_days <= 3650):
        raise UsageError(f"the calibration is to hold {valid_days} days; it must be above 0 and at most 3650")
    taker = PatternFrames(path, tell)
    electrons = measure_electrons(taker, frames, beta / 2)
    fields = FieldProbe(taker, electrons, frames, beta / 2).measure()
    first, second = fields.columns[:, : path.inputs], -fields.columns[:, path.inputs :]
    keep((first + second) / (2 * fields.light * path.most))
    return _document(path, taker.taken, electrons, fields, beta, valid_days, now or datetime.now(UTC))


def refuse_moved(path: ProbedLight, calibration: LightCalibration) -> dict[str, float]:
    """Whether the reference and the macro-pixels' fields are what they were, before a run relies on them.

    Shown are fresh random halves of the macro-pixels, and the other halves. If their fields moved by Δ, those of
    both halves moved by ½ (|Δ1|² + |Δs|²) together, s random signs: no less, on average, than half of Δ's Frobenius
    norm, which is not below its spectral norm. The reference may have another phase, in each quadrature.

    Returns:
        what was found, by name.
    Raises:
        DeviceError: one is off by more than is allowed for.
    """
    frames = PatternFrames(path, lambda taken, what: None)
    many = _PAIRS * _LOOKS
    dark, lit = (np.concatenate(list(frames.steady(many, "a look", reference=power))) for power in (0.0, 1.0))
    black, then = dark.mean(0), np.asarray(calibration.reference_dn)
    reference = (lit.mean(0) - black) / then
    error = np.sqrt((lit.var(0) + dark.var(0)) / many) / then * -special.ndtri(_ALARM / then.size)
    if not (np.abs(reference - 1) + error <= 2 * DRIFT_ALLOWANCE).all():
        farthest = reference.flat[np.argmax(np.abs(reference - 1) + error)]
        raise _moved(
            "amplitude of the reference at a pixel", float(np.sqrt(max(0.0, farthest))), DRIFT_ALLOWANCE
        )
    columns = np.asarray(calibration.columns_real) + 1j * np.asarray(calibration.columns_imaginary)
    half = np.random.default_rng().integers(0, 2, (_PAIRS, 2 * path.inputs))  # fresh: nothing is never shown
    pairs, noise = [], 0.0
    for open_ in np.concatenate([half, 1 - half]):
        field = columns @ open_
        runs = np.zeros((_LOOKS, 2, path.inputs, 2), np.int64)
        runs[..., 1] = open_.reshape(2, path.inputs) * path.most
        noise += float(open_.sum()) * calibration.columns_noise * path.rows
        for phase in (0.0, QUARTER):
            rates = (
                frames.exposed(runs, "a look", light=calibration.columns_light, phase=phase) - black
            ) / then
            z = (rates[:, 0] - rates[:, 1]) / 4 / rates.mean((1, 2))[:, None]
            power = 2 * np.square(z.mean(0)).mean()  # both quadratures are alike, near enough
            now = z.mean(0) * (1 + unsquared(np.asarray(power)))
            noise += float(z.var(0, ddof=1).sum()) / _LOOKS
            cosine, sine = np.linalg.lstsq(np.stack([field.real, field.imag], axis=1), now, rcond=None)[0]
            pairs.append((now, (field * np.exp(-1j * np.arctan2(sine, cosine))).real))
    after, before = (np.stack(one) for one in zip(*pairs, strict=True))
    chance = noise * sqrt(2 / before.size) * -float(special.ndtri(_ALARM))
    brightness = float((after * before).sum() / np.square(before).sum())
    left = float(np.square(after - brightness * before).sum()) - noise - chance
    moved = sqrt(2 * max(0.0, left) / _PAIRS) / float(np.linalg.norm(columns, 2))
    amplitude = brightness * float(np.sqrt(reference.mean()))  # in photo-electrons
    if moved > DRIFT_ALLOWANCE / 2:
        raise DeviceError(
            f"fields of the macro-pixels moved by {moved:.3g} of the largest since the calibration; allowed is "
            f"{DRIFT_ALLOWANCE / 2:g}: {LightCalibration.again}"
        )
    for what, value in (("fields", brightness), ("fields in photo-electrons", amplitude)):
        if not abs(value - 1) + moved <= DRIFT_ALLOWANCE:
            raise _moved(f"amplitude of the {what}", value, DRIFT_ALLOWANCE - moved)
    rows = (
        np.sqrt(np.square(after).sum(0) * reference.mean(0)).max() / np.sqrt(np.square(before).sum(0)).max()
    )
    single = rows - sqrt((noise + chance) / float(np.square(before).sum()))
    if single > 1 + DRIFT_ALLOWANCE:
        raise _moved("largest amplitude at a pixel", float(rows), DRIFT_ALLOWANCE)
    return {"reference": float(np.sqrt(reference.mean())), "fields": brightness, "moved": moved}


def _moved(what: str, value: float, allowed: float) -> DeviceError:
    return DeviceError(
        f"the {what} is {value:.3g} of what it was at the calibration; allowed is {1 - allowed:.3g} to "
        f"{1 + allowed:.3g}: {LightCalibration.again}"
    )


def _rises(pairs: tuple[tuple[float, float], ...]) -> bool:
    settings = [setting for setting, _ in pairs]
    return settings == sorted(set(settings)) and min(min(pair) for pair in pairs) > 0


def _document(
    path: ProbedLight,
    taken: int,
    electrons: Electrons,
    fields: Fields,
    beta: float,
    valid_days: float,
    now: datetime,
) -> LightCalibration:
    # Amplitudes of the brighter camera's counts, for a field of the reference's own size, times √2.
    found = bounds(
        fields, np.sqrt(2 * (electrons.signal * (1 + electrons.signal_error) / electrons.gain_lower).max(0))
    )
    field = bounds(fields, np.ones(path.rows))  # over the reference's
    reach = INTENSITY_REACH * electrons.common
    # What light of mirrors that are off adds to the reference moves its amplitude by no more than itself.
    scale = (1 + 2 * electrons.signal_error) * (1 + fields.leak) / (fields.light * path.most)
    scale *= fields.share * sqrt(fields.oblique)
    bright, spread = sqrt(1 + reach), 1 + fields.mirrors
    counts = electrons.signal * (1 - electrons.signal_error) / electrons.gain_upper
    least = sqrt(2 * float(counts.min()) * (1 - reach)) * (1 - fields.leak)
    expires = now + timedelta(days=valid_days)
    return LightCalibration(
        device=path.name,
        device_fingerprint=path.fingerprint(),
        taken_at=now.isoformat(timespec="seconds"),
        expires_at=expires.isoformat(timespec="seconds"),
        frames=taken,
        beta=beta,
        parameters={
            "gain_dn_per_electron": Interval(
                float(electrons.gain.mean()),
                float(electrons.gain_lower.min()),
                float(electrons.gain_upper.max()),
            ),
            "photo_electrons_of_a_camera": Interval(
                float((electrons.signal / electrons.gain).mean()),
                float(counts.min()),
                float((electrons.signal * (1 + electrons.signal_error) / electrons.gain_lower).max()),
            ),
        },
        upper_limits={
            "common_intensity_noise": electrons.common,
            "excess_noise": electrons.excess,
            "multiplied_noise": electrons.multiplied,
            "mirror_departure": fields.mirrors,
            "share_of_single_mirrors": fields.share,
            "square_over_quadratures": fields.oblique,
            "field_of_mirrors_off": fields.leak,
            "phase_drift_radians": fields.drift,
            "phase_jitter_radians": fields.jitter,
        },
        norm=scale
        * bright
        * (found.norm + found.norm_error + fields.mirrors * (found.full + found.full_error)),
        row=scale * bright * spread * found.row,
        reach=scale * spread * field.reach * least / (1 - fields.leak),
        least=least,
        attenuator=fields.attenuator,
        reference_dn=_table(electrons.signal),
        columns_light=fields.light,
        columns_real=_table(fields.columns.real),
        columns_imaginary=_table(fields.columns.imag),
        columns_noise=float(2 * np.square(fields.noise).mean()),
        inputs=path.inputs,
        rows=path.rows,
        most=path.most,
        assumptions=_assumptions(path, electrons, fields, expires),
    )


def _table(values: Reals) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{value:.5g}") for value in row) for row in values)


def _assumptions(
    path: ProbedLight, electrons: Electrons, fields: Fields, expires: datetime
) -> tuple[str, ...]:
    return (
        "each photo-electron of a pixel is worth the same, and light is not multiplied or thermal beyond what "
        f"the third moment leaves open ({electrons.multiplied:.3g} times the variance, charged); what rises as the "
        "square of the light and is not common to a frame is alike in all pixels of a camera",
        "errors of sample variances and of fields are those of Gaussian noise, independent from frame to frame",
        "both cameras see one field behind a half mirror, pixel by pixel; between looks the reference moved no further "
        f"than was seen (by {fields.drift:.2g} rad)",
        "the mirrors of a macro-pixel excite one mode, and fields of parts add up, which nothing that was shown "
        f"contradicts (a departure of {fields.affine:.2g} of a part would have; at one place of a macro-pixel that may "
        f"be {fields.affine * path.most:.2g} mirrors, and is assumed to be none)",
        "between the lights that were measured the attenuator is as at them, and the common intensity stays within "
        f"{INTENSITY_REACH:g} standard deviations",
        f"the light path is within {100 * DRIFT_ALLOWANCE:g} % of its calibration (reference and fields are "
        f"looked at, pixel by pixel, when a part of a run begins; it holds until {expires.date().isoformat()})",
    )
