"""Privacy accounting: epsilon of a sequence of releases, the noise for an epsilon, the steps within one.

Which accountants there are depends on the mechanism (`privacy.mechanisms`). The Gaussian one has four: `pld`
(default; dp_accounting's privacy-loss distributions), `numerical` (this project's own, independent of it; audits use
it), `rdp` and `prv` (cross-checks, add-or-remove only). Each is imported when first asked for.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, cast

from noise_models.errors import UsageError
from privacy.accounting.ranges import LARGEST_NOISE, LEAST_NOISE, LEAST_RATE
from privacy.ledger import ReleaseEvent
from privacy.mechanisms import MECHANISMS
from privacy.notions import Adjacency

if TYPE_CHECKING:
    from privacy.accounting.composition import Composition, Spent
    from privacy.accounting.discretisation import Group

Tally = Mapping[ReleaseEvent, int]
STEP_LIMIT = 10_000_000
_BRACKETED = ("pld", "prv")  # a search by them starts from the numerical accountant's answer


def epsilon(
    releases: Iterable[ReleaseEvent] | Mapping[ReleaseEvent, int],
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str | None = None,
    *,
    beta: float = 0.0,
) -> float:
    """Epsilon of `releases` at `delta`, composed (THEORY T3, T4, T8, T9).

    inf where there is no guarantee, 0 without releases. Repeated calls are cheap. The sample rates and noise
    multipliers must have been fixed in advance.

    Args:
        releases: the releases, or a tally `{release: how often}` such as `Ledger.tally()`.
        delta: total failure probability, 0 < delta < 1.
        adjacency: one that the mechanism speaks of.
        accountant: one of the mechanism's; None is its default.
        beta: probability that the device's calibration is wrong; taken from delta once (THEORY T8).

    Raises:
        UsageError: a value out of range, an unknown accountant, an adjacency that it does not cover, releases of
            several mechanisms, figures at which the accountant's arithmetic ends.
    """
    from privacy.accounting.composition import check_budget, cost, total_epsilon

    check_budget(delta, beta)
    tally = dict(releases) if isinstance(releases, Mapping) else dict(Counter(releases))
    tally = {release: count for release, count in tally.items() if count > 0}
    if not tally:
        return 0.0
    mechanism = mechanism_of(tally)
    name = accountant_for(mechanism, accountant)
    notion = _covered(mechanism, adjacency)
    module = MECHANISMS[mechanism].module
    with _arithmetic_that_may_end(name, mechanism, delta):
        if module is None:
            found = _epsilon(cost(tally), delta - beta, notion, name)
        else:
            composed = import_module(f"privacy.accounting.{module}").epsilon
            ideal = _Composed(lambda at: float(composed(tally, at, notion, name)))
            found = total_epsilon(ideal, cost(tally), delta - beta)
        if math.isnan(found):
            raise ArithmeticError("it is not a number")
    return found


@contextmanager
def _arithmetic_that_may_end(accountant: str, mechanism: str, delta: float) -> Iterator[None]:
    """What numpy, scipy, dp_accounting and Opacus raise or warn of at the ends of their ranges, as one line.

    Figures go on by IEEE rules (an overflow is inf, no guarantee); what is not a number is refused by the caller.
    """
    import numpy as np

    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UsageError:
        raise
    except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError) as error:
        others = [name for name in MECHANISMS[mechanism].accountants if name != accountant]
        remedy = f"use another accountant ({', '.join(others)}), or" if others else "use"
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UsageError(
            f"accountant {accountant!r} cannot compute epsilon of these releases at delta = {delta:g} ({reason}); "
            f"{remedy} less extreme figures"
        ) from error


class _Composed(NamedTuple):
    """A composed mechanism given by its epsilon at a delta."""

    epsilon: Callable[[float], float]


def mechanism_of(tally: Tally) -> str:
    """The one mechanism of these releases, "gaussian" where there are none.

    Raises:
        UsageError: there are several.
    """
    names = sorted({release.mechanism for release in tally})
    if len(names) > 1:
        raise UsageError(f"releases of several mechanisms ({', '.join(names)}) have no common accountant")
    return names[0] if names else "gaussian"


def accountant_for(mechanism: str, asked: str | None = None) -> str:
    """The accountant asked for, or the mechanism's default.

    Raises:
        UsageError: the mechanism has none of that name.
    """
    known = MECHANISMS[mechanism].accountants
    if asked is not None and asked not in known:
        raise UsageError(
            f"unknown accountant {asked!r} of mechanism {mechanism}: use one of {', '.join(known)}"
        )
    return known[0] if asked is None else asked


def noise_multiplier(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str | None = None,
    *,
    log_ratio: float = 0.0,
    log_inflation: float = 0.0,
    mass: float = 0.0,
    beta: float = 0.0,
    tolerance: float = 1e-3,
) -> float:
    """Smallest noise multiplier of the Gaussian mechanism whose epsilon after `steps` is within the target.

    To `tolerance` relative. `log_ratio`, `log_inflation` and `mass` are those of ONE step (see `ReleaseEvent`). 0 steps
    need no noise.

    Raises:
        UsageError: a value out of range, or a target that no noise reaches.
    """
    from privacy.accounting.composition import check_steps

    check_steps(steps)

    def planned(sigma: float) -> Tally:
        step = gaussian(sample_rate, sigma, log_ratio=log_ratio, log_inflation=log_inflation, mass=mass)
        return {step: steps}

    return least_noise(target_epsilon, delta, planned, adjacency, accountant, beta=beta, tolerance=tolerance)


def least_noise(
    target_epsilon: float,
    delta: float,
    planned: Callable[[float], Tally],
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str | None = None,
    *,
    beta: float = 0.0,
    tolerance: float = 1e-3,
) -> float:
    """Smallest noise multiplier, to `tolerance` relative, with which what is planned stays within the target.

    Args:
        target_epsilon: the budget, > 0.
        delta: total failure probability, 0 < delta < 1.
        planned: the releases of the whole run at a noise multiplier; their extra losses must not grow with it.
        adjacency, accountant, beta: as in `epsilon`.
        tolerance: relative.
    Raises:
        UsageError: a value out of range, or a target that no noise reaches.
    """
    from privacy.accounting.calibration import smallest_multiplier
    from privacy.accounting.composition import check_budget

    check_budget(delta, beta, target_epsilon)
    example = planned(1.0)
    steps, mechanism = sum(example.values()), mechanism_of(example)
    if steps == 0:
        return 0.0
    name = accountant_for(mechanism, accountant)

    def search(by: str, start: float, within: float) -> float:
        return smallest_multiplier(
            lambda sigma: epsilon(planned(sigma), delta, adjacency, by, beta=beta),
            target_epsilon,
            start,
            within,
        )

    # The numerical accountant is faster than the slow ones: it brackets, the accountant asked for decides.
    near = 1.0
    if name == "numerical" or (name in _BRACKETED and resolves(delta - beta, steps)):
        near = search("numerical", near, tolerance / 10)
    return near if name == "numerical" else search(name, near, tolerance)


def steps_within(
    target_epsilon: float,
    delta: float,
    release: ReleaseEvent,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str | None = None,
    *,
    spent: Tally | None = None,
    beta: float = 0.0,
) -> int:
    """Largest number of further releases equal to `release` that keeps epsilon at or below the target.

    Args:
        target_epsilon: the budget, > 0.
        delta: total failure probability, 0 < delta < 1.
        release: what one more step releases.
        adjacency, accountant, beta: as in `epsilon`.
        spent: what was released before (`Ledger.tally()` of a resumed run).

    Returns:
        The number of steps, 0 where not even one fits; `STEP_LIMIT` where that many fit: more are not tried.

    Raises:
        UsageError: a value out of range.
    """
    return releases_within(
        target_epsilon, delta, lambda steps: {release: steps}, adjacency, accountant, spent=spent, beta=beta
    )


def releases_within(
    target_epsilon: float,
    delta: float,
    planned: Callable[[int], Tally],
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str | None = None,
    *,
    spent: Tally | None = None,
    beta: float = 0.0,
) -> int:
    """As `steps_within`, where the further releases are not all equal.

    Args:
        planned: the next n releases.
    """
    from privacy.accounting.calibration import most_steps
    from privacy.accounting.composition import check_budget

    check_budget(delta, beta, target_epsilon)
    before = Counter(dict(spent or {}))
    mechanism = mechanism_of(planned(1))
    name = accountant_for(mechanism, accountant)

    def at(steps: int, by: str) -> float:
        return epsilon(before + Counter(planned(steps)), delta, adjacency, by, beta=beta)

    near = 63
    if name == "numerical" or name in _BRACKETED:  # many steps are cheaper for it than few: from above
        near = most_steps(lambda steps: at(steps, "numerical"), target_epsilon, STEP_LIMIT, STEP_LIMIT)
        if name == "numerical":
            return near
    return most_steps(lambda steps: at(steps, name), target_epsilon, near + 1, STEP_LIMIT)


def resolves(delta: float, steps: int) -> bool:
    """Whether the numerical accountant resolves `delta` after `steps`; below that it answers far too much,
    or inf.

    Its FFT rounds at about 1e-16 a step, which its allowance puts into delta.
    """
    return delta > 1e-14 * steps


def gaussian(
    sample_rate: float,
    noise_multiplier: float,
    *,
    log_ratio: float = 0.0,
    log_inflation: float = 0.0,
    mass: float = 0.0,
) -> ReleaseEvent:
    """One step of a hypothetical run, for planning: sensitivity and dimension do not matter then.

    Raises:
        UsageError: a value out of range.
    """
    return ReleaseEvent(
        mechanism="gaussian",
        source="digital",
        sample_rate=sample_rate,
        noise_multiplier=noise_multiplier,
        sensitivity=1.0,
        dimension=1,
        log_ratio=log_ratio,
        log_inflation=log_inflation,
        mass=mass,
    )


@lru_cache(maxsize=4096)
def _epsilon(spent: Spent, delta: float, adjacency: Adjacency, accountant: str) -> float:
    from privacy.accounting.composition import total_epsilon

    if not spent.groups:
        return 0.0
    if any(group.noise_multiplier < LEAST_NOISE for group in spent.groups):
        return float("inf")
    groups = tuple(
        group._replace(
            sample_rate=max(group.sample_rate, LEAST_RATE),
            noise_multiplier=min(group.noise_multiplier, LARGEST_NOISE),
        )
        for group in spent.groups
    )
    # A record that joins no step changes nothing, so that both worlds differ by at most this in total variation.
    joins = math.fsum(group.sample_rate * group.steps for group in spent.groups)
    compose = _compose(accountant)
    if adjacency is not Adjacency.ADD_REMOVE:
        compose(groups, adjacency)  # whoever does not cover it refuses, whatever the figures
    ideal = _Composed(lambda at: 0.0 if joins <= at else compose(groups, adjacency).epsilon(at))
    return total_epsilon(ideal, spent, delta)


def _compose(accountant: str) -> Callable[[tuple[Group, ...], Adjacency], Composition]:
    compose = import_module(f"privacy.accounting.{accountant}").compose
    return cast("Callable[[tuple[Group, ...], Adjacency], Composition]", compose)


def _covered(mechanism: str, adjacency: Adjacency) -> Adjacency:
    notion, known = Adjacency(adjacency), MECHANISMS[mechanism].adjacencies
    if notion not in known:
        raise UsageError(
            f"adjacency {notion.value!r} is not what the accountants of mechanism {mechanism} compute: use "
            f"{' or '.join(repr(name.value) for name in known)}"
        )
    return notion
