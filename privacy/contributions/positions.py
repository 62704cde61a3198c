"""Norms of sums of outer products over a record's positions, from the positions' scalar products (Gram matrices).

`|sum_t r_t c_t^T|^2 = sum_ts (r_t · r_s)(c_t · c_s)`: t²(n + d) operations where writing the sum out takes t n d
(Goodfellow 2015, arXiv 1510.01799, for t = 1; Li et al. 2022, arXiv 2110.05679, "ghost clipping").
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from privacy.contributions.products import EXACT_FLOAT32

_ELEMENTS = 1 << 20  # worked on at a time
_EXACT_FLOAT64 = 2.0**50


def norms_of_sums(rows: Tensor, cols: Tensor) -> Tensor:
    """Estimates of `|sum_t rows_it cols_it^T|`, shape (m,), float64; NaN or infinite where a number is.

    Args:
        rows, cols: shapes (m, t, n) and (m, t, d). How a product is rounded may depend on m: it is the same for all.
    """
    square, scale = torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for x in (rows, cols):
        # In units of the largest: nothing overflows.
        most = torch.maximum(x.amax((1, 2)), -x.amin((1, 2)))
        most = most.masked_fill(most == 0, 1.0)
        unit = x / most.view(-1, 1, 1)
        square = square * torch.bmm(unit, unit.mT).double()
        scale = scale * most.double()
    return square.sum((1, 2)).clamp_min(0.0).sqrt() * scale


def bounds_of_sums(rows: Tensor, cols: Tensor) -> Tensor:
    """Upper bounds on `|sum_t rows_it cols_it^T|^2`, tight to 2^-50 of what is added up, shape (m,), float64.

    Args:
        rows, cols: whole numbers, shapes (m, t, n) and (m, t, d). Infinite where a squared norm is above 2^50.
    """
    m, t = rows.shape[:2]
    found = torch.empty(m, dtype=torch.float64, device=rows.device)
    for block in _blocks(m, t * (rows.shape[2] + cols.shape[2] + 2 * t)):
        found[block], exact = _bounds(rows[block].float(), cols[block].float(), EXACT_FLOAT32)
        if not bool(exact.all()):
            again = torch.nonzero(~exact).flatten() + block.start
            found[again], exact = _bounds(rows[again].double(), cols[again].double(), _EXACT_FLOAT64)
            found[again[~exact]] = torch.inf
    return found


def _bounds(rows: Tensor, cols: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """The same, and whether every scalar product was exact: by Cauchy and Schwarz no partial sum of one is above the
    larger squared norm, so that it is where these are below `most`."""
    of_rows, of_cols = torch.bmm(rows, rows.mT), torch.bmm(cols, cols.mT)
    exact = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for gram in (of_rows, of_cols):
        exact &= (gram.diagonal(dim1=1, dim2=2) < most).all(1)
    terms = (of_rows.double() * of_cols.double()).flatten(1)
    return terms.sum(1) + terms.abs().sum(1) * ((terms.shape[1] + 4) * 2.0**-53), exact


def _blocks(m: int, elements: int) -> Iterator[slice]:
    step = max(1, _ELEMENTS // max(1, elements))
    return (slice(start, min(start + step, m)) for start in range(0, m, step))
