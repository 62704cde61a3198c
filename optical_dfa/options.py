"""Options that a user gives by name to a backend or a rule, checked against the constructor that takes them.

A class that takes `**options` names a dataclass of them, `options`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from noise_models.errors import UsageError


def names(target: Callable[..., Any], besides: Collection[str] = ()) -> list[str]:
    """Options of `target`: the parameters that can be given by name alone, without those in `besides`."""
    return [name for name in _parameters(target) if name not in besides]


def checked(
    what: str, target: Callable[..., Any], options: Mapping[str, Any] | None, besides: Collection[str] = ()
) -> dict[str, Any]:
    """`options` as keyword arguments of `target`, each of the type that its annotation says.

    A whole number serves where any number does; true and false are no numbers. A parameter annotated with
    anything but bool, int, float, str or None is left to `target` itself.

    Args:
        what: of whom the options are, such as "backend digital"; begins the message.
        target: a class or function.
        options: what was given.
        besides: parameters that are no options.

    Raises:
        UsageError: an unknown name, or a value of another type.
    """
    given, allowed, parameters = dict(options or {}), names(target, besides), _parameters(target)
    for option, value in given.items():
        if option not in allowed:
            raise UsageError(f"{what} has no option {option!r}; it has: {', '.join(allowed) or 'none'}")
        kinds = inspect.formatannotation(parameters[option].annotation).strip("'\"").split(" | ")
        if set(kinds) <= _KINDS.keys() and not any(_KINDS[kind][0](value) for kind in kinds):
            shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
            expected = " or ".join(_KINDS[kind][1] for kind in kinds if kind != "None")
            raise UsageError(f"option {option} of {what} is {shown}; it must be {expected}")
    return given


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(target).parameters)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values()):
        found |= inspect.signature(getattr(target, "options", target)).parameters
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: parameter for name, parameter in found.items() if parameter.kind in by_name}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _finite(value: object) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


_KINDS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_whole, "a whole number below 2^63"),
    "float": (_finite, "a finite number"),
    "str": (lambda value: isinstance(value, str), "text"),
    "None": (lambda value: value is None, "absent"),
}
