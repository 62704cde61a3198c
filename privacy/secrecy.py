"""Whether every generator that draws in a private pass is secret: what a seed repeats is noise to nobody who has it.

A record's contribution may be random (a device's noise, a mask), but only by randomness that nobody can repeat: noise
from a seeded stream also shifts, for all records after it, when one record joins. So everything that a private pass can
reach is looked through, whoever put it there.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dis import get_instructions
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
import torch

from noise_models.base import NoNoise
from noise_models.randomness.generator import NoiseGenerator

# Generators of other libraries: their keys are short, or given, or written down.
_OTHER = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
_LEAVES = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    type(None),
    type(Ellipsis),
    torch.Tensor,
    torch.dtype,
    CodeType,
)
# Packages whose code draws from no generator that it was not given.
_KNOWN = frozenset({"torch", "numpy", "scipy"}) | sys.stdlib_module_names
_OWN = frozenset({"optical_dfa", "privacy", "noise_models"})
_NOT_THE_USERS = _KNOWN | _OWN
_MOST: Final = 1_000_000


def unsecret(module: Any, device: Any, *parts: Any) -> tuple[str, ...]:
    """Why the run's randomness is not secret, one sentence a reason; () where it is.

    Followed are attributes, class attributes, containers, closures, defaults, bound methods and the globals of the
    user's own functions. An attribute named in its class's `public_generators` draws nothing in a pass. A device of
    model `NoNoise` draws nothing either: that its readouts repeat is checked where a module is made private.

    Args:
        module: whose passes are private, with its rule.
        device: the projection device, None without one.
        parts: what else draws in a step: the release and its source.
    """
    quiet = device is None or isinstance(getattr(device, "noise", None), NoNoise)
    reasons = [
        f"{path} is {_kind(generator)}"
        for path, generator in _generators(
            {"module": module, "release": parts}, skip=device if quiet else None
        )
        if not (isinstance(generator, NoiseGenerator) and generator.secret)
    ]
    if not quiet and not getattr(device, "physical", False):
        shown = [found for _, found in _generators({"device": device}) if isinstance(found, NoiseGenerator)]
        if not any(generator.secret for generator in shown):
            reasons.append(
                f"backend {getattr(device, 'name', type(device).__name__)} has noise and shows no secret generator "
                "that it is drawn from (its `generators`; hardware says so by `physical`)"
            )
    return tuple(dict.fromkeys(reasons))


def draws_from_the_process(call: Callable[[], object]) -> tuple[str, ...]:
    """The process-wide generators that `call` draws from."""
    watched: dict[str, Callable[[], bytes]] = {
        "torch": lambda: torch.get_rng_state().numpy().tobytes(),
        "numpy.random": lambda: repr(np.random.get_state(legacy=False)).encode(),
        "random": lambda: repr(random.getstate()).encode(),
    }
    before = {name: state() for name, state in watched.items()}
    call()
    return tuple(
        f"a projection draws from the generator of the process that {name} keeps"
        for name, state in watched.items()
        if state() != before[name]
    )


def foreign(*objects: object) -> bool:
    """Whether one of them is of a class from outside this project."""
    return any(type(one).__module__.partition(".")[0] not in _OWN for one in objects if one is not None)


def _generators(roots: Mapping[str, Any], skip: Any = None) -> Iterator[tuple[str, Any]]:
    """Every generator that can be reached, and how."""
    waiting: deque[tuple[str, Any]] = deque(roots.items())
    seen: dict[int, Any] = (
        {} if skip is None else {id(skip): skip}
    )  # kept alive, so that no number is given again
    classes: dict[int, type] = {}  # looked through already: once, however many objects are of them
    while waiting:
        path, found = waiting.popleft()
        if isinstance(found, (*_LEAVES, random.SystemRandom)) or id(found) in seen:
            continue
        seen[id(found)] = found
        if isinstance(found, (NoiseGenerator, *_OTHER)):
            yield path, found
            continue
        if len(seen) > _MOST:
            yield path, None
            return
        waiting.extend(_within(path, found, classes))


def _within(path: str, found: Any, classes: dict[int, type]) -> Iterable[tuple[str, Any]]:
    if isinstance(found, Mapping):
        yield from (
            (f"{path}[{key!r}]" if isinstance(key, str) else path, value) for key, value in found.items()
        )
    elif isinstance(found, list | tuple | set | frozenset | deque):
        yield from ((path, value) for value in found)
    elif isinstance(found, np.ndarray):
        yield from ((path, value) for value in found.flat) if found.dtype == object else ()
    elif isinstance(found, partial):
        yield from ((path, part) for part in (found.func, found.args, found.keywords))
    elif isinstance(found, MethodType):
        yield from ((path, found.__self__), (path, found.__func__))
    elif isinstance(found, BuiltinFunctionType):
        yield path, None if isinstance(found.__self__, ModuleType) else found.__self__
    elif isinstance(found, GeneratorType):
        yield from ((path, value) for value in (found.gi_frame.f_locals.values() if found.gi_frame else ()))
    elif isinstance(found, FunctionType):
        yield from _of_function(path, found)
        return
    elif isinstance(found, type):
        yield from _of_class(path, found, classes)
        return
    elif isinstance(found, ModuleType):
        return
    public = getattr(type(found), "public_generators", ())
    for name in _attributes(found):
        if name not in public and (value := _value(found, name)) is not None:
            yield f"{path}.{name}", value
    yield from _of_class(path, type(found), classes)


def _attributes(found: Any) -> Iterator[str]:
    yield from list(getattr(found, "__dict__", ()))
    for kind in type(found).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _value(found: Any, name: str) -> Any:
    own = getattr(found, "__dict__", {})
    return own[name] if name in own else getattr(found, name, None)


def _of_class(path: str, kind: type, classes: dict[int, type]) -> Iterator[tuple[str, Any]]:
    """Class attributes and methods, where they are the user's; nothing of a class that is in `classes` already."""
    if id(kind) in classes:
        return
    classes[id(kind)] = kind
    for one in kind.__mro__:
        if one.__module__.partition(".")[0] in _NOT_THE_USERS:
            continue
        public = getattr(kind, "public_generators", ())
        for name, value in list(vars(one).items()):
            value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            value = value.fget if isinstance(value, property) else value
            if name not in public and not (
                name.startswith("__") and name.endswith("__") and not callable(value)
            ):
                yield f"{path}.{name}", value


