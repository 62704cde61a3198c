"""A seeded B of a few non-zeros a row, multiplied by gathering: k products an output, not in_features."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed


class SparseMatrix:
    """B, shape (out_features, in_features), with exactly `nonzeros` entries a row that are not 0 (Crafton 2019).

    Their places are drawn without replacement, row by row, and their values from U[±sqrt(3)], of variance 1.

    With `rank` R, every slice is of rank R (at most): R sets of places, as evenly spread over the columns as can be and
    covering them all, each with values of its own; every row takes one of the sets, evenly dealt out, times a factor.
    Such a slice is rescaled to standard deviation sqrt(nonzeros / in_features) over all its entries, zeros included.

    Attributes:
        std: standard deviation of all entries, zeros included.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        seed: int,
        nonzeros: int,
        rank: int | None = None,
        slices: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            nonzeros: k, 1 to in_features.
            rank: R of each slice; None is unrestricted.
            slices: numbers of rows, in order; None is all of them together.
        Raises:
            UsageError: nonzeros or rank out of range.
        """
        if not 1 <= nonzeros <= in_features:
            raise UsageError(
                f"nonzeros is {nonzeros}; it must be a whole number from 1 to the {in_features} components projected"
            )
        if rank is not None and (rank < 1 or rank * nonzeros < in_features):
            raise UsageError(
                f"rank is {rank} with nonzeros {nonzeros}; nonzeros times rank must be at least the {in_features} "
                "components projected, or some of them teach nobody"
            )
        self.std = sqrt(nonzeros / in_features)
        self._shape = (out_features, in_features)
        stream = torch.Generator().manual_seed(derive_seed(seed, "projection-matrix"))
        sizes = [out_features] if slices is None else list(slices)
        if rank is None:
            self._steps = [_Rows.drawn(out_features, in_features, nonzeros, stream)]
        else:
            parts = [_low_rank(size, in_features, nonzeros, rank, stream) for size in sizes]
            inner = _Rows(*(torch.cat([part[i] for part in parts]) for i in (0, 1)))
            choice = torch.cat([part[2] + i * rank for i, part in enumerate(parts)])
            self._steps = [inner, _Rows(choice, torch.cat([part[3] for part in parts]))]

    def times(self, x: Tensor) -> Tensor:
        """`x Bᵀ`, shape (m, out_features), in x's dtype and on its device; its columns are what is contiguous."""
        columns = x.t().contiguous()
        for step in self._steps:
            columns = step.times(columns)
        return columns.t()

    @property
    def values(self) -> Tensor:
        """B itself, dense, in float32 on the CPU."""
        return self.times(torch.eye(self._shape[1])).T.contiguous()

    @property
    def products(self) -> int:
        """Multiplications that the projection of one row takes."""
        return sum(step.factors.numel() for step in self._steps)


class _Rows:
    """Row j of the product is the sum over its k places of `factors[j, i] x[places[j, i]]`; both of shape (rows, k)."""

    def __init__(self, places: Tensor, factors: Tensor) -> None:
        self.places = places
        self.factors = factors
        self._placed = {(places.device, factors.dtype): (places, factors)}

    @classmethod
    def drawn(cls, rows: int, columns: int, nonzeros: int, stream: torch.Generator) -> _Rows:
        places = torch.rand(rows, columns, generator=stream).topk(nonzeros, dim=1).indices
        return cls(places, _uniform((rows, nonzeros), stream))

    def times(self, x: Tensor) -> Tensor:
        """From x of shape (columns, m), shape (rows, m)."""
        place = (x.device, x.dtype)
        found = self._placed.get(place)
        if found is None:
            found = self.places.to(x.device), self.factors.to(device=x.device, dtype=x.dtype)
            if not torch.compiler.is_compiling():  # a compiled graph must not change what is outside it
                self._placed[place] = found
        places, factors = found
        return embedding_bag(places, x, per_sample_weights=factors, mode="sum")


def _low_rank(
    rows: int, columns: int, nonzeros: int, rank: int, stream: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A slice: places and values of its R sets, shape (R, k); each row's set and factor, shape (rows, 1)."""
    taken = torch.zeros(columns)
    sets = []
    for _ in range(rank):  # those taken least often so far, ties at random
        chosen = (taken + 0.5 * torch.rand(columns, generator=stream)).topk(nonzeros, largest=False).indices
        taken[chosen] += 1
        sets.append(chosen)
    places, values = torch.stack(sets), _uniform((rank, nonzeros), stream)
    choice = (torch.randperm(rows, generator=stream) % rank).unsqueeze(1)
    factors = _uniform((rows, 1), stream)
    entries = (values[choice.squeeze(1)] * factors).double()  # what is not 0; the mean counts the zeros
    mean = entries.sum() / (rows * columns)
    spread = (entries.square().sum() / (rows * columns) - mean.square()).sqrt()
    return places, values, choice, factors * (sqrt(nonzeros / columns) / spread).float()


def _uniform(shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """Of mean 0 and variance 1."""
    return torch.rand(shape, generator=stream).mul_(2 * sqrt(3)).sub_(sqrt(3))
