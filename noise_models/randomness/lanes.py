"""Work in a fixed number of lanes, on as many threads as torch uses.

Who draws how much in which lane is part of a stream's definition, so a result does not depend on the number of threads.
Each thread's own kernels run on itself alone: threads that share every small kernel wait for each other at its end,
beside busy neighbours for very long.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Final, TypeVar

import torch

LANES: Final = 4
_T = TypeVar("_T")


def in_lanes(tasks: Sequence[Callable[[], _T]], most: int = LANES) -> list[_T]:
    """What the tasks return, in order; none of them is running any more when this returns or raises.

    Args:
        most: of the threads that torch uses, at most so many work on the tasks.
    """
    threads = min(torch.get_num_threads(), most)
    inference = torch.is_inference_mode_enabled()
    if threads == 1 or len(tasks) < 2:
        return [_without_gradients(task, inference) for task in tasks]
    pool, futures = _pool(threads, os.getpid()), []
    interrupted: BaseException | None = None
    try:
        futures += [pool.submit(_without_gradients, task, inference) for task in tasks]
        wait(futures)
    except BaseException as error:  # Ctrl-C, here or while the rest is waited for
        interrupted = error
    while not all(future.cancel() or future.done() for future in futures):
        try:
            wait(futures)
        except BaseException as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
    return [future.result() for future in futures]


def _without_gradients(task: Callable[[], _T], inference: bool) -> _T:
    with torch.inference_mode(inference), torch.no_grad():
        return task()


def _on_one_thread() -> None:
    torch.get_num_threads()  # a thread takes over the others' setting when it is first asked for
    torch.set_num_threads(1)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    pool = ThreadPoolExecutor(threads, "lane", initializer=_on_one_thread)
    ready = threading.Barrier(threads)
    wait([pool.submit(ready.wait) for _ in range(threads)])
    torch.set_num_threads(torch.get_num_threads())  # the matrix library has one setting for all threads
    return pool
