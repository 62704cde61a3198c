"""PEPITA (Dellaferrera & Kreiman 2022, arXiv 2201.11665): the error perturbs the input of a second forward pass.

    dW_l = (h_l - h'_l)^T h'_{l-1},    dW_L = e^T h'_{L-1},    h' of the input x + e F^T,    F fixed and random

As the paper's equations have it, the output layer learns from the first pass's e (the authors' code takes the second
pass's). Each h_l is a feedback point's output, taught before its nonlinearity; no derivative enters anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from noise_models.errors import UsageError
from optical_dfa.backends.matrix import RandomMatrix
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import Tape
from optical_dfa.feedback.rule import Point, Requires, StatefulRule
from optical_dfa.feedback.state import FeedbackState, GradientState, StateHook


@RuleCard(summary="PEPITA (a second forward pass of inputs moved by the error)", projects=False)
class Pepita(StatefulRule):
    """`pepita`: F's entries are uniform in ± scale · sqrt(6 / n_0), n_0 the size of an input."""

    name = "pepita"
    requires = frozenset({Requires.ROOT_ERROR, Requires.SECOND_FORWARD})
    extra_passes = 1

    def __init__(self, scale: float = 0.05) -> None:
        """
        Args:
            scale: size of F's entries.
        Raises:
            UsageError: scale is not positive and finite.
        """
        if not (isinstance(scale, int | float) and 0 < scale < math.inf):
            raise UsageError(f"rule option scale={scale!r}: it must be a positive number")
        self.scale = float(scale)

    def state(
        self, module: nn.Module, points: Sequence[Point], output: Tensor, example: Sequence[Tensor], seed: int
    ) -> FeedbackState:
        if len(example) != 1 or not example[0].is_floating_point() or output.ndim > 2:
            raise UsageError(
                "rule pepita adds the error to the input: it takes modules of one floating-point input and one output "
                "a record; use rule dfa"
            )
        for point in points:
            if getattr(module.get_submodule(point.name), "inplace", False):
                raise UsageError(
                    f"feedback point {point.name} works in place, so that what it was given is lost; rule pepita takes "
                    "activations with inplace=False"
                )
        return _PepitaState(self, points, example[0], output, seed)


class _PointHook(StateHook):
    """Forward hook of a feedback point: what it was given, and what it made of it."""

    state: _PepitaState

    def __call__(self, part: nn.Module, args: Any, output: Tensor) -> None:
        if self.state.calls is not None:
            self.state.calls.append((args[0], output.detach()))


class _PepitaState(GradientState):
    """Holds F, shape (n_0, c), with the scale of the equation."""

    def __init__(self, rule: Pepita, points: Sequence[Point], x: Tensor, output: Tensor, seed: int) -> None:
        super().__init__(seed)
        self.names = [point.name for point in points]
        self.calls: list[tuple[Tensor, Tensor]] | None = None
        size, components = math.prod(x.shape[1:]), output.shape[-1] if output.ndim > 1 else 1
        drawn = RandomMatrix(components, size, seed, "uniform").values * math.sqrt(2.0 / size) * rule.scale
        self.register_buffer("projection", drawn.to(x))

    def feedback_work(self) -> tuple[int, int]:
        work = self.get_buffer("projection").numel()
        return work, work

    def install(self, module: nn.Module) -> None:
        for name in self.names:
            module.get_submodule(name).register_forward_hook(_PointHook(self), prepend=True)

    def observe(
        self, module: nn.Module, tape: Tape, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        if len(args) != 1 or kwargs:
            raise UsageError("rule pepita takes the input as the module's one positional argument")
        self.calls = []
        try:
            output: Tensor = module(*args)
            before = [h for _, h in self.calls]
        finally:
            self.calls = None
        return output, (args[0].detach(), before, self._random)

    def gradients(self, module: nn.Module, tape: Tape, error: Tensor, noted: Any) -> list[Tensor | None]:
        x, before, random = noted
        rows = error.reshape(len(error), -1)
        shifted = x + (rows @ self.get_buffer("projection").to(rows.dtype).T).view_as(x).to(x.dtype)
        trained = [p for p in module.parameters() if p.requires_grad]
        buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        self.calls, tape.kept = [], []
        try:
            with torch.enable_grad(), random.again():  # the same masks
                output = functional_call(module, buffers, (shifted,))
            roots, signals = [output], [error.to(output.dtype)]
            for (given, after), h in zip(self.calls, before, strict=True):
                if given.requires_grad:
                    roots.append(given)
                    signals.append((h - after).view_as(given))
        finally:
            self.calls = tape.kept = None
        found = torch.autograd.grad(roots, trained, signals, allow_unused=True)
        return list(found)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "calls": None}
