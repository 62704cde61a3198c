"""PEPITA (Dellaferrera & Kreiman 2022, arXiv 2201.11665): the error perturbs the input of a second forward pass.

    dW_l = (h_l - h'_l)^T h'_{l-1},    dW_L = e^T h'_{L-1},    h' of the input x + e F^T,    F fixed and random

As the paper's equations have it, the output layer learns from the first pass's e (the authors' code takes the second
pass's). Each h_l is a feedback point's output, taught before its nonlinearity; no derivative enters anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from noise_models.errors import UsageError
from noise_models.places import RandomState
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.matrix import RandomMatrix
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rule import Requires, Rule
from optical_dfa.feedback.state import FeedbackState, GradientState, Placement, StateHook


@RuleCard(
    summary="PEPITA (a second forward pass of inputs moved by the error)",
    projects=False,
    refused=Refusal.OWN_PASSES,
)
class Pepita(Rule):
    """`pepita`: F's entries are uniform in ± scale · sqrt(6 / n_0), n_0 the size of an input."""

    name = "pepita"
    requires = frozenset({Requires.ROOT_ERROR, Requires.SECOND_FORWARD})

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

    def state(self, placed: Placement) -> FeedbackState:
        example = placed.example
        if len(example) != 1 or not example[0].is_floating_point() or placed.output.ndim > 2:
            raise UsageError(
                "rule pepita adds the error to the input: it takes modules of one floating-point input and one output "
                "a record; use rule dfa"
            )
        for point in placed.points:
            if getattr(placed.module.get_submodule(point.name), "inplace", False):
                raise UsageError(
                    f"feedback point {point.name} works in place, so that what it was given is lost; rule pepita takes "
                    "activations with inplace=False"
                )
        return _PepitaState(self, placed)


class _PointHook(StateHook):
    """Forward hook of a feedback point: what it was given, and what it made of it."""

    state: _PepitaState

    def __call__(self, part: nn.Module, args: Any, output: Tensor) -> None:
        if self.state.calls is not None:
            self.state.calls.append((args[0], output.detach()))


@dataclass
class _Seen:
    """The first pass: the outputs of its points, in call order, and torch's random state before it."""

    passed: ForwardPass
    before: list[Tensor]
    random: RandomState


class _PepitaState(GradientState):
    """Holds F, shape (n_0, c), with the scale of the equation."""

    extra_passes = 1

    def __init__(self, rule: Pepita, placed: Placement) -> None:
        super().__init__(placed.points, placed.seed)
        self.calls: list[tuple[Tensor, Tensor]] | None = None
        (x,) = placed.example
        size = math.prod(x.shape[1:])
        drawn = (
            RandomMatrix(placed.components, size, placed.seed, "uniform").values
            * math.sqrt(2.0 / size)
            * rule.scale
        )
        self.register_buffer("projection", drawn.to(x))

    def install(self, module: nn.Module) -> None:
        for point in self.points:
            module.get_submodule(point.name).register_forward_hook(_PointHook(self), prepend=True)

    def begin(self) -> None:
        super().begin()
        self.calls = []

    def end(self) -> None:
        self.calls = None

    def observe(self, passed: ForwardPass) -> _Seen:
        if len(passed.args) != 1 or passed.kwargs:
            raise UsageError("rule pepita takes the input as the module's one positional argument")
        return _Seen(passed, [h for _, h in self.calls or ()], self._random or RandomState())

    def teach(self, error: Tensor, noted: _Seen, device: ProjectionBackend | None) -> list[Tensor | None]:
        module, tape, x = noted.passed.module, noted.passed.tape, noted.passed.args[0].detach()
        shifted = x + (error @ self.get_buffer("projection").to(error.dtype).T).view_as(x).to(x.dtype)
        trained = [p for p in module.parameters() if p.requires_grad]
        buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
        self.calls, tape.kept = [], []
        try:
            with torch.enable_grad(), noted.random.again():  # the same masks
                output = functional_call(module, buffers, (shifted,))
            roots, signals = [output], [error.view_as(output).to(output.dtype)]
            for (given, after), h in zip(self.calls, noted.before, strict=True):
                if given.requires_grad:
                    roots.append(given)
                    signals.append((h - after).view_as(given))
        finally:
            self.calls = tape.kept = None
        return list(torch.autograd.grad(roots, trained, signals, allow_unused=True))

    def work(self, components: int, positions: int) -> tuple[int, int]:
        work = self.get_buffer("projection").numel()
        return work, work

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "calls": None}
