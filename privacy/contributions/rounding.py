"""Rounding by coins: each number to one of the two whole numbers beside it, in lanes that draw coins of their own.

The coins are the record's own. They come from a secret generator, because a record that joins shifts which coins those
after it get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from noise_models.randomness.generator import BLOCK, NoiseGenerator
from noise_models.randomness.lanes import LANES, in_lanes
from privacy.contributions.products import MOST_INT8

_ENTRIES = 16 * BLOCK  # worked on at a time: less, and lanes wait for the interpreter more than they work
_COINS = 2 * BLOCK  # drawn at a time
_LEAST = 64  # records a lane: fewer are not worth another thread
_TERMS = 1 << 13  # squares that are added up in float32


@dataclass(frozen=True)
class Task:
    """`out = x · scale` in whole numbers, the mean kept: to 2^-16 where it is below 2^7, else to its own last bits.

    Attributes:
        x: shape (m · t, k), float; t rows a record.
        scale: shape (m · t,), float64; a row is silent where it is not positive and finite in x's type.
        out: shape (m · t, k), or (m · t, k + 1) with `one`; int8 keeps what is at most 127 in size.
        one: append a column of ones, scaled alike.
        alike: one coin a row, for all its numbers, instead of one a number; `out` is float32.
        factor: of a product: an entry above 127 matters.
    """

    x: Tensor
    scale: Tensor
    out: Tensor
    one: bool = False
    alike: bool = False
    factor: bool = True


class Rounding:
    """Rounds factors of records, each record from its own numbers and coins alone."""

    def __init__(self, coins: NoiseGenerator, device: torch.device) -> None:
        """
        Args:
            coins: secret.
            device: of what is rounded.
        """
        self._device = device
        self._memory: dict[tuple[object, ...], Tensor] = {}
        self._lanes = [_Lane(lane, device) for lane in coins.lanes(LANES)]

    def __call__(self, m: int, tasks: Sequence[Task]) -> tuple[list[Tensor], Tensor]:
        """Round what belongs to the same m records.

        Returns:
            upper bounds on every task's sums of squares, of each row, shapes (m · t,), float64: infinite or NaN where
            they are no whole numbers; and whether an entry of a factor was above 127, of each record, shape (m,).
        """
        squares = [torch.zeros(len(task.out), dtype=torch.float64, device=self._device) for task in tasks]
        wide = torch.zeros(m, dtype=torch.bool, device=self._device)
        size = max(_LEAST, -(-m // len(self._lanes)))
        in_lanes(
            [
                partial(lane, tasks, squares, wide, slice(start, min(start + size, m)))
                for lane, start in zip(self._lanes, range(0, m, size), strict=False)
            ]
        )
        return squares, wide

    def memory(self, place: tuple[object, ...], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Memory of that place, with anything in it."""
        return _memory(self._memory, place, shape, dtype, self._device)

    def wipe(self) -> None:
        """Overwrite all that was worked on, and give it back."""
        for memory in self._memory.values():
            memory.zero_()
        self._memory.clear()
        for lane in self._lanes:
            lane.wipe()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_memory": {}}


class _Lane:
    """One thread's share: its coins, and what it works in."""

    def __init__(self, coins: NoiseGenerator, device: torch.device) -> None:
        self._coins, self._device = coins, device
        self._words = np.zeros(BLOCK + 2, dtype=np.uint64)
        self._memory: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, tasks: Sequence[Task], squares: Sequence[Tensor], wide: Tensor, share: slice) -> None:
        for task, square in zip(tasks, squares, strict=True):
            self._round(task, square, wide, share)

    def wipe(self) -> None:
        self._words.fill(0)
        for memory in self._memory.values():
            memory.zero_()
        self._memory.clear()

    def _round(self, task: Task, square: Tensor, wide: Tensor, share: slice) -> None:
        x, out = task.x, task.out
        (rows, width), k = out.shape, x.shape[1]
        if not out.numel():
            return
        each = rows // len(wide)  # of a record
        scale = task.scale[share.start * each : share.stop * each].to(x.dtype).unsqueeze(1)
        silent = ~((scale > 0) & scale.isfinite())
        any_silent = bool(silent.any())
        step = max(1, _ENTRIES // (each * width))
        for start in range(share.start, share.stop, step):
            records = slice(start, min(start + step, share.stop))
            block = slice(records.start * each, records.stop * each)
            here = slice(block.start - share.start * each, block.stop - share.start * each)
            own = scale[here]
            work = out[block] if task.alike else self._kept("work", (len(own), width))
            torch.mul(x[block], own, out=work[:, :k])
            if task.one:
                work[:, k:] = own
            for some in torch.split(work if task.alike else work.view(-1, 1), _COINS):
                some.add_(self._drawn(len(some)), alpha=2.0**-16)
            work.round_()
            if any_silent:
                # Whatever the record holds.
                work.masked_fill_(silent[here], 0.0)
            norms = _bounds(work)
            torch.square(norms, out=square[block])
            # What is no number is not within anything.
            if task.factor and not float(norms.max()) <= MOST_INT8 and not _fits(work):
                large = ~(torch.maximum(work.amax(1), -work.amin(1)) <= MOST_INT8)
                wide[records] |= large.view(-1, each).any(1)
            if not task.alike:
                out[block] = work

    def _kept(self, place: str, shape: tuple[int, int]) -> Tensor:
        return _memory(self._memory, (place,), shape, torch.float32, self._device)

    def _drawn(self, count: int) -> Tensor:
        """Coins, whole numbers from -2^15 to 2^15 - 1 with equal probabilities, as float32, shape (count, 1); _COINS at
        most."""
        self._coins.fill(self._words, (count + 3) // 4)
        drawn = torch.from_numpy(self._words.view(np.int16)[:count]).view(-1, 1)
        return self._kept("coins", (count, 1)).copy_(drawn)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_memory": {}, "_words": np.zeros_like(self._words)}


def _memory(
    kept: dict[tuple[object, ...], Tensor],
    place: tuple[object, ...],
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Memory that is used again; what is too small is overwritten and given back."""
    size = shape[0] * shape[1]
    memory = kept.get(place)
    if memory is None or memory.numel() < size:
        if memory is not None:
            memory.zero_()
        memory = kept[place] = torch.zeros(size, dtype=dtype, device=device)
    return memory[:size].view(shape)


def _fits(whole: Tensor) -> bool:
    """Whether all numbers are at most 127 in size; those that are none are not."""
    return float(whole.amax()) <= MOST_INT8 and float(whole.amin()) >= -MOST_INT8


def _bounds(whole: Tensor) -> Tensor:
    """Upper bounds on norms of whole numbers, shape (m,), float64: a sum of k squares errs by k roundings at most."""
    m, k = whole.shape
    parts = next((parts for parts in range(-(-k // _TERMS), 65) if k % parts == 0), None)
    if parts is None:
        return torch.linalg.vector_norm(whole, dim=1, dtype=torch.float64).mul_(1 + (k + 4) * 2.0**-53)  # type: ignore[no-any-return]
    found: Tensor = torch.linalg.vector_norm(whole.view(m * parts, k // parts), dim=1).double()
    found.mul_(1 + (k // parts + 4) * 2.0**-24)
    if parts == 1:
        return found
    return torch.linalg.vector_norm(found.view(m, parts), dim=1).mul_(1 + (parts + 4) * 2.0**-53)  # type: ignore[no-any-return]
