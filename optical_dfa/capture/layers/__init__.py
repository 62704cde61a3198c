"""Which layers can be trained privately, and what one call of each contributes to its parameters.

A new layer type is one function of this room and one line in `LAYERS`. Other modules with parameters of their own are
called again, record by record (`own`); what cannot be served so is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from noise_models.errors import UsageError
from optical_dfa.capture.layers.gains import group_norm, instance_norm, layer_norm, prelu, rms_norm
from optical_dfa.capture.layers.own import own_parameters, refuse_own, uses_in_call
from optical_dfa.capture.layers.pairs import Common, Pairs
from optical_dfa.capture.layers.products import (
    appended,
    bilinear,
    convolution,
    linear,
    product,
    transposed_convolution,
)
from optical_dfa.capture.layers.tables import embedding, embedding_bag
from optical_dfa.capture.unfused.attention import Attention
from optical_dfa.capture.unfused.product import Appended, Product
from optical_dfa.capture.unfused.recurrent import Cell, Recurrent

LAYERS: dict[type[nn.Module], Callable[..., Pairs]] = {
    nn.Linear: linear,
    Product: product,
    Appended: appended,
    nn.Bilinear: bilinear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.PReLU: prelu,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding_bag,
}


_UNFUSED = (Attention, Recurrent, Cell)
_PARTS = (Product, Appended)


def contributions(layer: nn.Module, x: Tensor, delta: Tensor, rest: Sequence[Tensor | Common]) -> Pairs:
    """What one call of a trained layer contributes to each of its parameters.

    Args:
        x: the layer's first input, records first.
        delta: the teaching signal at its output, records first.
        rest: what else it was called with.
    Raises:
        UsageError: the layer was called or set up in a way that cannot be trained privately.
    """
    known = LAYERS.get(type(layer))
    if known is None:
        return own_parameters(layer, x, delta, rest)
    given = [one.value if isinstance(one, Common) else one for one in rest]
    return known(layer, x, delta, *given)


def uses(layer: nn.Module, x: Tensor, rest: Sequence[Tensor | Common]) -> Counter[int]:
    """How many uses of each parameter one call of a trained layer records, by the parameter's identity."""
    if isinstance(layer, _PARTS):
        return Counter(id(one.value) for one in rest if isinstance(one, Common))
    if type(layer) in LAYERS:
        return Counter(id(p) for p in layer.parameters(recurse=False))
    return uses_in_call(layer, x, rest)


def trained_layers(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """The layers that hold the trained parameters, each checked to be supported.

    A module with parameters of its own is one layer, with all that is below it.

    Raises:
        UsageError: naming a layer that is not, or a forward that was replaced.
    """
    trained = {id(p) for p in parameters.values()}
    holding: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if "forward" in vars(part) and any(p.requires_grad for p in part.parameters()):
            raise UsageError(
                f"the forward of {name or 'the module'} was replaced, so what it does with its parameters is not "
                "known; put a module of its own in its place (low-rank factors as two nn.Linear), or freeze it"
            )
        # A weight that is computed from other parameters in every call is used by the layer, not by its parts.
        own = part.parameters(recurse=is_parametrized(part))
        if isinstance(part, _PARTS) or any(id(p) in trained for p in own):
            holding[name] = part
    # What is below a layer is called by it, and recorded with it; unfused layers are recorded part by part.
    within = {
        id(inner)
        for part in holding.values()
        for inner in part.modules()
        if inner is not part and not (isinstance(part, _UNFUSED) and isinstance(inner, _PARTS))
    }
    layers = {
        name: part
        for name, part in holding.items()
        if id(part) not in within and not isinstance(part, _UNFUSED)
    }
    for name, part in layers.items():
        if type(part) not in LAYERS:
            refuse_own(name, part)
    return layers
