"""Transfer: a trained run's convolutions, frozen, under fully connected layers that a feedback rule trains.

The recipe by which SSDFA was taken to ImageNet (Crafton et al. 2019): no rule, but a start. The layers that are frozen
need no feedback point; the others keep their own random start.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from noise_models.errors import UsageError
from optical_dfa.runs.folder import CHECKPOINT

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_SAVED = "module.module."  # of a checkpoint, and of the aligned module in it


def take_convolutions(network: nn.Module, run: Path) -> list[str]:
    """Load the convolutions, and the norms beside them, from the checkpoint of `run`, and freeze them.

    Args:
        network: of the same specification as that run's.
        run: a run folder.
    Returns:
        names of the layers that are frozen now.
    Raises:
        UsageError: no convolutions here, no readable checkpoint there, or one of another network.
    """
    layers = {name: part for name, part in network.named_modules() if isinstance(part, CONVOLUTIONS)}
    if not layers:
        raise UsageError("transfer needs a network with convolutions, such as --model cnn")
    layers |= {name: part for name, part in network.named_modules() if isinstance(part, _NORMS)}
    path = run / CHECKPOINT
    try:
        with safe_open(path, framework="pt") as file:
            for name, layer in layers.items():
                for own, target in layer.state_dict(keep_vars=True).items():
                    source = file.get_tensor(f"{_SAVED}{name}.{own}")
                    if source.shape != target.shape:
                        raise UsageError(
                            f"transfer is from {run}, whose {name}.{own} has shape {list(source.shape)}, not "
                            f"{list(target.shape)}; give a run of the same --model and data shape"
                        )
                    with torch.no_grad():
                        target.copy_(source)
                layer.requires_grad_(False)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"transfer is from {run}, whose {CHECKPOINT} does not serve ({reason}); give the folder of a run of the "
            "same --model"
        ) from None
    return list(layers)
