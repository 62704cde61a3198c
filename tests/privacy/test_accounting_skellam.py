"""The Skellam law and mechanism: against mpmath's Bessel functions, sums, the paper's bound and dp_accounting."""

import math

import mpmath
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import skellam as skellam_law

from noise_models.errors import UsageError
from privacy.accounting import skellam
from privacy.accounting.ranges import LARGEST_NOISE, LEAST_NOISE
from privacy.accounting.skellam_law import curvature, hockey_stick_shift, log_pmf, renyi_shift
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

DELTA = 1e-5


def row(q: float, multiplier: float, l2: float, dimension: int = 10**6) -> ReleaseEvent:
    return ReleaseEvent("skellam", "skellam", q, multiplier, l2, dimension)


@pytest.mark.parametrize("argument", [0.01, 3.0, 499.0, 501.0, 1e4, 1e8])
@pytest.mark.parametrize("count", [0, 1, -7, 300, 5000])
def test_probabilities_against_mpmath(argument: float, count: int) -> None:
    with mpmath.workdps(40):
        exact = float(mpmath.log(mpmath.besseli(abs(count), argument)) - argument)
    assert log_pmf(np.asarray([count]), argument / 2)[0] == pytest.approx(exact, rel=3e-14, abs=3e-13)


@given(st.floats(0.2, 200.0), st.floats(0.2, 200.0))
@settings(max_examples=25, deadline=None)
def test_probabilities_sum_to_one_and_have_the_moments(first: float, second: float) -> None:
    count = np.arange(-1000, 1001)
    mass = np.exp(log_pmf(count, first, second))
    assert mass.sum() == pytest.approx(1.0, abs=1e-10)
    assert mass @ count == pytest.approx(first - second, abs=1e-7)
    assert mass @ (count - first + second) ** 2 == pytest.approx(first + second, rel=1e-7)
    assert mass[900:1101] == pytest.approx(skellam_law.pmf(count[900:1101], first, second), abs=1e-9)


