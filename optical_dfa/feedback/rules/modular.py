"""DFA within modules of a network (Han et al. 2020, arXiv 2006.12830).

[R] A reconstruction from the abstract; no code of the authors is known. The feedback points, in the order in which
they are called, are divided into modules; a module's last point is its output, whose error is E_m. Within the module,
every other point l is taught at once by a fixed random map of it:

    g_l = A_l(E_m)

Between modules, E_m comes either from the network's output by one projection (`between="dfa"`, E_m = B_m e), or from
the module above (`between="bp"`): the delta of that module's lowest layer goes back through its weights,
E_m = W^T delta. A module of one point is then backpropagation, and a network of them is BP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.cuts import OUTPUT
from optical_dfa.feedback.points import Point, call_order
from optical_dfa.feedback.rule import ProjectingState
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment
from optical_dfa.feedback.state import Placement, StateHook, called_directly, key

BETWEEN = ("dfa", "bp")
MOST_ENTRIES = 10**9  # of one dense map
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@RuleCard(
    summary="Direct Feedback Alignment within modules (a reconstruction)",
    projects=True,
    projects_unless=("between", "bp"),
)
class ModularFeedbackAlignment(DirectFeedbackAlignment):
    """`modular`: dense maps A_l within the modules, entries N(0, scale²/n_l). [R]

    A network is divided where its points change from images to flat units, and besides as the option says. The update
    is a sum over records, so that it can be released privately.
    """

    name = "modular"

    def __init__(
        self, modules: Sequence[str] | int = 2, between: str = "dfa", scale: float | None = None
    ) -> None:
        """
        Args:
            modules: number of feedback points in a module; or names of feedback points that are modules' outputs, or
                of parts of the network (nn.Sequential, blocks) that are modules.
            between: "dfa" or "bp", how a module's own error comes about.
            scale: |g_l| ~ scale |E_m|, and |E_m| ~ scale |e| under "dfa"; None derives them, as for `dfa`.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(scale)
        if isinstance(modules, int) and not isinstance(modules, bool) and modules >= 1:
            self.modules: int | list[str] = modules
        elif isinstance(modules, Sequence) and modules and all(isinstance(n, str) and n for n in modules):
            self.modules = [modules] if isinstance(modules, str) else list(modules)
        else:
            raise UsageError(
                f"rule option modules={modules!r}: it must be a number of points, 1 or more, or a list of names"
            )
        if between not in BETWEEN:
            raise UsageError(f"rule option between={between!r}: it must be dfa or bp")
        self.between = between

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        """The activations, in the order in which they are called."""
        names = set(super().default_points(module, example))
        return [name for name in dict.fromkeys(call_order(module, example, nn.Module)) if name in names]

    def divide(self, points: Sequence[Point]) -> list[list[Point]]:
        """The modules, lowest first.

        Args:
            points: in call order.
        Raises:
            UsageError: a named module without a feedback point.
        """
        if not isinstance(self.modules, int):
            points, ends = list(points), self._ends(points, self.modules)
        groups: list[list[Point]] = []
        for _, same in groupby(points, key=lambda point: len(point.shape)):
            for place, point in enumerate(run := list(same)):
                first = (
                    place % self.modules == 0
                    if isinstance(self.modules, int)
                    else place == 0 or run[place - 1].name in ends
                )
                if first:
                    groups.append([])
                groups[-1].append(point)
        return groups

    def _ends(self, points: Sequence[Point], wanted: Sequence[str]) -> set[str]:
        ends = set()
        for name in wanted:
            inside = [p.name for p in points if p.name == name or p.name.startswith(f"{name}.")]
            if not inside:
                raise UsageError(
                    f"rule option modules names {name!r}, in which there is no feedback point; there are "
                    f"{', '.join(p.name for p in points)}"
                )
            ends.add(inside[-1])
        return ends

    def state(self, placed: Placement) -> ModularState:
        names = [point.name for point in placed.points]
        called = [n for n in call_order(placed.module, placed.example, nn.Module) if n in names]
        if placed.output.ndim > 2 or len(called) != len(names):
            raise UsageError(
                f"rule {self.name} takes feedback points that are called once for each record; use rule dfa or "
                "sparse-recurrent for outputs or weights at several times"
            )
        if called != names:
            raise UsageError(
                f"rule {self.name} wants its points in the order in which they are called: {', '.join(called)}"
            )
        return ModularState(self, self.divide(placed.points), placed.seed)

    # ---- the maps

    def kernel_shape(self, source: Point, target: Point) -> tuple[int, ...]:
        """Shape of what is drawn for one map."""
        return (source.width, target.width)

    def map_scale(self, source: Point, target: Point) -> float:
        """|g_l| over |E_m|: the scale given, or the ratio of those derived for the two points."""
        return self.scale * self.gain(target) / self.gain(source)

    def addends(self, source: Point, target: Point) -> int:
        """How many components of g_l one component of E_m moves: |g_l| ~ |E_m| where its entries have 1/addends."""
        return target.width

    def spread(self, error: Tensor, kernel: Tensor, source: Point, target: Point) -> Tensor:
        """A_l(E_m).

        Args:
            error: E_m, shape (m, *source.shape).
            kernel: what was drawn, scaled.
        Returns:
            shape (m, *target.shape).
        """
        return (error.flatten(1) @ kernel).view(len(error), *target.shape)


