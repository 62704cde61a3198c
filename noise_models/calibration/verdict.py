"""Whether a calibrated camera's dark noise may be credited, and under which assumptions (THEORY, Noise credit, T4)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import hypot, sqrt
from typing import Final

import numpy as np
from scipy import special

from noise_models.calibration.converter import CodeWidths, epsilon_of_ripple, ripple
from noise_models.calibration.dark_current import FEWEST_LEVELS, DarkCurrent
from noise_models.calibration.document import Interval
from noise_models.calibration.exposures import Frames
from noise_models.calibration.noise_credit import NoiseCredit

# Of each test of a healthy camera.
TEST_FALSE_ALARM: Final = 1e-7
CLEARANCE: Final = 10.0  # standard deviations from both ends (THEORY T4), less measurement error
_CLEARANCE_ERROR: Final = 0.1
LEAST_STD: Final = 1.0  # codes; below, the moments of a rounded normal are not those of normal plus uniform
LEAST_LIGHT: Final = 8.0  # DN that the lamp must give at nominal light
LARGEST_NONLINEARITY: Final = 0.02
LARGEST_DRIFT: Final = 0.5  # standard deviations over the calibration
LARGEST_CORRELATION: Final = 0.1
# Figures of the release that a finding about the converter is priced at (784-512-512-10, THEORY T4).
_TAU: Final = 1.5
_DIMENSION: Final = 670_000
_RADIUS: Final = 6.0
_INSTEAD: Final = "use --release device-entropy or digital"
# How the converter's thresholds are known (THEORY T4).
BY_CONSTRUCTION: Final = "by construction of the simulated device"
VOUCHED: Final = "vouched for by whoever calibrated; no figure measured here proves its thresholds"
UNKNOWN: Final = "NOT known: no figure measured here proves its thresholds, and nobody vouched for them"


def findings(
    frames: Frames,
    credit: NoiseCredit,
    widths: CodeWidths | None,
    parameters: Mapping[str, Interval],
    line_p_value: float | None,
    thermal: DarkCurrent | None,
    thresholds: str,
    top: int,
) -> tuple[str, ...]:
    """One line for every check that failed; () where all passed. Each names what was found, what is allowed and
    what to do."""
    found = [*_frames(frames, credit), *_light(frames), *_dark_current(frames, thermal)]
    found += _noise(credit, bool(frames.dark_setting.lit))
    if not found:
        found += _converter(frames, credit, widths, top)
    if line_p_value is not None and line_p_value < TEST_FALSE_ALARM and not found:
        found.append(
            f"the variance does not rise in proportion to the mean (chance {line_p_value:.2g}): light or gain is not "
            f"steady, or the response is bent; steady them, or {_INSTEAD}"
        )
    for name, setting in (("nonlinearity", "dark"), ("data_nonlinearity", "data")):
        if name in parameters and parameters[name].lower > LARGEST_NONLINEARITY:
            found.append(
                f"the mean of {setting}-setting frames is up to {100 * parameters[name].value:.2g} % of its range "
                f"off a straight line over light; allowed is {100 * LARGEST_NONLINEARITY:g} %: lower light or gain"
            )
    moved = frames.closing.mean - parameters["dark_level_dn"].value
    if credit.std > 0 and abs(moved) > LARGEST_DRIFT * credit.std:
        found.append(
            f"the dark level moved by {moved:.3g} DN during the calibration; allowed is "
            f"{LARGEST_DRIFT * credit.std:.3g} DN: let the camera warm up and calibrate again"
        )
    if thresholds == UNKNOWN:
        found.append(
            "the converter's thresholds are not known, and no scalar figure proves them: use --release "
            "device-entropy, or vouch with --ideal-converter if the converter's maker guarantees it"
        )
    return tuple(found)


def _light(frames: Frames) -> list[str]:
    found = []
    given = frames.nominal.mean - frames.data_setting.black.mean
    if given < LEAST_LIGHT:
        found.append(
            f"nominal light changes data frames by {given:.3g} DN; it must be at least {LEAST_LIGHT:g} DN: switch the "
            "lamp on, or open the shutter"
        )
    for setting, series in (("dark", frames.dark_setting), ("data", frames.data_setting)):
        if not series.lit:
            found.append(
                f"light changes nothing in frames of the {setting} setting, so there is no photon-transfer line: "
                "switch the lamp on, or open the shutter"
            )
    if frames.data_setting.lit and frames.nominal.mean > 0.98 * frames.data_setting.saturated.highest:
        found.append("data frames are saturated at nominal light: dim the lamp, or shorten the exposure")
    return found


def _dark_current(frames: Frames, thermal: DarkCurrent | None) -> list[str]:
    if not frames.dark_setting.lit:
        return []  # where the range ends is not known
    if thermal is None:
        return [
            f"only {len(frames.shutter)} exposure times keep all dark pixels off the ends of the range, and the dark "
            f"current takes {FEWEST_LEVELS}: cool the camera, move the black level, calibrate a region without hot "
            f"pixels, or {_INSTEAD}"
        ]
    if thermal.p_value < TEST_FALSE_ALARM:
        return [
            f"the level of dark frames does not rise in proportion to exposure time (chance {thermal.p_value:.2g}), so "
            f"the dark current is not known: let the camera warm up and calibrate again, or {_INSTEAD}"
        ]
    offset, error = thermal.offset
    if offset < float(special.ndtri(TEST_FALSE_ALARM)) * error:
        return [
            f"dark frames lie {-offset:.3g} DN below what their exposure times extrapolate to at none, so the dark "
            f"current is not known: let the camera warm up and calibrate again, or {_INSTEAD}"
        ]
    return []


def _frames(frames: Frames, credit: NoiseCredit) -> list[str]:
    found = []
    variance, _ = frames.dark.cumulants()
    if frames.dark.repeats:
        found.append(
            f"{frames.dark.repeats} of {frames.dark.frames} dark frames equal an earlier one: restart the camera and "
            "its driver"
        )
    dead = int(np.count_nonzero(variance <= 0.2 * np.median(variance)))
    if dead:
        found.append(
            f"{dead} of {len(variance)} pixels show less than a fifth of the others' noise (dead or stuck): calibrate "
            "a region without them"
        )
    z = float(-special.ndtri(TEST_FALSE_ALARM / 2))
    pooled, last = float(variance.mean()), frames.closing
    error = hypot(last.variance_error, sqrt(2 / (frames.dark.frames * len(variance))) * pooled)
    if abs(last.variance - pooled) > z * error:
        found.append(
            f"the variance of dark frames was {pooled:.4g} DN² at first and {last.variance:.4g} DN² at last: let the "
            "camera warm up, check its driver and calibrate again"
        )
    if credit.correlated > LARGEST_CORRELATION:
        found.append(
            f"the noise of neighbouring pixels or successive frames is correlated (in sum at least "
            f"{credit.correlated:.2g}; allowed is {LARGEST_CORRELATION:g}): switch the camera's filters "
            f"off, or {_INSTEAD}"
        )
    return found


def _noise(credit: NoiseCredit, saturation_known: bool) -> list[str]:
    if credit.std < LEAST_STD:
        return [
            f"the dark noise is {credit.std:.3g} codes; it must be at least {LEAST_STD:g}: raise the analog gain of "
            f"dark frames (dark_amplification), or {_INSTEAD}"
        ]
    found = []
    if saturation_known and credit.clearance < CLEARANCE - _CLEARANCE_ERROR:
        found.append(
            f"the dark level of the worst pixel is {credit.clearance:.3g} sigma from an end of the converter; it must "
            f"be {CLEARANCE:g}: move the black level, or lower the dark gain"
        )
    if credit.lower <= 0:
        found.append(
            f"no Gaussian part is left at its lower limit (non-Gaussian part up to {credit.non_gaussian.upper:.3g} "
            f"DN², dark current {credit.dark_shot:.3g} DN²): {_INSTEAD}"
        )
    return found


def _converter(frames: Frames, credit: NoiseCredit, widths: CodeWidths | None, top: int) -> list[str]:
    if widths is None:
        return [f"dark frames reach too few codes to test the converter: raise the dark gain, or {_INSTEAD}"]
    if widths.missing:
        return [
            f"{widths.missing} of {len(widths.codes)} codes never come: the camera applies a digital gain or "
            f"look-up table; ask it for raw codes, or {_INSTEAD}"
        ]
    comb = frames.dark.residues.comb(credit.lower**2)
    if comb.p_value < TEST_FALSE_ALARM:
        return [
            f"single pixels' codes come in steps (modulo {comb.modulus}: share {comb.share:.2g}, of raw codes at most "
            f"{comb.smooth:.2g}): the camera applies a digital gain before its offset correction; ask it for raw "
            f"codes, or {_INSTEAD}"
        ]
    if widths.p_value < TEST_FALSE_ALARM:
        largest, level = widths.largest(TEST_FALSE_ALARM)[0], float(frames.dark.image.mean())
        law = widths.law(level, credit.std, top + 1)
        price = epsilon_of_ripple(
            ripple(law, level, credit.std, _TAU, _RADIUS * hypot(credit.std, _TAU)), _DIMENSION
        )
        return [
            f"the converter is not ideal: code widths are off by up to {100 * largest:.2g} % (chance of an ideal one "
            f"at most {max(widths.p_value, 1e-300):.1g}), which would cost an epsilon of {price:.2g} a "
            f"step of {_DIMENSION} coordinates: {_INSTEAD}"
        ]
    return []


def assumptions(
    credit: NoiseCredit,
    widths: CodeWidths | None,
    parameters: Mapping[str, Interval],
    thresholds: str,
    until: datetime,
) -> tuple[str, ...]:
    """What has to hold besides what was measured."""
    if widths is None:
        seen = "too few codes came to say anything"
    else:
        ideal = widths.p_value >= TEST_FALSE_ALARM and not widths.missing
        seen = (
            f"{'' if ideal else 'NOT '}consistent with what was seen: code widths off by at most "
            f"{parameters['dnl_codes'].upper:.2g} codes"
        )
    unlike = f"; {credit.unlike} pixels stand out" if credit.unlike else ""
    return (
        "the camera's read noise is Gaussian, independent over pixels and frames, and without memory of earlier "
        f"frames (excess kurtosis {credit.excess_kurtosis.value:.2g}, correlations below {credit.correlation:.2g} in "
        "sum; no test proves it)",
        "what is not Gaussian shows in the fourth cumulant as random telegraph noise does, or in the third, and is "
        f"alike in all pixels (charged: {credit.non_gaussian.upper:.2g} DN² in each, by the root mean square over "
        f"pixels{unlike})",
        "correlation of the noise is confined to neighbouring pixels and frames, or common to a row, a column or a "
        "frame (charged at its upper limit)",
        f"the converter is ideal and uniform and hands out raw codes ({thresholds}; {seen})",
        f"the camera has not changed since its calibration (it holds until {until.date().isoformat()}; health tests "
        "bound the drift)",
    )
