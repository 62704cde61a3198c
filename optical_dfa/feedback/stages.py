"""An aligned chain of layers, cut behind feedback points into stages that different workers have.

Under a rule that teaches a point from the output's error alone nothing goes back from one stage to another: each is
given what the one before puts out, and the error, which is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from noise_models.errors import UsageError
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rule import ProjectingRule


@dataclass(frozen=True)
class Passed:
    """A stage's forward pass.

    Attributes:
        kept: (index of the point, its output with its history), in call order.
        output: of the stage, with its history where it is the network's.
    """

    kept: Sequence[tuple[int, Tensor]]
    output: Tensor


@dataclass(frozen=True)
class Crossing:
    """What goes from one layer to the next: shape without the record axis, and type."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Part:
    """Layers that learn together: what is between two crossings over which nothing is taught.

    Attributes:
        layers: numbers of the chain's.
        cost: multiply-adds of their forward pass.
        output: what leaves the last of them.
    """

    layers: range
    cost: int
    output: Crossing


class Stage:
    """Consecutive layers of an aligned chain, and what teaches them.

    Attributes:
        number, count: which stage of how many.
        layers: of the chain.
        names: of their parameters and buffers, as the plain module calls them.
        output: what leaves it.
    """

    def __init__(self, aligned: AlignedModule, number: int, parts: Sequence[Sequence[_Part]]) -> None:
        own = parts[number]
        self.number, self.count = number, len(parts)
        self.output = own[-1].output
        chain = _named(aligned.module)[own[0].layers.start : own[-1].layers.stop]
        self.layers = [layer for _, layer in chain]
        self.names = [
            f"{name}.{inner}"
            for name, layer in chain
            for inner, _ in (*layer.named_parameters(), *layer.named_buffers())
        ]
        self._aligned = aligned
        prefixes = tuple(f"{name}." for name, _ in chain)
        self._mine = [i for i, p in enumerate(aligned.points) if f"{p.name}.".startswith(prefixes)]
        self._points: Sequence[Point] = aligned.points

    @property
    def last(self) -> bool:
        """Whether the network's output is its own."""
        return self.number == self.count - 1

    def keep_own_feedback(self) -> None:
        """Drop what teaches other stages alone, where rule and device can do without it."""
        rule, device = self._aligned.rule, self._aligned.backend
        if not isinstance(rule, ProjectingRule) or device is None or not rule.apart:
            return
        mine = [self._aligned.points[i] for i in self._mine]
        first = min((p.start for p in mine), default=0)
        kept = device.keep(range(first, max((p.start + p.outputs for p in mine), default=0)))
        self._points = [replace(point, start=point.start - kept.start) for point in mine]

    def forward(self, h: Tensor) -> Passed:
        """A training pass over records, or a part of a batch of them.

        Args:
            h: the network's input, or what left the stage before.
        """
        tape = self._aligned._tape
        tape.kept = []
        try:
            for layer in self.layers:
                h = layer(h)
            return Passed(tape.kept, h)
        finally:
            tape.kept = None

    def evaluate(self, h: Tensor) -> Tensor:
        """What leaves the stage, without gradients."""
        with torch.no_grad():
            for layer in self.layers:
                h = layer(h)
        return h

    def teach(self, passed: Passed, error: Tensor, records: int, grad: Tensor | None) -> None:
        """Add what the rule teaches the stage's layers to their parameters' gradients.

        Args:
            passed: a forward pass.
            error: shape (rows, c), dL_i/dz_i of one record (or position) of that pass a row.
            records: of the whole batch, over which the loss averages; 1 of a loss that adds up.
            grad: of the loss at the network's output, in the stage that has it.
        """
        taught: list[tuple[Tensor, Tensor]] = [] if grad is None else [(passed.output, grad)]
        if passed.kept:
            signals = self._signals(error)
            for index, h in passed.kept:
                signal = signals[index] if records == 1 else signals[index] / records
                taught.append((h, signal.reshape(h.shape).to(h.dtype)))
        taught = [(root, signal) for root, signal in taught if root.requires_grad]
        torch.autograd.backward([root for root, _ in taught], [signal for _, signal in taught])

    def _signals(self, error: Tensor) -> dict[int, Tensor]:
        """What teaches each of the stage's points, by its index."""
        rule, device = self._aligned.rule, self._aligned.backend
        assert isinstance(rule, ProjectingRule)  # `stages` refuses others
        assert device is not None
        found = rule.feedback(rule.lift(error, None), self._points, device)
        own = self._mine if len(found) == len(self._mine) else range(len(found))
        return dict(zip(own, found, strict=True))


