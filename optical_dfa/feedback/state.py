"""What a rule keeps beside its options: matrices of its own, learned or layer by layer, saved with the module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.feedback.forward_mode import RandomState
from optical_dfa.feedback.points import Tape, recomputed, take_off


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


class FeedbackState(nn.Module, ABC):
    """Buffers of a rule on one aligned module: they are in its `state_dict`, and follow it to another device.

    Made by `FeedbackRule.state`. Buffers, not parameters, so that the user's optimizer leaves them alone.

    Attributes:
        compiles: whether `torch.compile` may trace the passes; otherwise it leaves its graph for them, and
            `fullgraph=True` is not for the rule.
        teachers: by root of the backward pass, whose error teaches it, where that is not the network's output.
    """

    compiles: bool = True
    teachers: dict[str, str]

    def __init__(self, seed: int) -> None:
        """
        Args:
            seed: of all the state draws; 0 to 2^63 - 1.
        """
        super().__init__()
        self.teachers = {}
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))

    @abstractmethod
    def install(self, module: nn.Module) -> None:
        """Put the rule's hooks, each a `StateHook`, on the plain module."""

    def remove(self, module: nn.Module) -> None:
        """Take them off again; others' stay."""
        take_off(module, lambda hook: isinstance(hook, StateHook) and hook.state is self)

    def feedback_work(self) -> tuple[int, int]:
        """(multiply-adds, words of errors received) of what it does for one record, by the rule of `costs`."""
        return 0, 0

    def begin(self) -> None:
        """A forward pass with gradients begins."""

    def end(self) -> None:
        """It is over, or has failed."""


class PassState(FeedbackState):
    """A state that takes part in every forward and backward pass, with random numbers of its own.

    Everything happens inside the aligned module's forward pass and in `loss.backward()`, so the user's loop is the
    usual one.
    """

    compiles = False

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._random: RandomState | None = None

    def install(self, module: nn.Module) -> None:
        """Nothing: the feedback points' own hooks serve."""

    def begin(self) -> None:
        self._random = RandomState()  # a second pass over the batch draws the same masks

    def draws(self, device: torch.device) -> torch.Generator:
        """The stream of this forward pass: the same after a restart from the same `state_dict`."""
        seed = derive_seed(
            int(self.get_buffer("seed")), f"directions of pass {int(self.get_buffer('passes'))}"
        )
        return torch.Generator(device=device).manual_seed(seed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_random": None}


class TeachingState(PassState):
    """A state that forms the teaching signals itself, from what it learned or noted of the forward pass."""

    @abstractmethod
    def observe(
        self,
        module: nn.Module,
        tape: Tape,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        kept: Sequence[tuple[int, Tensor]],
        output: Tensor,
    ) -> Any:
        """What the backward pass needs to know of a forward pass that has just been made.

        Args:
            module, tape: the plain module, and the tape of its points' hooks.
            args, kwargs: its inputs.
            kept: (index of the point, its output), in call order.
            output: what it returned.
        """

    @abstractmethod
    def teach(self, error: Tensor, noted: Any) -> list[Tensor | None]:
        """The teaching signal at each point, as `FeedbackRule.feedback` gives it; then the state may learn.

        Args:
            error: shape (rows, c), of single records.
            noted: from `observe`; None asks for the signals alone.
        """


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
