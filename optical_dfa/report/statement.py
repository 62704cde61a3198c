"""What a report says in words: what was trained, on which device, and what the guarantee is and is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optical_dfa.runs.reading import Run, number
from privacy.auditing.wording import NOT_COVERED as NOT_COVERED
from privacy.guarantee import Guarantee, Kind, rounded_up
from privacy.releases import RELEASES

_RULES = {
    "bdfa": "Direct Feedback Alignment with binary feedback weights (a reconstruction)",
    "bp": "backpropagation",
    "brsf": "sign symmetry whose sizes are drawn anew every step",
    "cdfa": "Direct Feedback Alignment of its fully connected layers, and backpropagation inside its convolutions",
    "ddfa": "forward direct feedback alignment (direct feedback that follows the network's Jacobian)",
    "dfa": "Direct Feedback Alignment",
    "dilated": "Direct Feedback Alignment within modules through dilated convolutions (a reconstruction)",
    "dkp": "direct Kolen-Pollack (direct feedback that learns beside the output layer)",
    "drtp": "Direct Random Target Projection",
    "fa": "feedback alignment (layer by layer, through fixed random matrices)",
    "fdfa": "forward direct feedback alignment (direct feedback that follows the network's Jacobian)",
    "fg-a": "forward gradients of its layers' outputs (no backward pass)",
    "fg-w": "forward gradients of its weights (no backward pass)",
    "frsf": "sign symmetry of fixed random sizes",
    "gated-dfa": "Direct Feedback Alignment before the activations, with public gates",
    "grouped": "Direct Feedback Alignment within modules through grouped convolutions (a reconstruction)",
    "hybrid": "Direct Feedback Alignment within modules and backpropagation between them (a reconstruction)",
    "lg-fg-a": "forward gradients of losses of its layers' own (auxiliary classifiers; no backward pass)",
    "modular": "Direct Feedback Alignment within modules (a reconstruction)",
    "pepita": "PEPITA (a second forward pass of inputs moved by the error)",
    "recurrent-hybrid": "backpropagation between recurrent layers and sparse feedback across time (a reconstruction)",
    "shallow": "its hidden layers frozen (the control experiment)",
    "sign-dfa": "Direct Feedback Alignment of the error's signs",
    "sparse-recurrent": "sparse direct feedback to the states of its recurrent cells (a reconstruction)",
    "ssdfa": "Direct Feedback Alignment with sparse feedback weights",
    "ternary": "Direct Feedback Alignment of the error made ternary",
    "usf": "sign symmetry of uniform size",
}
_UNPROJECTED = (
    "bp", "brsf", "ddfa", "dkp", "fa", "fdfa", "fg-a", "fg-w", "frsf", "hybrid", "lg-fg-a", "pepita",
    "recurrent-hybrid", "shallow", "sparse-recurrent", "usf",
)  # fmt: skip
_DEVICE_RELEASES = ("dark-frame", "device-entropy")
_DEVICES = {
    "digital": "No optical device took part: the projection is a matrix product in software.",
    "simulated-opu": "The device was SIMULATED: an optical processing unit modelled in software. Its noise "
    "is the model's, drawn by a generator; no physical noise was used and nothing was measured on hardware.",
    "lightonml-simulated": "The device was SIMULATED by the lightonml library's own software model; nothing "
    "was measured on hardware.",
    "lightonml": "The device was, as its driver reports, a LightOn optical processing unit (through lightonml); the "
    "program cannot tell a device from a driver that imitates one.",
}


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
    projected = (
        f", its errors projected by the {summary.get('backend')} backend"
        if _projects(rule, run.config)
        else ""
    )
    return (
        f"The network {summary.get('model')} was trained on {summary.get('dataset')} with "
        f"{_RULES.get(rule, rule)}{projected}, {noise}{length}."
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
    if not projects and release not in _DEVICE_RELEASES:
        return "No projection device took part."
    return _DEVICES.get(
        backend, f"The backend {backend} is not one of this program's own; its documentation says what it is."
    )


def _projects(rule: str, settings: Mapping[str, Any]) -> bool:
    """Whether the rule, with the `rule_options` in these settings, sends errors through the projection device."""
    options = settings.get("rule_options")
    between = options.get("between") if isinstance(options, Mapping) else None
    return rule not in _UNPROJECTED and between != "bp"


def headline(guarantee: Guarantee) -> str:
    """The guarantee in a few characters; an ε stands alone only where it holds without further conditions."""
    if guarantee.kind is Kind.NONE or math.isinf(guarantee.epsilon):
        return "no guarantee"
    prefix = "conditional: " if guarantee.kind is Kind.CONDITIONAL else ""
    return f"{prefix}ε = {rounded_up(guarantee.epsilon)}, δ = {short(guarantee.delta)}"


def short(delta: float) -> str:
    """δ as people write it: 1e-5, not 1e-05."""
    return f"{delta:g}".replace("e-0", "e-")
