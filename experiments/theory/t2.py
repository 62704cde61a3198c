"""T2: the product's divergences of two Gaussians against quadrature, chi-square laws and their limits."""

from __future__ import annotations

import math

import numpy as np

from experiments.theory.batch import hidden
from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, scaled_delta
from privacy.accounting.divergences import GaussianPair, batch_pair

_REACH, _POINTS = 12.0, 1201


def random_pair(seed: int) -> tuple[Array, Array, Array, Array]:
    """Means, shape (2,), and covariances, shape (2, 2), of two Gaussians in the plane: mean, covariance, and again."""
    generator = np.random.default_rng(seed)
    covariances = []
    for _ in range(2):
        root = np.eye(2) + 0.3 * generator.standard_normal((2, 2))
        covariances.append(root @ root.T)
    return generator.standard_normal(2), covariances[0], np.zeros(2), covariances[1]


def by_quadrature(
    pair: tuple[Array, Array, Array, Array], order: float, epsilon: float
) -> tuple[float, float]:
    """(D_order, delta(epsilon)) of the first against the second, summed over a fine grid of the plane."""
    axis = np.linspace(-_REACH, _REACH, _POINTS)
    cell = (axis[1] - axis[0]) ** 2
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    first, second = (_log_density(points - mean, covariance) for mean, covariance in (pair[:2], pair[2:]))
    moment = float(np.exp(order * first + (1 - order) * second).sum() * cell)
    hockey = float(np.maximum(np.exp(first) - np.exp(epsilon + second), 0.0).sum() * cell)
    return math.log(moment) / (order - 1), hockey


def _log_density(x: Array, covariance: Array) -> Array:
    quadratic = np.einsum("...i,ij,...j", x, np.linalg.inv(covariance), x)
    found: Array = -0.5 * quadratic - math.log(2 * math.pi) - 0.5 * np.linalg.slogdet(covariance)[1]
    return found


def of(pair: tuple[Array, Array, Array, Array]) -> GaussianPair:
    """The product's pair."""
    return GaussianPair.of(*pair)


def line_and_plane() -> GaussianPair:
    """One world has noise on a line, the other in the plane."""
    return GaussianPair.of(np.zeros(2), np.diag([1.0, 0.0]), np.zeros(2), np.eye(2))


def mean_off_the_line() -> GaussianPair:
    """The same noise on a line, means that differ across it by 1e-3."""
    line = np.diag([1.0, 0.0])
    return GaussianPair.of(np.array([0.0, 1e-3]), line, np.zeros(2), line)


def wide_against_narrow(ratio: float = 3.0, order: float = 2.0) -> tuple[float, float]:
    """(formula with the determinant's absolute value, D_order) of N(0, ratio) against N(0, 1) where it diverges."""
    mixed = order + (1 - order) * ratio
    blind = -0.5 / (order - 1) * (math.log(abs(mixed)) - (1 - order) * math.log(ratio))
    return blind, GaussianPair(np.array([ratio]), np.zeros(1)).renyi(order)


def instance(others: int, seed: int = 40) -> float:
    """Per-instance epsilon at delta = 1e-5 of record 0 in a realised batch with so many others, both ways."""
    generator = np.random.default_rng(seed)
    layer = hidden(generator, others + 1, 16, 4, 10, 3.0)
    pair = batch_pair(layer.slope, layer.h, layer.feedback[:, 0], 0, layer.sigma)
    return max(pair.epsilon(1e-5), pair.reversed().epsilon(1e-5))


def demonstrations() -> list[Demonstration]:
    found = []
    for seed, order, epsilon in ((1, 1.2, 0.0), (2, 1.5, 1.0)):
        pair = random_pair(seed)
        renyi, hockey = by_quadrature(pair, order, epsilon)
        case = f"pair {seed} in the plane against quadrature"
        found += [
            Demonstration(case, f"D_{order:g}", of(pair).renyi(order), renyi, tolerance=1e-6),
            Demonstration(
                case, f"δ at ε = {epsilon:g}", of(pair).hockey_stick(epsilon), hockey, tolerance=1e-3
            ),
        ]
    blind, diverging = wide_against_narrow()
    chi_square = GaussianPair(np.full(512, 1.1), np.zeros(512))
    wide = max(chi_square.hockey_stick(1.0), chi_square.reversed().hockey_stick(1.0))
    finite = instance(400)
    return [
        *found,
        Demonstration(
            "512 variances of ratio 1.1 against the chi-square law",
            "δ at ε = 1",
            wide,
            scaled_delta(1.0, 512, 1.1),
            tolerance=1e-6,
        ),
        Demonstration(
            "noise on a line against noise in the plane",
            "D_2",
            1e3,
            line_and_plane().renyi(2.0),
            "equal ranges",
        ),
        Demonstration(
            "means that differ across the line by 1/1000",
            "δ at ε = 10",
            1e-5,
            mean_off_the_line().hockey_stick(10.0),
            "the mean difference lies in the range",
        ),
        Demonstration(
            "variance 3 against 1, formula used regardless",
            "D_2",
            blind,
            diverging,
            "Σ_α is positive definite",
        ),
        Demonstration(
            "per-instance ε of a batch with 400 others taken for one with 12",
            "ε at δ = 10⁻⁵",
            finite,
            instance(12),
            "a diagnostic, never a guarantee",
        ),
    ]
