"""Files of finished results, one JSON object a line. A line that a crash has torn is no result: it is done again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def finished(path: Path) -> list[dict[str, Any]]:
    """Every result, in the order in which they were kept; an absent file holds none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append(result)
    return found


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Add one result, in one write: parts of a table may run side by side."""
    whole = not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")  # not torn by a crash
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(dict(result)) + "\n")
