"""The calibration of a light path against a model of its own (`numpy_light`): T10's trap, its cure, the limits.

Statistical tests have fixed seeds and a false-alarm rate of 1e-6 each.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_light import NumpyLight
from scipy import stats

from noise_models.calibration import electrons
from noise_models.calibration.electrons import Electrons, measure_electrons
from noise_models.calibration.light import LightCalibration, calibrate_light
from noise_models.calibration.light_fields import FieldProbe
from noise_models.calibration.mirrors import Departures
from noise_models.calibration.probed_light import PatternFrames
from noise_models.errors import DeviceError, UsageError

ALARM = 1e-6
BETA = 0.01


def measured(light: NumpyLight, frames: int = 2048, beta: float = BETA) -> Electrons:
    return measure_electrons(PatternFrames(light, lambda taken, what: None), frames, beta)


def some_device(seed: int, **options: Any) -> NumpyLight:
    """Cameras of 10 to 12 bits, 1,500 to 12,000 electrons, mirrors alike or not, light and phase not steady."""
    rng = np.random.default_rng([seed, 7])
    electrons = float(rng.uniform(1500, 12000))
    bits = int(rng.integers(10, 13))
    return NumpyLight(
        seed=seed, electrons=electrons, gain=2**bits / 4.2 / electrons, top=2.0**bits - 1, black=rng.uniform(5, 12),
        read=float(rng.uniform(1, 6)), current=float(rng.uniform(0, 10)), mirror_spread=float(rng.choice([0.0, 0.03])),
        sign_spread=float(rng.choice([0.0, 0.03])), intensity=float(rng.choice([0.0, 0.01])),
        jitter=float(rng.choice([0.0, 0.02])), **options,
    )  # fmt: skip


def holds(light: NumpyLight, found: LightCalibration) -> bool:
    """All limits at once: κ M, a pixel's part of it, ρ, |r|."""
    return bool(
        found.norm >= light.norm()
        and found.row >= light.row()
        and found.reach / found.least >= light.ratio()
        and found.least <= light.least()
    )


# ---- photo-electrons


def test_common_intensity_noise_makes_the_photon_transfer_line_understate_the_light_and_is_removed() -> None:
    """The trap: 1 % at 20,000 electrons, gain from variance over mean: κ is 0.57 of the truth, so that a guarantee is
    three times too good. The cure: what is common to a frame is taken off."""
    light = NumpyLight(electrons=20_000, gain=0.1, intensity=0.01, read=2.0, current=0.0)
    mirrors = np.zeros((4096, 2, light.inputs, 2), np.int64)
    lit, dark = (light.probe(mirrors, light=0.0, reference=power) for power in (1.0, 0.0))
    naive = (lit.var(0) - dark.var(0)) / (lit.mean(0) - dark.mean(0))
    assert np.sqrt(light.gains / naive).mean() == pytest.approx(0.57, abs=0.03)
    found = measured(light, 4096)
    assert np.sqrt(light.gains / found.gain).mean() == pytest.approx(1, abs=0.01)
    assert (found.gain_lower <= light.gains).all()
    assert (light.gains <= found.gain_upper).all()
    assert (naive > found.gain_upper).all()
    assert 0.01 <= found.common < 0.012


