"""The device's part of an audit: was it tested before every release, and which calibration is it credited by."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from privacy.ledger import Ledger

CALIBRATION_FILE = "camera-calibration.json"
_TESTED = ("dark-frame", "device-entropy")


def check_device(
    ledger: Ledger, header: Mapping[str, Any], folder: Path | None, notes: list[str]
) -> list[str]:
    """Findings about the device of a run; notes say what was relied on.

    Args:
        ledger: readable throughout.
        header: its header.
        folder: the run folder, None where only the ledger is audited.
    Raises:
        UsageError: a row is no JSON.
    """
    if header["release"] not in _TESTED or "calibration" not in header:  # digital, or older than the tests
        return []
    history = ledger.history()
    health = [row for kind, row in history if kind == "health"]
    for row in health:
        if row.get("passed") is not True:
            notes.append(f"the device was refused: {row.get('message', 'for a reason that is not given')}")
    passed = sum(row.get("passed") is True for row in health)
    notes.append(f"start-up tests that the device passed: {passed}")
    findings = _untested(history)
    calibration = header["calibration"]
    if isinstance(calibration, dict):
        findings += _check_calibration(calibration, health, folder, notes)
    return findings


def _untested(history: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Releases that no start-up test of their part of the run stands behind, or that follow a failure."""
    healthy, number, off = False, 0, []
    for kind, row in history:
        if kind == "key" and row.get("name") == "sampling":  # a part of the run begins
            healthy = False
        elif kind == "health":
            healthy = row.get("passed") is True
        elif kind == "release":
            number += 1
            if not healthy:
                off.append(number)
    if not off:
        return []
    return [
        f"release {off[0]} was made without a passed start-up test, or after the device had failed "
        f"({len(off)} such releases)"
    ]


def _check_calibration(
    named: Mapping[str, Any], health: list[dict[str, Any]], folder: Path | None, notes: list[str]
) -> list[str]:
    digest = str(named.get("digest"))
    taken, expires = named.get("taken_at"), named.get("expires_at")
    notes.append(f"the device is credited by calibration {digest}, taken {taken}, valid until {expires}")
    findings = []
    for row in health:
        try:
            valid = datetime.fromisoformat(str(row["at"])) < datetime.fromisoformat(str(expires))
        except (KeyError, ValueError, TypeError):
            valid = False
        if row.get("passed") is True and not valid:
            findings.append(f"a part of the run began at {row.get('at')}, not before its calibration expired")
    if folder is None:
        return findings
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        notes.append(f"no {path.name}: what the calibration measured cannot be read")
        return findings
    from noise_models.calibration import Calibration  # imports torch

    try:
        found = Calibration.load(path).digest
    except UsageError as error:
        return [*findings, f"{path.name} is unreadable ({error})"]
    if found != digest:
        findings.append(
            f"{path.name} has digest {found[:16]}…, the ledger relies on calibration {digest[:16]}…"
        )
    return findings
