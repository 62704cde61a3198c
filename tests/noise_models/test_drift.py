"""Gain drift: a function of public time and nothing else."""

from __future__ import annotations

import json
from math import exp

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noise_models.base import Frame
from noise_models.drift import HOUR, GainDrift, LinearDrift, RandomWalkDrift, SinusoidalDrift
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator

ALL = (LinearDrift(0.02), SinusoidalDrift(0.01, 600.0), RandomWalkDrift(0.05, seed=3))


def test_linear_and_sinusoidal_laws() -> None:
    line = LinearDrift(-0.02)
    line.advance(1800.0)
    line.advance(1800.0)
    assert line.factor == pytest.approx(exp(-0.02))
    wave = SinusoidalDrift(0.01, 600.0)
    assert wave.factor == 1.0
    wave.advance(150.0)
    assert wave.factor == pytest.approx(exp(0.01))
    wave.advance(300.0)
    assert wave.factor == pytest.approx(exp(-0.01))


def test_random_walk_law() -> None:
    # 2000 seeds: variance after one and after four hours, and the independence of what follows the first, each
    # at 5 sigma: false alarm 2e-6.
    walks = [RandomWalkDrift(0.05, seed) for seed in range(2000)]
    first = np.array([walk.log_gain(HOUR) for walk in walks])
    fourth = np.array([walk.log_gain(4 * HOUR) for walk in walks])
    tolerance = 5 * np.sqrt(2 / 2000)
    assert np.mean(first**2) == pytest.approx(0.05**2, rel=tolerance)
    assert np.mean(fourth**2) == pytest.approx(4 * 0.05**2, rel=tolerance)
    assert abs(np.corrcoef(first, fourth - first)[0, 1]) < 5 / np.sqrt(2000)


@given(cuts=st.lists(st.floats(0, 500), max_size=8), which=st.sampled_from([0, 1, 2]), back=st.floats(0, 500))
def test_the_path_depends_on_total_time_alone(cuts: list[float], which: int, back: float) -> None:
    def new() -> GainDrift:
        return (LinearDrift(0.3), SinusoidalDrift(0.3, 77.0), RandomWalkDrift(0.3, seed=5))[which]

    often, once = new(), new()
    for cut in cuts:
        often.advance(cut)
        assert often.factor > 0
    once.advance(often.seconds)
    assert often.factor == pytest.approx(once.factor, rel=1e-12)
    # Asking about another time does not move the present one.
    once.log_gain(back)
    assert once.factor == pytest.approx(often.factor, rel=1e-12)


@given(seconds=st.floats(0, 1000))
def test_walks_are_continuous(seconds: float) -> None:
    walk = RandomWalkDrift(0.1, seed=1)
    steepest = 6 * 0.1 / np.sqrt(HOUR)
    assert abs(walk.log_gain(seconds) - walk.log_gain(seconds + 0.01)) < 0.02 * steepest


@pytest.mark.parametrize("drift", ALL)
def test_a_factor_and_no_noise(drift: GainDrift) -> None:
    drift.advance(100.0)
    generator = NoiseGenerator.seeded(1, "unused")
    signal = torch.tensor([1.0, -2.0, torch.nan])
    for frame in Frame:
        x = drift.sample(signal, generator, frame)
        assert x[:2].tolist() == pytest.approx([drift.factor, -2 * drift.factor])
        assert bool(x[2].isnan())
        assert not drift.variance(signal, frame).any()
        credit = drift.credit(frame)
        assert credit.std == 0.0
        assert "public" in credit.argument
    assert generator.position == 0
    described = drift.describe()
    drift.advance(50.0)
    assert json.loads(json.dumps(drift.describe())) == described


def test_refusals() -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            LinearDrift(0.1).advance(wrong)
        with pytest.raises(UsageError):
            RandomWalkDrift(wrong)
        with pytest.raises(UsageError):
            SinusoidalDrift(0.1, wrong)
    with pytest.raises(UsageError):
        LinearDrift(float("nan"))
