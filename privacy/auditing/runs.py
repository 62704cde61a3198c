"""Several runs beside each other: none may have drawn from another's generators, or released its dark frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from noise_models.errors import UsageError
from privacy.auditing.audit import ledger_of
from privacy.ledger import Ledger


class _Used(NamedTuple):
    """What a run drew from: names of its generators by the key's fingerprint, and the digests of its dark frames."""

    run: Path
    seeded: bool
    head: str
    keys: dict[str, str]
    frames: frozenset[str]


def compare_runs(runs: Sequence[Path], notes: list[str]) -> list[str]:
    """Findings about generators or dark frames that two runs share: their noise is then not independent.

    Seeded runs share theirs by design and promise nothing; a copy of a run, or an earlier state of it, is the same
    run. Both are notes.

    Args:
        runs: run folders or ledgers.
        notes: receives what is worth knowing.
    Raises:
        UsageError: a ledger is not there or not readable.
    """
    findings = []
    there = [Path(run) for run in runs if ledger_of(Path(run)).exists()]  # what is not there, its audit finds
    for one, other in combinations([_used(run) for run in there], 2):
        shared = sorted({name for key, name in one.keys.items() if key in other.keys})
        frames = one.frames & other.frames
        if not shared and not frames:
            continue
        what = f"{one.run} and {other.run}"
        if _contains(one.run, other.head) or _contains(other.run, one.head):
            notes.append(f"{what} are copies of one run, or states of it: their releases are the same")
        elif one.seeded and other.seeded:
            notes.append(f"{what} were seeded alike: no guarantee either way")
        elif shared:
            findings.append(
                f"{what} used the same key for {', '.join(shared)}: one's noise is known from the other's, or one "
                "branched off the other and both spent the budget"
            )
        else:
            findings.append(f"{what} were shown the same {len(frames)} dark frames: the device replayed them")
    return findings


def _used(run: Path) -> _Used:
    with Ledger.open(ledger_of(run), read_only=True) as ledger:
        keys = {str(row.get("fingerprint")): str(row.get("name")) for row in _readable(ledger, "key")}
        digests = [row.get("digests") for kind in ("health", "frames") for row in _readable(ledger, kind)]
        frames = frozenset(str(digest) for some in digests if isinstance(some, list) for digest in some)
        return _Used(run, bool(ledger.header().get("reproducible")), ledger.head(), keys, frames)


def _readable(ledger: Ledger, kind: str) -> list[dict[str, Any]]:
    """Rows of this kind; none where one is damaged, which the run's own audit finds."""
    try:
        return [row for row in ledger.events(kind) if isinstance(row, dict)]
    except UsageError:
        return []


def _contains(run: Path, head: str) -> bool:
    with Ledger.open(ledger_of(run), read_only=True) as ledger:
        return ledger.contains(head)
