"""Batches made as a DataLoader makes them: by its worker processes, and in pinned memory."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader

from noise_models.errors import UsageError

_T = TypeVar("_T")
# Settings of a DataLoader that say how a batch is made once its records are chosen.
_TAKEN = (
    "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
    "persistent_workers", "pin_memory_device",
)  # fmt: skip
_CAUGHT = re.compile(r"Caught (\w+) in ")


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
        self._loader: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=_Chosen(self),
            collate_fn=loader.collate_fn,
            **{name: getattr(loader, name) for name in _TAKEN},
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
                made = iter(self._loader)
            yield what, lambda made=made: _next(made)  # type: ignore[misc]

    def _next_chosen(self) -> Iterator[list[int]]:
        while self._chosen or self._choose():
            yield self._chosen.popleft()


class _Chosen:
    """What torch takes for a batch sampler: it is gone through once by every loop."""

    def __init__(self, workers: LoaderWorkers) -> None:
        self._workers = workers

    def __iter__(self) -> Iterator[list[int]]:
        return self._workers._next_chosen()


def unmade(error: str) -> UsageError:
    """A batch that the user's code did not make.

    Args:
        error: the name of what it raised.
    """
    return UsageError(
        f"a batch cannot be made: the data set or collate_fn raised {error}; try both outside the private run (the "
        "message is kept back, as it may speak of private records)"
    )


def _next(made: Iterator[Any]) -> Any:
    try:
        return next(made)
    except Exception as error:
        text = str(error)
        caught = _CAUGHT.match(text)
        if caught is None and isinstance(error, UsageError):
            raise
        if caught is None and isinstance(error, RuntimeError) and text.startswith("DataLoader"):
            raise UsageError(
                f"a worker process of data_loader stopped ({text.splitlines()[0].rstrip('. ')}); nothing more is "
                "released: num_workers=0 shows what ends it"
            ) from None
        raise unmade(type(error).__name__ if caught is None else caught[1]) from None
