"""The privacy statement of an audited run, for the files of a data-protection officer, as JSON types.

docs/privacy-statement.md explains it line by line; `privacy.auditing.markdown` makes the document of it.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privacy.auditing import wording
from privacy.auditing.audit import AuditReport
from privacy.guarantee import Guarantee, Kind, rounded_up
from privacy.releases import RELEASES

FORMAT = 1


def statement(report: AuditReport, run: str, device: str, issued: datetime | None = None) -> dict[str, Any]:
    """The statement (JSON types).

    Args:
        report: of the run's audit.
        run: as it was named to the audit.
        device: one sentence: was the projection digital, simulated or hardware.
        issued: when; now by default.
    """
    guarantee, header = report.guarantee, report.header
    private = header["release"] != "none"
    epsilon = stated_epsilon(report)
    mechanism = RELEASES[header["release"]].mechanism if private else "none"
    relies = (
        report.consistent
        and not report.reserved
        and not report.unreadable
        and guarantee.kind in (Kind.RECORD_DP, Kind.LABEL_DP)
        and math.isfinite(epsilon)
    )
    return {
        "format": FORMAT,
        "issued": (issued or datetime.now(UTC)).isoformat(timespec="seconds"),
        "verdict": wording.verdict(
            guarantee,
            epsilon,
            len(report.findings),
            reserved=report.reserved,
            unreadable=report.unreadable,
            unchecked=report.unchecked,
        ),
        "holds": relies,
        "guarantee": {
            "epsilon": rounded_up(epsilon),
            "delta": guarantee.delta,
            "kind": guarantee.kind.value,
            "adjacency": guarantee.adjacency.value,
            "neighbours": f"data sets that differ by {guarantee.adjacency.words}",
            "unit": wording.unit(guarantee.adjacency),
            "nominal_epsilon": _rounded(guarantee.nominal_epsilon),
            "nominal_kind": None if guarantee.nominal_kind is None else guarantee.nominal_kind.value,
            "nominal_supposes": guarantee.otherwise if guarantee.nominal_epsilon is not None else None,
            "in_words": _words(report, epsilon) if report.consistent else "",
        },
        "subject": {
            "run": run,
            "data_set": report.settings.get("dataset"),
            "declared_size": header.get("nominal_size"),
            "network": report.settings.get("model"),
            "began": report.period[0] if report.period else None,
            "last_dated_entry": report.period[1] if report.period else None,
        },
        "mechanism": {
            "release": header["release"],
            "noise": RELEASES[header["release"]].summary if private else None,
            "name": mechanism,
            "in_words": wording.mechanism(header) if private and report.releases else None,
            "seeded": bool(header["reproducible"]),
            "figures_of_records_shown": bool(header.get("unsafe_diagnostics")),
            "budget_epsilon": header.get("target_epsilon"),
        },
        "device": {
            "in_words": device,
            "share_of_noise_variance": guarantee.device_share,
            "calibration": report.calibration,
            "calibration_failure_probability": header.get("calibration_beta"),
            "start_up_tests_passed": sum(row.get("passed") is True for row in report.health),
            "refusals": sum(row.get("passed") is not True for row in report.health),
        },
        "accounting": {
            "releases": report.releases,
            "reported": None
            if report.claim is None
            else {"accountant": report.claim.accountant, **_pair(report.claim)},
            "recomputed": {"accountant": guarantee.accountant, **_pair(guarantee)},
            "confirmed": None
            if report.confirmed is None
            else {"accountant": report.confirmed.accountant, **_pair(report.confirmed)},
        },
        "adversary": wording.adversary(guarantee.adjacency),
        "released": wording.RELEASED,
        "assumptions": list(guarantee.assumptions),
        "not_covered": list(wording.not_covered(guarantee.kind)),
        "evidence": {
            "ledger_head": report.ledger_head,
            "checkpoint_sha256": report.checkpoint_digest,
            "tensors_sha256": report.tensors_digest,
            "written_by_version": header.get("version"),
            "audited_by_version": _installed(),
        },
        "findings": list(report.findings),
        "notes": list(report.notes),
        "not_checked": list(wording.not_checked(report.unreadable, report.unchecked)),
        "verification": _commands(run, guarantee.delta if private else None),
    }


def stated_epsilon(report: AuditReport) -> float:
    """The larger of what the run reported and what the ledger gives, where both speak of the same thing.

    Every accountant's value is an upper bound: where the run's own is confirmed from the ledger, it stands.
    """
    own, claim = report.confirmed or report.guarantee, report.claim
    if claim is None or (claim.kind, claim.adjacency, claim.delta) != (own.kind, own.adjacency, own.delta):
        return own.epsilon
    return max(own.epsilon, claim.epsilon)


def _words(report: AuditReport, epsilon: float) -> str:
    guarantee = report.confirmed or report.guarantee
    return (guarantee if guarantee.kind is Kind.NONE else replace(guarantee, epsilon=epsilon)).words()


def _pair(guarantee: Guarantee) -> dict[str, Any]:
    return {
        "kind": guarantee.kind.value,
        "epsilon": rounded_up(guarantee.epsilon),
        "delta": guarantee.delta,
        "nominal_epsilon": _rounded(guarantee.nominal_epsilon),
    }


def _rounded(epsilon: float | None) -> str | None:
    return None if epsilon is None else rounded_up(epsilon)


def _commands(run: str, delta: float | None) -> list[str]:
    name = shlex.quote(wording.one_line(run))
    audit = f"optical-dfa audit {name}"
    again = [audit] if delta is None else [audit, f"{audit} --delta {delta:g} --json"]
    return [*again, f"sha256sum {name}/checkpoint.safetensors"]


def _installed() -> str | None:
    try:
        return version("optical-dfa")
    except PackageNotFoundError:
        return None
