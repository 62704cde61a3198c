"""The whole light path: exposure and mirrors, the effective model against the physics, and records apart.

Effective against physics uses an ideal camera on both sides (a fixed pattern is no noise: it changes B). Fixed seeds;
every comparison allows 6 standard errors (false alarm 2e-9 each, below 1e-6 for the file) unless it says otherwise.
"""

from __future__ import annotations

from functools import cache
from math import exp, sqrt
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from noise_models.data_sheet import CAMERAS
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.interferometry import METHODS
from optical_dfa.backends.optics import Optics
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend

SIGMAS = 6.0
IN, OUT = 20, 1000
IDEAL = {"prnu": 0.0, "dsnu_electrons": 0.0, "dark_current_electrons_per_second": 0.0}


def device(
    fidelity: str, seed: int = 1, n_in: int = IN, n_out: int = OUT, **options: Any
) -> SimulatedOpuBackend:
    ideal = IDEAL if fidelity == "physics" else {}
    return SimulatedOpuBackend(
        n_in, n_out, seed=1, noise=NoiseGenerator.seeded(seed, "noise"), fidelity=fidelity, **ideal, **options
    )


def optics(**options: Any) -> Optics:
    chosen: dict[str, Any] = {
        "method": "phase-4", "full_scale": None, "contrast": None, "grain": None,
        "decorrelation_seconds": None, **options,
    }  # fmt: skip
    return Optics(16, 200_000, seed=1, camera=CAMERAS["machine-vision"], **chosen)


@pytest.mark.parametrize("method", ["phase-4", "phase-3", "balanced"])
def test_one_pixel_in_15_000_saturates_with_all_mirrors_on(method: str) -> None:
    path = optics(method=method)
    assert path.saturated_fraction() == pytest.approx(1 / 15_000, rel=0.01)
    # 100,000 pixels in three or four phases: about 20 of them, Poisson at 6 sigma.
    images = list(path.interferometer.intensities(*path.fields(torch.ones(1, 16))))
    beyond = sum(int((image > CAMERAS["machine-vision"].full_well_electrons).sum()) for image in images)
    expected = len(images) * 100_000 / 15_000
    assert abs(beyond - expected) <= SIGMAS * sqrt(expected)


