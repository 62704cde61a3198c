"""Rules whose direct feedback matrices are learned: g_l = e B_l, with B_l changed after every backward pass.

    B_l <- B_l - rate · G_l        (or Adam on G_l),    G_l the rule's own pseudo-gradient

The signals of a step are formed from the B_l before the step's change.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

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
            rule.settle(first)
            register(self, key(point.name), first, rule.optimizer)

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
            gradient = self.rule.pseudo_gradient(found, part, error)
            count = int(self.get_buffer("updates"))
            descend(self, key(self.points[index].name), gradient, self.rule, count)
            self.rule.settle(found)


def register(state: nn.Module, name: str, first: Tensor, optimizer: str) -> None:
    """A buffer that learns, and Adam's two averages where it is used.

    Args:
        state: which has it.
        name: of the buffer.
        first: its first value.
        optimizer: a name of `OPTIMIZERS`.
    """
    state.register_buffer(name, first)
    if optimizer == "adam":
        state.register_buffer(f"{name}:mean", torch.zeros_like(first))
        state.register_buffer(f"{name}:square", torch.zeros_like(first))


def descend(state: nn.Module, name: str, gradient: Tensor, options: Learning, count: int) -> None:
    """One step of such a buffer down `gradient`, its `count`-th, counted from 1."""
    matrix = state.get_buffer(name)
    if options.optimizer == "sgd":
        matrix.sub_(gradient, alpha=options.rate)
        return
    mean = state.get_buffer(f"{name}:mean").lerp_(gradient, 1 - BETAS[0])
    square = state.get_buffer(f"{name}:square").lerp_(gradient.square(), 1 - BETAS[1])
    step = options.rate / (1 - BETAS[0] ** count)
    matrix.addcdiv_(mean, (square / (1 - BETAS[1] ** count)).sqrt_().add_(EPSILON), value=-step)


class Learning(Protocol):
    """How feedback matrices learn: options of the rules that have such.

    Attributes:
        optimizer: a name of `OPTIMIZERS`.
        rate: its learning rate.
    """

    optimizer: str
    rate: float


def checked_learning(
    optimizer: str, rate: float | None, decay: float, default_rate: float
) -> tuple[str, float, float]:
    """These options, the rate `default_rate` for sgd and 1e-4 for adam where none is given.

    Raises:
        UsageError: one out of its range.
    """
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"rule option optimizer={optimizer!r}: it must be one of {', '.join(OPTIMIZERS)}")
    chosen = (default_rate if optimizer == "sgd" else 1e-4) if rate is None else float(rate)
    if not 0 < chosen < math.inf:
        raise UsageError(f"rule option rate={rate!r}: it must be a positive number")
    if optimizer == "sgd" and chosen > 1:
        raise UsageError(f"rule option rate={rate!r}: with optimizer sgd it must be at most 1")
    if not 0 <= decay < math.inf:
        raise UsageError(f"rule option decay={decay!r}: it must be zero or a positive number")
    return optimizer, chosen, float(decay)


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
        self.optimizer, self.rate, self.decay = checked_learning(
            optimizer, rate, self.default_decay if decay is None else decay, self.default_rate
        )
        self.initial_scale = float(initial_scale)
        if not 0 <= self.initial_scale < math.inf:
            raise UsageError(
                f"rule option initial_scale={initial_scale!r}: it must be zero or a positive number"
            )

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

    def settle(self, matrix: Tensor) -> None:
        """What is done to B_l, in place, when it was drawn and after every change."""

    @abstractmethod
    def state(self, placed: Placement) -> LearnedState: ...
