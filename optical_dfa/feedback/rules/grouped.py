"""Modular DFA whose maps are fixed random grouped transposed convolutions (Han et al. 2020, arXiv 2006.12830)."""

from __future__ import annotations

from collections.abc import Sequence

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rules.modular import ConvolutionalMaps


@RuleCard(
    summary="Direct Feedback Alignment within modules through grouped convolutions (a reconstruction)",
    projects=True,
    projects_unless=("between", "bp"),
)
class GroupedFeedback(ConvolutionalMaps):
    """`grouped`: a channel hears the errors of its own group of channels alone, a `groups`-th of the multiply-adds. [R]

    The number of groups is not confirmed; 2 is this reconstruction's.
    """

    name = "grouped"

    def __init__(
        self,
        modules: Sequence[str] | int = 2,
        between: str = "dfa",
        size: int = 3,
        groups: int = 2,
        scale: float | None = None,
    ) -> None:
        """
        Args:
            modules, between, scale: as for `modular`.
            size: taps of a kernel along each axis, odd.
            groups: must divide the channels at every point of a module that has more than one.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(modules, between, scale)
        self._set_kernel(size, 1, groups)
