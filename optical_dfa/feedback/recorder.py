"""What an aligned module knows of a private run: a recorder that its passes go through (`optical_dfa.capture`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from optical_dfa.feedback.points import ForwardPass
from privacy.contributions.protocols import Contributions


class Recorder(Contributions, Protocol):
    """Records what each record contributes, instead of gradients.

    Attributes:
        expected_records: how many records the batch now handed out has; None without one.
        fixed: whether a run has begun.
        noting: set on a copy: how its next pass is followed.
    """

    fixed: bool
    noting: Any

    def hold(self) -> None:
        """Keep normalisation by constants in evaluation mode."""

    def refuse_other(self) -> None:
        """Refuse a state that is not released with noise and is not what it was when the run began."""

    def take_loaded(self) -> None:
        """A state was loaded into the module."""

    def evaluating(self) -> AbstractContextManager[None]:
        """One pass without gradients, which must leave the module as it is."""

    def recording(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AbstractContextManager[tuple[Any, list[Any], dict[str, Any]]]:
        """One forward pass: how it is followed, and what to call the module with."""

    def check_pass(self, following: Any, output: Tensor, kept: Sequence[tuple[str, Tensor]]) -> None:
        """At its end: refuse an output or feedback points that do not keep the records apart."""

    def observe(self, passed: ForwardPass) -> Tensor | None:
        """`FeedbackState.observe` of the pass."""

    def teach(self, rows: Tensor, noted: Tensor | None) -> Sequence[Tensor | None]:
        """`FeedbackState.teach` of a backward pass, from errors of shape (rows, c)."""

    def projections(self, records: int) -> int:
        """How many projections a step of so many records takes."""

    def remove(self) -> None:
        """Take the hooks off the module again."""
