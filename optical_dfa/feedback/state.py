"""What a rule keeps beside its options: matrices of its own, learned or layer by layer, saved with the module."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from noise_models.errors import UsageError


class FeedbackState(nn.Module, ABC):
    """Buffers of a rule on one aligned module: they are in its `state_dict`, and follow it to another device.

    Made by `FeedbackRule.state`. Buffers, not parameters, so that the user's optimizer leaves them alone.
    """

    def __init__(self, seed: int) -> None:
        """
        Args:
            seed: of all the state draws; 0 to 2^63 - 1.
        """
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))

    @abstractmethod
    def install(self, module: nn.Module) -> None:
        """Put the rule's hooks on the plain module."""

    @abstractmethod
    def remove(self, module: nn.Module) -> None:
        """Take them off again."""

    def feedback_work(self) -> tuple[int, int]:
        """(multiply-adds, words of errors received) of what it does for one record, by the rule of `costs`."""
        return 0, 0

    def begin(self) -> None:
        """A forward pass with gradients begins."""

    def end(self) -> None:
        """It is over, or has failed."""


def key(name: str) -> str:
    """The name of a buffer for the module called `name`; torch keeps the dot for itself."""
    return name.replace(".", "/") or "module"


def called_directly(name: str) -> UsageError:
    """The error of a call that goes around the aligned module."""
    return UsageError(
        f"the module inside an aligned module was called directly (at {name}); call the aligned module, or "
        "unalign() it first"
    )
