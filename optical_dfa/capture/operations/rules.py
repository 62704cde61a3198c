"""What a rule is, a table of rules, and what rules say of an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from optical_dfa.capture.operations.call import OVER, Call, MixingError
from optical_dfa.capture.rows import Rows

Placed = Rows | tuple[Rows | None, ...]
RowRule = Callable[[Call], Placed]


class Rules(dict[str, RowRule]):
    """Rules by the names of their operations."""

    def of(self, *names: str) -> Callable[[RowRule], RowRule]:
        """Enter the rule of these operations."""

        def enter(function: RowRule) -> RowRule:
            self.update(dict.fromkeys(names, function))
            return function

        return enter


def axis_of(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def axes_of(dims: Any, ndim: int) -> list[int]:
    return [axis_of(dim, ndim) for dim in (dims if isinstance(dims, list | tuple) else [dims])]


def across(rows: Rows, dim: int, ndim: int) -> Rows:
    """Along axis `dim` something is done that must stay within a record."""
    if axis_of(dim, ndim) == rows.axis:
        raise MixingError(OVER)
    return rows


def free_of_last(x: Tensor, rows: Rows, axes: int) -> Rows:
    """The last `axes` axes are mixed."""
    if rows.axis >= x.ndim - axes:
        raise MixingError(OVER)
    return rows
