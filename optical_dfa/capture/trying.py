"""Trying a private module on copies and random records: what its passes, and its rule, do in batches of two sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from noise_models.base import NoNoise
from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create
from optical_dfa.backends.digital import DigitalBackend
from optical_dfa.capture.following import Following
from optical_dfa.capture.program import LARGER, REMEDY, SMALL, Program, first_difference
from optical_dfa.feedback.aligned import AlignedModule

MASKS = "masks of a probe"
_MODULE_FAILS = "the module fails on random records of the example's shape"


def program_of(aligned: AlignedModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Program:
    """What passes of a private module over inputs like these do, from two on a copy and random records.

    Args:
        aligned: records already.
        args, kwargs: as it is called; tensors give shapes and types alone.
    Raises:
        UsageError: the passes differ in more than the number of records.
    """
    twin = copy.deepcopy(aligned, {id(p): p for p in aligned.parameters()} | stand_in(aligned))
    passes = []
    for records in (SMALL, LARGER):
        capture = twin.capture
        capture.expected_records = lambda records=records: records  # type: ignore[misc]
        capture.noting = Following(twin.module, records, NoiseGenerator.secure(MASKS), None)
        like = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        random = aligned.inputs_like(like, records)
        tensors = iter(x.requires_grad_(one.requires_grad) for x, one in zip(random, like, strict=True))
        given = [next(tensors) if isinstance(x, Tensor) else x for x in args]
        named = {name: next(tensors) if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        with torch.enable_grad(), named_failure():
            twin(*given, **named)
        passes.append(capture.noting)
        capture.clear()
    return agreed(*passes)


def program_of_rule(
    aligned: AlignedModule,
    function: Callable[..., Sequence[Tensor | None]],
    given: Sequence[Any],
    records: int,
) -> Program:
    """What a feedback rule does, from random numbers in place of a private pass's and of the device's answers.

    Args:
        aligned: records already.
        function: a part of the rule, from how it is followed and what it starts from to tensors.
        given: what it starts from in a private pass; tensors give shapes and types alone.
        records: in that pass.
    Raises:
        UsageError: what it does differs in more than the number of records.
    """
    passes = []
    for size in (SMALL, SMALL, LARGER):  # the first draws what a rule draws once
        following = Following(aligned.module, size, NoiseGenerator.secure(MASKS), None, aligned.rule.name)
        like = [
            aligned.inputs_like([x], len(x) // records * size)[0].requires_grad_(x.requires_grad)
            if isinstance(x, Tensor)
            else x
            for x in given
        ]
        with named_failure(f"rule {aligned.rule.name} fails on random errors"), following.on(like):
            following.hand_on(function(following, *like))
        passes.append(following)
    return agreed(*passes[1:])


def stand_in(aligned: AlignedModule, exact: bool = False) -> dict[int, Any]:
    """A device without noise in place of one with: the memo with which to copy the module.

    Args:
        exact: without rounding, too.
    """
    device = aligned.backend
    if device is None:
        return {}
    if type(device) is DigitalBackend or (isinstance(device.noise, NoNoise) and not exact):
        return {id(device): device}
    digital = create(
        "digital",
        in_features=device.in_features,
        out_features=device.out_features,
        seed=0,
        noise=NoiseGenerator.seeded(0, "probe"),
    )
    return {id(device): digital}


@contextmanager
def named_failure(what: str = _MODULE_FAILS) -> Iterator[None]:
    """Whatever a module or a rule makes of random records is said in one line."""
    try:
        yield
    except (UsageError, DeviceError):
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")[:160]
        raise UsageError(
            f"{what} ({type(error).__name__}: {line}); private training probes it with such: give align() an example "
            "of the records' shape and type, and let it take them"
        ) from error


def agreed(small: Following, larger: Following) -> Program:
    """The operations of a pass, as two passes agree on them.

    Args:
        small, larger: passes over SMALL and over LARGER records, noted.
    Raises:
        UsageError: the two passes did different things.
    """
    if any(one is not two for one, two in zip(small.constants, larger.constants, strict=False)):
        raise UsageError(
            f"{larger.whose} makes tensors by what is no operation of torch (numpy, another thread?) and cannot be "
            f"followed; {REMEDY}"
        )
    if small.entries != larger.entries or len(small.asked) != len(larger.asked):
        raise larger.differs(first_difference(small.entries, larger.entries))
    sizes = []
    for one, two in zip(small.asked, larger.asked, strict=True):
        if len(one) != len(two):
            raise larger.differs("sizes")
        sizes.append(tuple(_size(a, b, larger) for a, b in zip(one, two, strict=True)))
    if small.returned != larger.returned:
        raise larger.differs("what it returns")
    return Program(tuple(small.entries), tuple(sizes), small.returned)


def _size(small: int, large: int, larger: Following) -> tuple[int, int]:
    """(multiple, constant) of a size in batches of SMALL and of LARGER records."""
    if small == large:
        return 0, small
    if small % SMALL == 0 and small // SMALL * LARGER == large:
        return small // SMALL, 0
    raise larger.differs(f"a size that is {small} for {SMALL} records and {large} for {LARGER}")
