"""Gradient-aligned projected error (GrAPE; Caillon, Fagnou, Delattre & Allauzen, ICLR 2026): B_l turns to the Jacobian.

    g_l = s_l e B_l,    B_l <- B_l - rate · d(1 - cos(B_l, E_l))/dB_l,    then each row of B_l is divided by its norm
    E_l = mean_n d_n u_{l,n}^T,    d_n = sum_l J_{l,n} u_{l,n},    u ~ N(0, I)

E_l estimates J_l = dy/dh_l by one forward-mode pass, as under `fdfa`, of which this is the kin that follows J_l's
direction alone. In between, every `exact_every`-th batch is taught exactly ("anchor steps").

Published, backpropagation / DFA / GrAPE / GrAPE with one exact batch an epoch: CIFAR-10 CNN 74.7 / 69.3 / 73.1 / -;
ResNet-20 on CIFAR-100 68.7 / 20.9 / 24.3 / 64.8; VGG-16 70.3 / 1.0 / 32.4 / 56.9 %; language model, perplexity 29.8 /
52.0 / 42.3 / 33.1 (at second hand).

[R] The equation is at second hand, and no code was at hand. Ours are: a direction of each record's own, whose mean over
a batch is taken before the cosine; all points moved at once; that what is normalised are the columns of B_l as it is
written for column vectors (n_l by c), one an output component; and the size s_l, that of `dfa`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import RandomState
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.forward_mode import check_forward_mode, exact_signals
from optical_dfa.feedback.points import ForwardPass, Point
from optical_dfa.feedback.rules.fdfa import EstimatingState, ForwardDirectFeedbackAlignment
from optical_dfa.feedback.rules.learned import Lesson
from optical_dfa.feedback.state import Placement, check_once


@RuleCard(
    summary="gradient-aligned projected error (direct feedback that turns to the network's Jacobian; a reconstruction)",
    projects=False,
    refused=Refusal.LEARNS,
)
class GradientAlignedProjectedError(ForwardDirectFeedbackAlignment):
    """`grape`: B_l, shape (c, n_l), starts random with rows of norm 1; its direction alone learns. [R]

    With optimizer sgd a step moves B_l / |B_l| by rate / c of the way to the estimate's direction, less noise.
    """

    name = "grape"
    default_rate = 0.1

    def __init__(
        self,
        exact_every: int = 0,
        scale: float | None = None,
        perturb: str = "all",
        optimizer: str = "sgd",
        rate: float | None = None,
    ) -> None:
        """
        Args:
            exact_every: T: every T-th forward pass is taught by backpropagation's own signals, from a second pass
                that is not cut; 0 is never. The steps of an epoch make it one an epoch.
            scale: |g_l| ~ scale |e|, the same for all points; None derives one for each, as for `dfa`.
            perturb, optimizer, rate: as for `fdfa`.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(perturb, optimizer, rate, decay=0.0, initial_scale=1.0)
        if exact_every < 0:
            raise UsageError(f"rule option exact_every={exact_every}: it must be 0 or a number of steps")
        if scale is not None and not 0 < scale < math.inf:
            raise UsageError(f"rule option scale={scale!r}: it must be a positive number")
        self.exact_every, self.scale = exact_every, scale

    def describe(self, points: Sequence[Point]) -> dict[str, Any]:
        """The options; matrices whose rows have norm 1 have no first size, and do not decay."""
        options = super().describe(points)
        return {name: value for name, value in options.items() if name not in ("initial_scale", "decay")}

    def size(self, point: Point) -> float:
        """s_l."""
        return point.gain if self.scale is None else self.scale

    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        """d(1 - cos(B, E))/dB = (cos B/|B| - E/|E|) / |B|; 0 where E is."""
        own, found = matrix.norm(), part.norm()
        if not found > 0:
            return torch.zeros_like(matrix)
        cosine = (matrix * part).sum() / (own * found)
        gradient: Tensor = (matrix * (cosine / own) - part / found) / own
        return gradient

    def settle(self, matrix: Tensor) -> None:
        matrix.div_(matrix.norm(dim=1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny))

    def state(self, placed: Placement) -> GrapeState:
        if self.exact_every:
            check_once(placed, self.name)
        check_forward_mode(placed.module, [p.name for p in placed.points], placed.example, self.name)
        return GrapeState(self, placed)


@dataclass
class _Anchored(Lesson):
    """Of a pass that is taught exactly: the pass, and torch's random state before it."""

    passed: ForwardPass | None = None
    random: RandomState | None = None


class GrapeState(EstimatingState):
    """The estimates are `fdfa`'s; the signals have a size of their own, or are exact."""

    rule: GradientAlignedProjectedError

    def observe(self, passed: ForwardPass) -> Lesson:
        noted = super().observe(passed)
        every = self.rule.exact_every
        if every and int(self.get_buffer("passes")) % every == 0:
            return _Anchored(noted.parts, passed=passed, random=self._random)
        return noted

    def signals(self, error: Tensor, device: ProjectionBackend | None) -> list[Tensor | None]:
        return [
            None if found is None else found * self.rule.size(point)
            for found, point in zip(super().signals(error, device), self.points, strict=True)
        ]

    def teach(
        self, error: Tensor, noted: Lesson, device: ProjectionBackend | None
    ) -> Sequence[Tensor | None]:
        signals = super().teach(error, noted, device)
        if not (isinstance(noted, _Anchored) and noted.passed is not None and len(error)):
            return signals
        exact = exact_signals(noted.passed, error, noted.random)
        found: list[Tensor | None] = []
        for index in range(len(self.points)):
            calls = [g for (i, _), g in zip(noted.passed.kept, exact, strict=True) if i == index]
            found.append(torch.stack(calls, 1) if len(calls) > 1 else calls[0] if calls else None)
        return found
