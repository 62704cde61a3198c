"""A data loader's own worker processes and pinned memory make the batches of a private run, and change none of them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from privacy.engine import PrivacyEngine
from privacy.loader_workers import LoaderWorkers
from privacy.sampling import PoissonLoader, PrivateLoader, PublicLoader

N = 60
FORKED = multiprocessing.get_context("fork")
FORK = {"num_workers": 2, "multiprocessing_context": "fork"}
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in (
        "pin_memory.*no accelerator",
        "suggested max number of worker",
        "multi-threaded, use of fork",
        "Got pickle error",
    )
]


class Numbers(Dataset[tuple[Tensor, int, int]]):
    """Records that say which they are, and which process read them."""

    def __init__(self, spoil: Callable[[int], object] = lambda record: None) -> None:
        self.spoil = spoil

    def __len__(self) -> int:
        return N

    def __getitem__(self, record: int) -> tuple[Tensor, int, int]:
        if get_worker_info() is not None:
            self.spoil(record)
        return torch.full((3,), float(record)), record, os.getpid()


def negated(records: list[Any]) -> Any:
    x, number, process = default_collate(records)
    return -x, number, process


def poisson(
    rate: float = 0.05, data: Dataset[Any] | None = None, parts: int | None = None, **given: Any
) -> PoissonLoader:
    loader: DataLoader[Any] = DataLoader(
        Numbers() if data is None else data, batch_size=4, collate_fn=negated, **given
    )
    return PoissonLoader(loader, rate, 12, NoiseGenerator.seeded(0, "coins"), parts)


def public(**given: Any) -> PublicLoader:
    loader: DataLoader[Any] = DataLoader(Numbers(), batch_size=4, collate_fn=negated, **given)
    return PublicLoader(loader, 12, seed=3)


def gone_over(loader: PrivateLoader, most: int = 10**6) -> list[tuple[Any, ...]]:
    """What a loop is given, until `most` batches: values and places in the step."""
    found: list[tuple[Any, ...]] = []
    for x, number, _ in loader:
        batch = loader.current
        assert batch is not None
        assert batch.records == len(x) == len(number)
        found.append((x.tolist(), number.tolist(), batch.first, batch.final, batch.epoch))
        loader._note_step()
        if len(found) >= most and batch.final:
            break
    return found


SETTINGS: list[dict[str, Any]] = [
    FORK,
    {**FORK, "persistent_workers": True, "prefetch_factor": 4},
    {**FORK, "pin_memory": True, "timeout": 30},
    {"pin_memory": True},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "+".join(setting))
@pytest.mark.parametrize(
    "make",
    [poisson, lambda **given: poisson(rate=0.3, parts=5, **given), public],
    ids=["poisson", "parts", "public"],
)
def test_the_same_coins_give_the_same_batches_however_they_are_made(
    make: Callable[..., PrivateLoader], setting: dict[str, Any]
) -> None:
    """Empty ones and parts, over several epochs, also where a loop is left early: none is lost, or given twice."""
    here, there = make(), make(**setting)
    for most in (10**6, 5, 10**6):
        wanted = gone_over(here, most)
        assert gone_over(there, most) == wanted
    if make is poisson:
        assert any(not numbers for _, numbers, *_ in wanted)


def test_worker_processes_make_the_batches_and_keep_their_settings() -> None:
    begun = FORKED.Value("i", 0)

    def begin(worker: int) -> None:
        with begun.get_lock():
            begun.value += 1

    for persistent in (False, True):
        loader = poisson(rate=0.3, persistent_workers=persistent, worker_init_fn=begin, **FORK)
        begun.value = 0  # one began before, to try a batch
        processes = set()
        for _ in range(2):
            for _, _, process in loader:
                processes.update(process.tolist())
                loader._note_step()
        assert os.getpid() not in processes
        assert begun.value == len(processes) == (2 if persistent else 4)


def test_a_second_loop_within_the_first_ends_the_first() -> None:
    """Both would be given what was drawn ahead: one coin would choose the records of two steps."""
    loader = poisson(rate=0.3, **FORK)
    first = iter(loader)
    next(first)
    loader._note_step()
    second = iter(loader)
    next(second)
    loader._note_step()
    with pytest.raises(UsageError, match="in one loop at a time"):
        next(first)


class Opened(Dataset[tuple[int, int]]):
    """Opened where a record is first read, as is usual: says by which process, and which one reads."""

    def __init__(self) -> None:
        self.file: Any = None

    def __len__(self) -> int:
        return N

    def __getitem__(self, record: int) -> tuple[int, int]:
        if self.file is None:
            self.file, self.opener = open(os.devnull, "rb"), os.getpid()  # noqa: SIM115
        return self.opener, os.getpid()


@pytest.mark.parametrize("kind", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_what_a_data_set_opens_no_two_processes_share(kind: str) -> None:
    """Else forked workers move one place in one file, and read other records; and an open file is not pickled."""
    data = Opened()
    loader: DataLoader[Any] = DataLoader(data, 4, num_workers=2, multiprocessing_context=kind)
    drawn = PoissonLoader(loader, 0.3, 12, NoiseGenerator.seeded(0, "coins"))
    generators = torch.get_rng_state()
    drawn.sample()
    assert torch.equal(torch.get_rng_state(), generators)
    readers = set()
    for opener, reader in drawn:
        assert torch.equal(opener, reader)
        readers.update(reader.tolist())
        drawn._note_step()
    assert data.file is None
    assert len(readers) == 2
    assert os.getpid() not in readers


class Noisy(Numbers):
    def __init__(self, noisy: bool) -> None:
        self.noisy = noisy

    def __getitem__(self, record: int) -> tuple[Tensor, int, int]:
        return torch.randn(3) if self.noisy else torch.zeros(3), record, 0


@pytest.mark.parametrize("noisy", [False, True])
def test_a_sample_is_the_same_whichever_process_reads_it(noisy: bool) -> None:
    here, there = (poisson(data=Noisy(noisy), **given).sample() for given in ({}, FORK))
    assert here == there == (here[0], noisy)
    assert here[0] is not None


def raised(record: int) -> None:
    if record > 5:
        raise ValueError(f"record {record} of a patient")


def late(spoil: Callable[[int], object]) -> Callable[[int], object]:
    """Not at the records that are tried before the run."""
    return lambda record: spoil(record) if record > 5 else None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (raised, "raised ValueError"),
        (late(lambda record: {}[f"patient {record}"]), "raised KeyError"),
        (
            late(lambda record: os.kill(os.getpid(), signal.SIGKILL)),
            "a worker process of data_loader stopped (DataLoader worker (pid",
        ),
        (late(lambda record: os._exit(3)), "a worker process of data_loader stopped (DataLoader worker (pid"),
        (late(lambda record: time.sleep(3)), "(DataLoader timed out after 1 seconds); nothing more"),
    ],
    ids=["ValueError", "KeyError", "killed", "exit", "hangs"],
)
def test_what_ends_a_worker_is_one_line_that_names_no_record(
    spoil: Callable[[int], object], words: str
) -> None:
    loader = poisson(rate=0.3, data=Numbers(spoil), timeout=1, **FORK)
    with pytest.raises(UsageError) as error:
        gone_over(loader)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "patient" not in str(error.value)
    with pytest.raises(UsageError, match=r"not followed by optimizer\.step"):  # the batch is not passed over
        gone_over(loader)


@pytest.mark.parametrize(
    "text",
    ["DataLoader of patient 7", "Caught patient7 in bed", "DataLoader worker (pid 7) exited unexpectedly"],
)
def test_words_of_a_data_set_are_not_taken_for_torchs(text: str) -> None:
    class Spoken(Numbers):
        def __getitem__(self, record: int) -> tuple[Tensor, int, int]:
            if record > 5:
                raise RuntimeError(text)
            return super().__getitem__(record)

    with pytest.raises(UsageError, match="the data set or collate_fn raised RuntimeError; try both") as error:
        gone_over(poisson(rate=0.3, data=Spoken(), pin_memory=True))
    assert "7" not in str(error.value)


BUS_ERROR = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", None),
        (BUS_ERROR + ". Please try to raise your shared memory limit.", BUS_ERROR),
        (
            "DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost due to multiprocessing.",
            "DataLoader worker (pid 7) exited unexpectedly with exit code 1",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", None),
        ("DataLoader timed out after 5 seconds", None),
        ("Pin memory thread exited unexpectedly", None),
    ],
    ids=lambda text: str(text)[:40],
)  # fmt: skip
def test_torchs_own_words_are_told_of_worker_processes_alone(text: str, shown: str | None) -> None:
    shown = text.rstrip(". ") if shown is None else shown
    of_workers = LoaderWorkers(DataLoader(Numbers(), 4, **FORK))
    assert f"stopped ({shown}); nothing" in str(of_workers._failure(RuntimeError(text)))
    assert "raised RuntimeError" in str(of_workers._failure(RuntimeError("of patient 7: " + text)))
    pinning = LoaderWorkers(DataLoader(Numbers(), 4, pin_memory=True))
    assert "raised RuntimeError" in str(pinning._failure(RuntimeError(text)))


def begins_not(worker: int) -> None:
    raise OSError(f"no file of patient {worker}")


def test_workers_that_do_not_begin_are_named_in_one_line() -> None:
    with pytest.raises(UsageError, match="worker_init_fn raised OSError; try it") as error:
        poisson(worker_init_fn=begins_not, **FORK)
    assert "patient" not in str(error.value)
    with pytest.raises(UsageError, match=r"cannot be started \((AttributeError|PicklingError)\)") as error:
        poisson(data=Numbers(lambda record: None), num_workers=1, multiprocessing_context="spawn")
    assert "\n" not in str(error.value)


def test_a_stream_is_refused_with_the_reason() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(UsageError, match="each by a coin of its own") as error:
        poisson(data=Stream())
    assert "\n" not in str(error.value)


class Mapped(Dataset[tuple[Tensor, int]]):
    """Records that lie on disk."""

    def __init__(self, file: Path) -> None:
        self.held = np.load(file, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, record: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.array(self.held[record])), record % 3


def private(data: Dataset[Any], **given: Any) -> tuple[nn.Module, Any, PrivateLoader, PrivacyEngine]:
    torch.manual_seed(0)
    module = align(nn.Linear(16, 3), rule="bp", loss_reduction="sum", show=None)
    engine = PrivacyEngine(reproducible_seed=0)
    module, optimizer, loader = engine.make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=8, **given),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    return module, optimizer, loader, engine


def trained(data: Dataset[Any], steps: int = 10**6, **given: Any) -> Tensor:
    module, optimizer, loader, engine = private(data, **given)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y, reduction="sum").backward()
        optimizer.step()
        if (steps := steps - 1) == 0:
            break
    engine.close()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.slow
def test_a_private_run_learns_the_same_from_mapped_records_with_workers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    wanted = trained(TensorDataset(torch.from_numpy(x), torch.arange(64) % 3))
    mapped = Mapped(tmp_path / "x.npy")
    assert torch.equal(trained(mapped), wanted)
    assert torch.equal(trained(mapped, pin_memory=True, persistent_workers=True, **FORK), wanted)


class Slow(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, record: int) -> tuple[Tensor, int]:
        time.sleep(0.01)
        return torch.zeros(16), 0


def endless(begun: Any, persistent: bool) -> None:
    """In a process group of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    module, optimizer, loader, _ = private(Slow(), persistent_workers=persistent, **FORK)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y, reduction="sum").backward()
            optimizer.step()
            begun.set()


