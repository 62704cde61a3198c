"""The products of unfused layers: parts without parameters of their own, called with those of the layer they are in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Product(nn.Module):
    """`x W^T + b`, a layer that a private run records."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_from: int = 0,
        bias_from: int = 0,
        units: int | None = None,
    ) -> Tensor:
        """
        Args:
            x: shape (m, ..., d).
            weight, bias: of shapes (n, d) and (n',), parameters themselves.
            weight_from, bias_from: the first of the rows that are used.
            units: how many rows are used of each; by default all of the weight's.
        Returns:
            shape (m, ..., units).
        """
        if units is None:
            return linear(x, weight, bias)
        rows = weight[weight_from : weight_from + units]
        return linear(x, rows, None if bias is None else bias[bias_from : bias_from + units])


class Appended(nn.Module):
    """One more position, the same for all records."""

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """
        Args:
            x: shape (m, T, d).
            position: shape (1, 1, d), a parameter itself.
        Returns:
            shape (m, T + 1, d).
        """
        return torch.cat([x, position.expand(len(x), -1, -1)], 1)
