"""The Skellam law, exactly: logarithms of its probabilities, its Rényi and hockey-stick divergences under a shift.

Skellam(m1, m2) is Poisson(m1) minus Poisson(m2); P(n) = exp(-m1 - m2) (m1/m2)^(n/2) I_|n|(2 sqrt(m1 m2)).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noise_models.errors import UsageError

Array = NDArray[np.float64]

_DEBYE = (
    500.0  # Bessel arguments from here on: the uniform expansion, to 1e-15 relative; below: the recurrence
)

_AT_ONCE = 1 << 18  # terms of a lattice sum, over all orders, that are held at a time


def log_pmf(count: NDArray[np.int64], first: float, second: float | None = None) -> Array:
    """Logarithm of P(n) of Skellam(first, second), whatever its size; `second` is `first` where not given.

    Args:
        count: n, integers of any sign and shape.
        first, second: the two Poisson rates, > 0. The symmetric law of variance mu has both at mu / 2.

    Raises:
        UsageError: a rate that is not positive and finite.
    """
    second = first if second is None else second
    if not (0 < first < math.inf and 0 < second < math.inf):
        raise UsageError(f"rates {first!r} and {second!r}: give finite values > 0")
    argument = 2 * math.sqrt(first * second)
    skew = 0.5 * math.log(first / second)
    drift = -((math.sqrt(first) - math.sqrt(second)) ** 2)
    return np.asarray(drift + skew * count + _log_bessel(np.abs(count), argument), dtype=np.float64)


def renyi_shift(orders: ArrayLike, variance: float, shift: int) -> Array:
    """D_order(X + shift || X) at every order, X symmetric Skellam of this variance: lattice sums, no bound.

    With l = ln(P(n - shift) / P(n)) and P's symmetry, exp((a - 1) D) - 1 is the sum over n > shift / 2 of
    P(n) e^(a l) (1 - e^(-a l)) (1 - e^(-(a - 1) l)): no term is negative, so that the smallest divergence is as
    precise as the largest. Where the law is wide the sum takes steps of half its width: for a law that smooth the
    trapezoid rule is exact to double precision (Poisson's summation formula: relative error about exp(-2 (2 pi)²)).

    Args:
        orders: > 1, shape (k,) or a number.
        variance: > 0, in grid units squared.
        shift: whole number of grid units.

    Returns:
        Shape (k,), in nats.

    Raises:
        UsageError: an order <= 1 or a variance <= 0.
    """
    order = np.atleast_1d(np.asarray(orders, dtype=np.float64))
    if not ((order > 1) & np.isfinite(order)).all() or not 0 < variance < math.inf:
        raise UsageError(
            f"orders {orders!r}, variance {variance!r}: give orders > 1 and a variance > 0, finite"
        )
    if shift == 0:
        return np.zeros(len(order))
    shift = abs(shift)
    step = lattice_step(variance, shift)
    # n = shift / 2 + nodes are whole numbers.
    first = 0.5 if shift % 2 else 1.0
    terms = lattice_terms(float(order.max()), variance, shift)
    nodes = (np.arange(terms, dtype=np.float64) + first) * step
    base, loss = _log_pmf_and_loss(nodes, variance, shift)
    result = np.empty(len(order))
    together = max(1, _AT_ONCE // len(nodes))
    for start in range(0, len(order), together):
        some = order[start : start + together, None]
        exponent = base + some * loss
        peak = exponent.max(axis=1)
        weights = np.expm1(-some * loss) * np.expm1(-(some - 1) * loss)
        total = np.log((np.exp(exponent - peak[:, None]) * weights).sum(axis=1) * step)
        result[start : start + together] = np.logaddexp(0.0, peak + total) / (some[:, 0] - 1)
    return result


def lattice_step(variance: float, shift: int) -> int:
    """Between the terms of `renyi_shift`'s sums, in grid units; odd where the shift is."""
    step = max(1, math.floor(math.sqrt(variance) / 2))
    return step - 1 if shift % 2 and step % 2 == 0 else step


def lattice_terms(order: float, variance: float, shift: int) -> int:
    """How many terms `renyi_shift` sums at this order."""
    # The terms are P(n) exp(order loss(n)): a law about n <= order * shift with a variance of at most the sum below.
    top = order * shift
    return math.ceil((top - shift / 2 + 12 * math.sqrt(variance + top) + 60) / lattice_step(variance, shift))


def curvature(variance: float) -> float:
    """Upper bound on every second difference of -ln P, P symmetric Skellam of this variance (THEORY T6).

    -ln(1 - 1/variance - 1/(2 variance²)) for a variance of at least 3, below that inf: nothing is claimed.
    """
    return -math.log1p(-1 / variance - 0.5 / variance**2) if variance >= 3 else math.inf


def hockey_stick_shift(variance: float, shift: int, epsilon: float) -> float:
    """delta(epsilon) of X + shift against X, X symmetric Skellam of this variance, one coordinate: exact.

    Raises:
        UsageError: a variance <= 0 or above 1e9 (its law is summed integer by integer).
    """
    if not 0 < variance <= 1e9:
        raise UsageError(f"variance = {variance!r}: give 0 < variance <= 1e9")
    shift = abs(shift)
    reach = math.ceil(12 * math.sqrt(variance) + 60)
    count = np.arange(-reach, reach + shift + 1, dtype=np.int64)
    upper, lower = log_pmf(count - shift, variance / 2), log_pmf(count, variance / 2)
    gain = upper - lower > epsilon
    return float(np.sum(np.exp(upper[gain]) * -np.expm1(epsilon + lower[gain] - upper[gain])))


def _log_bessel(index: NDArray[Any], argument: float) -> Array:
    """ln(exp(-z) I_n(z)) for n >= 0, whole where z < `_DEBYE`, also where it is far below the smallest float."""
    if argument < _DEBYE:
        return np.asarray(_recurrence(argument, _padded(int(index.max(initial=0))))[index])
    # Debye's uniform expansion (DLMF 10.41.3 and 10.41.10), rewritten in w = sqrt(n² + z²) so that n = 0 is no case.
    n: Array = index.astype(np.float64)
    w = np.hypot(n, argument)
    # w - z = n² / (w + z), and -n ln((n + w) / z) = -n asinh(n / z).
    main = n * (n / (w + argument)) - n * np.arcsinh(n / argument)
    return np.asarray(main - 0.5 * np.log(2 * np.pi * w) + _log_series(n, w), dtype=np.float64)


def _log_pmf_and_loss(nodes: Array, variance: float, shift: int) -> tuple[Array, Array]:
    """ln P(n) and ln(P(n - shift) / P(n)) at n = shift / 2 + nodes; the second is precise however small it is."""
    n, m = shift / 2 + nodes, nodes - shift / 2
    if variance < _DEBYE:
        whole = np.rint(n).astype(np.int64)
        base = log_pmf(whole, variance / 2)
        return base, log_pmf(whole - shift, variance / 2) - base
    w, v = np.hypot(n, variance), np.hypot(m, variance)
    # v - w = -shift (n + m) / (w + v), n + m = 2 nodes; asinh(n/z) - asinh(m/z) = ln((n + w) / (m + v)).
    narrower = -shift * (2 * nodes / (w + v))
    loss = narrower + shift * np.arcsinh(n / variance) + m * np.log1p((shift - narrower) / (m + v))
    loss += -0.5 * np.log1p(narrower / w) + (_log_series(m, v) - _log_series(n, w))
    return _log_bessel(n, variance), np.maximum(loss, np.finfo(np.float64).tiny)


def _log_series(n: Array, w: Array) -> Array:
    """What Debye's expansion adds to its leading terms."""
    p2 = (n / w) ** 2
    u1 = (3 - 5 * p2) / (24 * w)
    u2 = (81 - 462 * p2 + 385 * p2**2) / (1152 * w**2)
    u3 = (30375 - 369603 * p2 + 765765 * p2**2 - 425425 * p2**3) / (414720 * w**3)
    u4 = np.polyval([185910725, -446185740, 349922430, -94121676, 4465125], p2) / (39813120 * w**4)
    return np.asarray(np.log1p(u1 + u2 + u3 + u4), dtype=np.float64)


def _padded(largest: int) -> int:
    """The next power of two: calls with indices of like size share a table."""
    return 1 << max(10, largest.bit_length())


@lru_cache(maxsize=8)
def _recurrence(argument: float, largest: int) -> Array:
    """ln(exp(-z) I_n(z)) for n = 0 ... largest: ratios I_n / I_(n-1) by the downward recurrence, which is stable."""
    from scipy.special import i0e

    ratios = np.empty(largest + 1)
    last = largest + 64 + math.ceil(argument)
    ratio = argument / (2 * last)
    for n in range(last, 0, -1):
        ratio = 1 / (2 * n / argument + ratio)
        if n <= largest:
            ratios[n] = ratio
    ratios[0] = 1.0
    return np.asarray(math.log(float(i0e(argument))) + np.cumsum(np.log(ratios)), dtype=np.float64)
