"""What is known of an operation whatever it is called with, and what of a call is compared between passes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from optical_dfa.capture.masks import DRAWN
from optical_dfa.capture.operations import rule_of
from optical_dfa.capture.operations.call import base_name
from optical_dfa.capture.operations.elements import pointwise
from optical_dfa.capture.operations.rules import RowRule

# Made of sizes alone.
FACTORIES = frozenset({
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn",
    "_efficientzerotensor",
})  # fmt: skip
NAMES = frozenset({"detach", "alias"})  # another name of the same values
# What may take the places of the records; other names of them may be made.
COUNTED = NAMES | {"index", "_embedding_bag", "_embedding_bag_forward_only"}
RESHAPING = frozenset({"view", "_unsafe_view", "reshape"})
# Called with sizes, which are compared by themselves: they may be multiples of the number of records.
SIZED = FACTORIES | RESHAPING | {"expand", "repeat", "arange", "affine_grid_generator"}
SIZES = ("size", "repeats", "shape")


class Traits:
    """What is known of an operation, whatever it is called with.

    Attributes:
        name: without overload and namespace.
        overload: which of its forms.
        rule: of its records' axis, None where there is none.
        written: places of the positional arguments that it writes to, and names of the keyword ones.
        random: whether it draws.
        reads: whether it takes a value into Python.
        simple: whether it works element by element, and makes one tensor.
        renames: whether it returns another name of the same values.
        sized: whether it is called with sizes.
        views: whether what it returns shares memory with its first argument.
    """

    __slots__ = (
        "name", "overload", "random", "reads", "renames", "rule", "simple", "sized", "views", "written",
        "written_names",
    )  # fmt: skip

    def __init__(self, func: OpOverload) -> None:
        self.name, self.overload = base_name(func), func._overloadname
        self.rule: RowRule | None = rule_of(func)
        arguments = func._schema.arguments
        writes = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        self.written = tuple(i for i, a in enumerate(arguments) if writes[i] and not a.kwarg_only)
        self.written_names = tuple(a.name for i, a in enumerate(arguments) if writes[i] and a.kwarg_only)
        draws = torch.Tag.nondeterministic_seeded in func.tags and "dot_product" not in self.name
        self.random = draws or self.name in DRAWN
        returned = func._schema.returns
        self.views = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        self.reads = self.name in ("_local_scalar_dense", "equal", "is_nonzero", "item")
        self.renames, self.sized = self.name in NAMES, self.name in SIZED
        self.simple = (
            (self.rule is pointwise or self.rule is None)
            and func.namespace == "aten"
            and (torch.Tag.pointwise in func.tags or self.name == "_to_copy")
            and not (self.written or self.written_names or self.random)
            and len(returned) == 1
        )


@cache
def plan_of(func: OpOverload) -> Traits:
    return Traits(func)


def entry_of(plan: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What was called with which numbers; sizes that may be multiples of the number of records are left out."""
    if plan.name == "native_group_norm":  # its fourth argument is the number of records
        args = (*args[:3], *args[4:])
    elif plan.name == "arange":
        args = tuple(type(value) for value in args)  # their types are the result's
    elif plan.sized:
        args = tuple(value for value in args if not isinstance(value, list | tuple))
    entry = [plan.name, plan.overload, *(number(value) for value in args)]
    if kwargs:
        entry += ((name, number(value)) for name, value in kwargs.items() if name not in SIZES)
    return tuple(entry)


def number(value: Any) -> Any:
    """A number or word of a call, with its type: True is not 1, and 1.0 is neither."""
    if isinstance(value, list | tuple):
        return tuple(number(entry) for entry in value)
    if isinstance(value, Tensor):
        return Tensor  # its place
    return type(value), repr(value) if isinstance(value, float | complex) else value


def argument_of(
    func: OpOverload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: tuple[str, ...],
    default: Any = None,
) -> Any:
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in names:
            if argument.name in kwargs:
                return kwargs[argument.name]
            return args[place] if place < len(args) else default
    return default


def tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(entry for entry in value if isinstance(entry, Tensor))
    return found
