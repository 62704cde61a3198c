"""`optical-dfa bench`: paired speed measurements."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, show

# Name -> "module:function"; the function takes no argument and returns a mapping of JSON types.
BENCHES = {
    "step": "optical_dfa.bench.step:run",
    "projection": "optical_dfa.bench.projection:run",
    "noise": "optical_dfa.bench.noise:run",
}


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(BENCHES)}.")],
    as_json: JsonOption = False,
) -> None:
    """Measure speed in one paired run: a training step against plain backpropagation and Opacus, a projection of the
    simulated OPU against lightonml's simulated device, or secret noise against torch's.

    Example: optical-dfa bench step --json
    """
    if name not in BENCHES:
        raise UsageError(f"there is no bench {name!r}; choose one of: {', '.join(BENCHES)}")
    module, function = BENCHES[name].split(":")
    with notes_to_stderr(as_json):
        result = getattr(importlib.import_module(module), function)()
    if as_json:
        print_json(result)
    else:
        print_facts({key: show(value) for key, value in result.items()})
