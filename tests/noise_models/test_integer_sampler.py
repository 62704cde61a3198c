"""Integer noise: the table holds the stated law exactly, and a draw reads the table exactly."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from told import Words

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.integer_sampler import (
    TABLE_MASS,
    SkellamSampler,
    SymmetricSampler,
    alias,
    cells_for,
    largest_magnitude,
    late_bits_below,
    masses,
    skellam_weights,
)

# ---- the law in the table


@pytest.mark.parametrize(
    "mean", [Fraction(1, 50), Fraction(1, 2), Fraction(7), Fraction(12345, 7), Fraction(10) ** 4]
)
def test_the_table_is_the_skellam_law_to_120_bits(mean: Fraction) -> None:
    """Against mpmath's Bessel function at 80 digits: total variation of every magnitude together."""
    held = masses(skellam_weights(mean))
    whole = sum(held)
    assert whole & (whole - 1) == 0  # a power of two: the cells are filled exactly
    step = max(1, len(held) // 20)  # the largest tables are looked at here and there
    with mpmath.workdps(80):
        difference = mpmath.mpf(0)
        for k in range(0, len(held), step):
            exact = mpmath.besseli(k, 2 * mpmath.mpf(mean.numerator) / mean.denominator) * mpmath.exp(
                -2 * mpmath.mpf(mean.numerator) / mean.denominator
            )
            exact *= 2 if k else 1
            difference += abs(mpmath.mpf(held[k]) / whole - exact)
        assert difference * step < TABLE_MASS


@pytest.mark.parametrize("mean", [0.01, 0.5, 40.0, 1e4])
@pytest.mark.parametrize("bits", [1, 20, 60])
def test_the_tail_beyond_the_table_is_as_small_as_stated(mean: float, bits: int) -> None:
    k = largest_magnitude(mean, bits)
    assert 2 * stats.skellam(mean, mean).sf(k) <= 2.0**-bits * (1 + 1e-6)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=70).filter(lambda weights: sum(weights) > 0))
def test_cells_hold_every_probability_exactly(weights: list[int]) -> None:
    """Read back from the cells, each magnitude has the mass it was given, to the last bit."""
    cells, given = cells_for(weights), masses(weights)
    thresholds, others = alias(given, cells)
    held = [0] * cells
    for cell, (threshold, other) in enumerate(zip(thresholds, others, strict=True)):
        assert 0 <= threshold <= 1 << 160
        held[cell] += threshold
        held[other] += (1 << 160) - threshold
    assert held == [*given, *[0] * (cells - len(weights))]
    total = sum(weights)
    assert all(
        abs(Fraction(mass, cells << 160) - Fraction(weight, total)) < Fraction(len(weights), cells << 160)
        for mass, weight in zip(given, weights, strict=True)
    )


# ---- how a word is read


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=9).filter(lambda weights: sum(weights) > 0), st.data()
)
@settings(max_examples=60)
def test_a_word_is_read_as_cell_sign_and_place(weights: list[int], data: st.DataObject) -> None:
    """Every comparison, the late one included, is that of whole numbers: word and threshold, 160 bits of either."""
    sampler = SymmetricSampler(weights)
    bits = max(1, (len(weights) - 1).bit_length())
    thresholds, others = alias(masses(weights), 1 << bits)
    cell = data.draw(st.integers(0, (1 << bits) - 1))
    near = data.draw(st.sampled_from([-1, 0, 1]))
    place = min(max(thresholds[cell] + near, 0), (1 << 160) - 1)
    minus = data.draw(st.integers(0, 1))
    first, late = place >> 128, place & ((1 << 128) - 1)
    word = (cell << (64 - bits)) | (minus << (63 - bits)) | (first << (31 - bits))
    word |= data.draw(st.integers(0, (1 << (31 - bits)) - 1))  # bits that are not looked at
    drawn = int(sampler.sample(1, Words([word, late >> 64, late & (2**64 - 1)]))[0])
    magnitude = cell if place < thresholds[cell] else others[cell]
    assert drawn == (-magnitude if minus else magnitude)


