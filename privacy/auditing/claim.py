"""Epsilon from the ledger by an independent accountant, and whether the run's summary claims no more than that."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from noise_models.errors import UsageError
from privacy import accounting
from privacy.adjacency import Adjacency
from privacy.guarantee import Guarantee, Kind
from privacy.ledger import Release
from privacy.mechanisms import MECHANISMS
from privacy.releases import RELEASES

SUMMARY_FILE = "summary.json"
TOLERANCE = 0.01  # relative difference in epsilon that two accountants may have
# A summary's fields that the ledger's header has under the same name.
_SHARED = ("release", "sample_rate", "noise_multiplier", "max_grad_norm", "target_epsilon", "batch_size")


class Claim(NamedTuple):
    """What a run's summary says of itself.

    Attributes:
        guarantee: as stored.
        steps: that the weights have seen.
        summary: the whole document.
    """

    guarantee: Guarantee
    steps: int
    summary: dict[str, Any]


def read_summary(path: Path, notes: list[str]) -> tuple[Claim | None, list[str]]:
    """What the run's summary claims, and findings."""
    if not path.exists():
        notes.append(
            f"no {path.name}: the run did not finish, and nothing was reported that could be compared"
        )
        return None, []
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        claim = Claim(Guarantee.from_dict(summary["guarantee"]), int(summary.get("steps") or 0), summary)
        return claim, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return None, [f"{path.name} is unreadable or has no guarantee ({error})"]


def choose_delta(run: Path, header: Mapping[str, Any], claim: Claim | None, asked: float | None) -> float:
    """The delta to recompute epsilon at: the one asked for, else the header's, else the summary's.

    Raises:
        UsageError: there is none.
    """
    candidates = (asked, header.get("delta"), claim.guarantee.delta if claim else None)
    chosen = next((value for value in candidates if isinstance(value, int | float)), None)
    if chosen is None and header["release"] != "none":
        raise UsageError(f"ledger of {run} fixes no delta: give the delta to audit at")
    return 0.0 if chosen is None else float(chosen)


def recompute(
    header: Mapping[str, Any], releases: Sequence[Release], delta: float, intact: bool, notes: list[str]
) -> Guarantee:
    """The guarantee that the ledger supports: none where it was damaged, since releases may be missing.

    The accountant is the mechanism's last (`privacy.mechanisms`), which shares no code with the one that training
    stops by.

    Raises:
        UsageError: no accountant answers for these releases.
    """
    if header["release"] == "none":
        return Guarantee.of_run(header, math.inf, delta, "none")
    beta = header.get("calibration_beta") or 0.0
    mechanism = accounting.mechanism_of(dict.fromkeys(releases, 1))
    if not releases:
        mechanism = RELEASES[header["release"]].mechanism
    accountants = MECHANISMS[mechanism].accountants
    accountant = accountants[-1]
    if mechanism == "gaussian" and not accounting.resolves(delta - beta, len(releases)):
        accountant = accountants[0]
        notes.append(
            f"delta = {delta:g} is too small for the independent accountant: recomputed with {accountant}"
        )
    elif len(accountants) == 1:
        notes.append(f"mechanism {mechanism} has one accountant: {accountant} recomputed what it computed")
    adjacency = Adjacency(header["adjacency"])
    # Without releases there is no mechanism whose accountant it would be.
    value = accounting.epsilon(releases, delta, adjacency, accountant if releases else None, beta=beta)
    if intact:
        return Guarantee.of_run(header, value, delta, accountant)
    notes.append(f"the releases left in the ledger cost epsilon {value:.4g}; others may be missing")
    return unsupported(header, delta, "the ledger was damaged", accountant)


def unsupported(header: Mapping[str, Any], delta: float, reason: str, accountant: str = "none") -> Guarantee:
    """What a ledger supports that nobody can account for: nothing, and no nominal epsilon either."""
    own = (
        header
        if header["release"] == "none"
        else {**header, "adjacency": RELEASES[header["release"]].adjacency}
    )
    void = Guarantee.of_run(own, math.inf, delta, accountant, void=(reason,))
    return replace(void, nominal_epsilon=None)


def compare(claim: Claim, guarantee: Guarantee, releases: int, notes: list[str]) -> list[str]:
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
    unstated = [text for text in guarantee.assumptions if text not in claimed.assumptions]
    if guarantee.kind is claimed.kind is not Kind.NONE and unstated:
        findings.append(
            f"{SUMMARY_FILE} leaves out {len(unstated)} of the ledger's assumptions, such as {unstated[0][:60]!r}"
        )
    if claim.steps > releases and guarantee.accountant != "none":
        findings.append(f"{SUMMARY_FILE} reports {claim.steps} steps, the ledger has {releases} releases")
    return findings


def check_summary(claim: Claim, header: Mapping[str, Any], releases: int) -> list[str]:
    """Where the summary's other figures are not the ledger's."""
    if header["release"] == "none":
        return []
    findings = []
    for name in _SHARED:
        said = claim.summary.get(name)
        if said is not None and name in header and said != header[name]:
            findings.append(f"{SUMMARY_FILE} reports {name} {said!r}, the ledger {header[name]!r}")
    said = claim.summary.get("releases")
    if isinstance(said, int) and said > releases:
        findings.append(f"{SUMMARY_FILE} reports {said} releases, the ledger has {releases}")
    return findings


def check_budget(header: Mapping[str, Any], guarantee: Guarantee) -> list[str]:
    """Training stops on the budget (THEORY T9), so a run that passed it was not what its header says."""
    target = header.get("target_epsilon")
    spent = guarantee.nominal_epsilon if guarantee.kind is Kind.NONE else guarantee.epsilon
    if target is None or spent is None or header.get("delta") != guarantee.delta:
        return []
    if spent <= target * (1 + TOLERANCE):
        return []
    return [f"the releases cost epsilon {spent:.4g}, more than the run's budget of {target:g}"]
