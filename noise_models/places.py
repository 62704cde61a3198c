"""Where torch computes, the CPU or an accelerator, and how numbers come from the one to the other.

Coins, noise and random matrices are drawn on the CPU wherever a network is, so that a seed gives one result everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import BLOCK

CPU: Final = torch.device("cpu")
_BLOCK: Final = (
    8 * BLOCK
)  # numbers handed over at a time; whole blocks of a generator's, so that its draws are the same


def usable(name: str) -> torch.device:
    """The place of that name.

    Raises:
        UsageError: torch does not know it, or finds none here.
    """
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used here ({reason}); use --device cpu") from None
    return place


def place_of(module: nn.Module) -> torch.device:
    """Where the module's first parameter is, or its first buffer; the CPU where it has neither."""
    first = next((*module.parameters(), *module.buffers()).__iter__(), None)
    return CPU if first is None else first.device


def on_cpu(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers of `x`, contiguous and without gradients, in memory of the CPU; its own where it is so already."""
    return x.detach().to(CPU, dtype).contiguous()


def normals_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1), drawn on the CPU, of x's shape, type and place."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def moved(x: Tensor, place: torch.device) -> Tensor:
    """`x` there, sent from pinned memory where that helps."""
    if x.device == CPU and place.type == "cuda":
        return x.pin_memory().to(place, non_blocking=True)
    return x.to(place)


def staging(count: int, dtype: torch.dtype, place: torch.device) -> Tensor:
    """Memory of the CPU, shape (count,), from which numbers go to `place` block by block, pinned where that helps."""
    return torch.empty(count, dtype=dtype, pin_memory=place.type == "cuda")


def add_drawn(total: Tensor, draw: Callable[[Tensor], object]) -> None:
    """`total += Z`, for Z drawn on the CPU, in blocks through one staging buffer.

    Args:
        total: contiguous, of any shape.
        draw: adds its draws to a contiguous tensor on the CPU, of total's type; called in order.
    """
    if total.device == CPU:
        draw(total)
        return
    flat = total.view(-1)
    buffer = staging(min(_BLOCK, len(flat)), total.dtype, total.device)
    for start in range(0, len(flat), _BLOCK):
        part = flat[start : start + _BLOCK]
        block = buffer[: len(part)].zero_()
        draw(block)
        part.add_(block.to(total.device))
    buffer.zero_()


def exactly(place: torch.device) -> AbstractContextManager[None]:
    """No autocast there: it would compute in a lower precision."""
    if not torch.amp.is_autocast_available(place.type):
        return nullcontext()
    return torch.autocast(place.type, enabled=False)


def autocast_type(place: torch.device) -> torch.dtype | None:
    """What autocast computes in there; None where it is off."""
    if not torch.amp.is_autocast_available(place.type) or not torch.is_autocast_enabled(place.type):
        return None
    return torch.get_autocast_dtype(place.type)


def seconds(place: torch.device) -> float:
    """The time (`time.perf_counter`) once all that was asked of the place is done."""
    if place.type != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize(place)
    return time.perf_counter()


def accelerators(tensors: Iterable[Tensor]) -> list[torch.device]:
    """Places of these tensors with random numbers of their own, as `torch.random.fork_rng` takes them."""
    return sorted({x.device for x in tensors if x.device.type == "cuda"}, key=str)


def current_accelerator() -> torch.device:
    """The CUDA device that this process works on."""
    return torch.device("cuda", torch.cuda.current_device())


class RandomState:
    """Where torch's random numbers stood, on the CPU and on the GPUs in use: a later pass can draw the same masks."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self.gpus = torch.cuda.get_rng_state_all() if used else []

    @contextmanager
    def again(self) -> Iterator[None]:
        """From there again; afterwards the random numbers go on where they were."""
        with torch.random.fork_rng(devices=range(len(self.gpus))):
            torch.set_rng_state(self.cpu)
            if self.gpus:
                torch.cuda.set_rng_state_all(self.gpus)
            yield
