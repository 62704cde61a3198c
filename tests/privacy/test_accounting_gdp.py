"""Gaussian differential privacy against dp_accounting, an integral, and the numerical composition."""

import math

import pytest
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from noise_models.errors import UsageError
from privacy.accounting import gdp
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

DELTA = 1e-5


def label(noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
    return ReleaseEvent(
        mechanism="label-gaussian",
        source="label",
        sample_rate=1.0,
        noise_multiplier=noise_multiplier,
        sensitivity=1.0,
        dimension=10,
        epoch=epoch,
    )


@given(st.floats(1e-3, 30.0), st.floats(0.0, 40.0))
@settings(max_examples=100, deadline=None)
def test_epsilon_mu_and_delta_invert_each_other(mu: float, epsilon: float) -> None:
    delta = gdp.gaussian_delta(mu, epsilon)
    if not 1e-250 < delta < 0.99:
        return
    assert gdp.gaussian_epsilon(mu, delta) == pytest.approx(epsilon, abs=1e-8)
    assert gdp.gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-6)
    assert gdp.gaussian_delta(gdp.gaussian_mu(epsilon, delta), epsilon) <= delta * (1 + 1e-9)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 4.0])
def test_delta_is_the_positive_part_of_the_densities_difference(mu: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return (math.exp(-((x - mu) ** 2) / 2) - math.exp(epsilon - x**2 / 2)) / math.sqrt(2 * math.pi)

    threshold = epsilon / mu + mu / 2
    direct, _ = quad(excess, threshold, max(threshold, mu) + 40, epsabs=1e-14, epsrel=1e-11, limit=200)
    assert gdp.gaussian_delta(mu, epsilon) == pytest.approx(direct, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.01])
def test_epsilon_equals_dp_accountings(mu: float, delta: float) -> None:
    assert gdp.gaussian_epsilon(mu, delta) == pytest.approx(get_epsilon_gaussian(1 / mu, delta), rel=1e-6)


def test_label_releases_are_parallel_within_an_epoch_and_compose_over_epochs() -> None:
    tally = {
        label(2.0): 100,
        label(4.0): 3,
        label(5.0, epoch=1): 100,
        label(3.0, epoch=1): 1,
        label(9.0, epoch=2): 0,
    }
    mu = math.hypot(1 / 2, 1 / 3)
    assert gdp.epsilon(tally, DELTA, Adjacency.LABEL) == pytest.approx(
        gdp.gaussian_epsilon(mu, DELTA), rel=1e-12
    )
    assert gdp.epsilon({}, DELTA, Adjacency.LABEL) == 0.0
    assert gdp.epsilon({label(0.0): 1, label(1.0): 1}, DELTA, Adjacency.LABEL) == math.inf


@pytest.mark.parametrize("multipliers", [[10.0] * 20, [1.0, 2.0, 3.0], [0.5], [30.0] * 50])
def test_the_numerical_check_agrees_with_the_closed_form(multipliers: list[float]) -> None:
    tally = {label(sigma, epoch): 7 for epoch, sigma in enumerate(multipliers)}
    closed = gdp.epsilon(tally, DELTA, Adjacency.LABEL, "gdp")
    numerical = gdp.epsilon(tally, DELTA, Adjacency.LABEL, "numerical")
    assert closed * (1 - 1e-9) <= numerical <= closed * (1 + 5e-4)


@pytest.mark.parametrize(
    ("release", "adjacency", "accountant", "message"),
    [
        (label(1.0), Adjacency.ADD_REMOVE, "gdp", "adjacency 'label'"),
        (label(1.0), Adjacency.REPLACE_ONE, "gdp", "adjacency 'label'"),
        (label(1.0), Adjacency.LABEL, "pld", "'pld' does not cover"),
        (
            ReleaseEvent("gaussian", "digital", 1.0, 1.0, 1.0, 1),
            Adjacency.LABEL,
            "gdp",
            "mechanism 'gaussian'",
        ),
        (
            ReleaseEvent("label-gaussian", "label", 0.5, 1.0, 1.0, 1),
            Adjacency.LABEL,
            "gdp",
            "sample_rate = 0.5",
        ),
    ],
)
def test_wrong_use_gets_one_line(
    release: ReleaseEvent, adjacency: Adjacency, accountant: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        gdp.epsilon({release: 1}, DELTA, adjacency, accountant)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mu", "delta"), [(-1.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0), (math.nan, 0.5)]
)
def test_what_is_no_gaussian_dp_is_refused(mu: float, delta: float) -> None:
    with pytest.raises(UsageError):
        gdp.gaussian_epsilon(mu, delta)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(UsageError):
        gdp.gaussian_mu(-1.0, DELTA)


def test_very_little_noise_is_infinite() -> None:
    assert gdp.gaussian_epsilon(1e5, DELTA) == math.inf
    assert gdp.epsilon({label(0.001): 1}, DELTA, Adjacency.LABEL, "numerical") == math.inf
