"""How a private loop's batches are drawn: by Poisson sampling with secret coins (THEORY T3), or in public (T7).

The plan of the steps is made of public numbers alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from privacy.arguments import refuse_types
from privacy.fixed import Fixed
from privacy.records import Records, map_style, tell_unused
from privacy.workers import Workers

# A data set may be this much larger than declared, so that no refusal depends on one record.
SIZE_SLACK = 1.1


def steps_an_epoch(size: int, batch_size: int) -> int:
    """Logical batches that an epoch of `size` records is made of."""
    return max(1, round(size / batch_size))


class SamplingPlan:
    """How steps are drawn: sample rate, expected batch size and steps an epoch, all from the public N."""

    def __init__(
        self,
        loader: DataLoader[Any],
        poisson_sampling: bool,
        public_size: int | None,
        max_physical_batch_size: int | None,
    ) -> None:
        if poisson_sampling is not True:
            raise UsageError(
                f"poisson_sampling is {poisson_sampling!r:.20}; shuffled batches have no subsampling guarantee, leave "
                "it True"
            )
        whole = {"public_size": public_size, "max_physical_batch_size": max_physical_batch_size}
        refuse_types({}, {name: value for name, value in whole.items() if value is not None})
        data = map_style(loader)
        self.loader = loader
        self.size = len(data) if public_size is None else public_size
        batch = loader.batch_size or 0
        if not 1 <= batch <= self.size:
            raise UsageError(
                f"the expected batch size is {batch} and the public size {self.size}; need 1 <= batch <= N"
            )
        if max_physical_batch_size is not None and max_physical_batch_size < 1:
            raise UsageError(f"max_physical_batch_size is {max_physical_batch_size}; it must be at least 1")
        self.sample_rate = batch / self.size
        if len(data) > max(SIZE_SLACK * self.size, self.size + 1):
            raise UsageError(
                f"the public size is {self.size}, far below the number of records; declare one that is not below it"
            )
        self.expected_batch_size = batch
        self.steps = steps_an_epoch(self.size, batch)
        self.max_physical_batch_size = max_physical_batch_size
        tell_unused(loader)

    def block_rows(self, workers: int) -> int:
        """Rows of the blocks in which batches go through the module, a multiple of 32; seldom are two needed.

        Kernels that work element by element take 32 numbers at a time, and the last few in another way.

        Args:
            workers: which the records are shared among.
        """
        expected = self.expected_batch_size / workers
        usual = math.ceil(expected + 2 * math.sqrt(expected))
        return -(-min(usual, self.max_physical_batch_size or usual) // 32) * 32


@dataclass(frozen=True)
class Batch:
    """What the loader handed out last.

    Attributes:
        records: its number of records: PRIVATE, as is whether it is one or none.
        first: whether it begins a logical batch (a step may be cut into several physical batches).
        final: whether it completes one.
        epoch: number of the pass over the data, where a record takes part once a pass; 0 elsewhere.
    """

    records: int
    first: bool
    final: bool
    epoch: int = 0


class PrivateLoader(Fixed, ABC):
    """Iterates over one epoch of logical batches, handed out in parts where they are large; empty ones are batches.

    Each batch must be followed by `optimizer.step()` before the next is handed out: skipping one because of what
    it holds would be a release of its own. Attributes are read-only.

    Attributes:
        dataset, collate_fn: the ordinary loader's; its worker processes and pinned memory are used too.
        steps: logical batches an epoch.
        max_physical_batch_size: larger batches are handed out in parts of this size; None is whole ones.
    """

    _changing = frozenset({"_current", "_stepped", "_loop"})
    _empty_batches = False

    def __init__(
        self, loader: DataLoader[Any], steps: int, max_physical_batch_size: int | None = None
    ) -> None:
        """
        Args:
            loader: the ordinary loader; its data set and collate function are used, its order is not.
            steps: logical batches an epoch.
            max_physical_batch_size: larger batches are handed out in parts of this size.
        Raises:
            UsageError: a loader whose batches cannot be drawn anew, or cannot be empty.
        """
        if max_physical_batch_size is not None and max_physical_batch_size < 1:
            raise UsageError(f"max_physical_batch_size is {max_physical_batch_size}; it must be at least 1")
        self._records = Records(loader, empty=self._empty_batches)
        self.dataset = self._records.dataset
        self.collate_fn: Callable[[Any], Any] = self._records.collate
        self.steps = steps
        self.max_physical_batch_size = max_physical_batch_size
        self._current: Batch | None = None
        self._stepped = False
        self._ahead: deque[tuple[Tensor, int]] = deque()  # drawn and not handed out
        self._loop = 0

    @property
    def current(self) -> Batch | None:
        """The batch now handed out, None before the first."""
        return self._current

    @property
    def pending(self) -> Batch | None:
        """The batch that still awaits its step."""
        return None if self._stepped else self._current

    def sample(self) -> tuple[str | None, bool]:
        """Digest of some of the records, and whether they are random (`Records.sample`)."""
        return self._records.sample()

    @property
    def batch_sampler(self) -> NoReturn:
        """What Opacus' BatchMemoryManager takes apart.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "a private loader has no sampler to take apart; give max_physical_batch_size= to make_private, which hands "
            "large steps out in parts (privacy.BatchMemoryManager takes the place of Opacus')"
        )

    sampler = batch_sampler

    def __len__(self) -> int:
        """Logical batches an epoch."""
        return self.steps

    @abstractmethod
    def _left(self) -> int:
        """Logical batches that are not handed out of the epoch."""

    @abstractmethod
    def _draw(self) -> tuple[Tensor, int]:
        """The next logical batch's records, shape (m,), and the epoch's number."""

    def __iter__(self) -> Iterator[Any]:
        self._refuse_unfinished()  # before a batch is drawn, so that a refusal loses none
        self._loop += 1
        loop, left, handed = self._loop, self._left(), 0

        def parts() -> Iterator[tuple[Batch, Tensor]]:
            for number in range(left):
                if number - handed == len(self._ahead):
                    self._ahead.append(self._draw())
                records, epoch = self._ahead[number - handed]
                split = torch.split(records, self.max_physical_batch_size or max(1, len(records)))
                for place, part in enumerate(split, 1):
                    yield Batch(len(part), place == 1, place == len(split), epoch), part

        with closing(self._records.batches(parts())) as batches:
            for batch, make in batches:
                if batch.first:
                    self._ahead.popleft()
                    handed += 1
                # Before it is made: one that cannot be is not passed over, whatever it holds.
                self._current, self._stepped = batch, False
                yield make()
                self._refuse_unstepped()
                if self._loop != loop:
                    raise UsageError(
                        "another loop over the private loader was begun within this one, and would be given the same "
                        "batches; go over it in one loop at a time"
                    )

    def _note_step(self) -> None:
        """The batch now handed out was taken in."""
        self._stepped = True

    def _refuse_unstepped(self) -> None:
        if self.pending is not None:
            raise UsageError(
                "a private batch was not followed by optimizer.step(); step on every batch, empty ones "
                "included (skipping is a release)"
            )

    def _refuse_unfinished(self) -> None:
        self._refuse_unstepped()
        if self._current is not None and not self._current.final:
            raise UsageError(
                "a private step was left unfinished: the loop ended between two parts of a batch; go over "
                "whole epochs, or leave max_physical_batch_size out"
            )


