"""Contributions record by record, for releases that work on each record's own numbers before any sum is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from optical_dfa.capture.contributions import Contribution, Kernel, Lookup, Outer, OuterSum, RowContribution
from privacy.contributions.integers import Factors

_ELEMENTS = 1 << 22  # handed out at a time
_FACTORED = (
    2  # times the work on a number of a sum is that on one of its factors, norms and products included
)


def factors(
    contributions: Mapping[str, Contribution], sizes: Mapping[str, int], rows: int, records: int
) -> Iterator[list[Factors]]:
    """The records' contributions, run by run of records: few outer products of a weight as such, else written out.

    Args:
        contributions: to every parameter that was reached.
        sizes: coordinates of every parameter, in the order of the flat stack.
        rows: of the contributions; they are taken in runs whose length does not depend on the records.
        records: the first so many rows; the others are left out.
    """
    if not contributions:
        return
    offsets, offset = {}, 0
    for name, size in sizes.items():
        offsets[name] = offset
        offset += size
    # A bias whose rows are a weight's own goes with it.
    alone = {id(part.rows): name for name, part in contributions.items() if isinstance(part, RowContribution)}
    biases = {
        name: alone.pop(id(part.rows))
        for name, part in contributions.items()
        if isinstance(part, Outer) and id(part.rows) in alone
    }
    apart = {name: part for name, part in contributions.items() if name not in biases.values()}
    run = max(1, _ELEMENTS // max(1, sum(_elements(part, sizes[name]) for name, part in apart.items())))
    for start in range(0, records, run):
        block = slice(start, min(start + run, rows))
        taken = slice(0, min(records, block.stop) - start)
        yield [
            _factors(part, block, offsets[name], offsets.get(biases.get(name, ""))).part(taken)
            for name, part in apart.items()
        ]


def _elements(part: Contribution, size: int) -> int:
    """Numbers of a record that are worked on, in units of four bytes: factors become one byte each."""
    if isinstance(part, Outer):
        return (part.rows.shape[1] + part.cols.shape[1]) // 4
    if isinstance(part, OuterSum) and _stays_factored(part):
        rows, cols = part.parts[0]
        return part.positions * ((rows.shape[2] + cols.shape[2]) // 4 + 4 * part.positions)
    if isinstance(part, Lookup):
        return part.tokens.shape[1] * (part.tokens.shape[1] + part.rows.shape[2])
    return size


def _factors(part: Contribution, block: slice, offset: int, bias: int | None) -> Factors:
    if isinstance(part, Outer):
        return Factors(offset, part.rows[block], part.cols[block], bias=bias)
    if isinstance(part, RowContribution):
        return Factors(offset, part.rows[block])
    if isinstance(part, Lookup):
        tokens = part.tokens[block]
        return Factors(
            offset, _once(tokens, part.rows[block]).flatten(1), tokens=tokens, entries=part.entries
        )
    if isinstance(part, Kernel):
        return Factors(offset, part.written_out(block.start, block.stop))
    if isinstance(part, OuterSum):
        rows, cols = _at_all_positions(part, block)
        if _stays_factored(part):
            return Factors.summed(offset, rows, cols)
        return Factors(offset, torch.bmm(rows.mT, cols).flatten(1))
    return Factors(offset, part.explicit(block.start, block.stop))


def _once(tokens: Tensor, rows: Tensor) -> Tensor:
    """What lands in each token's entry, at its first place in the record; shape as of rows, (m, t, width)."""
    same = tokens.unsqueeze(2) == tokens.unsqueeze(1)
    first = ~same.tril(-1).any(2)
    return torch.bmm((same & first.unsqueeze(2)).to(rows.dtype), rows)


def _stays_factored(part: OuterSum) -> bool:
    """Whether rounding every position's factors is less work than rounding their sum."""
    rows, cols = part.parts[0]
    return _FACTORED * part.positions * (rows.shape[2] + cols.shape[2]) < part.numel


def _at_all_positions(part: OuterSum, block: slice) -> tuple[Tensor, Tensor]:
    """Rows and columns, shapes (m, t, n) and (m, t, d)."""
    if len(part.parts) == 1:
        rows, cols = part.parts[0]
        return rows[block], cols[block]
    rows, cols = (torch.cat([pair[i][block] for pair in part.parts], dim=1) for i in (0, 1))
    return rows, cols
