"""The accountants against closed forms, quadrature, each other, and the arithmetic of THEORY T4."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from noise_models.errors import UsageError
from privacy.accounting import epsilon, gaussian, noise_multiplier, steps_within
from privacy.accounting.discretisation import Group
from privacy.accounting.numerical import compose
from privacy.notions import Adjacency

DELTA = 1e-5
ROOT = Path(__file__).parents[2]
ADD_REMOVE, REPLACE = Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE
rates, multipliers = st.floats(0.002, 1.0), st.floats(0.6, 5.0)


def gaussian_delta(eps: float, mu: float) -> float:
    """delta(eps) of mu-Gaussian DP, exactly (Balle and Wang 2018, Theorem 8)."""
    return float(ndtr(mu / 2 - eps / mu) - math.exp(eps + log_ndtr(-mu / 2 - eps / mu)))


def gaussian_epsilon(delta: float, mu: float) -> float:
    return float(brentq(lambda eps: gaussian_delta(eps, mu) - delta, 0, 1000, xtol=1e-12))


@pytest.mark.parametrize(
    ("batch", "sigma", "steps", "expected"),
    [(256, 1.0, 1000, 0.728), (256, 1.1, 10000, 1.978), (256, 4.0, 10000, 0.374), (2048, 1.0, 1000, 7.088),
     (2048, 4.0, 10000, 3.728)],
)  # fmt: skip
@pytest.mark.parametrize("accountant", ["pld", "numerical"])
def test_published_figures(batch: int, sigma: float, steps: int, expected: float, accountant: str) -> None:
    value = epsilon({gaussian(batch / 60000, sigma): steps}, DELTA, accountant=accountant)
    assert value == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("accountant", ["pld", "numerical"])
@pytest.mark.parametrize(("sigma", "steps"), [(0.7, 1), (5.0, 1), (2.0, 100), (30.0, 1000), (100.0, 100_000)])
@pytest.mark.parametrize("adjacency", [ADD_REMOVE, REPLACE])
def test_without_sampling_the_gaussian_closed_form(
    accountant: str, sigma: float, steps: int, adjacency: Adjacency
) -> None:
    mu = math.sqrt(steps) / sigma * (2 if adjacency is REPLACE else 1)
    exact = gaussian_epsilon(DELTA, mu)
    value = epsilon({gaussian(1.0, sigma): steps}, DELTA, adjacency, accountant)
    assert exact * (1 - 1e-9) <= value <= exact * (1 + 2e-4)


def hockey_stick(q: float, sigma: float, eps: float, direction: str) -> float:
    """One step's divergence by adaptive quadrature of the positive part of the densities' difference."""

    def normal(x: float, mean: float) -> float:
        return math.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))

    def null(x: float) -> float:
        return normal(x, 0)

    def towards(mean: float, x: float) -> float:
        return (1 - q) * normal(x, 0) + q * normal(x, mean)

    def excess(x: float) -> float:
        if direction == "remove":
            return towards(1, x) - math.exp(eps) * null(x)
        if direction == "add":
            return null(x) - math.exp(eps) * towards(1, x)
        return towards(1, x) - math.exp(eps) * towards(-1, x)

    grid = np.linspace(-12 * sigma, 12 * sigma + 1, 4001)
    signs = np.sign([excess(x) for x in grid])
    flips = [float(brentq(excess, grid[i], grid[i + 1])) for i in np.flatnonzero(np.diff(signs))]
    edges = [float(grid[0]), *flips, float(grid[-1])]
    pieces = (quad(excess, a, b, epsabs=1e-13, epsrel=1e-10)[0] for a, b in pairwise(edges))
    return float(sum(max(piece, 0.0) for piece in pieces))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rates, multipliers, st.floats(0.0, 3.0))
def test_one_step_against_quadrature(q: float, sigma: float, eps: float) -> None:
    """The discretised distribution dominates the exact one, and barely."""
    for adjacency, directions in ((ADD_REMOVE, ("add", "remove")), (REPLACE, ("replace",))):
        exact = max(hockey_stick(q, sigma, eps, direction) for direction in directions)
        value = compose((Group(q, sigma, 1),), adjacency).delta(eps)
        assert exact - 1e-10 <= value <= exact * (1 + 1e-3) + 1e-8


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rates,
    multipliers,
    st.integers(1, 3000),
    st.sampled_from([1e-7, 1e-5, 1e-3]),
    st.sampled_from([ADD_REMOVE, REPLACE]),
)
def test_two_independent_implementations_agree(
    q: float, sigma: float, steps: int, delta: float, adjacency: Adjacency
) -> None:
    run = {gaussian(q, sigma): steps}
    ours, theirs = (epsilon(run, delta, adjacency, name) for name in ("numerical", "pld"))
    assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("q", "sigma", "steps"), [(256 / 60000, 1.1, 10000), (0.05, 2.0, 500), (0.01, 0.8, 300)]
)
def test_prv_and_rdp_cross_checks(q: float, sigma: float, steps: int) -> None:
    run = {gaussian(q, sigma): steps}
    pld = epsilon(run, DELTA)
    assert pld == pytest.approx(
        epsilon(run, DELTA, accountant="prv"), abs=0.025
    )  # its own error bound is 0.01
    assert pld < epsilon(run, DELTA, accountant="rdp") < 1.6 * pld


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.floats(0.005, 0.5), multipliers, st.integers(2, 2000), st.sampled_from([ADD_REMOVE, REPLACE]))
def test_monotone(q: float, sigma: float, steps: int, adjacency: Adjacency) -> None:
    def at(q: float = q, sigma: float = sigma, steps: int = steps, delta: float = DELTA) -> float:
        return epsilon({gaussian(q, sigma): steps}, delta, adjacency, "numerical")

    here = at()
    assert at(sigma=1.2 * sigma) < here
    assert at(steps=2 * steps) > here
    assert at(q=1.5 * q) > here
    assert at(delta=1e-6) > here
    if adjacency is ADD_REMOVE:
        assert epsilon({gaussian(q, sigma): steps}, DELTA, REPLACE, "numerical") > here


@pytest.mark.parametrize("accountant", ["pld", "numerical", "rdp"])
def test_different_steps_compose(accountant: str) -> None:
    """Order does not matter; q = 1 groups combine like sigma = (sum T / sigma²)^-1/2."""
    one, two = gaussian(0.02, 1.5), gaussian(0.05, 3.0)
    assert epsilon([one, two] * 50, DELTA, accountant=accountant) == epsilon(
        {two: 50, one: 50}, DELTA, accountant=accountant
    )
    mixed = epsilon({gaussian(1.0, 20.0): 30, gaussian(1.0, 10.0): 10}, DELTA, accountant=accountant)
    single = epsilon({gaussian(1.0, (30 / 400 + 10 / 100) ** -0.5): 1}, DELTA, accountant=accountant)
    assert mixed == pytest.approx(single, rel=1e-3)


def test_edges() -> None:
    assert epsilon([], DELTA) == 0.0
    assert epsilon({gaussian(0.1, 1.0): 0}, DELTA) == 0.0
    assert epsilon([gaussian(0.1, 0.0)], DELTA) == math.inf
    assert epsilon([gaussian(0.1, 1.0), gaussian(0.1, 0.0)], DELTA) == math.inf
    assert epsilon([gaussian(1e-6, 5.0)], 0.5) == 0.0
    tiny = epsilon({gaussian(1.0, 0.05): 3}, DELTA)
    assert tiny == pytest.approx(gaussian_epsilon(DELTA, math.sqrt(3) / 0.05), rel=2e-3)


def test_extra_losses_by_hand() -> None:
    """THEORY T4: eps = eps_ideal(delta') + R, delta = e^I delta' + (1 + e^eps) M; q = 1: closed form."""
    steps, sigma = 50, 10.0
    step = gaussian(1.0, sigma, log_ratio=1e-3, log_inflation=2e-3, mass=2e-9)
    total_ratio, total_inflation, total_mass = 0.05, 0.1, 1e-7
    value = epsilon({step: steps}, DELTA, accountant="numerical")
    inner = (DELTA - (1 + math.exp(value)) * total_mass) * math.exp(-total_inflation)
    expected = gaussian_epsilon(inner, math.sqrt(steps) / sigma) + total_ratio
    assert value == pytest.approx(expected, rel=1e-4)
    assert value > epsilon({gaussian(1.0, sigma): steps}, DELTA, accountant="numerical") + total_ratio


def test_extra_losses_one_at_a_time() -> None:
    def at(delta: float = DELTA, beta: float = 0.0, **extra: float) -> float:
        return epsilon({gaussian(0.02, 1.5, **extra): 100}, delta, beta=beta)

    assert at(log_ratio=0.01) == pytest.approx(at() + 1.0, rel=1e-12)
    assert at(log_inflation=0.01) == pytest.approx(at(delta=DELTA / math.e), rel=1e-9)
    assert at(beta=DELTA / 2) == pytest.approx(at(delta=DELTA / 2), rel=1e-12)
    assert at(mass=1e-7) == math.inf  # 100 steps of it use up delta
    assert at(log_inflation=10.0) == math.inf  # e^-1000 of delta is left: nothing


@pytest.mark.parametrize("accountant", ["pld", "numerical", "rdp"])
@pytest.mark.parametrize(
    ("target", "delta", "q", "steps"),
    [(3.0, 1e-5, 4096 / 60000, 600), (1.0, 1e-6, 0.01, 2000), (0.1, 1e-5, 1.0, 1), (50.0, 1e-5, 0.2, 100)],
)
def test_calibration_never_overshoots(
    target: float, delta: float, q: float, steps: int, accountant: str
) -> None:
    sigma = noise_multiplier(target, delta, q, steps, accountant=accountant)
    assert target * 0.995 <= epsilon({gaussian(q, sigma): steps}, delta, accountant=accountant) <= target


def test_calibration_counts_the_device_and_replace_one() -> None:
    extra = {"log_ratio": 1e-4, "log_inflation": 1e-4, "mass": 1e-10}
    sigma = noise_multiplier(2.0, DELTA, 0.02, 500, REPLACE, beta=1e-6, **extra)
    assert sigma > noise_multiplier(2.0, DELTA, 0.02, 500, REPLACE) > noise_multiplier(2.0, DELTA, 0.02, 500)
    value = epsilon({gaussian(0.02, sigma, **extra): 500}, DELTA, REPLACE, beta=1e-6)
    assert 1.99 <= value <= 2.0
    with pytest.raises(UsageError, match="out of reach"):
        noise_multiplier(2.0, DELTA, 0.02, 500, log_ratio=0.01)
    assert noise_multiplier(1.0, DELTA, 0.1, 0) == 0.0


def test_calibration_at_a_delta_below_the_numerical_resolution() -> None:
    sigma = noise_multiplier(3.0, 1e-12, 0.01, 1000)
    assert 2.98 <= epsilon({gaussian(0.01, sigma): 1000}, 1e-12) <= 3.0


@pytest.mark.parametrize("accountant", ["pld", "numerical"])
@pytest.mark.parametrize(
    ("q", "sigma", "target"), [(0.01, 1.0, 2.0), (0.07, 2.5, 3.0), (1.0, 5.0, 1.0), (0.5, 0.5, 8.0)]
)
def test_steps_within_is_the_last_step(q: float, sigma: float, target: float, accountant: str) -> None:
    step = gaussian(q, sigma)
    steps = steps_within(target, DELTA, step, accountant=accountant)
    assert steps == 0 or epsilon({step: steps}, DELTA, accountant=accountant) <= target
    assert epsilon({step: steps + 1}, DELTA, accountant=accountant) > target


def test_steps_within_after_a_resume() -> None:
    step, other = gaussian(0.02, 1.5), gaussian(0.05, 2.0)
    total = steps_within(2.0, DELTA, step)
    assert steps_within(2.0, DELTA, step, spent={step: 100}) == total - 100
    left = steps_within(2.0, DELTA, step, spent={other: 40})
    assert epsilon({step: left, other: 40}, DELTA) <= 2.0 < epsilon({step: left + 1, other: 40}, DELTA)
    assert steps_within(2.0, DELTA, step, spent={step: total}) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, "delta = 0.0"),
        ({"delta": 1.0}, "delta = 1.0"),
        ({"delta": math.nan}, "delta = nan"),
        ({"delta": -1e-5}, "delta = -1e-05"),
        ({"target_epsilon": 0.0}, "epsilon = 0.0"),
        ({"target_epsilon": -3.0}, "epsilon = -3.0"),
        ({"target_epsilon": math.nan}, "epsilon = nan"),
        ({"target_epsilon": math.inf}, "epsilon = inf"),
        ({"sample_rate": 0.0}, "sample_rate = 0.0"),
        ({"sample_rate": 1.01}, "sample_rate = 1.01"),
        ({"sample_rate": math.nan}, "sample_rate = nan"),
        ({"steps": -1}, "steps = -1"),
        ({"steps": 1.5}, "steps = 1.5"),
        ({"beta": 1e-5}, "beta = 1e-05"),
        ({"accountant": "gdp"}, "unknown accountant 'gdp'"),
        ({"adjacency": Adjacency.LABEL}, "use 'add-or-remove-one' or 'replace-one'"),
        ({"adjacency": REPLACE, "accountant": "rdp"}, "'rdp' covers add-or-remove-one"),
        ({"adjacency": REPLACE, "accountant": "prv"}, "'prv' covers add-or-remove-one"),
    ],
)
def test_wrong_values_get_one_line(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {
        "target_epsilon": 1.0,
        "delta": DELTA,
        "sample_rate": 0.01,
        "steps": 10,
        **change,
    }
    with pytest.raises(UsageError) as caught:
        noise_multiplier(**values)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_repeated_calls_do_not_recompute() -> None:
    from privacy.accounting import pld

    run = {gaussian(0.0123, 1.7): 321}
    first = epsilon(run, DELTA)
    before = pld.compose.cache_info()
    assert epsilon(list(run) * 321, DELTA) == first
    assert pld.compose.cache_info() == before


def test_accounting_loads_no_torch() -> None:
    program = (
        "import sys; from privacy.accounting import *; import privacy.guarantee;"
        "assert 'numpy' not in sys.modules; print(epsilon([gaussian(0.1, 1.0)], 1e-5));"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
