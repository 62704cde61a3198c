"""Work in lanes: in order, on threads of their own, and none of it goes on after a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from noise_models.randomness.lanes import LANES, in_lanes


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_order(threads: int) -> None:
    names = []

    def task(number: int) -> int:
        names.append(threading.current_thread().name)
        time.sleep(0.01 * (LANES - number))
        return number

    assert in_lanes([partial(task, number) for number in range(LANES)]) == list(range(LANES))
    assert len(set(names)) == min(threads, LANES)


@pytest.mark.parametrize("most", [1, 2, 6])
def test_no_more_threads_than_allowed_work_on_the_tasks(threads: int, most: int) -> None:
    meeting = threading.Barrier(min(threads, most))  # nobody goes on before so many are at work at once

    def task() -> str:
        meeting.wait(timeout=20)
        return threading.current_thread().name

    assert len(set(in_lanes([task] * min(threads, most), most))) == min(threads, most)
    assert len(set(in_lanes([lambda: threading.current_thread().name] * 20, most))) <= min(threads, most)


def test_a_lane_has_one_thread_and_no_gradients(threads: int) -> None:
    x = torch.ones(3, requires_grad=True)

    def task() -> tuple[int, bool]:
        return torch.get_num_threads(), (x * 2).requires_grad

    for count, grad in in_lanes([task, task]):
        assert count == 1
        assert not grad


def test_a_failure_is_raised_when_nothing_runs_any_more(threads: int) -> None:
    done = []

    def fail() -> None:
        raise ValueError("no")

    def work() -> None:
        time.sleep(0.05)
        done.append(1)

    with pytest.raises(ValueError, match="no"):
        in_lanes([fail, work])
    assert done == ([] if threads == 1 else [1])
    assert in_lanes([lambda: 1, lambda: 2]) == [1, 2]
