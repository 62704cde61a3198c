"""Whole numbers as amplitudes of light (THEORY T10): the fields, their limits, and what comes back.

Statistical tests have fixed seeds and a false-alarm rate of 1e-6 each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import amplitude as module
from optical_dfa.backends import create
from optical_dfa.backends.amplitude import QUADRATURES
from optical_dfa.backends.interferometry import METHODS
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend

ALARM = 1e-6


def device(inputs: int = 4, outputs: int = 40, seed: int = 0, **options: Any) -> SimulatedOpuBackend:
    return SimulatedOpuBackend(
        inputs,
        outputs,
        seed=seed,
        noise=NoiseGenerator.seeded(seed, "device"),
        **{"method": "homodyne", "dark_pixels": 1024, "mirrors": 80_000} | options,
    )


@pytest.mark.parametrize("fidelity", ["effective", "physics"])
@pytest.mark.parametrize("method", QUADRATURES)
def test_columns_come_back_with_the_noise_of_the_light(fidelity: str, method: str) -> None:
    """Mean `R a`; variance that of the counts, (s (|r|² + |E|²) + what the camera adds) / (8 s² κ² |r|²), s the share
    of the light that a count has. |E|², which a count by itself would add to the mean a hundredfold, is gone."""
    opu = device(fidelity=fidelity, method=method)
    light_path = opu.photon_readout()
    light, share = 0.02, METHODS[method].light
    column = np.array([900, -350, 0, 77])
    answers = light_path.show(np.tile(column, (4000, 1)), light)
    mean = light_path.response @ column
    error = answers.std(0) / np.sqrt(len(answers))
    assert np.abs((answers.mean(0) - mean) / error).max() < stats.norm.isf(ALARM / 80)
    squared = np.abs(light * light_path._field @ column) ** 2 / (2 * opu.optics.reference * light)
    assert squared.max() > 100 * error.max()
    reference = opu.optics.reference
    camera = opu.noise.camera
    floor = 1 / (8 * share * light**2)  # of the light alone
    field = light * np.abs(light_path._field @ column)
    added = (float((field**2).mean()) + camera.read_noise_electrons**2 / share) / reference**2
    if fidelity == "physics":
        added += (1 / camera.data_gain_dn_per_electron) ** 2 / 12 / share / reference**2
    assert answers.var(0).mean() == pytest.approx(floor * (1 + added), rel=0.05)
    assert answers.var(0).mean() > floor


@pytest.mark.parametrize("fidelity", ["effective", "physics"])
def test_the_projection_is_the_devices_own(fidelity: str) -> None:
    """What light carries is B up to its unit, so under gated-dfa the rule's projection protects."""
    opu = device(fidelity=fidelity)
    np.testing.assert_allclose(
        opu.photon_readout().response * np.sqrt(2), opu.matrix().double().numpy(), rtol=1e-6
    )


@pytest.mark.parametrize("method", QUADRATURES)
def test_physics_and_effective_have_the_same_law(method: str) -> None:
    """Two samples of one pixel's answers (Kolmogorov and Smirnov); an ideal camera, so that nothing else differs."""
    ideal = {"prnu": 0.0, "dsnu_electrons": 0.0, "dark_current_electrons_per_second": 0.0, "dnl_lsb": 0.0}
    found = [
        device(
            fidelity=fidelity, seed=3, adc_bits=16, method=method, **(ideal if fidelity == "physics" else {})
        )
        .photon_readout()
        .show(np.tile([500, -20, 3, 0], (6000, 1)), 0.02)[:, 0]
        for fidelity in ("effective", "physics")
    ]
    assert stats.ks_2samp(*found).pvalue > ALARM


