"""What a run folder tells of that its ledger does not know: releases that are missing there, so the budget is unknown.

The ledger is written first, then the weights, then the metrics, then the summary. So a crash leaves a ledger that knows
more than the other files; a folder that knows more than its ledger had rows taken away, or the ledger of another day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from privacy.auditing.claim import Claim, read_summary
from privacy.auditing.files import LATER, LEDGER_FILE, METRICS_FILE, SUMMARY_FILE, content
from privacy.auditing.shown import check_missing, read_metrics
from privacy.ledger import GIVE_LEAVE, Ledger
from privacy.weights import ANNOUNCED, named_steps


def check_beyond(
    ledger: Ledger, header: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], claim: Claim | None
) -> list[str]:
    """Findings about steps and releases that the ledger does not have.

    Raises:
        UsageError: its rows cannot be read.
    """
    findings, releases = [], ledger.count()
    last = max((int(row["step"]) for row in metrics), default=0)
    if header["release"] != "none":
        if last > releases:
            findings.append(
                f"{METRICS_FILE} reports step {last}, the ledger has {releases} releases: its tail was cut off"
            )
        counts = {} if claim is None else {"steps": claim.steps, "releases": claim.summary.get("releases")}
        findings += [
            f"{SUMMARY_FILE} reports {said} {name}, the ledger has {releases} releases"
            for name, said in counts.items()
            if isinstance(said, int) and said > releases
        ]
    if not header.get(ANNOUNCED):
        return findings
    named = named_steps(ledger)
    unnamed = sorted({int(row["step"]) for row in metrics} - named.keys())
    if unnamed and not findings:
        findings.append(
            f"{METRICS_FILE} has a row of step {unnamed[0]}, and the ledger names no weights of that step: they are "
            f"named first ({len(unnamed)} such rows)"
        )
    if claim is not None and claim.steps not in named and not findings:
        findings.append(
            f"{SUMMARY_FILE} is of step {claim.steps}, and the ledger names no weights of that step: they are named "
            "first"
        )
    elif claim is not None and header["release"] != "none" and not findings:
        said, then = claim.summary.get("releases"), named[claim.steps]
        if isinstance(said, int) and said not in then:
            findings.append(
                f"{SUMMARY_FILE} reports {said!r} releases at step {claim.steps}, the ledger then had "
                f"{' or '.join(map(str, sorted(then)))}"
            )
    return findings


def refuse_beyond(folder: Path) -> None:
    """Refuse to go on with a run whose folder tells of more than its ledger.

    Raises:
        UsageError: the first thing that is beyond it, or that cannot be read; nothing was changed.
    """
    path = folder / LEDGER_FILE
    if not path.exists():
        there = [name for name in LATER if (folder / name).exists()]
        if there:
            raise _refusal(f"there is no {LEDGER_FILE}, and {', '.join(there)} can only be written after it")
        return
    unreadable: list[str] = []
    with Ledger.open(path, read_only=True) as ledger:
        header = ledger.header()
        shown = header.get("release") == "none" or bool(header.get("unsafe_diagnostics"))
        metrics = read_metrics(content(folder / METRICS_FILE, unreadable), shown=shown)
        claim, found = read_summary(content(folder / SUMMARY_FILE, unreadable))
        if unreadable:
            raise UsageError(f"{unreadable[0]} of {folder} cannot be read: {GIVE_LEAVE}")
        findings = [
            *metrics.findings,
            *found,
            *check_beyond(ledger, header, metrics.rows, claim),
            *check_missing(folder, header, metrics.rows, claim),
        ]
    if findings:
        raise _refusal(findings[0])


def _refusal(finding: str) -> UsageError:
    return UsageError(
        f"this run cannot be resumed: {finding}; what was released is not known. Put back the files of one time, or "
        "train again with --overwrite"
    )
