"""When a run is kept, and what ends it before its last step: a signal, or the time it was given.

Nothing tears a step apart: a run ends between two steps, with a checkpoint.
"""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from noise_models.errors import UsageError

# What a scheduler sends before it takes the machine away (Slurm: --signal=USR1@60), and what a keyboard does.
SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
OUT_OF_TIME: Final = 75  # exit code: try again later
_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)\s*(min)?")


class EndedError(KeyboardInterrupt):
    """A run ended before its last step; a checkpoint of the last whole step was kept.

    Attributes:
        reason: what ended it.
        exit_code: of the program: 128 and the signal's number, or `OUT_OF_TIME`.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.reason, self.exit_code = reason, exit_code


@dataclass(frozen=True)
class Interval:
    """So many steps, or so many seconds.

    Attributes:
        steps, seconds: one of the two is None.
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parsed(cls, text: str) -> Interval:
        """`500` is steps, `10min` minutes.

        Raises:
            UsageError: it is neither.
        """
        found = _INTERVAL.fullmatch(text.strip())
        number = float(found[1]) if found else 0.0
        if found and 0 < number < 1e9:
            if found[2]:
                return cls(seconds=60 * number)
            if number == int(number):
                return cls(steps=int(number))
        raise UsageError(f"checkpoint_every is {text!r}; give steps, such as 500, or minutes, such as 10min")


class Ending:
    """Watches signals and the clock while it is open."""

    def __init__(self, every: Interval | None, minutes: float | None) -> None:
        """
        Args:
            every: how often a checkpoint is due, besides those of whole epochs.
            minutes: that the run has.
        Raises:
            UsageError: no minutes at all.
        """
        if minutes is not None and not 0 < minutes < math.inf:
            raise UsageError(f"max_minutes is {minutes}; it must be above 0")
        self._every, self._minutes = every or Interval(), minutes
        self._begun = self._kept_at = time.monotonic()
        self._signal: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Signals are noted instead of tearing a step apart; a second one interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number

        # Not those that are ignored (nohup), nor those of another program that embeds this one.
        heard = [number for number in SIGNALS if signal.getsignal(number) not in (None, signal.SIG_IGN)]
        before = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def signalled(self) -> bool:
        """Whether a signal asked for the end."""
        return self._signal is not None

    def reason(self) -> EndedError | None:
        """Why the run is to end now; None where it goes on."""
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            return EndedError("interrupted" if name == "SIGINT" else f"ended by {name}", 128 + self._signal)
        if self._minutes is not None and time.monotonic() - self._begun >= 60 * self._minutes:
            return EndedError(f"ended after {self._minutes:g} minutes", OUT_OF_TIME)
        return None

    def checkpoint_due(self, step: int) -> bool:
        """Whether one is, after so many steps of the run."""
        every = self._every
        if every.steps is not None:
            return step % every.steps == 0
        return every.seconds is not None and time.monotonic() - self._kept_at >= every.seconds

    def kept(self) -> None:
        """A checkpoint was written."""
        self._kept_at = time.monotonic()