@given(st.floats(0.3, 300.0), st.integers(1, 30), st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_renyi_of_a_shift_against_every_term(variance: float, shift: int, order: int) -> None:
    count = np.arange(-600, 600 + 2 * order * shift)
    base = log_pmf(count, variance / 2)
    terms = base + order * (log_pmf(count - shift, variance / 2) - base)
    direct = float(np.logaddexp.reduce(terms)) / (order - 1)
    assert renyi_shift(order, variance, shift)[0] == pytest.approx(direct, rel=1e-9, abs=1e-13)
    assert renyi_shift(order, variance, -shift)[0] == pytest.approx(direct, rel=1e-9, abs=1e-13)


@given(st.floats(0.5, 1e6), st.integers(1, 300), st.sampled_from([2, 3, 5, 8, 16, 40, 128]))
@settings(max_examples=80, deadline=None)
def test_the_exact_divergence_is_within_the_papers_bound(variance: float, shift: int, order: int) -> None:
    exact = renyi_shift(order, variance, shift)[0]
    assert exact <= skellam.renyi_bound(order, variance, shift, shift) * (1 + 1e-9) + 1e-14


@given(st.floats(2.0, 1e4), st.sampled_from([1, 2, 7, 25]), st.floats(1.5, 40.0))
@settings(max_examples=40, deadline=None)
def test_divergence_grows_with_the_shift_and_falls_with_the_noise(
    variance: float, shift: int, order: float
) -> None:
    here = renyi_shift(order, variance, shift)[0]
    assert renyi_shift(order, variance, shift + 1)[0] > here
    assert renyi_shift(order, 1.5 * variance, shift)[0] < here


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_vector_bound_covers_random_integer_vectors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    variance, order = float(rng.uniform(2, 400)), float(rng.integers(2, 40))
    vector = np.abs(rng.integers(-6, 7, int(rng.integers(1, 30))))
    exact = sum(renyi_shift(order, variance, int(x))[0] for x in vector if x)
    l1, l2 = float(vector.sum()), math.sqrt(float(vector @ vector))
    assert exact <= skellam.renyi_exact([order], variance, l2)[0] * (1 + 1e-9)
    assert exact <= skellam.renyi_bound(int(order), variance, l2, max(l1, l2)) * (1 + 1e-9)


@pytest.mark.parametrize("variance", [3.0, 3.7, 20.0, 400.0, 600.0])
def test_the_curvature_bounds_every_second_difference(variance: float) -> None:
    assert curvature(2.99) == math.inf
    with mpmath.workdps(30):
        law = [-mpmath.log(mpmath.besseli(n, variance)) for n in range(60)]
        widest = max(float(a + c - 2 * b) for a, b, c in zip([law[1], *law], law, law[1:], strict=False))
    assert widest <= curvature(variance) <= widest * (1 + 2 / variance)


@given(st.floats(3.0, 1e6), st.integers(0, 50), st.integers(1, 50), st.floats(1.2, 60.0))
@settings(max_examples=60, deadline=None)
def test_a_shifts_divergence_grows_as_the_curvature_lets_it(
    variance: float, shift: int, further: int, order: float
) -> None:
    longer = shift + further
    room = order * curvature(variance) * (longer * (longer + 1) - shift * (shift + 1)) / 2
    here, there = (renyi_shift(order, variance, s)[0] for s in (shift, longer))
    assert there <= (here + room) * (1 + 1e-12)


@given(st.floats(-2, 7), st.floats(0, 1))
@example(4.0, 1.0)  # 300 shifts, of which two thirds are left out
@settings(max_examples=25, deadline=None)
def test_shifts_that_are_left_out_are_covered(power: float, part: float) -> None:
    orders, variance = np.asarray([1.5, 2.0, 8.0, 32.0]), 10**power
    l2 = 10 ** (part * min(math.log10(300), power / 2 + 1.7 if power > 0 else 1.5))
    every = [renyi_shift(orders, variance, shift) / shift**2 for shift in range(1, math.floor(l2) + 1)]
    ratio = skellam.renyi_exact(orders, variance, l2) / (np.max(every, axis=0) * l2**2)
    assert (ratio > 1 - 1e-12).all()
    assert (ratio < 1.00021).all()


@pytest.mark.parametrize(("variance", "shift"), [(1e12, 1), (1e18, 1), (1e18, 1000), (1e42, 10**15)])
def test_the_divergence_of_a_wide_law_is_not_rounded_away(variance: float, shift: int) -> None:
    orders = np.asarray([1.5, 2.0, 32.0, 2048.0])
    assert renyi_shift(orders, variance, shift) == pytest.approx(
        orders * shift**2 / (2 * variance), rel=1e-11
    )


@pytest.mark.parametrize("sigma", [LEAST_NOISE, 0.3, 28.1, 1e4, LARGEST_NOISE, 1e300])
@pytest.mark.parametrize("l2", [1e5, 2.09e14, 1e15])
def test_fine_grids_cost_what_the_papers_bound_says(sigma: float, l2: float) -> None:
    paper, exact = (
        skellam.epsilon({row(1.0, sigma, l2): 3}, 1e-12, Adjacency.ADD_REMOVE, name)
        for name in skellam.ACCOUNTANTS
    )
    assert exact == pytest.approx(paper, rel=1e-3)


@pytest.mark.parametrize("accountant", skellam.ACCOUNTANTS)
def test_beyond_its_ends_the_bound_is_larger_or_refused(accountant: str) -> None:
    def cost(sigma: float, l2: float) -> float:
        return skellam.epsilon({row(1.0, sigma, l2): 3}, 1e-12, Adjacency.ADD_REMOVE, accountant)

    assert cost(math.nextafter(LEAST_NOISE, 0), 50.0) == math.inf
    assert cost(1e200, 50.0) == cost(LARGEST_NOISE, 50.0) > 0
    assert cost(0.0, 0.0) == 0  # nothing is released
    with pytest.raises(UsageError, match=r"grid units are accounted for up to 1e\+15; take a coarser grid"):
        cost(1.0, 1.1e15)


def test_a_delta_above_the_total_variation_costs_nothing() -> None:
    """With D = 2 / (2 * 10²) = 0.01 the worlds differ by 0.0997 at most; the conversion alone says more."""
    tally = {row(1.0, 10.0, 1000.0): 1}
    for name in skellam.ACCOUNTANTS:
        assert skellam.epsilon(tally, 0.1, Adjacency.ADD_REMOVE, name) == 0.0
        assert skellam.epsilon(tally, 0.03, Adjacency.ADD_REMOVE, name) > 0.0
    assert skellam.convert_to_epsilon(np.asarray([2.0]), np.asarray([5.0]), 0.9999) == 0.0


def test_much_noise_approaches_the_gaussian() -> None:
    orders = [2, 8, 32]
    gaussian = np.asarray(orders) * 100.0**2 / (2 * 1e6)
    assert skellam.renyi_exact(orders, 1e6, 100.0) == pytest.approx(gaussian, rel=1e-3)
    paper = [skellam.renyi_bound(order, 1e6, 100.0, 1e4) for order in orders]
    assert paper == pytest.approx(gaussian, rel=1e-3)


@pytest.mark.parametrize(("variance", "shift"), [(3.0, 1), (100.0, 5), (1e4, 40), (1e6, 1000)])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.5])
def test_hockey_stick_of_a_shift(variance: float, shift: int, epsilon: float) -> None:
    """By summing the positive part; near the Gaussian's where the noise is wide; below the Rényi conversion."""
    reach = int(15 * math.sqrt(variance)) + 100
    count = np.arange(-reach, reach)
    gain = np.exp(log_pmf(count - shift, variance / 2)) - np.exp(epsilon + log_pmf(count, variance / 2))
    value = hockey_stick_shift(variance, shift, epsilon)
    assert value == pytest.approx(float(np.clip(gain, 0, None).sum()), rel=1e-9, abs=1e-13)
    if value > 1e-12:
        orders = np.arange(2.0, 60.0)
        assert (
            epsilon <= skellam.convert_to_epsilon(orders, renyi_shift(orders, variance, shift), value) + 1e-9
        )


