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
from privacy.auditing.beyond import check_beyond
from privacy.auditing.claim import (
    Claim,
    check_budget,
    check_delta,
    check_summary,
    choose_delta,
    compare,
    confirmed,
    epsilon_by,
    read_summary,
    recompute,
    unsupported,
)
from privacy.auditing.device import check_device
from privacy.auditing.files import (
    CHECKPOINT_FILE,
    LATER,
    LEDGER_FILE,
    METRICS_FILE,
    REPORT_FILE,
    SETTINGS_FILE,
    SUMMARY_FILE,
    check_files,
    content,
    others,
    refuse_special,
)
from privacy.auditing.folder import check_repeated, check_settings, read_settings, settings_of
from privacy.auditing.header import check_terms, check_version, read_header
from privacy.auditing.rows import check_keys, check_rows, refuse_unreadable
from privacy.auditing.shown import (
    Metrics,
    check_fields,
    check_missing,
    check_progress,
    check_same,
    check_shown,
    not_public,
    read_metrics,
)
from privacy.auditing.weights import Weights, check_weights, read_weights
from privacy.auditing.wording import one_line
from privacy.errors import LedgerUnreadableError
from privacy.guarantee import Guarantee, Kind
from privacy.ledger import GIVE_LEAVE, SETTINGS, Ledger, ReleaseEvent
from privacy.mechanisms import MECHANISMS
from privacy.releases import RELEASES


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
        tensors_digest: SHA-256 of its tensors (`privacy.weights`), None where there are none to read.
        period: first and last date in the ledger, None where no row has one.
        confirmed: the same guarantee by the accountant that the run stopped by, where that is the smaller of two
            upper bounds that agree; None otherwise.
        reserved: True where the ledger names no weights that are there, so that a cut-off tail would not show.
        unreadable: files that are there and could not be read here and now, each with the reason.
        unchecked: what of the folder was not compared with anything.
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
    tensors_digest: str | None = None
    period: tuple[str, str] | None = None
    confirmed: Guarantee | None = None
    reserved: bool = False
    unreadable: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

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
            "unreadable": list(self.unreadable),
            "unchecked": list(self.unchecked),
            "releases": self.releases,
            "health": list(self.health),
            "calibration": self.calibration,
            "guarantee": guarantee,
            "ledger_head": self.ledger_head,
            "checkpoint_sha256": self.checkpoint_digest,
            "tensors_sha256": self.tensors_digest,
        }


def audit(run: Path | str, delta: float | None = None) -> AuditReport:
    """Audits a run folder, or a ledger file by itself.

    Args:
        run: the folder that `train --out` wrote, or a `ledger.sqlite` (then only the ledger is checked).
        delta: recompute epsilon at this delta instead of the run's own.

    Raises:
        LedgerUnreadableError: the ledger is there, and cannot be read here and now: nothing was audited.
        UsageError: no ledger there, or one that is not readable or does not describe a run.
    """
    try:
        return _audit(Path(run), delta)
    except OSError as error:
        raise LedgerUnreadableError(
            f"{run} cannot be read ({error.strerror or error}): nothing was checked; {GIVE_LEAVE}"
        ) from error


def ledger_of(run: Path) -> Path:
    """The ledger of a run folder, or the file itself."""
    return run / LEDGER_FILE if run.is_dir() else run


class _Folder(NamedTuple):
    """What was read of a run folder besides its ledger; nothing of it where a ledger is audited by itself.

    Attributes:
        path: None where there is no folder.
        settings: what was asked for; None where they are not there, or cannot be read.
        metrics: rows, and findings about them.
        claim: what the summary claims.
        findings: about files that cannot be what this program wrote.
        unreadable: files that could not be read.
    """

    path: Path | None
    settings: dict[str, Any] | None
    metrics: Metrics
    claim: Claim | None
    findings: list[str]
    unreadable: list[str]


