"""Private capture: leaf layers record (input, delta); no weight gradient is ever formed un-clipped.

Implements `privacy.contributions.protocols.Contributions` for an aligned module: the passes over a batch are here, what
comes of them is a `PendingBatch`. While a captured forward pass runs, the parameters are frozen, so autograd carries
only the teaching signals; each trained layer's output passes through `Noted`, whose backward notes what the release
needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.places import autocast_type
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.capture.device import FollowedDevice
from optical_dfa.capture.following import Following
from optical_dfa.capture.graph import refuse_unknown_functions
from optical_dfa.capture.layers import trained_layers
from optical_dfa.capture.layers.mixing import held_statistics, refuse_mixing
from optical_dfa.capture.layers.pairs import Common
from optical_dfa.capture.pending import EARLIER, LEAST, Noted, PendingBatch
from optical_dfa.capture.program import Program
from optical_dfa.capture.rows import FIRST
from optical_dfa.capture.state import Attributes, Held, Kept, plain, refuse_extra_state, tensors_of, token_of
from optical_dfa.capture.trying import program_of, program_of_rule
from optical_dfa.capture.unfused import Replaced, restore
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.points import ForwardPass, take_off
from privacy.secrecy import foreign


class _LayerHook:
    """Forward hook of one trained layer."""

    def __init__(self, capture: Capture, layer: str) -> None:
        self.capture = capture
        self.layer = layer

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Tensor | None:
        if not self.capture.active:
            return None
        given, *others = _given(self.layer, module, args, named)
        following = self.capture.following
        if following is not None:
            _check_rows(following, self.layer, given)
            following.called(self.layer, given)
        rest = tuple(self._apart(one, given) for one in others)
        if not isinstance(output, Tensor):
            raise UsageError(
                f"{self.layer or 'the module'} returns a {type(output).__name__}; a module with trained parameters of "
                "its own returns one tensor in a private run"
            )
        self.capture.calls.append((self.layer, given, (tuple(output.shape), output.dtype), rest))
        return Noted.apply(output, self.capture.anchor, self.capture, self.layer, given, rest)  # type: ignore[no-any-return, no-untyped-call]

    def _apart(self, one: Any, given: Tensor) -> Tensor | Common:
        """An argument beside the first: a row a record, or the same for all."""
        following = self.capture.following
        if not isinstance(one, Tensor):
            if not plain(one):
                raise UsageError(
                    f"{self.layer or 'the module'} is given a {type(one).__name__}, which may hold records; give a "
                    "trained layer tensors as arguments of their own"
                )
            return Common(one)
        if following is not None:
            following.called(self.layer, one)
        if isinstance(one, nn.Parameter):
            return Common(one)
        if following is None or following.program is None:  # tried, with few records
            return one if one.shape[:1] == given.shape[:1] else Common(one)
        with following.off():
            rows = following.rows(one)
        if rows is None:
            return Common(one)
        _check_rows(following, self.layer, one)
        return one


class Capture(PendingBatch):
    """The passes over the batches of a private run: guarded, followed, and recorded layer by layer.

    Attributes:
        aligned, module: the module under its rule, and the plain one.
        masks: what random operations of a pass draw from, secret in a private run.
        following: of the pass that is running, None between passes.
        noting: set on the copy of which a program is made: how its next pass is followed.
        threads: of torch's kernels.
        try_places: tries whether records like these have the same numbers in every place of a block.
        fixed: whether the run has begun: nobody changes what it rests on.
        replaced: the fused layers of the module that were taken apart.
    """

    def __init__(self, aligned: AlignedModule) -> None:
        """
        Args:
            aligned: whose contributions; its hooks go on the plain module.
        Raises:
            UsageError: a layer mixes records, or a trained parameter's layer is not supported.
        """
        self.aligned = aligned
        module = self.module = aligned.module
        super().__init__(aligned.trained_parameters())
        self.masks = NoiseGenerator.secure("masks")
        self.active = False
        self.following: Following | None = None
        self.noting: Following | None = None
        self.anchor: Tensor | None = None
        self.programs: dict[Any, Program] = {}
        self._given: list[Tensor] = []
        self.threads = torch.get_num_threads()
        self.try_places: Callable[[Sequence[Tensor]], None] | None = None
        self._tried: set[tuple[Any, ...]] = set()
        self.fixed = False
        self.replaced: list[Replaced] = []
        refuse_mixing(module)
        self.held = held_statistics(module)
        self._kept = Kept(module, self.parameters.values())
        self._kept_of_rule = Kept(aligned.state, ())
        self._rule_settings: tuple[Any, ...] | None = None
        self._settings: tuple[Any, ...] | None = None
        self.hold()
        Attributes.of(module).refuse_opaque()
        refuse_extra_state(module)
        refuse_extra_state(aligned.state)
        self.layers = trained_layers(module, self.parameters)
        for name, layer in self.layers.items():
            # First, so that a layer that is itself a feedback point is recorded before it is cut.
            layer.register_forward_hook(_LayerHook(self, name), prepend=True, with_kwargs=True)
        self._probed = self._parts()

    @property
    def projects(self) -> bool:
        """Whether the rule projects the released stack, rather than each record's errors."""
        return False

    @property
    def stacked(self) -> list[Sequence[int]]:
        """Shape of each parameter's block of the stack."""
        return [p.shape for p in self.parameters.values()]

    def __getstate__(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {
            "anchor": None,
            "following": None,
            "noting": None,
            "_given": [],
            "fixed": False,
            "try_places": None,
            "_tried": set(),
        }
        return {**super().__getstate__(), **nothing}

    def fix(self) -> None:
        """From now on nobody changes what the private run rests on."""
        self.fixed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STEERING and self.__dict__.get("fixed", False):
            raise UsageError(
                f"attribute {name} of what records contributions is fixed once the run is private; make the module "
                "private again, with a new engine, for other settings"
            )
        super().__setattr__(name, value)

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
        """Take the hooks off the module again, and put back what was taken apart."""
        for layer in self.layers.values():
            take_off(layer, lambda hook: isinstance(hook, _LayerHook) and hook.capture is self)
        restore(self.replaced)

    # ---- during the passes

    def hold(self) -> None:
        """Normalisation by constants stays so, whatever mode the module is put into."""
        for part in self.held:
            part.training = False

    def refuse_other(self) -> None:
        """What is not released with noise is as it was when the run began.

        Raises:
            UsageError: naming a tensor that is not.
        """
        self._kept.refuse_other(self.module)
        self._kept_of_rule.refuse_other(self.aligned.state, f"feedback of rule {self.aligned.rule.name}: ")
        if foreign(self.aligned.rule, self.aligned.state) and self.fixed and self._settings is not None:
            now = _tokens_of_rule(self.aligned)
            if self._rule_settings is None:
                self._rule_settings = now
            elif self._rule_settings != now:
                raise UsageError(
                    f"rule {self.aligned.rule.name} is not what it was in the first pass of the run: it may keep "
                    "records, un-noised; let it hold nothing that a pass changes"
                )

    def take_loaded(self) -> None:
        """A state was loaded: before the first pass of a run what is not released with noise is taken as it now is."""
        if self._settings is None:
            self._kept = Kept(self.module, self.parameters.values())
            self._kept_of_rule = Kept(self.aligned.state, ())

    def _refuse_steering(
        self, attributes: Attributes, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Attributes of the module, and what a pass is given beside the records, are the same in every pass of a run.

        Raises:
            UsageError: they are not; whatever they were made of.
        """
        if not self.fixed:
            return
        given = [*enumerate(args), *sorted(kwargs.items())]
        now = (
            {path: token for path, token in attributes.tokens.items() if path not in self._kept.names},
            [(key, repr(x)) for key, x in given if not isinstance(x, Tensor)],
        )
        if self._settings is None:
            self._settings = now
        for before, after, whose in zip(
            self._settings, now, ("an attribute of the module", "what stands beside the records"), strict=True
        ):
            if before != after:
                raise UsageError(
                    f"{whose} is another one than in the first pass of the run, and may be made of records; keep it "
                    "as it is, give the records as tensors, or make the changed module private instead"
                )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A pass without gradients, which must leave the module as it is, too: what it writes is not noised.

        Raises:
            UsageError: it changed something; parameters and buffers have their values again.
        """
        attributes, held = Attributes.of(self.module), Held(self.module, Kept(self.module, ()))
        try:
            yield
        finally:
            held.restore()
        attributes.refuse_changed(self.module)

    def blocks(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """What to call the module with, block by block: copies, which nobody changes afterwards.

        Args:
            args, kwargs: what it was called with.
        Raises:
            UsageError: no batch was handed out, or another one.
        """
        records = self.expected_records()
        if records is None:
            raise UsageError(
                "a private forward pass needs a batch from the loader that make_private returned; "
                "evaluate under torch.no_grad()"
            )
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor) and x.shape[:1] != (records,):
                raise UsageError(_OTHER_BATCH)
            if not isinstance(x, Tensor) and not plain(x):
                raise UsageError(
                    f"a private pass takes tensors as arguments of their own, and numbers and texts beside them, not a "
                    f"{type(x).__name__}, which may hold records; unpack it"
                )
        self._refuse_other_threads()
        self._given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        rows = self.block_rows
        for self.block in range(max(1, -(-records // rows))):
            start = self.block * rows
            yield (
                [_rows(x, start, rows) for x in args],
                {name: _rows(x, start, rows) for name, x in kwargs.items()},
            )

    @contextmanager
    def recording(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Following]:
        """One block's forward pass: parameters frozen, trained layers recorded, operations followed, masks secret.

        Args:
            args, kwargs: what the module is called with, of `blocks`.
        Returns:
            how it is followed.
        Raises:
            UsageError: the module was changed since it was probed; the pass mixes records, does what cannot be
                followed, or changes what stays after it.
        """
        if self._parts() != self._probed:
            raise UsageError(
                "the module was changed after make_private; make the changed module private instead"
            )
        self.hold()
        self.refuse_other()
        attributes = Attributes.of(self.module)
        self._refuse_steering(attributes, args, kwargs)
        following = self.noting or self._follow(args, kwargs, self.block_rows, attributes)
        thawed = [p for p in self.module.parameters() if p.requires_grad]
        held = Held(self.module, self._kept)
        self.calls = []
        self.anchor = torch.zeros((), requires_grad=True)
        self.anchor.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]
        self.active, self.following = True, following
        try:
            for p in thawed:
                p.requires_grad_(False)
            with _casts_anew(), following.on((*args, *kwargs.values())):
                yield following
        finally:
            self.active, self.following = False, None
            for p in thawed:
                p.requires_grad_(True)
            held.restore()
        attributes.refuse_changed(self.module)

    def _follow(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        records: int,
        attributes: Attributes,
    ) -> Following:
        """How a pass over these inputs is followed: compared with one over random inputs of the same shapes."""
        like = (*(_like(x) for x in args), *((name, _like(x)) for name, x in sorted(kwargs.items())))
        if self.try_places is not None and like not in self._tried:
            if like != tuple(_like(x) for x in self.aligned.example(LEAST)) and not kwargs:
                self.try_places(args)  # longer or shorter ones than the example
            self._tried.add(like)
        compared = self._program((attributes.settings, like), partial(program_of, self.aligned, args, kwargs))
        return Following(self.module, records, self.masks, compared)

    def observe(self, passed: ForwardPass) -> tuple[int, Tensor | None]:
        """Which block it was, and what the rule notes of its forward pass (`FeedbackState.observe`).

        Raises:
            UsageError: something else than a tensor with the records first, or nothing.
        """
        named, places = tuple(passed.kwargs), [index for index, _ in passed.kept]

        def note(_: Following, *given: Any) -> list[Tensor | None]:
            args, rest = given[: len(passed.args)], given[len(passed.args) :]
            kwargs, (*kept, output) = dict(zip(named, rest, strict=False)), rest[len(named) :]
            seen = replace(
                passed, args=args, kwargs=kwargs, kept=list(zip(places, kept, strict=True)), output=output
            )
            noted = self.aligned.state.observe(seen)
            if noted is not None and not isinstance(noted, Tensor):
                raise UsageError(
                    f"rule {self.aligned.rule.name} notes a {type(noted).__name__} of a private pass; it may note a "
                    "tensor with the records first, or nothing"
                )
            return [noted]

        given = (*passed.args, *passed.kwargs.values(), *(h for _, h in passed.kept), passed.output)
        return self.block, self._followed("what it notes", note, given)[0]

    def teach(self, rows: Tensor, noted: tuple[int, Tensor | None]) -> list[Tensor | None]:
        """The teaching signals at the feedback points; between errors and signals the rule keeps the records apart.

        Args:
            rows: the errors, one record (or position) a row, shape (rows, c).
            noted: of the forward pass (`observe`).
        """
        self._refuse_other_threads()
        aligned = self.aligned
        block, observed = noted
        shown = self._shown(block, len(rows))

        def teach(following: Following, rows: Tensor, noted: Tensor | None) -> list[Tensor | None]:
            device: Any = None
            if aligned.backend is not None:
                device = FollowedDevice(aligned.backend, following, shown)
            return list(aligned.state.teach(rows, noted, device))

        signals = self._followed("signals", teach, (rows, observed))
        for point, signal in zip(aligned.points, signals, strict=True):
            if signal is not None and signal.shape != (len(rows), point.width):
                raise UsageError(
                    f"rule {aligned.rule.name} teaches {point.name} by something else than a row of {point.width} "
                    "numbers a record (or position)"
                )
        return signals

    def _refuse_other_threads(self) -> None:
        """
        Raises:
            UsageError: kernels share their work otherwise than when the run began.
        """
        if self.rows is not None and torch.get_num_threads() != self.threads:
            raise UsageError(
                f"torch has {torch.get_num_threads()} threads now and had {self.threads} when the run began, for which "
                "it was tried that no record's numbers depend on its place; call torch.set_num_threads before "
                "make_private"
            )

    def _shown(self, block: int, rows: int) -> int:
        """How many of a block's errors a device is shown, positions and all: hardware spends no frame on padding."""
        device = self.aligned.backend
        if device is None or not device.physical:
            return rows
        records = (self.expected_records() or 0) - block * self.block_rows
        return rows // self.block_rows * max(0, min(records, self.block_rows))

    def _followed(
        self, part: str, function: Callable[..., list[Tensor | None]], given: Sequence[Any]
    ) -> list[Tensor | None]:
        """What a part of the rule returns; it is followed as a forward pass is.

        Args:
            part: its name.
            function: called with how it is followed and with what is given.
            given: tensors with records (or their positions, record by record) first, and others.
        """
        self.refuse_other()
        records = self.block_rows
        tensors = [x for x in given if isinstance(x, Tensor)]
        if any(x.shape[0] % records for x in tensors):
            raise UsageError(EARLIER)
        like = tuple((x.shape[0] // records, _like(x)) for x in tensors)
        compared = self._program(
            (part, like), partial(program_of_rule, self.aligned, function, given, records)
        )
        following = Following(self.module, records, self.masks, compared, self.aligned.rule.name)
        with following.on(tensors):
            found = function(following, *given)
        following.hand_on(found)
        for x in found:
            rows = None if x is None else following.rows(x)
            if rows is not None and (rows.axis, rows.outer) != (0, 1):
                raise UsageError(
                    f"rule {self.aligned.rule.name} hands on something else than a row a record (records in axis "
                    f"{rows.axis}); keep them first"
                )
        return found

    def _program(self, key: tuple[Any, ...], program: Callable[[], Program]) -> Program:
        """What passes of a kind do, tried once."""
        key = (*key, autocast_type(next(iter(self.parameters.values())).device))
        if key not in self.programs:
            if len(self.programs) >= _PROGRAMS:
                self.programs.clear()
            self.programs[key] = program()
        return self.programs[key]

    def check_pass(self, following: Following, output: Tensor, kept: Sequence[tuple[str, Tensor]]) -> None:
        """At the end of a pass: records first in the output and at the feedback points, and a graph that is known.

        Args:
            following: the pass.
            output: of the module.
            kept: feedback points by name, and what they returned.
        Raises:
            UsageError: naming what is not so.
        """
        following.hand_on([output, *(h for _, h in kept)])
        _check_rows(following, "the output", output)
        for name, h in kept:
            _check_rows(following, f"feedback point {name}", h)
        refuse_unknown_functions([output, *(h for _, h in kept)], [self.anchor, *self._given])
        records = following.records
        if any(x.shape[0] != records for _, x, *_ in self.calls) or output.shape[:1] != (records,):
            raise UsageError(_OTHER_BATCH)
        if self.fixed:
            self.calls = []  # for what is tried before a run; in it they would keep what the graph lets go

    def projections(self, records: int) -> int:
        """How many projections a step of so many records takes."""
        return records


def capture_of(aligned: AlignedModule) -> Capture:
    """What records the contributions of a private module.

    Raises:
        UsageError: the module is not private.
    """
    capture = aligned.capture
    assert isinstance(capture, Capture)  # no other is ever attached
    return capture


_STEERING = frozenset({
    "module", "parameters", "sizes", "dimension", "layers", "held", "expected_records", "masks", "programs", "_probed",
    "positions", "rows", "threads", "try_places", "fixed",
})  # fmt: skip
_PROGRAMS = 256  # kept; text of many lengths has many
_OTHER_BATCH = (
    "the batch of a private pass is not the one that the private loader handed out last; give the module that batch, "
    "records first in every input"
)


def _check_rows(following: Following, name: str, x: Tensor) -> None:
    """What a layer or point sees keeps the records in its first dimension.

    Raises:
        UsageError: naming it.
    """
    if following.program is None:
        return
    rows = following.rows(x)
    if rows is None:
        raise UsageError(
            f"{name} sees no row for each record (positions alone?); in a private run every layer keeps the "
            "records in its first dimension: expand its input to the batch, as in positions.expand(len(x), -1)"
        )
    if rows != FIRST:
        raise UsageError(
            f"{name} sees the records in dimension {rows.axis}{'' if rows.alone else ', with others between them'}; "
            "in a private run every layer keeps the records in its first dimension, alone (batch_first=True, and "
            "no view that joins them with positions)"
        )


def _given(name: str, layer: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a layer was called with, in the order of its forward.

    Raises:
        UsageError: the first is no tensor, or there is something that has no place in that order.
    """
    if named:
        bound = signature(layer.forward).bind(*args, **named)
        bound.apply_defaults()
        if bound.kwargs:
            raise UsageError(
                f"{name or 'the module'} is given {', '.join(bound.kwargs)} by name alone; let the forward of a "
                "trained layer take its arguments by place"
            )
        args = bound.args
    if not args or not isinstance(args[0], Tensor):
        raise UsageError(
            f"{name or 'the module'} is called without a tensor of records first; a trained layer is given one"
        )
    return args


@contextmanager
def _casts_anew() -> Iterator[None]:
    """Autocast keeps what it has cast from one pass to the next, which then does less."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def _rows(x: Any, start: int, rows: int) -> Any:
    """A copy of so many rows of an input; of zeros, where it has no more."""
    if not isinstance(x, Tensor):
        return x
    taken = x[start : start + rows]
    if len(taken) == rows:
        return taken.clone(memory_format=torch.contiguous_format)
    return torch.cat([taken.contiguous(), x.new_zeros(rows - len(taken), *x.shape[1:])])


def _tokens_of_rule(aligned: AlignedModule) -> tuple[Any, ...]:
    """A rule and its state from outside, in a form that shows a change of what is not a tensor of the state."""
    names = tensors_of(aligned.state)
    state = {path: x for path, x in Attributes.of(aligned.state).tokens.items() if path not in names}
    return state, token_of(vars(aligned.rule))


def _like(x: Any) -> Any:
    """What a pass may depend on of one input: shape and type, or the value of what is no tensor."""
    return (tuple(x.shape[1:]), x.dtype, x.requires_grad) if isinstance(x, Tensor) else repr(x)
