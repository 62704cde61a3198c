"""What an aligned module knows of a private run: a recorder that its passes go through (`optical_dfa.capture`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    def blocks(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """What to call the module with, block by block, all of the same number of rows."""

    def recording(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """One block's forward pass: how it is followed."""

    def check_pass(self, following: Any, output: Tensor, kept: Sequence[tuple[str, Tensor]]) -> None:
        """At its end: refuse an output or feedback points that do not keep the records apart."""

    def observe(self, passed: ForwardPass) -> Any:
        """What `teach` is to be told of the pass: which block, and `FeedbackState.observe` of it."""

    def teach(self, rows: Tensor, noted: Any) -> Sequence[Tensor | None]:
        """`FeedbackState.teach` of a backward pass, from errors of shape (rows, c)."""

    def projections(self, records: int) -> int:
        """How many projections a step of so many records takes."""

    def remove(self) -> None:
        """Take the hooks off the module again."""
