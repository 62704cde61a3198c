"""What each of several workers holds of a module and its optimizer, and how the first one comes by the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optical_dfa.feedback.stages import Stage
from privacy.workers import Workers


class Holdings:
    """Parameters, buffers and optimizer state, of which every worker holds those of its own stage."""

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, stages: Sequence[Stage], workers: Workers
    ) -> None:
        """
        Args:
            module: the plain one, whole.
            optimizer: over its parameters, of torch's kind.
            stages: of all workers.
        """
        self._module, self._optimizer, self._workers = module, optimizer, workers
        self._stages, self._stage = stages, stages[workers.rank]
        self._groups = [list(group["params"]) for group in optimizer.param_groups]

    def leave_others(self) -> None:
        """Hold what is this worker's own stage's alone."""
        mine = {id(p) for layer in self._stage.layers for p in layer.parameters()}
        for group, parameters in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["params"] = [p for p in parameters if id(p) in mine]
        for p in self._module.parameters():
            if id(p) not in mine:
                p.grad = None
                p.data = p.data.new_full((), math.nan).expand(p.shape)  # of one number's memory
                self._optimizer.state.pop(p, None)

    def collect(self) -> None:
        """Bring parameters, buffers and optimizer state of all stages to the first worker; all take part.

        Raises:
            WorkerLostError: another worker is gone.
        """
        state = self._optimizer_state() if not self._workers.first else []
        listed = [(place, name, _kind(value)) for place, name, value in state]
        said = self._workers.gather(listed)
        if not self._workers.first:
            tensors = [self._named[name] for name in self._stage.names]
            tensors += [value for _, _, value in state if isinstance(value, Tensor)]
            for handed in [self._workers.pass_on(tensor, 0) for tensor in tensors]:
                handed.wait()
            return
        for group, parameters in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["params"] = list(parameters)
        flat = [p for parameters in self._groups for p in parameters]
        for stage, entries in zip(self._stages[1:], said[1:], strict=True):
            for name in stage.names:
                held = self._named[name]
                held.data = self._workers.take(torch.empty_like(held.contiguous()), stage.number).wait()
            for place, name, kind in entries:
                value: Any = kind
                if isinstance(kind, list):
                    shape, dtype, device = kind
                    value = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
                    value = self._workers.take(value, stage.number).wait()
                self._optimizer.state[flat[place]][name] = value

    @property
    def _named(self) -> dict[str, Tensor]:
        """Under every name that they have."""
        module = self._module
        return {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }

    def _optimizer_state(self) -> list[tuple[int, str, Any]]:
        """(number of the parameter, name, value) of what the optimizer keeps."""
        flat = [p for parameters in self._groups for p in parameters]
        return [
            (place, name, value)
            for place, p in enumerate(flat)
            for name, value in self._optimizer.state.get(p, {}).items()
        ]


def _kind(value: Any) -> Any:
    """A number as it is; of a tensor shape, type and device (JSON types)."""
    if not isinstance(value, Tensor):
        return value
    return [list(value.shape), str(value.dtype).removeprefix("torch."), str(value.device)]
