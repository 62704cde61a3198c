"""Rényi divergences of Poisson-sampled steps from those of the steps themselves.

Poisson sampling, add or remove one record, orders a = 2, 3, ...: with L = dP/dQ of the unsampled pair
    D_a((1-q) Q + q P || Q) = ln(sum_k C(a,k) (1-q)^(a-k) q^k exp((k-1) D_k(P||Q))) / (a-1)
exactly (binomial theorem; Zhu and Wang 2019, arXiv 1904.10082, for this direction without their factor 3). With
symmetric noise the other direction is no larger: it has a reflection that exchanges P and Q, and then
D_a(Q || R) <= D_a(R || Q), R = (1-q) Q + q P (Mironov, Talwar, Zhang 2019, arXiv 1908.10530, theorem 5; for
counting measure the same proof holds, docs/theory.md). The law of a count of light is not symmetric, and the other
direction is bounded apart:

* D_a(Q || R) <= ln(1 + ((1-q)^(1-a) - 1 - (a-1) q) (e^D_2(P||Q) - 1)) / (a-1): with x = q (dP/dQ - 1) >= -q,
  ((1+x)^(1-a) - 1 + (a-1) x) / x² falls in x, so its value at -q bounds it, E_Q x = 0 and E_Q x² = q² (e^D_2 - 1);
* D_a(Q || R) <= q D_a(Q || P): Rényi's divergence is convex in its second argument (van Erven and Harremoës 2014,
  theorem 12).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]


def subsampled(orders: tuple[int, ...], sample_rate: float, divergence: Callable[[int], float]) -> Array:
    """Rényi divergences at `orders` under Poisson sampling, add or remove one record, of symmetric noise.

    Args:
        orders: whole numbers >= 2.
        sample_rate: 0 < q <= 1.
        divergence: D_k of the unsampled pair, an upper bound, for every whole k from 2 to the largest order.

    Returns:
        Shape (len(orders),).
    """
    largest = max(orders)
    if sample_rate == 1:
        return np.asarray([divergence(order) for order in orders])
    # exp((k-1) D_k): k = 0 and 1 give 1.
    loss = np.asarray([0.0, 0.0, *((k - 1) * divergence(k) for k in range(2, largest + 1))])
    k = np.arange(largest + 1)
    log_rate, log_rest = math.log(sample_rate), math.log1p(-sample_rate)
    result = np.empty(len(orders))
    for index, order in enumerate(orders):
        j = k[: order + 1]
        log_choose = gammaln(order + 1.0) - gammaln(j + 1.0) - gammaln(order - j + 1.0)
        # sum of the weights is 1, so ln(1 + sum w (e^loss - 1)) keeps what a plain sum rounds away.
        weights = log_choose + (order - j) * log_rest + j * log_rate
        exponent = loss[: order + 1]
        if float((weights + exponent).max()) < 30 and float(exponent.max()) < 600:
            total = math.log1p(float(np.exp(weights) @ np.expm1(exponent)))
        else:
            total = float(np.logaddexp.reduce(weights + exponent))
        result[index] = total / (order - 1)
    return result


def subsampled_either_way(orders: tuple[int, ...], sample_rate: float, plain: Array) -> Array:
    """The larger of both directions of Rényi's divergence under Poisson sampling, add or remove one record.

    Args:
        orders: whole numbers from 2 on, rising.
        sample_rate: 0 < q <= 1.
        plain: upper bounds on D_order of the unsampled pair in either direction, shape (len(orders),).

    Returns:
        Shape (len(orders),).
    """
    if sample_rate == 1:
        return plain
    slope = np.asarray(orders, dtype=np.float64) - 1
    # (k - 1) D_k is convex in k: between the orders given, its chord is an upper bound.
    with np.errstate(over="ignore"):
        moments = slope * plain
    with_record = subsampled(
        orders, sample_rate, lambda order: float(np.interp(order - 1, slope, moments)) / (order - 1)
    )
    with np.errstate(over="ignore", divide="ignore"):
        squared = plain[0] + np.log(-np.expm1(-plain[0]))  # ln(e^D_2 - 1)
    quadratic = np.logaddexp(0.0, _log_excess(slope + 1, sample_rate) + squared) / slope
    worse: Array = np.maximum(with_record, np.minimum(quadratic, sample_rate * plain))
    return worse


def _log_excess(orders: Array, sample_rate: float) -> Array:
    """ln((1-q)^(1-a) - 1 - (a-1) q), from above.

    Where the difference would cancel, Taylor's formula bounds it by a (a-1) q² / 2 · (1-q)^(-a-1).
    """
    slope, log_rest = orders - 1, math.log1p(-sample_rate)
    taylor = np.log(orders * slope / 2) + 2 * math.log(sample_rate) - (orders + 1) * log_rest
    whole = -slope * log_rest
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = whole + np.log(-np.expm1(-whole) - slope * sample_rate * np.exp(-whole))
    found: Array = np.where(slope * sample_rate < 1e-4, taylor, exact) + 1e-11  # more than is rounded away
    return found
