"""`optical-dfa account`: what private steps cost, or which noise, or how many steps, a budget allows."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, print_table
from optical_dfa.progress import waiting
from privacy.mechanisms import MECHANISMS

if TYPE_CHECKING:
    from privacy.accounting.planning import Plan

_VARIED = ("noise-multiplier", "steps", "epochs", "epsilon", "sample-rate", "delta")


def account(
    delta: Annotated[float, typer.Option(help="Failure probability of the guarantee.")],
    sample_rate: Annotated[
        float | None,
        typer.Option(help="Probability with which a record joins a step; none for label-gaussian."),
    ] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Noise over clipping norm.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Number of steps; for label-gaussian those of one record, one an epoch."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Instead of --steps: steps = epochs / sample rate.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Privacy budget.")] = None,
    mechanism: Annotated[str, typer.Option(help=f"{', '.join(MECHANISMS)}.")] = "gaussian",
    accountant: Annotated[
        str | None,
        typer.Option(
            help="One of the mechanism's; the first by default: "
            + "; ".join(f"{name}: {', '.join(entry.accountants)}" for name, entry in MECHANISMS.items())
            + "."
        ),
    ] = None,
    adjacency: Annotated[
        str | None, typer.Option(help="add-or-remove-one, replace-one; label for label-gaussian.")
    ] = None,
    calibration_beta: Annotated[
        float, typer.Option(help="Probability that the device's calibration is wrong; taken from delta.")
    ] = 0.0,
    sensitivity: Annotated[
        float | None,
        typer.Option(
            help="skellam: clipping norm in grid units; poisson: l2 of one record's change of the expected counts of "
            "a step's pixels, in photo-electrons; photon: largest relative change of a count's amplitude by one record."
        ),
    ] = None,
    dimension: Annotated[int | None, typer.Option(help="skellam: released coordinates.")] = None,
    least_rate: Annotated[
        float | None,
        typer.Option(
            help="poisson, instead of --noise-multiplier = sqrt(least rate) / sensitivity: the least expected count "
            "of a pixel, in photo-electrons."
        ),
    ] = None,
    largest: Annotated[
        float | None,
        typer.Option(
            help="poisson: one record's largest change of a single pixel, in photo-electrons; else --sensitivity."
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=V1,V2,...", help=f"One row for each value of one of {', '.join(_VARIED)}."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw the table, or else epsilon against steps up to the plan's."
        ),
    ] = None,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Epsilon by every accountant that covers the mechanism.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the privacy of a planned run's steps: Poisson-sampled Gaussian ones, or another mechanism's.

    Give two of --noise-multiplier, --steps (or --epochs), --epsilon; the third is computed, never on the
    unsafe side.

    Example: optical-dfa account --noise-multiplier 1.1 --sample-rate 0.00427 --steps 10000 --delta 1e-5
    """
    asked = {
        "mechanism": mechanism,
        "delta": delta,
        "sample-rate": sample_rate,
        "adjacency": adjacency,
        "accountant": accountant,
        "beta": calibration_beta,
        "sensitivity": sensitivity,
        "dimension": dimension,
        "least-rate": least_rate,
        "largest": largest,
        "noise-multiplier": noise_multiplier,
        "steps": steps,
        "epochs": epochs,
        "epsilon": epsilon,
    }
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.parent.is_dir()):
        raise UsageError(f"--plot is {plot}; give a file ending in .png in a folder that exists")
    if table is not None and cross_check:
        raise UsageError("--cross-check compares one plan; leave out --table")
    if table is not None:
        name, values = _varied(table)
        with notes_to_stderr(as_json), waiting(sys.stderr, "accounting"):
            plans = _rows(asked, name, values)
            if plot is not None:
                _plot_rows(name, plans, asked, plot)
        _print_rows(name, plans, as_json)
        return
    with notes_to_stderr(as_json), waiting(sys.stderr, "accounting"):
        plan = _plan(asked)
        left_out: dict[str, str] = {}
        checks = plan.cross_check(left_out) if cross_check else {}
        if plot is not None:
            from optical_dfa.report.budget import draw_steps

            draw_steps(plan, plot)
    _print_plan(plan, checks, left_out, as_json)


