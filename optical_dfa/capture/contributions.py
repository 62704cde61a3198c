"""Per-record contributions in factored form, and their norms, without forming any of them.

A layer's call gives its input and the teaching signal delta at its output. A record's contribution to a parameter is
a sum over positions t of outer products, `X_i = sum_t rows_it cols_it^T`; `Contribution` is one parameter's stack of
such factors for all records. One position (a linear layer on flat records): the norm is a product of norms. Several
(convolutions, sequences, a weight used at several times): Gram form, `|X_i|^2 = sum_tt' <rows_t, rows_t'>
<cols_t, cols_t'>`, because the sum of the positions' norms misstates it.

Releases round them to whole numbers record by record (`capture.factors`, THEORY T11). Norms, and a clipped sum in
float64, are for probes and attacks: where a record's positions may cancel, a norm is bounded from above by adding
CANCELLATION times the positions' absolute sum.

Range: norms are rounded up, and a record keeps no share of a factor so large that what underflows in the other could
matter (`privacy.norms`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from privacy.norms import limit, share, vector_norms

CANCELLATION = 1e-6
_ELEMENTS = 1 << 22  # elements of explicit per-record contributions formed at a time


class Contribution(ABC):
    """All records' contributions to one parameter, from every use of it in one batch.

    Attributes:
        positions: positions of a record at which the parameter is used.
    """

    positions: int = 1

    @abstractmethod
    def norms(self) -> Tensor:
        """Upper bounds on each record's norm, to `privacy.norms.floor`, shape (m,), float64.

        Infinite or NaN for a record that is not finite.
        """

    @abstractmethod
    def absolute(self) -> Tensor:
        """The sum of the positions' norms, however they cancel; shape and type as of `norms`."""

    def share(self) -> Tensor | float:
        """What a clipped record keeps, shape (m,): less than 1 where a factor is near the end of its range."""
        return 1.0

    @abstractmethod
    def explicit(self, start: int, stop: int) -> Tensor:
        """The contributions of records start..stop-1 themselves, shape (stop - start, numel), float64."""

    def add_clipped(self, factors: Tensor, out: Tensor) -> None:
        """`out += sum_i factors_i X_i`.

        Args:
            factors: shape (m,).
            out: the parameter's slice of the flat sum, shape (numel,), contiguous.
        """
        total = torch.zeros(out.shape, dtype=torch.float64, device=out.device)
        for start, stop in self._chunks(len(factors), out.numel()):
            total += factors[start:stop].double() @ self.explicit(start, stop)
        out += total

    def _chunks(self, records: int, elements: int) -> list[tuple[int, int]]:
        size = max(1, _ELEMENTS // max(1, elements))
        return [(start, min(start + size, records)) for start in range(0, records, size)]


class RowContribution(Contribution):
    """One vector a record: biases, gains, and anything already summed over positions."""

    def __init__(self, rows: Tensor, kept: Tensor | float = 1.0) -> None:
        """
        Args:
            rows: shape (m, numel).
            kept: share of the factors that the rows were made of, shape (m,).
        """
        self.rows = rows
        self.kept = kept

    def norms(self) -> Tensor:
        return vector_norms(self.rows)

    def absolute(self) -> Tensor:
        return self.norms()

    def share(self) -> Tensor | float:
        return self.kept

    def explicit(self, start: int, stop: int) -> Tensor:
        return self.rows[start:stop].double()


class Outer(Contribution):
    """One outer product a record, `rows_i cols_i^T`: a linear layer's weight, used once on flat records."""

    def __init__(self, rows: Tensor, cols: Tensor) -> None:
        """
        Args:
            rows: delta, shape (m, n).
            cols: the layer's input, shape (m, d).
        """
        self.rows = rows
        self.cols = cols

        self._norms: tuple[Tensor, Tensor] | None = None

    def _factor_norms(self) -> tuple[Tensor, Tensor]:
        if self._norms is None:
            self._norms = vector_norms(self.rows), vector_norms(self.cols)
        return self._norms

    def norms(self) -> Tensor:
        rows, cols = self._factor_norms()
        return rows * cols

    def absolute(self) -> Tensor:
        return self.norms()

    def share(self) -> Tensor:
        rows, cols = self._factor_norms()
        dtype, n, d = self.rows.dtype, self.rows.shape[1], self.cols.shape[1]
        return share(rows, limit(dtype, d)) * share(cols, limit(dtype, n))

    def explicit(self, start: int, stop: int) -> Tensor:
        rows, cols = self.rows[start:stop].double(), self.cols[start:stop].double()
        return (rows.unsqueeze(2) * cols.unsqueeze(1)).flatten(1)


class OuterSum(Contribution):
    """Several outer products a record: convolutions, sequences, weights used at several times. In float64."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """
        Args:
            parts: (rows, cols) of each use, shapes (m, t, n) and (m, t, d); n and d agree over the uses.
        """
        self.parts = parts
        self.positions = sum(rows.shape[1] for rows, _ in parts)
        self.numel = parts[0][0].shape[2] * parts[0][1].shape[2]
        self._norms: tuple[Tensor, Tensor] | None = None

    def _factors(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        pairs = [(rows[start:stop].double(), cols[start:stop].double()) for rows, cols in self.parts]
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([rows for rows, _ in pairs], dim=1), torch.cat([cols for _, cols in pairs], dim=1)

    def norms(self) -> Tensor:
        n, d = self.parts[0][0].shape[2], self.parts[0][1].shape[2]
        gram = self.positions * (n + d) < n * d
        found = [torch.empty(0, dtype=torch.float64, device=self.parts[0][0].device)]
        elements = self.positions * (n + d) + (self.positions**2 if gram else self.numel)
        for start, stop in self._chunks(len(self.parts[0][0]), elements):
            rows, cols = self._factors(start, stop)
            if gram:
                square = ((rows @ rows.mT) * (cols @ cols.mT)).sum((1, 2))
                found.append(square.clamp_min(0.0).sqrt())
            else:
                found.append(vector_norms((rows.mT @ cols).flatten(1)))
        terms = n + d + self.positions**2 if gram else 2 * self.positions
        return _raised(torch.cat(found), self.absolute(), terms)

    def _factor_norms(self) -> tuple[Tensor, Tensor]:
        """Of rows and columns at every position, shapes (m, positions)."""
        if self._norms is None:
            rows, cols = (torch.cat([vector_norms(part[i]) for part in self.parts], dim=1) for i in (0, 1))
            self._norms = rows, cols
        return self._norms

    def absolute(self) -> Tensor:
        rows, cols = self._factor_norms()
        return (rows * cols).sum(1)

    def share(self) -> Tensor:
        rows, cols = (vector_norms(norms) for norms in self._factor_norms())
        n, d = self.parts[0][0].shape[2], self.parts[0][1].shape[2]
        dtype, width = self.parts[0][0].dtype, self.positions
        return share(rows, limit(dtype, width * d)) * share(cols, limit(dtype, width * n))

    def explicit(self, start: int, stop: int) -> Tensor:
        rows, cols = self._factors(start, stop)
        return (rows.mT @ cols).flatten(1)


class Kernel(Contribution):
    """A convolution's weight: gradients of a convolution for each record, all at once as one of many groups."""

    def __init__(
        self,
        x: Tensor,
        delta: Tensor,
        weight: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        """
        Args:
            x: the input, shape (m, channels, ...).
            delta: at the output, shape (m, units, ...).
            weight: the weight's shape, (units, channels / groups, ...).
            stride, padding, dilation: along each axis.
            groups: of the convolution.
        """
        self.x, self.delta = x, delta
        self.weight = tuple(weight)
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self.groups = groups
        self.positions = delta.shape[2:].numel()

    def written_out(self, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """The gradients of records start..stop-1, shape (stop - start, numel), by default in the type of delta."""
        x, delta = (part[start:stop].to(dtype or self.delta.dtype) for part in (self.x, self.delta))
        m = len(x)
        if not m or not delta.numel():
            return x.new_zeros(m, math.prod(self.weight))
        weight = x.new_empty(m * self.weight[0], *self.weight[1:])
        _, found, _ = torch.ops.aten.convolution_backward(
            delta.flatten(0, 1).unsqueeze(0), x.flatten(0, 1).unsqueeze(0), weight, None, self.stride, self.padding,
            self.dilation, False, [0] * len(self.stride), m * self.groups, [False, True, False],
        )  # fmt: skip
        return found.reshape(m, -1)  # type: ignore[no-any-return]

    def norms(self) -> Tensor:
        found = [torch.empty(0, dtype=torch.float64, device=self.x.device)]
        for start, stop in self._chunks(len(self.x), math.prod(self.weight)):
            found.append(vector_norms(self.explicit(start, stop)))
        return _raised(torch.cat(found), self.absolute(), 2 * self.positions)

    def absolute(self) -> Tensor:
        # Each input stands at one place of a kernel once at most: the patches' norms square add up to this at most.
        taps = math.prod(self.weight[2:])
        return self._norms(self.delta) * self._norms(self.x) * math.sqrt(taps)

    def share(self) -> Tensor:
        dtype, taps = self.delta.dtype, math.prod(self.weight[2:])
        x, delta = limit(dtype, self.delta[:1].numel()), limit(dtype, self.x[:1].numel() * taps)
        return share(self._norms(self.x) * math.sqrt(taps), x) * share(self._norms(self.delta), delta)

    def explicit(self, start: int, stop: int) -> Tensor:
        return self.written_out(start, stop, torch.float64)

    @staticmethod
    def _norms(x: Tensor) -> Tensor:
        return vector_norms(x.flatten(1))


class Lookup(Contribution):
    """An embedding: one row of the table a position, repeated tokens added up. In float64."""

    def __init__(self, tokens: Tensor, rows: Tensor, entries: int, padding: int | None) -> None:
        """
        Args:
            tokens: shape (m, t), integer.
            rows: delta at the embedding's output, shape (m, t, d).
            entries: rows of the table.
            padding: the token that is not trained.
        """
        self.tokens = tokens
        self.rows = rows if padding is None else rows.masked_fill((tokens == padding).unsqueeze(2), 0.0)
        self.entries = entries
        self.positions = tokens.shape[1]

    def norms(self) -> Tensor:
        found = [torch.empty(0, dtype=torch.float64, device=self.rows.device)]
        for start, stop in self._chunks(len(self.tokens), self.tokens.shape[1] ** 2):
            rows, tokens = self.rows[start:stop].double(), self.tokens[start:stop]
            same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
            found.append(((rows @ rows.mT) * same).sum((1, 2)).clamp_min(0.0).sqrt())
        return _raised(torch.cat(found), self.absolute(), self.rows.shape[2] + self.positions**2)

    def absolute(self) -> Tensor:
        return vector_norms(self.rows).sum(1)

    def share(self) -> Tensor:
        return share(self.absolute(), limit(self.rows.dtype, self.positions * self.rows.shape[2]))

    def explicit(self, start: int, stop: int) -> Tensor:
        width = self.rows.shape[2]
        table = torch.zeros(stop - start, self.entries, width, dtype=torch.float64, device=self.rows.device)
        index = self.tokens[start:stop].unsqueeze(2).expand(-1, -1, width)
        return table.scatter_add_(1, index, self.rows[start:stop].double()).flatten(1)


class Mixed(Contribution):
    """One parameter with uses of different kinds (an embedding tied to a decoder): formed record by record."""

    def __init__(self, parts: Sequence[Contribution], records: int, numel: int) -> None:
        self.parts = parts
        self.records = records
        self.numel = numel
        self.positions = sum(part.positions for part in parts)

    def norms(self) -> Tensor:
        found = [vector_norms(self.explicit(a, b)) for a, b in self._chunks(self.records, self.numel)]
        if not found:
            return torch.zeros(0, dtype=torch.float64)
        return _raised(torch.cat(found), self.absolute(), 2 * (self.positions + len(self.parts)))

    def absolute(self) -> Tensor:
        return torch.stack([part.absolute() for part in self.parts]).sum(0)

    def share(self) -> Tensor | float:
        return _product(self.parts)

    def explicit(self, start: int, stop: int) -> Tensor:
        total = self.parts[0].explicit(start, stop)
        for part in self.parts[1:]:
            total = total + part.explicit(start, stop)
        return total


def combine(parts: Sequence[Contribution], records: int, numel: int) -> Contribution:
    """The joint contribution of several uses of one parameter by the same records."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, RowContribution) for part in parts):
        rows = [part for part in parts if isinstance(part, RowContribution)]
        return RowContribution(torch.stack([part.rows for part in rows]).sum(0), kept=_product(rows))
    outer: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        if isinstance(part, Outer):
            outer.append((part.rows.unsqueeze(1), part.cols.unsqueeze(1)))
        elif isinstance(part, OuterSum):
            outer.extend(part.parts)
    if all(isinstance(part, Outer | OuterSum) for part in parts):
        return OuterSum(outer)
    return Mixed(parts, records, numel)


def _product(parts: Sequence[Contribution]) -> Tensor | float:
    """The parts' shares together."""
    kept: Tensor | float = 1.0
    for part in parts:
        kept = kept * part.share()
    return kept


def _raised(norms: Tensor, absolute: Tensor, terms: int) -> Tensor:
    """Norms of sums over positions as upper bounds: CANCELLATION, and the rounding of the norms themselves.

    Args:
        norms: as computed, shape (m,): their squares err by `terms` units of the absolute sum's square at most.
        absolute: the positions' absolute sum, shape (m,).
        terms: roundings in a row.
    """
    slack = math.sqrt(CANCELLATION**2 + terms * torch.finfo(torch.float64).eps)
    return vector_norms(torch.stack([norms, slack * absolute], dim=1))
