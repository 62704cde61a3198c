"""Forward direct feedback alignment (Bacho & Chu 2022, arXiv 2212.07282): B_l follows the network's own Jacobian.

    g_l = e B_l,    B_l <- (1 - a) B_l + a · mean_n d_n^T u_{l,n},    d_n = sum_l J_{l,n} u_{l,n},    u ~ N(0, I)

J_l = dy/dh_l, so d^T u_l is an unbiased estimate of J_l from one forward-mode pass over the uncut network. Its variance
is that of the paper's formula with every layer's noise in it: Var_ij = (sum_m |J_m[i]|^2 + J_l[i,j]^2) / N. The paper's
first versions call the same algorithm directional direct feedback alignment (`ddfa`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import normals_like
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.forward_mode import check_forward_mode, directional_derivative
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rule import Requires
from optical_dfa.feedback.rules.learned import LearnedFeedback, LearnedState, Lesson, rows_of
from optical_dfa.feedback.state import Placement

PERTURBED = ("all", "one")


@RuleCard(
    summary="forward direct feedback alignment (direct feedback that follows the network's Jacobian)",
    projects=False,
    refused=Refusal.LEARNS,
)
class ForwardDirectFeedbackAlignment(LearnedFeedback):
    """`fdfa`: with optimizer sgd, B_l is the moving average of the equation, with a = rate.

    The authors' code uses Adam on B_l - mean_n d_n^T u_{l,n} with rate 1e-4 instead (optimizer adam).
    """

    name = "fdfa"
    requires = frozenset({Requires.ROOT_ERROR, Requires.FORWARD_MODE})

    def __init__(
        self,
        perturb: str = "all",
        optimizer: str = "sgd",
        rate: float | None = None,
        decay: float | None = None,
        initial_scale: float = 0.0,
    ) -> None:
        """
        Args:
            perturb: "all" points in every step, or "one" point a step, in turn, whose matrix alone then changes;
                its estimate is free of the other points' noise.
            optimizer, rate, decay, initial_scale: as for every learned feedback.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(optimizer, rate, decay, initial_scale)
        if perturb not in PERTURBED:
            raise UsageError(f"rule option perturb={perturb!r}: it must be one of {', '.join(PERTURBED)}")
        self.perturb = perturb

    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        return matrix - part

    def state(self, placed: Placement) -> LearnedState:
        check_forward_mode(placed.module, [p.name for p in placed.points], placed.example, self.name)
        return EstimatingState(self, placed)


class EstimatingState(LearnedState):
    """Notes an estimate of J_l for each point that was moved."""

    rule: ForwardDirectFeedbackAlignment
    extra_passes = 1

    def observe(self, passed: ForwardPass) -> Lesson:
        passes, kept, output = self.get_buffer("passes"), passed.kept, passed.output
        moved = range(len(self.points))
        if self.rule.perturb == "one" and self.points:
            turn = int(passes) % len(self.points)
            moved = range(turn, turn + 1)
        directions: list[Tensor | None] = [None for _ in kept]
        if kept and len(output):
            stream = self.draws()
            directions = [normals_like(h, stream) if index in moved else None for index, h in kept]
        passes.add_(1)
        noted = Lesson({})
        if all(u is None for u in directions):
            return noted
        derivative = directional_derivative(passed, directions, self._random)
        for index in moved:
            point, matrix = self.points[index], self.matrix(self.points[index])
            rows = derivative.reshape(-1, len(matrix)).to(matrix.dtype)
            own = [u for (i, _), u in zip(kept, directions, strict=True) if i == index and u is not None]
            products = [rows.T @ u.to(matrix.dtype) for u in rows_of(own, point.width, len(rows))]
            noted.parts[index] = torch.stack(products).sum(0).div_(len(products) * len(rows))
        return noted
