"""Sparse direct feedback to recurrent networks (Han et al. 2020, arXiv 2006.12830).

[R] A reconstruction from the abstract, which says "sparse matrix multiplication"; no code of the authors is known.

    g_h(t) = (S ∘ B) e_t,    S ~ Bernoulli(density), fixed

The state of every time is taught at once from the error of its own time (or from the one error of a network that
answers once), so nothing goes back through the recurrent matrix. Inside a cell the gates learn by the chain rule.

Nothing goes from layer to layer either; `recurrent-hybrid` is the rule that sends exact errors there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rule import Rule
from optical_dfa.feedback.state import FeedbackState, Placement, StateHook, key
from optical_dfa.networks.markers import Memory, State

RECURSIONS = ("truncated", "local")


@RuleCard(
    summary="sparse direct feedback to the states of its recurrent cells (a reconstruction)",
    projects=False,
    recurrent=True,
)
class SparseRecurrentFeedback(Rule):
    """`sparse-recurrent`: a masked random matrix for every state of an unrolled RNN, GRU or LSTM. [R]

    The matrices are the rule's own, for a device's cannot be masked; the update is a sum over records.
    """

    name = "sparse-recurrent"

    def __init__(self, density: float = 0.1, recursion: str = "truncated", scale: float = 1.0) -> None:
        """
        Args:
            density: probability that an entry of B is kept; entries are N(0, scale² / (density n_l)).
            recursion: "truncated", a time's cell learns from its own time alone; "local", errors also go back in time
                along what a cell carries elementwise (`Memory`), which takes no matrix.
            scale: |g_h| ~ scale |e|.
        Raises:
            UsageError: an option out of its range.
        """
        check_sparse(density, recursion, scale)
        self.density, self.recursion, self.scale = float(density), recursion, float(scale)

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        """The states of unrolled cells, and what is cut by default outside of them.

        Raises:
            UsageError: the network has no such state.
        """
        if not any(isinstance(part, State) for part in module.modules()):
            raise UsageError(
                "rule sparse-recurrent finds no state of an unrolled cell; use optical_dfa.networks.recurrent's "
                "RNN, GRU or LSTM, or pass each h_t through optical_dfa.networks.markers.State"
            )
        return super().default_points(module, example)

    def state(self, placed: Placement) -> FeedbackState:
        return SparseState(self, placed)


class SparseState(FeedbackState):
    """S ∘ B of every point, drawn from a seed that the `state_dict` holds."""

    def __init__(self, rule: SparseRecurrentFeedback, placed: Placement) -> None:
        super().__init__(placed.points, placed.seed)
        self.rule, self.components = rule, placed.components
        self.active = False
        self._draw()
        self.register_load_state_dict_post_hook(_drawn_again)  # type: ignore[no-untyped-call]

    def _draw(self) -> None:
        for point in self.points:
            seed = derive_seed(int(self.get_buffer("seed")), f"sparse feedback to {point.name}")
            stream = torch.Generator().manual_seed(seed)
            shape = (point.width, self.components)
            entries = sparse_matrix(shape, self.rule.density, self.rule.scale, stream)
            self.register_buffer(key(point.name), entries, persistent=False)

    def begin(self) -> None:
        self.active = True

    def end(self) -> None:
        self.active = False

    def install(self, module: nn.Module) -> None:
        if self.rule.recursion == "truncated":
            for part in module.modules():
                if isinstance(part, Memory):
                    part.register_forward_hook(Forget(self))

    def teach(self, error: Tensor, noted: None, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        return self.signals(error, device)

    def signals(self, error: Tensor, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        return [error @ self.get_buffer(key(point.name)).to(error).T for point in self.points]

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """The entries that are kept, for one error."""
        kept = sum(int(self.get_buffer(key(point.name)).count_nonzero()) for point in self.points)
        return kept, kept


class Forget(StateHook):
    """Forward hook of a memory: what is carried on has no history.

    `state` says by `active` whether an aligned pass is running.
    """

    def __call__(self, part: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return output.detach() if self.state.active else None


def check_sparse(density: float, recursion: str, scale: float) -> None:
    """Refuse options out of their range, by UsageError."""
    if not (isinstance(density, int | float) and 0 < density <= 1):
        raise UsageError(f"rule option density={density!r}: it must be a number above 0 and at most 1")
    if recursion not in RECURSIONS:
        raise UsageError(f"rule option recursion={recursion!r}: it must be truncated or local")
    if not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise UsageError(f"rule option scale={scale!r}: it must be a positive number")


def sparse_matrix(shape: tuple[int, ...], density: float, scale: float, stream: torch.Generator) -> Tensor:
    """S ∘ B: entries N(0, scale² / (density n)), n the last but one size, each kept with the probability `density`."""
    kept = torch.rand(shape, generator=stream) < density
    entries = torch.randn(shape, generator=stream) * kept
    entries *= scale / math.sqrt(density * shape[-2])
    return entries


def _drawn_again(state: nn.Module, keys: Any) -> None:
    """The matrices are those of the seed that was loaded."""
    assert isinstance(state, SparseState)
    place = state.get_buffer("seed").device
    state._draw()
    state.to(place)
