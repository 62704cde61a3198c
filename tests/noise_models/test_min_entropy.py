"""SP 800-90B's estimators: against the standard's examples, NIST's own program, and closed forms."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise_models.errors import UsageError
from noise_models.health import min_entropy
from noise_models.health.min_entropy import (
    LEAST_SAMPLES,
    assess,
    binary_expansion,
    collision,
    compression,
    markov,
    most_common_value,
    tuple_estimates,
)
from noise_models.randomness.generator import NoiseGenerator


def test_most_common_value_example_of_the_standard() -> None:
    # SP 800-90B, 6.3.1: 8 of 20 samples, p_u = 0.6895.
    samples = np.array([0, 1, 1, 2, 0, 1, 2, 2, 0, 1, 0, 1, 1, 0, 2, 2, 1, 0, 2, 1])
    assert most_common_value(samples) == pytest.approx(0.5363, abs=1e-4)


def test_collision_and_markov_examples_of_the_standard() -> None:
    # SP 800-90B, 6.3.2 (p = 0.7329) and 6.3.3; the standard rounds on the way.
    bits = np.array([int(bit) for bit in "1000111001010101110011000111001010101110"])
    assert collision(bits) == pytest.approx(0.4483, abs=1e-4)
    assert markov(bits) == pytest.approx(0.761, abs=5e-4)


def sequence(name: str) -> np.ndarray:
    words = NoiseGenerator.seeded(90, name).uint64(20_000)
    high = words >> np.uint64(61)
    made = {
        "bits": high >> np.uint64(2),
        "biased bits": high < 2,
        "sticky bits": np.cumsum(high == 0) % 2,
        "letters": high + (words >> np.uint64(20)) % np.uint64(8),
    }
    return made[name].astype(np.int64)


# What NIST's reference implementation (usnistgov/SP800-90B_EntropyAssessment, C++) answers to these sequences.
REFERENCE = {
    "bits": (0.972259495475295, 0.89124502951561, 0.945621756985858, 0.771602431202443, 0.988379111937093,
             0.629579539642136),
    "biased bits": (0.397310806042661, 0.395355646575856, 0.662188501601221, 0.383653826181004,
                    0.410989611064068, 0.239185419935747),
    "sticky bits": (0.96266875833046, 0.200659597208002, 0.325185506030561, 0.0915480578843107,
                    0.196268393517396, 0.125656218054479),
    "letters": (2.91423050325369, 2.84540172928564, 3.3663783485657),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFERENCE))
def test_against_the_reference_implementation(name: str) -> None:
    samples = sequence(name)
    tuples = tuple_estimates(samples)
    found = [most_common_value(samples), tuples["t-tuple"], tuples["longest repeated substring"]]
    if len(REFERENCE[name]) > 3:
        found += [collision(samples), markov(samples), compression(samples)]
    assert found == pytest.approx(REFERENCE[name], abs=1e-10)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.integers(2, 6))
def test_tuples_against_counting_them_all(samples: list[int], often: int) -> None:
    n = len(samples)
    counts = [Counter(tuple(samples[i : i + w]) for i in range(n - w + 1)) for w in range(1, n)]
    most = [max(counter.values()) for counter in counts]
    first = next((w for w, top in enumerate(most) if top < often), len(most))
    frequent = [(top / (n - w)) ** (1 / (w + 1)) for w, top in enumerate(most[:first])]
    repeated = [
        (sum(math.comb(c, 2) for c in counter.values()) / math.comb(n - w, 2)) ** (1 / (w + 1))
        for w, counter in enumerate(counts)
        if w >= first and max(counter.values()) > 1
    ]
    expected = {
        name: min_entropy._bits_of(max(p), n)
        for name, p in (("t-tuple", frequent), ("longest repeated substring", repeated))
        if p
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(min_entropy, "_OFTEN", often)
        assert tuple_estimates(np.array(samples)) == pytest.approx(expected)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_independent_coins_in_closed_form(p: float) -> None:
    # -log2 of the likelier side; each bound is one-sided at 99 %, so that 6 standard deviations of each estimate
    # around its own upper bound hold with a false alarm below 1e-8.
    n = 400_000
    found = NoiseGenerator.seeded(3, f"coins {p}").bernoulli(n, p)
    bits = np.zeros(n, dtype=np.int64)
    bits[found] = 1
    true = -math.log2(p)
    for estimate, loss in ((most_common_value, 0.01), (collision, 0.15), (markov, 0.01), (compression, 0.35)):
        answer = estimate(bits)
        assert true - loss - 0.02 <= answer <= true + 0.01, estimate.__name__
    assert tuple_estimates(bits)["t-tuple"] <= true + 0.01


def test_binary_expansion() -> None:
    assert binary_expansion(np.array([5, 2]), 3).tolist() == [1, 0, 1, 0, 1, 0]


def normal_codes(sigma: float) -> np.ndarray:
    from torch import empty

    return np.rint(NoiseGenerator.seeded(4, "codes").normal_(empty(LEAST_SAMPLES)).numpy() * sigma).astype(
        np.int16
    )


def test_assessment_of_camera_like_samples() -> None:
    # The true min-entropy of a rounded N(0, 4²) is -log2 P(0) = 3.33 bits; bounds only go down from there.
    found = assess(normal_codes(4.0))
    true = -math.log2(math.erf(0.5 / 4 / math.sqrt(2)))
    assert found.bits == min(found.estimates.values())
    assert 0.8 < found.bits <= true
    assert found.estimates["most common value"] == pytest.approx(true, abs=0.02)
    assert found.samples == LEAST_SAMPLES
    assert set(found.estimates) == {
        "most common value", "t-tuple", "longest repeated substring", "collision", "markov", "compression",
        "most common bit", "t-tuple of bits", "longest repeated substring of bits",
    }  # fmt: skip


def constant() -> np.ndarray:
    return np.full(LEAST_SAMPLES, 7)


def alternating() -> np.ndarray:
    return np.arange(LEAST_SAMPLES) % 2


def copied() -> np.ndarray:
    return np.resize(normal_codes(4.0)[:300_000], LEAST_SAMPLES)


def counting() -> np.ndarray:
    return np.arange(LEAST_SAMPLES) % 256


@pytest.mark.parametrize("source", [constant, alternating, copied, counting])
def test_predictable_sources_have_no_entropy(source: Any) -> None:
    assert assess(source()).bits == 0.0


def test_memory_is_found() -> None:
    # Each sample repeats the one before with probability 3/4: at most -log2(3/4) bits each, though all values
    # are equally frequent.
    fresh = NoiseGenerator.seeded(5, "fresh").uint64(LEAST_SAMPLES)
    new = (fresh >> np.uint64(62)) == 0
    new[0] = True
    last = np.maximum.accumulate(np.where(new, np.arange(LEAST_SAMPLES), 0))
    samples = (fresh % np.uint64(4)).astype(np.int64)[last]
    found = assess(samples)
    assert found.estimates["most common value"] > 1.9
    assert found.bits < -math.log2(0.75)


@pytest.mark.parametrize("shape", [(LEAST_SAMPLES - 1,), (2, LEAST_SAMPLES)])
def test_too_few_samples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="1,000,000") as caught:
        assess(np.zeros(shape, dtype=np.int64))
    assert "\n" not in str(caught.value)
