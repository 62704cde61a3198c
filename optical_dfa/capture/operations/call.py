"""One call of an operation, as its rule is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from optical_dfa.capture.rows import Rows

# How an operation mixes records.
OVER = "over the axis of the records"
NO_CONSTANT = "with records in an operand that must be a constant"
ELSEWHERE = "between tensors that keep the records in different places"
DIFFERS = "with a constant that differs from record to record (a count of the records?)"


class MixingError(Exception):
    """The operation mixes records, or cannot be followed; the words say how."""


class Call:
    """One call of an operation on tensors of which at least one holds records.

    Attributes:
        name: of the operation, without overload.
        args, kwargs: as given.
        records: how many, 2 or more.
        out: what it returned; None before a call that writes to its arguments.
        uniform: whether a constant is the same for every record, were it to hold records there.
    """

    __slots__ = ("_names", "_rows", "args", "kwargs", "name", "out", "records", "uniform")

    def __init__(
        self,
        func: OpOverload,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        out: Any,
        records: int,
        rows: Callable[[Tensor], Rows | None],
        uniform: Callable[[Tensor, Rows], bool],
    ) -> None:
        """
        Args:
            rows: where a tensor holds records; None for a constant.
            uniform: the attribute.
        """
        self.name, self._names = _signature(func)
        self.args, self.kwargs, self.out, self.records = args, kwargs, out, records
        self._rows, self.uniform = rows, uniform

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by the name of the operation's schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        place, own = self._names.get(name, (len(self.args), None))
        return self.args[place] if place < len(self.args) else default if own is None else own

    def rows(self, x: Any) -> Rows | None:
        return self._rows(x) if isinstance(x, Tensor) else None

    def only(self, name: str = "self") -> tuple[Tensor, Rows]:
        """The tensor of that name, which alone may hold records; every other tensor must be a constant."""
        x = self.get(name)
        for other in self.tensors():
            if other is not x and self.rows(other) is not None:
                raise MixingError(NO_CONSTANT)
        rows = self.rows(x)
        if rows is None:
            raise MixingError(NO_CONSTANT)
        return x, rows

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, list | tuple):
                found.extend(entry for entry in value if isinstance(entry, Tensor))
        return found

    def together(self, tensors: Sequence[Tensor], ndim: int, broadcast: bool = True) -> Rows:
        """Where the records are, counted from the last axis, of operands that are broadcast to `ndim` axes.

        Args:
            broadcast: whether the operation repeats an axis of size 1.
        Raises:
            MixingError: they are not in one place, or a constant differs from record to record.
        """
        place: Rows | None = None
        for x in tensors:
            rows = self.rows(x)
            if rows is None:
                continue
            moved = rows.moved(rows.axis + ndim - x.ndim)
            if place is None:
                place = moved
            elif place != moved:
                raise MixingError(ELSEWHERE)
        assert place is not None  # asked for calls with records only
        for x in tensors:
            if self.rows(x) is not None:
                continue
            axis = place.axis - (ndim - x.ndim)
            if axis < 0 or (broadcast and x.shape[axis] == 1):
                continue
            if not self.uniform(x, place.moved(axis)):
                raise MixingError(DIFFERS)
        return place

    def added(self, rows: Rows, x: Any, ndim: int) -> Rows:
        """What `x` may be that is added to rows of `ndim` axes which are there already.

        Raises:
            MixingError: it keeps records elsewhere, or is a constant that differs from record to record.
        """
        if not isinstance(x, Tensor):
            return rows
        other, axis = self.rows(x), rows.axis - (ndim - x.ndim)
        if other is not None:
            if other.moved(other.axis + ndim - x.ndim) != rows:
                raise MixingError(ELSEWHERE)
        elif axis >= 0 and x.shape[axis] != 1 and not self.uniform(x, rows.moved(axis)):
            raise MixingError(DIFFERS)
        return rows

    def constants(self, *names: str) -> None:
        """These arguments may not hold records."""
        for name in names:
            value = self.get(name)
            for x in value if isinstance(value, list | tuple) else (value,):
                if self.rows(x) is not None:
                    raise MixingError(NO_CONSTANT)


@cache
def _signature(func: OpOverload) -> tuple[str, dict[str, tuple[int, Any]]]:
    """Its name, and by name of an argument its place and default."""
    arguments = func._schema.arguments
    return base_name(func), {a.name: (place, a.default_value) for place, a in enumerate(arguments)}


def base_name(func: OpOverload) -> str:
    """`add` of `aten.add_.Tensor`; operations of other libraries keep their namespace."""
    space, _, name = func._schema.name.partition("::")
    name = name.removesuffix("_") if not name.startswith("__") else name
    return name if space == "aten" else f"{space}::{name}"