@pytest.mark.parametrize("q", [0.004, 0.1, 0.7])
@pytest.mark.parametrize("sigma", [0.7, 1.0, 4.0])
def test_sampling_reproduces_dp_accountings_gaussian(q: float, sigma: float) -> None:
    """The formula's exact direction, on the Gaussian's divergences."""
    orders = (2, 3, 7, 16, 64)
    ours = skellam.subsampled(orders, q, lambda order: order / (2 * sigma**2))
    accountant = RdpAccountant(list(orders))
    accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
    assert ours == pytest.approx(accountant.rdp, rel=1e-9)


@given(st.floats(0.5, 300.0), st.integers(1, 12), st.floats(0.01, 1.0), st.integers(2, 30))
@settings(max_examples=60, deadline=None)
def test_removing_a_record_is_the_worse_direction(variance: float, shift: int, q: float, order: int) -> None:
    """Summed over the lattice both ways: the formula equals one direction and bounds the other."""
    count = np.arange(-800, 800 + 2 * order * shift)
    base = log_pmf(count, variance / 2)
    loss = log_pmf(count - shift, variance / 2) - base
    mixed = np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + loss)  # ln R/Q
    remove = float(np.logaddexp.reduce(base + order * mixed)) / (order - 1)
    add = float(np.logaddexp.reduce(base + (1 - order) * mixed)) / (order - 1)
    exact = skellam.subsampled((order,), q, lambda k: float(renyi_shift(k, variance, shift)[0]))[0]
    assert exact == pytest.approx(remove, rel=1e-7, abs=1e-12)
    assert add <= remove * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "l2"),
    [(1.0, 5.0, 1, 30.0), (0.01, 1.0, 1000, 300.0), (256 / 60000, 1.1, 10000, 1000.0)],
)
def test_two_accountants_agree_and_are_no_better_than_a_gaussian_pld(
    q: float, sigma: float, steps: int, l2: float
) -> None:
    from privacy.accounting import epsilon, gaussian

    tally = {row(q, sigma, l2): steps}
    paper = skellam.epsilon(tally, DELTA, Adjacency.ADD_REMOVE, "skellam-rdp")
    exact = skellam.epsilon(tally, DELTA, Adjacency.ADD_REMOVE, "skellam-exact")
    assert exact == pytest.approx(paper, rel=0.01)
    assert min(paper, exact) > epsilon({gaussian(q, sigma): steps}, DELTA)


