"""Files that are put in their place whole or not at all: written under a name that no other process has."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def draft_of(path: Path) -> Path:
    """A name beside `path` for its draft; another one at every call."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.new")


def is_draft(name: str, of: str) -> bool:
    """Whether a file of this name is a draft of the file `of`, which a process that was killed may leave."""
    return re.fullmatch(rf"{re.escape(of)}\.\d+-[0-9a-f]+\.new", name) is not None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write, which takes the place of `path` when the block ends and is removed where it fails.

    Raises:
        OSError: it cannot be written; what was at `path` stays.
    """
    draft = draft_of(path)
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
