"""The seeded random matrix B of digital and simulated devices."""

from __future__ import annotations

from math import sqrt
from typing import Final

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.generator import derive_seed

DISTRIBUTIONS: Final = ("normal", "uniform")


class RandomMatrix:
    """B, shape (out_features, in_features), i.i.d. entries of mean 0 and variance 1, kept where it is used.

    Attributes:
        values: B in float32 on the CPU.
    """

    def __init__(self, in_features: int, out_features: int, seed: int, distribution: str) -> None:
        """
        Raises:
            UsageError: unknown distribution.
        """
        if distribution not in DISTRIBUTIONS:
            raise UsageError(
                f"distribution of the feedback matrix is {distribution!r}; "
                f"it must be one of: {', '.join(DISTRIBUTIONS)}"
            )
        stream = torch.Generator().manual_seed(derive_seed(seed, "projection-matrix"))
        shape = (out_features, in_features)
        if distribution == "normal":
            self.values = torch.randn(shape, generator=stream)
        else:
            self.values = torch.rand(shape, generator=stream).mul_(2 * sqrt(3)).sub_(sqrt(3))
        # Ready for the usual case, so that a compiled graph does not meet the first use.
        usual = (self.values.device, self.values.dtype)
        self._transposed: dict[tuple[torch.device, torch.dtype], Tensor] = {
            usual: self.values.t().contiguous()
        }

    def times(self, x: Tensor) -> Tensor:
        """`x Bᵀ`, shape (m, out_features), in x's dtype and on its device."""
        place = (x.device, x.dtype)
        if place not in self._transposed:
            self._transposed[place] = self.values.to(device=x.device, dtype=x.dtype).t().contiguous()
        return x @ self._transposed[place]