def test_a_word_on_the_boundary_takes_two_more_and_any_other_takes_none() -> None:
    sampler = SymmetricSampler([1, 2])  # cells of 1/2: the first holds 1/3 and 1/6 of magnitude 1
    boundary = ((1 << 160) * 2 // 3) >> 128
    words = Words([boundary << 30, 0, 0])
    assert sampler.sample(1, words)[0] == 0
    assert len(words.told) == 0
    words = Words([boundary << 30, 2**64 - 1, 0])
    assert sampler.sample(1, words)[0] == 1
    words = Words([(boundary + 1) << 30])
    assert sampler.sample(1, words)[0] == 1


@given(st.integers(1, 200), st.data())
def test_late_bits_are_the_first_of_their_words_and_compared_as_one_number(
    bits: int, data: st.DataObject
) -> None:
    """At the limit and beside it, whatever the bits that are left over."""
    limit = data.draw(st.integers(0, (1 << bits) - 1))
    drawn = min(max(limit + data.draw(st.sampled_from([-1, 0, 1])), 0), (1 << bits) - 1)
    words = -(-bits // 64)
    spare = 64 * words - bits
    told = drawn << spare | data.draw(st.integers(0, (1 << spare) - 1))
    given_words = Words([told >> 64 * place & (2**64 - 1) for place in reversed(range(words))])
    assert late_bits_below(limit, bits, given_words) == (drawn < limit)
    assert len(given_words.told) == 0


# ---- what is drawn


@pytest.mark.parametrize(("mean", "seed"), [(0.3, 1), (2.0, 2), (50.0, 3)])
def test_draws_fit_the_law(mean: float, seed: int) -> None:
    """Chi-square against scipy's Skellam; false alarm 1e-6 a case."""
    n = 1_000_000
    drawn = SkellamSampler(mean).sample(n, NoiseGenerator.seeded(seed, "integers"))
    law = stats.skellam(mean, mean)
    edge = int(law.isf(20 / n))
    inner = np.arange(-edge, edge + 1)
    expected = np.concatenate(([law.cdf(-edge - 1)], law.pmf(inner), [law.sf(edge)])) * n
    found = np.bincount(np.clip(drawn, -edge - 1, edge + 1) + edge + 1, minlength=len(expected))
    assert stats.chisquare(found, expected * (found.sum() / expected.sum())).pvalue > 1e-6


@pytest.mark.parametrize(("deviation", "seed"), [(1.5, 4), (300.0, 5)])
def test_moments(deviation: float, seed: int) -> None:
    """Mean 0, variance 2 mu, excess kurtosis 1 / (2 mu); 5 standard errors each (5.7e-7)."""
    n = 1_000_000
    x = SkellamSampler(deviation**2 / 2).sample(n, NoiseGenerator.seeded(seed, "integers")).astype(np.float64)
    kurtosis = 3 + deviation**-2
    assert abs(x.mean()) < 5 * deviation / math.sqrt(n)
    assert abs(x.var() / deviation**2 - 1) < 5 * math.sqrt((kurtosis - 1) / n)
    # the standard error of a fourth moment, from the normal's eighth; the law is close to one
    assert abs((x**4).mean() / deviation**4 - kurtosis) < 5 * math.sqrt(130 / n)


def test_draws_depend_on_the_generator_alone() -> None:
    sampler = SkellamSampler(9.0)
    first, again, other = (
        sampler.sample(70_000, NoiseGenerator.seeded(seed, "integers")) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 5 / math.sqrt(len(first))


# ---- refusals


@pytest.mark.parametrize("mean", [0.0, -1.0, math.nan, math.inf])
def test_means_out_of_range_are_refused(mean: float) -> None:
    with pytest.raises(UsageError, match="must lie between"):
        SkellamSampler(mean)


def test_a_table_too_large_and_other_wrong_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="coarser grid"):
        skellam_weights(Fraction(10) ** 13)
    for weights in ([], [0, 0], [1, -1]):
        with pytest.raises(UsageError, match="whole numbers"):
            SymmetricSampler(weights)
    with pytest.raises(UsageError, match="must not be negative"):
        SkellamSampler(1.0).sample(-1, NoiseGenerator.seeded(1, "integers"))
    assert len(SkellamSampler(1.0).sample(0, NoiseGenerator.seeded(1, "integers"))) == 0
