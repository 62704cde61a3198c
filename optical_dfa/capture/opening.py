"""Opening a private run: the module is refused, or its passes are recorded from now on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from noise_models.base import NoNoise
from noise_models.errors import UsageError
from optical_dfa.capture.aggregated import AggregatedCapture, carried_by_light
from optical_dfa.capture.pending import PASSES
from optical_dfa.capture.probing import (
    check_places,
    check_records_apart,
    check_steps_apart,
    check_sums,
    check_uses,
)
from optical_dfa.capture.records import Capture
from optical_dfa.capture.separated import SeparatedCapture
from optical_dfa.capture.trying import named_failure
from optical_dfa.capture.unfused import restore, unfuse
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.points import refuse_computed
from optical_dfa.feedback.rule import ProjectingState
from optical_dfa.feedback.state import FeedbackState
from privacy.secrecy import foreign

# The forms in which releases take what records contribute.
CAPTURES: dict[str, Callable[[AlignedModule], Capture]] = {
    "records": Capture,
    "separated": SeparatedCapture,
    "aggregate": AggregatedCapture,
    "light": carried_by_light,
}


# Entries of inputs and outputs that a block holds at least, for every parameter and for every call of a layer. A sum of
# products goes through the parameters, and following through the calls, once a block: little beside the block's own.
_EACH_PARAMETER, _EACH_CALL = 4, 3 << 20
# What a state may have of its own: followed in every private pass, tried before it, or no part of one.
_FOLLOWED = frozenset({"observe", "teach", "signals", "work"})


def open_capture(aligned: AlignedModule, kind: str, rows: int | None = None) -> Capture:
    """Record what each record contributes to `aligned`, after it was seen that records do not mix in it.

    Args:
        kind: the form in which a release takes it, a name of `CAPTURES`.
        rows: at most, of the blocks that a batch goes through the module in; None is one block of a row a record.
    Raises:
        UsageError: the rule's update is no sum over records, or a layer mixes records or is not supported; a record's
            numbers depend on its place in a block.
    """
    if aligned.rule.refused is not None:
        raise UsageError(f"rule {aligned.rule.name} {aligned.rule.refused}")
    refuse_computed(aligned.module)
    _refuse_own_ways(aligned)
    with named_failure(f"rule {aligned.rule.name} fails on random errors"):
        _check_taught_apart(aligned)
    replaced = unfuse(aligned.module)
    try:
        capture = CAPTURES[kind](aligned)
    except BaseException:
        restore(replaced)
        raise
    capture.replaced = replaced
    aligned.attach(capture)
    try:
        check_records_apart(capture)
        positions, entries, calls = check_uses(capture)
        capture.positions = PASSES * positions
        check_steps_apart(aligned)
        check_sums(aligned)
        if rows is not None:
            parameters = sum(p.numel() for p in capture.parameters.values())
            capture.rows = _same_in_every_place(aligned, rows, block_rows(rows, entries, parameters, calls))
            capture.try_places = partial(check_places, aligned, capture.rows)
    except BaseException:
        aligned.stop_capture()
        raise
    return capture


def block_rows(rows: int, entries: int, parameters: int, calls: int) -> int:
    """Rows of a block: signals, and what kernels work in, stand in memory for a block at a time.

    Args:
        rows: at most; fewer are a multiple of 32, as these are.
        entries: of the trained layers' inputs and outputs, a record.
        parameters: their number.
        calls: of trained layers.
    """
    most = max(1, _EACH_PARAMETER * parameters, _EACH_CALL * calls)
    blocks = math.ceil(rows * entries / most)
    return rows if blocks < 2 else min(rows, -(-rows // blocks // 32) * 32)


def _same_in_every_place(aligned: AlignedModule, most: int, rows: int) -> int:
    """So many rows, or a few more: the next multiple of 128, which more kernels divide evenly among threads; or the
    most, likewise.

    Raises:
        UsageError: in none a record's numbers are the same in every place.
    """
    tried = dict.fromkeys((rows, -(-rows // 128) * 128, most, -(-most // 128) * 128))
    refused: UsageError | None = None
    for each in tried:
        try:
            check_places(aligned, each)
        except UsageError as error:
            refused = error
        else:
            return each
    assert refused is not None
    raise refused


def _refuse_own_ways(aligned: AlignedModule) -> None:
    """Refuse a rule from outside that does more than observe and teach: nothing else of it is followed in a pass.

    Raises:
        UsageError: naming what it does besides.
    """
    rule, state = aligned.rule, aligned.state
    if foreign(rule) and type(state) not in (FeedbackState, ProjectingState) and not foreign(state):
        raise UsageError(
            f"rule {rule.name} changes what a {type(state).__name__} does in the backward passes of its hooks, which "
            "are not followed; a private rule of your own has a state of its own that observes and teaches"
        )
    own: dict[str, object] = dict(vars(state))
    for owner in type(state).__mro__[: type(state).__mro__.index(FeedbackState)]:
        own |= vars(owner) if owner.__module__.partition(".")[0] != "optical_dfa" else {}
    for name in own:
        if (
            callable(getattr(FeedbackState, name, None))
            and name not in _FOLLOWED
            and not name.startswith("__")
        ):
            raise UsageError(
                f"the state of rule {rule.name} has a {name} of its own, which is not followed in a private pass; "
                "a private rule of your own observes and teaches, and nothing else"
            )


def _check_taught_apart(aligned: AlignedModule) -> None:
    """One record's error must not move another's teaching signal, as far as a device without noise shows it."""
    if not aligned.points or not aligned.rule.teaches_hidden:
        return
    if aligned.backend is not None and not isinstance(aligned.backend.noise, NoNoise):
        return  # readouts never repeat; optical_dfa.testing checks such a device's law
    width = aligned.components if aligned.backend is None else aligned.backend.in_features
    error = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    _check_feedback_fixed(aligned, error)
    for record, factor in product(range(len(error)), (-100.0, 0.0, 1e-6, 1e6, 1e12)):
        changed = error.clone()
        changed[record] *= factor
        others = [row for row in range(len(error)) if row != record]
        if aligned.backend is not None and not torch.allclose(
            aligned.backend.project(error)[others], aligned.backend.project(changed)[others]
        ):
            raise UsageError(
                f"backend {aligned.backend.name} mixes records: one record's error moves what it answers another; its "
                "scales and thresholds must be public constants or a function of the record alone "
                "(optical_dfa.testing checks a device)"
            )
        for before, after in zip(aligned.signals(error), aligned.signals(changed), strict=True):
            if before is not None and after is not None and not torch.allclose(before[others], after[others]):
                raise UsageError(
                    f"rule {aligned.rule.name} mixes records: one record's error moves another's teaching signal; "
                    "scales and thresholds must be public constants or a function of the record alone"
                )


def _check_feedback_fixed(aligned: AlignedModule, error: Tensor) -> None:
    """The same error teaches the same again: whoever wrote the rule may have forgotten to say that it learns.

    The device is asked first: one that declares no noise must repeat, or the rule would be blamed for it.
    """
    if aligned.backend is not None:
        answers = [aligned.backend.project(error).clone() for _ in range(3)]
        if not all(torch.equal(answers[0], answer) for answer in answers):
            raise UsageError(
                f"backend {aligned.backend.name} declares no noise (NoNoise) but answers the same errors differently; "
                "give it the noise model it has, or make it repeat (optical_dfa.testing checks a device)"
            )
    first = [None if a is None else a.clone() for a in aligned.signals(error)]
    again = aligned.signals(error)
    if any(
        a is not None and b is not None and not torch.equal(a, b) for a, b in zip(first, again, strict=True)
    ):
        raise UsageError(
            f"rule {aligned.rule.name} teaches differently after it was used: it learns from private records outside "
            "the clipped and noised stack; use a rule with fixed feedback"
        )
