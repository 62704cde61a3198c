"""The Skellam mechanism: integer contributions plus integer noise (Agarwal, Kairouz, Liu 2021, arXiv 2110.04995).

Skellam(0, mu) is the difference of two Poisson(mu/2) counts, variance mu, symmetric and log-concave on the integers.
Two accountants, both Rényi, both upper bounds:

* "skellam-rdp" (default): the paper's bound for vectors; dp_accounting converts to (epsilon, delta);
* "skellam-exact": Rényi divergences of integer shifts summed over the lattice, maximised over the shifts that the
  sensitivity allows; converted here. Independent of the paper's theorem: audits use it.

No dominating pair of an integer vector under an L2 bound is known, so there is no privacy-loss distribution.

Poisson sampling: `privacy.accounting.amplification`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noise_models.errors import UsageError
from privacy.accounting.amplification import subsampled
from privacy.accounting.ranges import LARGEST_NOISE, LEAST_NOISE
from privacy.accounting.skellam_law import curvature, lattice_terms, renyi_shift
from privacy.notions import Adjacency

if TYPE_CHECKING:
    from privacy.ledger import ReleaseEvent

Array = NDArray[np.float64]

ACCOUNTANTS = ("skellam-rdp", "skellam-exact")
ORDERS = (*range(2, 33), *range(36, 65, 4), *range(72, 129, 8), 160, 192, 256, 384, 512, 1024, 2048)
# Of the exact sums: the same range, beyond 128 2^(1/32) apart, so that a chord is at most 0.012 % too high.
_EXACT_ORDERS = (*range(2, 129), *(round(2 ** (part / 32)) for part in range(225, 353)))
_EXACT_TOPS = (32, 128, 512, 2048)
_MOST_TERMS = 2**14  # of a lattice sum
LARGEST_SENSITIVITY = 1e15  # whole numbers up to here are exact in double precision
_LOOSE = 1.0002  # how much more than it is a divergence may count, so that not every shift is computed


def renyi_bound(order: int, variance: float, l2: float, l1: float) -> float:
    """D_order of the Skellam mechanism for integer vectors (Agarwal et al. 2021, theorem 3.5, corollary 3.6).

    a l2² / (2 mu) + min(((2a - 1) l2² + 6 l1) / (4 mu²), 3 l1 / (2 mu)).

    Args:
        order: a whole number >= 2; the theorem speaks of no other.
        variance: mu of the noise on every coordinate, in grid units squared.
        l2, l1: sensitivities of the integer vector, in grid units.

    Raises:
        UsageError: a value out of range.
    """
    if order != int(order) or order < 2:
        raise UsageError(f"order = {order!r}: the bound holds for whole numbers >= 2")
    if not 0 < variance < math.inf or not 0 <= l2 <= l1 < math.inf:
        raise UsageError(
            f"variance = {variance!r}, l2 = {l2!r}, l1 = {l1!r}: need variance > 0 and 0 <= l2 <= l1, finite"
        )
    extra = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 1.5 * l1 / variance)
    return order * l2**2 / (2 * variance) + extra


def renyi_exact(orders: ArrayLike, variance: float, l2: float) -> Array:
    """Largest D_order over integer shift vectors of L2 norm at most `l2`, from the exact law.

    Coordinates are independent: D adds up over them, and sum_k d(x_k) <= l2² max_s d(s)/s² over 1 <= s <= l2. Shifts
    are left out where d, growing from the last one computed by no more than the law's curvature lets it, stays within
    0.02 % of the largest d(s)/s² so far, which then counts that much more.

    Args:
        orders: > 1, shape (k,).
        variance: mu of the noise on every coordinate, in grid units squared.
        l2: sensitivity in grid units; below 1 no integer vector differs.

    Returns:
        Shape (k,), in nats.

    Raises:
        UsageError: a value out of range.
    """
    if not 0 < variance < math.inf or not 0 <= l2 < math.inf:
        raise UsageError(f"variance = {variance!r}, l2 = {l2!r}: need variance > 0 and l2 >= 0, finite")
    order = np.atleast_1d(np.asarray(orders, dtype=np.float64))
    last = math.floor(l2 * (1 + 1e-12))
    worst, shift, computed = np.zeros(len(order)), 0, 0
    while shift < last:
        shift, computed = shift + 1, computed + 1
        here = renyi_shift(order, variance, shift)
        worst = np.maximum(worst, here / shift**2)
        shift = int(min(_covered(order, variance, shift, here, worst * _LOOSE), last))
    return np.asarray(worst * l2**2 * (_LOOSE if computed < last else 1.0))


def _covered(order: Array, variance: float, shift: int, divergence: Array, worst: Array) -> float:
    """A shift up to which, from `shift` on, d(s)/s² is shown to be at most `worst`; `divergence` is d(shift).

    THEORY T6: d(s) <= d(shift) + c (s (s + 1) - shift (shift + 1)), c = order curvature / 2. So d(s)/s² is at most
    c + c/s - e/s² with e = c shift (shift + 1) - d(shift), which is above `worst` for 1/s between two roots at most.
    """
    c = order * curvature(variance) / 2
    if not np.isfinite(c).all():
        return shift
    e = c * shift * (shift + 1) - divergence
    root = np.sqrt(np.maximum(c**2 - 4 * e * (worst - c), 0.0))
    never = (c**2 < 4 * e * (worst - c)) | (2 * e <= shift * (c - root))
    return max(float(shift), float(np.floor(np.where(never, math.inf, 2 * e / (c + root)).min())))


def epsilon(
    tally: Mapping[ReleaseEvent, int], delta: float, adjacency: Adjacency, accountant: str = "skellam-rdp"
) -> float:
    """Epsilon of Poisson-sampled Skellam releases, composed.

    A row's `noise_multiplier` is sqrt(variance) / `sensitivity`, and `sensitivity` the L2 one in grid units; the L1
    one is at most min(sqrt(dimension) l2, l2²), integers being no larger than their squares. Extra losses are the
    caller's (`accounting.epsilon`).

    Args:
        tally: releases of the mechanism "skellam" and how often each occurred.
        delta: total failure probability, 0 < delta < 1.
        adjacency: add-or-remove-one; nothing else is covered.
        accountant: one of `ACCOUNTANTS`.

    Returns:
        Epsilon; 0 without releases, inf with a noise multiplier below `LEAST_NOISE`. Above `LARGEST_NOISE` the
        larger epsilon there is said.

    Raises:
        UsageError: another adjacency, mechanism or accountant, or a sensitivity that is not in grid units.
    """
    if Adjacency(adjacency) is not Adjacency.ADD_REMOVE:
        raise UsageError(
            f"mechanism 'skellam' is accounted under add-or-remove-one, not {Adjacency(adjacency).value!r}"
        )
    if accountant not in ACCOUNTANTS:
        raise UsageError(
            f"accountant {accountant!r} does not cover 'skellam': use one of {', '.join(ACCOUNTANTS)}"
        )
    steps: Counter[tuple[float, float, float, int]] = Counter()
    for release, count in tally.items():
        if release.mechanism != "skellam":
            raise UsageError(f"mechanism {release.mechanism!r} among 'skellam' ones: account it apart")
        if 0 < release.sensitivity < 1:
            raise UsageError(
                f"sensitivity {release.sensitivity:g} of a Skellam release: it is in grid units, where no two integer "
                "vectors are that close; give the clipping norm over the grid's step"
            )
        if release.sensitivity > LARGEST_SENSITIVITY:
            raise UsageError(
                f"sensitivity {release.sensitivity:g} of a Skellam release: grid units are accounted for up to "
                f"{LARGEST_SENSITIVITY:.0e}; take a coarser grid"
            )
        if count > 0 and release.sensitivity > 0:
            multiplier = min(release.noise_multiplier, LARGEST_NOISE)
            steps[release.sample_rate, multiplier, release.sensitivity, release.dimension] += count
    if not steps:
        return 0.0
    if any(multiplier < LEAST_NOISE for _, multiplier, _, _ in steps):
        return math.inf
    rows = sorted(steps.items())
    if accountant == "skellam-exact":
        return max(_exact_epsilon(rows, delta), 0.0)
    total = np.zeros(len(ORDERS))
    for (sample_rate, multiplier, l2, dimension), count in rows:
        total += count * _paper(ORDERS, sample_rate, (multiplier * l2) ** 2, l2, dimension)
    return max(_convert_by_dp_accounting(np.asarray(ORDERS, dtype=np.float64), total, delta), 0.0)


def _exact_epsilon(rows: list[tuple[tuple[float, float, float, int], int]], delta: float) -> float:
    """By the exact sums, over more orders as long as the last is the best.

    A small epsilon has its best order at about 2 ln(1/delta) / epsilon. What the conversion minimises is convex,
    over order - 1, so it has no second minimum. With little noise orders whose sums are very long are left out,
    which can only add to epsilon.
    """
    found = math.inf
    for top in _EXACT_TOPS:
        longest = max(
            lattice_terms(top, (multiplier * l2) ** 2, math.floor(l2)) for (_, multiplier, l2, _), _ in rows
        )
        if longest > _MOST_TERMS and top > _EXACT_TOPS[0]:
            break
        orders = tuple(order for order in _EXACT_ORDERS if order <= top)
        total = np.zeros(len(orders))
        for (sample_rate, multiplier, l2, _), count in rows:
            total += count * _exact(orders, sample_rate, (multiplier * l2) ** 2, l2)
        at = np.asarray(orders, dtype=np.float64)
        found = convert_to_epsilon(at, total, delta)
        if not found < convert_to_epsilon(at[:-1], total[:-1], delta):
            break
    return found


@lru_cache(maxsize=256)
def _paper(orders: tuple[int, ...], sample_rate: float, variance: float, l2: float, dimension: int) -> Array:
    l1 = max(l2, min(math.sqrt(dimension) * l2, l2**2))
    return subsampled(orders, sample_rate, lambda order: renyi_bound(order, variance, l2, l1))


@lru_cache(maxsize=256)
def _exact(orders: tuple[int, ...], sample_rate: float, variance: float, l2: float) -> Array:
    # (k - 1) D_k is convex in k: between the orders computed, its chord is an upper bound.
    knots = np.asarray(orders, dtype=np.float64)
    below = (0, *_EXACT_TOPS)
    octaves = (tuple(order for order in orders if low < order <= high) for low, high in pairwise(below))
    moments = (knots - 1) * np.concatenate([_unsampled(part, variance, l2) for part in octaves if part])
    return subsampled(orders, sample_rate, lambda k: float(np.interp(k, knots, moments)) / (k - 1))


@lru_cache(maxsize=1024)
def _unsampled(orders: tuple[int, ...], variance: float, l2: float) -> Array:
    return renyi_exact(orders, variance, l2)


def convert_to_epsilon(orders: Array, divergences: Array, delta: float) -> float:
    """Epsilon at `delta` from Rényi divergences: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), proposition 12.

    min over orders of D + ln((a-1)/a) - (ln delta + ln a) / (a-1); may be negative. 0 is shown, too, where delta is
    above the total variation, at most sqrt(1 - exp(-D)) (Bretagnolle, Huber 1979).
    """
    least = max(float(divergences.min()), np.finfo(np.float64).tiny)  # its square root is not lost with it
    if math.sqrt(-math.expm1(-least)) <= delta:
        return 0.0
    with np.errstate(over="ignore"):
        values = divergences + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return float(np.min(values))


def _convert_by_dp_accounting(orders: Array, divergences: Array, delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    if not np.isfinite(divergences).any():
        return math.inf
    return float(compute_epsilon(orders.tolist(), divergences.tolist(), delta)[0])