def _plan(asked: Mapping[str, Any]) -> Plan:
    """The plan that the options ask for.

    Raises:
        UsageError: an option that is missing, out of range, or not the mechanism's.
    """
    from privacy.accounting import STEP_LIMIT

    mechanism, delta, beta = asked["mechanism"], asked["delta"], asked["beta"]
    if mechanism not in MECHANISMS:
        raise UsageError(f"--mechanism is {mechanism!r}; it must be one of: {', '.join(MECHANISMS)}")
    terms = MECHANISMS[mechanism]
    sample_rate = _sample_rate(mechanism, asked["sample-rate"])
    if not 0 < delta < 1:
        raise UsageError(
            f"--delta is {delta}; it must be strictly between 0 and 1, below 1 / number of records"
        )
    if not 0 <= beta < delta:
        raise UsageError(f"--calibration-beta is {beta}; it must be at least 0 and below --delta {delta}")
    accountant = terms.accountants[0] if asked["accountant"] is None else asked["accountant"]
    adjacency = terms.adjacencies[0].value if asked["adjacency"] is None else asked["adjacency"]
    for flag, value, allowed in (
        ("accountant", accountant, terms.accountants),
        ("adjacency", adjacency, tuple(notion.value for notion in terms.adjacencies)),
    ):
        if value not in allowed:
            raise UsageError(
                f"--{flag} is {value!r}; for {mechanism} it must be one of: {', '.join(allowed)}"
            )
    sensitivity, dimension = asked["sensitivity"], asked["dimension"]
    if mechanism == "skellam" and (sensitivity is None or dimension is None):
        raise UsageError("--mechanism skellam needs --sensitivity (in grid units) and --dimension; give both")
    if mechanism == "photon" and sensitivity is None:
        raise UsageError(
            "--mechanism photon needs --sensitivity, the largest relative change of a count's amplitude; give it"
        )
    if mechanism == "poisson" and sensitivity is None:
        raise UsageError("--mechanism poisson needs --sensitivity, the l2 change in photo-electrons; give it")
    for flag, users in (
        ("sensitivity", ("skellam", "poisson", "photon")),
        ("dimension", ("skellam",)),
        ("least-rate", ("poisson",)),
        ("largest", ("poisson",)),
    ):
        if asked[flag] is not None and mechanism not in users:
            raise UsageError(f"--{flag} changes nothing for {mechanism}; leave it out")
    steps = _steps(asked["steps"], asked["epochs"], sample_rate)
    if steps is not None and steps > STEP_LIMIT:
        raise UsageError(f"--steps is {steps:,}; it must be at most {STEP_LIMIT:,}")
    given = {"noise-multiplier": asked["noise-multiplier"], "steps": steps, "epsilon": asked["epsilon"]}
    sizes = {flag: asked[flag] for flag in ("sensitivity", "dimension", "least-rate", "largest")}
    for flag, value in {**given, **sizes}.items():
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{flag} is {value}; it must be a finite number above 0")
    if asked["least-rate"] is not None:
        from privacy.accounting.poisson_frames import multiplier_of

        if given["noise-multiplier"] is not None:
            raise UsageError("--least-rate and --noise-multiplier say the same thing; give one of the two")
        given["noise-multiplier"] = multiplier_of(asked["least-rate"], sensitivity)
    count = sum(value is not None for value in given.values())
    if count != 2:
        raise UsageError(
            f"{count} of --noise-multiplier, --steps (or --epochs), --epsilon given; give two: the third follows"
        )

    from privacy.accounting.planning import Scheme, complete
    from privacy.notions import Adjacency

    scheme = Scheme(
        mechanism,
        delta,
        sample_rate,
        Adjacency(adjacency),
        accountant,
        beta,
        1.0 if sensitivity is None else sensitivity,
        1 if dimension is None else dimension,
        math.inf if asked["largest"] is None else asked["largest"],
    )
    return complete(scheme, noise_multiplier=given["noise-multiplier"], steps=steps, epsilon=given["epsilon"])


def _sample_rate(mechanism: str, given: float | None) -> float:
    if MECHANISMS[mechanism].epochs:
        if given not in (None, 1.0):
            raise UsageError(f"--sample-rate is {given}; batches of {mechanism} are public, leave it out")
        return 1.0
    if given is None:
        raise UsageError("--sample-rate is missing; give the batch size over the number of records")
    if not 0 < given <= 1:
        raise UsageError(f"--sample-rate is {given}; it must be above 0 and at most 1")
    return given


def _steps(steps: int | None, epochs: float | None, sample_rate: float) -> int | None:
    """The number of steps that --steps or --epochs stands for, None where neither was given."""
    if epochs is None:
        return steps
    if steps is not None:
        raise UsageError(f"--steps {steps} and --epochs {epochs} say the same thing; give one of the two")
    if not 0 < epochs < math.inf:
        raise UsageError(f"--epochs is {epochs}; it must be a finite number above 0")
    steps_taken = epochs / sample_rate
    if steps_taken == math.inf:
        raise UsageError(f"--epochs is {epochs}, too many steps at --sample-rate {sample_rate}; lower it")
    return math.ceil(steps_taken * (1 - 1e-12))


def _varied(table: str) -> tuple[str, list[float]]:
    name, _, listed = table.partition("=")
    try:
        values = [float(value) for value in listed.split(",")]
    except ValueError:
        values = []
    whole = name != "steps" or all(value.is_integer() for value in values)
    if name not in _VARIED or not values or not whole:
        raise UsageError(
            f"--table is {table!r}; give NAME=V1,V2,... with numbers and a name of: {', '.join(_VARIED)}"
        )
    return name, values


