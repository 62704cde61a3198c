"""Busy processes to measure beside: each keeps one processor occupied and needs no memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# It looks for its parent every few milliseconds: killed outright, the parent leaves nobody spinning.
SPIN = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """While open, `count` processes spin; they end with it, and with this process, whatever ends it."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen([sys.executable, "-I", "-c", SPIN, str(os.getpid())]))
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
