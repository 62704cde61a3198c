"""Private capture: leaf layers record (input, delta); no weight gradient is ever formed un-clipped.

Implements `privacy.protocols.Contributions` for an aligned module. While a captured forward pass runs, the
parameters are frozen, so autograd carries only the teaching signals; each trained layer's output passes through
`_Record`, whose backward notes what the release needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from noise_models.errors import UsageError
from optical_dfa.feedback.points import take_off
from optical_dfa.training.contributions import Contribution, combine, sum_rounding
from optical_dfa.training.factors import factors
from optical_dfa.training.layers import LAYERS, refuse_mixing
from optical_dfa.training.probing import changeable, check_records_apart, check_uses, refuse_changed
from privacy.integer_contributions import Factors

PASSES = 4  # forward and backward passes over one batch that the rounding bound allows for


@dataclass
class Use:
    """One call of one trained layer, after its backward pass."""

    layer: str
    x: Tensor
    delta: Tensor


class _Record(torch.autograd.Function):
    """Identity on a layer's output; the backward notes the layer's input and delta."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, capture: Capture, layer: str, x: Tensor) -> Tensor:
        ctx.capture, ctx.layer, ctx.x, ctx.version = capture, layer, x, x._version
        ctx.generation = capture.generation
        return output.detach()  # not a view, which an activation could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.x._version != ctx.version:
            raise UsageError(
                f"the input of {ctx.layer} was changed in place after the layer had read it, so its contribution "
                "is lost; use the operation that is not in place"
            )
        if ctx.generation != ctx.capture.generation:
            raise UsageError(
                "a backward pass went through the graph of an earlier private batch; a step is made of the batch now "
                "handed out alone"
            )
        ctx.capture.uses.append(Use(ctx.layer, ctx.x, grad.detach()))
        return (grad if ctx.needs_input_grad[0] else None), None, None, None, None


class _LayerHook:
    """Forward hook of one trained layer."""

    def __init__(self, capture: Capture, layer: str) -> None:
        self.capture = capture
        self.layer = layer

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor], output: Tensor
    ) -> Tensor | None:
        if not self.capture.active:
            return None
        x = (*args, *named.values())[0].detach()
        self.capture.calls.append((self.layer, x, output.detach()))
        return _Record.apply(output, self.capture.anchor, self.capture, self.layer, x)  # type: ignore[no-any-return, no-untyped-call]