def _read_folder(path: Path | None, header: Mapping[str, Any], notes: list[str]) -> _Folder:
    if path is None:
        return _Folder(None, None, Metrics([], [], []), None, [], [])
    unreadable: list[str] = []
    held = {name: content(path / name, unreadable) for name in (SETTINGS_FILE, METRICS_FILE, SUMMARY_FILE)}
    if not (path / SETTINGS_FILE).exists():
        notes.append(f"no {SETTINGS_FILE}: what was asked for cannot be compared")
    if not (path / SUMMARY_FILE).exists():
        notes.append(
            f"no {SUMMARY_FILE}: the run did not finish, and nothing was reported that could be compared"
        )
    settings, findings = read_settings(held[SETTINGS_FILE])
    shown = header["release"] == "none" or bool(header.get("unsafe_diagnostics"))
    metrics = read_metrics(held[METRICS_FILE], shown=shown)
    claim, found = read_summary(held[SUMMARY_FILE])
    findings += metrics.findings + found + ([] if claim is None else check_fields(claim))
    notes += metrics.notes
    findings += check_files(path, header, notes, unreadable)
    if (
        held[METRICS_FILE] is not None or not (path / METRICS_FILE).exists()
    ):  # it can be told whether rows are there
        findings += check_missing(path, header, metrics.rows, claim)
    findings += check_shown(header, metrics.rows, claim) + check_same(metrics.rows, claim, header)
    return _Folder(path, settings, metrics, claim, findings, unreadable)


def _audit(run: Path, delta: float | None) -> AuditReport:
    path = run if run.is_dir() else None
    refuse_special(run)
    if (
        path is not None
        and not (path / LEDGER_FILE).exists()
        and any((path / name).exists() for name in LATER)
    ):
        return _without_ledger(path)
    weights, notes = Weights([]), list[str]()
    with Ledger.open(ledger_of(run), read_only=True) as ledger:
        header = read_header(ledger, run)
        findings = ledger.verify()
        folder = _read_folder(path, header, notes)
        if path is not None:
            weights = read_weights(path / CHECKPOINT_FILE, ledger, header, notes, folder.unreadable)
            findings += weights.findings
        intact = not findings
        findings += check_terms(header) + check_version(header, notes) + folder.findings
        rows = _read_rows(ledger, header, folder, notes)
        findings += rows.findings
        count, head = ledger.count(), ledger.head()
    claim, metrics = folder.claim, folder.metrics.rows
    findings += check_weights(weights, claim)
    at = choose_delta(run, header, claim, delta)
    guarantee, found = _recomputed(header, rows.releases, at, intact, notes)
    findings += found
    if delta is not None and intact:
        _refuse_unresolved(guarantee, header, rows.releases, claim)
    own = None
    if claim is not None:
        if claim.guarantee.delta != at:
            notes.append(f"{SUMMARY_FILE} was compared at its own delta = {claim.guarantee.delta:g}")
        compared, found = _at_claimed(claim, guarantee, header, rows.releases, intact)
        findings += found + check_delta(claim, header) + compare(claim, compared, header)
        findings += check_summary(claim, header)
    findings += _check_budget_and_progress(header, rows.releases, metrics, claim, guarantee, intact)
    if claim is not None and not findings and rows.releases is not None:
        own = confirmed(claim, header, rows.releases, guarantee, notes)
    unchecked = []
    if path is not None:
        unchecked += [REPORT_FILE] if (path / REPORT_FILE).exists() else []
        unchecked += others(path)
        if header["release"] == "none" or header.get("unsafe_diagnostics"):
            unchecked += not_public(metrics, claim)
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
        settings=rows.settings or folder.settings or {},
        checkpoint_digest=weights.file,
        tensors_digest=weights.tensors,
        period=rows.period,
        confirmed=own,
        reserved=not weights.named and header["release"] != "none",
        unreadable=tuple(one_line(text) for text in folder.unreadable),
        unchecked=tuple(one_line(text) for text in unchecked),
    )


def _without_ledger(path: Path) -> AuditReport:
    """Of a folder whose ledger was taken away: nothing in it is borne out by anything."""
    header: dict[str, Any] = {"release": "none", "reproducible": False}
    there = [name for name in LATER if (path / name).exists()]
    finding = (
        f"there is no {LEDGER_FILE}, and {', '.join(there)} can only be written after it: it was taken away, and "
        "nothing bears out what the folder claims"
    )
    return AuditReport(
        guarantee=unsupported(header, 0.0, f"there is no {LEDGER_FILE}"),
        consistent=False,
        findings=(finding,),
        notes=(),
        releases=0,
        health=(),
        calibration=None,
        claim=None,
        header=header,
        unchecked=tuple(one_line(text) for text in (*there, *others(path))),
    )


class _Rows(NamedTuple):
    """What the ledger holds after its header; nothing of it where a row cannot be read.

    Attributes:
        releases: every release in order, None where they cannot be read.
        health: payloads of the rows of kind "health".
        period: first and last date of a row.
        settings: of the last part, as the ledger holds them.
        findings: about the rows, and about what the folder says of them.
    """

    releases: list[ReleaseEvent] | None
    health: tuple[dict[str, Any], ...]
    period: tuple[str, str] | None
    settings: dict[str, Any]
    findings: list[str]


