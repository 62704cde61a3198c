"""Hybrid DFA: backpropagation between modules, sparse fixed feedback within (Han et al. 2020, arXiv 2006.12830)."""

from __future__ import annotations

from collections.abc import Sequence

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rules.modular import ConvolutionalMaps


@RuleCard(
    summary="Direct Feedback Alignment within modules and backpropagation between them (a reconstruction)",
    projects=False,
    projects_unless=("between", "bp"),
)
class HybridFeedback(ConvolutionalMaps):
    """`hybrid`: the error goes from module to module through each module's lowest weights alone. [R]

    Within a module every layer is taught at the same time, by a dilated and grouped kernel from the module's own error.
    """

    name = "hybrid"

    def __init__(
        self,
        modules: Sequence[str] | int = 2,
        size: int = 3,
        dilation: int = 1,
        groups: int = 1,
        scale: float | None = None,
    ) -> None:
        """
        Args:
            modules, scale: as for `modular`.
            size, dilation, groups: of the kernels, as for `dilated` and `grouped`.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(modules, "bp", scale)
        self._set_kernel(size, dilation, groups)
