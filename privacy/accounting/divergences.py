"""Exact divergences of two Gaussians with any covariances, singular ones included (THEORY T2).

D_alpha(N1 || N2) and delta(eps) = sup_A N1(A) - e^eps N2(A), the first argument being the world tested FOR. Two
Gaussians either have the same support (an affine subspace) or no set in common: then D = inf and delta = 1 for
every eps, both ways. On a common support they are diagonalised together, N2 to independent standard normals, N1 to
independent N(shift, ratio): everything below is a function of those pairs.

delta(eps) inverts the moment generating function of the privacy loss (a generalised chi-square) along a vertical line
through the saddle point, where the integrand is smallest; one coordinate, and equal covariances, have closed forms.
Stated error: 1e-8 absolute ("Normal Distributions Indistinguishability Spectrum", arXiv 2309.01243, has the same
quantity by other means).

Whether a variance is zero cannot be decided below the rounding of the covariance that holds it. An entry S_ij is
taken to be known to ENTRY_ERROR sqrt(S_ii S_jj), as sums of products are: the size of a coordinate does not matter, a
variance of 1e-30 along an axis is a variance, and zero is zero. In units of every coordinate's own standard deviation:

* a direction whose variance is above that rounding is treated as it stands, its share of the result being known to
  rounding / variance relative; one whose ratio of variances is lost in rounding tells the worlds apart: inf;
* a covariance that is asymmetric or indefinite beyond it is known less well than that: inf;
* along a direction whose variance is within it, a mean difference that rounding of the means and of the covariance
  cannot make tells the worlds apart: inf, even if the variance were not quite zero; a smaller one, and how the
  variances compare, cannot be told from nothing and count as nothing, as they must where singular supports are one.

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

ENTRY_ERROR = 64 * float(np.finfo(float).eps)  # of a covariance's entries, and of means, relative
ROUNDING = 4 * float(np.finfo(float).eps)  # of a factor, relative, for each row or column

# Beyond this D_(1/2) delta counts as 1 and epsilon as inf: min(p, e^eps q) <= e^(eps/2) sqrt(p q), so that
# delta(eps) >= 1 - e^((eps - D_(1/2)) / 2), and an epsilon above it says nothing.
_FAR = 1e7
_CERTAIN = 80.0  # where D_(1/2) - eps is larger, 1 - delta is below 5e-18
_RELATIVE = (
    1e-10  # of the integral, in units of the integrand's height at the saddle, or of 1 if that is less
)
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
        tolerance: float = ENTRY_ERROR,
    ) -> Self:
        """The pair N1 = N(first), N2 = N(second); the module's head says what counts as zero.

        Args:
            first_mean, second_mean: shape (n,).
            first_covariance, second_covariance: shape (n, n), symmetric, positive semidefinite.
            tolerance: to which an entry S_ij is known in units of sqrt(S_ii S_jj), and a mean's in its own; about
                m 1e-16 for a sum of m products.

        Raises:
            UsageError: shapes that do not fit, values that are not finite, a covariance that is none.
        """
        means = [np.asarray(mean, dtype=np.float64) for mean in (first_mean, second_mean)]
        covariances = [np.asarray(value, dtype=np.float64) for value in (first_covariance, second_covariance)]
        _check(means, covariances, means[0].size, tolerance)
        apart = cls(np.ones(0), np.zeros(0), singular=True)
        # Halves first: neither a sum nor a difference of large values overflows.
        halves = [np.maximum(np.diag(value), 0.0) / 2 for value in covariances]
        variance = halves[0] + halves[1]
        noised = variance > 0
        shift, blurred = means[0] - means[1], tolerance * (np.abs(means[0]) + np.abs(means[1]))
        if (np.abs(shift) > blurred)[~noised].any() or any(value[~noised].any() for value in covariances):
            return apart
        if not noised.any():
            return cls(np.ones(0), np.zeros(0))
        unit = np.sqrt(variance[noised])
        shift, blurred = shift[noised] / unit, blurred[noised] / unit
        first, second = ((value[np.ix_(noised, noised)] / unit / unit[:, None]) for value in covariances)
        scale, basis = np.linalg.eigh((first + second) / 2)
        rounding = len(unit) * tolerance  # of `scale`: the norm of what the entries' errors can make
        for value in (first, second):
            if np.abs(value - value.T).max() > rounding or np.linalg.eigvalsh(value)[0] < -rounding:
                return apart
        present = scale > rounding
        along = basis.T @ shift
        # What rounding makes of it: that of the means, and an absent direction is off by rounding / scale towards each
        # that is present.
        made = np.abs(basis).T @ blurred + rounding * float(np.sum(np.abs(along[present]) / scale[present]))
        if (np.abs(along) > made)[~present].any():
            return apart
        whitener = basis[:, present] / np.sqrt(scale[present])
        share, rotation = np.linalg.eigh(whitener.T @ first @ whitener / 2)
        # N1 has the variance 2 share, N2 2 (1 - share), each with the entries' errors as the direction weighs them.
        blur = np.maximum(
            math.sqrt(np.finfo(float).eps), 2 * tolerance * np.abs(whitener @ rotation).sum(axis=0) ** 2
        )
        if ((share < blur) | (share > 1 - blur)).any():
            return apart
        whitened = rotation.T @ (along[present] / np.sqrt(scale[present]))
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
        if self.renyi(0.5) > min(epsilon + _CERTAIN, _FAR):
            return 1.0
        moving = (np.abs(self.ratios - 1) > 1e-13) | (self.shifts != 0)
        ratio, shift = self.ratios[moving], self.shifts[moving]
        if (np.abs(ratio - 1) <= 1e-13).all():
            return max(0.0, gaussian_delta(float(np.linalg.norm(shift)), epsilon))
        if len(ratio) == 1:
            return _one_coordinate(float(ratio[0]), float(shift[0]), epsilon)
        return _inverted(ratio, shift, epsilon)

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon >= 0 with delta(epsilon) <= delta in this direction; inf above 1e7 or if singular.

        Raises:
            UsageError: a delta outside (0, 1).
        """
        if not 0 < delta < 1:
            raise UsageError(f"delta = {delta!r}: give a probability with 0 < delta < 1")
        if self.singular or self.renyi(0.5) > _FAR:
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
    odds = np.asarray([_odds(slope[:, k, None] * rows, record) for k in live], dtype=np.float64)
    if not np.isfinite(odds).all():
        return GaussianPair(np.ones(0), np.zeros(0), singular=True)
    return GaussianPair(1 + odds, error[live] / noise_std * np.sqrt(odds))


