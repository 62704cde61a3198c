"""What one record's training step costs under a rule: multiply-adds, and words of error data moved.

The counting rule, for every network and rule alike (per record, biases, activations and normalisation left out):

- forward: one multiply-add a weight and position at which it is used; as many for a second forward pass, and for the
  tangents of a forward-mode pass (whose own forward pass is not counted: it could be the first one).
- weight gradient: as many again for every layer that the rule trains.
- error: a matrix that the error passes backwards through costs what it cost forwards; a projection costs what
  the rule says (`FeedbackState.work`): c n_l for a dense one, k n_l where a unit hears k components.
- words: what the units must receive to be taught. Through a matrix that is, for every multiply-add, an error and
  a weight, for the weights change; a fixed feedback matrix is where it is used, so a projection moves errors alone.

Example 3072-1000-1000-1000-10, error: BP 2,010,000 multiply-adds, DFA 30,000.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optical_dfa.aligning import unalign
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.state import components

COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Cost:
    """Of one record, counted as the module says.

    Attributes:
        forward, weight_gradient, error: multiply-adds.
        words: words of error data and weights that units receive to be taught.
    """

    forward: int
    weight_gradient: int
    error: int
    words: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def cost(aligned: AlignedModule) -> Cost:
    """Multiply-adds and words of one record under the module's rule, counted on a forward pass of random records."""
    twin = aligned.twin()
    twin.stop_capture()
    plain = unalign(copy.deepcopy(twin))
    passes: dict[str, int] = defaultdict(int)
    forward: dict[str, int] = defaultdict(int)
    trained = set(twin.trained_parameters())

    def enter(name: str, args: Sequence[Tensor]) -> None:
        if not torch.is_grad_enabled():
            return  # a forward-mode pass
        # Seen before any hook of the rule: an input with a history is one that the error goes back to.
        passes[name] += int(args[0].requires_grad)

    def leave(name: str, layer: Any, output: Tensor) -> None:
        forward[name] += output[0].numel() * math.prod(layer.weight.shape[1:])

    calls: dict[str, int] = defaultdict(int)
    for name, part in twin.module.named_modules():
        if isinstance(part, COUNTED):
            part.register_forward_pre_hook(lambda _, args, n=name: enter(n, args), prepend=True)
    for name, part in plain.named_modules():
        if isinstance(part, COUNTED):
            part.register_forward_hook(lambda layer, _, out, n=name: leave(n, layer, out), prepend=True)
            part.register_forward_pre_hook(lambda *_, n=name: calls.update({n: calls[n] + 1}))
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        place = next(twin.parameters()).device
        output = twin(*[x.to(place) for x in twin.example(2)])
        plain(*[x.to(place) for x in twin.example(2)])
    c = components(output)
    through = sum(forward[name] * passes[name] // calls[name] for name in forward)
    operations, words = twin.state.work(c, output[0].numel() // c)
    return Cost(
        forward=sum(forward.values()) * (1 + twin.state.extra_passes),
        weight_gradient=sum(n for name, n in forward.items() if f"{name}.weight" in trained),
        error=through + operations,
        words=2 * through + words,
    )
