"""Fused layers of torch's taken apart: parts with the same parameters, outputs and state_dict, made of products.

A private run records what is called layer by layer, and nothing is recorded inside one operation. So `unfuse` puts a
part that is written out in the place of each trained one, for the time of the run; `restore` puts torch's own back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from noise_models.errors import UsageError
from optical_dfa.capture.unfused.attention import Attention
from optical_dfa.capture.unfused.recurrent import Cell, Recurrent

UNFUSED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.MultiheadAttention: Attention,
    nn.RNN: Recurrent,
    nn.GRU: Recurrent,
    nn.LSTM: Recurrent,
    nn.RNNCell: Cell,
    nn.GRUCell: Cell,
    nn.LSTMCell: Cell,
}

# Where a part or a setting was put, under which name, and what was there.
Replaced = tuple[nn.Module, str, Any]


def unfuse(module: nn.Module) -> list[Replaced]:
    """Take the trained fused layers of a module apart, in place. They keep their parameters, and so its state_dict.

    Raises:
        UsageError: one of them has hooks of its own.
    """
    made: dict[int, nn.Module] = {}
    replaced: list[Replaced] = []
    found = [
        (name, parent, key, child)
        for name, parent in module.named_modules()
        for key, child in parent._modules.items()
        if type(child) in UNFUSED and any(p.requires_grad for p in child.parameters())
    ]
    for name, _, key, child in found:
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks:
            raise UsageError(
                f"{name}{'.' if name else ''}{key} (nn.{type(child).__name__}) has hooks, which a private run, that "
                "takes it apart, would leave out; take them off"
            )
    for _, parent, key, child in found:
        if id(child) not in made:
            made[id(child)] = UNFUSED[type(child)](child).train(child.training)
        setattr(parent, key, made[id(child)])
        replaced.append((parent, key, child))
    for part in module.modules():
        # In evaluation it would pack what is not padding of all records into one tensor.
        if isinstance(part, nn.TransformerEncoder) and part.use_nested_tensor:
            part.use_nested_tensor = False
            replaced.append((part, "use_nested_tensor", True))
    return replaced


def restore(replaced: Sequence[Replaced]) -> None:
    """Put back what was there before `unfuse`."""
    for parent, key, before in replaced:
        if isinstance(before, nn.Module):
            before.train(parent.get_submodule(key).training)
        setattr(parent, key, before)
