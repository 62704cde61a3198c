"""What the backward passes over one batch came to, and the sums that a release takes of it.

The part of `privacy.contributions.protocols.Contributions` that is not about passes: uses of trained layers come in,
norms and clipped sums go out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from noise_models.errors import UsageError
from noise_models.places import exactly
from optical_dfa.capture.contributions import Contribution, combine
from optical_dfa.capture.factors import factors
from optical_dfa.capture.layers import contributions
from optical_dfa.capture.layers.pairs import Common
from privacy.contributions.integers import Factors
from privacy.contributions.protocols import Keeps
from privacy.norms import joint_norms, rounded_down

LEAST = 2  # records that a private pass is made of
PASSES = 4  # forward and backward passes over one batch that the rounding bound allows for
EARLIER = (
    "a backward pass went through the graph of an earlier private batch; a step is made of the batch now handed out "
    "alone"
)


@dataclass
class Use:
    """One call of one trained layer in one block of the batch, after its backward pass.

    Attributes:
        layer: its name.
        x, delta: its first input and the teaching signal at its output, the block's rows first: records, then padding.
        rest: what else it was called with.
        block: which one.
    """

    layer: str
    x: Tensor
    delta: Tensor
    rest: tuple[Tensor | Common, ...] = ()
    block: int = 0


@dataclass(frozen=True)
class Block:
    """What the records of one block contribute.

    Attributes:
        number: which block.
        records: of the batch, in it.
        parts: to every parameter that was reached, padding included.
    """

    number: int
    records: slice
    parts: dict[str, Contribution]

    @property
    def count(self) -> int:
        """Its rows that are records, the first ones."""
        return int(self.records.stop - self.records.start)


class Noted(torch.autograd.Function):
    """Identity on a layer's output; the backward notes the layer's input and delta."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        anchor: Tensor,
        capture: PendingBatch,
        layer: str,
        x: Tensor,
        rest: tuple[Tensor | Common, ...],
    ) -> Tensor:
        ctx.capture, ctx.layer, ctx.x, ctx.rest = capture, layer, x, rest
        ctx.versions = _versions(x, rest)
        ctx.generation, ctx.block = capture.generation, capture.block
        return output.detach()  # not a view, which an activation could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if _versions(ctx.x, ctx.rest) != ctx.versions:
            raise UsageError(
                f"the input of {ctx.layer} was changed in place after the layer had read it, so its contribution "
                "is lost; use the operation that is not in place"
            )
        if ctx.generation != ctx.capture.generation:
            raise UsageError(EARLIER)
        rest = tuple(one.detach() if isinstance(one, Tensor) else one for one in ctx.rest)
        ctx.capture.reached(Use(ctx.layer, ctx.x.detach(), grad.detach(), rest, ctx.block))
        return (grad if ctx.needs_input_grad[0] else None), torch.zeros(()), None, None, None, None


