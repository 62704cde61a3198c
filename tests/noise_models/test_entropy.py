"""Continuous tests and conditioner of SP 800-90B."""

from __future__ import annotations

import hashlib
import hmac
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noise_models.errors import DeviceError, HealthError, UsageError
from noise_models.health.entropy import (
    ASSESSED_BITS,
    FALSE_ALARM,
    KEY_BITS,
    LEAST_MIN_ENTROPY,
    WINDOW,
    ContinuousTests,
    conditioned_key,
    differences,
    longest_run,
    most_copies,
    proportion_cutoff,
    repetition_cutoff,
)
from noise_models.randomness.generator import NoiseGenerator


def test_repetition_cutoff_of_the_standard() -> None:
    # SP 800-90B, 4.4.1: "for alpha = 2^-20, an entropy source with H = 2.0 bits per sample would have a
    # repetition count test cutoff value of 1 + ceil(20/2.0) = 11".
    assert repetition_cutoff(2.0, 2.0**-20) == 11


@pytest.mark.parametrize(("bits", "cutoff"), [(0.5, 410), (1.0, 311), (2.0, 177), (4.0, 62), (8.0, 13)])
def test_proportion_cutoffs_of_the_standard(bits: float, cutoff: int) -> None:
    # SP 800-90B, 4.4.2: windows of 512 samples at 2^-20.
    assert proportion_cutoff(bits, 512, 2.0**-20) == cutoff
    assert (
        stats.binom.sf(cutoff - 1, 512, 2.0**-bits) <= 2.0**-20 < stats.binom.sf(cutoff - 2, 512, 2.0**-bits)
    )


def test_proportion_cutoff_of_bits() -> None:
    assert proportion_cutoff(1.0, 1024, 2.0**-20) == 589


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 1), max_size=60), st.integers(1, 9))
def test_statistics_against_plain_loops(values: list[int], window: int) -> None:
    run, longest = 0, 0
    for i, value in enumerate(values):
        run = run + 1 if i and value == values[i - 1] else 1
        longest = max(longest, run)
    assert longest_run(np.array(values, dtype=np.int64)) == longest
    starts = range(0, len(values) - window + 1, window)
    copies = [values[s : s + window].count(values[s]) for s in starts]
    assert most_copies(np.array(values, dtype=np.int64), window) == max(copies, default=0)


def letters(bits: int, n: int, name: str = "letters") -> np.ndarray:
    """Independent, uniform: exactly `bits` bits of min-entropy each."""
    return (NoiseGenerator.seeded(6, name).uint64(n) >> np.uint64(64 - bits)).astype(np.int64)


def test_false_alarms_at_a_loosened_level(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3000 healthy sequences at a rate of about 2 % each; binomial bounds at 1e-6.
    loose, n, trials = 2.0**-14, 4 * WINDOW, 3000
    monkeypatch.setattr("noise_models.health.entropy.FALSE_ALARM", loose)
    run, copies = repetition_cutoff(2.0, loose), proportion_cutoff(2.0, WINDOW, loose)
    samples = letters(2, n * trials).reshape(trials, n)
    runs = sum(longest_run(row) >= run for row in samples)
    windows = sum(most_copies(row, WINDOW) >= copies for row in samples)
    for failures, places in ((runs, n), (windows, n // WINDOW)):
        assert failures <= stats.binom.isf(1e-6, trials, min(1.0, loose * places))
    assert runs > 0  # a uniform source meets the repetition test's bound almost exactly
    assert ContinuousTests(2.0).false_alarm(n) == loose * (n + n / WINDOW)


def test_healthy_samples_pass_and_a_pair_of_frames_alarms_below_1e_6() -> None:
    tests = ContinuousTests(2.0)
    assert tests.check(letters(2, 100_000))["repetition_count"] < tests.repetition == 21
    assert tests.false_alarm(500_000) < 1e-6
    assert 2.0**-40 <= FALSE_ALARM <= 2.0**-20  # what 4.4 allows


def test_a_stuck_stretch_is_found() -> None:
    samples = letters(2, 100_000)
    samples[5000:5021] = 3
    with pytest.raises(HealthError) as caught:
        ContinuousTests(2.0).check(samples)
    assert caught.value.finding["test"] == "entropy repetition count"
    assert caught.value.finding["value"] >= 21 == caught.value.finding["limit"]
    assert "\n" not in str(caught.value)


def test_a_loss_of_entropy_without_runs_is_found() -> None:
    # Two values that take turns: never repeated, half of every window.
    samples = letters(4, 100_000)
    samples[2 * WINDOW : 3 * WINDOW] = np.arange(WINDOW) % 2
    with pytest.raises(HealthError) as caught:
        ContinuousTests(4.0).check(samples)
    assert caught.value.finding["test"] == "entropy adaptive proportion"
    assert caught.value.finding["value"] == WINDOW // 2


@pytest.mark.parametrize("bits", [0.0, LEAST_MIN_ENTROPY / 2, float("nan")])
def test_too_little_entropy_is_refused(bits: float) -> None:
    with pytest.raises(DeviceError, match="min-entropy") as caught:
        ContinuousTests(bits)
    assert "\n" not in str(caught.value)


def test_the_least_entropy_can_still_fail_both_tests() -> None:
    tests = ContinuousTests(LEAST_MIN_ENTROPY)
    assert tests.proportion <= WINDOW
    assert tests.repetition < 1000


def test_differences_cancel_the_fixed_pattern() -> None:
    pattern = np.arange(6, dtype=np.uint8) * 40
    noise = letters(2, 24).reshape(4, 6).astype(np.uint8)
    frames = pattern + noise
    expected = (noise[1::2].astype(int) - noise[::2].astype(int)).ravel()
    assert differences(frames).tolist() == expected.tolist()
    with pytest.raises(UsageError, match="even"):
        differences(frames[:3])


def test_the_key_is_the_hmac_of_both_sources() -> None:
    frames = np.array([[1, 2], [300, 4]], dtype=np.uint16)
    message = len(b"optical-dfa/device-entropy/p").to_bytes(8, "big") + b"optical-dfa/device-entropy/p"
    message += b"".join(int(code).to_bytes(4, "little") for code in frames.ravel())
    salt = bytes(range(32))
    key = conditioned_key(frames, ASSESSED_BITS, salt, "p")
    assert key == hmac.new(salt, message, hashlib.sha256).digest()
    assert len(key) * 8 == KEY_BITS
    others = [
        conditioned_key(frames + 1, ASSESSED_BITS, salt, "p"),
        conditioned_key(frames, ASSESSED_BITS, bytes(32), "p"),
        conditioned_key(frames, ASSESSED_BITS, salt, "q"),
    ]
    assert len({key, *others}) == 4


@pytest.mark.parametrize("bits", [KEY_BITS, ASSESSED_BITS - 1, 0.0, math.nan])
def test_a_key_needs_a_margin_of_entropy(bits: float) -> None:
    assert ASSESSED_BITS >= KEY_BITS + 64  # SP 800-90B, 3.1.5.1.2
    with pytest.raises(DeviceError, match="1024"):
        conditioned_key(np.zeros(9, dtype=np.int32), bits, bytes(32), "p")
