"""Checkpoints without pickle: weights, optimizer state and the ledger's head in one safetensors file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from noise_models.drafts import replacing
from noise_models.errors import UsageError
from noise_models.places import on_cpu
from privacy.ledger import Ledger
from privacy.weights import name_weights, names_weights, tensors_digest

# How a run goes on: with the library, and with the command.
REOPEN = (
    "PrivacyEngine(ledger=FILE, resume=True), make_private, load_checkpoint; of the command train --resume"
)
_OPTIMIZER = "optimizer."
_MODULE = "module."


@dataclass(frozen=True)
class Position:
    """Where a checkpoint stands in its run.

    Attributes:
        step: steps the weights have seen.
        releases: releases in the ledger at that time (0 without one).
        ledger_head: the ledger's head at that time, whose row names these very tensors; "" without one.
        seconds: time spent training so far.
        noise_position: where the stream of the device's seeded noise stood, 0 where its key is secret.
    """

    step: int
    releases: int
    ledger_head: str
    seconds: float
    noise_position: int = 0


def save(path: Path, module: nn.Module, optimizer: Optimizer, position: Position, ledger: Ledger) -> Position:
    """Write a checkpoint whole or not at all: a crash leaves the one before.

    The ledger names its tensors first, so that no weights lie beside a ledger that does not know them.

    Returns:
        the position, at the head of that row.
    Raises:
        UsageError: ledger or file cannot be written.
    """
    tensors = {_MODULE + name: _plain(value) for name, value in module.state_dict().items()}
    state = optimizer.state_dict()["state"]
    numbers: dict[str, Any] = {}
    for index, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{index}.{name}"] = _plain(value)
            else:
                numbers[f"{index}.{name}"] = value
    head = name_weights(ledger, tensors_digest(tensors, tensors.__getitem__), position.step)
    position = replace(position, ledger_head=head)
    metadata = {
        "step": str(position.step),
        "releases": str(position.releases),
        "ledger_head": position.ledger_head,
        "seconds": repr(position.seconds),
        "noise_position": str(position.noise_position),
        "optimizer": json.dumps(numbers),
    }
    _write(path, tensors, metadata)
    return position


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """
    Raises:
        UsageError: the file cannot be written; the one before stays.
    """
    try:
        with replacing(path) as draft:
            draft.touch()
            mode = (
                draft.stat().st_mode
            )  # as of every other file of the run; safetensors makes its own private
            save_file(tensors, draft, metadata=metadata)
            draft.chmod(mode)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is on disk before anything that is written after it
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"checkpoint {path} cannot be written ({_line(error)}); the one before is kept: make room, then resume "
            f"from it ({REOPEN})"
        ) from None


def load(path: Path, module: nn.Module, optimizer: Optimizer, ledger: Ledger | None) -> Position:
    """Put module and optimizer where the checkpoint left them.

    Raises:
        UsageError: an unreadable file, one of another network, rule or device, or one that `ledger` does not know.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        position = Position(
            int(metadata["step"]),
            int(metadata["releases"]),
            metadata["ledger_head"],
            float(metadata["seconds"]),
            int(metadata["noise_position"]),
        )
        if min(position.step, position.releases, position.noise_position) < 0:
            raise ValueError("a negative position")
        if not 0 <= position.seconds < math.inf:
            raise ValueError(f"{position.seconds} seconds")
        numbers = dict(json.loads(metadata["optimizer"]))
        state = _optimizer_state(tensors, numbers, optimizer)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"checkpoint {path} cannot be read ({_line(error)}); restore it, or train again"
        ) from None
    weights = {name.removeprefix(_MODULE): t for name, t in tensors.items() if name.startswith(_MODULE)}
    try:
        module.load_state_dict(weights)
    except UsageError:
        raise
    except (RuntimeError, AttributeError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"checkpoint {path} is of another network ({_line(error)}); restore it, or train again"
        ) from None
    _refuse_unknown(path, position, tensors, ledger)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return position


def _refuse_unknown(
    path: Path, position: Position, tensors: Mapping[str, Tensor], ledger: Ledger | None
) -> None:
    if ledger is None or not ledger.contains(position.ledger_head):
        raise UsageError(
            f"{path} is newer than its ledger, or of another one: releases are missing here, so the budget is "
            f"unknown; go on with the ledger it was kept under ({REOPEN}), or train again"
        )
    digest = tensors_digest(tensors, tensors.__getitem__)
    if names_weights(ledger, position.ledger_head, digest, position.step) is False:
        raise UsageError(
            f"{path} does not hold the weights that its ledger names at step {position.step}, so what they have seen "
            "is unknown; restore the checkpoint, or train again"
        )


def _optimizer_state(
    tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], optimizer: Optimizer
) -> dict[int, dict[str, Any]]:
    """Entries by parameter, as `save` named them. Raises ValueError where they are not this optimizer's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    named = {n.removeprefix(_OPTIMIZER): t for n, t in tensors.items() if n.startswith(_OPTIMIZER)}
    entries: dict[int, dict[str, Any]] = {}
    for key, value in {**named, **numbers}.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"optimizer entry {key!r} belongs to none of {len(parameters)} parameters")
        shape = parameters[int(index)].shape
        if isinstance(value, Tensor) and value.shape not in (shape, ()):  # () is Adam's count of steps
            raise ValueError(f"optimizer entry {key!r} has shape {tuple(value.shape)}, not {tuple(shape)}")
        entries.setdefault(int(index), {})[name] = value
    return entries


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[-1].strip()


def _plain(value: Tensor) -> Tensor:
    return on_cpu(value).clone()
