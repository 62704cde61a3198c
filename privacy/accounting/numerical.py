"""Direct numerical composition of the subsampled Gaussian, independent of dp_accounting; audits use it.

The privacy-loss distribution of one step comes from the closed form of the loss's inverse and normal
distribution functions; "connecting the dots" (Doroshenko et al., PoPETs 2022, arXiv 2207.04380) puts it on a
grid so that it dominates the exact one; steps compose by FFT. Every truncation goes into delta: the returned
epsilon is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from privacy.accounting.discretisation import Group, loss_interval
from privacy.notions import Adjacency

Array = NDArray[np.float64]

_STEP_TAIL = 1e-22  # mass of one step above the grid; goes into delta
_TAIL = 1e-18  # mass of the composition above, and below, the FFT window; goes into delta
_ROUNDING = (
    2.0**-54
)  # allowance for the FFT's rounding, per step: p̂^T errs by order T u (measured: 0.1 to 0.25 u T, upwards)
_MAX_WINDOW = 2**24


class NumericalComposition:
    """The composed privacy-loss distribution of `groups`; the larger of both directions for add-or-remove."""

    def __init__(self, groups: tuple[Group, ...], adjacency: Adjacency) -> None:
        directions = ("replace",) if adjacency is Adjacency.REPLACE_ONE else ("remove", "add")
        self._curves = [
            _compose(groups, direction, loss_interval(groups, adjacency)) for direction in directions
        ]

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon >= 0 at `delta` that the distribution shows; inf where there is none (see
        `resolves`)."""
        return max(curve.epsilon(delta) for curve in self._curves)

    def delta(self, epsilon: float) -> float:
        """Hockey-stick divergence at `epsilon` >= 0."""
        return max(curve.delta(epsilon) for curve in self._curves)


class _Curve:
    """Composed loss in one direction: mass `pmf` at the positive losses `loss`, `infinite` at +inf."""

    def __init__(self, loss: Array, pmf: Array, infinite: float) -> None:
        self._loss, self._pmf, self._infinite = loss, pmf, infinite

    def delta(self, epsilon: float) -> float:
        first = int(np.searchsorted(self._loss, epsilon, side="right"))
        above = self._loss[first:]
        return min(1.0, self._infinite + float(self._pmf[first:] @ -np.expm1(epsilon - above)))

    def epsilon(self, delta: float) -> float:
        if self._infinite > delta:
            return math.inf
        if self.delta(0.0) <= delta:
            return 0.0
        low, high = (
            -1,
            len(self._loss) - 1,
        )  # delta(loss[high]) <= delta: above the last point only `infinite` is left
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.delta(float(self._loss[middle])) <= delta else (middle, high)
        # Between two grid points delta(eps) = infinite + S - exp(eps - loss[high]) W exactly.
        tail, top = self._pmf[high:], float(self._loss[high])
        weighted = float(tail @ np.exp(top - self._loss[high:]))
        remainder = float(tail.sum()) - (delta - self._infinite)
        if remainder <= 0 or weighted <= 0:
            return top
        return min(top, max(0.0, top + math.log(remainder / weighted)))


@lru_cache(maxsize=8)
def compose(groups: tuple[Group, ...], adjacency: Adjacency) -> NumericalComposition:
    """The composition of `groups` (each 0 < q <= 1, sigma > 0, steps > 0) under `adjacency`."""
    return NumericalComposition(groups, adjacency)


def _compose(groups: tuple[Group, ...], direction: str, interval: float) -> _Curve:
    steps = [_step(group.sample_rate, group.noise_multiplier, direction, interval) for group in groups]
    counts = [group.steps for group in groups]
    low, high = _window(steps, counts, interval)
    width = max(high - low + 1, *(len(pmf) for _, pmf, _ in steps))
    size = 1 << (width - 1).bit_length()
    if size > _MAX_WINDOW:
        return _compose(groups, direction, 2 * interval)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    for (first, pmf, _), count in zip(steps, counts, strict=True):
        ring = np.zeros(size)
        ring[np.arange(first, first + len(pmf)) % size] = pmf
        spectrum *= np.fft.rfft(ring) ** count
    composed: Array = np.clip(np.fft.irfft(spectrum, size), 0.0, None).astype(np.float64)
    index = np.arange(low, low + size)
    positive = index[index > 0]
    loss: Array = positive.astype(np.float64) * interval
    infinite = sum(count * tail for (_, _, tail), count in zip(steps, counts, strict=True))
    infinite += 2 * _TAIL + _ROUNDING * sum(counts)
    return _Curve(loss, composed[positive % size], infinite)


def _window(steps: list[tuple[int, Array, float]], counts: list[int], interval: float) -> tuple[int, int]:
    """Grid indices between which the composition lies but for `_TAIL` on either side (Chernoff's bound)."""
    variance = 0.0
    for (first, pmf, _), count in zip(steps, counts, strict=True):
        loss = np.arange(first, first + len(pmf)) * interval
        variance += count * float(pmf @ (loss - pmf @ loss) ** 2)
    log_tail = -math.log(_TAIL)
    high = (
        sum(count * (first + len(pmf) - 1) for (first, pmf, _), count in zip(steps, counts, strict=True))
        * interval
    )
    low = sum(count * first for (first, _, _), count in zip(steps, counts, strict=True)) * interval
    best = math.sqrt(2 * log_tail / max(variance, 1e-300))  # the optimum, were the sum Gaussian
    largest = max(first + len(pmf) - 1 for first, pmf, _ in steps) * interval
    rare = np.geomspace(1, 30, 5) / max(largest, interval)  # near the optimum where few steps carry the loss
    for order in (*(best * np.geomspace(0.02, 2.0, 11)), *rare):
        up = down = log_tail
        for (first, pmf, _), count in zip(steps, counts, strict=True):
            loss = np.arange(first, first + len(pmf)) * interval
            up += count * _log_moment(pmf, order * loss)
            down += count * _log_moment(pmf, -order * loss)
        high, low = min(high, up / order), max(low, -down / order)
    return math.floor(low / interval), math.ceil(high / interval)


