"""What a run folder shows, metrics and summary: public figures only, and none that the ledger does not bear out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from privacy.auditing.claim import SUMMARY_FILE, TOLERANCE, Claim
from privacy.auditing.folder import METRICS_FILE
from privacy.auditing.weights import CHECKPOINT_FILE
from privacy.guarantee import Guarantee, Kind

# Under which name a row of metrics gives epsilon.
_EPSILON = {
    Kind.RECORD_DP: "epsilon",
    Kind.LABEL_DP: "epsilon",
    Kind.CONDITIONAL: "conditional_epsilon",
    Kind.NONE: "nominal_epsilon",
}
# Figures that follow from the weights, the settings and public data; any other may come from private records.
_PUBLIC_METRICS = {"step", "epoch", "test_accuracy", "test_loss", *_EPSILON.values()}
_PUBLIC_SUMMARY = {
    *("dataset", "model", "rule", "backend", "release", "epochs", "steps", "releases", "batch_size"),
    *(
        "sample_rate",
        "seed",
        "test_accuracy",
        "test_auc",
        "test_loss",
        "target_epsilon",
        "noise_multiplier",
        "max_grad_norm",
    ),
    *("parameters", "seconds", "seconds_per_step", "data_frames", "hardware_seconds"),
}
_PUBLIC_PARTS = {
    "guarantee": {field.name for field in fields(Guarantee)},
    "versions": {"optical-dfa", "torch", "python"},
}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics, those left out that a crash cut."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def check_shown(
    header: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], claim: Claim | None
) -> list[str]:
    """Figures that are not known to be public: each may be a release that no ledger row covers."""
    if header["release"] == "none" or header.get("unsafe_diagnostics"):
        return []
    files = {METRICS_FILE: {name for row in metrics for name in _unknown(row, _PUBLIC_METRICS)}}
    if claim is not None:
        parts = {name: claim.summary[name] for name in _PUBLIC_PARTS if name in claim.summary}
        rest = {name: value for name, value in claim.summary.items() if name not in parts}
        found = _unknown(rest, _PUBLIC_SUMMARY)
        for name, part in parts.items():
            known = _PUBLIC_PARTS[name]
            listed = {"assumptions": None} if name == "guarantee" else {}
            found |= (
                {f"{name}.{key}" for key in _unknown({**part, **listed}, known)}
                if isinstance(part, dict)
                else {name}
            )
        files[SUMMARY_FILE] = found
    return [
        f"{file} shows {', '.join(sorted(names))}, not among the figures that are public: what is computed from "
        "private records is outside the guarantee, and the ledger says that no such figures were kept"
        for file, names in files.items()
        if names
    ]


def _unknown(row: Mapping[str, Any], public: set[str]) -> set[str]:
    """Names that are not public, and public names that hold more than one value."""
    return {str(name) for name, value in row.items() if name not in public or isinstance(value, dict | list)}


def check_progress(
    metrics: Sequence[Mapping[str, Any]],
    releases: int,
    guarantee: Guarantee,
    after: Callable[[int], float] | None,
    own: Callable[[], float],
) -> list[str]:
    """Whether the metrics speak of more steps, or of another epsilon, than the ledger has.

    Args:
        metrics: as `read_metrics` returns them.
        releases: in the ledger.
        guarantee: that the ledger supports, at the delta of the metrics.
        after: epsilon of the ledger's first releases, by the independent accountant; None where the ledger was
            damaged or has no delta.
        own: epsilon of the whole ledger by the accountant that the run stopped by.
    """
    rows = [row for row in metrics if _is_count(row.get("step"))]
    if not rows:
        return []
    last = max(rows, key=lambda row: int(row["step"]))
    step, name = int(last["step"]), _EPSILON[guarantee.kind]
    if step > releases:
        return [
            f"{METRICS_FILE} reports step {step}, the ledger has {releases} releases: its tail was cut off"
        ]
    if after is None:
        return []
    other = sorted({key for row in rows for key in set(_EPSILON.values()) & row.keys()} - {name})
    if other:
        return [
            f"{METRICS_FILE} gives {', '.join(other)}, a run of kind {guarantee.kind.value} has {name} only"
        ]
    said = _number(last.get(name))
    if said is None:
        return []
    least = after(step)
    if not said >= least * (1 - TOLERANCE):
        return [
            f"{METRICS_FILE} reports {name} {said:.4g} at step {step}, the ledger's first {step} releases cost "
            f"{least:.4g}"
        ]
    whole = after(releases)
    if said > whole * (1 + TOLERANCE) and said > own() * (1 + TOLERANCE):
        return [
            f"{METRICS_FILE} reports {name} {said:.4g}, the whole ledger costs {whole:.4g}: releases are missing in it"
        ]
    return []


def check_missing(
    folder: Path, header: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], claim: Claim | None
) -> list[str]:
    """Weights are written before metrics, and metrics before the summary: none can be there without those before."""
    if header["release"] == "none":
        return []
    weights, findings = (folder / CHECKPOINT_FILE).is_file(), []
    shown = [name for name, there in ((METRICS_FILE, metrics), (SUMMARY_FILE, claim)) if there]
    if shown and not weights:
        findings.append(_taken_away(" and ".join(shown), CHECKPOINT_FILE))
    if claim is not None and not metrics:
        findings.append(_taken_away(SUMMARY_FILE, f"a row of {METRICS_FILE}"))
    return findings


def _taken_away(shown: str, before: str) -> str:
    return (
        f"{shown} without {before}, which is written first: it was taken away, and what the ledger has cannot be "
        "compared with it"
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
