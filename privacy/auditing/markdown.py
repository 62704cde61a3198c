"""The privacy statement as a Markdown document.

Names that come from the run folder are data: they are escaped, so that a run cannot write its own verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from privacy.auditing.wording import one_line


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
                "Nominal epsilon, which does NOT hold for this run": _nominal(guarantee),
                "Neighbouring data sets": f"{guarantee['adjacency']}: {guarantee['neighbours']}",
                "Protected unit": guarantee["unit"],
            }
        ),
        escaped(guarantee["in_words"]),
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
        escaped(mechanism["in_words"] or "Nothing was released under privacy."),
        f"Released: {escaped(stated['released'])}",
        f"Adversary: {escaped(stated['adversary'])}",
        "## Device",
        escaped(device["in_words"]),
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
                "Recomputed by the run's own accountant": "not needed"
                if accounting["confirmed"] is None
                else _computed(accounting["confirmed"]),
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
        "## Not checked",
        _list(stated["not_checked"], "-"),
        "## Evidence",
        _table(
            {
                "Ledger head (SHA-256 chain)": evidence["ledger_head"],
                "Weights (SHA-256 of checkpoint.safetensors)": evidence["checkpoint_sha256"] or "no file",
                "Tensors of the weights (SHA-256)": evidence["tensors_sha256"] or "no file",
                "Program that trained": evidence["written_by_version"],
                "Program that audited": evidence["audited_by_version"],
            }
        ),
        "To verify:\n\n" + "\n".join(f"    {one_line(command)}" for command in stated["verification"]),
        "Responsible for the records: ______________________  Date: ____________  Signature: ______________________",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {escaped(_text(value))} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _list(texts: list[str], empty: str) -> str:
    return "\n".join(f"- {escaped(text) or '(empty)'}" for text in texts or [empty])


def _text(value: object) -> str:
    return "not recorded" if value is None else str(value)


def _with(name: str, explanation: str | None) -> str:
    return name if explanation is None else f"{name}: {explanation}"


def _nominal(guarantee: Mapping[str, Any]) -> str:
    if guarantee["nominal_epsilon"] is None:
        return "not applicable"
    kind = guarantee["nominal_kind"]
    return (
        f"{guarantee['nominal_epsilon']} {guarantee['nominal_supposes']}"
        f"{', conditional: NOT a guarantee either' if kind == 'conditional' else ''}"
    )


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


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no headings, links, markup or table cells of its own."""
    plain = re.sub(r"([\\`*_\[\]<>&|#~$@])", r"\\\1", one_line(text))
    plain = plain.replace("://", "\\://").replace("www.", "www\\.")
    return re.sub(r"^(\d*(?=[.)](?: |$)))?([-+=.)])", r"\1\\\2", plain)  # a list or a rule of its own
