"""Audit of a run: epsilon from the ledger alone, and whether everything else the run shows agrees with it.

The epsilon is computed by `numerical`, which shares no code with the trainer's default accountant. An audit
cannot see what was never written down: a release outside the ledger, or a ledger rewritten together with its
checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from noise_models.errors import UsageError
from privacy.accounting import epsilon as composed_epsilon
from privacy.accounting import resolves
from privacy.adjacency import Adjacency
from privacy.auditing.device import check_device
from privacy.guarantee import Guarantee, Kind
from privacy.ledger import Ledger, Release

LEDGER_FILE = "ledger.sqlite"
CHECKPOINT_FILE = "checkpoint.safetensors"
SUMMARY_FILE = "summary.json"
TOLERANCE = 0.01  # relative difference in epsilon that two accountants may have
_REQUIRED = ("release", "reproducible")
_NUMBERS = ("sample_rate", "noise_multiplier", "nominal_size", "batch_size")
_NUMBERS_IF_GIVEN = ("delta", "target_epsilon", "device_share", "calibration_beta")
_REQUIRED_PRIVATE = ("adjacency", *_NUMBERS)


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
        reported_epsilon: what the run's summary claims, None where it has no summary.
    """

    guarantee: Guarantee
    consistent: bool
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    releases: int
    health: tuple[dict[str, Any], ...]
    calibration: dict[str, str] | None
    reported_epsilon: float | None

    @property
    def epsilon(self) -> float:
        """The guarantee's epsilon; inf for kind none."""
        return self.guarantee.epsilon

    @property
    def delta(self) -> float:
        """The guarantee's delta."""
        return self.guarantee.delta

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
        }


class _Claim(NamedTuple):
    """What a run's summary says of itself."""

    guarantee: Guarantee
    steps: int


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
    with Ledger.open(run / LEDGER_FILE if folder else run, read_only=True) as ledger:
        header, notes = _header(ledger, run), list[str]()
        findings = ledger.verify()
        if folder is not None:
            findings += _check_checkpoint(folder / CHECKPOINT_FILE, ledger, header, notes)
        intact = not findings
        try:
            releases, keys, readable = ledger.releases(), len(ledger.events("key")), True
            findings += check_device(ledger, header, folder, notes)
            health = ledger.events("health")
        except UsageError as error:
            releases, keys, health, readable = [], 0, [], False
            findings.append(str(error))
            notes.append("releases that cannot be read have no known cost: no epsilon was recomputed")
        count = ledger.count()
        if readable:
            findings += _check_ledger(header, releases, keys)
        claim = None
        if folder is not None:
            claim, more = _read_summary(folder / SUMMARY_FILE, notes)
            findings += more
        at = _delta(run, header, claim, delta)
        if readable:
            guarantee = _recompute(header, releases, at, intact, notes)
        else:
            guarantee = _damaged(header, math.inf, at, "none")
        if claim is not None:
            findings += _compare(claim, guarantee, count, notes)
        findings += _check_budget(header, guarantee)
    return AuditReport(
        guarantee=guarantee,
        consistent=not findings,
        findings=tuple(findings),
        notes=tuple(notes),
        releases=count,
        health=tuple(health),
        calibration=header.get("calibration"),
        reported_epsilon=None if claim is None else claim.guarantee.epsilon,
    )


