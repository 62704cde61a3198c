"""Local greedy forward gradients: every block has a loss of its own (LG-FG-A; Ren et al. 2023, arXiv 2210.03310).

    z_l = A_l pool(phi(a_l)) + c_l,    L_l = CE(softmax(z_l), t),    p_l = softmax(z_l),    u_l ~ N(0, I)
    s_l = (p_l - t) · A_l pool(phi'(a_l) ∘ u_l)                 the derivative of L_l along u_l, in forward mode
    delta_l = s_l u_l,    A_l <- A_l - rate · mean_n (p_l - t) pool(phi(a_l))^T,    c_l likewise

E[delta_l] = dL_l/da_l. No error passes from block to block, so a layer's signal has the noise of its own units alone:
Var_j = |dL_l/da_l|^2 + (dL_l/da_{l,j})^2, where `fg-a` has the squares of all layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from noise_models.errors import UsageError
from noise_models.places import normals_like
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.points import ForwardPass, Point, call_order
from optical_dfa.feedback.rule import Requires, Taught
from optical_dfa.feedback.rules.bypass import Bypass
from optical_dfa.feedback.rules.drtp import check_targets, onehot_targets
from optical_dfa.feedback.rules.learned import LearnedFeedback, LearnedState, Lesson
from optical_dfa.feedback.state import Placement, StateHook
from optical_dfa.networks.markers import ACTIVATIONS


@RuleCard(
    summary="forward gradients of losses of its layers' own (auxiliary classifiers; no backward pass)",
    projects=False,
    refused=Refusal.LEARNS,
)
class LocalGreedyForwardGradient(LearnedFeedback):
    """`lg-fg-a`: a block is what lies between two feedback points; it is moved where its activation begins.

    A point is an activation: a_l is its input, and an auxiliary linear classifier of its output, for convolutions of
    the channels' means over space, has the block's loss. Under `groups` the units (channels) are moved a group at a
    time: each group has the loss's derivative along its own part of u_l, which leaves it the noise of its own units. We
    take the paper's group losses, which are equal but for where gradients stop, to be that; its losses by patches of
    an image are not here. Where a ReLU is off, u_l is 0, as there.

    The target t is read off the error at the output, as `drtp` does and for the same losses; the local loss is the
    cross-entropy of single records (or positions) whatever the loss's weights are. The output layer learns from the
    exact error. The classifiers start at 0 and are the rule's, not the module's: an optimizer never sees them.
    """

    name = "lg-fg-a"
    requires = frozenset({Requires.ROOT_ERROR, Requires.FORWARD_MODE})
    taught = Taught.INPUT

    def __init__(
        self,
        groups: int = 1,
        optimizer: str = "sgd",
        rate: float | None = None,
        decay: float | None = None,
        initial_scale: float = 0.0,
    ) -> None:
        """
        Args:
            groups: into which the units (channels) of every point are divided, consecutive ones together.
            optimizer, rate, decay, initial_scale: of the classifiers [A_l c_l], as for every learned feedback.
        Raises:
            UsageError: an option out of its range; that `groups` divides every point is checked by `align`.
        """
        super().__init__(optimizer, rate, decay, initial_scale)
        if groups < 1:
            raise UsageError(f"rule option groups={groups}: it must be at least 1")
        self.groups = groups

    def default_points(self, module: nn.Module, example: Sequence[Tensor]) -> list[str]:
        return [name for name, part in module.named_modules() if isinstance(part, ACTIVATIONS)]

    def columns(self, point: Point) -> int:
        """What the classifier reads: units or channels, and a constant 1."""
        return point.shape[0] + 1

    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        return error.T @ part / len(error)

    def state(self, placed: Placement) -> LearnedState:
        if placed.components < 2:
            raise UsageError(
                f"rule {self.name} reads which of the output's components is the target, and needs two of them or "
                "more; use rule fg-a"
            )
        for point in placed.points:
            if point.shape[0] % self.groups:
                raise UsageError(
                    f"rule option groups={self.groups}: it must divide the {point.shape[0]} units of feedback point "
                    f"{point.name}"
                )
        _check_points(placed, self.name)
        return _LocalState(self, placed)

    def check_error(self, error: Tensor) -> None:
        check_targets(error, self.name)


@dataclass
class _Moved(Lesson):
    """`parts` are what the classifiers read, shape (rows, columns); all by the point's index.

    Attributes:
        tangents: pool(phi'(a_l) ∘ u_l), shape (rows, channels).
        directions: u_l, shape (rows, channels, places).
    """

    tangents: dict[int, Tensor] = field(default_factory=dict)
    directions: dict[int, Tensor] = field(default_factory=dict)


class _InputHook(StateHook):
    """Forward hook of a feedback point, before the one that cuts: notes a_l, and puts the bypass in."""

    state: _LocalState

    def __call__(self, part: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled() or self.state.inputs is None:
            return None  # evaluation, or a call around the aligned module, which the cut refuses
        self.state.inputs.append(args[0].detach())
        return Bypass.apply(args[0], output)  # type: ignore[no-any-return, no-untyped-call]


class _LocalState(LearnedState):
    """Moves every point's input, and holds the classifiers [A_l c_l], shape (c, units or channels + 1)."""

    rule: LocalGreedyForwardGradient

    def __init__(self, rule: LocalGreedyForwardGradient, placed: Placement) -> None:
        super().__init__(rule, placed)
        self.inputs: list[Tensor] | None = None

    def install(self, module: nn.Module) -> None:
        for point in self.points:
            module.get_submodule(point.name).register_forward_hook(_InputHook(self), prepend=True)

    def begin(self) -> None:
        self.inputs = []

    def observe(self, passed: ForwardPass) -> _Moved:
        inputs, self.inputs = self.inputs or [], None
        output = passed.output
        stream = self.draws()
        self.get_buffer("passes").add_(1)
        rows = output.shape[:-1].numel()
        noted = _Moved({})
        for (index, _), a in zip(passed.kept, inputs, strict=True):
            point = self.points[index]
            part = passed.module.get_submodule(point.name)
            u = normals_like(a, stream)
            if isinstance(part, nn.ReLU):
                u.mul_(a > 0)
            with torch.no_grad():
                h, moved = jvp(part.forward, (a,), (u,))[:2]  # past the hooks
            dtype = self.matrix(point).dtype
            by_place = (rows, point.shape[0], point.width // point.shape[0])
            read = h.reshape(by_place).mean(2).to(dtype)
            noted.parts[index] = torch.cat([read, read.new_ones(rows, 1)], 1)
            noted.tangents[index] = moved.reshape(by_place).mean(2).to(dtype)
            noted.directions[index] = u.reshape(by_place)
        return noted

    def signals(self, error: Tensor, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        """Without a direction there is nothing to say."""
        return [None for _ in self.points]

    def teach(self, error: Tensor, noted: Lesson, device: ProjectionBackend | None) -> list[Tensor | None]:
        signals: list[Tensor | None] = [None for _ in self.points]
        if not len(error):
            return signals
        assert isinstance(noted, _Moved)
        target = onehot_targets(error)
        errors: dict[int, Tensor] = {}
        for index, read in noted.parts.items():
            classifier = self.matrix(self.points[index])
            wanted = target.to(classifier.dtype)
            wrong = (torch.softmax(read @ classifier.T, 1) - wanted) * wanted.sum(1, keepdim=True)
            share = (wrong @ classifier[:, :-1]) * noted.tangents[index]
            by_group = (len(error), self.rule.groups, -1)
            along = share.view(by_group).sum(2, keepdim=True)  # s_l, one a group
            u = noted.directions[index].reshape(by_group)
            signals[index] = (u * along.to(u.dtype)).view(len(error), -1)
            errors[index] = wrong
        self.learn(noted, errors)
        return signals

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """Of each classifier c times its inputs for z_l, for its derivative and for what it learns; s_l; s_l u_l."""
        units = sum(point.width for point in self.points)
        read = sum(point.shape[0] for point in self.points)
        work = components * (3 * read + self.rule.groups * len(self.points)) + units
        return positions * work, positions * units

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "inputs": None}


def _check_points(placed: Placement, rule: str) -> None:
    """Every point must be a fixed function from one tensor to one of its shape, called once.

    Raises:
        UsageError: naming the point, and what it does.
    """
    points, example = placed.points, placed.example
    twin = copy.deepcopy(placed.module).train()
    called = call_order(placed.module, example, nn.Module)
    given: dict[str, tuple[tuple[Any, ...], Tensor]] = {}
    for point in points:
        twin.get_submodule(point.name).register_forward_hook(
            lambda _, args, output, name=point.name: given.update({name: (args, output)})
        )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin(*[x.clone() for x in example])
    for point in points:
        name, part = point.name, twin.get_submodule(point.name)
        args, output = given[name]
        if called.count(name) != 1:
            reason = f"is called {called.count(name)} times in a forward pass, not once"
        elif len(args) != 1 or not args[0].is_floating_point() or args[0].shape != output.shape:
            reason = "does not make one tensor of another of the same shape"
        elif next(part.parameters(), None) is not None or next(part.buffers(), None) is not None:
            reason = "has parameters or buffers of its own"
        elif getattr(part, "inplace", False):
            reason = "works in place, so that what it was given is lost"
        elif not _forward_mode(part, args[0]):
            reason = "is random, or has no forward-mode derivative"
        else:
            continue
        raise UsageError(
            f"feedback point {name} ({type(part).__name__}) {reason}; rule {rule} takes fixed activation modules "
            "(e.g. nn.Tanh()), or use rule fg-a"
        )


def _forward_mode(part: nn.Module, a: Tensor) -> bool:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            first, again = (jvp(part.forward, (a,), (torch.ones_like(a),))[:2] for _ in range(2))
        except RuntimeError:
            return False
    return all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
