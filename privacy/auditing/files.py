"""The files of a run folder: which there are, which this program wrote, and which could not be read."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from privacy.auditing import fields
from privacy.auditing.strict import parsed

LEDGER_FILE = "ledger.sqlite"
CHECKPOINT_FILE = "checkpoint.safetensors"
SETTINGS_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
CALIBRATION_FILE = "camera-calibration.json"
HISTOGRAM_FILE = "calibration.json"
CERTIFICATE_FILE = "certificate.json"
REPORT_FILE = "report.html"
BOARD = "tensorboard"
# Written after the ledger was: without it they cannot be.
LATER = (CHECKPOINT_FILE, METRICS_FILE, SUMMARY_FILE, CERTIFICATE_FILE, HISTOGRAM_FILE, REPORT_FILE)
_READ = (SETTINGS_FILE, CALIBRATION_FILE, LEDGER_FILE, f"{LEDGER_FILE}-wal", f"{LEDGER_FILE}-shm", *LATER)
# Files that one release alone has, with what may stand in them.
_OWN = {
    HISTOGRAM_FILE: ("dark-frame", fields.HISTOGRAM),
    CERTIFICATE_FILE: ("per-record", fields.CERTIFICATE),
}
_MOST = 20  # names that are listed


def refuse_special(run: Path) -> None:
    """Nothing is read that may never end.

    Args:
        run: a run folder, or a ledger.
    Raises:
        UsageError: naming a pipe, socket or device.
    """
    for path in sorted(run.iterdir()) if run.is_dir() else [run]:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(
                f"{path.name!r} is a pipe, a socket or a device; put the run's own file in its place"
            )


def content(path: Path, unreadable: list[str]) -> bytes | None:
    """What a file holds; None without one, or where `unreadable` was told why it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        unreadable.append(f"{path.name} ({error.strerror or error})")
        return None


def check_files(
    folder: Path, header: Mapping[str, Any], notes: list[str], unreadable: list[str]
) -> list[str]:
    """Findings about files that no run of this kind has, that it must have, or that hold what nobody writes there.

    Args:
        folder: of the run.
        header: of its ledger.
        notes: receives which known files are links.
        unreadable: receives which files could not be read.
    """
    findings = []
    missing = [] if (folder / SETTINGS_FILE).exists() else [SETTINGS_FILE]
    shown = header["release"] == "none" or bool(header.get("unsafe_diagnostics"))
    for name, (release, known) in _OWN.items():
        path = folder / name
        if not path.exists():
            missing += [name] if header["release"] == release else []
            continue
        if header["release"] not in (release, "none"):
            findings.append(f"{name} belongs to release {release}, this run is of {header['release']}")
        elif (held := content(path, unreadable)) is not None:
            findings += _check_document(name, held, known, shown=shown)
    if missing and (folder / SUMMARY_FILE).exists():  # the last file of a run
        findings.append(taken_away(SUMMARY_FILE, " and ".join(missing)))
    if (folder / BOARD).exists() and not shown:
        findings.append(f"{BOARD} holds figures of training records, and the ledger says that none were kept")
    links = [name for name in _READ if (folder / name).is_symlink()]
    notes += [f"{name} is a link to {(folder / name).resolve()}" for name in links]
    return findings


def taken_away(shown: str, before: str) -> str:
    """The finding that a file is not there which is written before one that is."""
    return (
        f"{shown} without {before}, which is written first: it was taken away, and what the ledger has cannot be "
        "compared with it"
    )


def others(folder: Path) -> list[str]:
    """What lies in the folder that the audit does not read, or of which it looks at the form alone."""
    found = [f"{name} (its figures)" for name in _OWN if (folder / name).exists()]
    found += [
        f"{path.name}{'/' if stat.S_ISDIR(path.lstat().st_mode) else ''}"
        for path in sorted(folder.iterdir())
        if path.name not in _READ
    ]
    rest = len(found) - _MOST
    return found if rest <= 0 else [*found[:_MOST], f"{rest} more files"]


def _check_document(name: str, held: bytes, known: Mapping[str, fields.Field], *, shown: bool) -> list[str]:
    try:
        document = parsed(held)
        if not isinstance(document, dict):
            raise ValueError("no table")
    except ValueError as error:
        return [f"{name} is damaged ({error})"]
    findings = fields.off(document, known, name) + _strange(document, known, name)
    if name == HISTOGRAM_FILE:
        return findings
    rows = document.get("findings")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for row in rows:
        findings += fields.off(row, fields.CERTIFIED, name) + _strange(row, fields.CERTIFIED, name)
    private = document.get("computed_from_private_records") is not False or any(
        row.get("public") is not True for row in rows
    )
    if private and not shown:
        findings.append(f"{name} has figures of private records, and the ledger says that none were kept")
    if document.get("failing") != sum(row.get("holds") is False for row in rows):
        findings.append(f"{name} counts {document.get('failing')!r} failing assumptions, its rows are others")
    return findings


def _strange(table: Mapping[str, Any], known: Mapping[str, fields.Field], name: str) -> list[str]:
    names = sorted(fields.unknown(table, known))
    return [f"{name} shows {', '.join(names[:_MOST])}, which this program does not write"] if names else []