def test_at_most_that_many_saturate_by_the_anchor() -> None:
    path = optics(method="anchor")
    images = list(path.interferometer.intensities(*path.fields(torch.ones(1, 16))))
    beyond = int((images[0] > CAMERAS["machine-vision"].full_well_electrons).sum())
    assert beyond <= 200_000 / 15_000 + SIGMAS * sqrt(200_000 / 15_000)
    # The chosen pixels are bright, and alike: their light is a fair part of the full well.
    assert float(images[0].mean()) > 0.15 * CAMERAS["machine-vision"].full_well_electrons


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("contrast", [None, 100.0])
def test_light_path_is_linear_up_to_a_constant(method: str, contrast: float | None) -> None:
    path = optics(method=method, contrast=contrast)
    planes = torch.eye(16)[:4]
    answers = torch.cat(
        path.interferometer.reconstruct(path.interferometer.intensities(*path.fields(planes))), 1
    )
    measured = (answers[1:] - answers[0])[:, : path.out_features] * path.unit
    expected = (planes[1:] - planes[0]) @ path.projection()
    torch.testing.assert_close(measured, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_entries_of_b_have_unit_variance(method: str) -> None:
    b = optics(method=method).projection().double()
    assert float(b.square().mean()) == pytest.approx(1, abs=SIGMAS * sqrt(2 / b.numel()))
    assert float(b.mean()) == pytest.approx(0, abs=SIGMAS / sqrt(b.numel()))
    assert float((b[0] * b[1]).mean()) == pytest.approx(0, abs=SIGMAS / sqrt(b.shape[1]))
    assert stats.kstest(b[2].numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("contrast", [None, 30.0])
def test_mean_speckle_of_a_frame(contrast: float | None) -> None:
    path = optics(contrast=contrast)
    planes = torch.zeros(3, 16)
    planes[1, :5] = 1
    planes[2] = 1
    re, im = path.fields(planes)
    measured = (re.square() + im.square()).double().mean(dim=1)
    stated = path.speckle(planes)
    assert float((measured - stated).abs().max() / stated.max()) < SIGMAS / sqrt(100_000)
    assert float(stated[0]) == (0.0 if contrast is None else pytest.approx(float(stated[2]) / contrast))


def test_grain_correlates_outputs_of_neighbouring_pixels() -> None:
    path = Optics(
        400, 3200, seed=1, camera=CAMERAS["machine-vision"], method="phase-4", full_scale=None, contrast=None,
        grain=3.0, decorrelation_seconds=None,
    )  # fmt: skip
    b = path.projection().double()
    neighbours = float((b[:, :39] * b[:, 1:40]).mean())
    assert neighbours > 0.5
    assert abs(float((b[:, :1600] * b[:, 1600:]).mean())) < 0.02


# ---- the effective model against the physics

WAYS: dict[str, dict[str, Any]] = {
    **{name: {"method": name, "encoding": "ternary"} for name in METHODS},
    "bit-planes": {"encoding": "bit-planes"},
    "contrast": {"encoding": "ternary", "contrast": 50.0},
    "grain": {"encoding": "ternary", "grain": 3.0},
    "gain": {"encoding": "ternary", "drift_per_hour": 0.04},
    "scientific-cmos": {"encoding": "ternary", "camera": "scientific-cmos"},
    "high-speed": {"encoding": "ternary", "camera": "high-speed"},
}
RECORDS, REPEATS = 25, 24


def errors() -> Tensor:
    """RECORDS different ternary rows from sparse to full, each REPEATS times: half a million answers."""
    stream = torch.Generator().manual_seed(5)
    filled = torch.linspace(0.1, 1.0, RECORDS)[:, None]
    e = torch.randint(0, 2, (RECORDS, IN), generator=stream).mul_(2).sub_(1).float()
    e *= torch.rand(RECORDS, IN, generator=stream) < filled
    e[:, 0] = 1
    return e.repeat_interleave(REPEATS, dim=0)


@cache
def residuals(way: str, fidelity: str) -> Tensor:
    """(project(e) − gain B e) over the stated standard deviation, shape (RECORDS, REPEATS, OUT)."""
    opu = device(fidelity, 3 if fidelity == "physics" else 4, **WAYS[way])
    opu.advance(3600.0)
    e = errors()
    gain = exp(0.04) if way == "gain" else 1.0
    assert opu.noise.gain_factor == pytest.approx(gain)
    frames = opu.encoding.encode(e)
    std = opu.optics.noise_std(frames, opu.noise) * frames.scale[:, None]
    residual = (opu.project(e).double() - gain * (e.double() @ opu.matrix().double().T)) / std
    return residual.view(RECORDS, REPEATS, OUT)


@pytest.mark.parametrize("fidelity", ["physics", "effective"])
@pytest.mark.parametrize("way", WAYS)
def test_mean_of_every_output(way: str, fidelity: str) -> None:
    # Conversion has a small bias of its own where noise is below one code; 0.02 of the noise is allowed for it.
    z = residuals(way, fidelity)
    assert float(z.mean(dim=(0, 1)).abs().max()) < SIGMAS / sqrt(RECORDS * REPEATS) * 1.2 + 0.02
    assert abs(float(z.mean())) < SIGMAS / sqrt(z.numel()) + 0.02


@pytest.mark.parametrize("fidelity", ["physics", "effective"])
@pytest.mark.parametrize("way", WAYS)
def test_variance_of_every_record(way: str, fidelity: str) -> None:
    # A record's variance: 24,000 answers, and the finite number of pixels that its speckle is averaged over
    # (1000 at least; with grain 3 about 9 times fewer are independent), a third of the noise at most.
    z = residuals(way, fidelity)
    variance = z.square().mean(dim=(1, 2))
    speckles = 500 / (9 if way == "grain" else 1)
    allowed = SIGMAS * sqrt(2.5 / (REPEATS * OUT) + (0.12**2) / speckles)
    assert float((variance - 1).abs().max()) < allowed
    assert float(variance.mean()) == pytest.approx(1, abs=SIGMAS * sqrt(2.5 / z.numel() + 0.06**2 / speckles))


@pytest.mark.parametrize("fidelity", ["physics", "effective"])
@pytest.mark.parametrize("way", WAYS)
def test_noise_is_uncorrelated_over_outputs_records_and_repeats(way: str, fidelity: str) -> None:
    z = residuals(way, fidelity)
    half = OUT // 2
    pairs = {
        "neighbouring outputs": (z[..., 1:], z[..., :-1]),
        "quadratures of a pixel": (z[..., :half], z[..., half:]),
        "records": (z[1:], z[:-1]),
        "repeats": (z[:, 1:], z[:, :-1]),
    }
    for label, (one, other) in pairs.items():
        assert abs(float((one * other).mean())) < SIGMAS / sqrt(one.numel()) * 1.1, label


@pytest.mark.parametrize("way", WAYS)
def test_tails(way: str) -> None:
    # Two-sample Kolmogorov-Smirnov on every 7th answer (false alarm 1e-6), and the counts beyond 3 and 4 sigma. In the
    # physics a pixel's variance follows its own speckle, by a ninth at most: a mixture of normals whose excess
    # kurtosis is 3 (0.11)² / 2 at most, one part in 50; the effective model's is 0. The anchor's images hold a
    # beat with E besides, a third of the light: 0.15.
    z = {fidelity: residuals(way, fidelity).flatten() for fidelity in ("physics", "effective")}
    assert stats.ks_2samp(z["physics"][::7].numpy(), z["effective"][::7].numpy()).pvalue > 1e-6
    n = len(z["physics"])
    for limit in (3.0, 4.0):
        beyond = [float((part.abs() > limit).sum()) for part in z.values()]
        # The mixture's tail is heavier by its kurtosis: 5 % at 3 sigma and 25 % at 4, at most.
        heavier = {3.0: 0.05, 4.0: 0.25}[limit]
        expected = 2 * stats.norm.sf(limit) * n
        assert abs(beyond[1] - expected) < SIGMAS * sqrt(expected)
        assert (
            -SIGMAS * sqrt(2 * expected)
            < beyond[0] - beyond[1]
            < SIGMAS * sqrt(2 * expected) + heavier * expected
        )
    kurtosis = {
        fidelity: float(part.pow(4).mean() / part.square().mean() ** 2) - 3 for fidelity, part in z.items()
    }
    error = SIGMAS * sqrt(24 / n)
    assert abs(kurtosis["effective"]) < error
    assert -error < kurtosis["physics"] < error + (0.15 if way == "anchor" else 0.04)


def test_physics_is_not_the_effective_model_in_disguise() -> None:
    # With all mirrors on in one plane and a bright speckle, a pixel's noise follows its own |E|²: the closed form.
    opu = device("physics", n_out=2000, encoding="ternary")
    e = torch.ones(300, IN)
    residual = (opu.project(e) - e @ opu.matrix().T).double().square().mean(dim=0)
    re, im = opu.optics.fields(torch.ones(1, IN))
    bright = (re.square() + im.square())[0].double().repeat(2)
    slope = float(((bright - bright.mean()) * residual).mean() / bright.var())
    reference = 10_000 / 4
    expected = opu.optics.unit**2 / (8 * reference)
    error = float(residual.mean()) * sqrt(2 / 300 / 2000) / float(bright.std())
    assert slope == pytest.approx(expected, abs=SIGMAS * 1.3 * error)


@pytest.mark.parametrize(("method", "share"), [("phase-4", 1.0), ("balanced", sqrt(0.5))])
def test_pixels_that_respond_unequally_change_b(method: str, share: float) -> None:
    # Each output's gain is its pixel's; balanced detection averages over two cameras, each with its own pattern.
    opu = SimulatedOpuBackend(
        IN, 2000, seed=1, noise=NoiseGenerator.seeded(1, "noise"), fidelity="physics", method=method,
        encoding="ternary", prnu=0.05,
    )  # fmt: skip
    e = errors()[::2]
    ideal = e @ opu.matrix().T
    gains = ((opu.project(e) * ideal).sum(dim=0) / ideal.square().sum(dim=0)).double()
    assert float(gains.mean()) == pytest.approx(1, abs=SIGMAS * 0.06 / sqrt(2000))
    # The slope's own noise, about 0.08/sqrt(300), adds in quadrature.
    expected = sqrt((0.05 * share) ** 2 + 0.005**2)
    assert float(gains.std()) == pytest.approx(expected, rel=0.05 + SIGMAS / sqrt(2 * 1000))


# ---- records apart

OTHERS = torch.arange(64) != 3


def perturbed(kind: str, e: Tensor) -> Tensor:
    changed = e.clone()
    changed[3] = {
        "brighter": 1e4 * torch.ones(IN),
        "dark": torch.zeros(IN),
        "broken": torch.full((IN,), torch.nan),
    }[kind]
    return changed


@pytest.mark.parametrize("kind", ["brighter", "dark", "broken"])
@pytest.mark.parametrize("way", ["phase-4", "anchor", "bit-planes"])
def test_effective_noise_of_others_is_the_same_number(way: str, kind: str) -> None:
    # One normal for each output of each place in the batch: equal seeds draw equal noise, whatever a record is.
    e = errors()[:64]
    plain = device("effective", 7, **WAYS[way]).project(e)
    moved = device("effective", 7, **WAYS[way]).project(perturbed(kind, e))
    assert torch.equal(plain[OTHERS], moved[OTHERS])
    assert not torch.equal(plain[3], moved[3])


@pytest.mark.parametrize("kind", ["brighter", "dark", "broken"])
@pytest.mark.parametrize(
    "options", [{}, {"method": "balanced"}, {"method": "anchor"}, {"full_scale": 5.0}, {"camera": "high-speed"}],
    ids=str,
)  # fmt: skip
def test_physical_law_of_others_does_not_move(kind: str, options: dict[str, Any]) -> None:
    # The Poisson sampler takes from its stream what the data ask for, so that draws differ; laws must not. Mean and
    # variance of each other record over 1000 outputs and 40 repeats, one that saturates among the ways.
    e = errors()[::REPEATS].repeat(3, 1)[:64]
    answers = {}
    for name, batch in (("plain", e), ("moved", perturbed(kind, e))):
        opu = device("physics", 8 if name == "plain" else 9, encoding="ternary", **options)
        answers[name] = torch.stack([opu.project(batch)[OTHERS].double() for _ in range(10)])
    plain, moved = answers["plain"], answers["moved"]
    variance = [part.var(dim=0).mean(dim=1) for part in (plain, moved)]
    error = sqrt(2 * 2 / (9 * OUT))
    assert float((variance[0] / variance[1] - 1).abs().max()) < SIGMAS * error * 1.1
    shift = (plain.mean(dim=0) - moved.mean(dim=0)) / (
        2 * (variance[0] + variance[1])[:, None] / 2 / 10
    ).sqrt()
    assert float(shift.mean(dim=1).abs().max()) < SIGMAS / sqrt(OUT)
    assert float(shift.square().mean(dim=1).max()) < 1 + SIGMAS * sqrt(2 / OUT) * 1.5


def test_batches_of_every_size_have_one_law() -> None:
    e = errors()[::REPEATS]
    together = device("physics", 10, encoding="ternary")
    alone = device("physics", 11, encoding="ternary")
    b = together.matrix().T
    one = (together.project(e) - e @ b).double().square().mean(dim=1)
    other = torch.cat([alone.project(row[None]) - row @ b for row in e]).double().square().mean(dim=1)
    assert float((one / other - 1).abs().max()) < SIGMAS * sqrt(2 * 2 / OUT) * 1.1
