"""Measurements in a process of their own, where nothing was measured before."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def answer_of(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments` prints: one JSON object."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
