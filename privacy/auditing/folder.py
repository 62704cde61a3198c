"""The settings of a run folder against its ledger."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"

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
# Settings that the header cannot contradict: it does not hold them.
_UNHELD = (
    *("dataset", "model", "features", "epochs", "optimizer", "lr", "lr_schedule", "momentum", "weight_decay"),
    *("seed", "rule", "backend"),
)
# Settings that a summary repeats and that a resumed run may not change.
_REPEATED = ("dataset", "model", "rule", "backend", "release", "seed")


def read_settings(path: Path, notes: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The run's settings, empty where there are none, and findings."""
    if not path.is_file():
        notes.append(f"no {path.name}: what was asked for cannot be compared")
        return {}, []
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), []
    except (OSError, ValueError) as error:
        return {}, [f"{path.name} is unreadable ({' '.join(str(error).split())})"]


def check_settings(settings: Mapping[str, Any], header: Mapping[str, Any], notes: list[str]) -> list[str]:
    """Where what was asked for is not what the ledger announces. A setting that was left out says nothing."""
    findings = []
    for name, announced in _ANNOUNCED.items():
        if name not in settings or (header["release"] == "none" and name != "release"):
            continue
        said, stands = settings[name], header.get(announced)
        if name == "unsafe_diagnostics":
            stands = bool(stands)
        if not _equal(said, stands):
            findings.append(f"{SETTINGS_FILE} has {name} = {said!r}, the ledger {announced} = {stands!r}")
    held = _held(header)
    for name in held.keys() & settings.keys():
        if settings[name] != held[name]:
            findings.append(f"{SETTINGS_FILE} has {name} = {settings[name]!r}, the ledger {held[name]!r}")
    module, options = header.get("module"), settings.get("rule_options")
    known = module.get("rule_options") if isinstance(module, Mapping) else None
    if isinstance(known, Mapping) and isinstance(options, Mapping):
        findings += [
            f"{SETTINGS_FILE} has rule option {name} = {said!r}, the ledger {known[name]!r}"
            for name, said in options.items()
            if name in known and not _equal(said, known[name])
        ]
    unheld = [name for name in _UNHELD if settings.get(name) is not None and name not in held]
    if unheld and header["release"] != "none":
        notes.append(f"as the run's settings name it, for the ledger does not hold it: {', '.join(unheld)}")
    return findings


def check_repeated(
    summary: Mapping[str, Any], settings: Mapping[str, Any], header: Mapping[str, Any]
) -> list[str]:
    """Where the summary says another network, data set or device than the ledger or the settings."""
    findings, held = [], _held(header)
    for name in _REPEATED:
        by, known = ("the ledger", held) if name in held else (SETTINGS_FILE, settings)
        if name in summary and name in known and summary[name] != known[name]:
            findings.append(f"the summary reports {name} {summary[name]!r}, {by} {known[name]!r}")
    return findings


def _held(header: Mapping[str, Any]) -> dict[str, Any]:
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
    numbers = (said, stands)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        return math.isclose(float(str(said)), float(str(stands)), rel_tol=1e-9)
    return said == stands
