"""`optical-dfa account`: what private steps cost, or which noise, or how many steps, a budget allows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json

if TYPE_CHECKING:
    from privacy.adjacency import Adjacency

ACCOUNTANTS = ("pld", "prv", "rdp", "numerical")
ADJACENCIES = ("add-or-remove-one", "replace-one")

_ASSUMPTIONS = (
    "every step samples each record independently at the sample rate (Poisson), with coins that stay secret",
    "one record's whole update is clipped to the norm that the noise multiplier refers to",
    "the noise is Gaussian, secret, fresh at every step, and covers every released coordinate",
)


def account(
    sample_rate: Annotated[float, typer.Option(help="Probability with which a record joins a step.")],
    delta: Annotated[float, typer.Option(help="Failure probability of the guarantee.")],
    noise_multiplier: Annotated[float | None, typer.Option(help="Noise over clipping norm.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Instead of --steps: steps = epochs / sample rate.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Privacy budget.")] = None,
    accountant: Annotated[str, typer.Option(help=f"{', '.join(ACCOUNTANTS)}.")] = "pld",
    adjacency: Annotated[str, typer.Option(help=f"{', '.join(ADJACENCIES)}.")] = "add-or-remove-one",
    as_json: JsonOption = False,
) -> None:
    """Compute the privacy of Poisson-sampled Gaussian steps.

    Give two of --noise-multiplier, --steps (or --epochs), --epsilon; the third is computed, never on the
    unsafe side.

    Example: optical-dfa account --noise-multiplier 1.1 --sample-rate 0.00427 --steps 10000 --delta 1e-5
    """
    from privacy.accounting import STEP_LIMIT

    _check(sample_rate, delta, accountant, adjacency)
    steps = _steps(steps, epochs, sample_rate)
    if steps is not None and steps > STEP_LIMIT:
        raise UsageError(f"--steps is {steps:,}; it must be at most {STEP_LIMIT:,}")
    for flag, value in (("noise-multiplier", noise_multiplier), ("steps", steps), ("epsilon", epsilon)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{flag} is {value:g}; it must be a finite number above 0")

    from privacy import accounting
    from privacy.adjacency import Adjacency
    from privacy.guarantee import Guarantee, Kind

    notion = Adjacency(adjacency)
    with notes_to_stderr(as_json):
        sigma, count = _solve(noise_multiplier, steps, epsilon, sample_rate, delta, notion, accountant)
        step = accounting.gaussian(sample_rate, sigma)
        spent = accounting.epsilon({step: count}, delta, notion, accountant)
    guarantee = Guarantee(
        epsilon=spent,
        delta=delta,
        adjacency=notion,
        kind=Kind.RECORD_DP,
        accountant=accountant,
        assumptions=_ASSUMPTIONS,
    )
    if as_json:
        mechanism = {"noise_multiplier": sigma, "sample_rate": sample_rate, "steps": count}
        print_json({**guarantee.to_dict(), **mechanism})
        return
    print_facts(
        {"noise multiplier": f"{sigma:.6g}", "sample rate": f"{sample_rate:.6g}", "steps": f"{count:,}"}
    )
    print(f"\nguarantee: {guarantee}")


def _check(sample_rate: float, delta: float, accountant: str, adjacency: str) -> None:
    if not 0 < sample_rate <= 1:
        raise UsageError(f"--sample-rate is {sample_rate:g}; it must be above 0 and at most 1")
    if not 0 < delta < 1:
        raise UsageError(
            f"--delta is {delta:g}; it must be strictly between 0 and 1, below 1 / number of records"
        )
    for flag, value, allowed in (
        ("accountant", accountant, ACCOUNTANTS),
        ("adjacency", adjacency, ADJACENCIES),
    ):
        if value not in allowed:
            raise UsageError(f"--{flag} is {value!r}; it must be one of: {', '.join(allowed)}")


def _steps(steps: int | None, epochs: float | None, sample_rate: float) -> int | None:
    """The number of steps that --steps or --epochs stands for, None where neither was given."""
    if epochs is None:
        return steps
    if steps is not None:
        raise UsageError(f"--steps {steps} and --epochs {epochs:g} say the same thing; give one of the two")
    if not 0 < epochs < math.inf:
        raise UsageError(f"--epochs is {epochs:g}; it must be a finite number above 0")
    steps_taken = epochs / sample_rate
    if steps_taken == math.inf:
        raise UsageError(f"--epochs is {epochs:g}, too many steps at --sample-rate {sample_rate:g}; lower it")
    return math.ceil(steps_taken * (1 - 1e-12))


def _solve(
    noise_multiplier: float | None,
    steps: int | None,
    epsilon: float | None,
    sample_rate: float,
    delta: float,
    adjacency: Adjacency,
    accountant: str,
) -> tuple[float, int]:
    """Noise multiplier and steps, the missing one solved for.

    Raises:
        UsageError: not exactly two of the three were given, or no step fits the budget.
    """
    from privacy import accounting

    if noise_multiplier is not None and steps is not None and epsilon is None:
        return noise_multiplier, steps
    if noise_multiplier is None and steps is not None and epsilon is not None:
        sigma = accounting.noise_multiplier(epsilon, delta, sample_rate, steps, adjacency, accountant)
        return sigma, steps
    if noise_multiplier is not None and steps is None and epsilon is not None:
        step = accounting.gaussian(sample_rate, noise_multiplier)
        count = accounting.steps_within(epsilon, delta, step, adjacency, accountant)
        if count < 1:
            raise UsageError(
                f"--epsilon {epsilon:g} does not pay for one step; raise it or --noise-multiplier"
            )
        return noise_multiplier, count
    given = sum(value is not None for value in (noise_multiplier, steps, epsilon))
    raise UsageError(
        f"{given} of --noise-multiplier, --steps (or --epochs), --epsilon given; give two: the third follows"
    )
