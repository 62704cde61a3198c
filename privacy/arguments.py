"""What the arguments of `make_private` may be: numbers are numbers, and Opacus' own ask for nothing else.

Names and defaults are those of opacus.PrivacyEngine (version 1.5), so that a script needs no guessing: those that ask
for nothing else are taken, the others get one line each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from noise_models.errors import UsageError

_ANSWERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # name: (values that ask for nothing else, what to do about others)
    "secure_mode": (
        lambda value: isinstance(value, bool),
        "noise and coins always come from a cryptographic generator, so it is True or False to no effect",
    ),
    "batch_first": (
        lambda value: value is True,
        "a private module keeps the records in the first dimension; transpose the inputs",
    ),
    "clipping": (
        lambda value: value == "flat",
        "a record's whole stack is clipped to one max_grad_norm; leave it out",
    ),
    "grad_sample_mode": (
        lambda value: value == "hooks",
        "what records contribute is noted layer by layer, in one way; leave it out",
    ),
    "criterion": (
        lambda value: value is None,
        "the loop's own loss is used as it is, and nothing wraps it; leave it out",
    ),
    "noise_generator": (
        lambda value: value is None,
        "a torch generator has no secrecy; leave it out, or give PrivacyEngine(reproducible_seed=) for experiments "
        "without a guarantee",
    ),
}


def refuse_types(real: Mapping[str, object], whole: Mapping[str, object]) -> None:
    """One line for a value of another type, such as a number in quotes."""
    for name, value in {**real, **whole}.items():
        fits = isinstance(value, int) or (name in real and isinstance(value, float))
        if not fits or isinstance(value, bool):
            kind = "a whole number" if name in whole else "a number"
            shown = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
            raise UsageError(f"{name} is {shown}; it must be {kind}")


def refuse_arguments(call: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """
    Args:
        call: the function's name.
        given: arguments that it does not have, by name.
        known: those that it has.
    Raises:
        UsageError: one of them asks for something that there is not.
    """
    for name, value in given.items():
        if name not in _ANSWERS:
            raise UsageError(f"{call} has no argument {name!r}; it has {', '.join(sorted(known))}")
        harmless, remedy = _ANSWERS[name]
        if not harmless(value):
            raise UsageError(f"{call} was given {name}={_shown(value)}: {remedy}")


def refuse_reduction(given: Any, own: Any) -> None:
    """
    Args:
        given: loss_reduction, as Opacus takes it; None where it was left out.
        own: the aligned module's.
    Raises:
        UsageError: they differ.
    """
    if given is not None and given != own:
        raise UsageError(
            f"loss_reduction is {_shown(given)}, but the module was aligned for {own!r}; give it to align(module, "
            "loss_reduction=)"
        )


def _shown(value: Any) -> str:
    """A plain value itself, of anything else its type: one line whatever it is."""
    return repr(value) if isinstance(value, str | bool | int | float | None) else type(value).__name__
