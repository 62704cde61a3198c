"""What a batch without records looks like, found by comparing a batch of one record with one of two.

Poisson sampling draws empty batches, and skipping one would be a release of its own. A collate function has never seen
one, so its result is emptied from outside: whatever has grown with the records loses its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from noise_models.errors import UsageError

_PLAIN = (str, bytes, bool, int, float, complex)


def emptied(one: Any, two: Any, place: str = "a batch") -> Any:
    """The batch of no records.

    Tensors and arrays keep their type and the shape of a row; lists, tuples, named tuples, dicts and other mappings,
    and dataclasses keep theirs; what is the same for one record as for two is kept.

    Args:
        one, two: the collated batches of one record, and of that one and another.
        place: where this part is, for the message.
    Raises:
        UsageError: a part that cannot be emptied, or that is made of the batch as a whole.
    """
    if type(one) is not type(two):
        raise _refusal(place, f"is {_kind(one)} for one record and {_kind(two)} for two")
    if isinstance(one, torch.Tensor | np.ndarray):
        return _no_rows(one, two, place)
    if one is None or isinstance(one, _PLAIN):
        if one == two or one != one:
            return one
        raise _refusal(place, f"is {_kind(one)} that depends on the batch as a whole")
    if isinstance(one, PackedSequence):
        raise _refusal(
            place, "is a packed sequence, which has no records in its first dimension: pad to one length"
        )
    if isinstance(one, Mapping):
        return _no_entries(one, two, place)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        values = {
            field.name: emptied(getattr(one, field.name), getattr(two, field.name), f"{place}.{field.name}")
            for field in dataclasses.fields(one)
        }
        return _with_values(one, values)
    if isinstance(one, Sequence):
        return _no_items(one, two, place)
    raise _refusal(place, f"is {_kind(one)}")


def _no_rows(one: Any, two: Any, place: str) -> Any:
    if one.ndim and two.ndim == one.ndim and len(one) and len(two) == 2 * len(one):
        return one[:0]
    if one.shape == two.shape and bool(((one == two) | (one != one)).all()):
        return deepcopy(one)
    raise _refusal(place, "has no row for each record in its first dimension")


def _no_entries(one: Mapping[Any, Any], two: Mapping[Any, Any], place: str) -> Any:
    if list(one) != list(two):
        raise _refusal(place, "is a mapping whose keys depend on the records")
    values = {key: emptied(value, two[key], f"{place}[{key!r}]") for key, value in one.items()}
    if type(one) is dict:
        return values
    try:  # a mapping may hold more than its entries, or a default
        made: Any = deepcopy(one)
        for key, value in values.items():
            made[key] = value
    except Exception:
        return values
    return made


def _no_items(one: Sequence[Any], two: Sequence[Any], place: str) -> Any:
    if len(one) and len(two) == 2 * len(one):  # one item a record, such as file names
        items: list[Any] = []
    elif len(one) == len(two):
        items = [
            emptied(first, second, f"{place}[{i}]")
            for i, (first, second) in enumerate(zip(one, two, strict=True))
        ]
    else:
        raise _refusal(place, "is a sequence that does not grow by one for each record")
    if hasattr(one, "_fields"):  # a named tuple
        return type(one)(*items) if len(items) == len(one) else items
    return tuple(items) if isinstance(one, tuple) else items


def _with_values(one: Any, values: Mapping[str, Any]) -> Any:
    made = object.__new__(type(one))  # its own construction may refuse a batch without records
    for name, value in {**getattr(one, "__dict__", {}), **values}.items():
        object.__setattr__(made, name, value)
    return made


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _refusal(place: str, what: str) -> UsageError:
    return UsageError(
        f"{place} {what}: Poisson sampling draws batches without records, and this part cannot be emptied; let "
        "collate_fn return tensors or arrays with one row a record, or lists, tuples, dicts or dataclasses of them"
    )
