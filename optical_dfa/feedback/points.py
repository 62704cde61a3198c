"""Feedback points on any module: which outputs are cut, and the hooks that cut them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.networks.markers import DEFAULT_POINTS


@dataclass(frozen=True)
class Point:
    """One feedback point: a module whose output is cut from what follows and taught directly.

    Attributes:
        name: the module's dotted name.
        shape: its output's shape without the record axis (per position where the network's output has positions).
        start: first component of its slice of the device's frame, once that is laid out.
        outputs: number of components of that slice; 0 without one.
        gain: the feedback scale derived for it (`optical_dfa.feedback.gains`), for rules whose scale was not given.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    outputs: int = 0
    gain: float = 1.0

    @property
    def width(self) -> int:
        """Number of units taught, n_l."""
        return math.prod(self.shape)


class Tape:
    """What one forward pass keeps: (index of the point, its output with its history), in call order.

    Attributes:
        kept: None outside the aligned module's forward pass.
        called: indices of the points that the last forward pass called.
        markers: when tracing, the detached copies, which then require grad and so mark the graph.
        added: in a forward-mode pass, which is not cut, what is added at each call of a point (None adds nothing).
    """

    def __init__(self) -> None:
        self.kept: list[tuple[int, Tensor]] | None = None
        self.called: set[int] = set()
        self.markers: list[Tensor] | None = None
        self.added: list[Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "kept": None,
            "called": set(),
            "markers": None,
            "added": None,
        }  # a copy or a pickle starts between two passes


@dataclass(frozen=True)
class ForwardPass:
    """A forward pass that has just been made.

    Attributes:
        module: the plain module.
        tape: of its points' hooks.
        args, kwargs: its inputs.
        kept: (index of the point, its output), in call order.
        output: what it returned.
    """

    module: nn.Module
    tape: Tape
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    kept: Sequence[tuple[int, Tensor]]
    output: Tensor


class PointHook:
    """Forward hook of one feedback point: keeps the output, lets its detached copy go on.

    A class, not a closure, so that an aligned module can be deep-copied and pickled.
    """

    def __init__(self, tape: Tape, index: int, name: str) -> None:
        self.tape = tape
        self.index = index
        self.name = name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.tape.added is not None:
            addition = self.tape.added.pop(0)
            return None if addition is None else output + addition
        if not torch.is_grad_enabled():
            return None
        if self.tape.kept is None and recomputed() and self.index in self.tape.called:
            return (
                output.detach()
            )  # activation checkpointing runs the segment again: its point was kept the first time
        if self.tape.kept is None:
            raise UsageError(
                f"the module inside an aligned module was called directly (at {self.name}); "
                "call the aligned module, or unalign() it first"
            )
        if not isinstance(output, Tensor):
            raise UsageError(
                f"feedback point {self.name} returns {type(output).__name__}; it must return one tensor"
            )
        self.tape.kept.append((self.index, output))
        self.tape.called.add(self.index)
        if self.tape.markers is None:
            return output.detach()
        marker = output.detach().requires_grad_()
        self.tape.markers.append(marker)
        return marker.clone()  # what follows may work in place, which a leaf does not allow


def recomputed() -> bool:
    """Whether a backward pass is running, in which activation checkpointing calls parts of the module again."""
    return bool(torch._C._current_graph_task_id() != -1)


def refuse_computed(module: nn.Module) -> None:
    """Refuse weights that a hook computes from other parameters before each pass: no copy of the module can be tried.

    Raises:
        UsageError: naming the weight.
    """
    for name, part in module.named_modules():
        computed = [key for key, x in vars(part).items() if isinstance(x, Tensor) and x.grad_fn is not None]
        if computed:
            raise UsageError(
                f"{computed[0]} of {name or 'the module'} is computed from other parameters before each pass "
                "(torch.nn.utils.weight_norm?), so the module cannot be copied and tried; use "
                "torch.nn.utils.parametrizations, or remove it"
            )


def refuse_no_names(module: nn.Module, points: object) -> None:
    """Refuse points that are no list of names; a text would be taken letter by letter.

    Raises:
        UsageError: saying what is allowed.
    """
    if (
        isinstance(points, Sequence)
        and not isinstance(points, str)
        and all(isinstance(p, str) for p in points)
    ):
        return
    names = [name for name, _ in module.named_modules() if name]
    raise UsageError(
        f"points is {points!r}; it must be a list of modules' names, such as {names[:1]!r} (there are "
        f"{', '.join(names)}), or left out: the activations and embeddings"
    )


def default_points(module: nn.Module) -> list[str]:
    """Names of the modules whose outputs are cut unless the caller names others: activations and embeddings."""
    return [name for name, part in module.named_modules() if isinstance(part, DEFAULT_POINTS)]


def call_order(
    module: nn.Module, example: Sequence[Tensor], kinds: type[nn.Module] | tuple[type[nn.Module], ...]
) -> list[str]:
    """Names of the parts of these kinds, in the order in which a forward pass calls them, once for each call."""
    twin = copy.deepcopy(module)
    called: list[str] = []
    for name, part in twin.named_modules():
        if isinstance(part, kinds):
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin(*[x.clone() for x in example])
    return called


def install(module: nn.Module, names: Sequence[str], tape: Tape) -> None:
    """Put a hook on each named module.

    Raises:
        UsageError: a name that is not a submodule, or given twice.
    """
    parts = dict(module.named_modules())
    for index, name in enumerate(names):
        if name not in parts or not name:
            raise UsageError(
                f"there is no module {name!r} to cut at; there are {', '.join(n for n in parts if n)}"
            )
        if name in names[:index]:
            raise UsageError(f"feedback point {name!r} is named twice")
        parts[name].register_forward_hook(PointHook(tape, index, name))


def remove(module: nn.Module, tape: Tape) -> None:
    """Take the hooks of `tape` off again."""
    take_off(module, lambda hook: isinstance(hook, PointHook) and hook.tape is tape)


def take_off(module: nn.Module, ours: Callable[[Any], bool]) -> None:
    """Take the forward hooks and pre-hooks that are `ours` off the module and its parts; others' stay."""
    for part in module.modules():
        for hooks, with_kwargs in (
            (part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs),
            (part._forward_hooks, part._forward_hooks_with_kwargs),
        ):
            for number in [number for number, hook in hooks.items() if ours(hook)]:
                del hooks[number]
                with_kwargs.pop(number, None)
