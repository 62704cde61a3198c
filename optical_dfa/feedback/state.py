"""What a rule is on one aligned module: it observes every forward pass, and teaches in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.places import RandomState
from noise_models.randomness.generator import derive_seed
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.points import ForwardPass, Point, call_order, recomputed, take_off


@dataclass(frozen=True)
class Placement:
    """A module on which a rule is put.

    Attributes:
        module: the plain module.
        points: its feedback points.
        output: what it returns for `example`.
        example: two random records.
        seed: of what the rule draws; 0 to 2^63 - 1.
    """

    module: nn.Module
    points: Sequence[Point]
    output: Tensor
    example: Sequence[Tensor]
    seed: int

    @property
    def components(self) -> int:
        """c, of one record's (or position's) output."""
        return components(self.output)


class StateHook:
    """Base of the forward hooks and pre-hooks that a state puts on a module: `FeedbackState.remove` finds them by it.

    Classes, not closures, so that an aligned module can be deep-copied and pickled.
    """

    def __init__(self, state: Any, name: str = "") -> None:
        """
        Args:
            state: whose hook it is.
            name: of the module that it is put on, where the hook needs it.
        """
        self.state = state
        self.name = name


class FeedbackState(nn.Module):
    """A rule on one module; by itself it teaches nothing at the points.

    Its buffers are in the aligned module's `state_dict`, and follow it to another device. Buffers, not parameters, so
    that the user's optimizer leaves them alone.

    Attributes:
        points: those that the output's error teaches.
        compiles: whether `torch.compile` may trace the passes; otherwise it leaves its graph for them, and
            `fullgraph=True` is not for the rule.
        differentiates: whether forward passes keep what autograd needs.
        extra_passes: forward-mode or second forward passes of a training step.
        teachers: by root of the backward pass, whose error teaches it, where that is not the network's output.
    """

    compiles: bool = True
    differentiates: bool = True
    extra_passes: int = 0
    teachers: dict[str, str]

    def __init__(self, points: Sequence[Point], seed: int | None = None) -> None:
        """
        Args:
            points: those that the output's error teaches.
            seed: of all the state draws; None where it draws nothing.
        """
        super().__init__()
        self.points = tuple(points)
        self.teachers = {}
        if seed is not None:
            self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))

    def acting(self, options: dict[str, Any]) -> dict[str, Any]:
        """The rule's options as they act on this module (JSON types), from those that act on its points."""
        return options

    def install(self, module: nn.Module) -> None:
        """Put hooks, each a `StateHook`, on the plain module."""

    def remove(self, module: nn.Module) -> None:
        """Take them off again; others' stay."""
        take_off(module, lambda hook: isinstance(hook, StateHook) and hook.state is self)

    def begin(self) -> None:
        """A forward pass with gradients begins."""

    def observe(self, passed: ForwardPass) -> Any:
        """What the backward pass needs to know of a forward pass; in a private run None, or a tensor, records first."""
        return None

    def end(self) -> None:
        """The forward pass is over and was observed, or has failed."""

    def pupils(self, passed: ForwardPass) -> list[tuple[int, Tensor]]:
        """What `teach` gives gradients to, each with its place in what that returns: the points' outputs."""
        return list(passed.kept)

    def teach(self, error: Tensor, noted: Any, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        """The teaching signal at each point; then the state may learn.

        Args:
            error: shape (rows, c), dL_i/dz_i of one record (or position) a row, never divided by the batch size.
            noted: from `observe`.
            device: of a rule that projects.
        Returns:
            one tensor of shape (rows, n_l) a point, or None where it learns nothing; of a state with other `pupils`,
            one for each of these.
        """
        return [None for _ in self.points]

    def signals(self, error: Tensor, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        """What errors teach at each point, learning nothing; None where they alone do not tell.

        Args:
            error: shape (rows, c); of a rule that projects, what it projects of them.
            device: of such a rule.
        """
        return [None for _ in self.points]

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """(multiply-adds, words of errors received) of what is done for one record (`measure.costs`).

        Args:
            components: c.
            positions: of a record's output.
        """
        return 0, 0


class DrawingState(FeedbackState):
    """A state that draws in every pass, from a stream of its own.

    Everything happens inside the aligned module's forward pass and in `loss.backward()`, so the user's loop is the
    usual one.
    """

    compiles = False

    def __init__(self, points: Sequence[Point], seed: int) -> None:
        super().__init__(points, seed)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._random: RandomState | None = None

    def begin(self) -> None:
        self._random = RandomState()  # a second pass over the batch draws the same masks

    def draws(self) -> torch.Generator:
        """The stream of this forward pass: the same after a restart from the same `state_dict`."""
        seed = derive_seed(
            int(self.get_buffer("seed")), f"directions of pass {int(self.get_buffer('passes'))}"
        )
        return torch.Generator().manual_seed(seed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_random": None}


class GradientState(DrawingState):
    """A state that forms every trained parameter's gradient itself, from a pass without autograd.

    `teach` returns a gradient for each parameter that requires one, in the module's order, summed over the records.
    """

    differentiates = False

    def pupils(self, passed: ForwardPass) -> list[tuple[int, Tensor]]:
        return list(enumerate(p for p in passed.module.parameters() if p.requires_grad))


def components(output: Tensor) -> int:
    """c: the size of the output's last axis, 1 for an output of one number a record."""
    return output.shape[-1] if output.ndim > 1 else 1


def key(name: str) -> str:
    """The name of a buffer for the module called `name`; torch keeps the dot for itself."""
    return name.replace(".", "/") or "module"


def called_directly(name: str) -> UsageError:
    """The error of a call that goes around the aligned module, or comes again in the backward pass."""
    if recomputed():
        return UsageError(
            f"activation checkpointing calls {name} again in the backward pass, which this rule does not follow; leave "
            "the checkpointing out, or use rule dfa"
        )
    return UsageError(
        f"the module inside an aligned module was called directly (at {name}); call the aligned module, or "
        "unalign() it first"
    )


def check_once(placed: Placement, rule: str) -> None:
    """Every point must be called once for a record, or once for each of its positions.

    Raises:
        UsageError: naming the point.
    """
    called = call_order(placed.module, placed.example, nn.Module)
    for point in placed.points:
        count = called.count(point.name)
        if count != 1 and (placed.output.ndim != 3 or count != placed.output.shape[1]):
            raise UsageError(
                f"feedback point {point.name} is called {count} times in a forward pass; rule {rule} takes points that "
                "are called once, or once for each position; use rule dfa"
            )
