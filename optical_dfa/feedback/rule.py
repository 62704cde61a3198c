"""What a feedback rule is: how the root error becomes a teaching signal at every feedback point."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from torch import Tensor, nn

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.points import default_points
from optical_dfa.feedback.state import FeedbackState


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
        outputs: number of components of that slice.
        gain: the feedback scale derived for it (`optical_dfa.feedback.gains`), for rules whose scale was not given.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    outputs: int
    gain: float = 1.0

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
        before_activation: whether a point is a layer's own output, before the nonlinearity, whose derivative is then
            dropped on purpose.
        teaches_inputs: whether a point's signal is one for its input, before the nonlinearity that the point is.
        sums_over_records: whether the update is a sum of per-record contributions (THEORY T3); a private
            release refuses a rule without it.
        fixed_matrix: whether a signal is B_l e with B_l fixed, without anything done to e first. Each class says so of
            itself: it is not inherited.
        learns_feedback: whether the rule changes its feedback as it teaches (learned matrices, as in forward-mode
            DFA or Kolen-Pollack). What it learns comes from private records, so a private release refuses it until
            those matrices are parameters of the module, in the clipped and noised stack (docs/threat-model.md).
        captured: whether private capture can record what it teaches.
        extra_passes: forward-mode or second forward passes of a training step.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Requires]]
    cuts: ClassVar[bool] = True
    teaches_hidden: ClassVar[bool] = True
    projects: ClassVar[bool] = False
    before_activation: ClassVar[bool] = False
    teaches_inputs: ClassVar[bool] = False
    sums_over_records: ClassVar[bool] = True
    fixed_matrix: ClassVar[bool] = False
    learns_feedback: ClassVar[bool] = False
    captured: ClassVar[bool] = True
    extra_passes: ClassVar[int] = 0

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        """Names of the modules that are cut unless the user names others.

        Args:
            module: the module to train.
            example: inputs of the shapes it takes, for rules that must see it run.
        """
        return default_points(module)

    def backpropagates(self, upper: Tensor, lower: Tensor) -> bool:
        """Whether the gradient is meant to go back through the matrix `upper` into `lower` in one segment."""
        return False

    def device_inputs(self, components: int) -> int:
        """Components that the device projects where the network's output has so many."""
        return components

    def layout(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
        """(first component, number of components) that points of these shapes read of the device's frame.

        By default one component a unit, one point after the other.
        """
        found, start = [], 0
        for shape in shapes:
            found.append((start, math.prod(shape)))
            start += math.prod(shape)
        return found

    def taught_from_output(self, points: Sequence[Point]) -> list[Point]:
        """Those of the points that the network's error teaches; the others are left to the rule's `state`."""
        return list(points)

    def device_options(
        self, backend: str, given: Mapping[str, Any], outputs: Sequence[int]
    ) -> dict[str, Any]:
        """The options with which a device given by name is built.

        Args:
            backend: its name.
            given: the user's own options.
            outputs: numbers of components that are one layer's matrix, in the order of the frame.
        Raises:
            UsageError: the device cannot be as the rule needs it.
        """
        return dict(given)

    def check_device(self, device: ProjectionBackend) -> None:  # noqa: B027 - most rules take any
        """Refuse a device that cannot serve the rule, by UsageError."""

    def context(self, inputs: Sequence[object], output: Tensor) -> Tensor | None:
        """What `lift` needs to know of a forward pass: a public function of each record's input, records first.

        Args:
            inputs: the module's positional arguments.
            output: what it returned.
        """
        return None

    def check_error(self, error: Tensor) -> None:  # noqa: B027 - most rules read every error
        """Refuse errors of shape (rows, c) that the rule cannot read, by UsageError.

        Not asked where an answer may not depend on data: in private runs and compiled graphs. `lift` then makes such
        rows NaN.
        """

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        """What the device projects, shape (rows, device_inputs), from the errors of shape (rows, c)."""
        return error

    def state(
        self, module: nn.Module, points: Sequence[Point], output: Tensor, example: Sequence[Tensor], seed: int
    ) -> FeedbackState | None:
        """What the rule keeps of its own on this module, beside its options; None where it keeps nothing.

        Args:
            module: the plain module.
            points: its feedback points.
            output: what it returns for `example`.
            example: two random records.
            seed: of what the rule draws.
        Raises:
            UsageError: the rule is not defined on this module.
        """
        return None

    def feedback_work(self, points: Sequence[Point], components: int) -> tuple[int, int]:
        """(multiply-adds, words of errors received) of one record's teaching signals, by the rule of `costs`.

        Args:
            points: the feedback points.
            components: c, of one record (or position).
        """
        work = components * sum(point.width for point in points) if self.projects else 0
        return work, work

    def describe(self, points: Sequence[Point]) -> dict[str, Any]:
        """The options as they act on these points (JSON types), for checkpoints and the ledger."""
        return dict(vars(self))

    @abstractmethod
    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        """The teaching signal at each point.

        Args:
            error: shape (rows, c), dL_i/dz_i of one record (or position) a row, never divided by the batch size; lifted
                by `lift`.
            points: the feedback points, in the order of their slices.
            backend: the device; None for rules that do not project.
        Returns:
            one tensor of shape (rows, n_l) a point, or None where the point learns nothing.
        """


class StatefulRule(FeedbackRule):
    """A rule whose state teaches: nothing is projected, and no private release takes it."""

    captured = False

    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        raise RuntimeError(f"rule {self.name} teaches from the state of an aligned module")
