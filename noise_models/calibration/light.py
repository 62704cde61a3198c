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

from noise_models.calibration.document import BETA_RANGE, DRIFT_ALLOWANCE, FORMAT, Document, Interval, moment
from noise_models.calibration.electrons import INTENSITY_REACH, Electrons, measure_electrons
from noise_models.calibration.light_fields import (
    QUARTER,
    Complex,
    FieldProbe,
    Fields,
    bounds,
    pattern,
    shown,
    unsquared,
)
from noise_models.calibration.probed_light import PatternFrames, ProbedLight
from noise_models.errors import DeviceError, UsageError

FRAMES: Final = 16_384
BETA: Final = 1e-6
VALID_DAYS: Final = 30.0
_LOOKS: Final = 256  # frames of each of four, when a run begins


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
        signal_dn: mean code of the reference above black.
        pattern_light, pattern_power: of the public pattern that a run looks at first: κ as set, and mean |E/r|².
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
    signal_dn: float
    pattern_light: float
    pattern_power: float
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
                min(self.norm, self.row, self.reach, self.least, self.signal_dn, self.pattern_power) > 0,
                "norm, row, reach, least, signal and pattern are positive",
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
    """PatternFrames that a calibration takes, about."""
    mirrors = 4 * path.most * max(16, frames // path.most) if path.most > 1 else 0
    return 24 * frames + mirrors


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
        frames: of each of some 25 parts; the more, the nearer the limits to the truth.
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
    """Whether the reference and one public pattern are as bright as they were, before a run relies on it.

    Returns:
        their amplitudes over those of the calibration.
    Raises:
        DeviceError: one is off by more than is allowed for.
    """
    frames = PatternFrames(path, lambda taken, what: None)
    dark, lit = (
        np.concatenate(list(frames.steady(_LOOKS, "a look", reference=power))).mean(0) for power in (0.0, 1.0)
    )
    signal = lit - dark
    runs = np.repeat(shown(path, pattern(path)[None] * path.most), _LOOKS, axis=0)
    power = 0.0
    for phase in (0.0, QUARTER):
        rates = (frames.exposed(runs, "a look", light=calibration.pattern_light, phase=phase) - dark) / signal
        z = (rates[:, 0] - rates[:, 1]) / 4 / rates.mean((1, 2))[:, None]
        power += float((np.square(z.mean(0)) - z.var(0, ddof=1) / _LOOKS).mean())
    found = {
        "reference": sqrt(max(0.0, float(signal.mean())) / calibration.signal_dn),
        "pattern": sqrt(float(unsquared(np.asarray(power))) / calibration.pattern_power),
    }
    for name, value in found.items():
        if not abs(value - 1) <= DRIFT_ALLOWANCE:
            raise DeviceError(
                f"the amplitude of the {name} is {value:.3g} of what it was at the calibration; allowed is "
                f"{1 - DRIFT_ALLOWANCE:g} to {1 + DRIFT_ALLOWANCE:g}: {LightCalibration.again}"
            )
    return found


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
            "mirror_departure": fields.mirrors,
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
        signal_dn=float(electrons.signal.mean()),
        pattern_light=fields.light,
        pattern_power=fields.power,
        inputs=path.inputs,
        rows=path.rows,
        most=path.most,
        assumptions=_assumptions(electrons, fields, expires),
    )


def _assumptions(electrons: Electrons, fields: Fields, expires: datetime) -> tuple[str, ...]:
    return (
        "each photo-electron of a pixel is worth the same, and light is neither multiplied nor thermal (it would have "
        f"shown from {electrons.unseen:.2g} times the variance on); what rises as the square of the light and is not "
        "common to a frame is alike in all pixels of a camera",
        "errors of sample variances and of fields are those of Gaussian noise, independent from frame to frame",
        "both cameras see one field behind a half mirror, pixel by pixel; the reference was turned by π/2 and moved no "
        f"further than was seen (by {fields.drift:.2g} rad)",
        "the mirrors of a macro-pixel excite one mode, and fields of parts add up, which nothing that was shown "
        f"contradicts (a departure of {fields.affine:.2g} would have)",
        "between the lights that were measured the attenuator is as at them, and the common intensity stays within "
        f"{INTENSITY_REACH:g} standard deviations",
        f"the light path is within {100 * DRIFT_ALLOWANCE:g} % of its calibration (reference and a pattern are looked "
        f"at when a part of a run begins; it holds until {expires.date().isoformat()})",
    )
