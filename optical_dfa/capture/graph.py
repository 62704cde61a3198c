"""Autograd functions written in Python: what their backward pass does is not seen in the operations of the forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from noise_models.errors import UsageError

_OURS = "optical_dfa."


def refuse_unknown_functions(roots: Sequence[Tensor], leaves: Iterable[Tensor | None]) -> None:
    """Refuse a graph with a function of the user's own, or a leaf of its own, below one of the roots.

    Args:
        leaves: where the graph may end: what else requires a gradient would get an un-noised one.
    Raises:
        UsageError: naming the function.
    """
    known = {id(x) for x in leaves}
    todo: list[Any] = [x.grad_fn for x in roots if x.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if isinstance(node, BackwardCFunction):
            function = getattr(node, "_forward_cls", type(node))
            if not function.__module__.startswith(_OURS):
                raise _unknown(function.__name__)
        elif getattr(node, "variable", None) is not None and id(node.variable) not in known:
            raise UsageError(
                "the module has a tensor that requires a gradient and is no parameter (a buffer or constant with "
                "requires_grad=True?), which would get an un-noised one; make it a parameter, or take requires_grad off"
            )
        elif "CppNode" in node.name():
            raise _unknown(node.name())
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                todo.append(child)


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"the module computes gradients by a function of its own ({name}: an autograd function, a backward hook or "
        "reentrant checkpointing), which may mix records in the backward pass; use torch's operations"
    )
