"""Filters keep a preset budget whatever chooses the costs; an odometer does not keep its delta (THEORY T9)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from noise_models.errors import UsageError
from privacy.accounting import epsilon, gaussian
from privacy.accounting.filters import GaussianFilter, RenyiFilter
from privacy.accounting.gdp import gaussian_delta, gaussian_epsilon

DELTA = 1e-3
PATHS = 200_000
# The tests below fail by chance with probability 1e-6 each (normal limits of a mean of 200 000 bounded values).
LIMIT = float(norm.isf(1e-6))

costs = st.lists(st.floats(0.0, 2.0), min_size=1, max_size=40)


@given(costs, st.floats(0.1, 3.0))
@settings(max_examples=100, deadline=None)
def test_what_is_admitted_never_exceeds_the_budget(mus: list[float], budget: float) -> None:
    gate, taken = GaussianFilter(budget), []
    for mu in mus:
        before = gate.left()[0]
        admitted = bool(gate.admits(mu)[0])
        assert admitted == (mu <= before) or mu == pytest.approx(before, rel=1e-6)
        if admitted:
            gate.spend(mu)
            taken.append(mu)
        else:
            with pytest.raises(UsageError, match="does not admit"):
                gate.spend(mu)
            assert gate.left()[0] == before
    assert math.fsum(mu * mu for mu in taken) <= budget**2
    assert gaussian_epsilon(math.hypot(*taken), 1e-5) <= gaussian_epsilon(budget, 1e-5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_each_record_has_its_own_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    together = GaussianFilter(1.0, records=5)
    alone = [GaussianFilter(1.0) for _ in range(5)]
    for _ in range(20):
        records = rng.permutation(5)[: rng.integers(1, 6)]
        mus = rng.uniform(0, 0.6, len(records))
        admitted = together.admits(mus, records)
        assert admitted.tolist() == [bool(alone[i].admits(mu)[0]) for i, mu in zip(records, mus, strict=True)]
        together.spend(mus[admitted], records[admitted])
        for i, mu in zip(records[admitted], mus[admitted], strict=True):
            alone[i].spend(mu)
    assert together.left().tolist() == [gate.left()[0] for gate in alone]


def test_budgets_in_epsilon_and_delta_convert_back() -> None:
    assert gaussian_epsilon(GaussianFilter.within(3.0, 1e-5).mu, 1e-5) == pytest.approx(3.0, rel=1e-9)
    gate = RenyiFilter.within(3.0, 1e-5, order=8.0)
    converted = gate.left()[0] + math.log(7 / 8) - (math.log(1e-5) + math.log(8.0)) / 7
    assert converted == pytest.approx(3.0, rel=1e-12)


def test_different_steps_fill_a_renyi_budget_like_the_accountant() -> None:
    """Subsampled steps of two kinds at one order: what the filter admits the accountant confirms."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    order, steps = 6.0, [(0.01, 1.0), (0.05, 2.0)]
    cost = []
    for q, sigma in steps:
        accountant = RdpAccountant([order])
        accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
        cost.append(float(accountant.rdp[0]))
    gate, counts = RenyiFilter.within(2.0, 1e-5, order), [0, 0]
    for turn in range(100_000):
        kind = turn % 2
        if not gate.admits(cost[kind])[0]:
            break
        gate.spend(cost[kind])
        counts[kind] += 1
    run = {gaussian(q, sigma): count for (q, sigma), count in zip(steps, counts, strict=True)}
    assert min(counts) > 10
    assert epsilon(run, 1e-5) < epsilon(run, 1e-5, accountant="rdp") <= 2.0


def excess(loss: np.ndarray, claimed: np.ndarray | float) -> tuple[float, float]:
    """E[(1 - e^(claimed - loss))+] under the world with the record, its standard error: the delta really needed."""
    needed = np.clip(-np.expm1(np.clip(claimed - loss, -50.0, 50.0)), 0.0, None)
    return float(needed.mean()), float(needed.std() / math.sqrt(len(needed)))


