"""What the ledger is told of a device: its keys, its health and the calibration it is credited by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from noise_models.calibration.document import Document
from noise_models.errors import DeviceError, HealthError
from privacy.ledger import Ledger
from privacy.releases.source import Source

FRAMES = "frames"  # kind of the rows that name frames by their digests


def start_up(source: Source, ledger: Ledger) -> None:
    """Test a source's device; a row says what was found, good or bad.

    Raises:
        DeviceError: it may not be used.
    """
    with noting_failures(ledger, "start-up"):
        found = source.start_up()
    if found:
        ledger.append_event("health", {"phase": "start-up", "passed": True, "at": _now(), **found})
    register_new_keys(source, ledger)
    note_frames(source, ledger)


def note_frames(source: Source, ledger: Ledger) -> None:
    """The digests of all frames that a device showed since it was last asked: a later part of the run knows them."""
    if digests := source.shown():
        ledger.append_event(FRAMES, {"digests": list(digests)})


@contextmanager
def noting_failures(ledger: Ledger, phase: str) -> Iterator[None]:
    """What a device was refused for is on disk before anybody hears of it."""
    try:
        yield
    except DeviceError as error:
        finding = error.finding if isinstance(error, HealthError) else {"test": "device"}
        row = {"phase": phase, "passed": False, "at": _now(), "message": str(error), **finding}
        ledger.append_event("health", row)
        raise


def register_new_keys(source: Source, ledger: Ledger) -> None:
    """Keys that a source took from its device since it was last asked.

    Raises:
        UsageError: one was used before.
    """
    for generator in source.rekeyed():
        ledger.register_key(generator.fingerprint(), generator.name)


def known_digests(ledger: Ledger) -> tuple[str, ...]:
    """Of the frames that earlier parts of the run logged, released ones and others."""
    rows = (*ledger.events("health"), *ledger.events(FRAMES))
    return tuple(dict.fromkeys(digest for row in rows for digest in row.get("digests", ())))


def identity(calibration: Document | None) -> dict[str, str] | None:
    """By which a ledger's header names a calibration."""
    return None if calibration is None else calibration.identity()


def refuse_other_calibration(ledger: Ledger, header: Mapping[str, Any]) -> None:
    """A run relies on one calibration from its first release to its last.

    Raises:
        HealthError: the ledger names another one than `header`, or none; a row of the ledger says so.
    """
    before, now = ledger.header().get("calibration"), header["calibration"]
    if before == now:
        return
    was, given = ("none" if each is None else each["digest"][:16] for each in (before, now))
    with noting_failures(ledger, "start-up"):
        raise HealthError(
            f"the run to resume relied on calibration {was}, not on {given}; resume it with its own, or begin a new "
            "run (nothing more is released)",
            {"test": "calibration", "value": given, "limit": was},
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
