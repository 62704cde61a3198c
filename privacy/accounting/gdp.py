"""Gaussian differential privacy, exactly: curve, inverse, composition (Dong, Roth, Su 2022, arXiv 1905.02383).

A step is mu-GDP when telling its two worlds apart is no easier than N(0, 1) from N(mu, 1). Composition is exact,
mu² adds, also where the mus were chosen from earlier outputs, as long as a PRESET bound on the sum holds
(`privacy.accounting.filters`). This is the accountant of label privacy (THEORY T7).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from scipy.optimize import brentq
from scipy.special import log_ndtr

from noise_models.errors import UsageError
from privacy.notions import Adjacency

if TYPE_CHECKING:
    from privacy.ledger import ReleaseEvent

ACCOUNTANTS = ("gdp", "numerical")
_LARGEST_MU = 1e4  # beyond, an epsilon above 5e7 says nothing: inf


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Exact delta of mu-Gaussian differential privacy at `epsilon` (Balle and Wang 2018, theorem 8).

    Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu), precise also where both terms are tiny.

    Raises:
        UsageError: mu is negative or not finite, or epsilon is not finite.
    """
    if not 0 <= mu < math.inf or not -math.inf < epsilon < math.inf:
        raise UsageError(f"mu = {mu!r} at epsilon = {epsilon!r}; need mu >= 0 and both finite")
    if mu == 0:
        return -math.expm1(min(epsilon, 0.0))
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    ratio = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - first
    return math.exp(first) * -math.expm1(min(ratio, 0.0))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of mu-Gaussian differential privacy at `delta`: the inverse of `gaussian_delta`.

    0 where delta suffices by itself; inf for mu above 1e4.

    Raises:
        UsageError: mu is negative or not finite, or delta is outside (0, 1).
    """
    if not 0 <= mu < math.inf or not 0 < delta < 1:
        raise UsageError(f"mu = {mu!r} at delta = {delta!r}; need mu >= 0 finite and 0 < delta < 1")
    if mu > _LARGEST_MU:
        return math.inf
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-12))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Largest mu whose mu-Gaussian differential privacy implies (epsilon, delta): the budget of a filter.

    Raises:
        UsageError: epsilon is negative or not finite, or delta is outside (0, 1).
    """
    if not 0 <= epsilon < math.inf or not 0 < delta < 1:
        raise UsageError(
            f"epsilon = {epsilon!r} at delta = {delta!r}; need epsilon >= 0 finite, 0 < delta < 1"
        )
    high = 1.0
    while gaussian_delta(high, epsilon) < delta:
        high *= 2
    mu = float(brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-14))
    return mu * (1 - 1e-12)  # inside, whatever the root's last bits


def compose_mu(mus: Iterable[float]) -> float:
    """The mu of Gaussian mechanisms released one after the other: the root of the sum of the squares."""
    return math.hypot(*mus)


def epsilon(
    tally: Mapping[ReleaseEvent, int], delta: float, adjacency: Adjacency, accountant: str = "gdp"
) -> float:
    """Epsilon of `label-gaussian` releases (THEORY T7): parallel within an epoch, composed over epochs.

    In an epoch a record takes part in one step, and its label acts on no other (public batches), so of an epoch's
    steps the worst counts, with mu = 1 / noise_multiplier. Extra losses are the caller's (`accounting.epsilon`).

    Args:
        tally: releases of the mechanism "label-gaussian" and how often each occurred.
        delta: total failure probability, 0 < delta < 1.
        adjacency: label; nothing else is covered.
        accountant: "gdp", the closed form, or "numerical", its check by numerical composition.

    Returns:
        Epsilon; 0 without releases, inf without noise.

    Raises:
        UsageError: another adjacency, mechanism, sample rate or accountant.
    """
    if Adjacency(adjacency) is not Adjacency.LABEL:
        raise UsageError(
            f"mechanism 'label-gaussian' protects labels, not adjacency {Adjacency(adjacency).value!r}: "
            "use adjacency 'label'"
        )
    if accountant not in ACCOUNTANTS:
        raise UsageError(
            f"accountant {accountant!r} does not cover 'label-gaussian': use one of {', '.join(ACCOUNTANTS)}"
        )
    least: dict[int, float] = {}
    for release, count in tally.items():
        if release.mechanism != "label-gaussian":
            raise UsageError(f"mechanism {release.mechanism!r} among 'label-gaussian' ones: account it apart")
        if release.sample_rate != 1:
            raise UsageError(
                f"sample_rate = {release.sample_rate!r} of a 'label-gaussian' release: public batches are not "
                "sampled, give 1"
            )
        if count > 0:
            least[release.epoch] = min(least.get(release.epoch, math.inf), release.noise_multiplier)
    if not least:
        return 0.0
    if min(least.values()) <= 0:
        return math.inf
    if accountant == "gdp":
        return gaussian_epsilon(compose_mu(1 / multiplier for multiplier in least.values()), delta)
    return _numerical(list(least.values()), delta)


def _numerical(multipliers: list[float], delta: float) -> float:
    from privacy.accounting.discretisation import Group
    from privacy.accounting.numerical import compose
    from privacy.accounting.ranges import LEAST_NOISE

    if min(multipliers) < LEAST_NOISE:
        return math.inf
    steps = sorted(Counter(multipliers).items())
    groups = tuple(Group(1.0, sigma, count) for sigma, count in steps)
    return compose(groups, Adjacency.ADD_REMOVE).epsilon(delta)