@pytest.mark.parametrize("cameras", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_rate_of_simultaneous_gains_over_random_cameras(cameras: int) -> None:
    """Both ends at every pixel of both cameras, β of 0.5. Errors of single gains are as chi-square has them."""
    beta, frames, missed, errors = 0.5, 4096, 0, []
    for seed in range(cameras):
        light = some_device(seed, rows=16)
        found = measured(light, frames, beta)
        missed += not ((found.gain_lower <= light.gains) & (light.gains <= found.gain_upper)).all()
        errors.append(
            (found.gain / light.gains - 1) * found.gain * found.signal / (found.noise * found.signal**2)
        )
    assert missed <= stats.binom.isf(ALARM, cameras, beta)
    spread = np.std(errors) / np.sqrt(2 / (frames / 2))
    assert spread == pytest.approx(1, abs=5 * np.sqrt(1 / (2 * np.size(errors))) + 0.02)


@pytest.mark.parametrize("std", [0.05, 0.12, 0.2, 0.35, 0.5, 0.7, 1.0, 2.0])
def test_no_read_noise_is_larger_than_its_rounded_codes_allow(std: float) -> None:
    """Exact variances of rounded normal numbers at 200 places in a code: hidden most in the middle of it."""
    means, codes = np.linspace(0, 0.5, 200)[:, None], np.arange(-20, 21)
    edges = np.concatenate([codes - 0.5, [20.5]])
    chance = np.diff(stats.norm.cdf((edges - means) / std), axis=1)
    variance = chance @ codes**2 - (chance @ codes) ** 2
    allowed = electrons._before_rounding(variance, 1.0) - 1 / 12
    assert (allowed >= std**2 * (1 - 1e-3)).all()
    assert allowed.min() < max(std, 0.1) ** 2 * 1.05


@pytest.mark.parametrize("black", [20.0, 20.5])
def test_read_noise_that_rounding_hides_is_charged(black: float) -> None:
    """A tenth of a code of read noise in the middle of a code never shows in the dark, at its edge in every frame."""
    light = NumpyLight(gain=0.06, read=2.5, black=black, rows=16)
    found = measured(light, 4096)
    assert (found.gain_lower <= light.gains).all()
    assert found.gain_lower.min() > 0.3 * light.gain


# ---- the limits


@pytest.mark.parametrize(
    ("devices", "inputs", "rows", "most", "frames", "close"),
    [
        (4, 2, 16, 2, 4096, 3.0),
        pytest.param(40, 2, 16, 2, 4096, 3.0, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(20, 4, 64, 8, 16_384, 1.6, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_true_values_of_random_devices_are_inside_the_simultaneous_limits(
    devices: int, inputs: int, rows: int, most: int, frames: int, close: float
) -> None:
    """More frames and pixels bring the limits close to the truth."""
    missed, loose = 0, []
    for seed in range(devices):
        light = some_device(seed, inputs=inputs, rows=rows, most=most)
        found = calibrate_light(light, frames=frames, beta=BETA)
        missed += not holds(light, found)
        loose.append(found.norm / light.norm())
    assert missed <= stats.binom.isf(ALARM, devices, BETA)
    assert np.median(loose) < close


def test_what_it_found_is_said_and_kept(tmp_path: Path) -> None:
    """Departures that are there are within their limits; the document comes back as it was; the settings it is of."""
    light = NumpyLight(
        rows=32,
        mirror_spread=0.08,
        intensity=0.01,
        jitter=0.02,
        attenuator=lambda x: x * (1 + 0.1 * (x < 0.1)),
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    found = calibrate_light(light, frames=4096, beta=BETA, valid_days=2.0, now=now)
    limits = found.upper_limits
    assert 0.07 < limits["mirror_departure"] < 0.3
    assert 0.02 < limits["phase_jitter_radians"] < 0.03
    assert 0.01 < limits["common_intensity_noise"] < 0.012
    dimmest, brightest = found.attenuator[0], found.attenuator[-1]
    assert dimmest[0] < 0.1 < brightest[0]
    for setting, factor in found.attenuator:
        assert light.attenuator(setting) / setting / (light.attenuator(1.0)) < factor
    between = found.setting(brightest[0] / 3)
    assert between is not None
    assert 0.7 * brightest[0] / 3 < between < brightest[0] / 3
    assert found.setting(1e6) == brightest[0]
    assert found.setting(dimmest[0] * dimmest[1] * 0.99) is None
    assert found.expires_at == "2026-01-03T00:00:00+00:00"
    assert found.frames == light.shown
    path = tmp_path / "cal.json"
    found.save(path)
    assert LightCalibration.load(path) == found
    with pytest.raises(DeviceError, match="calibrate --photon"):
        found.refuse_other("another", now)
    with pytest.raises(DeviceError, match="expired"):
        found.refuse_other(light.fingerprint(), datetime(2026, 1, 3, tzinfo=UTC))
    path.write_text(path.read_text().replace('"least": ', '"least": -'))
    with pytest.raises(UsageError, match="are positive"):
        LightCalibration.load(path)


class Other(NumpyLight):
    """Light paths that are not what T10 takes them for."""

    fault: str = ""
    moved: int = 0

    def field_of(self, runs: np.ndarray, light: float) -> np.ndarray:
        field = super().field_of(runs, light)
        if self.fault == "closed":
            return 0 * field
        if self.fault == "coupled":  # a mirror without a neighbour shows a half more
            odd = 0.5 * ((runs[..., 1] - runs[..., 0]) % 2)
            return field + light * np.einsum("fsj,sjn->fn", odd * [[1.0], [-1.0]], self.columns.mean(2))
        if self.fault == "steered":  # another part of the speckle at dimmer light
            return field * np.exp(0.3j * np.log2(max(light, 1e-9)) * np.cos(np.arange(self.rows)))
        if self.fault == "leak":
            return field + 3.0 * light
        if self.fault == "moving":
            self.moved += len(runs) * (light > 0)
            return field * np.exp(2j * np.pi * np.linspace(0, 1, self.rows) * min(1.0, self.moved / 30_000))
        if self.fault == "modes":  # later mirrors see another part of the medium
            late = runs[..., 0] >= self.most // 2
            field = (
                field
                + self.attenuator(light) * 2.0 * (late & (runs[..., 1] > runs[..., 0])).sum((1, 2))[:, None]
            )
        return field

    def probe(
        self, runs: np.ndarray, *, light: float, phase: float = 0.0, reference: float = 1.0
    ) -> np.ndarray:
        turned = phase * (0.7 if self.fault == "angle" else 1.0)
        power = reference * (0.7 if phase and self.fault == "dimmed" else 1.0)
        codes = super().probe(runs, light=light, phase=turned, reference=power)
        above = codes - self.black
        if self.fault == "compressed":
            codes = np.rint(self.black + above * (1 - 0.1 * above / (self.electrons * self.gain)))
        if self.fault == "cleaned":  # what lies within the read noise of black is black
            codes = np.where(np.abs(above) < 4.5 * self.read * self.gain, np.rint(self.black), codes)
        if self.fault == "sharpened":
            codes = np.rint(1.2 * codes - 0.1 * np.roll(codes, 1, 2) - 0.1 * np.roll(codes, -1, 2))
        if self.fault == "scattered":  # as much again, without skew
            more = np.sqrt(np.maximum(0, above.mean(0)) * self.gain)
            codes = np.rint(codes + more * self.rng.standard_normal(codes.shape))
        if self.fault == "echo":  # a tenth of the frame before
            codes[1:] = np.rint(0.9 * codes[1:] + 0.1 * codes[:-1])
        if self.fault == "pointing":  # light moves from one half of the camera to the other
            tilt = 0.02 * self.rng.standard_normal((len(codes), 1, 1)) * np.linspace(-1, 1, self.rows)
            codes = np.rint(self.black + (codes - self.black) * (1 + tilt))
        if self.fault == "lost":
            codes = codes * np.nan
        return codes


PATH = {"rows": 24, "most": 4, "intensity": 0.002}


@pytest.mark.parametrize(
    ("words", "options", "fault"),
    [
        ("third moment of the codes is", {"multiplied": 2.0, "rows": 64, "gain": 0.1}, ""),
        ("third moment of the codes may be", {"rows": 8}, ""),
        ("rises as the square", {"single": 0.02}, ""),
        ("rises as the square", {"read": 40.0, "black": 600.0}, "cleaned"),
        ("stays at least", {}, "compressed"),
        ("pixels vary together", {}, "pointing"),
        ("in the next are correlated", {}, "echo"),
        ("neighbouring pixels' noise is correlated", {"rows": 300}, "sharpened"),
        ("noise that grows with the light", {"rows": 64}, "scattered"),
        ("reach the largest code", {"top": 500.0}, ""),
        ("reach code 0", {"black": 1.0}, ""),
        ("a pixel receives", {"electrons": 60.0, "gain": 1.0, "read": 0.5, "rows": 64}, ""),
        ("lit codes vary by", {"gain": 0.005}, ""),
        ("receives nothing", {"electrons": 1e-9, "gain": 1.0, "current": 0.0}, ""),
        ("varies by", {"intensity": 0.1, "rows": 64}, ""),
        ("not finite", {}, "lost"),
    ],
)
def test_photo_electrons_that_cannot_be_bounded_are_refused_in_one_line(
    words: str, options: dict[str, Any], fault: str
) -> None:
    light = Other(**{**PATH, **options})
    light.fault = fault
    with pytest.raises(DeviceError, match=words) as caught:
        measured(light, 1280)
    assert "\n" not in str(caught.value)


@cache
def healthy(rows: int) -> Electrons:
    return measured(NumpyLight(**{**PATH, "rows": rows}), 4096 if rows > 16 else 16_384)


@pytest.mark.parametrize(
    ("words", "options", "fault"),
    [
        ("phase scatters", {"jitter": 0.4}, ""),
        ("phase moves", {"drift": 2.0}, ""),
        ("another shape", {}, "moving"),
        ("change nothing", {}, "closed"),
        ("mirrors that are off", {}, "leak"),
        ("another shape where the attenuator", {}, "steered"),
        ("do not excite one and the same mode", {}, "modes"),
        ("not affine", {"bend": 0.7}, ""),
        ("not affine", {"most": 16}, "coupled"),
        ("sum of the squares of both quadratures", {}, "angle"),
        ("of its power once it is turned", {}, "dimmed"),
        ("cannot be told apart", {"inputs": 8, "rows": 9}, ""),
    ],
)
def test_fields_that_cannot_be_bounded_are_refused_in_one_line(
    words: str, options: dict[str, Any], fault: str
) -> None:
    light = Other(**{**PATH, **options})
    light.fault = fault
    probe = FieldProbe(PatternFrames(light, lambda taken, what: None), healthy(light.rows), 1280, BETA)
    with pytest.raises(DeviceError, match=words) as caught:
        probe.measure()
    assert "\n" not in str(caught.value)


def test_single_mirrors_that_show_more_than_their_share_are_charged_or_refused() -> None:
    """Of ten mirrors, known to a percent: 3 % more is charged, 20 % more or less is refused."""
    shown = Departures(
        shares=(1.03, 1.03), mirrors=10, largest=np.zeros(2), length=0.0, errors=np.full(2, 0.01), repeats=100,
        reach=4.0, inverse=1.0, noise=1e-3, left=0.0, free=0,
    )  # fmt: skip
    departure, share = shown.limits(0.0, 0.0, 0.0, 0.0, 1.0)
    assert 1.03 < share < 1.06
    assert 0.04 <= departure < 0.05
    for shares in ((1.2, 1.2), (0.8, 0.8)):
        with pytest.raises(DeviceError, match="single mirrors show"):
            replace(shown, shares=shares).limits(0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("words", "options", "given"),
    [
        ("frames of the reference are 100", {}, {"frames": 100}),
        ("beta is 0.5", {}, {"beta": 0.5}),
        ("hold nan days", {}, {"valid_days": float("nan")}),
        ("4 pixels of a camera", {"rows": 4}, {}),
    ],
)
def test_mistakes_are_answered(words: str, options: dict[str, Any], given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=words):
        calibrate_light(NumpyLight(**options), **given)
