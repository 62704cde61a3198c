"""Batches made as a DataLoader makes them: by its worker processes, and in pinned memory."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from noise_models.errors import UsageError

_T = TypeVar("_T")
# Settings of a DataLoader that say how a batch is made once its records are chosen.
_TAKEN = (
    "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
    "persistent_workers", "pin_memory_device",
)  # fmt: skip
# Texts of torch's own errors, where there are worker processes: what a worker raised, and what became of one.
_CAUGHT = re.compile(
    r"Caught (\w+) in (?:DataLoader worker process \d+|pin memory thread for device \S+)\.\nOriginal "
)
_STOPPED = re.compile(
    r"(DataLoader worker \(pid(?:\(s\))? [\d, ]+\) exited unexpectedly(?: with exit code -?\d+)?"
    r"|DataLoader worker \(pid \d+\) is killed by signal: [\w /]+"
    r"(?:\. It is possible that dataloader's workers are out of shared memory)?"
    r"|DataLoader timed out after [\d.]+ seconds|Pin memory thread exited unexpectedly|Too many open files)(?:\.|\s|$)"
)
_KEPT_BACK = "(the message is kept back, as it may speak of private records)"


class LoaderWorkers:
    """A loader's own way of making batches, of records that are chosen elsewhere.

    Its worker processes are asked for batches ahead of time, as many as its `prefetch_factor` says.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        """
        Args:
            loader: its data set, collate function and the settings of its workers are used.
        """
        self._chosen: deque[list[int]] = deque()
        self._choose: Callable[[], bool] = lambda: False
        given = {name: getattr(loader, name) for name in _TAKEN}
        if given["worker_init_fn"] is not None:
            given["worker_init_fn"] = _Beginning(given["worker_init_fn"])
        self._loader: DataLoader[Any] = DataLoader(
            loader.dataset, batch_sampler=_Chosen(self), collate_fn=loader.collate_fn, **given
        )

    @staticmethod
    def asked(loader: DataLoader[Any]) -> bool:
        """Whether the loader is set to do more than make batches in this process."""
        return loader.num_workers > 0 or loader.pin_memory

    def batches(
        self, parts: Iterator[tuple[_T, Tensor]], empty: Callable[[], Any]
    ) -> Generator[tuple[_T, Callable[[], Any]], None, None]:
        """For every part what stands with its records, and what gives its batch: each is called before the next.

        Args:
            parts: records of shape (m,), and what stands with them; asked for ahead of time.
            empty: gives the batch of no records, which no collate function has seen.
        Raises:
            UsageError: by what gives a batch: it cannot be made, or a worker process stopped.
        """
        ahead: deque[tuple[_T, bool]] = deque()

        def choose() -> bool:
            for what, records in parts:
                ahead.append((what, len(records) > 0))
                if len(records):
                    self._chosen.append(records.tolist())
                    return True
            return False

        self._chosen.clear()  # of a loop that was left
        self._choose = choose
        made: Iterator[Any] | None = None
        while ahead or choose() or ahead:
            what, full = ahead.popleft()
            if not full:
                yield what, empty
                continue
            if made is None:
                made = _begun(self._loader)
            yield what, lambda made=made: self._next(made)  # type: ignore[misc]

    def tried(self, batches: list[list[int]], collate: Callable[[Any], Any]) -> list[Any]:
        """Batches that one worker process makes, in their order, and ends with.

        This process reads nothing: what a data set opens at its first record, workers forked after it would share,
        and read at each other's place in the file.

        Args:
            batches: their records.
            collate: in place of the loader's.
        Raises:
            UsageError: one cannot be made, or the worker process stopped.
        """
        kept = ("timeout", "worker_init_fn", "multiprocessing_context")
        made = _begun(
            DataLoader(
                self._loader.dataset,
                batch_sampler=batches,
                collate_fn=collate,
                num_workers=1,
                generator=torch.Generator(),  # of the worker's seed: the process' own goes on where it was
                **{name: getattr(self._loader, name) for name in kept},
            )
        )
        return [self._next(made) for _ in batches]

    def _next(self, made: Iterator[Any]) -> Any:
        try:
            return next(made)
        except Exception as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Exception:
        """The line about what ended a batch, told from the user's own errors, whose text may be anything."""
        name, text = type(error).__name__, str(error)
        if self._loader.num_workers:
            if isinstance(error, _BeginningError):
                return UsageError(
                    f"a worker process of data_loader cannot begin: worker_init_fn raised {text.split()[-1]}; "
                    f"try it outside the private run {_KEPT_BACK}"
                )
            caught = _CAUGHT.match(text)
            if caught is not None:
                return unmade(caught[1])
            if type(error) is RuntimeError and (stopped := _STOPPED.match(text)) is not None:
                return UsageError(
                    f"a worker process of data_loader stopped ({stopped[1]}); nothing more is released: num_workers=0 "
                    "shows what ends it"
                )
        return error if isinstance(error, UsageError) else unmade(name)

    def _next_chosen(self) -> Iterator[list[int]]:
        while self._chosen or self._choose():
            yield self._chosen.popleft()


class _Chosen:
    """What torch takes for a batch sampler: it is gone through once by every loop."""

    def __init__(self, workers: LoaderWorkers) -> None:
        self._workers = workers

    def __iter__(self) -> Iterator[list[int]]:
        return self._workers._next_chosen()


class _BeginningError(Exception):
    """A worker process did not begin; the text is the name of what its worker_init_fn raised."""


class _Beginning:
    """A worker_init_fn whose errors are told from those of the data set, as torch does not."""

    def __init__(self, begin: Callable[[int], object]) -> None:
        self._begin = begin

    def __call__(self, worker: int) -> None:
        try:
            self._begin(worker)
        except Exception as error:
            raise _BeginningError(type(error).__name__) from None


def unmade(error: str) -> UsageError:
    """A batch that the user's code did not make.

    Args:
        error: the name of what it raised.
    """
    return UsageError(
        f"a batch cannot be made: the data set or collate_fn raised {error}; try both outside the private run "
        f"{_KEPT_BACK}"
    )


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        return iter(loader)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the worker processes of data_loader cannot be started ({type(error).__name__}): where they are not "
            "forked, its data set, collate_fn and worker_init_fn must be such as can be pickled; num_workers=0 needs "
            "none"
        ) from None
