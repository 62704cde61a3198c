"""The processes that train one network together: what they tell each other, over torch.distributed, and nothing else.

Worker 0, the first, holds the ledger, draws the noise and writes every file. The others take in their share of the
records, and hear from it what was released.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from privacy.errors import UsageError, WorkerLostError

if TYPE_CHECKING:  # a command that trains alone finds its mistakes before torch is loaded
    import torch
    from torch import Tensor
    from torch.distributed.distributed_c10d import ProcessGroup, Store, Work

_T = TypeVar("_T")
# How long a worker waits for the others to be started, and then for one that is busy: the first evaluates meanwhile.
JOINING = timedelta(minutes=5)
WAITING = timedelta(minutes=30)
# The group in which the workers of a default group talk, so that they never take a script's own collective for theirs.
_TALKS: WeakKeyDictionary[ProcessGroup, ProcessGroup] = WeakKeyDictionary()
_WORDS = 3  # of a meeting: whether a worker failed, and two of its own
_MIXER = 1_000_003


@dataclass(frozen=True)
class Workers:
    """The processes of torch.distributed's default group; one where there is none.

    Attributes:
        rank: this one's number.
        count: how many there are.
        launch: what the launcher keeps while it starts workers again; None where it is not known.
    """

    rank: int = 0
    count: int = 1
    launch: Store | None = field(default=None, compare=False, repr=False)

    @classmethod
    def here(cls) -> Workers:
        """Those that this process is one of now."""
        from torch import distributed

        if not distributed.is_available() or not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the one with the ledger."""
        return self.rank == 0

    def name(self, what: str) -> str:
        """What is this worker's own, such as a generator, by name."""
        return what if self.first else f"{what} of worker {self.rank}"

    def begins(self, what: str) -> None:
        """Note that workers of this launcher begin something, for those that it may start in their place."""
        if self.launch is not None:
            self.launch.set(what, "begun")

    def began(self, what: str) -> bool:
        """Whether workers that this launcher started before began it."""
        return self.launch is not None and self.launch.check([what])

    def share(self, size: int) -> tuple[int, int]:
        """Where this worker's records begin and end among `size`; shares are of every size, none among them."""
        return size * self.rank // self.count, size * (self.rank + 1) // self.count

    # ---- what they tell each other

    def told(self, make: Callable[[], _T]) -> _T:
        """What the first worker makes (JSON types), heard by all; no other makes it.

        Raises:
            WorkerLostError: on the others, whatever `make` raised.
        """
        if self.count == 1:
            return make()
        if not self.first:
            heard = json.loads(self._broadcast(b""))
            if not heard:
                raise WorkerLostError(
                    "worker 0 stopped and says why in a line of its own; nothing more is released"
                )
            return heard[0]  # type: ignore[no-any-return]
        try:
            made = make()
            text = json.dumps([made]).encode()
        except BaseException:
            with suppress(WorkerLostError):
                self._broadcast(b"[]")
            raise
        self._broadcast(text)
        return made

    def sent(self, make: Callable[[], bytes]) -> bytes:
        """As `told`, bytes."""
        made: list[bytes] = []

        def size() -> int:
            made.append(make())
            return len(made[0])

        length = self.told(size)
        return made[0] if self.count == 1 else self._broadcast(made[0] if made else b"", length)

    def gather(self, said: _T) -> list[_T]:
        """What every worker says (JSON types), by number, heard by all."""
        if self.count == 1:
            return [said]
        import torch

        text = json.dumps(said).encode()
        sizes = [size for (size,) in self._all_gather([len(text)])]
        row = torch.zeros(max(sizes), dtype=torch.uint8)
        row[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        rows = [torch.empty_like(row, device=_place()) for _ in range(self.count)]
        with _talking() as group:
            torch.distributed.all_gather(rows, row.to(_place()), group)
        return [
            json.loads(row[:size].to("cpu").numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)
        ]

    def meet(self, *said: int) -> list[list[int]]:
        """Wait for all, each with up to two whole numbers; nobody goes on where one failed (`telling`).

        Raises:
            WorkerLostError: one did.
        """
        if self.count == 1:
            return [list(said)]
        return [row[: len(said)] for row in self._meet(0, said)]

    def _meet(self, failed: int, said: Iterable[int]) -> list[list[int]]:
        row = [failed, *said]
        rows = self._all_gather(row + [0] * (_WORDS - len(row)))
        lost = [str(number) for number, found in enumerate(rows) if found[0]]
        if lost and not failed:
            raise WorkerLostError(
                f"worker {', '.join(lost)} stopped and says why in a line of its own; nothing more is released"
            )
        return [found[1:] for found in rows]

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What fails here fails the others' next meeting, which would wait in vain."""
        try:
            yield
        except WorkerLostError:
            raise
        except BaseException:
            if self.count > 1:
                with suppress(WorkerLostError):
                    self._meet(1, ())
            raise

    def total(self, number: int) -> int:
        """The sum of all workers' numbers, heard by all."""
        return sum(found for (found,) in self._all_gather([number])) if self.count > 1 else number

    def add_up(self, part: Tensor) -> Tensor:
        """The sum of all workers' parts, on the first; on the others zeros. `part` is overwritten.

        Args:
            part: whole numbers of one type and shape, whose sum that type holds: it does not depend on the order.
        """
        if self.count == 1:
            return part
        from torch import distributed

        joint = part.to(_place(), copy=True)
        try:
            with _talking() as group:
                distributed.reduce(joint, dst=0, group=group)
        finally:
            part.zero_()
            if not self.first:  # parts of the joint sum, without noise
                joint.zero_()
        return joint.to(part.device)

    def hand_out(self, given: Tensor) -> Tensor:
        """The first worker's tensor, on all.

        Args:
            given: of the others the shape, type and device alone.
        """
        if self.count == 1:
            return given
        from torch import distributed

        handed = given.detach().to(_place()).contiguous()
        with _talking() as group:
            distributed.broadcast(handed, src=0, group=group)
        return handed.to(given.device)

    def pass_on(self, given: Tensor, to: int) -> Handed:
        """Begin to send a tensor to one worker, which must `take` it; not to be changed before it has arrived."""
        from torch import distributed

        sent = given.detach().to(_place()).contiguous()
        with _talking() as group:
            return Handed(distributed.isend(sent, dst=to, group=group), sent, given.device)

    def take(self, like: Tensor, of: int) -> Handed:
        """Begin to receive what one worker passes on.

        Args:
            like: of its shape, type and device; may be overwritten.
        """
        from torch import distributed

        place = like.to(_place())
        with _talking() as group:
            return Handed(distributed.irecv(place, src=of, group=group), place, like.device)

    def spread(self, given: Tensor, of: int) -> Handed:
        """Begin to hand one worker's tensor out to all.

        Args:
            given: of the others the shape, type and device alone; may be overwritten.
            of: whose it is.
        """
        if self.count == 1:
            return Handed(None, given, given.device)
        from torch import distributed

        place = given.detach().to(_place()).contiguous()
        with _talking() as group:
            work = distributed.broadcast(place, src=of, group=group, async_op=True)
            return Handed(work, place, given.device)

    def _broadcast(self, text: bytes, size: int | None = None) -> bytes:
        """The first worker's bytes; their number is told first where the others do not know it."""
        import torch

        if size is None:
            size = int(self.hand_out(torch.tensor([len(text)]))[0])
        row = torch.zeros(size, dtype=torch.uint8)
        if self.first and size:
            row = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return self.hand_out(row).to("cpu").numpy().tobytes() if size else b""

    def _all_gather(self, words: list[int]) -> list[list[int]]:
        import torch

        row = torch.tensor(words, dtype=torch.int64, device=_place())
        rows = [torch.empty_like(row) for _ in range(self.count)]
        with _talking() as group:
            torch.distributed.all_gather(rows, row, group)
        return [found.tolist() for found in rows]


@dataclass(frozen=True)
class Handed:
    """A tensor on its way between workers, which go on meanwhile."""

    work: Work | None
    tensor: Tensor
    device: torch.device

    def wait(self) -> Tensor:
        """The tensor, once it is there.

        Raises:
            WorkerLostError: the other worker is gone.
        """
        if self.work is not None:
            with _talking():
                self.work.wait()
        return self.tensor.to(self.device)


def bits(tensors: Iterable[Tensor]) -> int:
    """A number by which workers see, at every step, that they hold the same bits; not a cryptographic one."""
    import torch

    found = 0
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1)
        whole = flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8)
        found = (found * _MIXER + int(whole.sum(dtype=torch.int64))) % (1 << 61)
    return found


