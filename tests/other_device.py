"""A stand-in for an accelerator: tensors that say they are on another device, compute on the CPU, and mix with nothing.

What runs on it runs the same kernels, so that results are those of the CPU, bit for bit. What torch refuses on an
accelerator is refused here: an operation on tensors of two devices (but for a single number that goes into an
element-wise one, and indices), numpy's view of memory that the CPU does not have, random numbers of a generator that
lives elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from noise_models.randomness import lanes
from optical_dfa.capture.layers.own import _Certain
from optical_dfa.capture.modes import _Operations

OTHER = torch.device("lazy", 0)  # a type of which nothing else here knows, and that takes no library's start
HERE = torch.device("cpu")
_aten = torch.ops.aten
# They take tensors of one device to another.
_MOVES = (_aten._to_copy.default, _aten.copy_.default)
# Places within a tensor may be on the CPU.
_PUT = (_aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default)
_INDEXED = (_aten.index.Tensor, *_PUT)
# What torch itself takes to the device, as a single number, besides what goes into element-wise operations.
_FILLED = (*_PUT, _aten.fill.Tensor, _aten.fill_.Tensor, _aten.masked_fill.Tensor, _aten.masked_fill_.Tensor)


class WrongDeviceError(RuntimeError):
    """As torch would raise on an accelerator."""


class Elsewhere(torch.Tensor):
    """A tensor on `OTHER`, whose numbers are in `held`, in memory that both share."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Elsewhere:
        made = torch.Tensor._make_subclass(cls, held, requires_grad, dispatch_device=True)
        made.held = held
        return made

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_placed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_placed(index), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _placed(index: Any) -> Any:
    """Lists as tensors, which torch would make on `OTHER` behind the dispatcher's back."""
    if isinstance(index, tuple):
        return tuple(_placed(part) for part in index)
    return torch.tensor(index, dtype=None if index else torch.int64) if isinstance(index, list) else index


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return OTHER
    tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
    there = any(isinstance(part, Elsewhere) for part in tensors)
    asked = kwargs.get("device")
    elsewhere = there if asked is None else asked.type == OTHER.type
    if func is _aten.copy_.default:
        elsewhere = isinstance(args[0], Elsewhere)
    elif there:
        _refuse_mixed(func, args, tensors)
    given = next((part for part in kwargs.values() if isinstance(part, torch.Generator)), None)
    if given is not None and elsewhere:
        raise WrongDeviceError(f"{func}: a generator on the CPU cannot draw on {OTHER}")
    if asked is not None:
        kwargs = {**kwargs, "device": HERE}
    kwargs.pop("non_blocking", None)
    held = tree_map_only(Elsewhere, lambda part: part.held, (args, kwargs))
    with torch._C._DisableTorchDispatch():
        out = func(*held[0], **held[1])
    if not elsewhere:
        return out
    own = {id(part.held): part for part in tensors if isinstance(part, Elsewhere)}
    return tree_map(lambda part: own[id(part)] if id(part) in own else _elsewhere(part), out)


def _elsewhere(part: Any) -> Any:
    return Elsewhere(part) if isinstance(part, Tensor) and not isinstance(part, Elsewhere) else part


def _refuse_mixed(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in _MOVES:
        return
    indices = args[1] if func in _INDEXED and isinstance(args[0], Elsewhere) else ()
    allowed = {id(part) for part in indices if part is not None}
    if func in _FILLED or torch.Tag.pointwise in func.tags or func.__name__.startswith("_foreach_"):
        written = {id(part) for part in _written(func, args)}
        allowed |= {id(part) for part in tensors if not part.ndim and id(part) not in written}
    for part in tensors:
        if not isinstance(part, Elsewhere) and id(part) not in allowed:
            raise WrongDeviceError(f"{func}: tensors on {OTHER} and on the CPU")


def _written(func: Any, args: Any) -> list[Any]:
    """What the operation writes into, of its arguments by place."""
    places = zip(func._schema.arguments, args, strict=False)
    return tree_flatten(
        [part for place, part in places if place.alias_info is not None and place.alias_info.is_write]
    )[0]


def _but_places(mode: type[TorchDispatchMode]) -> Any:
    """A mode's own reading of operations; where a tensor is, is none on an accelerator."""
    dispatch = mode.__torch_dispatch__

    def read(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return OTHER if func is torch.ops.prim.device.default else dispatch(self, func, types, args, kwargs)

    return read


@contextmanager
def other_device() -> Iterator[torch.device]:
    """While open, tensors can be made on `OTHER` and moved to it, in every lane too."""
    run = lanes._without_gradients

    def watched(task: Callable[[], Any], inference: bool) -> Any:
        with _Watching() if _get_current_dispatch_mode() is None else nullcontext():
            return run(task, inference)

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes them there, and moves them
    try:
        followed = (Tensor, torch.nn.Parameter, Elsewhere)
        with (
            patch("noise_models.randomness.lanes._without_gradients", watched),
            patch("optical_dfa.capture.following._FOLLOWED", followed),
            patch.object(_Operations, "__torch_dispatch__", _but_places(_Operations)),
            patch.object(_Certain, "__torch_dispatch__", _but_places(_Certain)),
            _Watching(),
        ):
            yield OTHER
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(before)
