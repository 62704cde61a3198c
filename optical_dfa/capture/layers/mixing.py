"""Layers that mix records, or keep un-noised statistics of them."""

from __future__ import annotations

from torch import nn

from noise_models.errors import UsageError

# Layers that mix records or keep un-noised statistics of them, with what to use instead.
MIXING: dict[str, str] = {
    "_BatchNorm": "nn.GroupNorm",
    "_InstanceNorm": "nn.GroupNorm, or nn.InstanceNorm with track_running_stats=False",
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
        if isinstance(part, nn.modules.instancenorm._InstanceNorm) and not part.track_running_stats:
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
