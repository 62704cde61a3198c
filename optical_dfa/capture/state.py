"""What a private pass must leave as it was: everything of the module that stays after the pass and may be released."""

from __future__ import annotations

import array
import enum
import hashlib
import logging
import pickle
import types
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.places import on_cpu

# What every nn.Module keeps itself: its parts and hooks, which are looked at elsewhere.
_OWN = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Of no content of their own that a pass could write to, or of their maker's.
_BARE = (
    type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size, enum.Enum, slice, range, type(Ellipsis), type(NotImplemented), np.dtype,
    logging.Logger,
)  # fmt: skip
_VALUES = (
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, enum.Enum, slice, range, type(Ellipsis),
)  # fmt: skip
_DEPTH = 8


class Attributes:
    """Attributes and buffers of a module's parts, in a form that shows a change: by value, to the last entry.

    Attributes:
        settings: of them the numbers and texts, and the modes of all parts: what a pass may be steered by.
    """

    def __init__(self, tokens: dict[str, Any], settings: tuple[Any, ...], opaque: Mapping[str, str]) -> None:
        self.tokens, self.settings, self._opaque = tokens, settings, dict(opaque)

    @classmethod
    def of(cls, module: nn.Module) -> Attributes:
        """As they are now."""
        tokens: dict[str, Any] = {}
        settings: list[Any] = []
        opaque: dict[str, str] = {}
        for name, part in module.named_modules():
            settings.append(part.training)
            for key, value in vars(part).items():
                if key in _OWN:
                    continue
                path = f"{name}.{key}" if name else key
                try:
                    tokens[path] = _token(value, _DEPTH, set())
                except _OpaqueError as kind:
                    opaque[path] = str(kind)
                    tokens[path] = id(value)
                if isinstance(value, (*_PLAIN, list, tuple, dict)) and not _holds_tensors(value):
                    settings.append((path, repr(value)))
            for owner in type(part).__mro__[: type(part).__mro__.index(nn.Module)]:
                if owner.__module__.partition(".")[0] == "torch":
                    continue
                for key, value in vars(owner).items():
                    if key != "__annotations__" and isinstance(
                        value, Tensor | np.ndarray | list | dict | set | deque
                    ):
                        path = f"{owner.__name__}.{key}"
                        try:
                            tokens[path] = _token(value, _DEPTH, set())
                        except _OpaqueError:
                            tokens[path] = id(value)
        for path, buffer in module.named_buffers():
            tokens[path] = (id(buffer), buffer._version)
        for path, parameter in module.named_parameters():
            tokens[path] = id(parameter)
        return cls(tokens, tuple(settings), opaque)

    def refuse_opaque(self) -> None:
        """
        Raises:
            UsageError: naming an attribute that a pass could change unseen.
        """
        for path, kind in self._opaque.items():
            raise UsageError(
                f"{path} is a {kind}, in which a pass could keep un-noised statistics of records unseen; keep numbers, "
                "texts, tensors, arrays and containers of them in the module, or take it out"
            )

    def refuse_changed(self, module: nn.Module) -> None:
        """
        Raises:
            UsageError: naming what is another one now.
        """
        now = Attributes.of(module).tokens
        for name in (*now, *self.tokens):
            if self.tokens.get(name, now) != now.get(name, self.tokens):
                raise UsageError(
                    f"{name} changes in a forward pass: it would keep un-noised statistics of records; set it before "
                    "make_private (what is made once: by a call on zeros), or compute it anew in every pass"
                )


class Held:
    """Frozen parameters and buffers during a pass: their values are put back should one have been written to."""

    def __init__(self, module: nn.Module, kept: Kept) -> None:
        """
        Args:
            module: the plain module.
            kept: its values, as they are now.
        """
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self._before = [
            (name, x, kept.before[name]) for name, x in tensors if name in kept.before and x.numel()
        ]

    def restore(self) -> None:
        """
        Raises:
            UsageError: naming what was written to; it has its value again.
        """
        for name, x, before in self._before:
            if not same(x, before):
                with torch.no_grad():
                    x.copy_(before)
                raise UsageError(
                    f"{name} changes in a forward pass: it would keep un-noised statistics of records; set it before "
                    "make_private, or compute it anew in every pass"
                )


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN equal to NaN."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return torch.equal(one, two) or bool(((one == two) | ((one != one) & (two != two))).all())


def refuse_extra_state(module: nn.Module) -> None:
    """Refuse parts that put more into a state_dict than parameters and buffers: nothing sees what.

    Raises:
        UsageError: naming the part.
    """
    for name, part in module.named_modules():
        for method in ("get_extra_state", "state_dict", "_save_to_state_dict"):
            if getattr(type(part), method) is not getattr(nn.Module, method) or method in vars(part):
                raise UsageError(
                    f"{name or 'the module'} ({type(part).__name__}) puts a state of its own into checkpoints "
                    f"({method}), which is released without noise; keep it in buffers that a pass leaves alone"
                )
        if part._state_dict_hooks or part._state_dict_pre_hooks:
            raise UsageError(
                f"{name or 'the module'} ({type(part).__name__}) has a hook on its state_dict, which is released "
                "without noise; take the hook off"
            )


