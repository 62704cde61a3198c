"""The records behind a data loader: which loaders can be redrawn, and how a batch of chosen records is made."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from noise_models.errors import UsageError
from noise_models.places import on_cpu
from privacy.empty_batch import emptied
from privacy.loader_workers import LoaderWorkers, unmade

# Settings of a DataLoader that say which records make a batch, with the value that asks for nothing.
_UNUSED = {"drop_last": False, "generator": None, "in_order": True}
_T = TypeVar("_T")
_SAMPLE = 64


class Records:
    """Batches of chosen records, as the loader would make them."""

    def __init__(self, loader: DataLoader[Any], *, empty: bool) -> None:
        """
        Args:
            loader: its data set and collate function are used.
            empty: whether there are batches without records.
        Raises:
            UsageError: a loader whose batches cannot be drawn anew; records that cannot be read, or of which no empty
                batch can be made.
        """
        self.dataset = map_style(loader)
        self.collate = loader.collate_fn
        self.size = len(self.dataset)
        # Exactly this type: one of the user's own may transform what it holds.
        self._tensors = (
            type(self.dataset) is TensorDataset and self.collate is torch.utils.data.default_collate
        )
        self._workers = LoaderWorkers(loader) if LoaderWorkers.asked(loader) else None
        # Worker processes are given a data set that this one never read, as by a DataLoader; tensors are just there.
        self._unread = loader.num_workers > 0 and not self._tensors
        self._empty: Any = None
        if empty and not self._tensors:
            self._empty = emptied(*self._tried([[0], [0, min(1, self.size - 1)]], self.collate))

    def __len__(self) -> int:
        """As many as when the run began.

        Raises:
            UsageError: records were added or taken away since.
        """
        if len(self.dataset) != self.size:
            raise UsageError(
                "the data set changed its length after make_private, where the sample rate was settled; make the "
                "module private again, with a new engine"
            )
        return self.size

    def batch(self, records: Tensor) -> Any:
        """The collated batch of these records, shape (m,)."""
        if self._tensors:
            return [tensor[records] for tensor in self.dataset.tensors]
        return self._read(records.tolist()) if len(records) else deepcopy(self._empty)

    def batches(
        self, parts: Iterator[tuple[_T, Tensor]]
    ) -> Generator[tuple[_T, Callable[[], Any]], None, None]:
        """For every part what stands with its records, and what gives its batch: each is called before the next.

        Args:
            parts: records of shape (m,), and what stands with them; asked for ahead of time where worker processes
                make the batches.
        """
        if self._workers is not None:
            yield from self._workers.batches(parts, lambda: self.batch(torch.empty(0, dtype=torch.int64)))
            return
        for what, records in parts:
            yield what, partial(self.batch, records)

    def sample(self) -> tuple[str | None, bool]:
        """Digest of some records, spread over the data set, read with the process' generators seeded: None where two
        such readings differ, or nothing can be told of them. And whether readings differ with nothing seeded.

        Workers tell by it whether they hold the same records in the same order; nobody else may see it.
        """
        count = min(self.size, _SAMPLE)
        some = [(self.size - 1) * k // max(1, count - 1) for k in range(count)]
        kept = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):
                *free, one, other = self._tried([some] * 4, _Digests(self.collate))
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
        return (one if one == other else None), free[0] != free[1]

    def _tried(self, batches: list[list[int]], collate: Callable[[Any], Any]) -> list[Any]:
        """Batches that no step is given."""
        if self._unread:
            assert self._workers is not None
            return self._workers.tried(batches, collate)
        return [self._read(records, collate) for records in batches]

    def _read(self, records: list[int], collate: Callable[[Any], Any] | None = None) -> Any:
        collate = self.collate if collate is None else collate
        try:
            if callable(many := getattr(self.dataset, "__getitems__", None)):  # as a DataLoader would
                return collate(many(records))
            return collate([self.dataset[i] for i in records])
        except UsageError:
            raise
        except Exception as error:
            raise unmade(type(error).__name__) from None


class _Digests:
    """Digests in place of batches, in whichever process makes them; from the third on, read after seeding alike."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate
        self._made = 0

    def __call__(self, records: Any) -> str | None:
        found = _digest(self._collate(records))
        self._made += 1
        if self._made > 1:  # before the next are read
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # the one that a data set may draw from
        return found


