"""`python -m experiments theory [T1 … T12]`: every theorem of docs/theory.md, its conditions kept and dropped.

Without names all are run and table.md is written; `--list` names the theorems. Exit code 1 where a claim broke with its
conditions kept, or held with one of them dropped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.harness.experiment import TABLE
from experiments.theory.demonstration import Demonstration, table

FOLDER = Path(__file__).parent
COMMAND = "python -m experiments theory"
THEOREMS = {
    "T1": "the projection's own noise protects no record",
    "T2": "divergence of two Gaussians of any covariance",
    "T3": "device noise, then clip, then isotropic noise",
    "T4": "the noise read from dark frames, with dither",
    "T5": "aggregate, then project",
    "T6": "counts: Poisson, Skellam",
    "T7": "label privacy of the completed per-record mechanism",
    "T8": "calibrated noise",
    "T9": "composition",
    "T10": "shot noise of a sum that light carries",
    "T12": "the noise read from dark frames, several pixels a coordinate",
}
HEAD = ("Theorem", "Case", "Figure", "Claimed", "Found", "")


def demonstrations(theorem: str) -> list[Demonstration]:
    """All of one theorem, in the order of docs/theory.md."""
    found: list[Demonstration] = import_module(f"experiments.theory.{theorem.lower()}").demonstrations()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it where all theorems were asked for."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("theorem", nargs="*", metavar="T", help=f"of {', '.join(THEOREMS)}; all without")
    parser.add_argument("--list", action="store_true", help="name the theorems")
    given = parser.parse_args(arguments)
    if given.list:
        for name, what in THEOREMS.items():
            print(f"{name}  {what}")
        return 0
    names = [name.upper() for name in given.theorem] or list(THEOREMS)
    unknown = [name for name in names if name not in THEOREMS]
    if unknown:
        print(f"error: there is no theorem {unknown[0]}; use {', '.join(THEOREMS)}", file=sys.stderr)
        return 2
    found = {name: demonstrations(name) for name in names}
    text = _text(found)
    if names == list(THEOREMS):
        (FOLDER / TABLE).write_text(text, encoding="utf-8")
    print(text, end="")
    wrong = [d.case for ds in found.values() for d in ds if not d.as_it_should_be]
    for case in wrong:
        print(f"error: not as it should be: {case}", file=sys.stderr)
    return 1 if wrong else 0


def _text(found: dict[str, list[Demonstration]]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name, each in found.items():
        lines += table(name, each)
    return "\n".join([*lines, "", f"Made by `{COMMAND}`.", ""])