def _of_function(path: str, function: FunctionType) -> Iterator[tuple[str, Any]]:
    if (function.__module__ or "").partition(".")[0] in _KNOWN:
        return
    yield path, function.__dict__
    yield path, function.__defaults__
    yield path, function.__kwdefaults__
    for cell in function.__closure__ or ():
        try:
            yield path, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    if (function.__module__ or "").partition(".")[0] in _OWN:
        return
    for name, value in _mentioned(function.__code__, function.__globals__):
        yield f"{path} ({name})", value


def _mentioned(code: CodeType, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What code takes from its globals, looked up through modules: `np.random.normal` is a method of a generator."""
    name, value = "", None
    for instruction in get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            if value is not None:
                yield name, value
            name, value = instruction.argval, known.get(instruction.argval)
        elif isinstance(value, ModuleType) and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            name, value = f"{name}.{instruction.argval}", getattr(value, instruction.argval, None)
        elif value is not None:
            yield name, value
            value = None
    if value is not None:
        yield name, value
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _mentioned(constant, known)


def _kind(generator: Any) -> str:
    if generator is None:
        return "among too many objects to look through"
    if isinstance(generator, NoiseGenerator):
        return f"the seeded generator {generator.name!r}"
    return f"a {type(generator).__module__}.{type(generator).__qualname__}, which is not secret"
