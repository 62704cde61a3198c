"""Privacy accounting: epsilon of a sequence of releases, the noise for an epsilon, the steps within one.

Four accountants: `pld` (default; dp_accounting's privacy-loss distributions), `numerical` (this project's
own, independent of it; audits use it), `rdp` and `prv` (cross-checks, add-or-remove only). Each is imported
when first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, cast

from noise_models.errors import UsageError
from privacy.adjacency import Adjacency
from privacy.ledger import Release

if TYPE_CHECKING:
    from privacy.accounting.composition import Composition, Cost
    from privacy.accounting.discretisation import Group

ACCOUNTANTS = ("pld", "numerical", "rdp", "prv")
STEP_LIMIT = 10_000_000


def epsilon(
    releases: Iterable[Release] | Mapping[Release, int],
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str = "pld",
    *,
    beta: float = 0.0,
) -> float:
    """Epsilon of `releases` at `delta`, composed (THEORY T3, T4, T8, T9).

    inf where there is no guarantee, 0 without releases. Repeated calls are cheap. The sample rates and noise
    multipliers must have been fixed in advance.

    Args:
        releases: the releases, or a tally `{release: how often}` such as `Ledger.tally()`.
        delta: total failure probability, 0 < delta < 1.
        adjacency: add-or-remove-one or replace-one.
        accountant: one of `ACCOUNTANTS`.
        beta: probability that the device's calibration is wrong; taken from delta once (THEORY T8).

    Raises:
        UsageError: a value out of range, an unknown accountant, an adjacency that it does not cover.
    """
    from privacy.accounting.composition import check_budget, cost

    check_budget(delta, beta)
    return _epsilon(cost(releases), delta - beta, _covered(adjacency), _known(accountant))


def noise_multiplier(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str = "pld",
    *,
    log_ratio: float = 0.0,
    log_inflation: float = 0.0,
    mass: float = 0.0,
    beta: float = 0.0,
    tolerance: float = 1e-3,
) -> float:
    """Smallest noise multiplier, to `tolerance` relative, whose epsilon after `steps` is within the target.

    `log_ratio`, `log_inflation` and `mass` are those of ONE step (see `Release`); they must not grow with
    the multiplier. 0 steps need no noise.

    Raises:
        UsageError: a value out of range, or a target that no noise reaches.
    """
    from privacy.accounting.calibration import smallest_multiplier
    from privacy.accounting.composition import check_budget, check_steps

    check_budget(delta, beta, target_epsilon)
    check_steps(steps)
    if steps == 0:
        return 0.0

    def at(sigma: float, name: str) -> float:
        release = gaussian(sample_rate, sigma, log_ratio=log_ratio, log_inflation=log_inflation, mass=mass)
        return epsilon({release: steps}, delta, adjacency, name, beta=beta)

    # The numerical accountant is the fastest: it brackets, the accountant asked for decides.
    near = 1.0
    if accountant == "numerical" or resolves(delta - beta, steps):
        near = smallest_multiplier(lambda sigma: at(sigma, "numerical"), target_epsilon, near, tolerance / 10)
    if accountant == "numerical":
        return near
    return smallest_multiplier(lambda sigma: at(sigma, accountant), target_epsilon, near, tolerance)


def steps_within(
    target_epsilon: float,
    delta: float,
    release: Release,
    adjacency: Adjacency = Adjacency.ADD_REMOVE,
    accountant: str = "pld",
    *,
    spent: Mapping[Release, int] | None = None,
    beta: float = 0.0,
) -> int:
    """Largest number of further releases equal to `release` that keeps epsilon at or below the target.

    Args:
        target_epsilon: the budget, > 0.
        delta: total failure probability, 0 < delta < 1.
        release: what one more step releases.
        adjacency: add-or-remove-one or replace-one.
        accountant: one of `ACCOUNTANTS`.
        spent: what was released before (`Ledger.tally()` of a resumed run).
        beta: as in `epsilon`.

    Returns:
        The number of steps, 0 where not even one fits, at most `STEP_LIMIT`.

    Raises:
        UsageError: a value out of range.
    """
    from privacy.accounting.calibration import most_steps
    from privacy.accounting.composition import check_budget

    check_budget(delta, beta, target_epsilon)
    before = dict(spent or {})
    offset = before.pop(release, 0)

    def at(steps: int, name: str) -> float:
        return epsilon({**before, release: offset + steps}, delta, adjacency, name, beta=beta)

    near = most_steps(lambda steps: at(steps, "numerical"), target_epsilon, 64, STEP_LIMIT)
    if accountant == "numerical":
        return near
    return most_steps(lambda steps: at(steps, accountant), target_epsilon, near + 1, STEP_LIMIT)


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
) -> Release:
    """One step of a hypothetical run, for planning: sensitivity and dimension do not matter then.

    Raises:
        UsageError: a value out of range.
    """
    return Release(
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


# Below this an un-subsampled step alone costs an epsilon above 1000: inf is said, and grids stay within memory.
LEAST_NOISE = 0.02


@lru_cache(maxsize=4096)
def _epsilon(spent: Cost, delta: float, adjacency: Adjacency, accountant: str) -> float:
    from privacy.accounting.composition import total_epsilon

    if not spent.groups:
        return 0.0
    if any(group.noise_multiplier < LEAST_NOISE for group in spent.groups):
        return float("inf")
    return total_epsilon(_compose(accountant)(spent.groups, adjacency), spent, delta)


def _compose(accountant: str) -> Callable[[tuple[Group, ...], Adjacency], Composition]:
    compose = import_module(f"privacy.accounting.{accountant}").compose
    return cast("Callable[[tuple[Group, ...], Adjacency], Composition]", compose)


def _known(accountant: str) -> str:
    if accountant not in ACCOUNTANTS:
        raise UsageError(f"unknown accountant {accountant!r}: use one of {', '.join(ACCOUNTANTS)}")
    return accountant


def _covered(adjacency: Adjacency) -> Adjacency:
    if Adjacency(adjacency) is Adjacency.LABEL:
        raise UsageError(
            "adjacency 'label' is not what these accountants compute: use 'replace-one', "
            "which covers a change of label"
        )
    return Adjacency(adjacency)
