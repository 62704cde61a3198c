"""Every accountant at both ends of every argument: a bound that behaves, or one line; nothing endless."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise_models.errors import UsageError
from optical_dfa.cli import main
from privacy import accounting
from privacy.accounting import STEP_LIMIT
from privacy.accounting.calibration import most_steps
from privacy.accounting.planning import Scheme, complete
from privacy.accounting.ranges import LEAST_NOISE
from privacy.mechanisms import MECHANISMS

PAIRS = [(name, accountant) for name, entry in MECHANISMS.items() for accountant in entry.accountants]


def spread(low: float, high: float) -> st.SearchStrategy[float]:
    """Log-uniform from 10^low to 10^high, both ends included."""
    return st.one_of(st.sampled_from([low, high]), st.floats(low, high, allow_nan=False)).map(
        lambda power: 10.0**power
    )


def epsilon_of(scheme: Scheme, sigma: float, steps: int) -> float | None:
    """Epsilon, or None where it was refused in one line."""
    refused: list[str] = []
    try:
        return complete(scheme, noise_multiplier=sigma, steps=steps).epsilon
    except UsageError as error:
        refused.append(str(error))
    assert "\n" not in refused[0]
    return None


@pytest.mark.parametrize(("mechanism", "accountant"), PAIRS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sigma=spread(-300, 300),
    rate=st.one_of(spread(-300, 0), st.sampled_from([1.0, 1 - 2**-53])),
    delta=st.one_of(spread(-300, -0.01), st.sampled_from([0.5, 0.999, 1 - 2**-53])),
    steps=st.sampled_from([1, 2, 100, 10_000]),
    size=spread(0, 15),
    dimension=st.sampled_from([1, 10**6, 10**12]),
)
def test_an_extreme_plan_is_a_bound_or_one_line(
    mechanism: str, accountant: str, sigma: float, rate: float, delta: float, steps: int, size: float,
    dimension: int,
) -> None:  # fmt: skip
    if MECHANISMS[mechanism].epochs:
        rate = 1.0
    adjacency = MECHANISMS[mechanism].adjacencies[0]
    scheme = Scheme(mechanism, delta, rate, adjacency, accountant, sensitivity=size, dimension=dimension)
    found = epsilon_of(scheme, sigma, steps)
    assert found is None or found >= 0
    if mechanism == "gaussian" and found is not None and rate * steps <= delta:
        assert found == 0 or accountant == "rdp" or sigma < LEAST_NOISE  # it joins no step, nearly


@pytest.mark.parametrize("accountant", ["pld", "rdp", "numerical"])
@settings(max_examples=5, deadline=None)
@given(sigma=spread(-1, 8), rate=spread(-4, 0), delta=spread(-12, -0.5), steps=st.integers(1, 1000))
def test_more_noise_never_costs_more_also_beyond_the_ends(
    accountant: str, sigma: float, rate: float, delta: float, steps: int
) -> None:
    scheme = Scheme("gaussian", delta, rate, accountant=accountant)
    first, second = (epsilon_of(scheme, value, steps) for value in (sigma, 2 * sigma))
    assert first is not None
    assert second is not None
    assert second <= first * (1 + 2e-3) + 1e-9


@pytest.mark.parametrize("accountant", MECHANISMS["gaussian"].accountants)
@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [
        (1.0, 0.01, 100, 1e-15),
        (1.0, 0.01, 100, 0.999),
        (1e200, 0.01, 100, 1e-5),
        (0.1, 1.0, STEP_LIMIT, 1e-5),
        (1.0, 1e-300, 100, 1e-5),
        (1.0, 0.5, STEP_LIMIT, 1e-5),
        (0.03, 1e-9, STEP_LIMIT, 1e-5),
        (1e-200, 1e-9, 10, 1e-5),
        (1.0, 1 - 2**-53, 10, 1e-300),
    ],
)
def test_the_program_answers_at_the_ends(
    accountant: str, sigma: float, rate: float, steps: int, delta: float, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.process_time()
    given_ = ["--sample-rate", repr(rate), "--delta", repr(delta), "--steps", str(steps)]
    code = main(["account", *given_, "--noise-multiplier", repr(sigma), "--accountant", accountant, "--json"])
    assert time.process_time() - begun < 20
    output = capsys.readouterr()
    document = json.loads(output.out)
    if code == 2:
        assert accountant == "prv"
        assert output.err.startswith("error: accountant 'prv' ")
        assert output.err.count("\n") == 1
    else:
        assert code == 0
        assert output.err == ""
        assert document["epsilon"] == "inf" or document["epsilon"] >= 0


@pytest.mark.parametrize("delta", ["1e-15", "0.999"])
def test_a_cross_check_says_who_has_no_figure_and_why(delta: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--sample-rate", "0.01", "--steps", "100", "--noise-multiplier", "1", "--delta", delta]
    assert main(["account", *plan, "--cross-check"]) == 0
    assert "not prv: accountant 'prv' cannot compute" in capsys.readouterr().out
    assert main(["account", *plan, "--cross-check", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"pld", "rdp"} <= set(document["cross_check"])
    assert "prv" in document["cross_check_left_out"]


@pytest.mark.parametrize("accountant", ["pld", "numerical", "rdp"])
def test_the_cap_of_steps_says_that_it_is_one_and_is_quick(
    accountant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.process_time()
    plan = ["--sample-rate", "1e-4", "--noise-multiplier", "5", "--epsilon", "3", "--delta", "1e-5"]
    plan += ["--accountant", accountant]
    assert main(["account", *plan]) == 0
    assert time.process_time() - begun < 20
    assert "at least 10,000,000 (the count ends there)" in capsys.readouterr().out
    assert main(["account", *plan, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps_capped"] is True
    assert main(["account", *plan, "--sample-rate", "0.01", "--json"]) == 0
    assert "steps_capped" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("accountant", "target", "rate", "sigma", "steps"),
    [
        ("numerical", 2.0, 1e-3, 5.0, 6_138_865),
        ("rdp", 2.0, 1e-3, 5.0, 5_303_475),
        ("pld", 3.0, 1.0, 2000.0, 2_068_519),
    ],
)
def test_the_steps_near_the_cap_take_few_figures(
    accountant: str, target: float, rate: float, sigma: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[float] = []
    figure = accounting._epsilon

    def counted(*arguments: Any) -> float:
        figures.append(figure(*arguments))
        return figures[-1]

    monkeypatch.setattr(accounting, "_epsilon", counted)
    step = accounting.gaussian(rate, sigma)
    assert accounting.steps_within(target, 1e-5, step, accountant=accountant) == steps
    assert len(figures) <= 12


@given(
    scale=spread(-7, 2),
    power=st.floats(0.3, 1.2),
    target=spread(-3, 2),
    start=st.integers(1, 10**6),
    shape=st.sampled_from(["smooth", "late", "ends", "stairs", "level"]),
)
@settings(max_examples=100, deadline=None)
def test_the_search_for_steps_finds_the_last_one_whatever_the_shape(
    scale: float, power: float, target: float, start: int, shape: str
) -> None:
    tried: list[int] = []

    def curve(steps: int) -> float:
        value = scale * steps**power
        if shape == "late" and steps < 50:
            return 0.0
        if shape == "ends" and value > 30:
            return math.inf
        if shape == "level":
            return scale
        return math.floor(value * 10) / 10 if shape == "stairs" else value

    def epsilon(steps: int) -> float:
        tried.append(steps)
        return curve(steps)

    found = most_steps(epsilon, target, start, 10**6)
    assert found == 0 or curve(found) <= target
    assert found == 10**6 or curve(found + 1) > target
    assert len(tried) <= (10 if shape == "smooth" else 60)
    assert len(set(tried)) == len(tried)


def test_prv_widens_its_error_where_its_mesh_would_take_minutes_and_stays_a_bound() -> None:
    begun = time.process_time()
    step = accounting.gaussian(0.01, 0.6)
    wide = accounting.epsilon({step: 60_000}, 1e-5, accountant="prv")
    assert time.process_time() - begun < 20
    close = accounting.epsilon({step: 60_000}, 1e-5, accountant="numerical")
    assert close <= wide < close + 1.1


@pytest.mark.parametrize("error", [ValueError("a\nb"), OverflowError(), MemoryError(), RuntimeError("no")])
def test_what_another_library_raises_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("privacy.accounting.numerical.compose", fail)
    accounting._epsilon.cache_clear()
    with pytest.raises(UsageError, match="accountant 'numerical' cannot compute") as caught:
        accounting.epsilon([accounting.gaussian(0.123, 1.23)], 1e-5, accountant="numerical")
    assert "\n" not in str(caught.value)


def test_what_is_no_number_is_refused_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Undefined:
        def epsilon(self, delta: float) -> float:
            return math.nan

    monkeypatch.setattr("privacy.accounting.numerical.compose", lambda *_: Undefined())
    accounting._epsilon.cache_clear()
    with pytest.raises(UsageError, match="not a number"):
        accounting.epsilon([accounting.gaussian(0.123, 1.24)], 1e-5, accountant="numerical")
    accounting._epsilon.cache_clear()
