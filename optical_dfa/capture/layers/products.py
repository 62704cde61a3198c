"""What layers that multiply by a matrix contribute: linear, bilinear, convolutions and their transposes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from optical_dfa.capture.contributions import Contribution, Outer, OuterSum, RowContribution
from optical_dfa.capture.layers.pairs import Pairs
from optical_dfa.capture.unfused.product import Appended, Product
from privacy.norms import limit, share, vector_norms


def linear(layer: nn.Linear, x: Tensor, delta: Tensor) -> Pairs:
    """X_i = sum over positions of delta h^T; the bias gets the sum of delta."""
    return affine(layer.weight, layer.bias, x, delta)


def affine(weight: Tensor, bias: Tensor | None, x: Tensor, delta: Tensor) -> Pairs:
    """As of `linear`, of a weight and a bias that any module holds."""
    if delta.ndim == 2:
        return [(weight, Outer(delta, x)), (bias, RowContribution(delta))]
    rows, cols = delta.flatten(1, -2), x.flatten(1, -2)
    return [(weight, OuterSum([(rows, cols)])), (bias, RowContribution(rows.sum(1)))]


def product(
    layer: Product,
    x: Tensor,
    delta: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    weight_from: int = 0,
    bias_from: int = 0,
    units: int | None = None,
) -> Pairs:
    """As of `linear`; rows that were not used get zeros."""
    if units is None:
        return affine(weight, bias, x, delta)

    def among(rows: Tensor, first: int, of: Tensor) -> Tensor:
        return pad(rows, (first, len(of) - first - rows.shape[-1]))

    ((_, outer),) = affine(weight, None, x, among(delta, weight_from, weight))[:1]
    pairs: list[tuple[Tensor | None, Contribution]] = [(weight, outer)]
    if bias is not None:
        rows = delta.reshape(len(delta), -1, units).sum(1)
        pairs.append((bias, RowContribution(among(rows, bias_from, bias))))
    return pairs


def appended(layer: Appended, x: Tensor, delta: Tensor, position: Tensor) -> Pairs:
    """The last position is the parameter itself."""
    return [(position, RowContribution(delta[:, -1]))]


def bilinear(layer: nn.Bilinear, x: Tensor, delta: Tensor, other: Tensor) -> Pairs:
    """A linear layer on the products of the components of both inputs."""
    products = (x.unsqueeze(-1) * other.unsqueeze(-2)).flatten(-2)
    return affine(layer.weight, layer.bias, products, delta)


Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def convolution(layer: Convolution, x: Tensor, delta: Tensor) -> Pairs:
    """A convolution is a linear layer on patches, used once at every output position."""
    rows = delta.flatten(2)
    return [
        (layer.weight, _kernel(rows, patches(layer, x), layer.groups)),
        (layer.bias, RowContribution(rows.sum(2))),
    ]


def transposed_convolution(layer: Transposed, x: Tensor, delta: Tensor, output_size: object = None) -> Pairs:
    """The transpose of a convolution, whose input is delta here: its patches at every position of x."""
    cols = _windows(pad(delta, layer._reversed_padding_repeated_twice), layer, x.shape[2:])
    return [
        (layer.weight, _kernel(x.flatten(2), cols, layer.groups)),
        (layer.bias, RowContribution(delta.flatten(2).sum(2))),
    ]


def _kernel(rows: Tensor, cols: Tensor, groups: int) -> OuterSum | RowContribution:
    """The sum over positions of rows times columns, group by group.

    Args:
        rows: shape (m, channels, positions).
        cols: shape (m, channels · kernel, positions).
    """
    if groups == 1:
        return OuterSum([(rows.mT, cols.mT)])
    # Groups share no weight, so the per-record gradient is formed (depthwise kernels are small).
    kept = share(vector_norms(cols.flatten(1)), limit(rows.dtype, rows.shape[1:].numel())) * share(
        vector_norms(rows.flatten(1)), limit(rows.dtype, cols.shape[1:].numel())
    )
    apart = (x.double().reshape(len(x), groups, -1, x.shape[-1]) for x in (rows, cols))
    weight = torch.einsum("mgot,mgit->mgoi", *apart).flatten(1)
    return RowContribution(weight.to(rows.dtype), kept=kept)


def patches(layer: Convolution, x: Tensor) -> Tensor:
    """The input patch of each output position, shape (m, channels·kernel, positions)."""
    padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    elif isinstance(layer, nn.Conv3d):
        x = pad(x, layer._reversed_padding_repeated_twice)
    else:
        padding = tuple(layer.padding)
    if isinstance(layer, nn.Conv3d):
        return _windows(x, layer)
    if isinstance(layer, nn.Conv1d):  # one row high
        return unfold(
            x.unsqueeze(2), (1, *layer.kernel_size), (1, *layer.dilation), (0, *padding), (1, *layer.stride)
        )
    return unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)


def _windows(x: Tensor, layer: Convolution | Transposed, positions: Sequence[int] | None = None) -> Tensor:
    """What a padded input has under the kernel, shape (m, channels · kernel, positions).

    Args:
        positions: how many of them along each axis, the first; by default all.
    """
    for axis, (size, step, apart) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, (size - 1) * apart + 1, step)[..., ::apart]
        if positions is not None:
            x = x.narrow(axis, 0, positions[axis - 2])
    axes = len(layer.kernel_size)
    order = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return x.permute(order).flatten(1, 1 + axes).flatten(2)
