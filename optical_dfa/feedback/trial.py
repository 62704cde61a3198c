"""One step of a copy of a module that is run again in its backward pass (activation checkpointing)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noise_models.base import NoNoise
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.cuts import refuse_hidden, run
from optical_dfa.feedback.points import recomputed

if TYPE_CHECKING:
    from optical_dfa.feedback.aligned import AlignedModule


class _StandIn(ProjectionBackend):
    """For a device that is not to be used yet: exact, of rank 1."""

    name = "stand-in"

    def __init__(self, device: ProjectionBackend) -> None:
        super().__init__(device.in_features, device.out_features)
        self.std, self.distribution, self.noise = device.std, device.distribution, NoNoise()
        self.answer = NoiseGenerator.seeded(0, "stand-in").normal_(torch.empty(device.out_features))

    def _project(self, e: Tensor) -> Tensor:
        return e.sum(1, keepdim=True) * self.answer.to(e) * self.std

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def runs_again(module: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether a backward pass calls parts of the plain module again, as activation checkpointing does.

    Raises:
        UsageError: checkpoints that hide what they call from the pass.
    """
    twin, called = copy.deepcopy(module), []
    for part in twin.modules():
        part.register_forward_pre_hook(lambda *_: called.append(recomputed()))
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        output = run(twin, [x.clone().requires_grad_(x.is_floating_point()) for x in inputs])
        refuse_hidden(output)
        if output.requires_grad:
            try:
                output.sum().backward()
            except RuntimeError:
                return True  # let the trial of a step say it
    return any(called)


def try_step(aligned: AlignedModule) -> None:
    """Take one step of a copy on two random records: it must be possible, and teach every parameter that it should.

    Raises:
        UsageError: a pass that is not possible, or a parameter that is taught nothing.
    """
    trained = list(aligned.trained_parameters())
    if not trained:
        return
    shared: dict[int, Any] = {}
    device = aligned.backend
    if device is not None and not isinstance(device.noise, NoNoise):
        shared[id(device)] = _StandIn(device)
    twin = copy.deepcopy(aligned, shared)
    named = dict(twin.module.named_parameters())
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        output = run(twin, aligned.example(2))
        output.backward(_error(output))
    skipped = len(twin._tape.called) < len(twin.points)  # a block left out at random
    untaught = [name for name in trained if named[name].grad is None]
    if twin.rule.cuts and untaught and not skipped:
        raise UsageError(
            f"on random records {untaught[0]} learns nothing by rule {aligned.rule.name}: something in the module runs "
            "around the hooks or hides its graph; align the module without it (checkpointing, wrappers)"
        )


def _error(output: Tensor) -> Tensor:
    """Errors like those of a cross entropy over two records: below 0 at the first component alone."""
    stream = torch.Generator().manual_seed(0)
    drawn = torch.randn(output.shape, generator=stream, dtype=torch.float64).to(output)
    if output.ndim < 2 or output.shape[-1] < 2:
        return drawn / 2
    target = torch.zeros_like(drawn)
    target[..., 0] = 1
    return (drawn.softmax(-1) - target) / 2
