"""Exact divergences of two Gaussians with any covariances, singular ones included (THEORY T2).

D_alpha(N1 || N2) and delta(eps) = sup_A N1(A) - e^eps N2(A), the first argument being the world tested FOR. Two
Gaussians either have the same support (an affine subspace) or no set in common: then D = inf and delta = 1 for
every eps, both ways. On a common support they are diagonalised together, N2 to independent standard normals, N1 to
independent N(shift, ratio): everything below is a function of those pairs.

delta(eps) inverts the moment generating function of the privacy loss (a generalised chi-square) along a vertical line
through the saddle point, where the integrand is smallest; one coordinate, and equal covariances, have closed forms.
Stated error: 1e-8 absolute ("Normal Distributions Indistinguishability Spectrum", arXiv 2309.01243, has the same
quantity by other means).

What is computed from a REALISED batch depends on the data: a diagnostic, never a guarantee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_ndtr, ndtr

from noise_models.errors import UsageError
from privacy.accounting.gdp import gaussian_delta

Array = NDArray[np.float64]

# Directions whose variance (sum over both worlds) is below this part of the largest do not exist; a mean difference
# along one leaves the support. Within the rest, a direction that one world lacks to this precision is one that the
# supports differ in: the answer is then inf / 1, so a diagnostic errs towards alarm.
RANK_TOLERANCE = 1e-10

_RELATIVE = 1e-10  # of the integral, in units of the integrand's height at the saddle times a unit of y
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_MOST_PANELS = 60_000


@dataclass(frozen=True)
class GaussianPair:
    """Two Gaussians of common support, diagonalised together: N2 is N(0, 1), N1 is N(shift, ratio), a coordinate each.

    Attributes:
        ratios: variance ratios, shape (n,), > 0.
        shifts: mean differences in standard deviations of N2, shape (n,).
        singular: the supports differ; ratios and shifts then say nothing.
    """

    ratios: Array
    shifts: Array
    singular: bool = False

    def __post_init__(self) -> None:
        if self.ratios.shape != self.shifts.shape or self.ratios.ndim != 1:
            raise UsageError(
                f"ratios of shape {self.ratios.shape} and shifts of shape {self.shifts.shape}: give two equal rows"
            )
        if not ((self.ratios > 0) & np.isfinite(self.ratios) & np.isfinite(self.shifts)).all():
            raise UsageError("a variance ratio is not positive and finite, or a shift not finite")

    @classmethod
    def of(
        cls,
        first_mean: ArrayLike,
        first_covariance: ArrayLike,
        second_mean: ArrayLike,
        second_covariance: ArrayLike,
        *,
        tolerance: float = RANK_TOLERANCE,
    ) -> Self:
        """The pair N1 = N(first), N2 = N(second), with the ranks decided at relative `tolerance`.

        Args:
            first_mean, second_mean: shape (n,).
            first_covariance, second_covariance: shape (n, n), symmetric, positive semidefinite.
            tolerance: see `RANK_TOLERANCE`.

        Raises:
            UsageError: shapes that do not fit, values that are not finite, a covariance that is none.
        """
        means = [np.asarray(mean, dtype=np.float64) for mean in (first_mean, second_mean)]
        covariances = [np.asarray(value, dtype=np.float64) for value in (first_covariance, second_covariance)]
        n = means[0].size
        _check(means, covariances, n, tolerance)
        scale, basis = np.linalg.eigh((covariances[0] + covariances[1]) / 2)
        present = scale > tolerance * max(float(scale[-1]), 0.0)
        shift = basis.T @ (means[0] - means[1])
        largest = math.sqrt(max(float(scale[-1]), 0.0))
        if np.abs(shift[~present]).max(initial=0.0) > math.sqrt(tolerance) * largest:
            return cls(np.ones(0), np.zeros(0), singular=True)
        whitener = basis[:, present] / np.sqrt(scale[present])
        share, rotation = np.linalg.eigh(whitener.T @ covariances[0] @ whitener / 2)
        # N1 has the variance 2 share, N2 2 (1 - share). Rounding of the shares grows with the condition.
        condition = largest**2 / float(scale[present].min(initial=largest**2 or 1.0))
        blur = max(math.sqrt(np.finfo(float).eps), 16 * n * np.finfo(float).eps * condition)
        if ((share < blur) | (share > 1 - blur)).any():
            return cls(np.ones(0), np.zeros(0), singular=True)
        whitened = rotation.T @ (shift[present] / np.sqrt(scale[present]))
        return cls(share / (1 - share), whitened / np.sqrt(2 * (1 - share)))

    @classmethod
    def product(cls, *pairs: GaussianPair) -> Self:
        """Independent pairs side by side: N1 x N1' against N2 x N2'."""
        if any(pair.singular for pair in pairs):
            return cls(np.ones(0), np.zeros(0), singular=True)
        return cls(
            np.concatenate([np.zeros(0), *(pair.ratios for pair in pairs)]),
            np.concatenate([np.zeros(0), *(pair.shifts for pair in pairs)]),
        )

    def reversed(self) -> GaussianPair:
        """The pair with the roles exchanged."""
        return GaussianPair(1 / self.ratios, -self.shifts / np.sqrt(self.ratios), self.singular)

    def renyi(self, order: float) -> float:
        """D_order(N1 || N2) in nats; inf unless order N2 + (1 - order) N1 is positive definite on a common support.

        Args:
            order: > 0; 1 is Kullback and Leibler's divergence.

        Raises:
            UsageError: an order that is not positive and finite.
        """
        if not 0 < order < math.inf:
            raise UsageError(f"order = {order!r}: give a finite Rényi order > 0")
        if self.singular:
            return math.inf
        ratio, shift = self.ratios, self.shifts
        if order == 1:
            return 0.5 * float(np.sum(ratio - 1 - np.log(ratio) + shift**2))
        mixed = order + (1 - order) * ratio  # of the covariances, in units of N2's
        if (mixed <= 0).any():
            return math.inf
        quadratic = 0.5 * order * float(np.sum(shift**2 / mixed))
        logarithms = float(np.sum(np.log1p((order - 1) * (1 - ratio)) + (order - 1) * np.log(ratio)))
        return max(0.0, quadratic - 0.5 * logarithms / (order - 1))

    def hockey_stick(self, epsilon: float) -> float:
        """delta(epsilon) = sup_A N1(A) - e^epsilon N2(A): exact to the module's stated error.

        Raises:
            UsageError: an epsilon that is not finite.
        """
        if not math.isfinite(epsilon):
            raise UsageError(f"epsilon = {epsilon!r}: give a finite value")
        if self.singular:
            return 1.0
        if (
            epsilon < 0
        ):  # N1(A) - e^eps N2(A) = 1 - e^eps + e^eps (N2(B) - e^-eps N1(B)) for B the complement of A
            return -math.expm1(epsilon) + math.exp(epsilon) * self.reversed().hockey_stick(-epsilon)
        moving = (np.abs(self.ratios - 1) > 1e-13) | (self.shifts != 0)
        ratio, shift = self.ratios[moving], self.shifts[moving]
        if (np.abs(ratio - 1) <= 1e-13).all():
            return gaussian_delta(float(np.linalg.norm(shift)), epsilon)
        if len(ratio) == 1:
            return _one_coordinate(float(ratio[0]), float(shift[0]), epsilon)
        return _inverted(ratio, shift, epsilon)

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon >= 0 with delta(epsilon) <= delta in this direction; inf for different supports.

        Raises:
            UsageError: a delta outside (0, 1).
        """
        if not 0 < delta < 1:
            raise UsageError(f"delta = {delta!r}: give a probability with 0 < delta < 1")
        if self.singular:
            return math.inf
        if self.hockey_stick(0.0) <= delta:
            return 0.0
        high = 1.0
        while self.hockey_stick(high) > delta:
            high *= 2
        return float(brentq(lambda at: self.hockey_stick(at) - delta, 0.0, high, xtol=1e-10))


