"""Shot noise, exactly: what telling Poisson(rate) from Poisson(other) is worth (THEORY T6).

No Gaussian approximation. Light changes the RATE: a Poisson count shifted by an integer is another thing and has
an infinite divergence one way. Pixels are independent, so Rényi divergences add and privacy-loss distributions
compose. Balanced detection (the difference of two arms) is post-processing of the pair of arms: bound it by the
pair; no formula of a shifted law applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, pdtr, pdtrc

from noise_models.errors import UsageError

Array = NDArray[np.float64]

_TAIL = 1e-22  # mass of one count beyond the table; goes into delta


def renyi(rate: ArrayLike, other: ArrayLike, order: float) -> float:
    """D_order(Poisson(rate) || Poisson(other)), summed over pixels: exact (THEORY T6).

    (rate^a other^(1-a) - a rate + (a-1) other) / (a-1); order 1 is Kullback and Leibler's, inf the largest loss.

    Args:
        rate, other: expected counts, >= 0, broadcast against each other.
        order: >= 1, inf included.

    Returns:
        The divergence in nats; inf where light falls on a pixel that is dark in the other world.

    Raises:
        UsageError: a negative or non-finite rate, or an order below 1.
    """
    first, second = np.broadcast_arrays(_rates(rate), _rates(other))
    if not order >= 1:
        raise UsageError(f"order = {order!r}: give a Rényi order >= 1, inf included")
    if ((second == 0) & (first > 0)).any():
        return math.inf
    lit = second > 0
    first, second = first[lit], second[lit]
    change = (first - second) / second
    if math.isinf(order):
        return math.inf if (change > 0).any() else float((second - first).sum())
    with np.errstate(divide="ignore", over="ignore"):
        return float(np.sum(second * _excess(change, order)))


def _excess(change: Array, order: float) -> Array:
    """((1+x)^a - 1 - a x) / (a - 1) for x >= -1, precise near 0; at a = 1 its limit (1+x) ln(1+x) - x."""
    if order == 1:
        logarithm = np.where(change > -1, np.log1p(np.maximum(change, -1 + 1e-300)), 0.0)
        direct = np.where(change > -1, (1 + change) * logarithm - change, 1.0)
    else:
        direct = (np.expm1(order * np.log1p(change)) - order * change) / (order - 1)
    term = 0.5 * order * change**2  # the binomial series, C(a, k) / (a - 1) x^k from k = 2
    series = np.array(term)
    for power in range(3, 9):
        term = term * (order - power + 1) / power * change
        series = series + term
    return np.asarray(np.where(np.abs(change) * (order + 8) < 1e-2, series, direct), dtype=np.float64)


def renyi_bound(least_rate: float, l2: float, largest: float, order: float) -> float:
    """Largest D_order between two frames of Poisson pixels, either direction, over all rates that are allowed.

    At a fixed difference a pixel's divergence is largest at the least rate (adding the same independent light to
    both worlds is data processing). There, divergence / difference² is monotone in the difference, so with
    every |difference| <= largest and their root of squares <= l2 the sum is at most l2² times its larger end.

    Args:
        least_rate: lower limit of every pixel's expected count in either world, > 0 (photo-electrons).
        l2: upper limit of the root sum of squares of the pixels' differences of expected counts.
        largest: upper limit of a single pixel's difference.
        order: > 1, finite.

    Raises:
        UsageError: a value out of range.
    """
    for name, value in (("least_rate", least_rate), ("l2", l2), ("largest", largest)):
        if not 0 < value < math.inf:
            raise UsageError(f"{name} = {value!r}: give a finite value > 0, in photo-electrons")
    if not 1 < order < math.inf:
        raise UsageError(f"order = {order!r}: give a finite Rényi order > 1")
    widest = min(largest, l2)
    up = renyi(least_rate + widest, least_rate, order)
    down = renyi(least_rate, least_rate + widest, order)
    return l2**2 * max(up / widest**2, down / widest**2, order / (2 * least_rate))


def balanced_renyi_bound(arms: ArrayLike, other_arms: ArrayLike, order: float) -> float:
    """Upper bound on D_order of balanced detection: that of the PAIR of arms, whose difference post-processes it.

    Args:
        arms, other_arms: expected counts of the two arms, shape (..., 2), in either world.
        order: as in `renyi`.

    Raises:
        UsageError: as `renyi`, or a last axis that is not the two arms.
    """
    first, second = _rates(arms), _rates(other_arms)
    if first.shape[-1:] != (2,) or second.shape[-1:] != (2,):
        raise UsageError(f"arms of shape {first.shape} and {second.shape}: the last axis holds the two arms")
    return renyi(first, second, order)


def shifted_renyi(rate: float, shift: int, order: float) -> float:
    """D_order(Poisson(rate) + shift || Poisson(rate)) for an integer shift: inf, or against it where shift < 0.

    The trap of THEORY T6: counts below the shift occur in one world only. A shift UP still has a finite
    divergence (the counts it forbids have no mass in the first world), its reverse is infinite.

    Raises:
        UsageError: a rate <= 0, a fractional shift, or an order <= 1 or not finite.
    """
    if not 0 < rate < math.inf or shift != int(shift) or not 1 < order < math.inf:
        raise UsageError(
            f"rate = {rate!r}, shift = {shift!r}, order = {order!r}: give a rate > 0, a whole shift, an order > 1"
        )
    if shift == 0:
        return 0.0
    if shift < 0:
        return math.inf
    count = np.arange(shift, _last(rate) + 40 * shift + 1)
    exponent = order * _log_pmf(count - shift, rate) + (1 - order) * _log_pmf(count, rate)
    return float(np.logaddexp.reduce(exponent)) / (order - 1)


def hockey_stick(rate: float, other: float, epsilon: float) -> float:
    """delta(epsilon) of Poisson(rate) against Poisson(other): exact, from the distribution functions.

    The loss is monotone in the count, so the best test is a threshold.

    Raises:
        UsageError: a negative or non-finite rate, or an epsilon that is not finite.
    """
    first, second = (float(value) for value in (_rates(rate), _rates(other)))
    if not math.isfinite(epsilon):
        raise UsageError(f"epsilon = {epsilon!r}: give a finite value")
    if second == 0:
        return (
            max(0.0, 1 - math.exp(min(epsilon, 0.0) - first)) if first > 0 else max(0.0, -math.expm1(epsilon))
        )
    if first == second:
        return max(0.0, -math.expm1(epsilon))
    if first == 0:  # all the mass of the first world is at 0
        return max(0.0, 1 - math.exp(epsilon - second))
    threshold = (epsilon + first - second) / math.log(first / second)
    if first > second:  # counts above the threshold
        least = math.floor(threshold) + 1
        if least <= 0:
            return -math.expm1(epsilon) if epsilon < 0 else 0.0
        value = pdtrc(least - 1, first) - math.exp(epsilon + _log_upper(least - 1, second))
    else:
        most = math.ceil(threshold) - 1
        if most < 0:
            return 0.0
        value = pdtr(most, first) - math.exp(epsilon) * pdtr(most, second)
    return max(0.0, float(value))


def _log_upper(count: int, rate: float) -> float:
    tail = float(pdtrc(count, rate))
    return math.log(tail) if tail > 0 else -math.inf


class PixelLoss:
    """The privacy-loss distribution of independent Poisson pixels, both directions, pessimistic.

    Args:
        pairs: (rate, other, how many such pixels) triples of expected counts > 0.
        interval: grid of the loss; the composed loss is over-stated by at most about this per distinct pair.

    Raises:
        UsageError: no pair, a rate <= 0, or a number of pixels below 1.
    """

    def __init__(self, pairs: Iterable[tuple[float, float, int]], interval: float = 1e-4) -> None:
        self._distribution: Any = None
        for rate, other, pixels in pairs:
            if not (0 < rate < math.inf and 0 < other < math.inf and pixels >= 1):
                raise UsageError(
                    f"{pixels!r} pixels of {rate!r} against {other!r}: give rates > 0, pixels >= 1"
                )
            part = _pixel(rate, other, interval).self_compose(int(pixels))
            self._distribution = part if self._distribution is None else self._distribution.compose(part)
        if self._distribution is None:
            raise UsageError("no pixels: give at least one pair of rates")

    def delta(self, epsilon: float) -> float:
        """delta at `epsilon` >= 0, the larger of both directions, an upper bound."""
        return float(self._distribution.get_delta_for_epsilon(epsilon))

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon >= 0 at `delta`, an upper bound; inf where there is none."""
        return max(float(self._distribution.get_epsilon_for_delta(delta)), 0.0)


def _pixel(rate: float, other: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    count = np.arange(max(_last(rate), _last(other)) + 1)
    # The mass beyond the table is an outcome of its own in each world, which the other lacks: lost entirely.
    upper = dict(zip(count.tolist(), _log_pmf(count, rate).tolist(), strict=True)) | {-1: math.log(_TAIL)}
    lower = dict(zip(count.tolist(), _log_pmf(count, other).tolist(), strict=True)) | {-2: math.log(_TAIL)}
    return privacy_loss_distribution.from_two_probability_mass_functions(
        lower, upper, value_discretization_interval=interval, symmetric=False
    )


def _last(rate: float) -> int:
    """A count above which Poisson(rate) has less than `_TAIL`."""
    last = math.ceil(rate + 11 * math.sqrt(rate) + 40)
    while pdtrc(last, rate) > _TAIL:
        last = 2 * last
    return last


def _log_pmf(count: NDArray[Any], rate: float) -> Array:
    return np.asarray(count * math.log(rate) - rate - gammaln(count + 1.0), dtype=np.float64)


def _rates(values: ArrayLike) -> Array:
    rates = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise UsageError(f"a rate of {rates!r} is negative or not finite: give expected counts >= 0")
    return rates
