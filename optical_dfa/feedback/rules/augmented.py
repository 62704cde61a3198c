"""Augmented direct feedback: any function of a unit's input in place of its activation's derivative.

    delta_l = (B_l e) ∘ g(a_l)

Nakajima et al. 2022 (Nat. Commun. 13:7847), where the layer is a physical system whose derivative nobody knows. `g`
need not be near φ' to teach: what counts is that it is positively correlated with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rule import ProjectingRule, ProjectingState
from optical_dfa.feedback.rules.bypass import Bypass
from optical_dfa.feedback.state import Placement, StateHook
from optical_dfa.networks.markers import ACTIVATIONS

DERIVATIVES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "one": torch.ones_like,
        "step": lambda a: (a > 0).to(a.dtype),
        "tanh": lambda a: 1 - torch.tanh(a).square(),
        "gaussian": lambda a: torch.exp(-a.square()),
        "triangle": lambda a: (1 - a.abs()).clamp(min=0),
        "cosine": torch.cos,
        "sine": torch.sin,
    }
)


class AugmentedState(ProjectingState):
    """A projecting rule whose activations hand their signals down through g instead of φ'."""

    def __init__(self, rule: ProjectingRule, placed: Placement, derivative: str) -> None:
        """
        Args:
            rule: whose equation gives the signals.
            placed: on which module.
            derivative: a name of `DERIVATIVES`.
        Raises:
            UsageError: a point that has no derivative to be replaced, or one that cannot be.
        """
        super().__init__(rule, placed.points)
        self.derivative = derivative
        self.activations = [
            point.name for point in placed.points if _has_one(placed.module, point, derivative)
        ]

    def install(self, module: nn.Module) -> None:
        for name in self.activations:
            # First, so that what is cut is the output joined past the derivative.
            module.get_submodule(name).register_forward_hook(_GateHook(self, name), prepend=True)


class _GateHook(StateHook):
    """Forward hook of an activation, before the one that cuts."""

    state: AugmentedState

    def __call__(self, part: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            gate = DERIVATIVES[self.state.derivative](args[0])
        return Bypass.apply(args[0], output, gate)  # type: ignore[no-any-return, no-untyped-call]


def _has_one(module: nn.Module, point: Point, derivative: str) -> bool:
    """Whether a point is an activation; an embedding has no derivative.

    Raises:
        UsageError: it is neither, or an activation that works in place or learns.
    """
    part = module.get_submodule(point.name)
    if isinstance(part, nn.Embedding):
        return False
    if not isinstance(part, ACTIVATIONS):
        reason = "is no activation module"
    elif getattr(part, "inplace", False):
        reason = "works in place, so that what it was given is lost"
    elif next(part.parameters(), None) is not None:
        reason = "has a parameter, which only its own derivative teaches"
    else:
        return True
    raise UsageError(
        f"feedback point {point.name} ({type(part).__name__}) {reason}; rule option derivative={derivative!r} replaces "
        "the derivative of fixed activation modules (e.g. nn.Tanh()): cut there, or leave the option out"
    )
