"""The privacy statement of an audited run, for the files of a data-protection officer: JSON types, and Markdown.

docs/privacy-statement.md explains it line by line. Names that come from the run folder are data: in Markdown they
are escaped, so that a run cannot write its own verdict.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privacy.auditing import wording
from privacy.auditing.audit import AuditReport
from privacy.guarantee import Guarantee, Kind, rounded_up
from privacy.releases import RELEASES

FORMAT = 1
_LONGEST = 1000  # characters of one text of a run folder


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
    epsilon = _stated_epsilon(report)
    mechanism = str(header.get("mechanism", RELEASES[header["release"]].mechanism)) if private else "none"
    relies = (
        report.consistent and guarantee.kind in (Kind.RECORD_DP, Kind.LABEL_DP) and math.isfinite(epsilon)
    )
    return {
        "format": FORMAT,
        "issued": (issued or datetime.now(UTC)).isoformat(timespec="seconds"),
        "verdict": wording.verdict(guarantee, epsilon, len(report.findings)),
        "holds": relies,
        "guarantee": {
            "epsilon": rounded_up(epsilon),
            "delta": guarantee.delta,
            "kind": guarantee.kind.value,
            "adjacency": guarantee.adjacency.value,
            "neighbours": f"data sets that differ by {guarantee.adjacency.words}",
            "unit": wording.unit(guarantee.adjacency),
            "nominal_epsilon": _rounded(guarantee.nominal_epsilon),
            "in_words": _words(guarantee, epsilon) if report.consistent else "",
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
            "in_words": wording.mechanism(header, mechanism) if private and report.releases else None,
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
        },
        "adversary": wording.ADVERSARY,
        "released": wording.RELEASED,
        "assumptions": list(guarantee.assumptions),
        "not_covered": list(wording.not_covered(guarantee.kind)),
        "evidence": {
            "ledger_head": report.ledger_head,
            "checkpoint_sha256": report.checkpoint_digest,
            "written_by_version": header.get("version"),
            "audited_by_version": _installed(),
        },
        "findings": list(report.findings),
        "notes": list(report.notes),
        "verification": _commands(run, guarantee.delta if private else None),
    }


def _stated_epsilon(report: AuditReport) -> float:
    """The larger of what the run reported and what the ledger gives, where both speak of the same thing."""
    own, claim = report.guarantee, report.claim
    if claim is None or (claim.kind, claim.adjacency, claim.delta) != (own.kind, own.adjacency, own.delta):
        return own.epsilon
    return max(own.epsilon, claim.epsilon)


def _words(guarantee: Guarantee, epsilon: float) -> str:
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
    name = shlex.quote(_clean(run))
    audit = f"optical-dfa audit {name}"
    again = [audit] if delta is None else [audit, f"{audit} --delta {delta:g} --json"]
    return [*again, f"sha256sum {name}/checkpoint.safetensors"]


def _installed() -> str | None:
    try:
        return version("optical-dfa")
    except PackageNotFoundError:
        return None


# ---- Markdown


def markdown(stated: Mapping[str, Any]) -> str:
    """The statement as a document; every text of the run escaped."""
    guarantee, subject, accounting = stated["guarantee"], stated["subject"], stated["accounting"]
    mechanism, device, evidence = stated["mechanism"], stated["device"], stated["evidence"]
    calibration = device["calibration"] if isinstance(device["calibration"], Mapping) else {}
    parts = [
        "# Privacy statement",
        f"**{stated['verdict']}**",
        _table(
            {
                "Issued": stated["issued"],
                "Run": subject["run"],
                "Data set (as the run's settings name it)": subject["data_set"],
                "Records, declared public": subject["declared_size"],
                "Network": subject["network"],
                "First and last dated entry of the ledger": _span(
                    subject["began"], subject["last_dated_entry"]
                ),
            }
        ),
        "## Guarantee",
        _table(
            {
                "Kind": guarantee["kind"],
                "Epsilon (rounded up)": guarantee["epsilon"],
                "Delta": _number(guarantee["delta"]),
                "Epsilon that secret noise would have given": guarantee["nominal_epsilon"]
                or "not applicable",
                "Neighbouring data sets": f"{guarantee['adjacency']}: {guarantee['neighbours']}",
                "Protected unit": guarantee["unit"],
            }
        ),
        _escaped(guarantee["in_words"]),
        "## Mechanism",
        _table(
            {
                "Release": _with(mechanism["release"], mechanism["noise"]),
                "Mechanism": mechanism["name"],
                "Budget: epsilon at most": mechanism["budget_epsilon"] or "none was set",
                "Noise from a known seed": _yes(mechanism["seeded"]),
                "Figures of private records shown": _yes(mechanism["figures_of_records_shown"]),
            }
        ),
        _escaped(mechanism["in_words"] or "Nothing was released under privacy."),
        f"Released: {_escaped(stated['released'])}",
        f"Adversary: {_escaped(stated['adversary'])}",
        "## Device",
        _escaped(device["in_words"]),
        _table(
            {
                "Share of the noise variance that is the device's": _share(device["share_of_noise_variance"]),
                "Calibration (SHA-256)": calibration.get("digest") or "none: nothing measured is relied on",
                "Calibrated, valid until": _span(calibration.get("taken_at"), calibration.get("expires_at")),
                "Probability that the calibration is wrong, within delta": _number(
                    device["calibration_failure_probability"]
                ),
                "Start-up tests passed": device["start_up_tests_passed"],
                "Times the device was refused": device["refusals"],
            }
        ),
        "## Accounting",
        _table(
            {
                "Releases in the ledger": f"{accounting['releases']:,}",
                "Reported by the run": _computed(accounting["reported"]),
                "Recomputed from the ledger": _computed(accounting["recomputed"]),
            }
        ),
        "## Assumptions",
        _list(stated["assumptions"], "none stated"),
        "## Not covered",
        _list(stated["not_covered"], "-"),
        "## Findings",
        _list(stated["findings"], "none"),
        "## Notes",
        _list(stated["notes"], "none"),
        "## Evidence",
        _table(
            {
                "Ledger head (SHA-256 chain)": evidence["ledger_head"],
                "Weights (SHA-256 of checkpoint.safetensors)": evidence["checkpoint_sha256"] or "no file",
                "Program that trained": evidence["written_by_version"],
                "Program that audited": evidence["audited_by_version"],
            }
        ),
        "To verify:\n\n" + "\n".join(f"    {_clean(command)}" for command in stated["verification"]),
        "Responsible for the records: ______________________  Date: ____________  Signature: ______________________",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {_escaped(_text(value))} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _list(texts: list[str], empty: str) -> str:
    return "\n".join(f"- {_escaped(text)}" for text in texts or [empty])


def _text(value: object) -> str:
    return "not recorded" if value is None else str(value)


def _with(name: str, explanation: str | None) -> str:
    return name if explanation is None else f"{name}: {explanation}"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else _text(value)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"


def _yes(value: bool) -> str:
    return "YES" if value else "no"


def _span(first: object, last: object) -> str:
    return "not recorded" if first is None and last is None else f"{_text(first)} to {_text(last)}"


def _computed(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "no summary"
    nominal = "" if value["nominal_epsilon"] is None else f", nominal epsilon {value['nominal_epsilon']}"
    return (
        f"epsilon {value['epsilon']} at delta {_number(value['delta'])}, kind {value['kind']}{nominal} "
        f"(accountant {value['accountant']})"
    )


def _clean(text: str) -> str:
    """One line of printable characters: no line breaks, no control or direction marks."""
    flat = "".join(character if character.isprintable() else " " for character in text)
    flat = " ".join(flat.split())
    return flat if len(flat) <= _LONGEST else flat[:_LONGEST] + "…"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no headings, links, markup or table cells of its own."""
    plain = re.sub(r"([\\`*_\[\]<>&|#~$@])", r"\\\1", _clean(text))
    plain = plain.replace("://", "\\://").replace("www.", "www\\.")
    return re.sub(r"^(\d*)([-+=.)])(?= |$)", r"\1\\\2", plain)  # a list of its own
