"""The Gaussian accountants against values no library of accounting computed, and against its two-sided estimates."""

import math
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from privacy.accounting import epsilon, gaussian
from privacy.accounting.discretisation import Group
from privacy.accounting.numerical import compose
from privacy.notions import Adjacency

DELTA = 1e-5
ADD_REMOVE, REPLACE = Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE
CASES = [(0.05, 1.0), (0.3, 2.0), (0.01, 0.7)]


def two_steps(q: float, sigma: float, epsilon: float, *, remove: bool) -> float:
    """delta of two Poisson-subsampled Gaussian steps, integrated over the plane of their two outputs.

    The inner integral over the second output is a normal distribution function at the point where the loss of the
    second step makes up for that of the first; the outer one is adaptive quadrature.
    """

    def loss(x: float) -> float:  # of one step with the record against without
        return math.log1p(q * math.expm1((2 * x - 1) / (2 * sigma**2)))

    def where(target: float) -> float:  # the output of that loss; -inf below the infimum
        inside = 1 + math.expm1(target) / q
        return sigma**2 * math.log(inside) + 0.5 if inside > 0 else -math.inf

    def with_record_above(x: float) -> float:
        return float((1 - q) * ndtr(-x / sigma) + q * ndtr((1 - x) / sigma))

    def without_above(x: float) -> float:
        return float(ndtr(-x / sigma))

    def density(x: float) -> float:
        return math.exp(-0.5 * (x / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))

    def excess(x: float) -> float:
        first = loss(x)
        if remove:  # gain where loss(x) + loss(y) > epsilon
            y = where(epsilon - first)
            return density(x) * (
                math.exp(first) * with_record_above(y) - math.exp(epsilon) * without_above(y)
            )
        y = where(-epsilon - first)  # gain where loss(x) + loss(y) < -epsilon
        if y == -math.inf:
            return 0.0
        return density(x) * ((1 - without_above(y)) - math.exp(epsilon + first) * (1 - with_record_above(y)))

    # The add direction gains only while the second step can still lose enough: a kink.
    kink = where(-epsilon - math.log1p(-q)) if not remove else 0.0
    points = sorted(
        {
            -11 * sigma,
            *(p for p in (kink, 0.0, 1.0) if math.isfinite(p) and abs(p) < 11 * sigma),
            11 * sigma + 1,
        }
    )
    return math.fsum(
        quad(excess, low, high, epsabs=1e-14, epsrel=1e-10, limit=400)[0] for low, high in pairwise(points)
    )


@pytest.mark.parametrize(("q", "sigma"), CASES)
@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 2.0])
def test_two_steps_against_integration_over_the_plane(q: float, sigma: float, at: float) -> None:
    exact = max(two_steps(q, sigma, at, remove=True), two_steps(q, sigma, at, remove=False))
    value = compose((Group(q, sigma, 2),), ADD_REMOVE).delta(at)
    assert exact - 1e-11 <= value <= exact * (1 + 1e-3) + 1e-9


@pytest.mark.parametrize(("q", "sigma"), CASES)
@pytest.mark.parametrize("accountant", ["pld", "numerical"])
def test_epsilon_of_two_steps_against_integration(q: float, sigma: float, accountant: str) -> None:
    def excess(at: float) -> float:
        return max(two_steps(q, sigma, at, remove=way) for way in (True, False)) - DELTA

    exact = float(brentq(excess, 1e-3, 30.0, xtol=1e-6))
    value = epsilon({gaussian(q, sigma): 2}, DELTA, accountant=accountant)
    assert exact - 1e-5 <= value <= exact * (1 + 1e-3) + 1e-4


@pytest.mark.parametrize("at", [0.0, 0.2, 1.0])
def test_two_steps_by_quasi_monte_carlo(at: float) -> None:
    """The integral itself against a lattice rule over the plane: both worlds' densities, nothing inverted."""
    q, sigma, n = 0.3, 1.0, 2**20
    lattice = (np.outer(np.arange(n), [1.0, 0.6180339887498949]) / n * [1, n] + 0.5 / n) % 1.0
    x = sigma * ndtri(np.clip(lattice, 1e-15, 1 - 1e-15))  # outputs without the record
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2))).sum(axis=1)
    remove = float(np.mean(np.clip(np.exp(loss) - math.exp(at), 0, None)))
    add = float(np.mean(np.clip(1 - np.exp(at + loss), 0, None)))
    assert remove == pytest.approx(two_steps(q, sigma, at, remove=True), abs=5e-5)
    assert add == pytest.approx(two_steps(q, sigma, at, remove=False), abs=5e-5)


@pytest.mark.parametrize(
    ("q", "sigma", "steps"), [(256 / 60000, 1.1, 10000), (0.02, 1.5, 300), (0.2, 4.0, 50), (0.5, 3.0, 3)]
)
@pytest.mark.parametrize("adjacency", [ADD_REMOVE, REPLACE])
@pytest.mark.parametrize("accountant", ["pld", "numerical"])
def test_the_optimistic_and_the_pessimistic_estimate_bracket_ours(
    q: float, sigma: float, steps: int, adjacency: Adjacency, accountant: str
) -> None:
    relation = {
        ADD_REMOVE: NeighboringRelation.ADD_OR_REMOVE_ONE,
        REPLACE: NeighboringRelation.REPLACE_ONE,
    }[adjacency]
    low, high = (
        privacy_loss_distribution.from_gaussian_mechanism(
            sigma,
            sampling_prob=q,
            pessimistic_estimate=pessimistic,
            value_discretization_interval=1e-3,
            use_connect_dots=False,
            neighboring_relation=relation,
        )
        .self_compose(steps)
        .get_epsilon_for_delta(DELTA)
        for pessimistic in (False, True)
    )
    assert low < high
    assert low <= epsilon({gaussian(q, sigma): steps}, DELTA, adjacency, accountant) <= high


@pytest.mark.parametrize("steps", [10, 1000])
def test_gaussian_dp_equals_every_other_accountant_without_sampling(steps: int) -> None:
    from privacy.accounting.gdp import gaussian_epsilon

    exact = gaussian_epsilon(math.sqrt(steps) / 40, DELTA)
    run = {gaussian(1.0, 40.0): steps}
    assert epsilon(run, DELTA, accountant="pld") == pytest.approx(exact, rel=2e-4)
    assert epsilon(run, DELTA, accountant="numerical") == pytest.approx(exact, rel=2e-4)
    assert exact < epsilon(run, DELTA, accountant="prv") < exact + 0.025
    assert exact < epsilon(run, DELTA, accountant="rdp") < 1.3 * exact