def _read_rows(ledger: Ledger, header: Mapping[str, Any], folder: _Folder, notes: list[str]) -> _Rows:
    try:
        releases, history = ledger.releases(), ledger.history()
        refuse_unreadable(releases)
        findings = check_device(ledger, header, folder.path, notes, folder.unreadable)
        findings += check_beyond(ledger, header, folder.metrics.rows, folder.claim)
    except UsageError as error:
        notes.append("releases that cannot be read have no known cost: no epsilon was recomputed")
        return _Rows(None, (), None, {}, [str(error)])
    parts = [row for kind, row in history if kind == SETTINGS]
    settings, found = settings_of(header, parts, notes)
    findings += found
    if folder.settings is not None:
        findings += check_settings(folder.settings, header, settings, notes)
    if folder.claim is not None:
        held = [part for part in (header.get(SETTINGS), *parts) if isinstance(part, Mapping)]
        findings += check_repeated(folder.claim.summary, folder.settings or {}, header, held)
    keys = [row for kind, row in history if kind == "key"]
    asked = (0, settings.get("seed"), (folder.settings or {}).get("seed"))
    seeds = {seed for seed in asked if isinstance(seed, int) and 0 <= seed < 2**63}
    findings += check_rows(header, releases) + check_keys(header, keys, len(releases), seeds)
    health = tuple(row for kind, row in history if kind == "health")
    dates = [row["at"] for _, row in history if isinstance(row.get("at"), str)]
    return _Rows(releases, health, (min(dates), max(dates)) if dates else None, settings, findings)


def _recomputed(
    header: Mapping[str, Any],
    releases: list[ReleaseEvent] | None,
    delta: float,
    intact: bool,
    notes: list[str],
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


def _spent(guarantee: Guarantee) -> float:
    """What the releases cost, nominally where the run has no guarantee; inf where nobody knows."""
    nominal = math.inf if guarantee.nominal_epsilon is None else guarantee.nominal_epsilon
    return nominal if guarantee.kind is Kind.NONE else guarantee.epsilon


def _refuse_unresolved(
    guarantee: Guarantee, header: Mapping[str, Any], releases: list[ReleaseEvent] | None, claim: Claim | None
) -> None:
    """
    Raises:
        UsageError: the delta asked for is what makes epsilon infinite, not the run.
    """
    other = header.get("delta") or (claim.guarantee.delta if claim else None)
    if not releases or not other or not math.isinf(_spent(guarantee)) or not guarantee.delta < other < 1:
        return
    spent = _spent(_recomputed(header, releases, other, True, [])[0])
    if math.isfinite(spent):
        raise UsageError(
            f"at delta = {guarantee.delta} no accountant gives this ledger a finite epsilon (at {other} it has "
            f"{spent:.4g}): give a larger --delta"
        )


def _at_claimed(
    claim: Claim,
    guarantee: Guarantee,
    header: Mapping[str, Any],
    releases: list[ReleaseEvent] | None,
    intact: bool,
) -> tuple[Guarantee, list[str]]:
    """The guarantee at the summary's own delta, and findings."""
    delta = claim.guarantee.delta
    if delta == guarantee.delta:
        return guarantee, []
    try:
        return _recomputed(header, releases, delta, intact, [])[0], []
    except UsageError as error:
        return guarantee, [
            f"{SUMMARY_FILE} reports delta = {delta:g}, at which there is no epsilon ({error})"
        ]


def _check_budget_and_progress(
    header: Mapping[str, Any],
    releases: list[ReleaseEvent] | None,
    metrics: Sequence[Mapping[str, Any]],
    claim: Claim | None,
    guarantee: Guarantee,
    intact: bool,
) -> list[str]:
    """Budget and metrics, at the delta that the run fixed and not at the one asked for."""
    if header["release"] == "none" or releases is None:
        return []
    fixed = header.get("delta") or (claim.guarantee.delta if claim else guarantee.delta)

    def after(count: int) -> Guarantee:
        if count == len(releases) and guarantee.delta == fixed:
            return guarantee
        return _recomputed(header, releases[:count], fixed, intact, [])[0]

    try:
        whole = after(len(releases))
    except UsageError:  # no delta of a claim: found already
        return []
    accountant = str(header.get("accountant"))

    def own() -> float:
        known = MECHANISMS[RELEASES[header["release"]].mechanism].accountants
        return epsilon_by(accountant if accountant in known else known[0], header, releases, fixed)

    known = intact and whole.accountant != "none"
    progress = check_progress(
        metrics, len(releases), whole, (lambda count: _spent(after(count))) if known else None, own
    )
    return check_budget(header, whole) + progress