@contextmanager
def joined() -> Iterator[Workers]:
    """The workers that a launcher (torchrun, or Slurm with the same variables) started this process among.

    Raises:
        UsageError: its variables are incomplete, or the others are not reached.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Workers()
        return
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if distributed.is_initialized():
        yield Workers.here()
        return
    try:
        store, rank, count = next(rendezvous("env://", timeout=JOINING))
        # Started again by torchrun, workers meet in the store where the addresses of those before still stand.
        start = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        distributed.init_process_group("gloo", store=start, rank=rank, world_size=count, timeout=JOINING)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"the workers do not reach each other ({_line(error)}); one that stopped before says why in a line of its "
            "own: start them with torchrun, or give every one RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        ) from None
    try:
        yield replace(Workers.here(), launch=PrefixStore("launch", store))
    finally:
        distributed.destroy_process_group()


def started_first() -> bool:
    """Whether a launcher started this process as the first, or none did: what is said once, it says."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _place() -> torch.device:
    """Where tensors are when workers exchange them: on the CPU, but for NCCL, which knows accelerators alone."""
    from torch import distributed

    from noise_models.places import CPU, current_accelerator

    return current_accelerator() if distributed.get_backend() == "nccl" else CPU


@contextmanager
def _talking() -> Iterator[ProcessGroup]:
    """The workers' own group, made where they first talk."""
    from torch import distributed

    try:
        world = distributed.group.WORLD
        assert world is not None  # there is more than one worker
        if world not in _TALKS:
            distributed.barrier()  # one that is gone is missed at once here, and below only after the time limit
            _TALKS[world] = distributed.new_group(timeout=WAITING)
        yield _TALKS[world]
    except RuntimeError as error:  # a connection that ended, or a time limit
        raise WorkerLostError(
            f"another worker is gone or hangs ({_line(error)}); nothing more is released: start all workers again, and "
            "resume"
        ) from None


def _line(error: Exception) -> str:
    """What happened, without the place in the library's source before it and its advice after it."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.rpartition("] ")[2].partition(". ")[0].strip()
