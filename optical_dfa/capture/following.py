"""Following the records through every operation of a private forward pass, so that none is mixed with another.

A pass is made of ATen operations, which a dispatch mode sees one by one. Each tensor that holds records carries a note
of where (`Rows`); each operation's rule says where they are in its result, or that it mixes them (`operations`). What
is accepted is a statement about all data: rules look at shapes and arguments, never at values, and nothing may read a
value of a record into Python, write records into anything that was there before the pass, or compute with the number
of records. For that the pass is compared with one that was made on random records, in a small and a larger batch: the
same operations with the same numbers, and sizes that are a multiple of the number of records or do not depend on it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.capture.masks import DRAWN, draw
from optical_dfa.capture.modes import Modes
from optical_dfa.capture.operations.call import Call, MixingError
from optical_dfa.capture.plans import (
    COUNTED,
    FACTORIES,
    RESHAPING,
    SIZES,
    Traits,
    argument_of,
    entry_of,
    plan_of,
    tensors,
)
from optical_dfa.capture.program import LARGER, REMEDY, Program, digest_of, first_difference
from optical_dfa.capture.rows import CONSTANT, Rows, fits, places
from optical_dfa.capture.state import tensors_of

_NOWHERE = Rows(-1, 0, 1)  # of statistics that only the backward pass reads: in no place that a rule takes
_UNFILLED = frozenset({"empty", "new_empty", "empty_like", "empty_strided"})
_FOLLOWED: tuple[type, ...] = (Tensor, nn.Parameter)  # a subclass may do anything
_ALONE = 2  # users of the memory of a tensor that shares it with none: itself, and whoever asks
_COUNTS = (
    "counts the records (arange): a record's contribution may not depend on its place; torch.arange(len(x)) may be "
    "an index of the records alone, as in x[torch.arange(len(x)), steps]; else use x.gather"
)
_SWAPPED = "gives a tensor another one's memory in the pass (.data, swap_tensors)"
_HOOKS = (
    "a private pass records every layer where it is called, and a part of the module is computed anew in the backward "
    "pass (torch.utils.checkpoint?); leave checkpointing out, and cut the batch by max_physical_batch_size"
)


class _Note:
    """What is known of a tensor in one pass.

    Attributes:
        following: the pass; a note of an earlier one shows that something was kept.
        rows: where it holds records, None for a constant.
        own: whether its memory was made in this pass.
        number: of all the pass has made, by which operations are told what they work on.
        of: identity of the tensor: a note that was carried to another one is none.
    """

    __slots__ = ("following", "number", "of", "own", "rows")

    def __init__(
        self, following: Following, rows: Rows | None, own: bool, number: int | str, of: int
    ) -> None:
        self.following, self.rows, self.own, self.number, self.of = following, rows, own, number, of

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()  # copies and pickles of a tensor are of no pass


def _nothing() -> None:
    return None


class Following:
    """One pass that is followed; `with following.on(inputs): ...`.

    Attributes:
        whose: the pass, in words.
        entries: the operations so far.
        asked: sizes that tensors were made from, in order.
        returned: which of its tensors the pass handed on.
        constants: tensors that are neither the module's nor made by an operation of the pass.
    """

    def __init__(
        self,
        module: nn.Module,
        records: int,
        masks: NoiseGenerator,
        program: Program | None,
        rule: str | None = None,
    ) -> None:
        """
        Args:
            module: whose pass it is.
            records: in the batch.
            masks: what random operations draw from.
            program: what the pass has to be like; None only notes what it is like.
            rule: name of the feedback rule that is followed in place of the module.
        """
        self.rule = rule
        self.whose = "a forward pass" if rule is None else f"rule {rule}"
        self.module, self.records, self.masks, self.program = module, records, masks, program
        self.entries: list[Any] = []
        self.asked: list[tuple[int, ...]] = []
        self.returned: tuple[Any, ...] = ()
        self.constants: list[Tensor] = []
        self._made = 0
        self._memory: set[int] = set()
        self._known: dict[int, str] = {}
        # By identity: the tensor, kept so that no other takes its identity, its name, and where its memory is.
        self._strangers: dict[int, tuple[Tensor, str, int]] = {}
        self._grad: bool | None = None
        # Of a small batch everything is kept to the end, so that no memory is used twice.
        self._kept: list[Tensor] | None = [] if records <= LARGER else None
        self._modes: Modes | None = None
        self._counts = False  # whether it made the records' places
        self._failure: Exception | None = None

    @contextmanager
    def on(self, inputs: Iterable[Any]) -> Iterator[None]:
        """Follow what is done inside.

        Args:
            inputs: what the pass is given; tensors have records first.
        Raises:
            UsageError: naming the module and the operation.
        """
        self._known = {id(x): name for name, x in tensors_of(self.module).items()}
        for x in inputs:
            if isinstance(x, Tensor):
                self.note(x, self._first(x), own=self.rule is None)  # a module's inputs are copies
        self._modes = Modes(self)
        try:
            with torch.autograd.graph.disable_saved_tensors_hooks(_HOOKS), self._modes:
                yield
        except RuntimeError as error:
            if _HOOKS in str(error):
                raise UsageError(_HOOKS) from None
            raise
        finally:
            self._kept = None
        for x, _, memory in self._strangers.values():
            if memory != _memory_of(x):
                raise self.refusal(_SWAPPED)
        if self._failure is not None:  # whoever caught it may have gone another way by what the records are
            raise self._failure
        if self.program is not None and tuple(self.entries) != self.program.entries:
            raise self.differs(first_difference(self.entries, self.program.entries))

    @contextmanager
    def off(self) -> Iterator[None]:
        """What is done inside is the library's own and is not followed."""
        modes, self._modes = self._modes, None
        if modes is None:
            yield
            return
        with modes.paused():
            yield
        self._modes = modes

    def _first(self, x: Tensor) -> Rows | None:
        if self.program is None:
            return None
        positions = x.shape[0] // self.records if x.ndim else 0
        if x.ndim == 0 or x.shape[0] != self.records * (positions if self.rule else 1):
            raise UsageError(
                "an input of a private pass has no row for each record of the batch; give every input records first"
            )
        return Rows(0, 1, positions)

    # ---- notes

    def note(self, x: Tensor, rows: Rows | None, own: bool, number: int | str | None = None) -> None:
        """Note where `x` holds records.

        Args:
            own: whether its memory was made in this pass.
            number: of what it is another name of; None is a new one.
        """
        if number is None:
            self._made += 1
            number = self._made
        x._followed = _Note(self, rows, own, number, id(x))  # type: ignore[attr-defined]
        if rows is not None:
            self._memory.add(x.data_ptr())
            if self._kept is not None:
                self._kept.append(x)

    def rows(self, x: Tensor) -> Rows | None:
        """Where `x` holds records; None for a constant."""
        found = self._note_of(x)
        return self._rows_of_stranger(x) if found is None else found.rows

    def _note_of(self, x: Tensor) -> _Note | None:
        found: _Note | None = getattr(x, "_followed", None)
        return found if found is not None and found.following is self and found.of == id(x) else None

    def _rows_of_stranger(self, x: Tensor) -> Rows | None:
        """A tensor that this pass did not make: a parameter, a buffer, or some constant from elsewhere."""
        stranger = self._strangers.get(id(x))
        if stranger is not None:
            if stranger[2] != _memory_of(x):
                raise self.refusal(_SWAPPED)
            return None
        if type(x) not in _FOLLOWED:
            raise self.refusal(
                f"uses a {type(x).__name__}, whose operations cannot be followed; give it a plain tensor"
            )
        found: _Note | None = getattr(x, "_followed", None)
        if found is not None and (found.rows is not None or found.of != id(x)):
            raise self.refusal(
                "uses a tensor that an earlier pass made of records, or another one's attributes: nothing may be kept "
                "between passes"
            )
        name = self._known.get(id(x))
        if (
            self.program is not None
            and name is None
            and (isinstance(x, nn.Parameter) or self._shares_memory(x))
        ):
            raise self.refusal(
                "uses a parameter that is not the module's, or the memory of records by another name"
            )
        if name is None:
            name = f"constant {len(self.constants)}"
            self.entries.append(
                (name, tuple(x.shape), x.dtype, digest_of(x))
            )  # whoever made it, not of records
            self.constants.append(x)
        self._strangers[id(x)] = (x, name, _memory_of(x))
        return None

    def _shares_memory(self, x: Tensor) -> bool:
        """Whether a tensor that no operation made is another name for one that holds records."""
        if not x.numel() or x.layout != torch.strided or x.data_ptr() not in self._memory:
            return False
        if self._kept is not None:
            return True
        # Else the memory may have been free again; a small batch showed that the module knows no such names.
        return bool(torch._C._storage_Use_Count(x.untyped_storage()._cdata) > _ALONE)

    def _operand(self, x: Tensor) -> int | str:
        """What a tensor is in the account of the pass: the number of what was made, or a name."""
        found = self._note_of(x)
        if found is not None:
            return found.number
        return self._strangers[id(x)][1] if id(x) in self._strangers else self._known.get(id(x), "none")

    def own(self, x: Tensor) -> bool:
        """Whether the memory of `x` was made in this pass."""
        found = self._note_of(x)
        return found is not None and found.own

    def _made_here(self, plan: Traits, args: tuple[Any, ...]) -> bool:
        """Whether what the operation returns may be written to: new memory, each element its own."""
        if not plan.views:
            return True
        # of an expanded tensor several elements are one
        return plan.name != "expand" and isinstance(args[0], Tensor) and self.own(args[0])

    # ---- operations

    def dispatch(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation, if it keeps records apart; what fails is not forgotten, should the module catch it."""
        try:
            return self._dispatch(func, args, kwargs)
        except Exception as error:
            if self._failure is None:
                self._failure = error
            raise

    def _dispatch(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = plan_of(func)
        if self._grad is not torch.is_grad_enabled():
            self._grad = torch.is_grad_enabled()
            self.entries.append(("set_grad_enabled", self._grad))
        if plan.renames:
            out = func(*args, **kwargs)
            rows = self.rows(args[0])
            number: int | str | None = self._operand(args[0])
            if self._grad and args[0].requires_grad:  # without its history it teaches otherwise
                self.entries.append((plan.name, number))
                number = None
            self.note(out, rows, self.own(args[0]), number)
            return out
        if plan.name == "lift_fresh":  # made of Python's numbers
            self.entries.append(("values", tuple(args[0].shape), args[0].dtype, digest_of(args[0])))
            self._strangers[id(args[0])] = (args[0], "values", _memory_of(args[0]))
        # Most operations are element by element, on records in one place and on constants without axes.
        place: Rows | None = None
        ndim, plain = 0, plan.simple
        operands: list[int | str] = []
        learns = 1  # which operands have a history
        given = tensors((*args, *kwargs.values())) if kwargs else tensors(args)
        for x in given:
            learns = 2 * learns + x.requires_grad
            note = self._note_of(x)
            if note is None:
                self._rows_of_stranger(x)
                operands.append(self._strangers[id(x)][1])
                plain = plain and not x.ndim
                continue
            operands.append(note.number)
            if note.rows is None:
                plain = plain and not x.ndim
            elif place is None:
                place, ndim = note.rows, x.ndim
            else:
                plain = plain and place == note.rows and ndim == x.ndim
        if self._counts and plan.name not in COUNTED and any(_counted(self.rows(x)) for x in given):
            raise self.refusal(_COUNTS)
        self.entries.append((*entry_of(plan, args, kwargs), *operands, learns))
        if place is not None and plain:
            out = func(*args, **kwargs)
            if not fits(place, out.shape, self.records):
                raise self.refusal(f"uses {plan.name} in a way that is not followed")
            self.note(out, place, self._made_here(plan, args))
            return out
        if plan.written_names:
            raise self.refusal(f"uses {plan.name} with out=, which is not followed; leave it out")
        held = place is not None
        sizes = self._sizes(func, plan, args, kwargs, held)
        if not held or plan.name in FACTORIES:
            return self._constant(func, plan, args, kwargs, sizes)
        if plan.reads:
            raise self.refusal(
                f"reads values of records into Python ({plan.name}): control flow may not depend on them"
            )
        if plan.written:
            return self._write(func, plan, args, kwargs)
        out = self._drawn(func, plan, args, kwargs) if plan.random else func(*args, **kwargs)
        if plan.name == "empty_like":
            out.zero_()
        found = self._judge(func, plan, args, kwargs, out)
        if sizes is not None and isinstance(found, Rows) and sizes.axis != found.axis:
            raise self.refusal(
                f"repeats what it makes of a record as often as there are records ({plan.name})"
            )
        self._place(plan, args, out, found)
        return out

    def _sizes(
        self, func: OpOverload, plan: Traits, args: tuple[Any, ...], kwargs: dict[str, Any], held: bool
    ) -> Rows | None:
        """Where a tensor made from sizes has the records' axis; None where its sizes do not depend on them."""
        if not plan.sized:
            return None
        if plan.name == "arange":
            asked: tuple[Any, ...] = tuple(value for value in args if isinstance(value, int | float))
        else:
            asked = tuple(argument_of(func, args, kwargs, SIZES, ()))  # none of a view as another type
        place = len(self.asked)
        self.asked.append(asked)
        if self.program is None:
            return None
        if place >= len(self.program.sizes) or len(self.program.sizes[place]) != len(asked):
            raise self.differs(plan.name)
        wanted = self.program.sizes[place]
        expected = tuple(multiple * self.records if multiple else itself for multiple, itself in wanted)
        if asked != expected:
            raise self.differs(f"sizes of {plan.name}")
        axes = [axis for axis, (multiple, _) in enumerate(wanted) if multiple]
        if not axes:
            return None
        if plan.name in RESHAPING and not held:
            raise self.differs(plan.name)
        if plan.name == "arange":
            given = wanted if len(wanted) > 1 else ((0, 0), *wanted)
            start, (multiple, _), step = (*given, (0, 1))[:3]
            if start != (0, 0) or step != (0, multiple) or kwargs.get("dtype") not in (None, torch.int64):
                raise self.refusal(_COUNTS)
            self._counts = True
            return places(multiple)
        if len(axes) > 1 or (plan.name == "affine_grid_generator" and axes != [0]):
            raise self.refusal(f"makes a table of records by records ({plan.name})")
        return Rows(axes[0], 1, wanted[axes[0]][0])

    def _constant(
        self, func: OpOverload, plan: Traits, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Rows | None
    ) -> Any:
        """An operation on constants alone."""
        for place in plan.written:
            if place < len(args) and isinstance(args[place], Tensor) and not self.own(args[place]):
                raise self.refusal(
                    f"writes into a tensor that was there before the pass ({plan.name}); compute it anew in every pass"
                )
        out = self._drawn(func, plan, args, kwargs) if plan.random else func(*args, **kwargs)
        if plan.name in _UNFILLED and out.numel():
            out.zero_()  # whatever was in that memory
        if not tensors((*args, *kwargs.values())):
            self.entries.append((plan.name, out.dtype))  # whatever the default type is
        if rows is not None and plan.name == "repeat":
            rows = Rows(rows.axis, 1, out.shape[rows.axis] // self.records)
        own = self._made_here(plan, args)
        written = {id(args[i]) for i in plan.written if i < len(args)}
        for x in tensors((out,)):
            if id(x) not in written:
                self.note(x, rows, own)
        return out

    def _judge(
        self, func: OpOverload, plan: Traits, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Rows | tuple[Rows | None, ...]:
        if plan.rule is None:
            raise self.refusal(f"uses {plan.name}, which is not followed")
        try:
            return plan.rule(Call(func, args, kwargs, out, self.records, self.rows, self._uniform))
        except MixingError as how:
            raise self.refusal(f"mixes records: {plan.name} {how}") from None

    def _place(
        self, plan: Traits, args: tuple[Any, ...], out: Any, found: Rows | tuple[Rows | None, ...]
    ) -> None:
        own = self._made_here(plan, args)
        outputs = tensors((out,))
        each = [found] * len(outputs) if isinstance(found, Rows) else list(found)
        for x, rows in zip(outputs, each, strict=False):
            if rows not in (None, CONSTANT) and not fits(rows, x.shape, self.records):
                raise self.refusal(f"uses {plan.name} in a way that is not followed")
            if rows == CONSTANT:
                rows = None
            elif rows is None and x.numel():
                rows = _NOWHERE
            self.note(x, rows, own)

    def _write(self, func: OpOverload, plan: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation that writes to its arguments: to records of this pass, where they are."""
        targets = tensors(tuple(args[i] for i in plan.written if i < len(args)))
        for x in targets:
            if not self.own(x):
                raise self.refusal(
                    f"writes what it computes of records into a tensor that was there before the pass ({plan.name}): "
                    "it would keep un-noised statistics of records"
                )
        found = self._judge(func, plan, args, kwargs, None)
        for x in targets:
            rows = self.rows(x)
            if rows is None:
                raise self.refusal(
                    f"writes records into a tensor that holds none ({plan.name}); make it with a row a record, or use "
                    "torch.stack and torch.cat"
                )
            if rows != found and "inplace_view" not in {tag.name for tag in func.tags}:
                raise self.refusal(
                    f"mixes records: {plan.name} into a tensor that keeps them in another place"
                )
        out = self._drawn(func, plan, args, kwargs) if plan.random else func(*args, **kwargs)
        for x in tensors((out,)):
            if not any(x is target for target in targets):
                self.note(x, found if isinstance(found, Rows) else found[0], own=True)
        if targets and isinstance(found, Rows) and self.rows(targets[0]) != found:
            self.note(targets[0], found, own=True, number=self._operand(targets[0]))  # in-place views
        return out

    def _drawn(self, func: OpOverload, plan: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A random operation, from the secret stream; shared by all records where it makes no row a record."""
        if any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values())):
            raise self.refusal(
                f"draws {plan.name} from a generator of its own, which is not secret; leave it out"
            )

        def get(name: str, default: Any = None) -> Any:
            return argument_of(func, args, kwargs, (name,), default)

        if plan.name not in DRAWN:
            raise self.refusal(
                f"draws at random by {plan.name}; use dropout, torch.rand, torch.randn or bernoulli_"
            )
        if plan.written:
            given = args[plan.written[0]]
        elif plan.name in ("rand", "randn"):
            given = torch.empty(get("size"), dtype=get("dtype"), device=get("device"))
        else:
            given = torch.empty_like(args[0], dtype=get("dtype"))
        return draw(plan.name, self.masks, get, given)

    def _uniform(self, x: Tensor, rows: Rows) -> bool:
        """Whether a constant is the same for every record, were it to hold records there: it may be looked at."""
        size = x.shape[rows.axis]
        if size != rows.outer * self.records * rows.inner:
            return False
        if x.stride(rows.axis) == 0:
            return True
        apart = x.detach().movedim(rows.axis, 0).reshape(rows.outer, self.records, rows.inner, -1)
        return bool(torch.equal(apart, apart[:, :1].expand_as(apart))) or bool(
            torch.isclose(apart, apart[:, :1], rtol=0.0, atol=0.0, equal_nan=True).all()
        )

    def shown(self, e: Tensor) -> None:
        """What is shown to a device is compared, too."""
        self.entries.append(("project", self._operand(e)))

    def hand_on(self, outputs: Iterable[Any]) -> None:
        """At the end of the pass: which tensors others take from it, None for none; these, too, are compared.

        Raises:
            UsageError: other ones than usual.
        """
        self.returned = tuple(x if x is None else self._operand(x) for x in outputs)
        if self.program is not None and self.returned != self.program.returned:
            raise self.differs("what it returns")

    def called(self, layer: str, given: Tensor) -> None:
        """A trained layer is recorded: that it is, and on what, is compared, too."""
        self.entries.append(("layer", layer, self._operand(given)))

    def differs(self, what: str) -> UsageError:
        """The error of a pass that is not like the others."""
        return UsageError(
            f"the operations of {self.whose} are not always the same ({what}): what is done to a record may depend on "
            f"the number of records, on chance or on time; {REMEDY}"
        )

    def refusal(self, what: str) -> UsageError:
        """The error of a pass that is not separate, naming the module that was running."""
        where = _running(self.module) if self.rule is None else self.whose
        return UsageError(f"{where} {what}; {REMEDY}")


def _counted(rows: Rows | None) -> bool:
    return rows is not None and rows.counted


def _memory_of(x: Tensor) -> int:
    return x.data_ptr() if x.layout == torch.strided else 0


def _running(module: nn.Module) -> str:
    """Name of the innermost part whose code is running."""
    names = {id(part): name for name, part in module.named_modules()}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            return names[id(owner)] or "the module"
        frame = frame.f_back
    return "the module"
