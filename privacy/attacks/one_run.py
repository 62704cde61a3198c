"""A lower bound on epsilon from ONE run with many canaries (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846).

Each of m canaries is put into the data by its own fair coin. The auditor guesses some of the coins and abstains on the
rest. If the run is (epsilon, delta)-private, the number of right guesses among r is dominated by Bin(r, q),
q = e^eps / (1 + e^eps), up to a term of order m·delta (their theorem 5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from noise_models.errors import UsageError

Array = NDArray[np.float64]
MOST = 64.0  # no number of canaries that fits a memory shows a larger epsilon


def p_value(epsilon: float, *, right: int, guesses: int, canaries: int, delta: float) -> float:
    """Largest probability with which an (epsilon, delta)-private run lets `right` or more guesses come true.

    beta = P[Bin(r, q) >= v], alpha = max over 1 <= i <= v of P[v - i <= Bin(r, q) < v] / i; the result is
    min(1, beta + 2 m delta alpha).
    """
    chance = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, chance))
    alpha = 0.0
    if delta > 0 and right > 0:
        just_below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
        alpha = float((just_below / np.arange(1, right + 1)).max())
    return min(1.0, beta + 2 * canaries * delta * alpha)


def one_run_bound(*, right: int, guesses: int, canaries: int, delta: float, confidence: float) -> float:
    """The largest epsilon that `right` of `guesses` rule out, 0 where none.

    Args:
        right: guesses that came true.
        guesses: made at all, a number fixed before the run.
        canaries: m, each included by an independent fair coin.
        delta: of the claim.
        confidence: 1 minus the significance at which epsilons are ruled out.
    Raises:
        UsageError: counts that do not fit together, a delta or confidence out of range.
    """
    if not 0 <= right <= guesses <= canaries:
        raise UsageError(
            f"{right} right of {guesses} guesses of {canaries} canaries; need right <= guesses <= canaries"
        )
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise UsageError(
            f"delta = {delta!r}, confidence = {confidence!r}; need 0 <= delta < 1 and 0 < confidence < 1"
        )

    def ruled_out(epsilon: float) -> bool:
        p = p_value(epsilon, right=right, guesses=guesses, canaries=canaries, delta=delta)
        return p < 1 - confidence

    if guesses == 0 or not ruled_out(0.0):
        return 0.0
    low, high = 0.0, MOST
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Guesses:
    """What the auditor guessed.

    Attributes:
        right: guesses that came true.
        guesses: made.
        canaries: m.
        right_in, right_out: of the guesses "in" and "out".
    """

    right: int
    guesses: int
    canaries: int
    right_in: int
    right_out: int


def guess(scores: Array, included: NDArray[np.bool_], guesses: int) -> Guesses:
    """Guess "in" for the highest half of the scores' guesses, "out" for the lowest, abstain between.

    Args:
        scores: shape (m,), larger meaning "in"; computed without the coins.
        included: the coins, shape (m,).
        guesses: even, at most m, fixed before the run.
    Raises:
        UsageError: an odd or too large number, or a score that is NaN.
    """
    if guesses % 2 or not 0 <= guesses <= len(scores):
        raise UsageError(f"{guesses} guesses of {len(scores)} canaries; give an even number up to that")
    if np.isnan(scores).any():
        raise UsageError("a canary's score is NaN; every canary needs a number")
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    right_out = int((~included[order[:half]]).sum())
    right_in = int(included[order[len(order) - half :]].sum())
    return Guesses(right_in + right_out, guesses, len(scores), right_in, right_out)