def _digest(batch: Any) -> str | None:
    """None where a part of it is of a kind that cannot be compared."""
    digest, told = hashlib.sha256(), True

    def add(part: Any) -> None:
        nonlocal told
        if isinstance(part, np.ndarray) and not part.dtype.hasobject:
            digest.update(repr((part.dtype.str, part.shape)).encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, Tensor):
            flat = on_cpu(part).reshape(-1).view(torch.uint8)
            digest.update(repr((part.dtype, part.shape)).encode() + flat.numpy().tobytes())
        elif isinstance(part, Mapping):
            add(list(part.items()))
        elif isinstance(part, list | tuple):
            digest.update(f"{len(part)} ".encode())
            for each in part:
                add(each)
        elif part is None or isinstance(part, str | int | float | complex | bytes):
            digest.update(repr(part).encode())
        elif is_dataclass(part):
            add([getattr(part, each.name) for each in fields(part)])
        else:
            told = False

    add(batch)
    return digest.hexdigest() if told else None


def map_style(loader: DataLoader[Any]) -> Any:
    """The loader's data set, if its records can be drawn independently.

    Raises:
        UsageError: no DataLoader, an iterable data set, or a way of drawing of the user's own.
    """
    if not isinstance(loader, DataLoader):
        raise UsageError(f"data_loader is a {type(loader).__name__}; give a torch.utils.data.DataLoader")
    if isinstance(loader.dataset, IterableDataset):
        raise UsageError(
            "data_loader iterates over a stream (IterableDataset), and a private run samples records, each by a coin "
            "of its own; give a data set with __len__ and __getitem__, which may read a record where it lies"
        )
    kind, sampler = type(loader), loader.sampler
    if kind.__iter__ is not DataLoader.__iter__ or kind._get_iterator is not DataLoader._get_iterator:
        raise UsageError(
            f"data_loader is a {kind.__name__}, which iterates in a way of its own, and batches are redrawn; give a "
            "plain torch.utils.data.DataLoader"
        )
    # Exactly these types: another may leave records out, or draw some more often.
    if loader.batch_size is None or type(sampler) not in (RandomSampler, SequentialSampler):
        raise UsageError(
            "data_loader has a sampler of its own, whose privacy is not known; give one with batch_size= (and "
            "shuffle=, if you like): its batches are redrawn by Poisson sampling"
        )
    if isinstance(sampler, RandomSampler) and sampler.replacement:
        raise UsageError("data_loader samples with replacement; leave the sampler out: batches are redrawn")
    try:
        size, drawn = len(loader.dataset), len(sampler)  # type: ignore[arg-type]  # map-style data sets have one
    except TypeError:
        raise UsageError(
            f"the data set (a {type(loader.dataset).__name__}) has no length; give it a __len__"
        ) from None
    if size == 0:
        raise UsageError("the training set is empty; there is nothing to learn from")
    if size != drawn:
        raise UsageError(
            "data_loader's sampler goes over another number of records than the data set has; leave the sampler out, "
            "and give a Subset of the data set for a part of it"
        )
    return loader.dataset


def tell_unused(loader: DataLoader[Any]) -> None:
    """One line about settings of the loader that do nothing here."""
    unused = [
        name
        for name, nothing in _UNUSED.items()
        if (value := getattr(loader, name, nothing)) is not nothing and value != nothing
    ]
    if unused:
        warnings.warn(
            f"private batches are drawn anew, by coins, and none is left out: {', '.join(unused)} of data_loader do "
            "nothing",
            stacklevel=4,
        )
