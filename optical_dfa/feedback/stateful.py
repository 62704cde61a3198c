"""Rules that teach from a state of their own, and states that form the parameters' gradients themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.points import Tape
from optical_dfa.feedback.rule import FeedbackRule, Point
from optical_dfa.feedback.state import PassState

if TYPE_CHECKING:
    from optical_dfa.feedback.aligned import AlignedModule


class StatefulRule(FeedbackRule):
    """A rule whose state teaches: nothing is projected, and no private release takes it."""

    captured = False

    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        raise RuntimeError(f"rule {self.name} teaches from the state of an aligned module")


class GradientState(PassState):
    """A state that forms every trained parameter's gradient itself, from the error at the output."""

    @abstractmethod
    def observe(
        self, module: nn.Module, tape: Tape, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Any]:
        """The module's output, and what `gradients` needs to know of the pass; called without gradients.

        Args:
            module, tape: the plain module, and the tape of its points' hooks.
            args, kwargs: its inputs.
        """

    @abstractmethod
    def gradients(self, module: nn.Module, tape: Tape, error: Tensor, noted: Any) -> list[Tensor | None]:
        """A gradient for each parameter that requires one, in the module's order, summed over the records.

        Args:
            module, tape: as above.
            error: shaped like the output, of single records.
            noted: from `observe`.
        """

    def run(self, aligned: AlignedModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The output, whose backward pass is `gradients`."""
        self.begin()
        with torch.no_grad():
            output, noted = self.observe(aligned.module, aligned._tape, args, kwargs)
        trained = [p for p in aligned.module.parameters() if p.requires_grad]
        return _Gradients.apply(aligned, noted, output, *trained)  # type: ignore[no-any-return, no-untyped-call]


class _Gradients(torch.autograd.Function):
    """Identity on the output; its backward hands each parameter its gradient."""

    @staticmethod
    def forward(ctx: Any, aligned: AlignedModule, noted: Any, output: Tensor, *trained: Tensor) -> Tensor:
        ctx.aligned, ctx.noted = aligned, noted
        return output.detach()  # not a view, which the loss could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        aligned = ctx.aligned
        records = len(grad) if aligned.loss_reduction == "mean" else 1
        found = aligned.state.gradients(aligned.module, aligned._tape, grad * records, ctx.noted)
        return (None, None, None, *(None if g is None else g / max(1, records) for g in found))