def _rows(asked: Mapping[str, Any], name: str, values: list[float]) -> list[tuple[float, Plan | None]]:
    """A plan for each value; None where the budget is out of reach, unless it is for all of them."""
    instead = {"steps": "epochs", "epochs": "steps"}.get(name)
    taken = asked[name] is not None or (instead is not None and asked[instead] is not None)
    if taken and name not in ("delta", "sample-rate"):
        raise UsageError(f"--table varies {name}; leave out --{name}, or vary another")
    plans: list[tuple[float, Plan | None]] = []
    errors: list[UsageError] = []
    for value in values:
        try:
            plans.append((value, _plan({**asked, name: int(value) if name == "steps" else value})))
        except UsageError as error:
            errors.append(error)
            plans.append((value, None))
    if len(errors) == len(values):
        raise errors[0]
    return plans


def _print_plan(plan: Plan, checks: Mapping[str, float], left_out: Mapping[str, str], as_json: bool) -> None:
    from optical_dfa.report.budget import document_of, epsilon_label, guarantee_of

    if as_json:
        crossed = {"cross_check": dict(checks), "cross_check_left_out": dict(left_out)} if checks else {}
        print_json(document_of(plan) | crossed)
        return
    document = document_of(plan)
    light = (
        {"least rate": f"{document['least_rate']:.6g} photo-electrons"} if "least_rate" in document else {}
    )
    print_facts(
        light
        | {
            "noise multiplier": f"{plan.noise_multiplier:.6g}",
            "sample rate": f"{plan.scheme.sample_rate:.6g}",
            "steps": _steps_words(plan),
        }
    )
    print(f"\nguarantee: {guarantee_of(plan)}")
    if checks:
        print()
        print_table(
            ("accountant", epsilon_label(plan)), [(name, f"{value:.6g}") for name, value in checks.items()]
        )
        print("".join(f"not {name}: {reason}\n" for name, reason in left_out.items()), end="")


def _steps_words(plan: Plan) -> str:
    return f"at least {plan.steps:,} (the count ends there)" if plan.capped else f"{plan.steps:,}"


def _print_rows(name: str, plans: list[tuple[float, Plan | None]], as_json: bool) -> None:
    from optical_dfa.report.budget import document_of, epsilon_label, guarantee_of
    from privacy.guarantee import rounded_up

    made = [plan for _, plan in plans if plan is not None]
    if as_json:
        rows = [{name: value} if plan is None else document_of(plan) for value, plan in plans]
        print_json({"varied": name, "rows": rows})
        return
    cells = []
    for value, plan in plans:
        first = (f"{value:g}",) if name not in ("noise-multiplier", "steps", "epsilon") else ()
        if plan is None:
            row = {"noise-multiplier": "-", "steps": "-", "epsilon": "-"} | {name: f"{value:g}"}
            cells.append((*first, row["noise-multiplier"], row["steps"], row["epsilon"]))
        else:
            cells.append(
                (*first, f"{plan.noise_multiplier:.6g}", _steps_words(plan), rounded_up(plan.epsilon))
            )
    heads = () if name in ("noise-multiplier", "steps", "epsilon") else (name.replace("-", " "),)
    print_table((*heads, "noise multiplier", "steps", epsilon_label(made[0])), cells)
    if len(made) < len(plans):
        print("\n-: out of reach, at any noise or for a single step")
    example = guarantee_of(made[0])
    print(
        f"\nevery row: {example.kind.value}, adjacency {example.adjacency.value}, accountant {example.accountant}"
    )
    if name != "delta":
        print(f"  delta: {example.delta:g}")
    print("  assumptions:", *(f"    - {text}" for text in example.assumptions), sep="\n")


def _plot_rows(
    name: str, plans: list[tuple[float, Plan | None]], asked: Mapping[str, Any], path: Path
) -> None:
    from optical_dfa.report.budget import draw_budget, epsilon_label, title_of

    solved = "epsilon"
    if asked["noise-multiplier"] is None and name != "noise-multiplier":
        solved = "noise_multiplier"
    elif asked["steps"] is None and asked["epochs"] is None and name not in ("steps", "epochs"):
        solved = "steps"
    points = [(value, float(getattr(plan, solved))) for value, plan in plans if plan is not None]
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        raise UsageError(f"--plot {path}: no row of the table is finite; give values within reach")
    first = next(plan for _, plan in plans if plan is not None)
    labels = (
        name.replace("-", " "),
        epsilon_label(first) if solved == "epsilon" else solved.replace("_", " "),
    )
    draw_budget(finite, path, labels=labels, title=title_of(first, without=(name.replace("-", "_"), solved)))
