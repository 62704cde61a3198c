"""Forward gradients: a random direction times the loss's derivative along it, without any backward pass.

    fg-w (Baydin et al. 2022, arXiv 2202.08587):    dL/dW ~ (grad L · v) v,    v ~ N(0, I) for all weights at once
    fg-a (Ren et al. 2023, arXiv 2210.03310):       delta_l = (grad L_n · u_n) u_{l,n},    u ~ N(0, I) at every a_l

Both are unbiased. The derivative of the output along the direction is taken in the forward pass, d = J v; the loss's
is then e · d, so that these rules need no more of the loss than its gradient at the output, as all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noise_models.places import normals_like
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.forward_mode import (
    check_forward_mode,
    directional_derivative,
    parameter_derivative,
)
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rule import Requires, Rule, Taught
from optical_dfa.feedback.state import DrawingState, FeedbackState, GradientState, Placement

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@RuleCard(
    summary="forward gradients of its layers' outputs (no backward pass)",
    projects=False,
    refused=Refusal.OWN_PASSES,
)
class ActivityForwardGradient(Rule):
    """`fg-a`: a layer's own output is moved, before the nonlinearity, by a direction of each record's own.

    The layers of all points are moved at once. The output layer learns from the exact error. For one record the
    variance of dL/dW_ij is h_i^2 (sum_m |dL/da_m|^2 + (dL/da_j)^2).
    """

    name = "fg-a"
    requires = frozenset({Requires.ROOT_ERROR, Requires.FORWARD_MODE})
    taught = Taught.LAYER

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        return [name for name, part in module.named_modules() if isinstance(part, _WEIGHTED)]

    def state(self, placed: Placement) -> FeedbackState:
        names = [point.name for point in placed.points]
        check_forward_mode(placed.module, names, placed.example, self.name, once=True)
        return _ActivityState(placed.points, placed.seed)


@dataclass
class _Moved:
    """Directions by point, records first, and how each record's output moves along them, shape (m, ...)."""

    directions: list[Tensor | None]
    derivative: Tensor


class _ActivityState(DrawingState):
    extra_passes = 1

    def observe(self, passed: ForwardPass) -> _Moved:
        stream, kept = self.draws(), passed.kept
        drawn = [normals_like(h, stream) for _, h in kept]
        self.get_buffer("passes").add_(1)
        derivative = torch.zeros_like(passed.output)
        if kept and len(derivative):
            derivative = directional_derivative(passed, drawn, self._random)
        directions: list[Tensor | None] = [None for _ in self.points]
        for (index, _), u in zip(kept, drawn, strict=True):
            directions[index] = u
        return _Moved(directions, derivative.detach())

    def teach(self, error: Tensor, noted: _Moved, device: ProjectionBackend | None) -> list[Tensor | None]:
        moved = error.reshape(noted.derivative.shape) * noted.derivative
        along = moved.flatten(1).sum(1) if moved.ndim > 1 else moved
        return [
            None if u is None else u * along.view(-1, *[1] * (u.ndim - 1)).to(u.dtype)
            for u in noted.directions
        ]

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """e · d, and that number times u_l."""
        units = positions * sum(point.width for point in self.points)
        return positions * components + units, units


@RuleCard(
    summary="forward gradients of its weights (no backward pass)", projects=False, refused=Refusal.OWN_PASSES
)
class WeightForwardGradient(Rule):
    """`fg-w`: all trained parameters are moved along one direction, the output layer's among them.

    The variance of an entry is |grad L|^2 + (dL/dw)^2, of the gradient of the whole batch.
    """

    name = "fg-w"
    requires = frozenset({Requires.ROOT_ERROR, Requires.FORWARD_MODE})
    cuts = False

    def state(self, placed: Placement) -> FeedbackState:
        check_forward_mode(placed.module, [], placed.example, self.name)
        return _WeightState((), placed.seed)


class _WeightState(GradientState):
    extra_passes = 1

    def observe(self, passed: ForwardPass) -> tuple[list[Tensor], Tensor]:
        stream = self.draws()
        directions = {
            name: normals_like(p, stream) for name, p in passed.module.named_parameters() if p.requires_grad
        }
        self.get_buffer("passes").add_(1)
        return list(directions.values()), parameter_derivative(passed, directions, self._random)

    def teach(
        self, error: Tensor, noted: tuple[list[Tensor], Tensor], device: ProjectionBackend | None
    ) -> list[Tensor]:
        directions, derivative = noted
        along = (error * derivative.reshape(error.shape)).sum()
        return [v * along.to(v.dtype) for v in directions]

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """e · d; one number teaches all."""
        return positions * components, positions
