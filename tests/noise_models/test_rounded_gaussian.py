"""Rounded Gaussian noise: the mixture is the stated law, and a draw reads the mixture exactly.

Statistical tests have fixed seeds; each states the probability with which a right sampler would fail it under a seed
chosen at random.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from told import Words

from noise_models.errors import UsageError
from noise_models.randomness.generator import BLOCK, NoiseGenerator
from noise_models.randomness.rounded_gaussian import (
    LEAST_STD,
    MOST_STD,
    TAIL_MASS,
    Mixture,
    RoundedGaussianSampler,
    rounded_mass,
)
from tests.noise_models.laws import chi_square

UNIT = 2**31  # of the tents' weights
HEIGHT = 2**256  # of the strips
REST = 2048  # the index of what the tents leave
STDS = [1.0, 372.5, 4e4, 3e5, 1e7]

spread = st.floats(0, 7).map(lambda exponent: min(max(10**exponent, LEAST_STD), MOST_STD))


@cache
def mixture(std: float) -> Mixture:
    return Mixture(Fraction(std))


@cache
def sampler(std: float) -> RoundedGaussianSampler:
    return RoundedGaussianSampler(std)


def seeded(seed: int) -> NoiseGenerator:
    return NoiseGenerator.seeded(seed, "rounded")


def independent_mass(k: int, std: Fraction) -> mpmath.mpf:
    """P(round(Z) = k) by mpmath's complementary error function, at 200 digits."""
    with mpmath.workdps(200):
        root = mpmath.sqrt(2) * mpmath.mpf(std.numerator) / std.denominator
        if k == 0:
            return mpmath.erf(mpmath.mpf(1) / 2 / root)
        near, far = abs(k) - mpmath.mpf(1) / 2, abs(k) + mpmath.mpf(1) / 2
        return (mpmath.erfc(near / root) - mpmath.erfc(far / root)) / 2


