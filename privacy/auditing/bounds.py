"""Lower bounds on epsilon from the scores of an attack, at a stated confidence.

Scores of trials without and with the record are compared with a threshold; false alarms and misses are binomial.
Trials must be independent. Two bounds:

* `clopper_pearson_bound` assumes nothing about the release: any (epsilon, delta)-private one has
  1 - miss <= e^epsilon · alarm + delta, and the same with the roles exchanged (Kairouz et al. 2015);
* `gaussian_family_bound` asks which T-fold Poisson-subsampled Gaussian mechanism the trials rule out. It is much
  tighter (the whole trade-off curve is known), and speaks of releases that claim to be one (Nasr et al. 2023,
  arXiv:2302.07956).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtri

from noise_models.errors import UsageError
from privacy.accounting.discretisation import Group
from privacy.accounting.gdp import gaussian_epsilon
from privacy.accounting.numerical import NumericalComposition
from privacy.notions import Adjacency

Array = NDArray[np.float64]

_LEAST_CONFIDENCE = 0.9
_CANDIDATES = 512
_WIDEST_NOISE = 2.0**12
_LEAST_NOISE = 2.0**-4


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon.

    Attributes:
        epsilon: >= 0; with probability at least `confidence` the release is not (epsilon', delta)-private for any
            epsilon' below it.
        delta: as given.
        confidence: as given.
        trials: trials of both worlds that were counted.
        threshold: scores above it say "with the record".
        false_alarms, misses: rates seen in the counted trials without, and with the record.
    """

    epsilon: float
    delta: float
    confidence: float
    trials: int
    threshold: float
    false_alarms: float
    misses: float