class ConvolutionalMaps(ModularFeedbackAlignment):
    """Base of the rules whose maps are fixed random transposed convolutions between images; flat units get dense ones.

    The kernel steps by the ratio of the two resolutions, dilated, its middle over the place it comes from; what falls
    off the image is lost.

    Attributes:
        size, dilation, groups: of the kernels.
    """

    size: int
    dilation: int
    groups: int

    def _set_kernel(self, size: int, dilation: int, groups: int) -> None:
        for option, value in (("size", size), ("dilation", dilation), ("groups", groups)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
                raise UsageError(f"rule option {option}={value!r}: it must be a whole number from 1 to 4096")
        if size % 2 == 0:
            raise UsageError(f"rule option size={size}: it must be odd, so that a kernel has a middle")
        self.size, self.dilation, self.groups = size, dilation, groups

    def kernel_shape(self, source: Point, target: Point) -> tuple[int, ...]:
        space = len(target.shape) - 1
        if not space:
            return super().kernel_shape(source, target)
        if source.shape[0] % self.groups or target.shape[0] % self.groups:
            raise UsageError(
                f"rule option groups={self.groups} must divide the channels of {target.name} and {source.name}, which "
                f"are {target.shape[0]} and {source.shape[0]}"
            )
        return (source.shape[0], target.shape[0] // self.groups, *(self.size,) * space)

    def addends(self, source: Point, target: Point) -> int:
        return math.prod(self.kernel_shape(source, target)[1:])

    def spread(self, error: Tensor, kernel: Tensor, source: Point, target: Point) -> Tensor:
        space = target.shape[1:]
        if not space:
            return super().spread(error, kernel, source, target)
        step = [max(1, round(fine / coarse)) for fine, coarse in zip(space, source.shape[1:], strict=True)]
        whole = _TRANSPOSED[len(space)](
            error.view(len(error), *source.shape),
            kernel,
            stride=step,
            dilation=self.dilation,
            groups=self.groups,
        )
        margin = self.dilation * (self.size - 1) // 2
        for axis, wanted in enumerate(space, start=2):
            whole = whole.narrow(axis, margin, min(wanted, whole.shape[axis] - margin))
        missing = [
            n for wanted, found in zip(space, whole.shape[2:], strict=True) for n in (wanted - found, 0)
        ]
        return functional.pad(whole, missing[::-1])


class ModularState(ProjectingState):
    """The maps of one module's division, drawn from a seed that the `state_dict` holds.

    Attributes:
        groups: points of each module, its output last.
    """

    rule: ModularFeedbackAlignment

    def __init__(self, rule: ModularFeedbackAlignment, groups: Sequence[Sequence[Point]], seed: int) -> None:
        """
        Raises:
            UsageError: a map that the rule cannot make, or that is too large.
        """
        # The output's error teaches the modules' outputs under "dfa", and none where errors go from module to module.
        super().__init__(rule, [group[-1] for group in groups] if rule.between == "dfa" else (), seed)
        self.groups = [list(group) for group in groups]
        self.teachers = {p.name: group[-1].name for group in self.groups for p in group[:-1]}
        if rule.between == "bp":
            self.teachers |= {a[-1].name: b[0].name for a, b in pairwise(self.groups)}
            self.teachers |= {self.groups[-1][-1].name: OUTPUT} if self.groups else {}
        self._kept: list[list[Tensor]] | None = None
        self._draw()
        self.register_load_state_dict_post_hook(_drawn_again)  # type: ignore[no-untyped-call]

    def _draw(self) -> None:
        for group in self.groups:
            for point in group[:-1]:
                shape = self.rule.kernel_shape(group[-1], point)
                if math.prod(shape) > MOST_ENTRIES:
                    raise UsageError(
                        f"rule {self.rule.name} needs a map of {math.prod(shape):,} entries from {group[-1].name} to "
                        f"{point.name}; use rule dilated or grouped"
                    )
                stream = torch.Generator().manual_seed(
                    derive_seed(int(self.get_buffer("seed")), f"map to {point.name}")
                )
                kernel = torch.randn(shape, generator=stream)
                kernel *= self.rule.map_scale(group[-1], point) / math.sqrt(
                    self.rule.addends(group[-1], point)
                )
                self.register_buffer(key(point.name), kernel, persistent=False)

    def install(self, module: nn.Module) -> None:
        for number, group in enumerate(self.groups):
            for point in group:
                # First, so that the output that the network's error teaches is the one joined to its module.
                module.get_submodule(point.name).register_forward_hook(
                    _ModuleHook(self, number, point), prepend=True
                )

    def begin(self) -> None:
        self._kept = [[] for _ in self.groups]

    def end(self) -> None:
        self._kept = None

    def keep(self, number: int, point: Point, output: Tensor) -> Tensor:
        """What goes on from a point of module `number`: a detached copy, or the output joined to those copied."""
        if self._kept is None:
            raise called_directly(point.name)
        if tuple(output.shape[1:]) != point.shape:
            raise UsageError(
                f"feedback point {point.name} has shape {list(output.shape[1:])}, but its map was drawn for "
                f"{list(point.shape)}; give records shaped like align()'s example"
            )
        if point is not self.groups[number][-1]:
            self._kept[number].append(output)
            return output.detach()
        if not self._kept[number]:
            return output
        joined: Tensor = _Within.apply(self, number, output, *self._kept[number])  # type: ignore[no-untyped-call]
        return joined

    def within(self, number: int, error: Tensor) -> list[Tensor]:
        """g_l at the inner points of module `number`, from the error at its output."""
        *inner, source = self.groups[number]
        rows = error if error.dtype in (torch.float32, torch.float64) else error.float()
        return [
            self.rule.spread(rows, self.get_buffer(key(point.name)).to(rows), source, point).to(error.dtype)
            for point in inner
        ]

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """A kernel's tap is used once at every place of the module's output; a dense map's entry once."""
        operations, words = super().work(components, positions)
        work = 0
        for *inner, source in self.groups:
            for point in inner:
                places = math.prod(source.shape[1:]) if len(self.rule.kernel_shape(source, point)) > 2 else 1
                work += places * self.get_buffer(key(point.name)).numel()
        return operations + work, words + work

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class _ModuleHook(StateHook):
    """Forward hook of one point of a module."""

    state: ModularState

    def __init__(self, state: ModularState, number: int, point: Point) -> None:
        super().__init__(state)
        self.number = number
        self.point = point

    def __call__(self, part: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        return self.state.keep(self.number, self.point, output)


class _Within(torch.autograd.Function):
    """Identity on a module's output; its backward hands (E_m, A_1(E_m), ...) to it and to the module's other points."""

    @staticmethod
    def forward(ctx: Any, state: ModularState, number: int, output: Tensor, *kept: Tensor) -> Tensor:
        ctx.state, ctx.number = state, number
        return output.detach()  # not a view, which what follows could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, grad, *ctx.state.within(ctx.number, grad))


def _drawn_again(state: nn.Module, keys: Any) -> None:
    """The maps are those of the seed that was loaded."""
    assert isinstance(state, ModularState)
    place = next(state.buffers()).device
    state._draw()
    state.to(place)
