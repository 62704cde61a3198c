"""The bottleneck experiment: what a rule loses where only a few units of a wide layer may learn.

Launay et al. 2019 (arXiv 1906.04554) propose that narrow layers keep DFA from aligning, a cause of its failure on
convolutions. So that width itself stays the same, a fixed random mask lets `kept` of a layer's units learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from noise_models.errors import UsageError

# Units that learn of Launay et al.'s 800.
LAUNAY_WIDTHS = (1, 3, 5, 8, 11, 18, 28, 46, 73, 118, 191, 308, 496, 800)


def mask_gradients(layer: nn.Module, kept: int, seed: int = 0) -> list[RemovableHandle]:
    """Let `kept` units of the layer learn and no other: their rows of weight and bias gradient alone are not zero.

    A private run forms no such gradient, and is not masked.

    Args:
        layer: with `weight` (units, ...), and a `bias` (units,) or none.
        kept: number of units that learn.
        seed: of which; fewer units are a subset of more.
    Returns:
        handles; `remove()` each to let all units learn again.
    Raises:
        UsageError: kept is not between 1 and the number of units.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    units = weight.shape[0]
    if not 1 <= kept <= units:
        raise UsageError(f"kept is {kept}; it must be a number of units from 1 to the layer's {units}")
    order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(units)
    mask[order[:kept]] = 1

    def masked(gradient: Tensor) -> Tensor:
        return gradient * mask.to(gradient).view(-1, *[1] * (gradient.ndim - 1))

    taught = [p for p in (weight, bias) if isinstance(p, nn.Parameter)]
    return [p.register_hook(masked) for p in taught]  # type: ignore[no-untyped-call]