@pytest.mark.parametrize(
    ("budget", "delta", "q", "steps"),
    [
        (0.05, 1e-5, 256 / 1437, 6),
        (0.07, 1e-7, 256 / 1437, 6),
        (0.02, 1e-5, 1.0, 10),
        (0.02, 1e-7, 0.001, 1000),
    ],
)
def test_an_audit_does_not_contradict_an_honest_run_of_small_epsilon(
    budget: float, delta: float, q: float, steps: int
) -> None:
    """The noise of the default accountant, judged by the audit's; the best order is about 2 ln(1/delta) / epsilon."""
    from privacy.accounting import epsilon, least_noise
    from privacy.auditing.claim import TOLERANCE

    sigma = least_noise(budget, delta, lambda multiplier: {row(q, multiplier, 300.0): steps})
    assert epsilon({row(q, sigma, 300.0): steps}, delta, accountant="skellam-exact") <= budget * (
        1 + TOLERANCE
    )


def test_many_orders_are_held_a_few_at_a_time() -> None:
    orders = np.linspace(1.5, 400.0, 60)
    alone = np.concatenate([renyi_shift([order], 30.0, 40) for order in orders])
    assert renyi_shift(orders, 30.0, 40) == pytest.approx(alone, rel=1e-12)


def test_coarse_grids_cost_more_in_the_bound_and_less_in_truth() -> None:
    """At l2 = 2 grid units the paper's l1 term shows; the exact law is no worse than the Gaussian."""
    tally = {row(1.0, 2.0, 2.0): 10}
    paper = skellam.epsilon(tally, DELTA, Adjacency.ADD_REMOVE, "skellam-rdp")
    exact = skellam.epsilon(tally, DELTA, Adjacency.ADD_REMOVE, "skellam-exact")
    assert exact < paper < 1.5 * exact


def test_edges() -> None:
    add_remove = Adjacency.ADD_REMOVE
    assert skellam.epsilon({}, DELTA, add_remove) == 0.0
    assert skellam.epsilon({row(0.1, 1.0, 10.0): 0}, DELTA, add_remove) == 0.0
    assert skellam.epsilon({row(0.1, 0.0, 10.0): 1}, DELTA, add_remove) == math.inf
    plain = skellam.epsilon({row(0.1, 3.0, 10.0): 50}, DELTA, add_remove)
    mixed = skellam.epsilon({row(0.1, 3.0, 10.0): 25, row(0.1, 3.0, 20.0): 25}, DELTA, add_remove)
    assert mixed == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize(
    ("release", "adjacency", "accountant", "message"),
    [
        (row(0.1, 1.0, 10.0), Adjacency.REPLACE_ONE, "skellam-rdp", "add-or-remove-one"),
        (row(0.1, 1.0, 10.0), Adjacency.LABEL, "skellam-rdp", "add-or-remove-one"),
        (row(0.1, 1.0, 10.0), Adjacency.ADD_REMOVE, "pld", "'pld' does not cover"),
        (row(0.1, 1.0, 0.9), Adjacency.ADD_REMOVE, "skellam-rdp", "in grid units"),
        (
            ReleaseEvent("gaussian", "digital", 0.1, 1.0, 1.0, 1),
            Adjacency.ADD_REMOVE,
            "skellam-rdp",
            "'gaussian'",
        ),
    ],
)
def test_wrong_use_gets_one_line(
    release: ReleaseEvent, adjacency: Adjacency, accountant: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        skellam.epsilon({release: 1}, DELTA, adjacency, accountant)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bound_is_for_whole_orders() -> None:
    with pytest.raises(UsageError, match="whole numbers"):
        skellam.renyi_bound(2.5, 10.0, 1.0, 1.0)  # type: ignore[arg-type]