def batch_pair(
    derivatives: ArrayLike, inputs: ArrayLike, errors: ArrayLike, record: int, noise_std: float
) -> GaussianPair:
    """One layer's update with a record against the same batch without it (THEORY T1): per-instance, a DIAGNOSTIC.

    Row k of the update is Gaussian with covariance sigma² H_k^T H_k, the rows of H_k being phi'_ik (h_i, 1). Without
    record i that loses one rank-one term, so a row differs in ONE direction: with the record's leverage tau in row k
    the variance ratio is 1 / (1 - tau) and the shift (error / sigma) sqrt(tau / (1 - tau)). tau = 1, the record outside
    the span of the others, is a different support: nothing is hidden at any sigma. The pair says how far N1, with the
    record, is from N2, without it; `reversed()` the other way.

    Args:
        derivatives: phi'_ik, shape (records, neurons).
        inputs: (h_i, 1), shape (records, columns).
        errors: what the record's own row is multiplied with, b_k · e_i, shape (neurons,).
        record: its row.
        noise_std: sigma > 0 of the projection's noise.

    Raises:
        UsageError: shapes that do not fit, a record that is not in the batch, a noise that is not positive.
    """
    slope, rows = np.asarray(derivatives, dtype=np.float64), np.asarray(inputs, dtype=np.float64)
    error = np.asarray(errors, dtype=np.float64)
    if slope.ndim != 2 or rows.ndim != 2 or len(slope) != len(rows) or error.shape != slope.shape[1:]:
        raise UsageError(
            f"derivatives {slope.shape}, inputs {rows.shape}, errors {error.shape}: give (records, neurons), "
            "(records, columns) and (neurons,)"
        )
    if not 0 <= record < len(rows) or not 0 < noise_std < math.inf:
        raise UsageError(
            f"record = {record!r} of {len(rows)}, noise_std = {noise_std!r}: give a record of the batch, a noise > 0"
        )
    live = np.flatnonzero(slope[record])
    leverage = np.asarray([_leverage(slope[:, k, None] * rows, record) for k in live], dtype=np.float64)
    if (leverage >= 1).any():
        return GaussianPair(np.ones(0), np.zeros(0), singular=True)
    return GaussianPair(1 / (1 - leverage), error[live] / noise_std * np.sqrt(leverage / (1 - leverage)))


