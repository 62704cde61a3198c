"""DFA for fully connected layers, backpropagation inside the convolutions (Han and Yoo 2019, arXiv 1901.01986).

[R] A reconstruction from the abstract; no code of the authors is known. The fully connected hidden layers learn as
under `dfa`. One projection of the output error, g = B e, teaches the top of the convolutional stack, and from there
ordinary backpropagation goes down to the first convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import call_order
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment
from optical_dfa.networks.markers import DEFAULT_POINTS

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@RuleCard(
    summary="Direct Feedback Alignment of its fully connected layers, and backpropagation inside its convolutions",
    projects=True,
)
class ConvolutionalFeedbackAlignment(DirectFeedbackAlignment):
    """`cdfa`: the default points are the top of the convolutional stack and every activation above it.

    On a network without convolutions it is `dfa`. Under a private release it is a sum over records, as DFA is.
    """

    name = "cdfa"

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        """The first activation called after the last convolution, and all that are called later.

        Raises:
            UsageError: a linear layer reads the last convolution with no activation module in between.
        """
        called = call_order(module, example, (*DEFAULT_POINTS, *_CONVOLUTIONS, nn.Linear))
        parts = dict(module.named_modules())
        last = max((i for i, name in enumerate(called) if isinstance(parts[name], _CONVOLUTIONS)), default=-1)
        above = called[last + 1 :]
        if last >= 0 and (not above or isinstance(parts[above[0]], nn.Linear)):
            raise UsageError(
                f"rule cdfa finds no activation module right above the last convolution ({called[last]}); put one "
                "there (e.g. nn.Tanh), or name the top of the convolutional stack among the points= yourself"
            )
        return list(dict.fromkeys(name for name in above if isinstance(parts[name], DEFAULT_POINTS)))

    def backpropagates(self, upper: Tensor, lower: Tensor) -> bool:
        """From one convolution into another: kernels have three axes or more, matrices two."""
        return upper.ndim > 2 and lower.ndim > 2