def normal_bins(std: float, width: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Right ends of bins `width · std` wide from −4 to 4 std, and the probabilities of the bins and what is beyond."""
    ends = np.round(np.arange(-4.0, 4.0 + width / 2, width) * std).astype(np.int64)
    z = (ends + 0.5) / std
    # from the nearer tail: no probability is a difference of numbers near 1
    inner = np.where(
        z[1:] < 0,
        stats.norm.cdf(z[1:]) - stats.norm.cdf(z[:-1]),
        stats.norm.sf(z[:-1]) - stats.norm.sf(z[1:]),
    )
    return ends, np.concatenate(([stats.norm.cdf(z[0])], inner, [stats.norm.sf(z[-1])]))


# ---- the law


@given(spread, st.floats(-15, 15), st.sampled_from([30, 90]))
@settings(max_examples=60, deadline=None)
def test_masses_are_right_to_all_but_nine_digits(std: float, z: float, digits: int) -> None:
    """Against mpmath's error function, to fifteen standard deviations."""
    exact, k = Fraction(std), round(z * std)
    found = rounded_mass(k, exact**2, digits)
    with mpmath.workdps(200):
        assert abs(mpmath.mpf(str(found)) / independent_mass(k, exact) - 1) < mpmath.mpf(10) ** (9 - digits)


@given(spread, st.data())
@settings(max_examples=60, deadline=None)
def test_tents_are_below_the_law_and_strips_above_what_they_leave(std: float, data: st.DataObject) -> None:
    """At the ends, next to them and in the middle of strips, near 0, where the curvature changes sign, and far out."""
    held = mixture(float(f"{std:.3g}"))
    last = len(held.heights) - 1
    turn = min(last, bisect_right(held.starts, std) - 1)
    strips = {0, 1, turn, max(0, turn - 1), min(turn + 1, last), data.draw(st.integers(0, last)), last}
    for strip in strips:
        start, end = held.starts[strip], held.starts[strip + 1]
        for k in {start, (start + end) // 2, end - 1, data.draw(st.integers(start, end - 1))}:
            assert held.bulk(k) >= 0
            assert 0 <= held.rest(k) <= held.heights[strip]


@pytest.mark.parametrize("std", [1.0, 7.25, 400.0])
def test_the_mixture_is_the_rounded_gaussian_to_145_bits(std: float) -> None:
    """Total variation of the whole law from mpmath's: every magnitude, and the tail that is never drawn."""
    held = mixture(std)
    weight = UNIT - 2 * sum(held.weights) + held.weights[0]
    left = [held.rest(k) for k in range(held.largest + 1)]
    whole = 2 * sum(left) - left[0]
    with mpmath.workdps(120):
        drawn = [
            mpmath.mpf(held.bulk(k)) / HEIGHT + mpmath.mpf(weight) / UNIT * mpmath.mpf(left[k]) / whole
            for k in range(held.largest + 1)
        ]
        assert abs(2 * sum(drawn) - drawn[0] - 1) < mpmath.mpf(10) ** -70
        step = 1 + held.largest // 400  # the error function is slow: of the largest table every tenth
        exact = {k: independent_mass(k, Fraction(std)) for k in range(0, held.largest + 1, step)}
        away = sum((1 if k == 0 else 2) * abs(drawn[k] - mass) for k, mass in exact.items())
        beyond = mpmath.erfc((held.largest + mpmath.mpf(1) / 2) / std / mpmath.sqrt(2))
        assert 0 < (step * away + beyond) / 2 < TAIL_MASS
        assert beyond < TAIL_MASS


@pytest.mark.parametrize("std", [*STDS, 1.37, 146.3, 1.2e6])
def test_what_is_left_to_rejection_is_a_few_millionths(std: float) -> None:
    held = mixture(std)
    assert 0 < UNIT - 2 * sum(held.weights) + held.weights[0] < 2.5e-6 * UNIT
    assert held.largest >= 14 * std


@pytest.mark.parametrize("std", STDS)
def test_cells_hold_every_weight_exactly(std: float) -> None:
    held = mixture(std)
    masses = [0] * 4096
    for own, cell in enumerate(held.cells().tolist()):
        threshold = (cell >> 12) + 1
        assert 0 <= threshold <= 2**19
        masses[own] += threshold
        masses[own ^ (cell & 4095)] += 2**19 - threshold
    half = held.weights[:2048]
    assert masses[:2048] == half
    assert masses[4095:2048:-1] == half[1:]
    assert sum(masses) == UNIT


# ---- how a word is read


@given(st.sampled_from(STDS), st.data())
@settings(max_examples=150, deadline=None)
def test_words_are_read_as_cell_place_and_two_numbers(std: float, data: st.DataObject) -> None:
    """Both sides of a cell's threshold and both its ends, three draws at once: a block is cells, then numbers."""
    held = mixture(std)
    cells = held.cells().tolist()
    first, numbers, expected = [], [], []
    for _ in range(3):
        index = data.draw(st.integers(0, 4095))
        threshold = (cells[index] >> 12) + 1
        near = data.draw(st.sampled_from([threshold - 1, threshold, 0, 2**19 - 1]))
        place = min(max(near, 0), 2**19 - 1)
        symbol = index if place < threshold else index ^ (cells[index] & 4095)
        one, other = (data.draw(st.integers(0, 2**16 - 1)) for _ in range(2))
        first.append(data.draw(st.integers(0, 1)) << 31 | place << 12 | index)
        numbers.append((one, other))
        g = 1 << held.bits
        tent = symbol - 4096 if symbol > REST else symbol
        expected.append(None if symbol == REST else tent * g + one % g - other % g)
    if None in expected:
        return
    low = [one for one, _ in numbers] + [other for _, other in numbers]
    size = np.uint8 if held.bits < 8 else np.uint16
    bits = np.array(first, np.uint32).tobytes() + np.array(low).astype(size).tobytes()
    told = Words(np.frombuffer(bits + bytes(-len(bits) % 8), np.uint64).tolist())
    assert sampler(std).sample(3, told).tolist() == expected
    assert len(told.told) == 0


def rest_words(std: float, point: int) -> list[int]:
    """What makes one draw one from the rest, whose uniform point is `point`."""
    cells = mixture(std).cells().tolist()
    assert cells[REST] >> 12 >= 0  # the least place of its own cell is its own
    areas = sampler(std)._areas
    bits = (2 * areas[-1]).bit_length()
    words = -(-bits // 64)
    value = point << (64 * words - bits)
    return [REST, *((value >> 64 * i) & (2**64 - 1) for i in range(words))]


@pytest.mark.parametrize("std", [2.0, 1000.0])
@pytest.mark.parametrize("minus", [0, 1])
def test_a_point_below_what_is_left_is_taken_and_one_on_it_is_not(std: float, minus: int) -> None:
    held, drawn = mixture(std), sampler(std)
    for strip in (0, 1, len(held.heights) // 2, len(held.heights) - 1):
        for k in {held.starts[strip], held.starts[strip + 1] - 1} - {0}:
            base = drawn._areas[strip] + (k - held.starts[strip]) * held.heights[strip]
            on = 2 * (base + held.rest(k)) | minus
            below = on - 2
            assert drawn.sample(1, Words(rest_words(std, below))).tolist() == [-k if minus else k]
            if base + held.rest(k) < base + held.heights[strip]:
                told = Words([*rest_words(std, on), *rest_words(std, below)[1:]])
                assert drawn.sample(1, told).tolist() == [-k if minus else k]
                assert len(told.told) == 0


def test_zero_is_drawn_from_the_rest_with_one_sign_only() -> None:
    drawn = sampler(1000.0)
    assert drawn.sample(1, Words(rest_words(1000.0, 0))).tolist() == [0]
    again = rest_words(1000.0, 2 * drawn._areas[1])[1:]  # the first point of the second strip
    assert drawn.sample(1, Words([*rest_words(1000.0, 1), *again])).tolist() == [mixture(1000.0).starts[1]]


def test_points_above_all_strips_are_drawn_again() -> None:
    drawn = sampler(1000.0)
    beyond = rest_words(1000.0, 2 * drawn._areas[-1])
    assert drawn.sample(1, Words([*beyond, *rest_words(1000.0, 0)[1:]])).tolist() == [0]


# ---- what is drawn


@pytest.mark.parametrize(
    ("std", "draws", "digest"),
    [
        (1.0, [0, 0, 0, 1, -1, 1], "0d4bb31c57475cdd"),
        (372.5, [127, 154, 110, -373, -104, -670], "171255af3e21c8b2"),
        (4e4, [7403, 10354, 6978, -33767, -4970, -62530], "1ba1576b418c4e16"),
        (3e5, [63333, 84256, 57131, -261627, -44354, -477905], "46c8f2d3f2e4c520"),
        (1e7, [1948517, 2635040, 1846059, -8556027, -1369410, -15772369], "f9daf68bc64a7150"),
    ],
)
def test_known_answers(std: float, draws: list[int], digest: str) -> None:
    """The first draws of a fixed seed, and SHA-256 of three million: some are from the rest, all but at s = 1."""
    found = sampler(std).sample(3_000_000, seeded(13))
    assert found[:6].tolist() == draws
    assert hashlib.sha256(found.astype("<i4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("std", "seed"), [(1.0, 1), (1.9, 2), (30.0, 3)])
def test_every_value_is_as_frequent_as_it_should_be(std: float, seed: int) -> None:
    """Chi-square against the exact law, value by value; false alarm 1e-6 a case."""
    edge = round(14 * std)
    law = np.array([float(rounded_mass(k, Fraction(std) ** 2, 50)) for k in range(edge + 1)])
    drawn = sampler(std).sample(2_000_000, seeded(seed))
    assert chi_square(drawn, np.concatenate((law[:0:-1], law)), -edge) > 1e-6


@pytest.mark.parametrize(("std", "seed"), [(372.5, 4), (1e3, 5), (3e5, 6), (1e7, 7)])
def test_wide_noise_is_gaussian_in_the_large_and_has_no_grid_in_the_small(std: float, seed: int) -> None:
    """Chi-square of 801 bins and of the residues modulo g, 2g and 3 (uniform to 1e-9); false alarm 4e-6 a case."""
    n = 2_000_000
    drawn = sampler(std).sample(n, seeded(seed))
    ends, law = normal_bins(std, 0.01)
    found = np.bincount(np.searchsorted(ends, drawn), minlength=len(law))
    assert stats.chisquare(found, law * n).pvalue > 1e-6
    for period in (1 << mixture(std).bits, 2 << mixture(std).bits, 3):
        classes = min(period, 4096)
        found = np.bincount((drawn % period) * classes // period, minlength=classes)
        assert stats.chisquare(found).pvalue > 1e-6


@pytest.mark.parametrize(("std", "seed"), [(1.0, 8), (3e5, 9)])
def test_tails_are_as_heavy_as_they_should_be(std: float, seed: int) -> None:
    """Counts beyond 3, 4 and 4.5 standard deviations on either side: binomial tests, false alarm 1e-6 a case."""
    n = 4_000_000
    drawn = sampler(std).sample(n, seeded(seed))
    for z in (3.0, 4.0, 4.5):
        edge = math.ceil(z * std)
        chance = float(stats.norm.sf((edge - 0.5) / std))
        for beyond in (np.count_nonzero(drawn >= edge), np.count_nonzero(drawn <= -edge)):
            assert stats.binomtest(int(beyond), n, chance).pvalue > 1e-6 / 6


def test_the_rest_is_drawn_from_its_own_law() -> None:
    """Chi-square of 2,000 draws of p − f alone, in 60 bins; false alarm 1e-6."""
    held, drawn, generator = mixture(373.0), sampler(373.0), seeded(10)
    left = np.array([held.rest(k) / HEIGHT for k in range(held.largest + 1)])
    signed = np.concatenate((left[:0:-1], left))
    bins = np.minimum((np.cumsum(signed) / signed.sum() * 60).astype(np.int64), 59)
    expected = np.bincount(bins, signed / signed.sum())
    n = 2_000
    values = np.array([drawn._rest(generator) for _ in range(n)])
    found = np.bincount(bins[values + held.largest], minlength=len(expected))
    assert len(expected) == 60
    assert stats.chisquare(found, expected * n).pvalue > 1e-6


@pytest.mark.parametrize(("std", "seed"), [(1.0, 11), (3e5, 12)])
def test_moments(std: float, seed: int) -> None:
    """Mean 0, variance s² + 1/12, no correlation of neighbours; 5 standard errors each (5.7e-7)."""
    n = 2_000_000
    x = sampler(std).sample(n, seeded(seed)).astype(np.float64)
    deviation = math.sqrt(std**2 + 1 / 12)
    assert abs(x.mean()) < 5 * deviation / math.sqrt(n)
    assert abs(x.var() / deviation**2 - 1) < 5 * math.sqrt(2 / n)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(x[:-BLOCK], x[BLOCK:])[0, 1]) < 5 / math.sqrt(n - BLOCK)


# ---- of what draws depend


def test_draws_depend_on_the_generator_alone() -> None:
    """Not on the number of threads, nor on what else the sampler draws at the same time."""
    drawn = RoundedGaussianSampler(1e4)
    n = 5 * BLOCK + 77

    def draw(seed: int) -> npt.NDArray[np.int32]:
        return drawn.sample(n, seeded(seed))

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [draw(seed) for seed in range(4)]
        torch.set_num_threads(3)
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(draw, range(4)))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(alone[0], alone[1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_noise_is_added_to_what_is_there(dtype: torch.dtype) -> None:
    drawn = sampler(3e5)
    start = torch.arange(BLOCK + 5) - 70
    total = start.to(dtype, copy=True).reshape(-1, 1)
    assert drawn.add_(total, seeded(1)) is total
    noise = torch.from_numpy(drawn.sample(BLOCK + 5, seeded(1)))
    assert torch.equal(total.reshape(-1), (start + noise).to(dtype))


def test_a_float32_sum_beyond_its_whole_numbers_is_the_exact_sum_rounded() -> None:
    start = torch.full((10_000,), 2**25 + 4, dtype=torch.int64)
    noise = torch.from_numpy(sampler(1e3).sample(10_000, seeded(2)))
    total = sampler(1e3).add_(start.to(torch.float32), seeded(2))
    assert torch.equal(total, (start + noise).to(torch.float32))


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    generator = seeded(1)
    assert len(sampler(1.0).sample(0, generator)) == 0
    assert sampler(1.0).add_(torch.empty(0), generator).numel() == 0
    assert generator.position == 0


# ---- below one: a finer table, rounded once more


@pytest.mark.parametrize(
    "std", [Fraction(1, 28) + Fraction(1, 1000), Fraction(0.1), Fraction(1, 3), Fraction(0.99)]
)
def test_a_finer_law_rounded_once_more_is_the_law(std: Fraction) -> None:
    """At 80 digits: the parts that a whole number is made of have its mass together."""
    made = sampler(std)
    parts = made._parts
    assert parts % 2 == 1
    assert LEAST_STD <= std * parts <= 3 * LEAST_STD
    finer = np.arange(-5 * parts, 5 * parts + 1)
    whole = (finer + parts // 2) // parts
    with mpmath.workdps(80):
        for k in range(-4, 5):
            inside = mpmath.fsum(
                mpmath.mpf(str(rounded_mass(int(j), (std * parts) ** 2, 90))) for j in finer[whole == k]
            )
            assert inside == pytest.approx(independent_mass(k, std), rel=1e-75, abs=0)


@pytest.mark.parametrize(("std", "seed"), [(0.13, 21), (0.2, 22), (0.5, 23), (0.99, 24)])
def test_small_noise_is_as_frequent_as_it_should_be(std: float, seed: int) -> None:
    """Chi-square against the exact law, value by value; false alarm 1e-6 a case."""
    law = [float(independent_mass(k, Fraction(std))) for k in range(-14, 15)]
    drawn = sampler(std).sample(2_000_000, seeded(seed))
    assert drawn.any()
    assert chi_square(drawn, np.array(law), -14) > 1e-6
    total = sampler(std).add_(torch.full((2_000_000,), 7), seeded(seed))
    assert np.array_equal(total.numpy() - 7, drawn)


@pytest.mark.parametrize("std", [0.0, 1e-9, 1 / 28])
def test_noise_that_never_reaches_one_half_draws_nothing(std: float) -> None:
    generator = seeded(1)
    assert not sampler(std).sample(1000, generator).any()
    assert generator.position == 0
    with mpmath.workdps(80):
        assert mpmath.erfc(mpmath.mpf(14) / mpmath.sqrt(2)) < TAIL_MASS


# ---- refusals


@pytest.mark.parametrize("std", [-1.0, -1e-300, 1.1e7, math.nan, math.inf])
def test_standard_deviations_out_of_range_are_refused(std: float) -> None:
    with pytest.raises(
        UsageError, match=r"standard deviation of .* must lie between 0 and 10000000"
    ) as refusal:
        RoundedGaussianSampler(std)
    assert "\n" not in str(refusal.value)


def test_what_cannot_hold_the_noise_is_refused() -> None:
    for total in (
        torch.zeros(4, dtype=torch.float16),
        torch.zeros(4, 4).t()[:, 1:],
        torch.zeros(4, device="meta"),
    ):
        with pytest.raises(UsageError, match="needs a contiguous"):
            sampler(1.0).add_(total, seeded(1))
    with pytest.raises(UsageError, match="float32 is exact below 16777216; add it to a float64"):
        sampler(1.2e6).add_(torch.zeros(4), seeded(1))
    with pytest.raises(UsageError, match="must not be negative"):
        sampler(1.0).sample(-1, seeded(1))
