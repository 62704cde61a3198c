"""What a run folder shows, metrics and summary: public figures only, and none that the ledger does not bear out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from privacy.auditing import fields
from privacy.auditing.claim import TOLERANCE, Claim
from privacy.auditing.files import CHECKPOINT_FILE, METRICS_FILE, SUMMARY_FILE, taken_away
from privacy.auditing.strict import parsed
from privacy.guarantee import Guarantee

_MOST = 10  # findings about one file that are listed
_PARTS = {"guarantee": fields.GUARANTEE, "versions": fields.VERSIONS}


class Metrics(NamedTuple):
    """The rows of `metrics.jsonl`.

    Attributes:
        rows: those that are objects with a step, in order.
        findings: about the others, and about rows that cannot follow each other.
        notes: worth knowing.
    """

    rows: list[dict[str, Any]]
    findings: list[str]
    notes: list[str]


def read_metrics(content: bytes | None, *, shown: bool = False) -> Metrics:
    """Every row, those of a step given again included; of a last one that a crash cut, the names.

    Args:
        content: of the file, None without one.
        shown: the run shows figures of records, so their names are expected.
    """
    rows: list[dict[str, Any]] = []
    findings: list[str] = []
    notes: list[str] = []
    lines = (content or b"").split(b"\n")
    last = lines.pop()  # empty where the file ends with a whole row
    for line_number, line in enumerate([*lines, *([last] if last else [])], 1):
        where = f"{METRICS_FILE} line {line_number}"
        try:
            row = parsed(line)
        except ValueError as error:
            if line_number > len(lines):  # what a crash leaves; the names in it are looked at all the same
                if not (shown or _begins_a_row(line)):
                    findings.append(f"{where} is cut off and no beginning of a row that this program writes")
                notes.append(f"the last row of {METRICS_FILE} was cut by a crash")
            else:
                findings.append(f"{where} is damaged ({error})")
            continue
        if not isinstance(row, dict) or not fields.METRICS["step"].holds(row.get("step")):
            findings.append(f"{where} is no row of metrics: it has no step")
            continue
        if rows and row["step"] <= rows[-1]["step"]:
            findings.append(f"{where} is of step {row['step']}, after one of step {rows[-1]['step']}")
        findings += fields.off(row, fields.METRICS, where)
        rows.append(row)
    return Metrics(rows, _shortened(findings), notes)


def _begins_a_row(line: bytes) -> bool:
    """Whether a row that was cut names what a row may, as far as it goes."""
    texts = re.findall(r'"([^"]*)("?)', line.decode("utf-8", "replace"))
    known = (*fields.METRICS, "inf")
    return line.startswith(b'{"step"'[: len(line)]) and all(
        text in known if closed else any(name.startswith(text) for name in known) for text, closed in texts
    )


def check_shown(
    header: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], claim: Claim | None
) -> list[str]:
    """Figures that are not known to be public: each may be a release that no ledger row covers."""
    if header["release"] == "none" or header.get("unsafe_diagnostics"):
        return []
    files = {
        METRICS_FILE: {name for row in metrics for name in fields.unknown(row, fields.METRICS)},
        SUMMARY_FILE: set[str]() if claim is None else _strange(claim.summary),
    }
    return [
        f"{file} shows {', '.join(sorted(names))}, not among the figures that are public: what is computed from "
        "private records is outside the guarantee, and the ledger says that no such figures were kept"
        for file, names in files.items()
        if names
    ]


def not_public(metrics: Sequence[Mapping[str, Any]], claim: Claim | None) -> list[str]:
    """Names of figures that may come from records, in a run that says it shows such."""
    names = {name for row in metrics for name in fields.unknown(row, fields.METRICS)}
    return sorted(names | (set[str]() if claim is None else _strange(claim.summary)))


def check_fields(claim: Claim) -> list[str]:
    """Fields of the summary that this program cannot have written."""
    summary = claim.summary
    findings = fields.off(summary, fields.SUMMARY, SUMMARY_FILE)
    for name, known in _PARTS.items():
        part = summary.get(name)
        if isinstance(part, dict):
            findings += fields.off(part, known, f"{SUMMARY_FILE}, {name},")
        else:
            findings.append(f"{SUMMARY_FILE} has {name} that is no table")
    return _shortened(findings)


def _strange(summary: Mapping[str, Any]) -> set[str]:
    """Names in the summary, and in its parts, that are not public."""
    rest = {name: value for name, value in summary.items() if name not in _PARTS}
    found = fields.unknown(rest, fields.SUMMARY)
    for name, known in _PARTS.items():
        part = summary.get(name)
        if isinstance(part, dict):
            found |= {f"{name}.{key}" for key in fields.unknown(part, known)}
    return found


def _shortened(findings: list[str]) -> list[str]:
    rest = len(findings) - _MOST
    return findings if rest <= 0 else [*findings[:_MOST], f"and {rest} more of this file"]


def check_same(
    metrics: Sequence[Mapping[str, Any]], claim: Claim | None, header: Mapping[str, Any]
) -> list[str]:
    """Where metrics and summary give different figures of one evaluation, or steps are counted in two ways."""
    findings = []
    if claim is not None:
        row = next((row for row in metrics if row["step"] == claim.steps), None)
        if row is None and metrics:
            findings.append(f"{SUMMARY_FILE} is of step {claim.steps}, of which {METRICS_FILE} has no row")
        findings += [
            f"{SUMMARY_FILE} reports {name} {claim.summary[name]!r}, {METRICS_FILE} {row[name]!r} at that step"
            for name in ("test_accuracy", "test_loss")
            if row is not None and name in row and name in claim.summary and row[name] != claim.summary[name]
        ]
    if header["release"] == "none":
        given = sorted({name for row in metrics for name in fields.EPSILON_NAMES.values() if name in row})
        if given:
            findings.append(
                f"{METRICS_FILE} gives {', '.join(given)}, and a run without release has no epsilon"
            )
        return findings
    steps = max(1, round(header["nominal_size"] / header["batch_size"])) if header["batch_size"] else 1
    wrong = [
        row
        for row in metrics
        if _number(row.get("epoch")) is not None and not _near(row["epoch"], row["step"] / steps)
    ]
    if wrong:
        findings.append(
            f"{METRICS_FILE} has epoch {wrong[0]['epoch']!r} at step {wrong[0]['step']}, which is epoch "
            f"{wrong[0]['step'] / steps:g}"
        )
    return findings


def check_progress(
    metrics: Sequence[Mapping[str, Any]],
    releases: int,
    guarantee: Guarantee,
    after: Callable[[int], float] | None,
    own: Callable[[], float],
) -> list[str]:
    """Whether the metrics speak of another epsilon than the ledger has.

    Args:
        metrics: as `read_metrics` returns them.
        releases: in the ledger.
        guarantee: that the ledger supports, at the delta of the metrics.
        after: epsilon of the ledger's first releases, by the independent accountant; None where the ledger was
            damaged or has no delta.
        own: epsilon of the whole ledger by the accountant that the run stopped by.
    """
    if not metrics or after is None:
        return []
    name = fields.EPSILON_NAMES[guarantee.kind]
    other = sorted(
        {key for row in metrics for key in set(fields.EPSILON_NAMES.values()) & row.keys()} - {name}
    )
    if other:
        return [
            f"{METRICS_FILE} gives {', '.join(other)}, a run of kind {guarantee.kind.value} has {name} only"
        ]
    bare = next((row["step"] for row in metrics if name not in row), None)
    if bare is not None:
        return [f"{METRICS_FILE} has no {name} at step {bare}, which this program always writes"]
    said = [(int(row["step"]), _number(row[name])) for row in metrics]
    stated = [(step, value) for step, value in said if value is not None]
    back = next((n for n in range(1, len(stated)) if not stated[n][1] >= stated[n - 1][1]), None)
    if back is not None:
        return [
            f"{METRICS_FILE} reports {name} {stated[back][1]:.4g} at step {stated[back][0]}, after "
            f"{stated[back - 1][1]:.4g} at step {stated[back - 1][0]}: it never falls"
        ]
    if not stated or stated[-1][0] > releases:
        return []
    step, value = stated[-1]
    least = after(step)
    if not value >= least * (1 - TOLERANCE):
        return [
            f"{METRICS_FILE} reports {name} {value:.4g} at step {step}, the ledger's first {step} releases cost "
            f"{least:.4g}"
        ]
    whole = after(releases)
    if value > whole * (1 + TOLERANCE) and value > own() * (1 + TOLERANCE):
        return [
            f"{METRICS_FILE} reports {name} {value:.4g}, the whole ledger costs {whole:.4g}: releases are missing in it"
        ]
    return []


def check_missing(
    folder: Path, header: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], claim: Claim | None
) -> list[str]:
    """Weights are written before metrics, and metrics before the summary: none can be there without those before."""
    weights, findings = (folder / CHECKPOINT_FILE).exists(), []
    shown = [name for name, there in ((METRICS_FILE, metrics), (SUMMARY_FILE, claim)) if there]
    if shown and not weights:
        findings.append(taken_away(" and ".join(shown), CHECKPOINT_FILE))
    if claim is not None and not metrics:
        findings.append(taken_away(SUMMARY_FILE, f"a row of {METRICS_FILE}"))
    return findings if header["release"] != "none" else []


def _near(value: object, right: float) -> bool:
    said = _number(value)
    return said is not None and abs(said - right) <= 1e-6 * max(1.0, right)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
