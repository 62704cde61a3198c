"""The settings of a run folder against those that its ledger holds."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from privacy.auditing import fields
from privacy.auditing.files import SETTINGS_FILE
from privacy.ledger import SETTINGS

# What a setting is called in the ledger's header.
_ANNOUNCED = {
    "release": "release",
    "delta": "delta",
    "epsilon": "target_epsilon",
    "noise_multiplier": "noise_multiplier",
    "max_grad_norm": "max_grad_norm",
    "batch_size": "batch_size",
    "public_size": "nominal_size",
    "reproducible": "reproducible",
    "unsafe_diagnostics": "unsafe_diagnostics",
}
# Settings that a summary repeats.
_REPEATED = ("dataset", "model", "rule", "backend", "release", "seed", "epochs")
# Settings that make it another run.
_FIXED = (
    *(
        "dataset",
        "features",
        "model",
        "transfer",
        "rule",
        "rule_options",
        "points",
        "backend",
        "backend_options",
    ),
    *("release", "release_options", "batch_size", "public_size", "optimizer", "seed"),
)
_EMPTY = {
    "rule_options",
    "backend_options",
    "release_options",
}  # compared entry by entry, as far as they are held


def read_settings(content: bytes | None) -> tuple[dict[str, Any] | None, list[str]]:
    """The run's settings, None where there are none to read, and findings.

    Args:
        content: of the file, None without one.
    """
    if content is None:
        return None, []
    try:
        settings = tomllib.loads(content.decode("utf-8"))
        plain = tomli_w.dumps(settings).encode() == content
    except (ValueError, RecursionError) as error:
        return None, [f"{SETTINGS_FILE} is unreadable ({' '.join(str(error).split())[:200]})"]
    findings = fields.off(settings, fields.LOCAL, SETTINGS_FILE)
    if not plain:
        findings.append(f"{SETTINGS_FILE} holds comments or another form than this program writes")
    return settings, findings


def settings_of(
    header: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], notes: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """The settings of the last part of a run as the ledger holds them, empty where it holds none, and findings.

    Args:
        header: of the ledger.
        parts: payloads of its rows of kind "settings", one for each later part with others.
        notes: receives what changed from part to part.
    """
    held = header.get(SETTINGS)
    if held is None and not parts:
        return {}, []
    if not isinstance(held, Mapping):
        return {}, ["the ledger's settings are no table"]
    findings, changed, now = [], set[str](), dict(held)
    for part in parts:
        other = {name for name in part.keys() | now.keys() if not _equal(part.get(name), now.get(name))}
        changed |= other
        findings += [
            f"the ledger has {name} = {part.get(name)!r} for a later part of the run, and {now.get(name)!r} before: "
            "that makes it another run"
            for name in sorted(other & set(_FIXED))
        ]
        now = dict(part)
    if changed:
        notes.append(f"settings that changed when the run was resumed: {', '.join(sorted(changed))}")
    return now, findings


def check_settings(
    settings: Mapping[str, Any], header: Mapping[str, Any], held: Mapping[str, Any], notes: list[str]
) -> list[str]:
    """Where what was asked for is not what the ledger announces.

    Args:
        settings: of the settings' file.
        header: of the ledger.
        held: all settings as the ledger holds them; empty in one of before it did, which a setting that was left out
            does not contradict.
        notes: receives what the ledger does not hold.
    """
    by_header = (_ANNOUNCED.keys() if header["release"] != "none" else {"release"}) & settings.keys()
    findings = [
        f"{SETTINGS_FILE} has {name} = {settings.get(name)!r}, the ledger {held.get(name)!r}"
        for name in sorted((settings.keys() | held.keys()) - fields.LOCAL.keys() - by_header)
        if held and not _equal(settings.get(name), held.get(name))
    ]
    for name, announced in _ANNOUNCED.items():
        if name not in settings or (header["release"] == "none" and name != "release"):
            continue
        said, stands = settings[name], header.get(announced)
        if name == "unsafe_diagnostics":
            stands = bool(stands)
        if not _equal(said, stands):
            findings.append(f"{SETTINGS_FILE} has {name} = {said!r}, the ledger {announced} = {stands!r}")
    named = _named(header)
    for name in named.keys() & settings.keys():
        if settings[name] != named[name]:
            findings.append(f"{SETTINGS_FILE} has {name} = {settings[name]!r}, the ledger {named[name]!r}")
    module, options = header.get("module"), settings.get("rule_options")
    known = module.get("rule_options") if isinstance(module, Mapping) else None
    if isinstance(known, Mapping) and isinstance(options, Mapping):
        findings += [
            f"{SETTINGS_FILE} has rule option {name} = {said!r}, the ledger {known[name]!r}"
            for name, said in options.items()
            if name in known and not _equal(said, known[name])
        ]
    unheld = sorted(
        settings.keys() - _ANNOUNCED.keys() - named.keys() - held.keys() - fields.LOCAL.keys() - _EMPTY
    )
    if unheld and header["release"] != "none":
        notes.append(f"as the run's settings name it, for the ledger does not hold it: {', '.join(unheld)}")
    return findings


def check_repeated(
    summary: Mapping[str, Any],
    settings: Mapping[str, Any],
    header: Mapping[str, Any],
    parts: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Where the summary says another network, data set or device than the ledger or the settings.

    Args:
        summary: of the last part that was finished.
        settings: of the settings' file.
        header: of the ledger.
        parts: the settings of every part as the ledger holds them.
    """
    findings, named = [], _named(header)
    for name in _REPEATED:
        by, known = "the ledger", [part[name] for part in parts if name in part]
        if name in named:
            known = [named[name]]
        elif not known and name in settings:
            by, known = SETTINGS_FILE, [settings[name]]
        if name in summary and known and summary[name] not in known:
            findings.append(f"the summary reports {name} {summary[name]!r}, {by} {known[-1]!r}")
    return findings


def _named(header: Mapping[str, Any]) -> dict[str, Any]:
    """Rule and device as the header names them; what it does not name is left out."""
    module = header.get("module")
    if not isinstance(module, Mapping):
        return {}
    backend = module.get("backend")
    named = {
        "rule": module.get("rule"),
        "backend": backend.get("backend") if isinstance(backend, Mapping) else None,
    }
    return {name: value for name, value in named.items() if isinstance(value, str)}


def _equal(said: object, stands: object) -> bool:
    """Whether two values are one: numbers to rounding, `true` is no 1, tables and lists entry by entry."""
    if isinstance(said, Mapping) and isinstance(stands, Mapping):
        return said.keys() == stands.keys() and all(_equal(said[name], stands[name]) for name in said)
    if isinstance(said, list) and isinstance(stands, list):
        return len(said) == len(stands) and all(map(_equal, said, stands))
    numbers = (said, stands)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        return math.isclose(float(str(said)), float(str(stands)), rel_tol=1e-9)
    return type(said) is type(stands) and said == stands