def binomial_upper_limit(count: int, trials: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided upper limit on a probability, from `count` of `trials`."""
    return 1.0 if count >= trials else float(betaincinv(count + 1, trials - count, confidence))


def clopper_pearson_bound(
    scores_without: Array, scores_with: Array, *, delta: float, confidence: float
) -> Bound:
    """Lower bound on epsilon that assumes nothing about the release.

    The threshold is chosen on the first half of the trials and counted on the other, so it costs no confidence.

    Args:
        scores_without, scores_with: shape (trials,), larger meaning "with the record".
        delta: of the claim, 0 <= delta < 1.
        confidence: that both error rates are below their limits.
    Raises:
        UsageError: a value out of range, fewer than 4 trials in a world, a score that is NaN.
    """
    without, with_record = _checked(scores_without, scores_with, delta, confidence)
    n, m = len(without) // 2, len(with_record) // 2
    pooled = np.unique(np.concatenate((without[:n], with_record[:m])))
    middles = (pooled[:-1] + pooled[1:]) / 2 if len(pooled) > 1 else pooled
    picks = np.unique(np.linspace(0, len(middles) - 1, _CANDIDATES).astype(int))
    chosen = _Count.of(without[:n], with_record[:m], float(middles[0]))
    best = -math.inf
    for threshold in middles[picks]:
        count = _Count.of(without[:n], with_record[:m], float(threshold))
        found = count.epsilon(delta, confidence)
        if found > best:
            best, chosen = found, count
    counted = _Count.of(without[n:], with_record[m:], chosen.threshold)
    return counted.bound(max(0.0, counted.epsilon(delta, confidence)), delta, confidence)


def gaussian_family_bound(
    scores_without: Array,
    scores_with: Array,
    *,
    threshold: float,
    delta: float,
    confidence: float,
    sample_rate: float = 1.0,
    steps: int = 1,
) -> Bound:
    """Lower bound on epsilon within the T-fold Poisson-subsampled Gaussian mechanisms of rate `sample_rate`.

    The trials bound the total variation between the worlds from below; the least noisy mechanism of the family
    that reaches no more of it is the first that they do not rule out.

    Args:
        scores_without, scores_with: shape (trials,), equally many.
        threshold: fixed before the trials were looked at.
        delta: at which epsilon is stated, 0 < delta < 1.
        confidence: of the bound.
        sample_rate, steps: of the mechanism attacked, public.
    Raises:
        UsageError: as `clopper_pearson_bound`, or unequal numbers of trials.
    """
    without, with_record = _checked(scores_without, scores_with, delta, confidence)
    count = _Count.of(without, with_record, threshold)
    distance = _total_variation_lower_limit(count, confidence)
    if distance == 0:
        return count.bound(0.0, delta, confidence)
    if sample_rate == 1:
        return count.bound(gaussian_epsilon(gaussian_mu(distance), delta), delta, confidence)
    return count.bound(_subsampled_epsilon(distance, delta, sample_rate, steps), delta, confidence)


class _Count(NamedTuple):
    """Errors of one threshold: `alarms` of `n` trials without the record, `missed` of `m` with it."""

    threshold: float
    alarms: int
    n: int
    missed: int
    m: int

    @classmethod
    def of(cls, without: Array, with_record: Array, threshold: float) -> _Count:
        alarms, missed = int((without > threshold).sum()), int((with_record <= threshold).sum())
        return cls(threshold, alarms, len(without), missed, len(with_record))

    def epsilon(self, delta: float, confidence: float) -> float:
        """Kairouz et al. (2015), at the upper limits of both error rates (the confidence is shared)."""
        each = 1 - (1 - confidence) / 2
        alarm = binomial_upper_limit(self.alarms, self.n, each)
        miss = binomial_upper_limit(self.missed, self.m, each)
        odds = max((1 - delta - miss) / alarm, (1 - delta - alarm) / miss)
        return math.log(odds) if odds > 0 else -math.inf

    def bound(self, epsilon: float, delta: float, confidence: float) -> Bound:
        alarms, misses = self.alarms / self.n, self.missed / self.m
        return Bound(epsilon, delta, confidence, self.n + self.m, self.threshold, alarms, misses)


def _total_variation_lower_limit(count: _Count, confidence: float) -> float:
    """Lower limit on the total variation between the two worlds: 1 minus the sum of the error rates at best.

    All errors are pooled. Given the mean of the two rates, few errors are likeliest where the rates are equal
    (Hoeffding 1956, for counts below the mean, which a limit of confidence 0.9 or more always is), so Clopper and
    Pearson's limit of the pooled count holds.
    """
    if count.n != count.m:
        raise UsageError(
            f"{count.n} trials without and {count.m} with the record; take equally many of both worlds"
        )
    mean = binomial_upper_limit(count.alarms + count.missed, count.n + count.m, confidence)
    return max(0.0, 1 - 2 * mean)


def gaussian_mu(total_variation: float) -> float:
    """mu of the Gaussian mechanism with this total variation: TV = 2 Phi(mu/2) - 1 (Dong, Roth, Su 2022)."""
    return float(2 * ndtri((1 + total_variation) / 2))


def _subsampled_epsilon(distance: float, delta: float, sample_rate: float, steps: int) -> float:
    """Epsilon at `delta` of the family's member whose total variation is `distance`."""

    def member(log_noise: float) -> NumericalComposition:
        return NumericalComposition((Group(sample_rate, math.exp(log_noise), steps),), Adjacency.ADD_REMOVE)

    def excess(log_noise: float) -> float:
        return member(log_noise).delta(0.0) - distance

    low, high = math.log(_LEAST_NOISE), math.log(_WIDEST_NOISE)
    if excess(low) < 0:  # more than the family reaches (a subsampled step never exceeds 1 - (1-q)^T)
        return member(low).epsilon(delta)
    if excess(high) > 0:
        return 0.0
    return member(float(brentq(excess, low, high, xtol=1e-4))).epsilon(delta)


def _checked(without: Array, with_record: Array, delta: float, confidence: float) -> tuple[Array, Array]:
    low, high = np.asarray(without, np.float64).ravel(), np.asarray(with_record, np.float64).ravel()
    if min(len(low), len(high)) < 4:
        raise UsageError(f"{len(low)} and {len(high)} trials; a bound needs at least 4 of each world")
    if np.isnan(low).any() or np.isnan(high).any():
        raise UsageError("a score is NaN; every trial needs a number")
    if not 0 <= delta < 1:
        raise UsageError(f"delta = {delta!r}; give a probability with 0 <= delta < 1")
    if not _LEAST_CONFIDENCE <= confidence < 1:
        raise UsageError(f"confidence = {confidence!r}; give at least {_LEAST_CONFIDENCE} and below 1")
    return low, high
