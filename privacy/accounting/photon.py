"""The shot noise of an amplitude as a mechanism: light that carries the sum of a step, Poisson-sampled (THEORY T10).

A step shows a vector of whole numbers as fields that are linear in it and counts photo-electrons in interference with a
strong reference. A count's Rényi divergence is at most Φ_a times the squared change of its amplitude (the square root
of its rate), so that a step's is at most Φ_a κ² M² D², D the whole numbers' bound, κ M the most that a unit of them
moves all amplitudes by.

A row's `sensitivity` is η = d_max / s_min, the largest relative change of one count's amplitude by a record, and its
`noise_multiplier` sigma = 1 / (2 κ M D): for small η a step costs what a Gaussian one of this multiplier does by
Rényi's divergence, and in no case less. No dominating pair is known, so there is no privacy-loss distribution. Two
accountants:

* "photon-rdp" (default): Φ_a by its closed form;
* "photon-integral": Φ_a by its integral, sampling summed term by term, converted by dp_accounting; audits use it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError
from privacy.accounting.amplification import subsampled_either_way
from privacy.accounting.skellam import convert_to_epsilon
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

Array = NDArray[np.float64]

ACCOUNTANTS = ("photon-rdp", "photon-integral")
ORDERS = (*range(2, 65), *(round(2 ** (part / 32)) for part in range(193, 353)))
_CHECKED_ORDERS = (*range(2, 49), *range(52, 129, 4), *range(144, 513, 16), 640, 768, 1024, 1536, 2048)
LARGEST_CHANGE = 1.0  # η above which a reference is not strong


def factor(order: float, change: float) -> float:
    """Φ_order: a count's D_order over its squared change of amplitude, either direction, at most (THEORY T10).

        ((1+η)^(2a) - 1 - 2 a η - a η²) / ((a-1) η²),   attained at the least amplitude; 2a as η -> 0.

    Args:
        order: a > 1.
        change: η >= 0, the largest change of amplitude over the least amplitude.

    Returns:
        Φ; inf beyond double precision.

    Raises:
        UsageError: an order or a change out of range.
    """
    if not 1 < order < math.inf or not 0 <= change < math.inf:
        raise UsageError(
            f"order = {order!r}, change = {change!r}: give a finite order > 1 and a finite change >= 0"
        )
    if 2 * order * change < 1e-2:  # the binomial series; what is left out is below its last term
        term, total = order * (2 * order - 1), order * (2 * order - 1) - order
        for power in range(3, 12):
            term *= (2 * order - power + 1) / power * change
            total += abs(term)
        return total / (order - 1)
    exponent = 2 * order * math.log1p(change)
    if exponent > 700:
        return math.inf
    return (math.expm1(exponent) - 2 * order * change - order * change**2) / ((order - 1) * change**2)


def epsilon(
    tally: Mapping[ReleaseEvent, int], delta: float, adjacency: Adjacency, accountant: str = "photon-rdp"
) -> float:
    """Epsilon of Poisson-sampled photon releases, composed; 0 without any.

    Args:
        tally: releases of the mechanism "photon" and how often each occurred.
        delta: 0 < delta < 1.
        adjacency: add-or-remove-one; nothing else is covered.
        accountant: one of `ACCOUNTANTS`.

    Raises:
        UsageError: another adjacency or accountant, or a change of amplitude out of range.
    """
    if Adjacency(adjacency) is not Adjacency.ADD_REMOVE or accountant not in ACCOUNTANTS:
        raise UsageError(
            f"mechanism 'photon' is accounted under add-or-remove-one by {' or '.join(ACCOUNTANTS)}, not under "
            f"{Adjacency(adjacency).value!r} by {accountant!r}"
        )
    steps: Counter[tuple[float, float, float]] = Counter()
    for release, count in tally.items():
        if not 0 < release.sensitivity <= LARGEST_CHANGE:
            raise UsageError(
                f"sensitivity {release.sensitivity:g} of a photon release: it is the largest relative change of a "
                f"count's amplitude, above 0 and at most {LARGEST_CHANGE:g}; take a stronger reference or less light"
            )
        if count > 0:
            steps[release.sample_rate, release.noise_multiplier, release.sensitivity] += count
    if not steps:
        return 0.0
    if any(multiplier == 0 for _, multiplier, _ in steps):
        return math.inf
    if accountant == "photon-integral":
        return _by_integral(steps, delta)
    total = np.zeros(len(ORDERS))
    for row, count in sorted(steps.items()):
        total += count * _sampled(*row)
    return max(convert_to_epsilon(np.asarray(ORDERS, dtype=np.float64), total, delta), 0.0)


@lru_cache(maxsize=256)
def _sampled(sample_rate: float, multiplier: float, change: float) -> Array:
    """The worse of both directions at `ORDERS`."""
    plain = np.asarray([factor(order, change) for order in ORDERS]) / (4 * multiplier**2)
    return subsampled_either_way(ORDERS, sample_rate, plain)


def _by_integral(steps: Mapping[tuple[float, float, float], int], delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    total = np.zeros(len(_CHECKED_ORDERS))
    for (sample_rate, multiplier, change), count in sorted(steps.items()):
        total += count * np.asarray(_summed(sample_rate, multiplier, change))
    finite = np.isfinite(total)
    if not finite.any():
        return math.inf
    orders = np.asarray(_CHECKED_ORDERS, dtype=np.float64)
    return float(compute_epsilon(orders[finite].tolist(), total[finite].tolist(), delta)[0])


@lru_cache(maxsize=256)
def _summed(sample_rate: float, multiplier: float, change: float) -> tuple[float, ...]:
    """The worse of both directions at the checked orders: term by term."""
    if not multiplier > 0:
        return (math.inf,) * len(_CHECKED_ORDERS)
    last = _CHECKED_ORDERS[-1]
    loss = [0.0, 0.0, *((k - 1) * _integral(k, change) / (2 * multiplier) ** 2 for k in range(2, last + 1))]
    if sample_rate == 1:
        return tuple(loss[order] / (order - 1) for order in _CHECKED_ORDERS)
    log_gamma = np.cumsum(np.log(np.maximum(np.arange(last + 1), 1)))  # ln k!
    exponent = np.asarray(loss)
    k = np.arange(last + 1)
    weights = k * math.log(sample_rate) - log_gamma
    found = []
    for order in _CHECKED_ORDERS:
        rest = slice(order, None, -1)  # order - k, for k = 0, 1, ...
        terms = (
            log_gamma[order] + weights[: order + 1] - log_gamma[rest] + k[rest] * math.log1p(-sample_rate)
        ) + exponent[: order + 1]
        top = float(terms.max())
        with_record = (
            (top + math.log(math.fsum(np.exp(terms - top)))) / (order - 1) if top < math.inf else top
        )
        share = sample_rate * loss[order] / (order - 1)
        near = math.inf
        if loss[2] < 700 and -(order - 1) * math.log1p(-sample_rate) < 700:
            tilt = math.expm1(-(order - 1) * math.log1p(-sample_rate)) - (order - 1) * sample_rate
            # Its first term holds where the difference cancels; either is off by less than a millionth.
            tilt = max(tilt, order * (order - 1) / 2 * sample_rate**2) * (1 + 1e-6)
            near = math.log1p(tilt * math.expm1(loss[2])) / (order - 1)
        found.append(max(with_record, min(near, share), 0.0))
    return tuple(found)


def _integral(order: int, change: float) -> float:
    """Φ of a whole order: (2a (2a-1) ∫₀¹ (1-x) (1 + xη)^(2a-2) dx - a) / (a-1), by Gauss and Legendre's rule.

    The integrand grows from 1 - x by (1+η)^(2a-2) at most: beyond e^700 it is inf.
    """
    if (2 * order - 2) * math.log1p(change) > 700:
        return math.inf
    nodes, weights = _rule()
    inside = math.fsum(weights * (1 - nodes) * np.exp((2 * order - 2) * np.log1p(nodes * change)))
    return (2 * order * (2 * order - 1) * inside - order) / (order - 1) * (1 + 1e-9)


@lru_cache(maxsize=1)
def _rule() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(
        256
    )  # of polynomials up to degree 511, and beyond all but
    return (nodes + 1) / 2, weights / 2
