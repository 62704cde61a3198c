"""The seeded random matrix B of digital and simulated devices, by its law."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed

DISTRIBUTIONS: Final = ("normal", "uniform", "binary", "orthogonal")
_HELD: Final = 1 << 31  # entries of a matrix that is made of what is not stored, at most: 8 GB


def check_held(rows: int, columns: int) -> None:
    """
    Raises:
        UsageError: a matrix, or a part of one, that is only applied has too many entries to be handed out: over 2³¹.
    """
    if rows * columns > _HELD:
        raise UsageError(
            f"{rows} x {columns} entries of a feedback matrix are more than the 2147483648 that are handed out at "
            "once; take a part of it"
        )


class RandomMatrix:
    """B, shape (out_features, in_features), entries of mean 0 and variance 1, kept where it is used.

    Laws: "normal" and "uniform" (±sqrt(3)) are i.i.d.; "binary" is the sign of "normal"; under "orthogonal" each slice
    of n rows is uniform (Haar) among the matrices whose columns are orthogonal, of length sqrt(n) (whose rows are, of
    length sqrt(in_features), where n < in_features), so that `|B_l e| = sqrt(n) |e|` exactly where n >= in_features.

    Attributes:
        values: B in float32 on the CPU.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        seed: int,
        distribution: str,
        slices: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            slices: numbers of rows that are orthogonalised together, in order; None is all of them. The other laws
                do not depend on it.
        Raises:
            UsageError: unknown distribution.
        """
        if distribution not in DISTRIBUTIONS:
            raise UsageError(
                f"distribution of the feedback matrix is {distribution!r}; "
                f"it must be one of: {', '.join(DISTRIBUTIONS)}"
            )
        stream = torch.Generator().manual_seed(derive_seed(seed, "projection-matrix"))
        try:
            self.values = torch.empty(out_features, in_features)
        except RuntimeError:
            raise UsageError(
                f"a feedback matrix of {out_features} x {in_features} entries does not fit in memory; use backend "
                "streamed, which never stores it"
            ) from None
        if distribution == "uniform":
            self.values.uniform_(generator=stream).mul_(2 * sqrt(3)).sub_(sqrt(3))
        else:
            self.values.normal_(generator=stream)
        if distribution == "binary":
            self.values = torch.where(self.values < 0, -1.0, 1.0)
        if distribution == "orthogonal":
            sizes = [out_features] if slices is None else list(slices)
            self.values = torch.cat([_orthogonal(part) for part in torch.split(self.values, sizes)])
        self._transposed: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.keep(range(out_features))

    def keep(self, rows: range) -> None:
        """Forget all rows but these."""
        if len(rows) < len(self.values):
            self.values = self.values[rows.start : rows.stop].clone()
        # Ready for the usual case, so that a compiled graph converts nothing.
        usual = (self.values.device, self.values.dtype)
        self._transposed = {usual: self.values.t().contiguous()}

    def times(self, x: Tensor) -> Tensor:
        """`x Bᵀ`, shape (m, out_features), in x's dtype and on its device."""
        place = (x.device, x.dtype)
        found = self._transposed.get(place)
        if found is None:
            found = self.values.to(device=x.device, dtype=x.dtype).t().contiguous()
            if not torch.compiler.is_compiling():  # a compiled graph must not change what is outside it
                self._transposed[place] = found
        return x @ found


def _orthogonal(normal: Tensor) -> Tensor:
    """Entries of variance 1, the longer side's vectors orthogonal; Haar, by QR with the signs of R made positive."""
    rows, columns = normal.shape
    tall = normal.double() if rows >= columns else normal.double().T
    q, r = torch.linalg.qr(tall)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0) * sqrt(len(tall))
    values: Tensor = q if rows >= columns else q.T
    return values.float().contiguous()
