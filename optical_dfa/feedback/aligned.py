"""A module under a feedback rule: one autograd function at its root teaches every feedback point."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from noise_models.errors import UsageError
from noise_models.places import place_of
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.cuts import OUTPUT, Trace, leaves, shown
from optical_dfa.feedback.points import ForwardPass, Point, Tape, install
from optical_dfa.feedback.recorder import Recorder
from optical_dfa.feedback.rule import Rule
from optical_dfa.feedback.state import FeedbackState, components
from privacy.fixed import refuse_copying

LossReduction = Literal["mean", "sum"]

# What torch.compile says of it under fullgraph=True, from version 2.7 on.
_OUTSIDE_GRAPHS = (
    {"reason": "the feedback rule draws or learns in a pass, which no graph holds; leave out fullgraph=True"}
    if "reason" in signature(torch.compiler.disable).parameters
    else {}
)

# What a private run was told of the module.
_SETTLED = frozenset({"module", "rule", "backend", "points", "cuts", "loss_reduction", "state"})


class _Root(torch.autograd.Function):
    """Identity on the output; its backward hands it the error, and each pupil what the rule teaches it."""

    @staticmethod
    def forward(
        ctx: Any, aligned: AlignedModule, places: Sequence[int], noted: Any, output: Tensor, *pupils: Tensor
    ) -> Tensor:
        ctx.aligned, ctx.places, ctx.noted = aligned, places, noted
        ctx.shapes = [h.shape for h in pupils]
        ctx.dtypes = [h.dtype for h in pupils]
        return output.detach()  # not a view, which the loss could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        error, signals = ctx.aligned.teach(grad, ctx.noted)
        taught: list[Tensor | None] = []
        for number, (place, shape, dtype) in enumerate(zip(ctx.places, ctx.shapes, ctx.dtypes, strict=True)):
            signal = signals[place]
            if (
                signal is not None and signal.numel() != shape.numel()
            ):  # one call a position: each its own error
                calls, call = ctx.places.count(place), ctx.places[:number].count(place)
                signal = signal.reshape(shape[0], calls, *shape[1:])[:, call]
            taught.append(None if signal is None else signal.reshape(shape).to(dtype))
        return (None, None, None, error, *taught)


class AlignedModule(nn.Module):
    """A module under a feedback rule. `loss.backward()` does everything.

    Made by `align`. Evaluation (under `torch.no_grad()`) is the plain module; whenever gradients are enabled the
    cuts are in force, so that nothing is ever backpropagated silently.

    Attributes:
        module: the plain module.
        rule, backend: the rule, and its device (None for rules that do not project).
        points: the feedback points that the output's error teaches.
        state: the rule on this module.
        cuts: what every root trains, as verified on autograd's graph.
        components: c, of one record's (or position's) output.
        uses: how often that graph uses each parameter in one forward pass.
    """

    def __init__(
        self,
        module: nn.Module,
        rule: Rule,
        backend: ProjectionBackend | None,
        state: FeedbackState,
        traced: Trace,
        loss_reduction: LossReduction,
        example: Sequence[Tensor],
        *,
        opener: Callable[[AlignedModule, str, int | None], Recorder],
    ) -> None:
        """
        Args:
            traced: what every root trains.
            example: inputs, for their shapes alone.
            opener: makes the recorder of a private run.
        """
        super().__init__()
        self.module = module
        self.rule = rule
        self.backend = backend
        self.points = state.points
        self.cuts = tuple(replace(cut, teacher=state.teachers.get(cut.root, OUTPUT)) for cut in traced.cuts)
        self.loss_reduction = loss_reduction
        self._example = [(tuple(x.shape[1:]), x.dtype) for x in example]  # shapes only: no record is kept
        self.uses = traced.uses
        self.components = components(traced.output)
        self._tape = Tape()
        self._unaligned = False
        self._opener = opener
        self._capture: Recorder | None = None
        if rule.cuts:
            install(module, [point.name for point in self.points], self._tape)
        self.state = state
        state.install(module)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's output; its backward pass is the rule's.

        Raises:
            UsageError: the module was unaligned; records of another shape than the example's; in a private run, a
                batch that did not come from its loader.
        """
        if self._unaligned:
            raise UsageError(
                "this module was unaligned; use the plain one that unalign() returned, or align() it again"
            )
        if self._capture is not None:
            self._capture.hold()
        if not torch.is_grad_enabled():
            with nullcontext() if self._capture is None else self._capture.evaluating():
                plain: Tensor = self.module(*args, **kwargs)
            return plain
        if not self.state.compiles:
            taught: Tensor = self._forward_outside_graphs(*args, **kwargs)
            return taught
        return self._forward(*args, **kwargs)

    @torch.compiler.disable(**_OUTSIDE_GRAPHS)  # type: ignore[untyped-decorator, no-untyped-call]
    def _forward_outside_graphs(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._capture is None:
            return self._pass(args, kwargs)
        if self._forward_pre_hooks or self._forward_hooks or self._backward_hooks or self._backward_pre_hooks:
            raise UsageError("a private module takes no hooks around it: they see the batch as a whole")
        blocks = [self._pass(*given) for given in self._capture.blocks(args, kwargs)]
        output = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        return output[: self._capture.expected_records()]

    def _pass(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        self.state.begin()
        try:
            return self._taught(args, kwargs)
        finally:
            self.state.end()

    def _taught(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The output, whose backward pass is the rule's."""
        capture = self._capture
        self._tape.kept = []
        try:
            if capture is None:
                with nullcontext() if self.state.differentiates else torch.no_grad():
                    output = self.module(*args, **kwargs)
            else:
                output = self._recorded(capture, args, kwargs)
            kept = self._tape.kept if self.rule.teaches_hidden else []
        finally:
            self._tape.kept = None
        if capture is None and not self.rule.cuts and self.state.differentiates:
            return output  # type: ignore[no-any-return]  # plain autograd
        called = [index for index, _ in kept]
        if capture is None and self.rule.teaches_hidden and len(set(called)) < len(self.points):
            self._refuse_leaks(called, output, kept)
        for index, h in kept:
            self._check_shape(self.points[index], h, output, called.count(index))
        passed = ForwardPass(self.module, self._tape, args, kwargs, kept, output)
        noted = self.state.observe(passed) if capture is None else capture.observe(passed)
        pupils = self.state.pupils(passed) if capture is None else passed.kept
        return _Root.apply(self, [i for i, _ in pupils], noted, output, *(h for _, h in pupils))  # type: ignore[no-any-return, no-untyped-call]

    def _recorded(self, capture: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The output of one block's pass in a private run."""
        with capture.recording(args, kwargs) as following:
            output: Tensor = self.module(*args, **kwargs)
        kept = self._tape.kept or []
        capture.check_pass(following, output, [(self.points[index].name, h) for index, h in kept])
        if output.dtype in (torch.float16, torch.bfloat16):
            output = output.float()  # a mean, rounded to fewer digits, would tell how many records there are
        return output

    def _refuse_leaks(
        self, indices: Sequence[int], output: Tensor, kept: Sequence[tuple[int, Tensor]]
    ) -> None:
        """A pass that leaves out a point (a block skipped at random) must not reach what that point teaches.

        Raises:
            UsageError: it does: the point's hook was not run, as in code that was compiled after `align`.
        """
        names = {id(p): name for name, p in self.module.named_parameters()}
        allowed = {cut.root: set(cut.parameters) for cut in self.cuts}
        missing = [point.name for index, point in enumerate(self.points) if index not in indices]
        for root, h in [(OUTPUT, output), *((self.points[index].name, h) for index, h in kept)]:
            for leaf in leaves(h):
                if id(leaf) in names and names[id(leaf)] not in allowed.get(root, set()):
                    raise UsageError(
                        f"the hook of feedback point {missing[0]} did not run, so that {names[id(leaf)]} would learn "
                        f"by backpropagation from {shown(root)}; a part was compiled, replaced or wrapped after "
                        "align(): unalign() the module, and align the plain one"
                    )

    def _check_shape(self, point: Point, h: Tensor, output: Tensor, calls: int) -> None:
        if called_at_positions(h, output, calls) and h.shape[1:] == point.shape:
            return
        positions = output.shape[:-1] if output.ndim > 1 else output.shape
        if h.shape[-len(point.shape) :] != point.shape or h.numel() != positions.numel() * point.width:
            raise UsageError(
                f"feedback point {point.name} has shape {list(h.shape[1:])}, but its slice of the device's frame was "
                f"laid out for {list(point.shape)}; give records shaped like align()'s example"
            )

    def teach(self, grad: Tensor, noted: Any) -> tuple[Tensor, Sequence[Tensor | None]]:
        """From the loss gradient at the output, what goes on to the output and to each pupil.

        Args:
            grad: dL/dz, shape (m, ...). A mean loss is undone with the realised m first, so that the device sees
                the error of single records; a private capture keeps it undone (sum of records), otherwise the
                mean is put back, on output and hidden layers alike.
            noted: of the forward pass (`FeedbackState.observe`).
        """
        realised = grad.shape[0] if self._capture is None else self._capture.expected_records() or 0
        records = realised if self.loss_reduction == "mean" else 1
        error = grad * records if records != 1 or self._capture is not None else grad  # nobody else's memory
        rows = error.reshape(-1, components(error))
        rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
        if self._capture is not None:
            return error, self._capture.teach(rows, noted)
        if self.points and not torch.compiler.is_compiling():
            self.rule.check_error(rows)
        signals = self.state.teach(rows, noted, self.backend)
        # In memory of their own: points may share theirs.
        return grad, signals if records <= 1 else [None if s is None else s / records for s in signals]

    def signals(self, error: Tensor) -> Sequence[Tensor | None]:
        """What errors, shape (rows, c), or what the device projects of them, teach at each point, learning nothing.

        None where they alone do not tell.
        """
        return self.state.signals(error, self.backend)

    def projections(self, records: int) -> int:
        """How many projections a training step of so many records takes."""
        return records if self._capture is None else self._capture.projections(records)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters this rule trains: those some root with a teaching signal reaches, by name."""
        roots = self.cuts if self.rule.teaches_hidden else [cut for cut in self.cuts if cut.root == OUTPUT]
        names = {name for cut in roots for name in cut.parameters}
        return {name: p for name, p in self.module.named_parameters() if name in names and p.requires_grad}

    def start_capture(self, kind: str = "records", rows: int | None = None) -> Recorder:
        """Record per-record contributions from now on, instead of forming gradients (privacy.PrivacyEngine calls it).

        Args:
            kind: the form in which a release takes them: a name of `capture.opening.CAPTURES`.
            rows: of the blocks, padded with zeros, in which every batch goes through the module, so that no kernel can
                tell how many records there are; None is one block of as many rows as records.
        Raises:
            UsageError: a trained parameter belongs to a layer that mixes records or is not supported; a record's
                numbers depend on its place in a block.
        """
        if self._capture is not None:
            raise UsageError(
                "the module is private already; one engine accounts for all that is released of it"
            )
        return self._opener(self, kind, rows)

    def attach(self, recorder: Recorder) -> None:
        """Let every pass go through `recorder` from now on, until `stop_capture`."""
        self._capture = recorder

    @property
    def capture(self) -> Recorder:
        """What records contributions.

        Raises:
            UsageError: the module is not private.
        """
        if self._capture is None:
            raise UsageError("the module is not private, so nothing is recorded; call start_capture() first")
        return self._capture

    def train(self, mode: bool = True) -> AlignedModule:
        """As of any module; in a private run batch normalisation by constants stays in evaluation mode."""
        super().train(mode)
        if self._capture is not None:
            self._capture.hold()
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any module; in a private run what the passes over the batch contributed so far is dropped too."""
        super().zero_grad(set_to_none)
        if self._capture is not None:
            self._capture.forget_passes()

    def stop_capture(self) -> None:
        """Form gradients as usual again."""
        if self._capture is not None:
            self._capture.remove()
            self._capture = None

    def example(self, records: int) -> list[Tensor]:
        """Random inputs of the shapes `align` saw; no record is ever kept for this."""
        return random_inputs(self.module, self._example, records)

    def inputs_like(self, given: Sequence[Tensor], records: int) -> list[Tensor]:
        """Random inputs of the shapes of some others, of which nothing else is looked at."""
        return random_inputs(self.module, [(tuple(x.shape[1:]), x.dtype) for x in given], records)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What a private run takes for granted of a device that is not this library's, or whose inside nobody sees."""
        device = self.backend
        ours = type(device).__module__.startswith("optical_dfa.")
        if device is None or (ours and not device.physical):
            return ()
        return (
            f"each row of the device's answer is read from that row alone: {device.name} keeps its contract "
            "(optical_dfa.testing checks it)",
        )

    def describe(self) -> dict[str, Any]:
        """Rule, device and points (JSON types), for checkpoints and the ledger."""
        return {
            "rule": self.rule.name,
            "rule_options": self.state.acting(self.rule.describe(self.points)),
            "backend": None if self.backend is None else self.backend.describe(),
            "fingerprint": None if self.backend is None else self.backend.fingerprint(),
            "points": [[point.name, list(point.shape)] for point in self.points],
            "teachers": {cut.root: cut.teacher for cut in self.cuts if cut.teacher != OUTPUT},
        }

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As any module's, but of a private one: what was saved could not be read, and a copy has no loader.

        Raises:
            UsageError: the module is private.
        """
        if self._is_in_a_run():
            refuse_copying(self)
        return super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> AlignedModule:
        """
        Raises:
            UsageError: the module is private, and the copy would have weights of its own.
        """
        if self._is_in_a_run() and any(memo.get(id(p)) is not p for p in self.parameters()):
            refuse_copying(self)
        return self._copied(memo)

    def twin(self) -> AlignedModule:
        """A copy to measure on, of a private module too: it holds no record and releases nothing."""
        return self._copied({})

    def _copied(self, memo: dict[int, Any]) -> AlignedModule:
        twin = memo[id(self)] = AlignedModule.__new__(AlignedModule)
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def _is_in_a_run(self) -> bool:
        return self._capture is not None and self._capture.fixed

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Keep the numbers of the hooks from being given again, to hooks that would take their places.

        Torch numbers hooks from 0 in every process, so that those of an unpickled module may be up for use.
        """
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not vars(self.module):  # whose own copy is still being made
            return
        for part in self.modules():
            for number in (*part._forward_pre_hooks, *part._forward_hooks):
                RemovableHandle.next_id = max(RemovableHandle.next_id, number + 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTLED and self.__dict__.get("_capture") is not None:
            raise UsageError(
                f"{name} of a private module is fixed: the ledger accounts for the module as it was; align the plain "
                "module anew, and make it private with a new engine"
            )
        super().__setattr__(name, value)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; a private run goes on from a checkpoint that is loaded before its first pass."""
        found = super().load_state_dict(*args, **kwargs)
        if self._capture is not None:
            self._capture.take_loaded()
        return found

    def get_extra_state(self) -> Tensor:
        """The description as bytes, so that `state_dict` says which feedback it was trained with.

        Raises:
            UsageError: the module is private, and what is not released with noise is not what it was.
        """
        if self._capture is not None:
            self._capture.refuse_other()
        text = json.dumps(self.describe(), sort_keys=True)
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a state that was trained with another rule, other points or another device.

        Raises:
            UsageError: naming what differs.
        """
        saved = json.loads(bytes(state.tolist()).decode())
        here = json.loads(json.dumps(self.describe()))
        for key in ("rule", "rule_options", "points", "teachers", "fingerprint"):
            if saved[key] != here[key]:
                raise UsageError(
                    f"this state was trained with {key} {saved[key]}, not {here[key]}; "
                    "align the module with the same rule, points and device (backend, seed, options)"
                )


def random_inputs(
    module: nn.Module, shapes: Sequence[tuple[tuple[int, ...], torch.dtype]], records: int
) -> list[Tensor]:
    """Random inputs for probing a module, where it is: normal, or what its smallest embedding knows where integer."""
    vocabulary = min((p.num_embeddings for p in module.modules() if isinstance(p, nn.Embedding)), default=2)
    generator, place = torch.Generator().manual_seed(0), place_of(module)
    return [
        torch.randn(records, *shape, generator=generator, dtype=dtype).to(place)
        if dtype.is_floating_point
        else torch.randint(0, vocabulary, (records, *shape), generator=generator).to(place, dtype)
        for shape, dtype in shapes
    ]


def called_at_positions(h: Tensor, output: Tensor, calls: int) -> bool:
    """Whether a point is called once for each position of the output, as the state of an unrolled cell is."""
    return output.ndim == 3 and h.ndim == 2 and len(h) == len(output) and calls == output.shape[1]