class PoissonLoader(PrivateLoader):
    """Every record joins every step with probability q, by secret coins.

    Attributes:
        sample_rate: q.
    """

    _empty_batches = True

    def __init__(
        self,
        loader: DataLoader[Any],
        sample_rate: float,
        steps: int,
        generator: NoiseGenerator,
        max_physical_batch_size: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        """
        Args:
            loader, steps, max_physical_batch_size: as of `PrivateLoader`.
            sample_rate: q, 0 < q <= 1.
            generator: the coins.
            workers: which the records are shared among, each with a generator of its own; None is this process alone.
        """
        super().__init__(loader, steps, max_physical_batch_size)
        self.sample_rate = sample_rate
        self._generator = generator
        self._workers = Workers() if workers is None else workers
        self._fix()

    def _left(self) -> int:
        return self.steps

    def _draw(self) -> tuple[Tensor, int]:
        # A coin for every record, whoever has it: a seed then draws the same ones for any number of workers.
        drawn = torch.from_numpy(self._generator.bernoulli(len(self._records), self.sample_rate))
        begin, end = self._workers.share(len(self._records))
        return drawn[(drawn >= begin) & (drawn < end)], 0


class PublicLoader(PrivateLoader):
    """Public shuffles: every record takes part in exactly one step of an epoch, and everybody may know which.

    The order depends on a public seed and on the epoch's number alone, never on labels (THEORY T7 d).
    """

    _changing = PrivateLoader._changing | {"_next", "_order"}

    def __init__(
        self,
        loader: DataLoader[Any],
        steps: int,
        seed: int,
        epoch: int = 0,
        max_physical_batch_size: int | None = None,
    ) -> None:
        """
        Args:
            loader, steps, max_physical_batch_size: as of `PrivateLoader`.
            seed: public.
            epoch: number of the first one. A resumed run begins a new one, whatever became of the last batches of the
                part before: no record takes part twice in an epoch, even if the data set's order is another.
        """
        super().__init__(loader, steps, max_physical_batch_size)
        self._seed = seed
        self._next = epoch * steps  # logical batches drawn
        self._order: tuple[int, tuple[Tensor, ...]] = (-1, ())  # of an epoch
        self._fix()

    def _left(self) -> int:
        return self.steps - (self._next - len(self._ahead)) % self.steps

    def _draw(self) -> tuple[Tensor, int]:
        epoch, number = divmod(self._next, self.steps)
        if self._order[0] != epoch:
            shuffle = torch.Generator().manual_seed(
                derive_seed(self._seed, f"public batches of epoch {epoch}")
            )
            order = torch.randperm(len(self._records), generator=shuffle)
            self._order = epoch, torch.tensor_split(order, self.steps)
        self._next += 1
        return self._order[1][number], epoch
