"""Backpropagation from layer to layer, sparse direct feedback across time (Han et al. 2020, arXiv 2006.12830).

[R] A reconstruction from the abstract, which says "sparse matrix multiplication" for recurrent networks and "hybrid"
for backpropagation between modules and direct feedback within them; no code of the authors is known.

A module is a recurrent layer, and its own error is E_t = dL/dh_t as the layers above send it, nothing through time.
Within the layer every state is taught by its own error and by those of the times that follow:

    g_h(t) = E_t + sum_k (S_k ∘ B_k)^T E_{t+k},    S_k ~ Bernoulli(density), fixed,    k = 1, ..., reach

Nothing goes back through a recurrent matrix. Inside a cell the gates learn by the chain rule. With `recursion="local"`
errors also go back along what a cell carries over elementwise (`Memory`), which adds z_{t+1} ∘ g_h(t+1) in a GRU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rule import Requires, Rule
from optical_dfa.feedback.rules.modular import MOST_ENTRIES
from optical_dfa.feedback.rules.sparse_recurrent import Forget, check_sparse, sparse_matrix
from optical_dfa.feedback.state import FeedbackState, Placement, StateHook, called_directly, key
from optical_dfa.networks.markers import State
from optical_dfa.networks.recurrent import Unrolled


@RuleCard(
    summary="backpropagation between recurrent layers and sparse feedback across time (a reconstruction)",
    projects=False,
    recurrent=True,
)
class RecurrentHybrid(Rule):
    """`recurrent-hybrid`: exact errors between recurrent layers, sparse random ones from later times. [R]

    The update is a sum over records, so that it can be released privately.
    """

    name = "recurrent-hybrid"
    requires = frozenset({Requires.BACKWARD})
    cuts = False

    def __init__(
        self, density: float = 0.1, recursion: str = "local", scale: float = 1.0, reach: int = 1
    ) -> None:
        """
        Args:
            density: probability that an entry of B_k is kept; entries are N(0, scale² / (density n_l)).
            recursion: "local", errors also go back in time along what a cell carries elementwise (`Memory`), which
                takes no matrix; "truncated", they do not.
            scale: |(S_k ∘ B_k)^T E| ~ scale |E|.
            reach: number of later times whose errors teach a state directly.
        Raises:
            UsageError: an option out of its range.
        """
        check_sparse(density, recursion, scale)
        if type(reach) is not int or reach < 1:
            raise UsageError(f"rule option reach={reach!r}: it must be a whole number from 1")
        self.density, self.recursion, self.scale, self.reach = float(density), recursion, float(scale), reach

    def state(self, placed: Placement) -> FeedbackState:
        return HybridState(self, placed.module, _calls(placed.module, placed.example), placed.seed)


def _calls(module: nn.Module, example: Sequence[Tensor]) -> dict[str, list[int]]:
    """By recurrent layer, the number of times in each of its calls.

    Raises:
        UsageError: errors could go through time elsewhere than between the states of layers, or a layer does something
            to its states before it returns them, which the rule would pass over.
    """
    twin = copy.deepcopy(module)
    layers = {name: part for name, part in twin.named_modules() if isinstance(part, Unrolled)}
    calls: dict[str, list[int]] = {name: [] for name in layers}
    states: dict[str, list[Tensor] | None] = dict.fromkeys(layers)
    wrong = [name for name, part in twin.named_modules() if isinstance(part, nn.RNNBase | nn.RNNCellBase)]

    def enter(name: str) -> None:
        states[name] = []

    def keep(name: str, h: Tensor) -> None:
        own = states.get(name.rpartition(".")[0])
        if own is None:
            wrong.append(name)
        else:
            own.append(h)

    def leave(name: str, output: object) -> None:
        own = states[name] or []
        states[name] = None
        alike = bool(own) and all(h.shape == own[0].shape for h in own)
        if alike and isinstance(output, Tensor) and torch.equal(output, torch.stack(own, 1)):
            calls[name].append(len(own))
        else:
            wrong.append(name)

    for name, part in twin.named_modules():
        if isinstance(part, Unrolled):
            part.register_forward_pre_hook(lambda *_, n=name: enter(n))
            part.register_forward_hook(lambda _, args, out, n=name: leave(n, out))
        elif isinstance(part, State):
            part.register_forward_hook(lambda _, args, out, n=name: keep(n, out))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin(*[x.clone() for x in example])
    wrong += [name for name, lengths in calls.items() if not lengths]
    if wrong or not calls:
        raise UsageError(
            f"rule recurrent-hybrid finds {f'in {wrong[0]} ' if wrong else ''}no layer of "
            "optical_dfa.networks.recurrent (RNN, GRU, LSTM) that is "
            "called and returns h_1, ..., h_T as they are; use those, or rule sparse-recurrent"
        )
    return calls


class HybridState(FeedbackState):
    """S_k ∘ B_k of every layer, shape (reach, n_l, n_l), drawn from a seed that the `state_dict` holds.

    Attributes:
        kept: by layer that is being called, its states so far, with their histories.
    """

    def __init__(
        self, rule: RecurrentHybrid, module: nn.Module, layers: dict[str, list[int]], seed: int
    ) -> None:
        """
        Args:
            rule: its options.
            module: the plain module.
            layers: by name, the number of times in each of the layer's calls.
            seed: of what is drawn.
        """
        super().__init__((), seed)
        self.rule, self.layers, self.active = rule, layers, False
        self.kept: dict[str, list[Tensor]] = {}
        for name in layers:
            layer = module.get_submodule(name)
            assert isinstance(layer, Unrolled)
            stream = torch.Generator().manual_seed(derive_seed(seed, f"feedback across time in {name}"))
            shape = (rule.reach, layer.units, layer.units)
            if math.prod(shape) > MOST_ENTRIES:
                raise UsageError(
                    f"rule option reach={rule.reach} needs {math.prod(shape):,} entries of feedback to {name}; give "
                    "fewer times"
                )
            self.register_buffer(key(name), sparse_matrix(shape, rule.density, rule.scale, stream))

    def begin(self) -> None:
        self.active = True

    def end(self) -> None:
        self.active, self.kept = False, {}

    def install(self, module: nn.Module) -> None:
        for name in self.layers:
            layer = module.get_submodule(name)
            assert isinstance(layer, Unrolled)
            layer.state.register_forward_hook(_Keep(self, name))
            layer.register_forward_hook(_Join(self, name))
            if self.rule.recursion == "truncated":
                layer.memory.register_forward_hook(Forget(self))

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """The entries that are kept, for every pair of times that they join."""
        work = sum(
            int(self.get_buffer(key(name))[k - 1].count_nonzero()) * (times - k)
            for name, calls in self.layers.items()
            for times in calls
            for k in range(1, min(self.rule.reach + 1, times))
        )
        return work, work

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle starts between two passes."""
        return {**self.__dict__, "active": False, "kept": {}}