def test_an_odometer_exceeds_its_delta() -> None:
    """Nominal delta 1e-3: stopping where the loss seen exceeds the epsilon spent so far needs more than 4e-3."""
    rng = np.random.default_rng(20240901)
    stages = np.geomspace(1e-4, 1.0, 60)  # mu² after every stage
    spent = np.asarray([gaussian_epsilon(math.sqrt(stage), DELTA) for stage in stages])
    loss, claimed = np.zeros(PATHS), np.full(PATHS, spent[-1])
    running = np.ones(PATHS, dtype=bool)
    for step, stage, epsilon_so_far in zip(np.diff(stages, prepend=0.0), stages, spent, strict=True):
        loss[running] += step / 2 + math.sqrt(step) * rng.standard_normal(int(running.sum()))
        stops = running & (loss > epsilon_so_far + 0.2 * math.sqrt(stage))
        claimed[stops] = epsilon_so_far
        running &= ~stops
    mean, error = excess(loss, claimed)
    assert mean - LIMIT * error > 4 * DELTA
    # The same steps without the freedom to stop keep it.
    straight = 0.5 + rng.standard_normal(PATHS)
    mean, error = excess(straight, float(spent[-1]))
    assert mean - LIMIT * error <= DELTA <= mean + LIMIT * error


@pytest.mark.parametrize("budget", [0.5, 1.0, 2.0])
def test_a_filter_keeps_its_delta_against_an_adaptive_adversary(budget: float) -> None:
    """Noise and stopping chosen from the loss so far, one filter a path: the budget's delta is enough."""
    rng = np.random.default_rng(20240902)
    gate = GaussianFilter(budget, records=PATHS)
    claimed = gaussian_epsilon(budget, DELTA)
    loss = np.zeros(PATHS)
    for step in range(10):
        # Careful while ahead, bold when behind, nothing once well past the claim, all that is left at the end.
        share = 0.999999 if step == 9 else np.where(loss > 0.5 * claimed, 0.3, 0.5)
        mu = np.where(loss > claimed + 0.5 * budget, 0.0, share * gate.left())
        assert gate.admits(mu).all()
        gate.spend(mu)
        loss += mu**2 / 2 + mu * rng.standard_normal(PATHS)
    mean, error = excess(loss, claimed)
    assert mean - LIMIT * error <= DELTA
    assert mean > DELTA / 4  # the adversary tried


def test_delta_at_the_claim_is_the_nominal_one() -> None:
    assert gaussian_delta(1.0, gaussian_epsilon(1.0, DELTA)) == pytest.approx(DELTA, rel=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GaussianFilter(math.nan),
        lambda: GaussianFilter(math.inf),
        lambda: GaussianFilter(1.0, records=0),
        lambda: GaussianFilter(1.0).admits(-0.1),
        lambda: GaussianFilter(1.0).admits(math.nan),
        lambda: GaussianFilter(1.0).admits([0.1, 0.2]),
        lambda: GaussianFilter(1.0).admits(0.1, [0]),
        lambda: GaussianFilter(1.0, records=3).admits([0.1, 0.1], [2, 2]),
        lambda: GaussianFilter(1.0, records=3).admits([0.1, 0.1], [-1, 2]),
        lambda: GaussianFilter(1.0, records=3).admits(0.1, [3]),
        lambda: GaussianFilter(1.0, records=3).admits(0.1, [True, False, False]),
        lambda: RenyiFilter(1.0, 1.0),
        lambda: RenyiFilter(2.0, -1.0),
        lambda: RenyiFilter.within(1.0, 1e-5, 2.0),
        lambda: RenyiFilter.within(-1.0, 1e-5, 2.0),
    ],
)
def test_wrong_values_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as caught:
        wrong()
    assert "\n" not in str(caught.value)
