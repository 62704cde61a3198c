"""From dark frames to cryptographic keys, by the construction of NIST SP 800-90B (2018).

Noise source: the difference of two consecutive dark frames, pixel by pixel, in which a camera's fixed pattern
(offsets, hot pixels) cancels, so that it is not taken for entropy. Its min-entropy is assessed once
(`noise_models.health.min_entropy`); every pair of frames then passes the standard's two continuous health tests (4.4)
before HMAC-SHA-256, a vetted conditioning component (3.1.5.1.1), turns it into a key. A pair of frames has at
least the min-entropy of its difference: no function has more than its argument.

No law of the noise is assumed. What stays assumed is that the estimators overlook no way of predicting it.
"""

from __future__ import annotations

import hmac
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from noise_models.errors import DeviceError, HealthError, UsageError, apart

KEY_BITS: Final = 256
# 3.1.5.1.2 asks for 64 bits more than come out; this leaves room for an assessment three times too high.
ASSESSED_BITS: Final = 1024
LEAST_MIN_ENTROPY: Final = 0.1  # bits a sample; below, the proportion test could not fail
# A sample of each test; 4.4 allows 2^-20 to 2^-40. Both together stay below 1e-6 on a pair of 500 000 pixels.
FALSE_ALARM: Final = 2.0**-40
WINDOW: Final = 512  # samples of an adaptive proportion test (1024 in the standard for bits)

Samples = npt.NDArray[np.int64]


def differences(frames: npt.NDArray[Any]) -> Samples:
    """Samples of the noise source, shape (pairs · pixels,).

    Args:
        frames: codes of consecutive dark frames, shape (2 · pairs, pixels).

    Raises:
        UsageError: an odd number of frames.
    """
    if frames.ndim != 2 or len(frames) % 2:
        raise UsageError(
            f"entropy is taken from pairs of frames, not from shape {frames.shape}; take an even number of them"
        )
    codes = frames.astype(np.int64)
    return (codes[1::2] - codes[::2]).reshape(-1)


def repetition_cutoff(min_entropy: float, false_alarm: float = FALSE_ALARM) -> int:
    """C of 4.4.1: as many equal samples in a row are a failure, `1 + ceil(-log2(false alarm) / H)`."""
    return 1 + math.ceil(-math.log2(false_alarm) / min_entropy)


def proportion_cutoff(min_entropy: float, window: int, false_alarm: float = FALSE_ALARM) -> int:
    """C of 4.4.2: so often a window's first sample in it is a failure, `1 + critbinom(W, 2^-H, 1 - alarm)`."""
    return 1 + int(binom.isf(false_alarm, window, 2.0**-min_entropy))


@dataclass(frozen=True)
class ContinuousTests:
    """The standard's two continuous tests for a source of `min_entropy` bits a sample.

    Attributes:
        min_entropy: assessed, in bits a sample.
        repetition, proportion: cutoffs.

    Raises:
        DeviceError: so little entropy that no test could tell it from none.
    """

    min_entropy: float

    def __post_init__(self) -> None:
        if not self.min_entropy >= LEAST_MIN_ENTROPY:
            found, least = apart(self.min_entropy, LEAST_MIN_ENTROPY)
            raise DeviceError(
                f"the dark frames have {found} bits of min-entropy a pixel, less than {least}; "
                "raise the analog gain of dark frames, or use --release digital"
            )

    @property
    def repetition(self) -> int:
        return repetition_cutoff(self.min_entropy)

    @property
    def proportion(self) -> int:
        return proportion_cutoff(self.min_entropy, WINDOW)

    def false_alarm(self, samples: int) -> float:
        """Bound on the probability that a healthy source's `samples` samples fail."""
        return FALSE_ALARM * (samples + samples / WINDOW)

    def check(self, samples: Samples) -> dict[str, int]:
        """The two statistics: longest run of equal samples, and most copies of a window's first one.

        Args:
            samples: shape (n,).

        Raises:
            HealthError: one reaches its cutoff.
        """
        run = longest_run(samples)
        copies = most_copies(samples, WINDOW)
        for test, value, limit, places in (
            ("entropy repetition count", run, self.repetition, len(samples)),
            ("entropy adaptive proportion", copies, self.proportion, len(samples) / WINDOW),
        ):
            if value >= limit:
                raise HealthError(
                    f"health test {test!r} failed: {value} equal samples, limit {limit}; check camera and shutter "
                    "(nothing was released)",
                    {"test": test, "value": value, "limit": limit, "false_alarm": FALSE_ALARM * places},
                )
        return {"repetition_count": run, "adaptive_proportion": copies}


def longest_run(samples: Samples) -> int:
    """Length of the longest run of equal samples; 0 of none."""
    if not len(samples):
        return 0
    ends = np.flatnonzero(np.concatenate((samples[1:] != samples[:-1], [True])))
    return int(np.diff(ends, prepend=-1).max())


def most_copies(samples: Samples, window: int) -> int:
    """The largest number of samples in a window of `window` that equal its first; a remainder is not looked at."""
    whole = samples[: len(samples) // window * window].reshape(-1, window)
    return int((whole == whole[:, :1]).sum(axis=1).max(initial=0))


def conditioned_key(frames: npt.NDArray[Any], assessed_bits: float, salt: bytes, purpose: str) -> bytes:
    """A 256-bit key by HMAC-SHA-256 of health-tested dark frames.

    Either input suffices: with ASSESSED_BITS of min-entropy in the frames the standard counts the key as full
    entropy whatever the salt is; with a secret uniform salt HMAC is a pseudo-random function of the frames,
    whatever they are.

    Args:
        frames: raw codes, integers of any shape.
        assessed_bits: their min-entropy altogether.
        salt: 32 bytes of the operating system's entropy (of a seeded generator in a reproducible run).
        purpose: the key's name; two purposes get independent keys.

    Raises:
        DeviceError: fewer than ASSESSED_BITS.
    """
    if not assessed_bits >= ASSESSED_BITS:
        found, needed = apart(assessed_bits, ASSESSED_BITS)
        raise DeviceError(
            f"the dark frames of one key have {found} bits of min-entropy and {needed} are needed; "
            "take more frames, or use --release digital"
        )
    label = f"optical-dfa/device-entropy/{purpose}".encode()
    message = len(label).to_bytes(8, "big") + label + np.ascontiguousarray(frames, dtype="<i4").tobytes()
    return hmac.digest(salt, message, "sha256")