def _log_moment(pmf: Array, exponent: Array) -> float:
    largest = float(exponent.max())
    return largest + math.log(float(pmf @ np.exp(exponent - largest)) + 1e-300)


@lru_cache(maxsize=16)
def _step(sample_rate: float, sigma: float, direction: str, interval: float) -> tuple[int, Array, float]:
    """One step's distribution: index of its first grid point, mass from there on, mass at +inf."""
    inverse, upper_means, lower_means, decreasing = _pair(sample_rate, sigma, direction)
    reach = (
        -sigma * float(ndtri(_STEP_TAIL)) + 1
    )  # both densities have less than the tail's mass beyond ±reach
    largest, smallest = _extreme_losses(sample_rate, sigma, direction, reach)
    first, last = math.floor(smallest / interval), math.ceil(largest / interval) + 1
    loss: Array = np.arange(first, last + 1, dtype=np.float64) * interval
    edges = inverse(loss)
    upper, lower = _masses(edges, sigma, upper_means), _masses(edges, sigma, lower_means)
    if decreasing:
        upper, lower = -upper, -lower
        below, above = (
            _beyond(edges[0], sigma, upper_means),
            _beyond(-edges[-1], sigma, [(w, -m) for w, m in upper_means]),
        )
    else:
        below, above = (
            _beyond(-edges[0], sigma, [(w, -m) for w, m in upper_means]),
            _beyond(edges[-1], sigma, upper_means),
        )
    # Split each interval's mass between its ends so that both its P-mass and its Q-mass are kept.
    with np.errstate(divide="ignore"):
        scaled = np.exp(np.minimum(loss[:-1] + np.log(lower), 700.0))
    right = np.clip((upper - scaled) / -math.expm1(-interval), 0.0, upper)
    pmf = np.zeros(len(loss))
    pmf[1:] += right
    pmf[:-1] += upper - right
    pmf[0] += below  # rounded up
    return first, pmf, above


Means = list[tuple[float, float]]  # (weight, mean) of a mixture of normals


def _pair(q: float, sigma: float, direction: str) -> tuple[Callable[[Array], Array], Means, Means, bool]:
    """The dominating pair of THEORY T3: inverse loss, means of P and of Q, whether the loss decreases in
    x."""
    null, with_record = [(1.0, 0.0)], [(1 - q, 0.0), (q, 1.0)]
    if direction == "remove":
        return lambda loss: _inverse_remove(loss, q, sigma), with_record, null, False
    if direction == "add":
        return lambda loss: _inverse_remove(-loss, q, sigma), null, with_record, True
    return lambda loss: _inverse_replace(loss, q, sigma), with_record, [(1 - q, 0.0), (q, -1.0)], False


def _inverse_remove(loss: Array, q: float, sigma: float) -> Array:
    """x at which log(1 - q + q exp((2x - 1) / (2 sigma²))) = loss; -inf below the loss's infimum."""
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.log1p(np.maximum(np.expm1(np.minimum(loss, 1.0)) / q, -1.0))
        far = loss + np.log1p(-(1 - q) * np.exp(-np.maximum(loss, 1.0))) - math.log(q)
    return np.asarray(sigma**2 * np.where(loss < 1.0, near, far) + 0.5)


def _inverse_replace(loss: Array, q: float, sigma: float) -> Array:
    """x at which the densities (1-q)N(0) + qN(1) and (1-q)N(0) + qN(-1) have log-ratio `loss`.

    With w = x/sigma² - loss/2 the equation reads q exp(-1/(2 sigma²)) sinh w = (1 - q) sinh(loss/2).
    """
    half = np.abs(loss) / 2
    with np.errstate(divide="ignore"):
        log_sinh = half + np.log(-np.expm1(-2 * half)) - math.log(2)
        log_value = log_sinh + (math.log1p(-q) if q < 1 else -math.inf) - math.log(q) + 0.5 / sigma**2
    large = np.maximum(log_value, 0.0)
    w = np.where(
        log_value > 0,
        large + np.log1p(np.sqrt(1 + np.exp(-2 * large))),
        np.arcsinh(np.exp(np.minimum(log_value, 0.0))),
    )
    return np.asarray(np.sign(loss) * sigma**2 * (half + w))


def _extreme_losses(q: float, sigma: float, direction: str, reach: float) -> tuple[float, float]:
    def loss(x: float) -> float:
        unmixed = math.log1p(-q) if q < 1 else -math.inf
        return float(np.logaddexp(unmixed, math.log(q) + (2 * x - 1) / (2 * sigma**2)))

    if direction == "remove":
        return loss(reach), loss(-reach)
    if direction == "add":
        return -loss(-reach), -loss(reach)
    largest = loss(reach) - loss(-reach)
    return largest, -largest


def _masses(edges: Array, sigma: float, means: Means) -> Array:
    """Probability between consecutive edges (negative where they decrease), precise in both tails."""
    total = np.zeros(len(edges) - 1)
    for weight, mean in means:
        z = (edges - mean) / sigma
        upper_half = z[:-1] + z[1:] > 0
        below, above = np.diff(ndtr(z)), -np.diff(ndtr(-z))
        total += weight * np.where(upper_half, above, below)
    return total


def _beyond(edge: float, sigma: float, means: Means) -> float:
    """Probability above `edge`."""
    return float(sum(weight * ndtr(-(edge - mean) / sigma) for weight, mean in means))
