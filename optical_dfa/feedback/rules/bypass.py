"""A feedback point whose signal goes to its input past its derivative, times numbers of the rule's own or as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Bypass(torch.autograd.Function):
    """A point's output; its backward hands the signal to the point's input, times `gate` where that is given.

    Args of `apply`: the point's input, its output, and the gate, all of one shape.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, output: Tensor, gate: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(*(() if gate is None else (gate,)))
        return output.detach()  # not a view, which what follows could not work on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        for gate in ctx.saved_tensors:
            grad = grad * gate.to(grad.dtype)
        return grad, None, None
