"""What a feedback rule is: how the root error becomes a teaching signal at every feedback point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from torch import Tensor

from optical_dfa.backends.base import ProjectionBackend


class Requires(StrEnum):
    """What a rule needs from a training step; the trainer refuses a rule that needs what it does not give."""

    ROOT_ERROR = "the error at the output"
    BACKWARD = "a layer-wise backward pass"
    TARGETS = "the targets"
    FORWARD_MODE = "an uncut forward-mode pass"
    SECOND_FORWARD = "a second forward pass"
    LOCAL_LOSSES = "local losses"


@dataclass(frozen=True)
class Point:
    """One feedback point: a module whose output is cut from what follows and taught directly.

    Attributes:
        name: the module's dotted name.
        shape: its output's shape without the record axis (per position where the network's output has positions).
        start: first component of its slice of the device's frame.
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def width(self) -> int:
        """Number of units taught, n_l."""
        width = 1
        for size in self.shape:
            width *= size
        return width


class FeedbackRule(ABC):
    """A rule that teaches hidden layers.

    Attributes:
        name: the registered name.
        requires: what a training step must offer.
        cuts: whether the forward graph is cut at the feedback points.
        teaches_hidden: whether hidden layers learn at all.
        projects: whether the rule sends the error through a projection device.
        sums_over_records: whether the update is a sum of per-record contributions (THEORY T3); a private
            release refuses a rule without it.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Requires]]
    cuts: ClassVar[bool] = True
    teaches_hidden: ClassVar[bool] = True
    projects: ClassVar[bool] = False
    sums_over_records: ClassVar[bool] = True

    @abstractmethod
    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        """The teaching signal at each point.

        Args:
            error: shape (rows, c), dL_i/dz_i of one record (or position) a row, never divided by the batch size.
            points: the feedback points, in the order of their slices.
            backend: the device; None for rules that do not project.
        Returns:
            one tensor of shape (rows, n_l) a point, or None where the point learns nothing.
        """