@pytest.mark.parametrize("method", QUADRATURES)
@pytest.mark.parametrize("spread", [0.0, 0.05])
@pytest.mark.parametrize("phase", [0.0, 0.3])
@pytest.mark.parametrize("intensity", [0.0, 0.02])
@pytest.mark.parametrize("fidelity", ["effective", "physics"])
def test_no_two_columns_move_the_amplitudes_further_than_the_limits(
    spread: float, phase: float, intensity: float, fidelity: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rates that are drawn from, of all counts: changes of their square roots against M, row and |r|."""
    shown: list[np.ndarray] = []

    def rates(mean: np.ndarray, generator: NoiseGenerator) -> np.ndarray:
        shown.append(mean.copy())
        return mean.astype(np.int64)

    monkeypatch.setattr(module, "exact_poisson", rates)
    rng = np.random.default_rng(1)
    for seed in range(4):
        opu = device(
            seed=seed, fidelity=fidelity, serial=seed, mirror_spread=spread, phase_drift=phase,
            intensity_noise=intensity, dark_current_electrons_per_second=0.0, method=method,
        )  # fmt: skip
        light_path = opu.photon_readout()
        most = light_path.most
        ratio = 0.4
        limits, unit = light_path.limits(ratio), np.sqrt(METHODS[method].light)
        light = ratio * limits.reference / (limits.reach * most)
        gamma_free = np.linalg.svd(np.concatenate([light_path._field.real, 0.37 * light_path._field.imag]))[
            2
        ][0]
        for _ in range(12):
            first = rng.integers(-most, most + 1, light_path.inputs)
            step = np.rint(gamma_free * rng.uniform(1, 200) * rng.choice([-1, 1])).astype(np.int64)
            second = np.clip(first + step, -most, most)
            if (first == second).all():
                continue
            shown.clear()
            state = rng.integers(2**31)
            for column in (first, second):  # the same states of the light in both worlds
                opu._generator = NoiseGenerator.seeded(int(state), "light")
                light_path._generator = opu._generator
                light_path.show(column[None], light)
            amplitudes = np.sqrt(np.asarray(shown).reshape(2, -1))
            norm = np.linalg.norm(first - second)
            change = np.abs(amplitudes[0] - amplitudes[1])
            assert np.linalg.norm(change) <= light * limits.norm * norm
            assert change.max() <= light * limits.row * norm * unit
            assert amplitudes.min() >= (1 - ratio) * limits.least * unit


def test_a_reference_that_drifts_has_larger_limits_and_one_that_is_lost_those_of_no_phase() -> None:
    """γ: with the reference turned by π/2, what was in quadrature is in phase."""
    small = 0.01
    limits = [
        device(seed=2, outputs=8, phase_drift=drift).photon_readout().limits(small).norm
        for drift in (0.0, 0.1, 1.57)
    ]
    field = device(seed=2, outputs=8).photon_readout()._field
    turned = max(np.linalg.norm((field * np.exp(-1j * angle)).real, 2) for angle in np.linspace(0, 1.57, 40))
    assert limits[0] < limits[1] < limits[2]
    assert limits[0] < turned <= limits[2]  # what the attack of a lost phase would have
    assert limits[2] == pytest.approx(np.linalg.norm(np.concatenate([field.real, field.imag]), 2), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "phase-4"}, "method is phase-4"),
        ({"method": "phase-3"}, "method is phase-3"),
        ({"method": "anchor"}, "method is anchor"),
        ({"contrast": 1000.0}, "contrast is 1000"),
        ({"mirrors": 7}, "mirrors is 7"),
        ({"mirrors": 10**12}, "mirrors is 1000000000000"),
        ({"mirrors": 10**9, "mirror_spread": 0.1}, "mirrors is 1000000000"),
        ({"mirror_spread": 0.9}, "mirror_spread is 0.9"),
        ({"levels": 0}, "levels is 0"),
        ({"levels": 4097}, "levels is 4097"),
        ({"phase_drift": -0.1}, "phase_drift is -0.1"),
        ({"intensity_noise": float("nan")}, "intensity_noise is nan"),
    ],
)
def test_what_carries_no_amplitude_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        device(**options).photon_readout()


def test_a_device_without_light_is_refused() -> None:
    digital = create("digital", in_features=4, out_features=8, seed=0, noise=NoiseGenerator.seeded(0, "x"))
    with pytest.raises(UsageError, match="shows no amplitudes"):
        digital.photon_readout()


def test_light_that_no_count_is_drawn_for_is_refused_before_any_is_shown() -> None:
    """The limit is public: a count refused by its size would tell of the sum that it carries."""
    wide = {"dark_amplification": 1600.0, "adc_bits": 8}
    with pytest.raises(UsageError, match="a pixel may receive"):
        device(full_well_electrons=1_048_550.0, **wide).photon_readout()
    opu = device(full_well_electrons=400_000.0, **wide)
    light_path = opu.photon_readout()
    most = light_path.limits(0.5)
    light = 0.5 * most.reference / (most.reach * light_path.most)
    light_path.show(np.full((2, light_path.inputs), light_path.most), light)


def test_a_column_exposed_twice_falls_on_the_same_pixels() -> None:
    """Patterns of the camera: 4,096 answers by `balanced` from 2,048 pixels, on a camera of as many."""
    opu = device(inputs=2, outputs=4096, method="balanced", fidelity="physics", dark_pixels=2048)
    light_path = opu.photon_readout()
    first, second = light_path._response[:, :2048], light_path._response[:, 2048:]
    assert (first == second).all()
    assert light_path.show(np.array([[5, -7]]), 1e-3).shape == (1, 4096)


@given(spread=st.floats(0.01, 0.5), levels=st.sampled_from([1, 2, 15, 255]), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_what_one_unit_moves_is_within_the_spread(spread: float, levels: int, seed: int) -> None:
    """Of every number that a macro-pixel of four pixels shows, either sign; from dark on, and to all of it."""
    inputs = 3
    light_path = device(
        inputs, 8, mirrors=8 * inputs, levels=levels, mirror_spread=spread, serial=seed
    ).photon_readout()
    assert light_path.most == 4 * levels
    assert light_path.mirrors == 8 * inputs
    numbers = np.arange(-light_path.most, light_path.most + 1)
    shown = light_path._amplitudes(np.tile(numbers[:, None], (1, inputs)))
    steps = np.diff(shown, axis=0)
    assert np.abs(steps - 1).max() <= spread * (1 + 1e-9)
    assert np.abs(steps - 1).max() > spread / 20
    assert (shown[light_path.most] == 0).all()


def test_a_spread_of_steps_is_charged_in_m() -> None:
    """Levels that are off by a hundredth of the range, in steps that are a quarter off: M pays for the steps."""
    even, uneven = (
        device(levels=255, mirrors=8, mirror_spread=spread).photon_readout() for spread in (0.0, 0.25)
    )
    curve = uneven._pattern[1]  # type: ignore[index]
    assert np.abs(curve / curve[-1] - np.arange(256) / 255).max() < 0.01
    for ratio in (0.0, 0.2):
        assert uneven.limits(ratio).norm == pytest.approx(1.25 * even.limits(ratio).norm)
        assert uneven.limits(ratio).reach == pytest.approx(1.25 * even.limits(ratio).reach)


def test_pixels_of_many_levels_show_larger_numbers_in_as_many_exposures() -> None:
    mirrors, grey = (device(mirrors=80_000, levels=levels).photon_readout() for levels in (1, 255))
    assert grey.most == 255 * mirrors.most
    assert grey.mirrors == mirrors.mirrors
    assert grey.fingerprint() != mirrors.fingerprint()
    answers = grey.show(np.array([[grey.most, 0, 0, -7]]), 1e-6)
    np.testing.assert_allclose(answers[0], grey.response @ [grey.most, 0, 0, -7], atol=6 / (2e-6) * 1.1)


def test_fringes_take_pixels_of_their_own_of_one_camera() -> None:
    """Four of a point of the field, so twice as many as entries of an answer; and no less."""
    options = {"inputs": 2, "outputs": 400, "method": "off-axis", "fidelity": "physics", "serial": 4}
    with pytest.raises(UsageError, match="400 outputs need 800 camera pixels"):
        device(**options, dark_pixels=799)
    opu = device(**options, dark_pixels=800)
    light_path = opu.photon_readout()
    np.testing.assert_array_equal(light_path._response.reshape(-1), opu.noise.prnu_pattern.astype(float))
    assert light_path.exposures == 1
    np.testing.assert_allclose(light_path.response * np.sqrt(2), opu.matrix().double().numpy(), rtol=1e-6)


def test_one_arm_pays_for_no_more_than_the_field_in_phase_where_it_is_weak() -> None:
    """M² between what two arms of one field would count, and 1 + 2ρ times it; never above that of no phase."""
    light_path = device(outputs=60, method="off-axis").photon_readout()
    whole = np.linalg.norm(light_path.response, 2)  # both quadratures are rows
    for ratio in (0.0, 0.01, 0.1, 0.25, 0.5):
        norm = light_path.limits(ratio).norm / (1 + 1e-6)
        assert 2 * whole**2 * (1 - 1e-9) <= norm**2 <= 2 * whole**2 * min(1 + 2 * ratio, 2) * (1 + 1e-9)


@pytest.mark.parametrize("outputs", [12, 64, 400])
def test_a_medium_that_is_another_one_altogether_is_within_its_allowance(outputs: int) -> None:
    """Ageing to the end, 20 times: the light level that was set for the first one serves."""
    opu = device(inputs=10, outputs=outputs, decorrelation_seconds=1e-3)
    light_path = opu.photon_readout()
    allowed = light_path.limits(0.1)
    for _ in range(20):
        opu.advance(1.0)
        assert light_path.keeps(allowed, 0.1)


def test_a_reference_that_fades_is_not_within_its_limits() -> None:
    light_path = device().photon_readout()
    allowed = light_path.limits(0.1)
    assert light_path.keeps(allowed, 0.1)
    light_path._reference /= 10
    assert not light_path.keeps(allowed, 0.1)


def test_an_ageing_medium_is_followed() -> None:
    opu = device(decorrelation_seconds=100.0)
    light_path = opu.photon_readout()
    before = light_path.response.copy()
    opu.advance(30.0)
    assert not np.allclose(light_path.response, before)
    np.testing.assert_allclose(light_path.response * np.sqrt(2), opu.matrix().double().numpy(), rtol=1e-6)
    assert light_path.keeps(light_path.limits(0.2), 0.2)
