"""Rules whose direct feedback matrices are learned: g_l = e B_l, with B_l changed after every backward pass.

    B_l <- B_l - rate · G_l        (or Adam on G_l),    G_l the rule's own pseudo-gradient

The signals of a step are formed from the B_l before the step's change.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.matrix import RandomMatrix
from optical_dfa.feedback.card import Refusal
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rule import Rule
from optical_dfa.feedback.state import DrawingState, Placement, key

OPTIMIZERS = ("sgd", "adam")
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's usual ones (Kingma & Ba 2015)


@dataclass
class Lesson:
    """Of one forward pass.

    Attributes:
        parts: what the rule noted of each point that learns from this pass, by the point's index.
        learned: whether a backward pass has used it: one forward pass teaches the matrices once.
    """

    parts: dict[int, Tensor]
    learned: bool = False


def rows_of(calls: Sequence[Tensor], width: int, rows: int) -> list[Tensor]:
    """The outputs of a point, as rows that match those of the output; one call a position makes one matrix of all."""
    if len(calls) > 1 and sum(len(call) for call in calls) == rows != len(calls[0]):
        calls = [torch.stack(list(calls), 1)]
    return [call.reshape(-1, width) for call in calls]


class LearnedState(DrawingState):
    """B_l, shape (c, columns), by the point's name, and Adam's two averages where it is used."""

    def __init__(self, rule: LearnedFeedback, placed: Placement) -> None:
        """
        Args:
            rule: whose matrices these are.
            placed: on which module; the seed is of the first matrices and of the directions.
        """
        super().__init__(placed.points, placed.seed)
        self.rule = rule
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        components, output = placed.components, placed.output
        dtype = torch.promote_types(output.dtype, torch.float32)
        for index, point in enumerate(self.points):
            columns = rule.columns(point)
            first = torch.zeros(components, columns, dtype=dtype, device=output.device)
            if rule.initial_scale:
                drawn = RandomMatrix(components, columns, placed.seed + index, "normal").values.T
                first.copy_(drawn).mul_(rule.initial_scale / math.sqrt(columns))
            self.register_buffer(key(point.name), first)
            if rule.optimizer == "adam":
                self.register_buffer(key(point.name) + ":mean", torch.zeros_like(first))
                self.register_buffer(key(point.name) + ":square", torch.zeros_like(first))

    def matrix(self, point: Point) -> Tensor:
        """B_l of a point, shape (c, columns), as it is now."""
        return self.get_buffer(key(point.name))

    def signals(self, error: Tensor, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        return [error @ self.matrix(point).to(error.dtype) for point in self.points]

    def teach(
        self, error: Tensor, noted: Lesson, device: ProjectionBackend | None
    ) -> Sequence[Tensor | None]:
        signals = self.signals(error, device)
        if len(error):
            self.learn(noted, dict.fromkeys(noted.parts, error))
        return signals

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """A dense projection, and as many multiply-adds for what B_l learns from the record."""
        work = positions * components * sum(point.width for point in self.points)
        return 2 * work, work

    def learn(self, noted: Lesson, errors: Mapping[int, Tensor]) -> None:
        """Change the matrices, once for a forward pass.

        Args:
            noted: of that pass.
            errors: what each learns from beside its part, by the point's index, shape (rows, c).
        """
        if noted.learned:
            return
        noted.learned = True
        self.get_buffer("updates").add_(1)
        for index, part in noted.parts.items():
            found = self.matrix(self.points[index])
            error = errors[index].to(found.dtype)
            self._descend(self.points[index], self.rule.pseudo_gradient(found, part, error))

    def _descend(self, point: Point, gradient: Tensor) -> None:
        rule, matrix = self.rule, self.matrix(point)
        if rule.optimizer == "sgd":
            matrix.sub_(gradient, alpha=rule.rate)
            return
        mean = self.get_buffer(key(point.name) + ":mean").lerp_(gradient, 1 - BETAS[0])
        square = self.get_buffer(key(point.name) + ":square").lerp_(gradient.square(), 1 - BETAS[1])
        count = int(self.get_buffer("updates"))
        step = rule.rate / (1 - BETAS[0] ** count)
        matrix.addcdiv_(mean, (square / (1 - BETAS[1] ** count)).sqrt_().add_(EPSILON), value=-step)


class LearnedFeedback(Rule):
    """A rule with learned direct feedback; its options are the same for all.

    Attributes:
        default_rate: of optimizer sgd, where the user gives none.
        default_decay: likewise lambda.
    """

    refused = Refusal.LEARNS
    default_rate: ClassVar[float] = 0.01
    default_decay: ClassVar[float] = 0.0

    def __init__(
        self,
        optimizer: str = "sgd",
        rate: float | None = None,
        decay: float | None = None,
        initial_scale: float = 0.0,
    ) -> None:
        """
        Args:
            optimizer: of B_l, "sgd" or "adam".
            rate: its learning rate; by default `default_rate` for sgd and 1e-4 for adam.
            decay: lambda, which adds lambda B_l to the pseudo-gradient.
            initial_scale: standard deviation of the first B_l's entries times sqrt(n_l). At 0 hidden layers learn
                nothing in the first step.
        Raises:
            UsageError: an option out of its range.
        """
        if optimizer not in OPTIMIZERS:
            raise UsageError(
                f"rule option optimizer={optimizer!r}: it must be one of {', '.join(OPTIMIZERS)}"
            )
        self.optimizer = optimizer
        self.rate = (self.default_rate if optimizer == "sgd" else 1e-4) if rate is None else float(rate)
        self.decay = self.default_decay if decay is None else float(decay)
        self.initial_scale = float(initial_scale)
        if not 0 < self.rate < math.inf:
            raise UsageError(f"rule option rate={rate!r}: it must be a positive number")
        if optimizer == "sgd" and self.rate > 1:
            raise UsageError(f"rule option rate={rate!r}: with optimizer sgd it must be at most 1")
        for option, value in (("decay", self.decay), ("initial_scale", self.initial_scale)):
            if not 0 <= value < math.inf:
                raise UsageError(f"rule option {option}={value!r}: it must be zero or a positive number")

    def columns(self, point: Point) -> int:
        """Columns of the point's matrix: n_l, unless the rule says otherwise."""
        return point.width

    def pseudo_gradient(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        """G_l with its decay, shape (c, columns).

        Args:
            matrix: B_l.
            part: what `Lesson` has of the point.
            error: shape (rows, c), of single records.
        """
        found = self.difference(matrix, part, error)
        return found.add_(matrix, alpha=self.decay) if self.decay else found

    @abstractmethod
    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        """G_l without its decay, as a new tensor."""

    @abstractmethod
    def state(self, placed: Placement) -> LearnedState: ...
