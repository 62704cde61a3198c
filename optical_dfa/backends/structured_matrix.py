"""A random matrix made of random signs and fast transforms: n log n additions for a product of n by n entries."""

from __future__ import annotations

from typing import Final

import torch
from scipy.linalg import hadamard
from torch import Tensor

from noise_models.randomness.generator import derive_seed
from optical_dfa.backends.matrix import check_held

ROUNDS: Final = 3
LEAST_SIZE: Final = 256  # of n: smaller ones have rows of zeros once cut to a few columns
_SIDE: Final = 5  # log2 of the largest Hadamard matrix that is multiplied by
_PIECE: Final = 1 << 22  # numbers that are transformed at a time, within a cache

Place = tuple[torch.device, torch.dtype]


class StructuredMatrix:
    """B = √n (H D_r ⋯ H D_1), r rounds, cut to its first out_features rows and in_features columns.

    n is the least power of two that holds both, and 256; H is the Walsh-Hadamard matrix over √n, each D a diagonal of
    fair random signs (Ailon, Chazelle 2009, doi:10.1137/060673096; three rounds: Andoni et al. 2015, arXiv:1509.02897).
    Entries have variance 1 and look normal, but are not independent: rows or columns that are not cut are exactly
    orthogonal, of length √n, and cut ones the nearer to independent the more is cut. `python -m experiments scaling`
    measures how near.

    Attributes:
        size: n.
    """

    def __init__(self, in_features: int, out_features: int, seed: int, *, rounds: int = ROUNDS) -> None:
        self.in_features, self.out_features, self.rounds = in_features, out_features, rounds
        exponent = (max(in_features, out_features, LEAST_SIZE) - 1).bit_length()
        self.size = 1 << exponent
        # H as a product over factors of n, each small enough for one matrix product.
        self._sides = [1 << min(_SIDE, exponent - done) for done in range(0, exponent, _SIDE)]
        stream = torch.Generator().manual_seed(derive_seed(seed, "projection-matrix"))
        coins = torch.randint(0, 2, (rounds, self.size), generator=stream, dtype=torch.int8)
        self._signs = coins.mul_(2).sub_(1)
        # Of √n n^(-r/2) a round's share, so that no number grows or vanishes on the way.
        self._share = self.size ** (-(rounds - 1) / (2 * rounds))
        self._placed: dict[Place, tuple[Tensor, list[Tensor]]] = {}
        self._on(torch.zeros(0))  # ready for the usual case, so that a compiled graph converts nothing

    def times(self, x: Tensor) -> Tensor:
        """`x Bᵀ` of x of shape (m, in_features), shape (m, out_features), in x's dtype and on its device."""
        out = x.new_empty(len(x), self.out_features)
        records = max(1, _PIECE // self.size)
        for start in range(0, len(x), records):
            out[start : start + records] = self._piece(x[start : start + records])
        return out

    def values(self) -> Tensor:
        """B itself, dense, in float32 on the CPU.

        Raises:
            UsageError: it has too many entries to be held.
        """
        check_held(self.out_features, self.in_features)
        return self.times(torch.eye(self.in_features)).T.contiguous()

    def _piece(self, x: Tensor) -> Tensor:
        signs, factors = self._on(x)
        out = torch.nn.functional.pad(x, (0, self.size - self.in_features))
        for row in signs:
            out = out * row
            blocks, rest = len(x), self.size
            for factor in factors:
                rest //= len(factor)
                if rest == 1:
                    out = out.reshape(-1, len(factor)) @ factor
                else:
                    out = torch.matmul(factor, out.reshape(blocks, len(factor), rest))
                blocks *= len(factor)
            out = out.reshape(len(x), self.size)
        return out[:, : self.out_features]

    def _on(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Signs times a round's share, shape (rounds, n), and Hadamard matrices, in x's dtype and on its device."""
        place = (x.device, x.dtype)
        found = self._placed.get(place)
        if found is None:
            signs = self._signs.to(x).mul_(self._share)
            found = signs, [torch.from_numpy(hadamard(side)).to(x) for side in self._sides]
            if not torch.compiler.is_compiling():  # a compiled graph must not change what is outside it
                self._placed[place] = found
        return found
