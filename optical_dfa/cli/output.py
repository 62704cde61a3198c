"""What commands print: JSON for programs, tables for people (drawn on a terminal, aligned text in a pipe)."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from optical_dfa.cli.streams import encodable, spelt

JsonOption = Annotated[
    bool, typer.Option("--json", help="Machine-readable JSON on standard output, nothing else.")
]


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on standard output; infinities become the string "inf", NaN null.

    Where the output's encoding lacks a character it is written as JSON escapes it, never spelt otherwise.
    """
    text = json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False)
    if not encodable(text, getattr(sys.stdout, "encoding", None)):
        text = json.dumps(_plain(value), indent=2, allow_nan=False)
    print(text)


@contextlib.contextmanager
def notes_to_stderr(wanted: bool) -> Iterator[None]:
    """While open and `wanted`, what libraries print goes to standard error, away from the JSON."""
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_facts(facts: Mapping[str, str]) -> None:
    """Two columns: a name and its value."""
    print_table(("", ""), list(facts.items()))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of text cells on standard output; empty `heads` are not drawn."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_header=any(heads), pad_edge=False)
        for index, head in enumerate(heads):
            table.add_column(head, style="bold" if index == 0 else "", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    encoding = getattr(sys.stdout, "encoding", None)
    lines = [[spelt(cell, encoding) for cell in line] for line in ([heads, *rows] if any(heads) else rows)]
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(len(heads))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def show(value: object) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(show(item) for item in value)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
    return value