def _leverage(rows: Array, record: int) -> float:
    """1 - (distance from the span of the others) terms: h^T (H^T H)^+ h, 1 where the record leaves their span."""
    others = np.delete(rows, record, axis=0)
    own = rows[record]
    _, values, axes = np.linalg.svd(others, full_matrices=False)
    largest = max(float(values.max(initial=0.0)), float(np.linalg.norm(own)))
    kept = (
        values > math.sqrt(RANK_TOLERANCE) * largest
    )  # ill-conditioned directions count as absent: towards alarm
    along = axes[kept] @ own
    if np.linalg.norm(own - axes[kept].T @ along) > math.sqrt(RANK_TOLERANCE) * np.linalg.norm(own):
        return 1.0
    odds = float(np.sum((along / values[kept]) ** 2))  # h^T (sum over the others)^-1 h = tau / (1 - tau)
    return odds / (1 + odds)


def _check(means: list[Array], covariances: list[Array], n: int, tolerance: float) -> None:
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance = {tolerance!r}: give 0 < tolerance < 1")
    shapes = [value.shape for value in (*means, *covariances)]
    if n == 0 or shapes != [(n,), (n,), (n, n), (n, n)]:
        raise UsageError(f"means and covariances of shapes {shapes}: give (n,), (n,), (n, n), (n, n)")
    if not all(np.isfinite(value).all() for value in (*means, *covariances)):
        raise UsageError("a mean or covariance is not finite")
    for covariance in covariances:
        size = float(np.abs(covariance).max())
        if (
            np.abs(covariance - covariance.T).max() > 1e-9 * size
            or np.linalg.eigvalsh(covariance)[0] < -1e-9 * size
        ):
            raise UsageError("a covariance is not symmetric and positive semidefinite")


def _one_coordinate(ratio: float, shift: float, epsilon: float) -> float:
    """N(shift, ratio) against N(0, 1), ratio != 1: the loss is a quadratic, the best test one of its roots' sides."""
    # loss(x) = x²/2 - (x - shift)²/(2 ratio) - ln(ratio)/2 = a x² + b x + c
    a, b = 0.5 - 0.5 / ratio, shift / ratio
    c = -0.5 * shift**2 / ratio - 0.5 * math.log(ratio) - epsilon
    discriminant = b * b - 4 * a * c
    if (
        discriminant <= 0
    ):  # the loss never crosses epsilon: above everywhere (impossible for epsilon >= 0) or nowhere
        return 0.0
    # The roots without cancellation.
    q = -0.5 * (b + math.copysign(math.sqrt(discriminant), b))
    low, high = sorted((q / a, c / q if q else -q / a))
    width = math.sqrt(ratio)

    def between(mean: float, std: float) -> float:
        lower, upper = (low - mean) / std, (high - mean) / std
        return float(ndtr(upper) - ndtr(lower)) if lower + upper < 0 else float(ndtr(-lower) - ndtr(-upper))

    def outside(mean: float, std: float) -> float:
        return float(ndtr((low - mean) / std) + ndtr(-(high - mean) / std))

    measure = outside if a > 0 else between
    return max(
        0.0, measure(shift, width) - _scaled(epsilon, measure(0.0, 1.0), measure is outside, low, high)
    )


