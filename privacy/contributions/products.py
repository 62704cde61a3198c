"""Products of whole-number factors, summed over records exactly: in int8 where a machine has a unit, or in float32."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from noise_models.places import CPU

# Integers up to here, and so sums that stay below it in any order, are exact in float32.
EXACT_FLOAT32 = 1 << 24
EXACT_FLOAT64 = 1 << 53
MOST_INT32 = 1 << 30  # of a sum, to which noise of the same size may be added
MOST_INT8 = 127
_AT_A_TIME = 1 << 18  # numbers of a product, before they are added to a sum
_TRIED = 1, 2, 67  # records, with whose extremes a product is tried


def add_products(rows: Tensor, cols: Tensor, into: Tensor, bias: Tensor | None, bound: int) -> None:
    """`into += rows^T cols` over the records, exactly.

    Args:
        rows: shape (m, n), int8 or float32 whole numbers; of int8, those of `multiplies_int8(device, n, d)`.
        cols: shape (m, d), or (m, d + 1) where there is a bias, whose products are the last column's.
        into: shape (n, d), int32 or int64.
        bias: shape (n,), of the same type.
        bound: of a record's products, so that this many times the records is a bound of the sum; float32 that is not
            exact at it is taken to float64, exact below 2^53.
    """
    narrow, most = rows.dtype is torch.int8, EXACT_FLOAT32
    if narrow:
        most = MOST_INT32
    elif bound > EXACT_FLOAT32:
        rows, cols, most = rows.double(), cols.double(), EXACT_FLOAT64
    step = max(1, most // max(1, bound))
    width = _width(rows, cols)
    for some, others in zip(torch.split(rows, step), torch.split(cols, step), strict=True):
        for start in range(0, rows.shape[1], width):
            here = slice(start, start + width)
            product = _int8(some[:, here], others) if narrow else some[:, here].T @ others
            if product.dtype is torch.float64:
                product = product.to(torch.int64)  # a part of a record's sum may leave int32, which wraps
            into[here] += product[:, : into.shape[1]].to(into.dtype)
            if bias is not None:
                bias[here] += product[:, -1].to(bias.dtype)


def _width(rows: Tensor, cols: Tensor) -> int:
    """Rows of a sum that are worked on at a time; all, where fewer are no shape that was tried."""
    n, d = rows.shape[1], cols.shape[1]
    parts = -(-n * d // _AT_A_TIME)
    if parts < 2:
        return max(1, n)
    width = -(-n // parts // 16) * 16
    widths = {width, n % width or width}
    tried = rows.dtype is not torch.int8 or all(multiplies_int8(rows.device, w, d) for w in widths)
    return width if tried else n


def _int8(rows: Tensor, cols: Tensor) -> Tensor:
    """`rows^T cols` in int32. Of one column the transpose looks like rows of one, which torch leaves unwritten."""
    return torch._int_mm(rows.T if rows.shape[1] > 1 else rows.reshape(1, -1), cols)


@cache
def multiplies_int8(device: torch.device, n: int, d: int) -> bool:
    """Whether the machine has a unit for products of int8 with sums in int32, and these come out exact at this shape.

    Processors without one may add pairs of products in 16 bits, which saturate; and a shape that a library does not
    know may come back as it was.

    Args:
        device: where the products are taken.
        n, d: entries of a record's factors.
    """
    if device != CPU or not getattr(torch.cpu, "_is_vnni_supported", lambda: False)() or not n * d:
        return False
    for records in _TRIED:
        sign = torch.where(torch.arange(records).unsqueeze(1) % 2 == 0, MOST_INT8, -MOST_INT8).to(torch.int8)
        rows, cols = sign.expand(-1, n).contiguous(), sign.expand(-1, d).contiguous()
        rows[:, ::3], cols[:, ::2] = 3, -MOST_INT8
        for some in (rows, rows.abs()):
            try:
                found = _int8(some, cols)
            except RuntimeError:
                return False
            if not torch.equal(found.double(), some.T.double() @ cols.double()):
                return False
    return True
