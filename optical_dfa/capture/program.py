"""The operations of a pass, as passes over batches of two sizes agree on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noise_models.places import on_cpu

SMALL, LARGER = 3, 5  # records of the passes that are compared
REMEDY = (
    "a private update must be a sum over records (normalise over features, not over the batch or its size)"
)


class Program:
    """The operations of a pass, as two passes of different size agree on them.

    Attributes:
        entries: what was called with which numbers, in order.
        sizes: of what was made from sizes, in order: each (multiple of the number of records, else the size itself).
        returned: which of the tensors the pass handed on.
    """

    def __init__(
        self,
        entries: tuple[Any, ...],
        sizes: tuple[tuple[tuple[int, int], ...], ...],
        returned: tuple[Any, ...],
    ) -> None:
        self.entries, self.sizes, self.returned = entries, sizes, returned


def first_difference(one: Sequence[Any], two: Sequence[Any]) -> str:
    for a, b in zip(one, two, strict=False):
        if a != b:
            return str(a[0]) if a[0] != b[0] else f"the numbers of {a[0]}"
    return str((one if len(one) > len(two) else two)[min(len(one), len(two))][0]) if one or two else "sizes"


def digest_of(x: Tensor) -> str:
    """Of the values of a constant that no operation made."""
    if not x.numel() or x.layout != torch.strided or x.device.type == "meta":
        return ""
    with torch._C.DisableTorchFunction():
        values = on_cpu(x).reshape(-1).view(torch.uint8)
        return hashlib.sha256(values.numpy().data).hexdigest()