def _scaled(epsilon: float, mass: float, is_outside: bool, low: float, high: float) -> float:
    """e^epsilon times N(0, 1)'s mass, in logarithms where it is far out."""
    if mass > 1e-280:
        return math.exp(epsilon + math.log(mass))
    if is_outside:
        return math.exp(epsilon + float(np.logaddexp(log_ndtr(low), log_ndtr(-high))))
    return 0.0


@dataclass(frozen=True)
class _Integrand:
    """ln of M(z) e^(-z eps) / (z (z + 1)), M(z) = E1[e^(z loss)] = exp(z D_(1+z)), and its derivatives in z."""

    slope: Array  # 1 - ratio: M is finite for 1 + z slope > 0
    shift: Array
    drift: float  # epsilon + sum of ln(ratio) / 2

    def __call__(self, z: NDArray[np.complex128]) -> NDArray[np.complex128]:
        mixed = 1 + z[:, None] * self.slope
        bent = z[:, None] * (1 + z[:, None]) / mixed
        value = -z * self.drift - np.log(z) - np.log(1 + z) - 0.5 * np.log(mixed).sum(axis=1)
        return np.asarray(value + 0.5 * bent @ self.shift**2)

    def derivatives(self, z: complex) -> tuple[complex, complex]:
        s, d2 = self.slope, self.shift**2
        mixed = 1 + z * s
        first = -self.drift - 1 / z - 1 / (1 + z) - 0.5 * np.sum(s / mixed)
        first += 0.5 * np.sum(d2 * ((1 + 2 * z) / mixed - z * (1 + z) * s / mixed**2))
        second = 1 / z**2 + 1 / (1 + z) ** 2 + 0.5 * np.sum((s / mixed) ** 2)
        # d²/dz² of z (1 + z) / (1 + z s) is 2 (1 - s) / (1 + z s)³.
        second += np.sum(d2 * (1 - s) / mixed**3)
        return complex(first), complex(second)


def _inverted(ratio: Array, shift: Array, epsilon: float) -> float:
    """delta = 1/(2 pi i) ∫ M(z) e^(-z eps) / (z (z + 1)) dz along Re z = c > 0."""
    integrand = _Integrand(1 - ratio, shift, epsilon + 0.5 * float(np.log(ratio).sum()))
    centre = _saddle(integrand)
    peak = float(integrand(np.asarray([complex(centre)]))[0].real)
    if peak < -740:
        return 0.0
    return min(1.0, max(0.0, math.exp(peak) / math.pi * _half_line(integrand, centre, peak)))


def _saddle(integrand: _Integrand) -> float:
    """Where on (0, pole) the integrand is smallest (it is log-convex): the vertical line there cancels least."""
    steepest = float(np.max(-integrand.slope))
    pole = 1 / steepest if steepest > 0 else math.inf

    def at(t: float) -> float:  # (0, pole), or (0, inf), from a line
        return pole / (1 + math.exp(-t)) if math.isfinite(pole) else math.exp(t)

    found = minimize_scalar(
        lambda t: float(integrand(np.asarray([complex(at(t))]))[0].real),
        bounds=(-40.0, 30.0),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return at(float(found.x))


def _half_line(integrand: _Integrand, centre: float, peak: float) -> float:
    """Integral over y > 0 of the integrand's real part over its height e^peak, panel by panel.

    A panel is short against the distance to the poles, which is at least y, and changes the logarithm by at most 8.
    What is left beyond the last one is its first term by parts, -f/g' with g = ln f, right to g''/g'² of itself.
    """
    curvature = abs(integrand.derivatives(complex(centre))[1])
    total, low, width = 0.0, 0.0, min(centre / 4, 1 / math.sqrt(curvature))
    for _ in range(_MOST_PANELS):
        ends = integrand(np.asarray([complex(centre, low), complex(centre, low + width)]))
        if abs(ends[1] - ends[0]) > 8.0:
            width /= 2
            continue
        y = low + width * (_NODES + 1) / 2
        total += (
            width
            / 2
            * float(_WEIGHTS @ np.exp(integrand((centre + 1j * y).astype(np.complex128)) - peak).real)
        )
        low += width
        first, second = (1j * d for d in integrand.derivatives(centre + 1j * low))
        value = np.exp(ends[1] - peak)
        rest = -value / first
        if abs(rest) * min(1.0, abs(second / first**2)) * 4 < _RELATIVE:
            return total + float(rest.real)
        width = min(1.6 * width, max(low, centre) / 2)
    return total
