"""Forward gradients: a random direction times the loss's derivative along it, without any backward pass.

    fg-w (Baydin et al. 2022, arXiv 2202.08587):    dL/dW ~ (grad L · v) v,    v ~ N(0, I) for all weights at once
    fg-a (Ren et al. 2023, arXiv 2210.03310):       delta_l = (grad L_n · u_n) u_{l,n},    u ~ N(0, I) at every a_l

Both are unbiased. The derivative of the output along the direction is taken in the forward pass, d = J v; the loss's
is then e · d, so that these rules need no more of the loss than its gradient at the output, as all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.forward_mode import (
    check_forward_mode,
    directional_derivative,
    parameter_derivative,
)
from optical_dfa.feedback.points import Tape
from optical_dfa.feedback.rule import Point, Requires, StatefulRule
from optical_dfa.feedback.state import FeedbackState, GradientState, TeachingState

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@RuleCard(summary="forward gradients of its layers' outputs (no backward pass)", projects=False)
class ActivityForwardGradient(StatefulRule):
    """`fg-a`: a layer's own output is moved, before the nonlinearity, by a direction of each record's own.

    The layers of all points are moved at once. The output layer learns from the exact error. For one record the
    variance of dL/dW_ij is h_i^2 (sum_m |dL/da_m|^2 + (dL/da_j)^2).
    """

    name = "fg-a"
    requires = frozenset({Requires.ROOT_ERROR, Requires.FORWARD_MODE})
    before_activation = True
    extra_passes = 1

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        return [name for name, part in module.named_modules() if isinstance(part, _WEIGHTED)]

    def feedback_work(self, points: Sequence[Point], components: int) -> tuple[int, int]:
        """e · d, and that number times u_l."""
        units = sum(point.width for point in points)
        return components + units, units

    def state(
        self, module: nn.Module, points: Sequence[Point], output: Tensor, example: Sequence[Tensor], seed: int
    ) -> FeedbackState:
        check_forward_mode(module, [point.name for point in points], example, self.name, once=True)
        return _ActivityState(seed, len(points))


@dataclass
class _Moved:
    """Directions by point, records first, and how each record's output moves along them, shape (m, ...)."""

    directions: list[Tensor | None]
    derivative: Tensor


class _ActivityState(TeachingState):
    def __init__(self, seed: int, points: int) -> None:
        super().__init__(seed)
        self.points = points

    def observe(
        self,
        module: nn.Module,
        tape: Tape,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        kept: Sequence[tuple[int, Tensor]],
        output: Tensor,
    ) -> _Moved:
        stream = self.draws(output.device)
        drawn = [torch.randn(h.shape, generator=stream, dtype=h.dtype, device=h.device) for _, h in kept]
        self.get_buffer("passes").add_(1)
        derivative = torch.zeros_like(output)
        if kept and len(output):
            derivative = directional_derivative(module, tape, args, kwargs, drawn, self._random)
        directions: list[Tensor | None] = [None for _ in range(self.points)]
        for (index, _), u in zip(kept, drawn, strict=True):
            directions[index] = u
        return _Moved(directions, derivative.detach())

    def teach(self, error: Tensor, noted: _Moved | None) -> list[Tensor | None]:
        if noted is None:  # without a direction there is nothing to say
            return [None for _ in range(self.points)]
        records = len(noted.derivative)
        along = (error * noted.derivative.reshape(error.shape)).reshape(records, -1).sum(1)
        return [
            None if u is None else u * along.view(-1, *[1] * (u.ndim - 1)).to(u.dtype)
            for u in noted.directions
        ]


@RuleCard(summary="forward gradients of its weights (no backward pass)", projects=False)
class WeightForwardGradient(StatefulRule):
    """`fg-w`: all trained parameters are moved along one direction, the output layer's among them.

    The variance of an entry is |grad L|^2 + (dL/dw)^2, of the gradient of the whole batch.
    """

    name = "fg-w"
    requires = frozenset({Requires.ROOT_ERROR, Requires.FORWARD_MODE})
    cuts = False
    extra_passes = 1

    def feedback_work(self, points: Sequence[Point], components: int) -> tuple[int, int]:
        """e · d; one number teaches all."""
        return components, 1

    def state(
        self, module: nn.Module, points: Sequence[Point], output: Tensor, example: Sequence[Tensor], seed: int
    ) -> FeedbackState:
        check_forward_mode(module, [], example, self.name)
        return _WeightState(seed)


class _WeightState(GradientState):
    def observe(
        self, module: nn.Module, tape: Tape, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        output: Tensor = module(*args, **kwargs)
        stream = self.draws(output.device)
        directions = {
            name: torch.randn(p.shape, generator=stream, dtype=p.dtype, device=p.device)
            for name, p in module.named_parameters()
            if p.requires_grad
        }
        self.get_buffer("passes").add_(1)
        derivative = parameter_derivative(module, args, kwargs, directions, self._random)
        return output, (list(directions.values()), derivative)

    def gradients(self, module: nn.Module, tape: Tape, error: Tensor, noted: Any) -> list[Tensor | None]:
        directions, derivative = noted
        along = (error * derivative).sum()
        return [v * along.to(v.dtype) for v in directions]
