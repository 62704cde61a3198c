"""Contributions in factored form, for releases that work on each record's own numbers before any sum is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from optical_dfa.capture.contributions import Contribution, Outer
from privacy.contributions.integers import Factors

_ELEMENTS = 1 << 21  # handed out at a time


def factors(
    contributions: Mapping[str, Contribution], parameters: Mapping[str, nn.Parameter], records: int
) -> Iterator[list[Factors]]:
    """The records' contributions, run by run of records: outer products as such, anything else written out.

    Args:
        contributions: to every parameter that was reached.
        parameters: all of them, in the order of the flat stack.
        records: in the batch.
    """
    if not contributions or not records:
        return
    elements = sum(
        part.rows.shape[1] + part.cols.shape[1] if isinstance(part, Outer) else parameters[name].numel()
        for name, part in contributions.items()
    )
    run = max(1, _ELEMENTS // elements)
    for start in range(0, records, run):
        stop = min(start + run, records)
        stack, offset = [], 0
        for name, p in parameters.items():
            part = contributions.get(name)
            if isinstance(part, Outer):
                stack.append(Factors(offset, part.rows[start:stop], part.cols[start:stop]))
            elif part is not None:
                stack.append(Factors(offset, part.explicit(start, stop)))
            offset += p.numel()
        yield stack