def _holds_tensors(value: Any) -> bool:
    """Whether the repr of a container would be of objects, not of settings."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(not isinstance(entry, _PLAIN) for entry in entries)


def plain(value: Any, depth: int = _DEPTH) -> bool:
    """Whether a value is made of numbers, texts and containers of them alone, so that no tensor hides in it."""
    if isinstance(value, (*_PLAIN, *_VALUES)):
        return True
    if depth == 0 or not isinstance(value, list | tuple | set | frozenset | dict):
        return False
    entries = (*value.keys(), *value.values()) if isinstance(value, dict) else value
    return all(plain(entry, depth - 1) for entry in entries)


class Kept:
    """Tensors of a module that are not released with noise: a private run takes them as they were when it began.

    Attributes:
        before: their values then, by name.
        names: of all tensors of the module.
    """

    def __init__(self, module: nn.Module, trained: Iterable[nn.Parameter]) -> None:
        """
        Args:
            module: the plain module.
            trained: the parameters that are released with noise, whatever names they have.
        """
        released = {id(p) for p in trained}
        tensors = tensors_of(module)
        self.names = frozenset(tensors)
        self.before = {name: x.detach().clone() for name, x in tensors.items() if id(x) not in released}

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return self  # nobody changes it

    def refuse_other(self, module: nn.Module, whose: str = "") -> None:
        """
        Args:
            module: as given.
            whose: what its tensors' names are preceded by in messages.
        Raises:
            UsageError: naming a tensor that is not what it was: it may hold records.
        """
        now = tensors_of(module)
        for name in dict.fromkeys((*now, *self.before)):
            if name in self.names and name not in self.before:  # trained
                continue
            if name not in now or name not in self.before or not same(now[name], self.before[name]):
                raise UsageError(
                    f"{whose}{name} is not the tensor that it was when the run began, and may hold records: a private "
                    "pass is given its records as arguments; make the changed module private instead"
                )


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and tensors that are attributes, by dotted name."""
    found: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        for own in (part._parameters, part._buffers, vars(part)):
            for key, value in own.items():
                if isinstance(value, Tensor):
                    found[f"{name}.{key}" if name else key] = value
    return found


def token_of(value: Any) -> Any:
    """Equal for what is the same still, by value; for what cannot be looked at, the object itself."""
    try:
        return _token(value, _DEPTH, set())
    except _OpaqueError:
        return id(value)


class _OpaqueError(Exception):
    """A value whose content cannot be looked at; the words are its type."""


def _token(value: Any, depth: int, above: set[int]) -> Any:
    """Equal for what is the same still, by value: numbers, tensors, arrays, containers and objects of them."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, nn.Parameter):
        return id(value), value._version  # its values are `Held`'s to compare
    if isinstance(value, Tensor):
        return id(value), value._version, _digest_of(value)
    if isinstance(value, weakref.ref):
        return id(value())
    if isinstance(value, _BARE):
        return id(value)
    if id(value) in above or depth == 0:
        return id(value)
    above = above | {id(value)}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return type(value), tuple(_token(entry, depth - 1, above) for entry in value.ravel().tolist())
        return type(value), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, np.generic):
        return type(value), value.tobytes()
    if isinstance(value, array.array | bytearray | memoryview):
        return type(value), bytes(value)
    if isinstance(value, nn.Module):  # kept in a list, say, where nobody else looks at it
        inner = {key: entry for key, entry in vars(value).items() if key not in _OWN}
        inner |= {**value._parameters, **value._buffers}
        return id(value), tuple((key, _token(entry, depth - 1, above)) for key, entry in inner.items())
    if isinstance(value, list | tuple | deque):
        return type(value), tuple(_token(entry, depth - 1, above) for entry in value)
    if isinstance(value, set | frozenset):
        return type(value), tuple(sorted(repr(_token(entry, depth - 1, above)) for entry in value))
    if isinstance(value, Mapping):
        return type(value), tuple(
            (repr(key), _token(entry, depth - 1, above)) for key, entry in value.items()
        )
    if isinstance(value, types.MethodType):
        return id(value.__func__), id(value.__self__)
    return _object(value, depth, above)


def _object(value: Any, depth: int, above: set[int]) -> Any:
    parts = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        for slot in (slots,) if isinstance(slots := vars(kind).get("__slots__", ()), str) else slots:
            if hasattr(value, slot):
                parts[slot] = getattr(value, slot)
    if parts or type(value).__module__.partition(".")[0] in ("optical_dfa", "noise_models", "privacy"):
        return type(value), tuple((key, _token(entry, depth - 1, above)) for key, entry in parts.items())
    try:
        return type(value), hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # whatever its type says about pickling
        raise _OpaqueError(type(value).__name__) from None


def _digest_of(x: Tensor) -> str:
    """Of a tensor that is an attribute; nothing of one whose memory cannot be read."""
    if x.device.type == "meta" or x.layout != torch.strided:
        return ""
    flat = on_cpu(x).reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if len(flat) else b"").hexdigest()
