"""Modular DFA whose maps are fixed random dilated transposed convolutions (Han et al. 2020, arXiv 2006.12830)."""

from __future__ import annotations

from collections.abc import Sequence

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rules.modular import ConvolutionalMaps


@RuleCard(
    summary="Direct Feedback Alignment within modules through dilated convolutions (a reconstruction)",
    projects=True,
    projects_unless=("between", "bp"),
)
class DilatedFeedback(ConvolutionalMaps):
    """`dilated`: sparse backward weights for CNNs, few taps that reach far. [R]

    Kernel size and dilation are not confirmed; 3 and 2 are this reconstruction's.
    """

    name = "dilated"

    def __init__(
        self,
        modules: Sequence[str] | int = 2,
        between: str = "dfa",
        size: int = 3,
        dilation: int = 2,
        scale: float | None = None,
    ) -> None:
        """
        Args:
            modules, between, scale: as for `modular`.
            size: taps of a kernel along each axis, odd.
            dilation: distance of neighbouring taps.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(modules, between, scale)
        self._set_kernel(size, dilation, 1)
