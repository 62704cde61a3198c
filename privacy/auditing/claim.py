"""Epsilon from the ledger by an independent accountant, and whether the run's summary claims no more than that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from noise_models.errors import UsageError, apart
from privacy import accounting
from privacy.auditing.files import SUMMARY_FILE
from privacy.auditing.strict import parsed
from privacy.guarantee import Guarantee, Kind
from privacy.ledger import ReleaseEvent
from privacy.mechanisms import MECHANISMS
from privacy.notions import Adjacency
from privacy.releases import RELEASES

TOLERANCE = 0.01  # relative difference in epsilon that two accountants may have
_SAME_FORM = {"published-rdp": 1e-6}  # this one computes what the run's own does, to rounding
# A summary's fields that the ledger's header has under the same name.
_PRIVATE = ("sample_rate", "noise_multiplier", "max_grad_norm", "target_epsilon")
_SHARED = ("release", "batch_size", *_PRIVATE)


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


def read_summary(content: bytes | None) -> tuple[Claim | None, list[str]]:
    """What the run's summary claims, and findings.

    Args:
        content: of the file, None without one.
    """
    if content is None:
        return None, []
    try:
        summary = parsed(content)
        steps = summary.get("steps") or 0
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise TypeError(f"{str(steps)[:40]!r} steps")
        return Claim(Guarantee.from_dict(summary["guarantee"]), steps, summary), []
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return None, [f"{SUMMARY_FILE} is unreadable or has no guarantee ({error})"]


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
    header: Mapping[str, Any], releases: Sequence[ReleaseEvent], delta: float, intact: bool, notes: list[str]
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


def check_delta(claim: Claim, header: Mapping[str, Any]) -> list[str]:
    """Epsilon says nothing without its delta: where the ledger fixes one, it is the only one to report."""
    fixed, said = header.get("delta"), claim.guarantee.delta
    if fixed is None or header["release"] == "none" or said == fixed:
        return []
    return [f"{SUMMARY_FILE} reports delta = {said}, the ledger fixes {fixed}"]


def confirmed(
    claim: Claim,
    header: Mapping[str, Any],
    releases: Sequence[ReleaseEvent],
    guarantee: Guarantee,
    notes: list[str],
) -> Guarantee | None:
    """The run's own accountant on the same ledger, where it bears out a claim below the independent one's epsilon.

    Both give upper bounds; where they agree within the tolerance the smaller holds as well.
    """
    claimed = claim.guarantee
    about = (claimed.kind, claimed.adjacency, claimed.delta)
    if about != (guarantee.kind, guarantee.adjacency, guarantee.delta):
        return None
    if guarantee.kind is Kind.NONE or claimed.epsilon >= guarantee.epsilon or not releases:
        return None
    known = MECHANISMS[RELEASES[header["release"]].mechanism].accountants
    name = header.get("accountant")
    if name not in known or name == guarantee.accountant:
        return None
    own = epsilon_by(str(name), header, releases, guarantee.delta)
    if not guarantee.epsilon * (1 - TOLERANCE) <= own <= guarantee.epsilon:
        return None
    notes.append(
        f"both accountants give upper bounds, {name} {own:.6g} and {guarantee.accountant} {guarantee.epsilon:.6g}: "
        "the smaller is stated"
    )
    return replace(guarantee, epsilon=own, accountant=f"{name} (and {guarantee.accountant})")


def epsilon_by(
    accountant: str, header: Mapping[str, Any], releases: Sequence[ReleaseEvent], delta: float
) -> float:
    """Epsilon of these releases by one accountant of their mechanism."""
    beta = header.get("calibration_beta") or 0.0
    return accounting.epsilon(releases, delta, Adjacency(header["adjacency"]), accountant, beta=beta)


def compare(claim: Claim, guarantee: Guarantee, header: Mapping[str, Any]) -> list[str]:
    """Where the summary claims more than the ledger supports at the summary's own delta, or something else."""
    findings = []
    claimed = claim.guarantee
    allowed = _SAME_FORM.get(guarantee.accountant, TOLERANCE)
    known = guarantee.accountant != "none" or header["release"] == "none"
    for name in ("kind", "adjacency"):
        said, supported = getattr(claimed, name), getattr(guarantee, name)
        if said is not supported:
            findings.append(
                f"{SUMMARY_FILE} reports {name} {said.value}, the ledger supports {supported.value}"
            )
    for name in ("epsilon", "nominal_epsilon"):
        said, supported = getattr(claimed, name), getattr(guarantee, name)
        if (said is None) != (supported is None) and known:
            findings.append(f"{SUMMARY_FILE} reports {name} {said!s}, the ledger {supported!s}")
        # NaN is no claim either.
        elif said is not None and supported is not None and not said >= supported * (1 - allowed):
            claims, gives = apart(said, supported)
            findings.append(
                f"{SUMMARY_FILE} reports {name} {claims} at delta = {claimed.delta}, the ledger gives {gives}"
            )
    own = {
        "nominal_kind": guarantee.nominal_kind,
        "device_share": guarantee.device_share,
        "accountant": "none" if header["release"] == "none" else header.get("accountant"),
    }
    for name, supported in own.items():
        if (said := getattr(claimed, name)) != supported and known:
            findings.append(f"{SUMMARY_FILE} reports {name} {said!s}, the ledger {supported!s}")
    unstated = [text for text in guarantee.assumptions if text not in claimed.assumptions]
    invented = [text for text in claimed.assumptions if text not in guarantee.assumptions]
    if guarantee.kind is claimed.kind and invented and known:
        findings.append(
            f"{SUMMARY_FILE} states {len(invented)} assumptions that the ledger does not have, such as "
            f"{str(invented[0])[:60]!r}"
        )
    if guarantee.kind is claimed.kind is not Kind.NONE and unstated:
        findings.append(
            f"{SUMMARY_FILE} leaves out {len(unstated)} of the ledger's assumptions, such as {unstated[0][:60]!r}"
        )
    return findings


def check_summary(claim: Claim, header: Mapping[str, Any]) -> list[str]:
    """Where the summary's other figures are not the ledger's; of a run without privacy they are null."""
    private = header["release"] != "none"
    findings = [
        f"{SUMMARY_FILE} reports {name} {said!r}, the ledger {held!r}"
        for name in _SHARED
        if (said := claim.summary.get(name)) != (held := header.get(name)) and (private or name in _PRIVATE)
    ]
    releases = claim.summary.get("releases")
    if (releases is None) is private:  # how many is `check_beyond`'s
        findings.append(
            f"{SUMMARY_FILE} reports releases {releases!r}, the ledger is of release {header['release']}"
        )
    return findings


def check_budget(header: Mapping[str, Any], guarantee: Guarantee) -> list[str]:
    """Training stops on the budget (THEORY T9), so a run that passed it was not what its header says."""
    target = header.get("target_epsilon")
    spent = guarantee.nominal_epsilon if guarantee.kind is Kind.NONE else guarantee.epsilon
    if target is None or spent is None or header.get("delta") != guarantee.delta:
        return []
    if spent <= target * (1 + TOLERANCE):
        return []
    cost, budget = apart(spent, target)
    return [f"the releases cost epsilon {cost}, more than the run's budget of {budget}"]
