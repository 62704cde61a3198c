"""The fields that the files of a run folder have: every one by name, with its type and its bounds.

A field that is not listed here is not known to be public; a value outside its bounds was not written by this program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from privacy.notions import Adjacency, Kind

MOST_COUNT = 10**15  # more steps, records or parameters than anybody has
MOST_SECONDS = 1e10
LONGEST = 4096  # characters of a text; the data set may be a path


class Field(NamedTuple):
    """What may stand under a name.

    Attributes:
        holds: whether a value may.
        words: what may, for a finding.
        optional: the name may be left out; every other one is always written.
    """

    holds: Callable[[object], bool]
    words: str
    optional: bool = False


def count(least: int = 0) -> Field:
    """A whole number from `least` on."""
    return Field(lambda v: _is_whole(v) and least <= v <= MOST_COUNT, f"a whole number from {least}")  # type: ignore[operator]


def number(least: float = 0.0, most: float = 1e300) -> Field:
    """A finite number."""

    def holds(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    return Field(holds, f"a number from {least:g}" + (f" to {most:g}" if most < 1e300 else ""))


def text(pattern: str | None = None) -> Field:
    """A text of one line, not too long."""

    def holds(value: object) -> bool:
        short = isinstance(value, str) and len(value) <= LONGEST and "\n" not in value
        return short and (pattern is None or re.fullmatch(pattern, str(value)) is not None)

    return Field(holds, f"a text of at most {LONGEST} characters" + (f" like {pattern}" if pattern else ""))


def one_of(*values: str) -> Field:
    """One of these texts."""
    return Field(lambda value: isinstance(value, str) and value in values, f"one of {', '.join(values)}")


def or_none(field: Field) -> Field:
    """Such a value, or null."""
    return Field(lambda value: value is None or field.holds(value), f"{field.words}, or null")


def optional(field: Field) -> Field:
    """Such a value, or no such name."""
    return field._replace(optional=True)


def list_of(field: Field) -> Field:
    """A list of such values."""
    return Field(
        lambda value: isinstance(value, list) and all(field.holds(each) for each in value),
        f"a list, each {field.words}",
    )


EPSILON = Field(lambda value: value == "inf" or number().holds(value), 'a number from 0, or "inf"')
FLAG = Field(lambda value: isinstance(value, bool), "true or false")
SHARE = number(0.0, 1.0)
LOSS = or_none(number(-1e-3, 1e38))  # a mean cross-entropy in float32, rounding included

# Under which name a row of metrics gives epsilon.
EPSILON_NAMES = {
    Kind.RECORD_DP: "epsilon",
    Kind.LABEL_DP: "epsilon",
    Kind.CONDITIONAL: "conditional_epsilon",
    Kind.NONE: "nominal_epsilon",
}
# Figures that follow from the weights, the settings and public data; any other may come from private records.
METRICS: Mapping[str, Field] = {
    "step": count(),
    "epoch": number(0.0, 1e9),
    "test_accuracy": SHARE,
    "test_loss": LOSS,
    # One of them, in a private run (`check_progress`).
    **dict.fromkeys(EPSILON_NAMES.values(), optional(EPSILON)),
}
SUMMARY: Mapping[str, Field] = {
    **dict.fromkeys(("dataset", "model", "rule", "backend", "release"), text()),
    **dict.fromkeys(("epochs", "batch_size", "parameters"), count(1)),
    "steps": count(),
    "releases": or_none(count()),
    "sample_rate": or_none(number(0.0, 1.0)),
    "seed": Field(lambda value: _is_whole(value) and 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1"),  # type: ignore[operator]
    "test_accuracy": SHARE,
    "test_auc": or_none(SHARE),
    "test_loss": LOSS,
    **dict.fromkeys(("target_epsilon", "noise_multiplier", "max_grad_norm"), or_none(number())),
    **dict.fromkeys(("seconds", "seconds_per_step", "hardware_seconds"), number(0.0, MOST_SECONDS)),
    "data_frames": count(),
}
GUARANTEE: Mapping[str, Field] = {
    "epsilon": EPSILON,
    "delta": number(0.0, 1.0),
    "adjacency": one_of(*Adjacency),
    "kind": one_of(*Kind),
    "accountant": text(r"[\w.() -]{1,60}"),
    "assumptions": list_of(text()),
    "nominal_epsilon": or_none(EPSILON),
    "nominal_kind": optional(or_none(one_of(*Kind))),  # guarantees of before there was one
    "device_share": or_none(SHARE),
}
VERSIONS: Mapping[str, Field] = dict.fromkeys(("optical-dfa", "torch", "python"), text(r"[\w.+-]{1,60}"))
CERTIFICATE: Mapping[str, Field] = {
    "release": one_of("per-record"),
    "kind": one_of("conditional"),
    "computed_from_private_records": FLAG,
    "failing": count(),
    "findings": Field(lambda value: isinstance(value, list), "a list"),
}
CERTIFIED: Mapping[str, Field] = {
    "assumption": text(),
    "holds": or_none(FLAG),
    "figure": or_none(
        Field(lambda value: value == "inf" or number(-1e300).holds(value), 'a number, or "inf"')
    ),
    "meaning": text(),
    "where": text(),
    "public": FLAG,
}
_CODES = list_of(number(-1e9, 1e9))
HISTOGRAM: Mapping[str, Field] = {
    "codes": _CODES,
    "counts": list_of(count()),
    "black_level_dn": number(-1e9, 1e9),
    **dict.fromkeys(("sigma_dn", "step_dn"), number(0.0, 1e9)),
    "frames": count(1),
    "pixels": count(1),
    "note": text(),
}
# Settings of the machine, which no ledger holds; all others are compared with the ledger.
LOCAL: Mapping[str, Field] = {
    "device": text(r"cpu|mps|cuda(:\d+)?"),
    "data_dir": optional(text()),
    "calibration": optional(text()),
    "max_physical_batch_size": optional(count(1)),
    "parallel": optional(text("records|layers")),
    "micro_batches": optional(count(1)),
}
# Metadata of the checkpoint: texts, each of a number.
CHECKPOINT: Mapping[str, Field] = {
    **dict.fromkeys(("step", "releases", "noise_position"), text(r"[0-9]{1,18}")),
    "ledger_head": text(r"[0-9a-f]{0,64}"),
    "seconds": Field(lambda value: number(0.0, MOST_SECONDS).holds(_float(value)), "seconds"),
    "optimizer": Field(lambda value: isinstance(value, str) and len(value) <= 10**6, "a JSON table"),
}


def off(table: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> list[str]:
    """One finding for each known field whose value cannot be what this program writes, or that is not there."""
    findings = [
        f"{where} has {name} = {_shown(table[name])}; it must be {field.words}"
        for name, field in fields.items()
        if name in table and not field.holds(table[name])
    ]
    lacking = [name for name, field in fields.items() if name not in table and not field.optional]
    if lacking:
        findings.append(f"{where} lacks {', '.join(lacking)}, which this program always writes")
    return findings


def unknown(table: Mapping[str, Any], fields: Mapping[str, Field]) -> set[str]:
    """Names that are not listed, and listed ones that hold several values where one belongs."""
    return {
        str(name)[:60]
        for name, value in table.items()
        if name not in fields or (isinstance(value, dict | list) and not fields[name].holds(value))
    }


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_COUNT:
        return "a number of many digits"  # too many to print, perhaps
    try:
        return repr(value)[:60]
    except ValueError:
        return "a value of many digits"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _float(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, str) and math.isfinite(float(value)) else None
    except ValueError:
        return None