def _header(ledger: Ledger, run: Path) -> dict[str, Any]:
    header = ledger.header()
    required = _REQUIRED if header.get("release") == "none" else _REQUIRED + _REQUIRED_PRIVATE
    missing = [key for key in required if key not in header]
    if missing:
        raise UsageError(
            f"ledger of {run} lacks {', '.join(missing)} in its header: it is not the ledger of a run"
        )
    if not isinstance(header["release"], str):
        raise UsageError(
            f"ledger of {run} has release = {header['release']!r} in its header: it must be text"
        )
    assumptions = header.get("assumptions") or []
    if not isinstance(assumptions, list) or not all(isinstance(text, str) for text in assumptions):
        raise UsageError(f"ledger of {run} has assumptions in its header that are no list of texts")
    if header["release"] == "none":
        return header
    for key in (*_NUMBERS, *(key for key in _NUMBERS_IF_GIVEN if header.get(key) is not None)):
        value = header[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UsageError(
                f"ledger of {run} has {key} = {value!r} in its header: it must be a finite number >= 0"
            )
    if header["adjacency"] not in list(Adjacency):
        raise UsageError(
            f"ledger of {run} has adjacency {header['adjacency']!r}: it must be one of {', '.join(Adjacency)}"
        )
    return header


def _check_ledger(header: Mapping[str, Any], releases: list[Release], keys: int) -> list[str]:
    if header["release"] == "none":
        return [f"release is none, but the ledger has {len(releases)} releases"] if releases else []
    findings = []
    rate = header["batch_size"] / header["nominal_size"] if header["nominal_size"] else math.inf
    if not math.isclose(header["sample_rate"], rate, rel_tol=1e-9):
        findings.append(
            f"sample rate {header['sample_rate']:.6g} is not batch size / nominal size = "
            f"{header['batch_size']} / {header['nominal_size']} = {rate:.6g}"
        )
    for name in ("sample_rate", "noise_multiplier"):
        off = [
            n
            for n, r in enumerate(releases, 1)
            if not math.isclose(getattr(r, name), header[name], rel_tol=1e-9)
        ]
        if off:
            value = getattr(releases[off[0] - 1], name)
            findings.append(
                f"release {off[0]} has {name} {value:.6g}, the header {header[name]:.6g} ({len(off)} differ)"
            )
    sources = {release.source for release in releases} - {header["release"]}
    if sources:
        findings.append(
            f"releases come from {', '.join(sorted(sources))}, the header says {header['release']}"
        )
    shares = [release.device_share for release in releases]
    if shares and (header.get("device_share") or 0.0) > min(shares) + 1e-9:
        findings.append(
            f"the header says the device supplied {header['device_share']:.1%} of the noise variance, "
            f"its releases {min(shares):.1%}"
        )
    if releases and not header["reproducible"] and not keys:
        findings.append("releases without a registered generator key: its re-use could not be found")
    return findings


def _delta(run: Path, header: Mapping[str, Any], claim: _Claim | None, asked: float | None) -> float:
    """The delta to recompute epsilon at: the one asked for, else the header's, else the summary's."""
    candidates = (asked, header.get("delta"), claim.guarantee.delta if claim else None)
    chosen = next((value for value in candidates if isinstance(value, int | float)), None)
    if chosen is None and header["release"] != "none":
        raise UsageError(f"ledger of {run} fixes no delta: give the delta to audit at")
    return 0.0 if chosen is None else float(chosen)


def _recompute(
    header: Mapping[str, Any], releases: list[Release], delta: float, intact: bool, notes: list[str]
) -> Guarantee:
    """The guarantee that the ledger supports: none where it was damaged, since releases may be missing."""
    if header["release"] == "none":
        return Guarantee.of_run(header, math.inf, delta, "none")
    adjacency = Adjacency(header["adjacency"])
    beta = header.get("calibration_beta") or 0.0
    accountant = "numerical"
    if not resolves(delta - beta, len(releases)):
        accountant = "pld"
        notes.append(f"delta = {delta:g} is too small for the independent accountant: recomputed with pld")
    value = composed_epsilon(releases, delta, adjacency, accountant, beta=beta)
    if intact:
        return Guarantee.of_run(header, value, delta, accountant)
    notes.append(f"the releases left in the ledger cost epsilon {value:.4g}; others may be missing")
    return _damaged(header, value, delta, accountant)


def _damaged(header: Mapping[str, Any], value: float, delta: float, accountant: str) -> Guarantee:
    """What a damaged ledger supports: nothing, and no nominal epsilon either."""
    void = Guarantee.of_run(header, value, delta, accountant, void=("the ledger was damaged",))
    return replace(void, nominal_epsilon=None)


def _check_budget(header: Mapping[str, Any], guarantee: Guarantee) -> list[str]:
    """Training stops on the budget (THEORY T9), so a run that passed it was not what its header says."""
    target = header.get("target_epsilon")
    spent = guarantee.nominal_epsilon if guarantee.kind is Kind.NONE else guarantee.epsilon
    if target is None or spent is None or header.get("delta") != guarantee.delta:
        return []
    if spent <= target * (1 + TOLERANCE):
        return []
    return [f"the releases cost epsilon {spent:.4g}, more than the run's budget of {target:g}"]


def _check_checkpoint(path: Path, ledger: Ledger, header: Mapping[str, Any], notes: list[str]) -> list[str]:
    if not path.exists():
        notes.append(f"no {path.name}: a cut-off ledger tail would not show")
        return []
    if header["release"] == "none":
        return []
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as checkpoint:
            metadata = checkpoint.metadata() or {}
        head, step = metadata["ledger_head"], int(metadata["step"])
    except (OSError, SafetensorError) as error:
        return [f"{path.name} is unreadable ({error})"]
    except (KeyError, ValueError) as error:
        return [f"{path.name} does not name its ledger head and step ({error!r})"]
    recorded = ledger.count_at(head)
    if recorded is None:
        return [
            f"{path.name} names ledger head {head[:16]}…, which this ledger never had: "
            "its tail was cut off, or it was rewritten"
        ]
    if recorded < step:
        return [f"{path.name} is of step {step}, but the ledger had {recorded} releases at its head"]
    return []


def _read_summary(path: Path, notes: list[str]) -> tuple[_Claim | None, list[str]]:
    """What the run's summary claims, and findings."""
    if not path.exists():
        notes.append(f"no {path.name}: nothing was reported that could be compared")
        return None, []
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return _Claim(Guarantee.from_dict(summary["guarantee"]), int(summary.get("steps") or 0)), []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return None, [f"{path.name} is unreadable or has no guarantee ({error})"]


def _compare(claim: _Claim, guarantee: Guarantee, releases: int, notes: list[str]) -> list[str]:
    """Where the summary claims more than the ledger supports."""
    findings = []
    claimed = claim.guarantee
    for name in ("kind", "adjacency"):
        said, supported = getattr(claimed, name), getattr(guarantee, name)
        if said is not supported:
            findings.append(
                f"{SUMMARY_FILE} reports {name} {said.value}, the ledger supports {supported.value}"
            )
    for name in ("epsilon", "nominal_epsilon"):
        said, supported = getattr(claimed, name), getattr(guarantee, name)
        if said is None or supported is None:
            continue
        if claimed.delta != guarantee.delta:
            notes.append(f"{SUMMARY_FILE} reports {name} at delta = {claimed.delta:g}: not compared")
        elif not said >= supported * (1 - TOLERANCE):  # NaN is no claim either
            findings.append(f"{SUMMARY_FILE} reports {name} {said:.4g}, the ledger gives {supported:.4g}")
    if claim.steps > releases and guarantee.accountant != "none":
        findings.append(f"{SUMMARY_FILE} reports {claim.steps} steps, the ledger has {releases} releases")
    return findings
