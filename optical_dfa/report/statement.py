"""What a report says in words: what was trained, on which device, and what the guarantee is and is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optical_dfa.backends import BACKENDS
from optical_dfa.feedback import RULES
from optical_dfa.runs.reading import Run, number
from privacy.auditing.wording import NOT_COVERED as NOT_COVERED
from privacy.guarantee import Guarantee, Kind, rounded_up
from privacy.releases import RELEASES


def trained(run: Run) -> str:
    """One sentence: what was trained, on what, how."""
    summary = run.summary
    rule, release = str(summary.get("rule")), str(summary.get("release"))
    steps, epochs = number(summary.get("steps")), number(summary.get("epochs"))
    length = f", in {steps:,.0f} steps" if steps is not None else ""
    if length and epochs is not None:
        length += f" ({epochs:g} epochs)"
    noise = "without privacy noise" if release == "none" else f"release {release}"
    if release in RELEASES:
        noise = f"with privacy {RELEASES[release].summary}"
    projected = ""
    if _projects(rule, run.config):
        sums = release in RELEASES and RELEASES[release].sum_projected == rule
        projected = (
            f", its {'released sums' if sums else 'errors'} projected by the {summary.get('backend')} backend"
        )
    return (
        f"The network {summary.get('model')} was trained on {summary.get('dataset')} with "
        f"{RULES[rule].summary if rule in RULES else rule}{projected}, {noise}{length}."
    )


def device(run: Run) -> str:
    """Whether the projection was digital, simulated or hardware, or whether there was none."""
    summary = run.summary
    projects = _projects(str(summary.get("rule")), run.config)
    return _device(projects, str(summary.get("release")), str(summary.get("backend")))


def device_words(header: Mapping[str, Any]) -> str:
    """As `device`, from a ledger's header alone."""
    module = header.get("module")
    described = module if isinstance(module, Mapping) else {}
    backend = described.get("backend")
    name = backend.get("backend") if isinstance(backend, Mapping) else None
    if name is None and described.get("rule") is None:
        return "The ledger does not say which device took part."
    return _device(_projects(str(described.get("rule")), described), str(header.get("release")), str(name))


def _device(projects: bool, release: str, backend: str) -> str:
    if not projects and not (release in RELEASES and RELEASES[release].dark_frames):
        return "No projection device took part."
    if backend in BACKENDS:
        return BACKENDS[backend].part
    return f"The backend {backend} is not registered here; its documentation says what it is."


def _projects(rule: str, settings: Mapping[str, Any]) -> bool:
    """Whether the rule, with the `rule_options` in these settings, sends errors through the projection device."""
    options = settings.get("rule_options")
    return rule not in RULES or RULES[rule].projects_with(options if isinstance(options, Mapping) else {})


def headline(guarantee: Guarantee) -> str:
    """The guarantee in a few characters; an ε stands alone only where it holds without further conditions."""
    if guarantee.kind is Kind.NONE or math.isinf(guarantee.epsilon):
        return "no guarantee"
    prefix = "conditional: " if guarantee.kind is Kind.CONDITIONAL else ""
    return f"{prefix}ε = {rounded_up(guarantee.epsilon)}, δ = {short(guarantee.delta)}"


def short(delta: float) -> str:
    """δ as people write it: 1e-5, not 1e-05."""
    return f"{delta:g}".replace("e-0", "e-")
