"""Whether direct feedback will probably teach a network anything, as far as it shows before training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.cuts import Below
from optical_dfa.feedback.gains import unbounded
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment

RECORDS = 32
MOST_DEAD = 0.5  # of a point's units; networks of ordinary initialisation have a tenth of that
MOST_OVER = (
    5.0  # times what a layer bears; measured on fully connected and convolutional networks (docs/rules.md)
)
REMEDY = "use nn.Tanh, put nn.GroupNorm or nn.LayerNorm before the activation, or use rule hybrid"


def outlook(aligned: AlignedModule, below: Mapping[str, Below]) -> str | None:
    """One line where direct feedback will probably teach nothing, with the remedy; None where nothing shows it.

    Args:
        aligned: just aligned; a copy is run on random records.
        below: what stands below each of its points.
    """
    if not aligned.points or not aligned.rule.teaches_hidden:
        return None
    return _dead(aligned) or _out_of_proportion(aligned, below)


def _out_of_proportion(aligned: AlignedModule, below: Mapping[str, Below]) -> str | None:
    """A feedback scale, given by the user, that is far above what an unbounded activation bears."""
    rule = aligned.rule
    if not isinstance(rule, DirectFeedbackAlignment) or rule.derived:
        return None
    over = {p.name: rule.scale / (p.gain * below[p.name].places) for p in aligned.points if p.gain != 1.0}
    if (worst := _worst(over, MOST_OVER)) is None:
        return None
    name, times = worst
    return (
        f"note: with scale={rule.scale!r} the feedback to {name} is {times:.0f} times what its activation bears, "
        f"and its units will probably die before they learn: leave scale out (it is derived for each point), {REMEDY}"
    )


def _dead(aligned: AlignedModule) -> str | None:
    """Points most of whose units put out the same for all of many random records, of the example's shapes alone."""
    twin = copy.deepcopy(aligned.module).eval()
    seen: dict[str, Tensor] = {}

    def note(part: nn.Module, args: Any, output: Any, name: str) -> None:
        if isinstance(output, Tensor) and output.ndim > 1 and len(output) == RECORDS:
            moved = (output != output[:1]).flatten(1).any(0)
            seen[name] = seen[name] | moved if name in seen and seen[name].shape == moved.shape else moved

    for point in aligned.points:
        if unbounded(twin.get_submodule(point.name)):
            twin.get_submodule(point.name).register_forward_hook(partial(note, name=point.name))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin(*aligned.example(RECORDS))
    dead = {name: 1 - float(moved.double().mean()) for name, moved in seen.items()}
    if (worst := _worst(dead, MOST_DEAD)) is None:
        return None
    name, share = worst
    return (
        f"note: {share:.0%} of the units of {name} are the same for all of {RECORDS} random records of mean 0 and "
        f"deviation 1 (dead), and direct feedback cannot revive them: initialise its layer anew, {REMEDY}; the "
        "example's values may be private and are not looked at, so scale yours alike"
    )


def _worst(values: Mapping[str, float], most: float) -> tuple[str, float] | None:
    """The point with the largest value, and that; None where none has more than `most`."""
    name = max(values, key=lambda name: values[name], default="")
    return (name, values[name]) if name and values[name] > most else None
