"""What a feedback rule is: how the root error becomes a teaching signal at every feedback point.

A rule is an object of options. Put on a module it becomes a `FeedbackState`, which observes every forward pass and
teaches in the backward pass. Direct feedback is a `ProjectingRule`: its equation is `feedback`, and its state is made
for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, ClassVar

from torch import Tensor, nn

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal
from optical_dfa.feedback.points import ForwardPass, Point, default_points
from optical_dfa.feedback.state import FeedbackState, Placement


class Requires(StrEnum):
    """What a rule needs from a training step; the trainer refuses a rule that needs what it does not give."""

    ROOT_ERROR = "the error at the output"
    BACKWARD = "a layer-wise backward pass"
    TARGETS = "the targets"
    FORWARD_MODE = "an uncut forward-mode pass"
    SECOND_FORWARD = "a second forward pass"
    LOCAL_LOSSES = "local losses"


class Taught(Enum):
    """Where the signal of a feedback point is a gradient."""

    OUTPUT = "the point's output, after its nonlinearity"
    LAYER = "a layer's own output, before the nonlinearity, whose derivative is dropped on purpose"
    INPUT = "the point's input, before the nonlinearity that the point is"


class Rule(ABC):
    """A rule that teaches hidden layers.

    Attributes:
        name: the registered name.
        requires: what a training step must offer.
        cuts: whether the forward graph is cut at the feedback points.
        teaches_hidden: whether hidden layers learn at all.
        taught: where a point's signal is a gradient.
        refused: why no private release takes it; None where they do. Its update is then a sum of per-record
            contributions (THEORY T3), formed by what does not depend on the records.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Requires]] = frozenset({Requires.ROOT_ERROR})
    cuts: ClassVar[bool] = True
    teaches_hidden: ClassVar[bool] = True
    taught: ClassVar[Taught] = Taught.OUTPUT
    refused: ClassVar[Refusal | None] = None

    @property
    def from_error(self) -> bool:
        """Whether each hidden layer is taught from the output's error alone, so that workers may own layers."""
        return False

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

    @abstractmethod
    def state(self, placed: Placement) -> FeedbackState:
        """The rule on one module.

        Raises:
            UsageError: the rule is not defined on this module.
        """

    def check_error(self, error: Tensor) -> None:  # noqa: B027 - most rules read every error
        """Refuse errors of shape (rows, c) that the rule cannot read, by UsageError.

        Not asked where an answer may not depend on data: in private runs and compiled graphs, where such rows must be
        taught NaN.
        """

    def describe(self, points: Sequence[Point]) -> dict[str, Any]:
        """The options as they act on these points (JSON types), for checkpoints and the ledger."""
        return dict(vars(self))


class ProjectingRule(Rule):
    """A rule that sends the error, one record (or position) a row, through a projection device."""

    @property
    def from_error(self) -> bool:
        """Nothing else is looked at: neither the forward pass (`context`) nor what a state of its own keeps."""
        own = type(self)
        return own.context is ProjectingRule.context and own.state is ProjectingRule.state

    @property
    def apart(self) -> bool:
        """Whether `feedback` to a point is the same, whichever other points are asked for with it."""
        return False

    # ---- the equation

    def context(self, passed: ForwardPass) -> Tensor | None:
        """What `lift` needs to know of a forward pass: a public function of each record's input, records first."""
        return None

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        """What the device projects, shape (rows, device_inputs), from the errors of shape (rows, c)."""
        return error

    @abstractmethod
    def feedback(self, lifted: Tensor, points: Sequence[Point], device: ProjectionBackend) -> list[Tensor]:
        """The teaching signal at each point.

        Args:
            lifted: shape (rows, device_inputs), from dL_i/dz_i of one record (or position) a row, never divided by the
                batch size.
            points: the feedback points, in the order of their slices.
            device: projects.
        Returns:
            one tensor of shape (rows, n_l) a point.
        """

    # ---- the device

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

    def check_device(self, device: ProjectionBackend) -> None:
        """Refuse a device that cannot serve the rule, by UsageError."""

    # ---- on a module

    def state(self, placed: Placement) -> ProjectingState:
        return ProjectingState(self, placed.points)

    def work(self, points: Sequence[Point], components: int) -> tuple[int, int]:
        """(multiply-adds, words of errors received) of one record's (or position's) signals (`measure.costs`)."""
        work = components * sum(point.width for point in points)
        return work, work


class ProjectingState(FeedbackState):
    """A projecting rule on one module: it keeps nothing of its own."""

    def __init__(self, rule: ProjectingRule, points: Sequence[Point], seed: int | None = None) -> None:
        """
        Args:
            rule: whose equation it is.
            points: those that the output's error teaches.
            seed: as for `FeedbackState`.
        """
        super().__init__(points, seed)
        self.rule = rule

    def observe(self, passed: ForwardPass) -> Tensor | None:
        return self.rule.context(passed)

    def teach(self, error: Tensor, noted: Any, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        return self.signals(self.rule.lift(error, noted), device) if self.points else []

    def signals(self, error: Tensor, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        assert device is not None  # align() builds one wherever a point is taught
        return self.rule.feedback(error, self.points, device)

    def work(self, components: int, positions: int) -> tuple[int, int]:
        operations, words = self.rule.work(self.points, components)
        return positions * operations, positions * words
