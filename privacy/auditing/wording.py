"""What a privacy statement says in sentences: verdict, mechanism, adversary, and what lies outside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from privacy.guarantee import Guarantee, Kind, rounded_up
from privacy.notions import Adjacency
from privacy.releases import RELEASES

_LONGEST = 1000  # characters of one text of a run folder

# Side channels and choices outside every guarantee of this program (docs/threat-model.md).
NOT_COVERED = (
    "Timing, memory use and power of the machine and of the device: side channels that were not bounded.",
    "Anything outside the run folder: logs of other programs, backups of the private records, debuggers.",
    "The data set's declared size, the hyper-parameters and the test set: they are taken to be public.",
    "Choosing among several runs on the same records: each spends its own budget, and the budgets add up.",
    "Several records of one person: the guarantee speaks of one record.",
)
# What an audit has no means to check: it has neither the data nor the clock. Bounds were looked at.
NOT_CHECKED = (
    "the test accuracy, AUC and loss (the test set would be needed)",
    "times, frames of the device, the number of parameters and versions of other programs",
    "the settings of the machine (device, data folder, records in memory at once)",
    "epsilon in the rows of metrics before the last, but that it never falls",
    "that the data set is the one that its name and size say, in every part of the run",
)
INPUTS_PUBLIC = "The inputs of the records (images, features): only their labels are protected."

_SEES = (
    "Somebody who sees every weight vector of the training, the settings, the code, the device's calibration and "
    "projection matrix, and who knows "
)
_ADVERSARIES = {
    Adjacency.ADD_REMOVE: _SEES
    + "all records but the one in question. Secret from them are that record, the noise, "
    "and which records each step used.",
    Adjacency.REPLACE_ONE: _SEES
    + "all records but the one in question. Secret from them are that record, the noise, "
    "and which records each step used.",
    Adjacency.LABEL: _SEES
    + "all inputs, their order, and all labels but the one in question. Secret from them are "
    "that label and the noise.",
}
RELEASED = (
    "The weights after every step and everything the run folder shows. The guarantee covers all of it together; what "
    "is computed from the weights afterwards needs no further privacy."
)

_UNITS = {
    Adjacency.ADD_REMOVE: "one record: the data set with it and the data set without it are to look alike",
    Adjacency.REPLACE_ONE: "one record: the data set and one with another record in its place are to look alike",
    Adjacency.LABEL: "the label of one record: its input is public, and any two labels of it are to look alike",
}

_COINS = "In each step every record was drawn with probability {rate} (independent coins, Poisson sampling). "
_DRAWN = _COINS + (
    "What a drawn record contributes to the update, over all layers together, was clipped to Euclidean norm {clip}"
)
_SIZE = "of standard deviation {noise} times {sensitivity} (the most that one record moves the sum by)"
_EACH = " was added in each of {dimension} coordinates"
_ONLY = ". Only the noised sum reached the weights."
_PIECES = {"coins": _COINS, "drawn": _DRAWN, "size": _SIZE, "each": _EACH, "only": _ONLY}


def mechanism(header: Mapping[str, Any]) -> str:
    """How a step was made private, with the ledger's numbers.

    Args:
        header: of the ledger of a private run.
    """
    sigma = header["noise_multiplier"]
    numbers = {
        "rate": shown(header["sample_rate"]),
        "clip": shown(header.get("max_grad_norm")),
        "noise": shown(sigma),
        "sensitivity": shown(header.get("sensitivity")),
        "dimension": f"{header['dimension']:,}" if isinstance(header.get("dimension"), int) else "all",
        "shift": shown(1 / sigma if sigma else math.inf),
    }
    pieces = {name: text.format(**numbers) for name, text in _PIECES.items()}
    return RELEASES[header["release"]].statement.format(**pieces, **numbers)


def unit(adjacency: Adjacency) -> str:
    """Whom or what the guarantee protects."""
    return _UNITS[adjacency]


def adversary(adjacency: Adjacency) -> str:
    """Against whom the guarantee holds."""
    return _ADVERSARIES[adjacency]


def not_covered(kind: Kind) -> tuple[str, ...]:
    """What a guarantee of this kind says nothing about."""
    return (INPUTS_PUBLIC, *NOT_COVERED) if kind is Kind.LABEL_DP else NOT_COVERED


def verdict(
    guarantee: Guarantee,
    epsilon: float,
    findings: int,
    *,
    reserved: bool = False,
    unreadable: Sequence[str] = (),
    unchecked: Sequence[str] = (),
) -> str:
    """The first line of a statement: what may be relied on, before any number, and what nobody checked.

    Args:
        guarantee: that the ledger supports.
        epsilon: that is stated.
        findings: contradictions that the audit found.
        reserved: no weights were compared with the ledger.
        unreadable: files that could not be read.
        unchecked: what else of the folder was not compared with anything.
    """
    text = _verdict(guarantee, epsilon, findings, reserved=reserved, unreadable=unreadable)
    return text if findings else f"{text} NOT CHECKED: {'; '.join(not_checked(unreadable, unchecked))}."


def not_checked(unreadable: Sequence[str], unchecked: Sequence[str]) -> tuple[str, ...]:
    """Everything that a verdict says nothing about, in words."""
    named = f"what {', '.join(unchecked)} in the folder may say or hold" if unchecked else None
    closed = f"what could not be read: {', '.join(unreadable)}" if unreadable else None
    return (*NOT_CHECKED, *(text for text in (named, closed) if text is not None))


def _verdict(
    guarantee: Guarantee, epsilon: float, findings: int, *, reserved: bool, unreadable: Sequence[str]
) -> str:
    if findings:
        text = f"DOES NOT HOLD: the audit found {findings} contradiction(s), listed below. Rely on no figure here."
        return text if guarantee.kind is not Kind.CONDITIONAL else f"NOT A GUARANTEE, and it {text}"
    if guarantee.kind is Kind.NONE:
        return "NO PRIVACY GUARANTEE: this run protects no record."
    if guarantee.kind is Kind.CONDITIONAL:
        failing = sum(text.startswith("FAILS") for text in guarantee.assumptions)
        known = f"{failing} of them {'is' if failing == 1 else 'are'}" if failing else "some are"
        return (
            "NOT A GUARANTEE: the figures hold only while every assumption below does, and "
            f"{known} known to fail (see `optical-dfa attack span`)."
        )
    if math.isinf(epsilon):
        return f"NO PROTECTION: the noise gives no finite epsilon at delta = {guarantee.delta:g}."
    text = (
        f"({rounded_up(epsilon)}, {guarantee.delta:g})-differential privacy for data sets that differ by "
        f"{guarantee.adjacency.words}."
    )
    if unreadable:
        return (
            "NOT FULLY AUDITED: files of the run could not be read, so this is the ledger's word alone, and neither "
            f"confirmed nor contradicted by them; audit again with leave to read them: {text}"
        )
    if reserved:
        return (
            "HOLDS FOR THIS LEDGER ONLY, under the assumptions below; no weights were compared with it, so releases "
            f"that were cut off its end would not show: {text}"
        )
    return f"HOLDS under the assumptions below: {text}"


def shown(value: object) -> str:
    """A number of the ledger as a person reads it."""
    if isinstance(value, bool) or value is None:
        return "not recorded" if value is None else "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def one_line(text: str) -> str:
    """One line of printable characters: no line breaks, no control or direction marks, 1000 at most."""
    flat = "".join(character if character.isprintable() else " " for character in text)
    flat = " ".join(flat.split())
    return flat if len(flat) <= _LONGEST else flat[:_LONGEST] + "…"
