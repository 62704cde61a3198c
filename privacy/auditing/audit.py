"""Audit of a run: epsilon from the ledger alone, and whether everything else the run shows agrees with it.

The epsilon is computed by an accountant that shares no code with the one that training stops by. An audit cannot see
what was never written down: a release outside the ledger, or a ledger rewritten together with all other files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from noise_models.errors import UsageError
from privacy.auditing.claim import (
    SUMMARY_FILE,
    check_budget,
    check_summary,
    choose_delta,
    compare,
    read_summary,
    recompute,
    unsupported,
)
from privacy.auditing.device import check_device
from privacy.auditing.folder import (
    CHECKPOINT_FILE,
    METRICS_FILE,
    SETTINGS_FILE,
    check_checkpoint,
    check_metrics,
    check_settings,
    file_digest,
    read_settings,
)
from privacy.auditing.header import check_terms, check_version, read_header
from privacy.auditing.rows import check_keys, check_rows, refuse_unreadable
from privacy.auditing.wording import one_line
from privacy.guarantee import Guarantee
from privacy.ledger import Ledger, Release

LEDGER_FILE = "ledger.sqlite"


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        guarantee: recomputed from the ledger; its kind is what the ledger supports.
        consistent: True where nothing contradicts anything.
        findings: one line per contradiction.
        notes: one line per thing that could not be checked, or is worth knowing.
        releases: number of releases in the ledger.
        health: what the device's tests found, in order.
        calibration: which one the device is credited by, None without one.
        claim: the guarantee that the run's summary reports, None where it has no summary.
        header: the ledger's first row.
        ledger_head: hash of its last row, which stands for all of them.
        settings: what was asked for, empty where the folder does not say.
        checkpoint_digest: SHA-256 of the file of the weights, None without one.
        period: first and last date in the ledger, None where no row has one.
    """

    guarantee: Guarantee
    consistent: bool
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    releases: int
    health: tuple[dict[str, Any], ...]
    calibration: dict[str, str] | None
    claim: Guarantee | None
    header: Mapping[str, Any] = field(default_factory=dict)
    ledger_head: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_digest: str | None = None
    period: tuple[str, str] | None = None

    @property
    def epsilon(self) -> float:
        """The guarantee's epsilon; inf for kind none."""
        return self.guarantee.epsilon

    @property
    def delta(self) -> float:
        """The guarantee's delta."""
        return self.guarantee.delta

    @property
    def reported_epsilon(self) -> float | None:
        """What the run's summary claims, None where it has no summary."""
        return None if self.claim is None else self.claim.epsilon

    def with_remarks(self, findings: Sequence[str], notes: Sequence[str]) -> AuditReport:
        """This report with more findings and notes."""
        return replace(
            self,
            findings=(*self.findings, *findings),
            notes=(*self.notes, *notes),
            consistent=self.consistent and not findings,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; an infinite epsilon is the string "inf"."""
        guarantee = self.guarantee.to_dict()
        reported = self.reported_epsilon
        return {
            "epsilon": guarantee["epsilon"],
            "delta": guarantee["delta"],
            "kind": guarantee["kind"],
            "nominal_epsilon": guarantee["nominal_epsilon"],
            "reported_epsilon": "inf" if reported is not None and math.isinf(reported) else reported,
            "consistent": self.consistent,
            "findings": list(self.findings),
            "notes": list(self.notes),
            "releases": self.releases,
            "health": list(self.health),
            "calibration": self.calibration,
            "guarantee": guarantee,
            "ledger_head": self.ledger_head,
            "checkpoint_sha256": self.checkpoint_digest,
        }


def audit(run: Path | str, delta: float | None = None) -> AuditReport:
    """Audits a run folder, or a ledger file by itself.

    Args:
        run: the folder that `train --out` wrote, or a `ledger.sqlite` (then only the ledger is checked).
        delta: recompute epsilon at this delta instead of the run's own.

    Raises:
        UsageError: no ledger there, or one that is not readable or does not describe a run.
    """
    run = Path(run)
    folder = run if run.is_dir() else None
    settings, claim = dict[str, Any](), None
    with Ledger.open(ledger_of(run), read_only=True) as ledger:
        header, notes = read_header(ledger, run), list[str]()
        findings = ledger.verify()
        if folder is not None:
            findings += check_checkpoint(folder / CHECKPOINT_FILE, ledger, header, notes)
        intact = not findings
        findings += check_terms(header) + check_version(header, notes)
        if folder is not None:
            settings, found = read_settings(folder / SETTINGS_FILE, notes)
            findings += (
                found + check_settings(settings, header) + check_metrics(folder / METRICS_FILE, header)
            )
        rows = _read_rows(ledger, header, settings, folder, notes)
        findings += rows.findings
        count, head = ledger.count(), ledger.head()
        if folder is not None:
            claim, found = read_summary(folder / SUMMARY_FILE, notes)
            findings += found
    at = choose_delta(run, header, claim, delta)
    guarantee, found = _recomputed(header, rows.releases, at, intact, notes)
    findings += found
    if claim is not None:
        findings += compare(claim, guarantee, count, notes) + check_summary(claim, header, count)
    findings += check_budget(header, guarantee)
    return AuditReport(
        guarantee=guarantee,
        consistent=not findings,
        findings=tuple(one_line(text) for text in findings),
        notes=tuple(one_line(text) for text in notes),
        releases=count,
        health=rows.health,
        calibration=header.get("calibration"),
        claim=None if claim is None else claim.guarantee,
        header=header,
        ledger_head=head,
        settings=settings,
        checkpoint_digest=None if folder is None else file_digest(folder / CHECKPOINT_FILE),
        period=rows.period,
    )


def ledger_of(run: Path) -> Path:
    """The ledger of a run folder, or the file itself."""
    return run / LEDGER_FILE if run.is_dir() else run


class _Rows(NamedTuple):
    """What the ledger holds after its header; nothing of it where a row cannot be read.

    Attributes:
        releases: every release in order, None where they cannot be read.
        health: payloads of the rows of kind "health".
        period: first and last date of a row.
        findings: about the rows.
    """

    releases: list[Release] | None
    health: tuple[dict[str, Any], ...]
    period: tuple[str, str] | None
    findings: list[str]


def _read_rows(
    ledger: Ledger,
    header: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path | None,
    notes: list[str],
) -> _Rows:
    try:
        releases, history = ledger.releases(), ledger.history()
        refuse_unreadable(releases)
        findings = check_device(ledger, header, folder, notes)
    except UsageError as error:
        notes.append("releases that cannot be read have no known cost: no epsilon was recomputed")
        return _Rows(None, (), None, [str(error)])
    keys = [row for kind, row in history if kind == "key"]
    seeds = {seed for seed in (0, settings.get("seed")) if isinstance(seed, int)}
    findings += check_rows(header, releases) + check_keys(header, keys, len(releases), seeds)
    health = tuple(row for kind, row in history if kind == "health")
    dates = [row["at"] for _, row in history if isinstance(row.get("at"), str)]
    return _Rows(releases, health, (min(dates), max(dates)) if dates else None, findings)


def _recomputed(
    header: Mapping[str, Any], releases: list[Release] | None, delta: float, intact: bool, notes: list[str]
) -> tuple[Guarantee, list[str]]:
    """The guarantee that the ledger supports, and findings."""
    if releases is None:
        return unsupported(header, delta, "the ledger was damaged"), []
    try:
        return recompute(header, releases, delta, intact, notes), []
    except UsageError as error:  # rows that no one accountant answers for, another release's adjacency
        if not check_terms(header) and len({release.mechanism for release in releases}) <= 1:
            raise
        return unsupported(header, delta, "no accountant answers for its rows"), [str(error)]