class PendingBatch:
    """The pending contributions of one batch handed out by the private loader.

    All forward and backward passes between two batches are taken to be of the same records, position by position (an
    assumption that is printed): their contributions are clipped jointly, whatever the number of passes.

    A batch goes through the module in blocks of the same number of rows, the last one padded with zeros, so that no
    kernel can tell by a shape how many records there are. Padding is left out when a contribution is handed out.

    Attributes:
        parameters: the parameters that are released, in the order of the flat sum.
        sizes: entries of each parameter's block in the flat sum.
        dimension: length of the flat sum.
        layers: the layers that hold them, by name.
        expected_records: asks the engine how many records the batch now handed out has (None = there is none).
        generation: number of the batch; backward passes through an earlier one's graph are refused.
        rows: of a block; None is as many as the batch has records, and LEAST.
        block: the one whose forward pass is running.
        uses: of the layers, by the backward passes over the batch that accumulate gradients.
        calls: layer, first input, shape and type of the output and what else was given of each use in the last forward
            pass; kept until a run begins.
        positions: the most positions of a record, over all passes, that the rounding bound allows for.
    """

    layers: dict[str, nn.Module]

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        """
        Args:
            parameters: the attribute.
        Raises:
            UsageError: there are none, or their types are no float32 or float64, or several.
        """
        self.parameters = parameters
        if not self.parameters:
            raise UsageError("there is nothing to train: every parameter is frozen")
        types = sorted({str(p.dtype).removeprefix("torch.") for p in self.parameters.values()})
        if types not in (["float32"], ["float64"]):
            raise UsageError(
                f"the trained parameters are {' and '.join(types)}; a private sum is taken in float32 or float64, "
                "all of one type (autocast may be used)"
            )
        self.sizes = {name: p.numel() for name, p in self.parameters.items()}
        self.dimension = sum(self.sizes.values())
        self.expected_records: Callable[[], int | None] = _no_batch
        self.generation = 0
        self.rows: int | None = None
        self.block = 0
        self.uses: list[Use] = []
        self.calls: list[
            tuple[str, Tensor, tuple[tuple[int, ...], torch.dtype], tuple[Tensor | Common, ...]]
        ] = []
        self.positions = 1
        self._reached: dict[int, list[Use]] = {}
        self._contributions: list[Block] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle holds no record and is served by no loader."""
        nothing: dict[str, Any] = {
            "uses": [],
            "calls": [],
            "_reached": {},
            "_contributions": None,
            "rows": None,
            "block": 0,
            "expected_records": _no_batch,
        }
        return {**self.__dict__, **nothing}

    @property
    def taught(self) -> bool:
        """Whether a backward pass has reached the current batch."""
        return bool(self.uses)

    def norms(self) -> Tensor:
        """Upper bounds on the joint norm of each record's whole stack, shape (m,), float64; inf where it is not finite
        or out of range (`privacy.norms`)."""
        with self._exactly():
            return self._joint_norms()

    def _joint_norms(self) -> Tensor:
        first = next(iter(self.parameters.values()))
        joint = torch.zeros(self.expected_records() or 0, dtype=torch.float64, device=first.device)
        for block in self._gather():
            total = []
            for name, part in block.parts.items():
                if part.positions > self.positions:
                    raise UsageError(
                        f"{name} is used at {part.positions} positions of a record, where align()'s example and "
                        f"{PASSES} passes allow for {self.positions}; give align() an example as long as the longest "
                        "record"
                    )
                total.append(part.norms() / part.share())
            joint[block.records] = joint_norms(total, first.dtype)[: block.count]
        return joint

    def add_clipped(self, factors: Tensor, out: Tensor) -> None:
        """`out += sum_i factors_i X_i` over the flat stack; a record of factor 0 adds nothing, whatever it holds.

        Args:
            factors: shape (m,), float64.
            out: shape (dimension,), contiguous.
        """
        factors = rounded_down(factors, out.dtype)
        rows = self.block_rows
        padded = factors.new_zeros(-(-len(factors) // rows) * rows)
        padded[: len(factors)] = factors
        shares, kept = torch.split(padded, rows), padded != 0
        if not bool(kept.all()):  # 0·inf is not 0: silence such records, and padding, at the source
            owned = torch.split(kept, rows)
            for use in self.uses:
                if use.block < len(owned):
                    own = owned[use.block]
                    use.delta, use.x = _silence(use.delta, own), _silence(use.x, own)
                    use.rest = tuple(
                        _silence(one, own) if isinstance(one, Tensor) else one for one in use.rest
                    )
            self._contributions = None
        with self._exactly():
            for block in self._gather():
                start = 0
                for name, size in self.sizes.items():
                    if name in block.parts:
                        block.parts[name].add_clipped(shares[block.number], out[start : start + size])
                    start += size

    def factors(self, keeps: Keeps) -> Iterator[list[Factors]]:
        """The batch's contributions record by record, in runs, as products of factors where they are such.

        A block is let go as its last run is handed out.

        Args:
            keeps: as for `factors`.
        """
        self._prepare()
        self._contributions = None
        with self._exactly():
            for number, records in self._reached_blocks():
                found = self._joined(number)
                self.uses = [use for use in self.uses if use.block != number]
                yield from factors(found, self.sizes, self.block_rows, records.stop - records.start, keeps)

    def _exactly(self) -> AbstractContextManager[None]:
        """The release is not for autocast, which would compute it in bf16."""
        return exactly(next(iter(self.parameters.values())).device)

    def reached(self, use: Use) -> None:
        """A backward pass came to a layer; whether it accumulates gradients or only asks for some is not known yet."""
        task = torch._C._current_graph_task_id()
        if task not in self._reached:
            self._reached = {task: []}  # what a torch.autograd.grad came to is dropped
        self._reached[task].append(use)

    def _accumulated(self, anchor: Tensor) -> None:
        """The backward pass was one that accumulates gradients: what it came to counts."""
        anchor.grad = None
        self.uses += self._reached.pop(torch._C._current_graph_task_id(), [])
        self._contributions = None

    def forget_passes(self) -> None:
        """Drop what the backward passes over the batch contributed so far, as zero_grad() drops gradients."""
        self.uses = []
        self._reached = {}
        self._contributions = None

    def clear(self) -> None:
        """Forget the batch, and let no backward pass bring it back."""
        self.forget_passes()
        self.generation += 1
        self.calls = []

    def unpack(self, released: Tensor) -> Tensor:
        """The released stack is the parameters' gradient itself."""
        return released

    @property
    def block_rows(self) -> int:
        """Rows of a block of the batch now handed out."""
        return self.rows or max(LEAST, self.expected_records() or 0)

    def _gather(self) -> list[Block]:
        """One joint contribution a parameter, from all uses of it, for every block that has records."""
        self._prepare()
        if self._contributions is None:
            self._contributions = [
                Block(number, records, self._joined(number)) for number, records in self._reached_blocks()
            ]
        return self._contributions

    def _prepare(self) -> None:
        """Once the backward passes are over."""

    def _reached_blocks(self) -> list[tuple[int, slice]]:
        """The blocks that were reached and have records, and which those are."""
        rows, records = self.block_rows, self.expected_records() or 0
        return [
            (number, slice(number * rows, min(records, (number + 1) * rows)))
            for number in sorted({use.block for use in self.uses})
            if number * rows < records
        ]

    def _joined(self, block: int) -> dict[str, Contribution]:
        parts: dict[str, list[Contribution]] = defaultdict(list)
        names = {id(p): name for name, p in self.parameters.items()}
        uses = [use for use in self.uses if use.block == block]
        for use in uses:
            layer = self.layers[use.layer]
            rest = [_at_least_float32(one) if isinstance(one, Tensor) else one for one in use.rest]
            delta = _at_least_float32(use.delta)
            for parameter, part in contributions(layer, _at_least_float32(use.x), delta, rest):
                name = names.get(id(parameter))
                if name is not None:
                    parts[name].append(part)
        return {name: combine(found, len(uses[0].delta), self.sizes[name]) for name, found in parts.items()}

    def replay(self) -> dict[str, Contribution]:
        """The contributions of the last forward pass, had its deltas been zero."""
        self.uses = [
            Use(layer, x.detach(), x.new_zeros(shape, dtype=dtype), rest)
            for layer, x, (shape, dtype), rest in self.calls
        ]
        return self._joined(0)


def _no_batch() -> int | None:
    return None


def _versions(x: Tensor, rest: tuple[Tensor | Common, ...]) -> list[int]:
    """Which change other tensors than what is common to all records."""
    return [x._version, *(one._version for one in rest if isinstance(one, Tensor))]


def _silence(part: Tensor, kept: Tensor) -> Tensor:
    if not part.is_floating_point():
        return part
    return torch.where(kept.view(-1, *[1] * (part.ndim - 1)), part, torch.zeros((), dtype=part.dtype))


def _at_least_float32(part: Tensor) -> Tensor:
    """bf16 products overshoot the clip by up to 1e-2 (THEORY T3)."""
    return part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
