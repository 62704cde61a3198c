"""How a private loop's batches are drawn: by Poisson sampling with secret coins (THEORY §0, T3), or in public (T7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from noise_models.errors import UsageError
from noise_models.generator import NoiseGenerator, derive_seed


@dataclass
class Batch:
    """What the loader handed out last.

    Attributes:
        records: its number of records.
        first: whether it begins a logical batch (a step may be cut into several physical batches).
        final: whether it completes one.
        stepped: whether `optimizer.step()` has seen it.
        epoch: number of the pass over the data, where a record takes part once a pass; 0 elsewhere.
    """

    records: int
    first: bool
    final: bool
    stepped: bool = False
    epoch: int = 0


class PrivateLoader(ABC):
    """Iterates over one epoch of logical batches, handed out in parts where they are large; empty ones are batches.

    Each batch must be followed by `optimizer.step()` before the next is handed out: skipping one because of what
    it holds would be a release of its own.

    Attributes:
        steps: logical batches an epoch.
        current: the batch now handed out, None before the first.
    """

    def __init__(
        self, loader: DataLoader[Any], steps: int, max_physical_batch_size: int | None = None
    ) -> None:
        """
        Args:
            loader: the ordinary loader; its data set and collate function are used, its order is not.
            steps: logical batches an epoch.
            max_physical_batch_size: larger batches are handed out in parts of this size.
        Raises:
            UsageError: a loader whose batches cannot be drawn anew.
        """
        if max_physical_batch_size is not None and max_physical_batch_size < 1:
            raise UsageError(f"max_physical_batch_size is {max_physical_batch_size}; it must be at least 1")
        self.dataset = map_style(loader)
        self.collate: Callable[[Any], Any] = loader.collate_fn
        self.steps = steps
        self.current: Batch | None = None
        self._limit = max_physical_batch_size

    def __len__(self) -> int:
        """Logical batches an epoch."""
        return self.steps

    @abstractmethod
    def _draw(self) -> Iterator[tuple[torch.Tensor, int]]:
        """The rest of an epoch: each logical batch's records, shape (m,), and the epoch's number."""

    def __iter__(self) -> Iterator[Any]:
        self._refuse_unfinished()  # before a batch is drawn, so that a refusal loses none
        for records, epoch in self._draw():
            parts = torch.split(records, self._limit or max(1, len(records)))
            for number, part in enumerate(parts):
                if number:
                    self._refuse_unstepped()
                self.current = Batch(
                    len(part), first=number == 0, final=number == len(parts) - 1, epoch=epoch
                )
                yield self._collated(part)
            self._refuse_unfinished()

    def _refuse_unstepped(self) -> None:
        if self.current is not None and not self.current.stepped:
            raise UsageError(
                "a private batch was not followed by optimizer.step(); step on every batch, empty ones "
                "included (skipping is a release)"
            )

    def _refuse_unfinished(self) -> None:
        self._refuse_unstepped()
        if self.current is not None and not self.current.final:
            raise UsageError(
                "a private step was left unfinished: the loop ended between two parts of a batch; go over "
                "whole epochs, or leave max_physical_batch_size out"
            )

    def _collated(self, records: torch.Tensor) -> Any:
        if isinstance(self.dataset, TensorDataset) and self.collate is torch.utils.data.default_collate:
            return [tensor[records] for tensor in self.dataset.tensors]
        if len(records) == 0:  # the shape of a batch without records, taken from one that has one
            return _emptied(self.collate([self.dataset[0]]))
        return self.collate([self.dataset[i] for i in records.tolist()])


class PoissonLoader(PrivateLoader):
    """Every record joins every step with probability q, by secret coins.

    Attributes:
        sample_rate: q.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        sample_rate: float,
        steps: int,
        generator: NoiseGenerator,
        max_physical_batch_size: int | None = None,
    ) -> None:
        """
        Args:
            loader, steps, max_physical_batch_size: as of `PrivateLoader`.
            sample_rate: q, 0 < q <= 1.
            generator: the coins.
        """
        super().__init__(loader, steps, max_physical_batch_size)
        self.sample_rate = sample_rate
        self._generator = generator

    def _draw(self) -> Iterator[tuple[torch.Tensor, int]]:
        for _ in range(self.steps):
            yield torch.from_numpy(self._generator.bernoulli(len(self.dataset), self.sample_rate)), 0


class PublicLoader(PrivateLoader):
    """Public shuffles: every record takes part in exactly one step of an epoch, and everybody may know which.

    The order depends on a public seed and on the epoch's number alone, never on labels (THEORY T7 d).
    """

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
        self._next = epoch * steps

    def _draw(self) -> Iterator[tuple[torch.Tensor, int]]:
        epoch = self._next // self.steps
        shuffle = torch.Generator().manual_seed(derive_seed(self._seed, f"public batches of epoch {epoch}"))
        batches = torch.tensor_split(torch.randperm(len(self.dataset), generator=shuffle), self.steps)
        while self._next < (epoch + 1) * self.steps:
            records = batches[self._next % self.steps]
            self._next += 1
            yield records, epoch


def map_style(loader: DataLoader[Any]) -> Any:
    """The loader's data set, if its records can be drawn independently.

    Raises:
        UsageError: no DataLoader, an iterable data set, or a sampler of the user's own.
    """
    if not isinstance(loader, DataLoader):
        raise UsageError(f"data_loader is a {type(loader).__name__}; give a torch.utils.data.DataLoader")
    if isinstance(loader.dataset, IterableDataset):
        raise UsageError(
            "data_loader iterates over a stream; Poisson sampling needs a data set with a length"
        )
    if loader.batch_size is None or not isinstance(loader.sampler, RandomSampler | SequentialSampler):
        raise UsageError(
            "data_loader has a sampler of its own, whose privacy is not known; give one with batch_size= (and "
            "shuffle=, if you like): its batches are redrawn by Poisson sampling"
        )
    if isinstance(loader.sampler, RandomSampler) and loader.sampler.replacement:
        raise UsageError("data_loader samples with replacement; leave the sampler out: batches are redrawn")
    if len(loader.dataset) == 0:  # type: ignore[arg-type]  # map-style data sets have a length
        raise UsageError("the training set is empty; there is nothing to learn from")
    return loader.dataset


def _emptied(batch: Any) -> Any:
    """A collated batch with its records taken out."""
    if isinstance(batch, torch.Tensor):
        return batch[:0]
    if isinstance(batch, dict):
        return {key: _emptied(value) for key, value in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return [_emptied(value) for value in batch]
    raise UsageError(
        f"a batch holds {type(batch).__name__}; private batches are tensors, or lists and dicts of them"
    )