@pytest.mark.parametrize("persistent", [False, True])
def test_an_interrupt_ends_the_loop_and_its_workers(persistent: bool) -> None:
    """As from a keyboard, to the whole group."""
    begun = FORKED.Event()
    run = FORKED.Process(target=endless, args=(begun, persistent))
    run.start()
    assert begun.wait(60)
    assert run.pid is not None
    os.killpg(run.pid, signal.SIGINT)
    run.join(20)
    assert run.exitcode == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)  # nobody of the group is left


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_larger_than_memory_allows_is_never_copied_whole(tmp_path: Path, workers: int) -> None:
    """2 GB of records, 20 steps within 600 MB above what the library itself takes."""
    rows = 2 * 1024**3 // 64
    held = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(rows, 16))
    held[:: rows // 64] = 1.0  # the rest is a hole in the file
    del held
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    run = context.Process(target=grown, args=(tmp_path / "x.npy", workers, told))
    run.start()
    run.join()
    before, after = told.get()
    print(f"{before / 2**20:.0f} MB before, {after / 2**20:.0f} MB after")
    assert after - before < 600 * 1024**2


def grown(file: Path, workers: int, told: Any) -> None:
    """Tells the peak of resident memory before a run and after it."""
    torch.set_num_threads(1)
    trained(TensorDataset(torch.zeros(64, 16), torch.zeros(64, dtype=torch.int64)))
    before = peak()
    # Of another kind of process torch pickles the data set, and numpy a memory map with all that it holds.
    trained(Mapped(file), 20, num_workers=workers, multiprocessing_context="fork" if workers else None)
    told.put((before, max(peak(), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)))