class Capture:
    """The pending contributions of one batch handed out by the private loader.

    All forward and backward passes between two batches are taken to be of the same records, position by position (an
    assumption that is printed): their contributions are clipped jointly, whatever the number of passes.

    Attributes:
        parameters: the parameters that are released, in the order of the flat sum.
        sizes: entries of each parameter's block in the flat sum.
        dimension: length of the flat sum.
        expected_records: asks the engine how many records the batch now handed out has (None = there is none).
        mask_seed: asks the engine for a secret seed of one pass's random masks.
        generation: number of the batch; backward passes through an earlier one's graph are refused.
    """

    def __init__(
        self,
        module: nn.Module,
        trained: Mapping[str, nn.Parameter],
        example: Callable[[int], Sequence[Tensor]],
        graph_uses: Mapping[str, int],
    ) -> None:
        """
        Args:
            module: the plain module.
            trained: the parameters the rule trains, by name.
            example: random inputs for a number of records.
            graph_uses: how often autograd's graph uses each parameter in one forward pass.
        Raises:
            UsageError: a layer mixes records, a trained parameter's layer is not supported, or a forward pass uses
                a parameter outside its layer.
        """
        self.module = module
        self.parameters = dict(trained)
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
        self.mask_seed: Callable[[], int] = torch.initial_seed
        self.generation = 0
        self.active = False
        self.uses: list[Use] = []
        self.calls: list[tuple[str, Tensor, Tensor]] = []
        self.anchor = torch.zeros((), requires_grad=True)
        self._contributions: dict[str, Contribution] | None = None
        self._positions = 1
        refuse_mixing(module)
        self.layers = self._trained_layers()
        for name, layer in self.layers.items():
            # First, so that a layer that is itself a feedback point is recorded before it is cut.
            layer.register_forward_hook(_LayerHook(self, name), prepend=True, with_kwargs=True)
        try:
            self._probed = self._parts()
            check_records_apart(self, example)
            self._positions = PASSES * check_uses(self, example, graph_uses)
        except BaseException:
            self.remove()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle holds no record and is served by no loader."""
        nothing: dict[str, Any] = {
            "uses": [],
            "calls": [],
            "_contributions": None,
            "expected_records": _no_batch,
            "mask_seed": torch.initial_seed,
        }
        return {**self.__dict__, **nothing}

    def _parts(self) -> list[tuple[nn.Module, int, bool]]:
        """The module's parts, how many hooks each has, and whether its forward was replaced."""
        return [
            (
                part,
                len(part._forward_hooks)
                + len(part._forward_pre_hooks)
                + len(part._backward_hooks)
                + len(part._backward_pre_hooks),
                "forward" in part.__dict__,
            )
            for part in self.module.modules()
        ]

    def remove(self) -> None:
        """Take the hooks off the module again."""
        for layer in self.layers.values():
            take_off(layer, lambda hook: isinstance(hook, _LayerHook) and hook.capture is self)

    # ---- during the passes

    @contextmanager
    def recording(self) -> Iterator[None]:
        """One captured forward pass: parameters frozen, trained layers recorded, masks drawn from a secret seed.

        A public seed would tell how one record shifts the masks of those after it.

        Raises:
            UsageError: the module was changed since it was probed, or a buffer changes in the pass.
        """
        if self._parts() != self._probed:
            raise UsageError(
                "the module was changed after make_private; make the changed module private instead"
            )
        thawed = [p for p in self.module.parameters() if p.requires_grad]
        kept = changeable(self.module)
        self.calls = []
        self.active = True
        device = next(iter(self.parameters.values())).device
        try:
            for p in thawed:
                p.requires_grad_(False)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(self.mask_seed())
                yield
        finally:
            self.active = False
            for p in thawed:
                p.requires_grad_(True)
        refuse_changed(self.module, kept)

    def check_batch(self, output: Tensor) -> None:
        """The pass just run must have been on the batch now handed out, records first everywhere.

        Raises:
            UsageError: another batch, or a layer that does not see one row a record.
        """
        records = self.expected_records()
        if records is None:
            raise UsageError(
                "a private forward pass needs a batch from the loader that make_private returned; "
                "evaluate under torch.no_grad()"
            )
        self._check_records(records, output)

    def _check_records(self, records: int, output: Tensor) -> None:
        for name, rows in [
            *((name, x.shape[0]) for name, x, _ in self.calls),
            ("the output", output.shape[0]),
        ]:
            if rows != records:
                raise UsageError(
                    f"{name} sees {rows} rows for {records} records; in a private run every layer keeps the records "
                    "in its first dimension, and the batch is the one the private loader handed out"
                )

    def signals(
        self, lifted: Tensor, feedback: Callable[[Tensor], list[Tensor | None]]
    ) -> list[Tensor | None]:
        """What comes back to the feedback points in a captured backward pass.

        Args:
            lifted: what the rule projects, one record (or position) a row.
            feedback: the rule, from that to the teaching signals.
        """
        return feedback(lifted)

    def projections(self, records: int) -> int:
        """How many projections a step of so many records takes."""
        return records

    # ---- the Contributions protocol

    @property
    def taught(self) -> bool:
        """Whether a backward pass has reached the current batch."""
        return bool(self.uses)

    def norms(self) -> Tensor:
        """Upper bounds on the joint norm of each record's whole stack, shape (m,), float64; inf or NaN as they come."""
        with self._exactly():
            return self._joint_norms()

    def _joint_norms(self) -> Tensor:
        parts = self._gather()
        device = next(iter(self.parameters.values())).device
        total = torch.zeros(self.expected_records() or 0, dtype=torch.float64, device=device)
        for name, part in parts.items():
            if part.positions > self._positions:
                raise UsageError(
                    f"{name} is used at {part.positions} positions of a record, where align()'s example and {PASSES} "
                    f"passes allow for {self._positions}; give align() an example as long as the longest record"
                )
            total += part.squared_norms()
        return total.sqrt()

    def add_clipped(self, factors: Tensor, out: Tensor) -> None:
        """`out += sum_i factors_i X_i` over the flat stack; a record of factor 0 adds nothing, whatever it holds.

        Args:
            factors: shape (m,), float64.
            out: shape (dimension,), contiguous.
        """
        kept = factors != 0
        if not bool(kept.all()):  # 0·inf is not 0: silence such records at the source
            for use in self.uses:
                use.delta = _silence(use.delta, kept)
                use.x = _silence(use.x, kept) if use.x.is_floating_point() else use.x
            self._contributions = None
        start = 0
        with self._exactly():
            parts = self._gather()
            for name, size in self.sizes.items():
                if name in parts:
                    parts[name].add_clipped(factors.to(out.dtype), out[start : start + size])
                start += size

    def factors(self) -> Iterator[list[Factors]]:
        """The batch's contributions record by record, in runs, as products of factors where they are such."""
        with self._exactly():
            yield from factors(self._gather(), self.parameters, self.expected_records() or 0)

    def rounding(self, records: int, batches: int = 1) -> float:
        """Bound on the rounding of a sum over `records`, relative to the sum of their clipped norms.

        Args:
            records: records in the sum.
            batches: physical batches they come in.
        """
        unit = torch.finfo(next(iter(self.parameters.values())).dtype).eps / 2
        return sum_rounding(records, self._positions, unit, batches)

    def _exactly(self) -> AbstractContextManager[None]:
        """The release is not for autocast, which would compute it in bf16."""
        device = next(iter(self.parameters.values())).device
        return torch.autocast(device.type, enabled=False)

    def forget_passes(self) -> None:
        """Drop what backward passes have added since the batch was handed out."""
        self.uses = []
        self._contributions = None

    def clear(self) -> None:
        """Forget the batch, and let no backward pass bring it back."""
        self.generation += 1
        self.uses = []
        self.calls = []
        self._contributions = None

    def unpack(self, released: Tensor) -> Tensor:
        """The released stack is the parameters' gradient itself."""
        return released

    # ---- how they are put together

    def _gather(self) -> dict[str, Contribution]:
        """One joint contribution a parameter, from all uses of it."""
        if self._contributions is None:
            parts: dict[str, list[Contribution]] = defaultdict(list)
            names = {id(p): name for name, p in self.parameters.items()}
            for use in self.uses:
                if len(use.delta) == 0:
                    continue  # an empty Poisson batch
                layer = self.layers[use.layer]
                x = use.x if not use.x.is_floating_point() else _at_least_float32(use.x)
                for local, part in LAYERS[type(layer)](layer, x, _at_least_float32(use.delta)).items():
                    name = names.get(id(getattr(layer, local)))
                    if name is not None:
                        parts[name].append(part)
            self._contributions = {
                name: combine(found, len(self.uses[0].delta), self.sizes[name])
                for name, found in parts.items()
            }
        return self._contributions

    def replay(self) -> dict[str, Contribution]:
        """The contributions of the last forward pass, had its deltas been zero."""
        self.uses = [Use(layer, x, torch.zeros_like(output)) for layer, x, output in self.calls]
        return self._gather()

    def _trained_layers(self) -> dict[str, nn.Module]:
        """The layers that hold the trained parameters, each checked to be supported."""
        trained = {id(p) for p in self.parameters.values()}
        layers: dict[str, nn.Module] = {}
        for name, part in self.module.named_modules():
            if not any(id(p) in trained for p in part.parameters(recurse=False)):
                continue
            if type(part) not in LAYERS:
                raise UsageError(
                    f"{name or 'the module'} ({type(part).__name__}) cannot be trained privately; "
                    f"freeze its parameters, or use {', '.join(layer.__name__ for layer in LAYERS)}"
                )
            layers[name] = part
        return layers


def _no_batch() -> int | None:
    return None


def _silence(part: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept.view(-1, *[1] * (part.ndim - 1)), part, torch.zeros((), dtype=part.dtype))


def _at_least_float32(part: Tensor) -> Tensor:
    """bf16 products overshoot the clip by up to 1e-2 (THEORY T3)."""
    return part if part.dtype in (torch.float32, torch.float64) else part.float()