def stages(aligned: AlignedModule, count: int) -> list[Stage]:
    """The stages of about equal cost, as equal as the places allow where a feedback point cuts the chain.

    The same on every worker: the cost is the number of multiply-adds of a forward pass.

    Args:
        aligned: a chain (nn.Sequential), which is run on two random records.
        count: of the stages.
    Raises:
        UsageError: a rule under which layers do not learn apart, a module that is no chain, one that nothing cuts so
            often, weights that two stages use.
    """
    rule, chain = aligned.rule, aligned.module
    if not rule.from_error:
        raise UsageError(
            f"rule {rule.name} does not teach every hidden layer from the output's error alone, so that its layers "
            "cannot learn in processes of their own; use rule dfa, or one process"
        )
    if not isinstance(chain, nn.Sequential):
        raise UsageError(
            f"layers of {type(chain).__name__}, which is no nn.Sequential, cannot be dealt out; use a model such as "
            "mlp, cnn, resmlp or embed, or one process"
        )
    parts = _parts(aligned, chain)
    if count > len(parts):
        raise UsageError(
            f"{count} workers for a network of {len(parts)} parts that learn apart; start {len(parts)} at most"
        )
    dealt = _dealt([part.cost for part in parts], count)
    found = [Stage(aligned, number, [[parts[i] for i in each] for each in dealt]) for number in range(count)]
    _refuse_shared(chain, found)
    return found


def _parts(aligned: AlignedModule, chain: nn.Sequential) -> list[_Part]:
    """The chain's parts; layers without weights of their own belong to the part after them."""
    tape, layers, first, cost = aligned._tape, list(chain), 0, 0
    parts: list[_Part] = []
    (h,) = aligned.example(2)
    mode = chain.training
    chain.eval()  # of normalisations, whose statistics stay
    tape.kept = []
    try:
        for number, layer in enumerate(layers):
            counter = FlopCounterMode(display=False)
            with counter, torch.enable_grad(), torch.random.fork_rng(devices=[]):
                h = layer(h)
            cost += counter.get_total_flops() // 2
            learns = any(p.requires_grad for each in layers[first : number + 1] for p in each.parameters())
            if number == len(layers) - 1 or (learns and not h.requires_grad):
                parts.append(_Part(range(first, number + 1), cost, Crossing(tuple(h.shape[1:]), h.dtype)))
                first, cost = number + 1, 0
        called = [index for index, _ in tape.kept]
    finally:
        tape.kept = None
        chain.train(mode)
    if sorted(called) != list(range(len(aligned.points))):
        raise UsageError(
            "a feedback point is called more than once in a pass, or never, so that its layers cannot be dealt out; "
            "use one process"
        )
    return parts


def _named(chain: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers, by name; unlike `named_children`, one that is called twice is there twice."""
    return [(name, layer) for name, layer in chain._modules.items() if layer is not None]


def _dealt(costs: Sequence[int], count: int) -> list[range]:
    """Consecutive shares, none empty, whose greatest sum is the least; of equal ones the first are the smaller."""
    sums = [0, *accumulate(costs)]
    # worst[k][n]: (greatest sum of the best k shares of the first n, where the last of them begins)
    worst = [[(0 if n == 0 else sums[-1] + 1, 0) for n in range(len(sums))]]
    for k in range(1, count + 1):
        worst.append(
            [
                min(
                    ((max(worst[-1][m][0], sums[n] - sums[m]), m) for m in range(k - 1, n)),
                    default=(sums[-1] + 1, 0),
                )
                for n in range(len(sums))
            ]
        )
    ends, shares = len(costs), []
    for k in range(count, 0, -1):
        begins = worst[k][ends][1]
        shares.append(range(begins, ends))
        ends = begins
    return shares[::-1]


def _refuse_shared(chain: nn.Sequential, found: Sequence[Stage]) -> None:
    owner: dict[int, int] = {}
    for stage in found:
        for layer in stage.layers:
            for p in layer.parameters():
                if owner.setdefault(id(p), stage.number) != stage.number:
                    raise UsageError(
                        f"a weight of shape {list(p.shape)} is used in layers of two workers; give each its own, or "
                        "use one process"
                    )
