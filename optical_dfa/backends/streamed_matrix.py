"""A random matrix that is never stored: a counter-based generator makes its entries, tile by tile, as they are used.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405)
turns a counter and a key into four words of 64 bits, here sixteen entries, whatever was drawn before. numpy has it in
C, and keeps the stream of its bit generators as it is (NEP 19).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from torch import Tensor

from noise_models.randomness.generator import derive_seed
from noise_models.randomness.lanes import in_lanes
from optical_dfa.backends.matrix import check_held

PANEL: Final = 256  # rows whose entries of one column are drawn together
_BLOCKS: Final = PANEL // 16  # counters that one column of a panel takes
_COLUMNS: Final = 4096  # of a tile: 4 MB
_PIECE: Final = 512  # columns that are drawn at a time, within a core's own cache
_SHARED: Final = 1 << 20  # entries from which on more than one lane is quicker


Floats = npt.NDArray[np.float32]


@cache
def quantiles() -> Floats:
    """The values that an entry takes, all equally likely, shape (65536,), float32, increasing.

    They are the normal law's quantiles at (k + ½) / 65536, times 1.0000101, which makes their variance 1. Beside the
    normal law's: none is beyond 4.325, the distribution function differs by at most 1.01e-5, the kurtosis is 2.99925.
    """
    lower = ndtri((np.arange(1 << 15) + 0.5) / (1 << 16))
    lower /= np.sqrt(np.mean(lower**2))
    return np.concatenate((lower, -lower[::-1])).astype(np.float32)


class StreamedMatrix:
    """B, shape (out_features, in_features), i.i.d. entries of mean 0 and E|B_ij|² = 1 that are nowhere stored.

    Entry (i, j) is a function of seed, i and j alone: `quantiles()[u]`, where u is the (i mod 256)-th number of 16
    bits, lowest bits first, of the words that Philox4x64-10 makes of the counters (16 j + 0…15, ⌊i / 256⌋, part, 0)
    under the key (derived from the seed, 0); part is 0. A complex entry is √½ (that + i the same of part 1). Any
    tiling, any number of threads, and every slice of rows or columns therefore have the same bits, on any machine.

    Tiles are drawn and multiplied in lanes, as many as torch has threads.

    Attributes:
        rows: those that `times` multiplies by.
    """

    def __init__(
        self, in_features: int, out_features: int, seed: int, *, complex_entries: bool = False
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.complex_entries = complex_entries
        self.rows = range(out_features)
        self._key = derive_seed(seed, "projection-matrix")

    def keep(self, rows: range) -> range:
        """Multiply by the panels of these rows alone from now on: a narrower product might be rounded otherwise."""
        end = min(self.out_features, -(-rows.stop // PANEL) * PANEL)
        self.rows = range(rows.start // PANEL * PANEL, end)
        return self.rows

    def times(self, x: Tensor) -> Tensor:
        """`x Bᵀ` of x of shape (m, in_features), shape (m, rows), where x is; in x's dtype, complex if B is."""
        first = self.rows.start
        out = self._zeros(x, len(self.rows))

        def panel(rows: range) -> None:
            for start in range(0, self.in_features, _COLUMNS):
                columns = range(start, min(start + _COLUMNS, self.in_features))
                tile = self._tile(rows, columns).to(out)
                at = slice(rows.start - first, rows.stop - first)
                out[:, at] += x[:, columns.start : columns.stop].to(out.dtype) @ tile

        self._share(panel, _panels(self.rows), self.in_features)
        return out

    def transposed_times(self, y: Tensor) -> Tensor:
        """`y B` of y of shape (m, out_features), shape (m, in_features), as `times`; B is not conjugated."""
        out = self._zeros(y, self.in_features)

        def strip(columns: range) -> None:
            for rows in _panels(range(self.out_features)):
                tile = self._tile(rows, columns).to(out)
                out[:, columns.start : columns.stop] += y[:, rows.start : rows.stop].to(out.dtype) @ tile.T

        starts = range(0, self.in_features, _PIECE)
        strips = [range(start, min(start + _PIECE, self.in_features)) for start in starts]
        self._share(strip, strips, self.out_features)
        return out

    def block(self, rows: range, columns: range) -> Tensor:
        """Entries of consecutive rows and columns, shape (rows, columns), float32 or complex64 on the CPU.

        Raises:
            UsageError: there are too many of them.
        """
        check_held(len(rows), len(columns))
        dtype = torch.complex64 if self.complex_entries else torch.float32
        out = torch.empty(len(rows), len(columns), dtype=dtype)

        def panel(part: range) -> None:
            for start in range(columns.start, columns.stop, _COLUMNS):
                across = range(start, min(start + _COLUMNS, columns.stop))
                at = slice(across.start - columns.start, across.stop - columns.start)
                out[part.start - rows.start : part.stop - rows.start, at] = self._tile(part, across).T

        self._share(panel, _panels(rows), len(columns))
        return out

    def _zeros(self, like: Tensor, features: int) -> Tensor:
        dtype = like.dtype.to_complex() if self.complex_entries else like.dtype
        return like.new_zeros(len(like), features, dtype=dtype)

    def _share(self, work: Callable[[range], None], parts: Sequence[range], across: int) -> None:
        """Do each part, `len(part)` by `across` entries of B."""
        small = sum(map(len, parts)) * across < _SHARED
        in_lanes([partial(work, part) for part in parts], 1 if small else torch.get_num_threads())

    def _tile(self, rows: range, columns: range) -> Tensor:
        """Bᵀ of consecutive columns and of rows within one panel, shape (columns, rows), float32 or complex64."""
        if not self.complex_entries:
            return self._part(rows, columns, part=0)
        return torch.complex(*(self._part(rows, columns, part) for part in (0, 1))).mul_(sqrt(0.5))

    def _part(self, rows: range, columns: range, part: int) -> Tensor:
        panel, first = divmod(rows.start, PANEL)
        counter = (part << 128) + (panel << 64) + columns.start * _BLOCKS
        # numpy counts up before it draws. A Generator's draws, unlike the bit generator's own, leave others running.
        philox = np.random.Philox(key=self._key, counter=(counter - 1) % (1 << 256))
        words = np.random.Generator(philox)
        tile = torch.empty(len(columns), PANEL)  # by torch: products' last bits go by how memory is aligned
        for start in range(0, len(columns), _PIECE):
            piece = tile[start : start + _PIECE].view(-1).numpy()
            drawn = words.integers(0, 1 << 64, size=piece.size // 4, dtype=np.uint64)
            numbers = drawn.astype("<u8", copy=False).view("<u2")
            quantiles().take(numbers, out=piece, mode="clip")  # none is clipped; "raise" would buffer
        return tile[:, first : first + len(rows)]


def _panels(rows: range) -> list[range]:
    """These rows, panel by panel."""
    starts = range(rows.start // PANEL * PANEL, rows.stop, PANEL)
    return [range(max(rows.start, start), min(rows.stop, start + PANEL)) for start in starts]
