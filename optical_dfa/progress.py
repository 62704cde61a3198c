"""Progress of a long computation: a bar on a terminal, silence in a pipe.

Only public quantities may be passed here: what a progress line shows of a private run is part of its release.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress(Protocol):
    """What a trainer reports to. `start` once, `update` with a non-decreasing step, `finish` exactly once."""

    def start(self, total_steps: int) -> None:
        """The computation is about to take `total_steps` steps (more than 0)."""

    def update(self, step: int, fields: Mapping[str, float | str]) -> None:
        """`step` steps are done; `fields` are shown beside the bar and may be empty (the last ones stay)."""

    def finish(self) -> None:
        """The computation ended, also by an exception; harmless when `start` was never called."""


class SilentProgress:
    """Shows nothing: pipes, tests, library callers."""

    def start(self, total_steps: int) -> None:
        return

    def update(self, step: int, fields: Mapping[str, float | str]) -> None:
        return

    def finish(self) -> None:
        return


class BarProgress:
    """A rich bar with rate, remaining time and the latest fields, on `stream` (standard error by default)."""

    def __init__(self, stream: TextIO | None = None, what: str = "training") -> None:
        self._stream = stream
        self._what = what
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, total_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn(self._what),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=self._stream or sys.stderr),
        )
        self._task = self._bar.add_task(self._what, total=total_steps, text="")
        self._bar.start()

    def update(self, step: int, fields: Mapping[str, float | str]) -> None:
        if self._bar is None or self._task is None:
            return
        if fields:
            text = "  ".join(f"{name} {_short(value)}" for name, value in fields.items())
            self._bar.update(self._task, completed=step, text=text)
        else:
            self._bar.update(self._task, completed=step)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress:
    """A JSON object a line on `stream`, for schedulers: `step`, `steps`, `seconds` since the start, the latest fields.

    At most one a second, besides those with new fields and the last.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total: int | None = None
        self._step, self._begun, self._said = 0, 0.0, -math.inf
        self._fields: dict[str, float | str] = {}

    def start(self, total_steps: int) -> None:
        self._total, self._begun = total_steps, time.monotonic()

    def update(self, step: int, fields: Mapping[str, float | str]) -> None:
        self._step = step
        self._fields.update(fields)
        if fields or step == self._total or time.monotonic() - self._said >= 1:
            self._say()

    def finish(self) -> None:
        self._total = None

    def _say(self) -> None:
        self._said = time.monotonic()
        seconds = round(self._said - self._begun, 3)
        line = {"step": self._step, "steps": self._total, "seconds": seconds, **self._fields}
        print(json.dumps(line), file=self._stream, flush=True)


def progress_for(stream: TextIO, what: str = "training") -> Progress:
    """A bar called `what` where `stream` is a terminal, silence where it is a pipe or a file."""
    return BarProgress(stream, what) if stream.isatty() else SilentProgress()


@contextmanager
def waiting(stream: TextIO, what: str) -> Iterator[None]:
    """While open, a sign of life beside `what` where `stream` is a terminal: for work that cannot count its steps."""
    if not stream.isatty():
        yield
        return
    from rich.console import Console

    with Console(file=stream).status(what, spinner="line"):
        yield


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
