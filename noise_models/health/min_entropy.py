"""Min-entropy of a noise source from its samples, by the estimators of NIST SP 800-90B (2018), section 6.3.

The standard's non-IID track without its four predictors (6.3.7 to 6.3.10, minutes a megabyte): most common
value, t-tuple and longest repeated substring on the samples as they are and on their binary expansion, and the
collision, Markov and compression estimates, which the standard defines for bits, on the latter. Every
probability is taken at its upper 99 % confidence bound, and the smallest estimate counts (3.1.3). No estimator
proves unpredictability: it finds what is predictable in the ways it knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from noise_models.errors import UsageError

LEAST_SAMPLES: Final = 1_000_000  # 3.1.1: an assessment needs as many consecutive samples
_MOST_BITS: Final = 1 << 20  # of the binary expansion that are looked at
_Z: Final = 2.5758293035489008  # 99 %
_OFTEN: Final = 35  # 6.3.5: occurrences of a tuple that make its frequency an estimate
_LONGEST: Final = 512  # a repetition as long counts as a copy of earlier samples: no entropy at all
_LOOK_AHEAD: Final = 32  # length from which such a copy is looked for, by doubling
# 6.3.4: bits a word, words that fill its dictionary, and its constant c.
_WORD: Final = 6
_WARM_UP: Final = 1000
_SPREAD: Final = 0.5907

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MinEntropy:
    """An assessment.

    Attributes:
        bits: min-entropy of one sample, the smallest of `estimates`.
        estimates: bits a sample by estimator; those of the binary expansion are multiplied by its width.
        samples: how many were looked at.
        alphabet: how many different ones there were.
    """

    bits: float
    estimates: dict[str, float]
    samples: int
    alphabet: int


def assess(samples: npt.NDArray[Any]) -> MinEntropy:
    """Min-entropy of one sample of a sequence, in bits.

    Args:
        samples: shape (n,), integers, in the order they were taken.

    Raises:
        UsageError: fewer than LEAST_SAMPLES samples.
    """
    if samples.ndim != 1 or len(samples) < LEAST_SAMPLES:
        raise UsageError(
            f"min-entropy is asked of samples of shape {samples.shape}; give one row of at least {LEAST_SAMPLES:,}"
        )
    values, codes = np.unique(samples, return_inverse=True)
    codes = codes.astype(np.int64)
    estimates = {"most common value": most_common_value(codes)}
    if estimates["most common value"] > 0:  # a constant source has nothing more to say
        estimates |= tuple_estimates(codes)
        width = max(1, math.ceil(math.log2(len(values))))
        bits = binary_expansion(codes, width)[:_MOST_BITS]
        per_bit = {
            "collision": collision(bits),
            "markov": markov(bits),
            "compression": compression(bits),
        }
        if width > 1:
            per_bit |= {"most common bit": most_common_value(bits)}
            per_bit |= {f"{name} of bits": value for name, value in tuple_estimates(bits).items()}
        estimates |= {name: width * value for name, value in per_bit.items()}
    return MinEntropy(max(0.0, min(estimates.values())), estimates, len(samples), len(values))


def binary_expansion(codes: Codes, width: int) -> Codes:
    """The `width` low bits of every code, most significant first, shape (n · width,)."""
    return ((codes[:, None] >> np.arange(width - 1, -1, -1)) & 1).reshape(-1)


def _bits_of(p: float, n: int) -> float:
    """-log2 of the upper 99 % confidence bound of a probability estimated from `n` samples."""
    return -math.log2(min(1.0, p + _Z * math.sqrt(max(0.0, p * (1 - p)) / (n - 1)))) + 0.0


def most_common_value(codes: Codes) -> float:
    """6.3.1: from the share of the most frequent sample; bits a sample."""
    return _bits_of(float(np.bincount(codes).max()) / len(codes), len(codes))


def collision(bits: Codes) -> float:
    """6.3.2: from the mean time until a bit value comes for the second time, in its closed form; bits a bit."""
    repeats = (bits[:-1] == bits[1:]).tolist()
    place, twos, threes, last = 0, 0, 0, len(bits) - 1
    while place < last:
        if repeats[place]:
            twos += 1
            place += 2
        elif place < last - 1:
            threes += 1
            place += 3
        else:
            break
    count = twos + threes
    mean = (2 * twos + 3 * threes) / count
    spread = math.sqrt(max(0.0, 4 * twos + 9 * threes - count * mean**2) / (count - 1))
    lower = max(2.0, mean - _Z * spread / math.sqrt(count))
    # The standard's equation for p reduces to lower = 2 + 2 p (1 - p).
    return -math.log2(0.5 + math.sqrt(1.25 - 0.5 * lower)) + 0.0 if lower < 2.5 else 1.0


def markov(bits: Codes) -> float:
    """6.3.3: from the likeliest 128 bits of a first-order chain; bits a bit."""
    pairs = np.bincount(2 * bits[:-1] + bits[1:], minlength=4).reshape(2, 2)
    ones = float(bits.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        start = np.log2([1 - ones, ones])
        step = np.log2(pairs / pairs.sum(axis=1, keepdims=True))
    step = np.nan_to_num(step, nan=-np.inf, neginf=-np.inf)
    chains = [
        start[a] + sum(times * step[i, j] for i, j, times in moves if times)
        for a in (0, 1)
        for moves in (
            ((a, a, 127),),
            ((a, 1 - a, 64), (1 - a, a, 63)),
            ((a, 1 - a, 1), (1 - a, 1 - a, 126)),
        )
    ]
    return min(1.0, -float(max(chains)) / 128) + 0.0


def compression(bits: Codes) -> float:
    """6.3.4: from the mean logarithm of how long ago each 6-bit word came last (Maurer); bits a bit."""
    count = len(bits) // _WORD
    words = bits[: count * _WORD].reshape(count, _WORD) @ (1 << np.arange(_WORD - 1, -1, -1))
    order = np.argsort(words, kind="stable")
    gaps = np.arange(1, count + 1)  # a word that is new counts from the beginning
    again = words[order[1:]] == words[order[:-1]]
    gaps[order[1:][again]] = np.diff(order)[again]
    logs = np.log2(gaps[_WARM_UP:])
    tested = len(logs)
    if tested < 2:
        return 1.0
    mean = float(logs.mean())
    spread = _SPREAD * math.sqrt(max(0.0, float(np.square(logs).sum()) / (tested - 1) - mean**2))
    lower = mean - _Z * spread / math.sqrt(tested)

    ages = np.arange(1, count + 1)
    weights = np.log2(ages)

    def expected(z: float) -> float:
        """G(z): mean log2 age of a word of probability z."""
        powers = np.exp(math.log1p(-z) * (ages - 1)) if z < 1 else (ages == 1).astype(float)
        seen = np.concatenate(([0.0], np.cumsum(weights * powers)[:-1]))
        return float((z**2 * seen + z * weights * powers)[_WARM_UP:].sum()) / tested

    others = 2**_WORD - 1

    def excess(p: float) -> float:
        return expected(p) + others * expected((1 - p) / others) - lower

    least = 2.0**-_WORD
    if excess(least) <= 0:
        return 1.0
    if excess(1.0) >= 0:
        return 0.0
    return -math.log2(brentq(excess, least, 1.0, xtol=1e-12)) / _WORD + 0.0


def tuple_estimates(codes: Codes) -> dict[str, float]:
    """6.3.5 and 6.3.6: t-tuple and longest repeated substring; bits a sample, those that are defined."""
    n = len(codes)
    frequent, repeated = 0.0, 0.0
    often, longest = True, 0
    for length, counts in _repeated_tuples(codes):
        often = often and int(counts.max()) >= _OFTEN
        if often:
            frequent = max(frequent, (int(counts.max()) / (n - length + 1)) ** (1 / length))
        else:
            places = n - length + 1
            pairs = float((counts * (counts - 1)).sum()) / (places * (places - 1))
            repeated = max(repeated, pairs ** (1 / length))
        longest = length
    if longest >= _LONGEST:
        return {"longest repeated substring": 0.0}
    found = {"t-tuple": frequent, "longest repeated substring": repeated}
    return {name: _bits_of(p, n) for name, p in found.items() if p > 0}


def _repeated_tuples(codes: Codes) -> Iterator[tuple[int, Codes]]:
    """(length, counts of those tuples that occur more than once), until there are none, or _LONGEST."""
    n, alphabet = len(codes), int(codes.max()) + 1
    places, tuples, distinct = np.arange(n), codes, alphabet
    for length in range(1, _LONGEST + 1):
        if length > 1:
            places = places[: np.searchsorted(places, n - length, side="right")]
            tuples = tuples[: len(places)] * alphabet + codes[places + length - 1]
            distinct *= alphabet
        if distinct > 4 * n:
            _, tuples, counts = np.unique(tuples, return_inverse=True, return_counts=True)
        else:
            counts = np.bincount(tuples)
        again = counts > 1
        if not again.any():
            return
        yield length, counts[again]
        # Only what occurs twice can occur twice at the next length: keep those, numbered from 0.
        numbers = np.cumsum(again) - 1
        kept = again[tuples]
        places, tuples, distinct = places[kept], numbers[tuples[kept]], int(again.sum())
        if length == _LOOK_AHEAD and _is_copied(places, tuples, n):
            yield _LONGEST, counts[again]
            return


def _is_copied(places: Codes, tuples: Codes, n: int) -> bool:
    """Whether a substring of _LONGEST samples occurs twice, from where those of _LOOK_AHEAD do."""
    length = _LOOK_AHEAD
    while length < _LONGEST and len(places):
        numbers = np.full(n + length, -1)
        numbers[places] = tuples
        following = numbers[places + length]
        places, keys = places[following >= 0], (tuples * n + following)[following >= 0]
        _, tuples, counts = np.unique(keys, return_inverse=True, return_counts=True)
        kept = counts[tuples] > 1
        places, tuples = places[kept], tuples[kept]
        length *= 2
    return len(places) > 0
