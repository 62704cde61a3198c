"""Feedback to convolutions through one kernel for all places: the error, broadcast over space, transposed-convolved.

    g_l = convᵀ(e ⊗ 1_{H x W}, K_l),    K_l of shape (c, channels, k, ..., k), stride 1, padding (k - 1)/2

As BioTorch does it (Sanfiz and Akrout 2021, arXiv 2108.13446), but for its geometry: there K has kernel, stride and
padding of the convolution that reads the point, here k is the rule's option [D]. All places far enough from the border
receive the same. The error meets K through one projection, P = K e; space is then a matter of which taps of the kernel
fall inside the image, so that a device projects channels·k² components a layer instead of channels·H·W.
"""

from __future__ import annotations

import torch
from torch import Tensor


def taps(shape: tuple[int, ...], kernel: int) -> int:
    """Taps of the kernel at a point of shape (channels, *space); 1 where there is no space."""
    return int(kernel ** (len(shape) - 1))


def spread(projected: Tensor, shape: tuple[int, ...], kernel: int) -> Tensor:
    """The transposed convolution of the broadcast error.

    Args:
        projected: K e, shape (rows, channels·k^d).
        shape: (channels, *space) of the point, d axes of space.
        kernel: k, odd.
    Returns:
        shape (rows, channels, *space).
    """
    signal = projected.reshape(-1, shape[0], *[kernel] * (len(shape) - 1))
    for size in shape[1:]:  # one axis of space at a time: taps out, places in, in turn
        signal = torch.tensordot(signal, _inside(size, kernel).to(signal), dims=([2], [0]))
    return signal


def additions(shape: tuple[int, ...], kernel: int) -> int:
    """Sums that `spread` takes for one record: of the kernel's taps along one axis after the other."""
    total, places = 0, 1
    for axis, size in enumerate(shape[1:]):
        places *= size
        total += int(shape[0] * places * kernel ** (len(shape) - 1 - axis))
    return total


def _inside(size: int, kernel: int) -> Tensor:
    """1 where tap d of the kernel, at place y, falls inside the axis: 0 <= y + (k - 1)/2 - d < size; (k, size)."""
    reached = torch.arange(size).unsqueeze(0) + (kernel - 1) // 2 - torch.arange(kernel).unsqueeze(1)
    return (reached >= 0) & (reached < size)
