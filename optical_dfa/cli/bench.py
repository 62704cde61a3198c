"""`optical-dfa bench`: paired measurements of speed, and of memory."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, show

# Name -> "module:function", and the options it takes; it returns a mapping of JSON types.
BENCHES = {
    "step": ("optical_dfa.bench.step:run", ("network", "batch", "rounds", "busy", "out")),
    "memory": ("optical_dfa.bench.memory:run", ("network", "batch", "rounds", "out")),
    "projection": ("optical_dfa.bench.projection:run", ("rounds",)),
    "noise": ("optical_dfa.bench.noise:run", ("rounds",)),
}


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(BENCHES)}.")],
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="step, memory: of mlp, cnn, gru, transformer, mlp-4096; commas between.  [default: the first four]",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="step, memory: records a step.  [default: 256,2048]"),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Measured calls of each contestant, at most; memory: fresh processes of each."
        ),
    ] = None,
    busy: Annotated[
        int | None,
        typer.Option(
            min=0, max=256, metavar="K", help="step: beside K processes that keep a processor busy."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="step, memory: write results.json, table.md and picture.png there."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure in one paired run: time or peak memory of a training step against plain backpropagation and Opacus, a
    projection of the simulated OPU against lightonml's simulated device, or secret noise against torch's.

    Example: optical-dfa bench step --network mlp,cnn --batch 256 --json
    """
    if name not in BENCHES:
        raise UsageError(f"there is no bench {name!r}; choose one of: {', '.join(BENCHES)}")
    target, known = BENCHES[name]
    given: dict[str, Any] = {
        "network": network.split(",") if network is not None else None,
        "batch": _numbers(batch) if batch is not None else None,
        "rounds": rounds,
        "busy": busy,
        "out": out,
    }
    given = {option: value for option, value in given.items() if value is not None}
    for option in given:
        if option not in known:
            raise UsageError(f"bench {name} takes no --{option}; it takes: --{', --'.join(known)}")
    given.pop("out", None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before anything is measured
    module, function = target.split(":")
    with notes_to_stderr(as_json):
        result = getattr(importlib.import_module(module), function)(**given)
    text: str | None = None
    if "cells" in result:
        from optical_dfa.bench.findings import keep, table

        command = _command(name, given)
        text = table(result, command)
        if out is not None:
            keep(result, out, command)
    if as_json:
        print_json(result)
    elif text is not None:
        print(text, end="")
    else:
        print_facts({key: show(value) for key, value in result.items()})


def _numbers(listed: str) -> list[int]:
    try:
        return [int(text) for text in listed.split(",")]
    except ValueError:
        raise UsageError(f"batch is {listed!r}; it must be whole numbers, for example 256,2048") from None


def _command(name: str, given: dict[str, Any]) -> str:
    """The line that measures the same again."""
    options = [
        f"--{option} {','.join(map(str, value)) if isinstance(value, list) else value}"
        for option, value in given.items()
    ]
    return " ".join(["optical-dfa bench", name, *options])
