"""The first row of a ledger: what kind of run it says it was, and whether it says so without contradiction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from privacy.ledger import Ledger
from privacy.notions import Adjacency
from privacy.releases import RELEASES

_REQUIRED = ("release", "reproducible")
_NUMBERS = ("sample_rate", "noise_multiplier", "nominal_size", "batch_size")
_NUMBERS_IF_GIVEN = (
    *("delta", "target_epsilon", "device_share", "calibration_beta"),
    *("max_grad_norm", "sensitivity", "dimension"),
)
_REQUIRED_PRIVATE = ("adjacency", *_NUMBERS)


def read_header(ledger: Ledger, run: Path) -> dict[str, Any]:
    """The header, with every field that an audit relies on of its type.

    Args:
        ledger: open, damaged or not.
        run: where it is, for the message.
    Raises:
        UsageError: a field that an audit cannot do without is missing, or of another type.
    """
    header = ledger.header()
    required = _REQUIRED if header.get("release") == "none" else _REQUIRED + _REQUIRED_PRIVATE
    missing = [key for key in required if key not in header]
    if missing:
        raise UsageError(
            f"ledger of {run} lacks {', '.join(missing)} in its header: it is not the ledger of a run"
        )
    if not isinstance(header["release"], str):
        raise UsageError(
            f"ledger of {run} has release = {header['release']!r} in its header: it must be text"
        )
    assumptions = header.get("assumptions") or []
    if not isinstance(assumptions, list) or not all(isinstance(text, str) for text in assumptions):
        raise UsageError(f"ledger of {run} has assumptions in its header that are no list of texts")
    if header["release"] == "none":
        return header
    if header["release"] not in RELEASES:
        raise UsageError(
            f"ledger of {run} has release {header['release']!r}, which has no known guarantee: it must be one of "
            f"none, {', '.join(RELEASES)}"
        )
    for key in (*_NUMBERS, *(key for key in _NUMBERS_IF_GIVEN if header.get(key) is not None)):
        value = header[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UsageError(
                f"ledger of {run} has {key} = {value!r} in its header: it must be a finite number >= 0"
            )
    if header["adjacency"] not in list(Adjacency):
        raise UsageError(
            f"ledger of {run} has adjacency {header['adjacency']!r}: it must be one of {', '.join(Adjacency)}"
        )
    return header


def check_terms(header: Mapping[str, Any]) -> list[str]:
    """Where the header's mechanism and adjacency are not those of its release: a statement nobody can make."""
    if header["release"] == "none":
        return []
    terms, findings = RELEASES[header["release"]], []
    for name in ("mechanism", "adjacency"):
        said, own = header.get(name, getattr(terms, name)), getattr(terms, name)
        if said != own:
            findings.append(f"the header says {name} {said!s}, release {header['release']} has {own!s}")
    return findings


def check_version(header: Mapping[str, Any], notes: list[str]) -> list[str]:
    """Whether this program may judge what the header's program wrote."""
    if header["release"] == "none":
        return []
    wrote = header.get("version")
    numbers = _numbers(wrote)
    if numbers is None:
        return [f"the ledger does not say which version of the program wrote it ({_short(wrote)})"]
    try:
        installed = version("optical-dfa")
    except PackageNotFoundError:
        notes.append(f"the ledger was written by version {_short(wrote)}; this program is not installed")
        return []
    if numbers > (_numbers(installed) or ()):
        return [
            f"the ledger was written by version {_short(wrote)}, newer than this one ({installed}): audit it with that"
        ]
    if wrote != installed:
        notes.append(f"the ledger was written by version {_short(wrote)}, this is {installed}")
    return []


def _numbers(text: object) -> tuple[int, ...] | None:
    """The numbers a version begins with, None where it is none."""
    found = re.match(r"\d+(\.\d+)*", text) if isinstance(text, str) else None
    return None if found is None else tuple(int(part) for part in found[0].split("."))


def _short(value: object) -> str:
    return str(value)[:40]
