"""What layers with a gain a feature or a channel contribute: normalisations, and PReLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import group_norm as normalise_groups
from torch.nn.functional import instance_norm as normalise_instance
from torch.nn.functional import layer_norm as normalise_layer
from torch.nn.functional import rms_norm as normalise_rms

from optical_dfa.capture.contributions import RowContribution
from optical_dfa.capture.layers.pairs import Pairs


def layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> Pairs:
    """The gain multiplies the normalised input; both vectors are summed over the record's positions."""
    normalised = normalise_layer(x, layer.normalized_shape, None, None, layer.eps)
    shape = (len(x), -1, layer.weight.numel())
    return [
        (layer.weight, RowContribution((delta * normalised).reshape(shape).sum(1))),
        (layer.bias, RowContribution(delta.reshape(shape).sum(1))),
    ]


def rms_norm(layer: nn.RMSNorm, x: Tensor, delta: Tensor) -> Pairs:
    """As for LayerNorm, without a bias."""
    normalised = normalise_rms(x, layer.normalized_shape, None, layer.eps)
    rows = (delta * normalised).reshape(len(x), -1, layer.weight.numel())
    return [(layer.weight, RowContribution(rows.sum(1)))]


def group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> Pairs:
    """As for LayerNorm, a gain a channel."""
    normalised = normalise_groups(x, layer.num_groups, None, None, layer.eps)
    return [
        (layer.weight, RowContribution(_by_channel(delta * normalised))),
        (layer.bias, RowContribution(_by_channel(delta))),
    ]


def instance_norm(
    layer: nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor, delta: Tensor
) -> Pairs:
    """As for GroupNorm, each channel by itself."""
    normalised = normalise_instance(x, eps=layer.eps)
    return [
        (layer.weight, RowContribution(_by_channel(delta * normalised))),
        (layer.bias, RowContribution(_by_channel(delta))),
    ]


def prelu(layer: nn.PReLU, x: Tensor, delta: Tensor) -> Pairs:
    """The slope multiplies what is below 0: one for all, or one a channel."""
    below = delta * x.clamp_max(0.0)
    rows = below.reshape(len(x), -1).sum(1, keepdim=True) if layer.weight.numel() == 1 else _by_channel(below)
    return [(layer.weight, RowContribution(rows))]


def _by_channel(rows: Tensor) -> Tensor:
    """The sum over all but records and channels."""
    return rows.flatten(2).sum(2) if rows.ndim > 2 else rows
