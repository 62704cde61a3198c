"""Where a tensor keeps its records, and what becomes of that place under reshapes and broadcasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Rows(NamedTuple):
    """Record r stands where the index along `axis` is `(o * records + r) * inner + i`, 0 <= o < outer, 0 <= i < inner.

    A tensor with records first has Rows(0). (records, T) flattened has inner = T; (T, records) flattened outer = T.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def moved(self, axis: int) -> Rows:
        """The same along another axis."""
        return Rows(axis, self.outer, self.inner)

    @property
    def alone(self) -> bool:
        """Whether the axis holds the records and nothing else."""
        return self.outer == 1 and self.inner == 1

    @property
    def counted(self) -> bool:
        """Whether they are `places`."""
        return self.axis == 0 and self.outer == 0


FIRST = Rows(0)
# Of what an operation made of its constants alone, beside outputs that hold records.
CONSTANT = Rows(-1, 1, 0)


def places(step: int) -> Rows:
    """Of whole numbers 0, step, 2 * step, ..., one for each record by its place: what fits no shape."""
    return Rows(0, 0, step)


def fits(rows: Rows, shape: Sequence[int], records: int) -> bool:
    """Whether a tensor of this shape can keep so many records there."""
    return 0 <= rows.axis < len(shape) and shape[rows.axis] == rows.outer * records * rows.inner


def reshaped(shape: Sequence[int], rows: Rows, new: Sequence[int], records: int) -> Rows | None:
    """Where the records are after a reshape from `shape` to `new`, both row-major; None where it takes them apart.

    Args:
        records: 2 or more.
    """
    if math.prod(shape) == 0:
        return rows if fits(rows, new, records) else None
    stride = rows.inner * math.prod(shape[rows.axis + 1 :])  # of one record, in elements
    below = 1
    for axis in range(len(new) - 1, -1, -1):
        whole = below * new[axis]
        if below <= stride < whole:
            if stride % below or whole % (stride * records):
                return None
            return Rows(axis, whole // (stride * records), stride // below)
        below = whole
    return None