def _odds(rows: Array, record: int) -> float:
    """tau / (1 - tau) = h^T (sum over the others)^+ h of the record's leverage tau; inf outside the others' span.

    From the factors, columns in units of the others' norms, which changes no leverage: rounding is a few eps there, not
    of its square. A column that is zero on all others is exactly that. Otherwise the record counts as inside the
    span if changes of the rows by rounding put it there; directions within rounding of absence are absent.
    """
    others, own = np.delete(rows, record, axis=0), rows[record]
    lit = (others != 0).any(axis=0)
    if own[~lit].any():
        return math.inf
    if not own.any():
        return 0.0
    others, own = others[:, lit], own[lit]
    largest = np.abs(others).max(axis=0)
    unit = largest * np.linalg.norm(others / largest, axis=0)
    others, own = others / unit, own / unit
    _, values, axes = np.linalg.svd(others, full_matrices=False)
    rounding = ROUNDING * max(others.shape) * float(values[0])
    kept = values > rounding
    along = axes[kept] @ own
    weights = along / values[kept]  # of the others: the record is their sum with the least squares
    odds = float(np.sum(weights**2))
    backward = rounding * math.sqrt(odds) + ROUNDING * float(np.linalg.norm(own))
    return odds if np.linalg.norm(own - axes[kept].T @ along) <= backward else math.inf


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
    allowed = _RELATIVE * math.exp(-max(0.0, peak))
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
        if abs(rest) * min(1.0, abs(second / first**2)) * 4 < allowed:
            return total + float(rest.real)
        width = min(1.6 * width, max(low, centre) / 2)
    return total
