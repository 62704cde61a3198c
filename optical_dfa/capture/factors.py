"""Contributions record by record, for releases that work on each record's own numbers before any sum is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from optical_dfa.capture.contributions import Contribution, Kernel, Lookup, Outer, OuterSum, RowContribution
from privacy.contributions.integers import Factors
from privacy.contributions.protocols import Keeps

_ELEMENTS = 1 << 22  # handed out at a time


def factors(
    contributions: dict[str, Contribution], sizes: Mapping[str, int], rows: int, records: int, keeps: Keeps
) -> Iterator[list[Factors]]:
    """The records' contributions, run by run of records: few outer products of a weight as such, else written out.

    Args:
        contributions: to every parameter that was reached; emptied, so that their memory is free once the last run was
            worked on.
        sizes: coordinates of every parameter, in the order of the flat stack.
        rows: of the contributions; they are taken in runs whose length does not depend on the records.
        records: the first so many rows; the others are left out.
        keeps: whether a sum of so many products, of so many rows and columns, is handed out as these products.
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
    contributions.clear()
    most = max(
        1, _ELEMENTS // max(1, sum(_elements(part, sizes[name], keeps) for name, part in apart.items()))
    )
    # All runs are of one length: how a record's sums are rounded may depend on it.
    run = next((run for run in range(min(most, rows), most // 4, -1) if rows % run == 0), most)
    for start in range(0, records, run):
        block = slice(start, min(start + run, rows))
        taken = slice(0, min(records, block.stop) - start)
        yield _run(apart, block, taken, offsets, biases, keeps, last=start + run >= records)


def _run(
    parts: dict[str, Contribution],
    block: slice,
    taken: slice,
    offsets: Mapping[str, int],
    biases: Mapping[str, str],
    keeps: Keeps,
    *,
    last: bool,
) -> list[Factors]:
    """Of some rows, with nothing left of the parts after the last."""
    found = [
        _factors(part, block, offsets[name], offsets.get(biases.get(name, "")), keeps).part(taken)
        for name, part in parts.items()
    ]
    if last:
        parts.clear()
    return found


def _elements(part: Contribution, size: int, keeps: Keeps) -> int:
    """Numbers of a record that are worked on, in units of four bytes: factors become one byte each."""
    if isinstance(part, Outer):
        return (part.rows.shape[1] + part.cols.shape[1]) // 4
    if isinstance(part, OuterSum) and keeps(*_shape(part)):
        positions, n, d = _shape(part)
        return positions * ((n + d) // 4 + 4 * positions)
    if isinstance(part, Lookup):
        return part.tokens.shape[1] * (part.tokens.shape[1] + part.rows.shape[2])
    return size


def _factors(part: Contribution, block: slice, offset: int, bias: int | None, keeps: Keeps) -> Factors:
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
        if keeps(*_shape(part)):
            return Factors.summed(offset, rows, cols)
        return Factors(offset, torch.bmm(rows.mT, cols).flatten(1))
    return Factors(offset, part.explicit(block.start, block.stop))


def _once(tokens: Tensor, rows: Tensor) -> Tensor:
    """What lands in each token's entry, at its first place in the record; shape as of rows, (m, t, width)."""
    same = tokens.unsqueeze(2) == tokens.unsqueeze(1)
    first = ~same.tril(-1).any(2)
    return torch.bmm((same & first.unsqueeze(2)).to(rows.dtype), rows)


def _shape(part: OuterSum) -> tuple[int, int, int]:
    """Products of a sum, and the rows and columns of one."""
    rows, cols = part.parts[0]
    return part.positions, rows.shape[2], cols.shape[2]


def _at_all_positions(part: OuterSum, block: slice) -> tuple[Tensor, Tensor]:
    """Rows and columns, shapes (m, t, n) and (m, t, d)."""
    if len(part.parts) == 1:
        rows, cols = part.parts[0]
        return rows[block], cols[block]
    rows, cols = (torch.cat([pair[i][block] for pair in part.parts], dim=1) for i in (0, 1))
    return rows, cols