class _Keep(StateHook):
    """Forward hook of a layer's state: keeps h_t, lets a detached copy go on in time."""

    state: HybridState

    def __call__(self, part: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        if not self.state.active:
            raise called_directly(self.name)
        self.state.kept.setdefault(self.name, []).append(output)
        return output.detach()


class _Join(StateHook):
    """Forward hook of a layer: joins its output to the states that were kept."""

    state: HybridState

    def __call__(self, layer: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        states = self.state.kept.pop(self.name, [])
        if len(states) != output.shape[1]:
            raise UsageError(
                f"layer {self.name} returned {output.shape[1]} times from {len(states)} states; rule recurrent-hybrid "
                "takes layers that return h_1, ..., h_T"
            )
        matrices = self.state.get_buffer(key(self.name))
        return _AcrossTime.apply(output, matrices, *states)  # type: ignore[no-any-return, no-untyped-call]


class _AcrossTime(torch.autograd.Function):
    """Identity on a layer's output, shape (m, T, n); its backward teaches every state by the equation above."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, matrices: Tensor, *states: Tensor) -> Tensor:
        ctx.save_for_backward(matrices)
        return output.detach()  # not a view, which what follows could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (matrices,) = ctx.saved_tensors
        taught = grad.clone()
        for k, matrix in enumerate(matrices.to(grad.dtype), 1):
            taught[:, :-k] += grad[:, k:] @ matrix
        return (None, None, *taught.unbind(1))
