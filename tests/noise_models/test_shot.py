"""Photon counts: exact laws, and streams that do not know about threads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import chi_square
from scipy import stats

from noise_models.base import Frame
from noise_models.errors import UsageError
from noise_models.randomness.chunks import CHUNK, draw_in_chunks
from noise_models.randomness.generator import NoiseGenerator
from noise_models.shot import ShotNoise, poisson
from noise_models.skellam import SkellamNoise


@pytest.fixture
def any_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def poisson_law(mean: float) -> tuple[int, np.ndarray]:
    least, most = (int(stats.poisson.ppf(p, mean)) for p in (1e-9, 1 - 1e-9))
    return least, stats.poisson.pmf(np.arange(least, most + 1), mean)


# Means on both sides of 10, where numpy's sampler changes its method.
@pytest.mark.parametrize("mean", [0.003, 0.7, 9.99, 10.0, 57.3, 2500.0])
def test_counts_are_poisson(mean: float) -> None:
    # Chi-square on 4·10^5 counts, mean and variance at 5 sigma: false alarm 3e-6.
    n = 400_000
    counts = poisson(torch.full((n,), mean), NoiseGenerator.seeded(1, f"shot {mean}"))
    least, law = poisson_law(float(np.float32(mean)))
    assert torch.equal(counts, counts.round())
    assert float(counts.min()) >= 0
    assert chi_square(counts, law, least) > 1e-6
    assert abs(float(counts.double().mean()) - mean) < 5 * np.sqrt(mean / n)
    assert abs(float(counts.double().var()) - mean) < 5 * np.sqrt((2 * mean**2 + mean) / n)


@settings(deadline=None, max_examples=20)
@given(mean=st.floats(1e-3, 1e5), seed=st.integers(0, 10**6))
def test_mean_is_variance(mean: float, seed: int) -> None:
    # Mean and variance at 6 sigma, 40 comparisons: false alarm 1e-7. Few photons have skewed counts, so the
    # bounds allow for one count more.
    n = 20_000
    counts = poisson(torch.full((n,), mean, dtype=torch.float64), NoiseGenerator.seeded(seed, "shot"))
    assert abs(float(counts.mean()) - mean) < 6 * np.sqrt(mean / n) + 20 / n
    assert abs(float(counts.var()) - mean) < 6 * np.sqrt((2 * mean**2 + mean) / n) + 200 / n


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK + 1, 5 * CHUNK + 7])
@pytest.mark.usefixtures("any_threads")
def test_threads_do_not_change_the_counts(size: int) -> None:
    mean = torch.linspace(0, 3000, size)
    drawn = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        drawn.append(poisson(mean, NoiseGenerator.seeded(5, "shot")))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_chunks_are_independent_and_calls_go_on() -> None:
    # Three correlations at 5 sigma: false alarm 2e-6.
    mean = torch.full((2 * CHUNK,), 100.0)
    generator = NoiseGenerator.seeded(6, "shot")
    first = poisson(mean, generator)
    second = poisson(mean, generator)
    a, b, c = ((part - 100) / 10 for part in (first[:CHUNK], first[CHUNK:], second[:CHUNK]))
    for one, other in ((a, b), (a, c), (b, c)):
        assert abs(float((one * other).mean())) < 5 / np.sqrt(CHUNK)


@pytest.mark.usefixtures("any_threads")
def test_errors_in_a_thread_are_not_swallowed() -> None:
    def fail(i: int, child: np.random.Generator) -> None:
        raise ValueError(f"chunk {i}")

    for threads in (1, 2):
        torch.set_num_threads(threads)
        with pytest.raises(ValueError, match="chunk 0"):
            draw_in_chunks(2, NoiseGenerator.seeded(1, "x"), fail)


def test_shapes_dtypes_and_unknowns() -> None:
    mean = torch.full((3, 4, 5), 40.0, dtype=torch.float64)
    mean[1, 2, 3] = torch.nan
    before = mean.clone()
    counts = poisson(mean.transpose(0, 2), NoiseGenerator.seeded(1, "shot"))
    assert counts.shape == (5, 4, 3)
    assert counts.dtype == torch.float64
    assert counts.isnan().nonzero().tolist() == [[3, 2, 1]]
    assert torch.equal(mean.nan_to_num(), before.nan_to_num())
    assert float(poisson(torch.tensor(0.0), NoiseGenerator.seeded(1, "shot"))) == 0.0


@pytest.mark.parametrize(
    "mean", [torch.tensor([-1e-3]), torch.tensor([2e18]), torch.tensor([torch.inf]), torch.tensor([1])]
)
def test_refused_means(mean: torch.Tensor) -> None:
    with pytest.raises(UsageError) as caught:
        poisson(mean, NoiseGenerator.seeded(1, "shot"))
    assert "\n" not in str(caught.value)


def test_shot_noise_earns_nothing() -> None:
    noise = ShotNoise()
    assert noise.credit(Frame.DARK).std == noise.credit(Frame.DATA).std == 0.0
    assert noise.credit(Frame.DARK).argument != noise.credit(Frame.DATA).argument
    signal = torch.tensor([0.0, 5.0])
    assert torch.equal(noise.variance(signal, Frame.DATA), signal)
    assert noise.describe() == {"model": "shot"}
    counts = noise.sample(signal, NoiseGenerator.seeded(1, "x"), Frame.DATA)
    assert torch.equal(counts, poisson(signal, NoiseGenerator.seeded(1, "x")))


@pytest.mark.parametrize(("background", "signal"), [(3.0, 0.0), (3.0, 4.0), (50.0, -60.0), (1000.0, 200.0)])
def test_balanced_detection_is_skellam(background: float, signal: float) -> None:
    # Chi-square on 2·10^5 differences, mean and variance at 5 sigma: false alarm 3e-6.
    noise = SkellamNoise(background)
    n = 200_000
    x = noise.sample(torch.full((n,), signal), NoiseGenerator.seeded(7, f"{background} {signal}"), Frame.DATA)
    up, down = background + signal / 2, background - signal / 2
    reach = int(12 * np.sqrt(2 * background)) + 5
    values = np.arange(int(signal) - reach, int(signal) + reach)
    assert chi_square(x, stats.skellam.pmf(values, up, down), int(values[0])) > 1e-6
    variance = float(noise.variance(torch.zeros(1), Frame.DATA))
    assert variance == 2 * background
    kurtosis = 1 / variance
    assert abs(float(x.double().mean()) - signal) < 5 * np.sqrt(variance / n)
    assert abs(float(x.double().var()) - variance) < 5 * variance * np.sqrt((2 + kurtosis) / n)


@given(background=st.floats(0, 1e6), signal=st.floats(-1e7, 1e7))
def test_no_arm_is_darker_than_dark(background: float, signal: float) -> None:
    bright, dark = SkellamNoise(background).arms(torch.tensor([signal], dtype=torch.float64))
    assert float(bright) >= 0
    assert float(dark) >= 0
    assert float(bright + dark) == pytest.approx(2 * background)
    if abs(signal) <= 2 * background:
        assert float(bright - dark) == pytest.approx(signal, abs=1e-9 * background + 1e-300)


def test_balanced_detection_earns_nothing() -> None:
    noise = SkellamNoise(100.0)
    assert noise.credit(Frame.DARK).std == noise.credit(Frame.DATA).std == 0.0
    assert "T6" in noise.credit(Frame.DATA).argument
    assert json.loads(json.dumps(noise.describe())) == {"model": "skellam", "background_electrons": 100.0}
    for background in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError):
            SkellamNoise(background)


def test_why_balanced_detection_earns_nothing() -> None:
    # THEORY T6's checked case: 10 electrons an arm, no signal against a signal of 16 electrons, order 2.
    values = np.arange(-60, 61)
    rest, lit = (stats.skellam.pmf(values, *(float(arm) for arm in arms)) for arms in ((10, 10), (18, 2)))
    true = np.log((rest**2 / lit).sum())
    pair = sum((10**2 / rate) - 2 * 10 + rate for rate in (18, 2))
    shifted = np.log((rest**2 / stats.skellam.pmf(values - 16, 10, 10)).sum())
    assert true == pytest.approx(33.3, abs=0.1)
    assert pair == pytest.approx(35.6, abs=0.1)
    assert shifted == pytest.approx(10.5, abs=0.1)
    bright, dark = SkellamNoise(10.0).arms(torch.tensor(16.0))
    assert (float(bright), float(dark)) == (18.0, 2.0)
