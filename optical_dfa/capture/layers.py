"""Which layers can be trained privately, and what one call of each contributes to its parameters.

A new layer type is one function here and one line in `LAYERS`; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn.functional import group_norm as normalise_groups
from torch.nn.functional import layer_norm as normalise_layer
from torch.nn.functional import pad

from noise_models.errors import UsageError
from optical_dfa.capture.contributions import Contribution, Kernel, Lookup, Outer, OuterSum, RowContribution
from optical_dfa.feedback.advice import own_class

LayerContributions = dict[str, Contribution]


def linear(layer: nn.Linear, x: Tensor, delta: Tensor) -> LayerContributions:
    """X_i = sum over positions of delta h^T; the bias gets the sum of delta."""
    if delta.ndim == 2:
        return {"weight": Outer(delta, x), "bias": RowContribution(delta)}
    rows, cols = delta.flatten(1, -2), x.flatten(1, -2)
    return {"weight": OuterSum([(rows, cols)]), "bias": RowContribution(rows.sum(1))}


def convolution(layer: nn.Conv1d | nn.Conv2d, x: Tensor, delta: Tensor) -> LayerContributions:
    """A kernel used once at every output position."""
    padding = [0] * len(layer.kernel_size)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    else:
        padding = list(layer.padding)
    weight = Kernel(
        x,
        delta,
        layer.weight.shape,
        stride=layer.stride,
        padding=padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    return {"weight": weight, "bias": RowContribution(delta.flatten(2).sum(2))}


def layer_norm(layer: nn.LayerNorm, x: Tensor, delta: Tensor) -> LayerContributions:
    """The gain multiplies the normalised input; both vectors are summed over the record's positions."""
    normalised = normalise_layer(x, layer.normalized_shape, None, None, layer.eps)
    shape = (len(x), -1, layer.weight.numel())
    return {
        "weight": RowContribution((delta * normalised).reshape(shape).sum(1)),
        "bias": RowContribution(delta.reshape(shape).sum(1)),
    }


def group_norm(layer: nn.GroupNorm, x: Tensor, delta: Tensor) -> LayerContributions:
    """As for LayerNorm, a gain a channel."""
    normalised = normalise_groups(x, layer.num_groups, None, None, layer.eps)
    return {
        "weight": RowContribution(
            (delta * normalised).flatten(2).sum(2) if x.ndim > 2 else delta * normalised
        ),
        "bias": RowContribution(delta.flatten(2).sum(2) if x.ndim > 2 else delta),
    }


def embedding(layer: nn.Embedding, x: Tensor, delta: Tensor) -> LayerContributions:
    """delta lands in the rows of the tokens."""
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        raise UsageError(
            "a private Embedding takes neither max_norm, scale_grad_by_freq nor sparse; leave them out"
        )
    tokens = x.reshape(len(x), -1)
    rows = delta.reshape(len(x), tokens.shape[1], layer.embedding_dim)
    return {"weight": Lookup(tokens, rows, layer.num_embeddings, layer.padding_idx)}


LAYERS: dict[type[nn.Module], Callable[..., LayerContributions]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.Embedding: embedding,
}

# Layers that mix records or keep un-noised statistics of them, with what to use instead.
MIXING: dict[str, str] = {
    "_BatchNorm": "nn.GroupNorm",
    "_InstanceNorm": "nn.GroupNorm, or nn.InstanceNorm with affine=False and track_running_stats=False",
    "_NormBase": "nn.GroupNorm",
    "_LazyNormBase": "nn.GroupNorm",
}


def held_statistics(module: nn.Module) -> list[nn.Module]:
    """Batch normalisation that normalises by constants: statistics that are there, in evaluation mode, all frozen."""
    return [part for part in module.modules() if _is_held(part)]


def _is_held(part: nn.Module) -> bool:
    return (
        isinstance(part, nn.modules.batchnorm._BatchNorm)
        and not part.training
        and part.running_mean is not None
        and not any(p.requires_grad for p in part.parameters())
    )


def refuse_mixing(module: nn.Module) -> None:
    """Refuse layers whose update is not a sum over records, trainable or not.

    Raises:
        UsageError: naming the layer and its replacement.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.instancenorm._InstanceNorm) and not (
            part.affine or part.track_running_stats
        ):
            continue
        if _is_held(part):
            continue
        for base in type(part).__mro__:
            if base.__name__ in MIXING:
                raise UsageError(
                    f"{name or 'the module'} is a {type(part).__name__}, which mixes records or keeps un-noised "
                    f"statistics of them; replace it with {MIXING[base.__name__]}{_holding(part)}"
                )


def _holding(part: nn.Module) -> str:
    """What else may be done with batch normalisation that has statistics."""
    if not isinstance(part, nn.modules.batchnorm._BatchNorm) or part.running_mean is None:
        return ""
    return ", or hold its statistics constant: eval() and requires_grad_(False) on it before make_private"


def trained_layers(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """The layers that hold the trained parameters, each checked to be supported."""
    trained = {id(p) for p in parameters.values()}
    layers: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if "forward" in vars(part) and any(p.requires_grad for p in part.parameters()):
            raise UsageError(
                f"the forward of {name or 'the module'} was replaced, so what it does with its parameters is not "
                "known; put a module of its own in its place (low-rank factors as two nn.Linear), or freeze it"
            )
        if not any(id(p) in trained for p in part.parameters(recurse=False)):
            continue
        if type(part) not in LAYERS:
            instead = own_class(part) or ", ".join(layer.__name__ for layer in LAYERS)
            raise UsageError(
                f"{name or 'the module'} ({type(part).__name__}) cannot be trained privately; "
                f"freeze its parameters, or use {instead}"
            )
        layers[name] = part
    return layers
