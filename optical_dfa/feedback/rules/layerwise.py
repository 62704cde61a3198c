"""Layer-wise backward passes in which every layer hands the error down through another matrix than its weight.

    g_{l-1} = delta_l B_l,    delta_l = g_l * phi'(a_l),    shape(B_l) = shape(W_l)

Each linear or convolutional layer sees a detached input, and its output is joined to the input it was given by one
autograd function: identity forwards, B backwards. So W and b learn from delta as usual, everything between the layers
(activations, additions, pooling, normalisation) keeps its exact derivative, and no gradient passes through any W.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.nn.grad import conv1d_input, conv2d_input

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.backends.matrix import RandomMatrix
from optical_dfa.feedback.card import Refusal
from optical_dfa.feedback.cuts import check_layerwise
from optical_dfa.feedback.rule import Requires, Rule
from optical_dfa.feedback.state import FeedbackState, Placement, StateHook, called_directly, key

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
Draws = Literal["never", "once", "every pass"]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
Geometry = tuple[Any, ...] | None
Listener = Callable[[Tensor, Tensor, Geometry], None]


class _Path(torch.autograd.Function):
    """Identity on a layer's output; its backward sends the error to the layer's input through `matrix`.

    `geometry` is None for a linear layer; stride, padding, dilation and groups of a convolution. `listener` is told the
    error, the layer's input and the geometry, where the error goes down.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, matrix: Tensor, geometry: Geometry, listener: Listener | None
    ) -> Tensor:
        ctx.save_for_backward(matrix, *(() if listener is None else (x,)))
        ctx.geometry, ctx.shape, ctx.dtype, ctx.listener = geometry, x.shape, x.dtype, listener
        return output.detach()  # not a view, which an activation could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None
        matrix, *heard = ctx.saved_tensors
        for x in heard:
            ctx.listener(grad, x, ctx.geometry)
        matrix = matrix.to(grad.dtype)
        if ctx.geometry is None:
            below = grad @ matrix
        else:
            transposed = conv1d_input if matrix.ndim == 3 else conv2d_input
            below = transposed(ctx.shape, matrix, grad, *ctx.geometry)  # type: ignore[no-untyped-call]
        return grad, below.to(ctx.dtype), None, None, None


class _Entry(StateHook):
    """Forward pre-hook of a layer: keeps its input, lets a detached copy go in."""

    state: LayerwiseState

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return None
        if not self.state.active:
            raise called_directly(self.name)
        if args:
            self.state.inputs.append(args[0])
            return (args[0].detach(), *args[1:]), named
        self.state.inputs.append(named["input"])
        return args, {**named, "input": named["input"].detach()}


