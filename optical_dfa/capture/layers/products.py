"""What layers that multiply by a matrix contribute: linear, bilinear, convolutions and their transposes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad

from optical_dfa.capture.contributions import Contribution, Kernel, Outer, OuterSum, RowContribution
from optical_dfa.capture.layers.pairs import Pairs
from optical_dfa.capture.unfused.product import Appended, Product


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
    """A kernel used once at every output position."""
    padding: Sequence[int] = (0,) * len(layer.kernel_size)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    else:
        padding = layer.padding
    return [
        (layer.weight, _kernel(layer, x, delta, padding)),
        (layer.bias, RowContribution(delta.flatten(2).sum(2))),
    ]


def transposed_convolution(layer: Transposed, x: Tensor, delta: Tensor, output_size: object = None) -> Pairs:
    """The transpose of a convolution, whose input is delta here, as far as a kernel reaches, and x at its output."""
    padded = pad(delta, layer._reversed_padding_repeated_twice)
    for axis, (places, size, step, apart) in enumerate(
        zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        padded = padded.narrow(axis, 0, (places - 1) * step + (size - 1) * apart + 1)
    return [
        (layer.weight, _kernel(layer, padded, x, (0,) * len(layer.stride))),
        (layer.bias, RowContribution(delta.flatten(2).sum(2))),
    ]


def _kernel(layer: Convolution | Transposed, x: Tensor, delta: Tensor, padding: Sequence[int]) -> Kernel:
    return Kernel(
        x,
        delta,
        layer.weight.shape,
        stride=layer.stride,
        padding=padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