class _Exit(StateHook):
    """Forward hook of a layer: joins its output to the input that was kept."""

    state: LayerwiseState

    def __call__(self, layer: Layer, args: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        x = self.state.inputs.pop()
        matrix = self.state.matrix(self.name, layer.weight.detach())
        listener = self.state.listener(self.name)
        if isinstance(layer, nn.Linear):
            return _Path.apply(output, x, matrix, None, listener)  # type: ignore[no-any-return, no-untyped-call]
        padding: Any = layer.padding
        if layer.padding_mode != "zeros" or isinstance(
            padding, str
        ):  # as the layer does it: pad, then convolve
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, padding = pad(x, layer._reversed_padding_repeated_twice, mode=mode), 0
        geometry = (layer.stride, padding, layer.dilation, layer.groups)
        return _Path.apply(output, x, matrix, geometry, listener)  # type: ignore[no-any-return, no-untyped-call]


class LayerwiseState(FeedbackState):
    """The matrices of a module's layers, by the layer's name.

    Attributes:
        active: whether a forward pass of the aligned module is running.
        inputs: of the layers that are being called, innermost last.
    """

    def __init__(self, rule: LayerwiseFeedback, module: nn.Module, seed: int) -> None:
        """
        Args:
            rule: which matrices.
            module: the plain module.
            seed: of what is drawn.
        """
        super().__init__((), seed)
        self.rule = rule
        self.active = False
        self.inputs: list[Tensor] = []
        self._anew: dict[str, Tensor] = {}
        self.compiles = rule.draws != "every pass"  # a draw from a seed is outside of a graph
        if rule.draws == "every pass":
            self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.layers: dict[str, float] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, LAYERS):
                self.layers[name] = xavier(layer.weight)
                if rule.draws == "once":
                    self.register_buffer(key(name), self._draw(name, layer.weight, "feedback"))

    def matrix(self, name: str, weight: Tensor) -> Tensor:
        """The matrix through which the layer called `name` hands errors down in this pass.

        Args:
            name: the layer.
            weight: its weight now.
        """
        drawn = None
        if self.rule.draws == "once":
            drawn = self.get_buffer(key(name))
        elif self.rule.draws == "every pass":
            if name not in self._anew:
                self._anew[name] = self._draw_anew(name, weight)
            drawn = self._anew[name]
        return self.rule.matrix(weight, drawn, self.layers[name] * self.rule.scale)

    def listener(self, name: str) -> Listener | None:
        """Who is told, in the backward pass, of the error at the layer called `name` and of its input; None: nobody."""
        return None

    def _draw_anew(self, name: str, weight: Tensor) -> Tensor:
        return self._draw(name, weight, f"feedback of pass {int(self.get_buffer('passes'))}")

    def _draw(self, name: str, weight: Tensor, stream: str) -> Tensor:
        """Entries of variance 1, shaped and placed like the weight; the same again from the same `state_dict`."""
        seed = derive_seed(int(self.get_buffer("seed")), f"{stream} for {name}")
        rows = weight.shape[0]
        return (
            RandomMatrix(weight.numel() // rows, rows, seed, self.rule.law).values.view_as(weight).to(weight)
        )

    def install(self, module: nn.Module) -> None:
        for name in self.layers:
            layer = module.get_submodule(name)
            layer.register_forward_pre_hook(_Entry(self, name), with_kwargs=True)
            layer.register_forward_hook(_Exit(self, name))

    def begin(self) -> None:
        self.active = True

    def end(self) -> None:
        self.active = False
        self.inputs = []
        if self.rule.draws == "every pass":
            self._anew = {}
            self.get_buffer("passes").add_(1)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle starts between two passes."""
        return {**self.__dict__, "active": False, "inputs": [], "_anew": {}}


class LayerwiseFeedback(Rule):
    """A rule that differs from backpropagation in the matrix of every linear and convolutional layer alone.

    Attributes:
        draws: when random matrices are drawn.
        scale: size of the matrix's entries, relative to the layer's Xavier standard deviation
            sqrt(2 / (fan_in + fan_out)).
        law: of the entries that are drawn, a name of `backends.matrix.DISTRIBUTIONS`.
    """

    requires = frozenset({Requires.BACKWARD})
    cuts = False
    draws: ClassVar[Draws] = "once"
    law = "normal"

    def __init_subclass__(cls, **arguments: Any) -> None:
        """A matrix of every pass tells records of one pass from those of the next.

        A private batch comes in as many passes as it is large: one record more moves others to another pass, and all
        later passes to other matrices.
        """
        super().__init_subclass__(**arguments)
        if cls.draws == "every pass":
            cls.refused = Refusal.NO_SUM

    def __init__(self, scale: float = 1.0) -> None:
        """
        Args:
            scale: size of the entries, relative to the layer's Xavier standard deviation.
        Raises:
            UsageError: scale is not positive and finite.
        """
        if not (isinstance(scale, int | float) and 0 < scale < math.inf):
            raise UsageError(f"rule option scale={scale!r}: it must be a positive number")
        self.scale = float(scale)

    @abstractmethod
    def matrix(self, weight: Tensor, drawn: Tensor | None, size: float) -> Tensor:
        """B_l, shaped like the weight.

        Args:
            weight: W_l now.
            drawn: this layer's random entries of variance 1, shaped like the weight; None where the rule draws none.
            size: what the entries are scaled to.
        """

    def state(self, placed: Placement) -> FeedbackState:
        check_layerwise(placed.module, placed.example, LAYERS, self.name)
        return LayerwiseState(self, placed.module, placed.seed)


def xavier(weight: Tensor) -> float:
    """sqrt(2 / (fan_in + fan_out)) of a layer's weight, kernels included (Glorot & Bengio 2010)."""
    positions = math.prod(weight.shape[2:])
    return math.sqrt(2.0 / ((weight.shape[0] + weight.shape[1]) * positions))
