"""Random numbers of a private forward pass, drawn from a secret cryptographic stream in place of torch's.

torch's CPU generator keeps 32 bits of its seed, so whoever tries them all knows every mask, and how a record that joins
the batch shifts the masks of those after it (THEORY T3 wants the records' contributions independent). Here every
number is new and nobody's to guess: a mask of one record says nothing of another's, wherever it stands in the batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import on_cpu
from noise_models.randomness.generator import NoiseGenerator


def draw(name: str, generator: NoiseGenerator, call: Any, given: Any) -> Any:
    """What a random operation returns, drawn from `generator`.

    Args:
        name: of the operation, such as "bernoulli"; those that write to their first argument are told by `given`.
        generator: the secret stream.
        call: arguments by name (`Call.get`).
        given: the tensor to fill, or one of the shape, type and device to return.
    Raises:
        UsageError: the operation is not one of those below.
    """
    if name not in DRAWN:
        raise UsageError(
            f"{name} draws at random in a way that a private pass has no secret stream for; use dropout, "
            "torch.rand, torch.randn or bernoulli_"
        )
    return DRAWN[name](generator, call, given)


def uniforms(generator: NoiseGenerator, out: Tensor) -> Tensor:
    """Fill `out` with independent uniform numbers on (0, 1), of 53 bits, or 24 where the type has no more."""
    count = out.numel()
    if out.dtype == torch.float64:
        drawn = torch.from_numpy((generator.uint64(count) >> np.uint64(11)).astype(np.float64) + 0.5)
        return out.copy_(drawn.mul_(2.0**-53).view(out.shape))
    words = generator.uint64((count + 1) // 2).view(np.uint32)[:count]
    drawn = torch.from_numpy((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5))
    return out.copy_(drawn.mul_(2.0**-23).view(out.shape))


def _bernoulli(generator: NoiseGenerator, call: Any, out: Tensor) -> Tensor:
    p = call("p", 0.5)
    if p is None or isinstance(p, torch.Generator):
        p = 0.5
    source = call("self")
    if isinstance(p, Tensor) or (out is not source and call("p") is None):
        p = p if isinstance(p, Tensor) else source
        drawn = uniforms(generator, torch.empty(out.shape))
        return out.copy_(drawn < on_cpu(p))
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"a mask is drawn with probability {p}; it must lie between 0 and 1")
    words = generator.uint64((out.numel() + 1) // 2).view(np.uint32)[: out.numel()]
    threshold = math.floor(p * 2.0**32)
    mask = words < np.uint32(threshold) if threshold < 2**32 else np.ones(out.numel(), np.bool_)
    return out.copy_(torch.from_numpy(mask).view(out.shape))


def _uniform(generator: NoiseGenerator, call: Any, out: Tensor) -> Tensor:
    low, high = call("from", 0.0), call("to", 1.0)
    return uniforms(generator, out).mul_(high - low).add_(low)


def _rand(generator: NoiseGenerator, call: Any, out: Tensor) -> Tensor:
    return uniforms(generator, out)


def _normal(generator: NoiseGenerator, call: Any, out: Tensor) -> Tensor:
    mean, std = call("mean", 0.0), call("std", 1.0)
    drawn = generator.normal_(torch.empty(out.shape, dtype=torch.float64))
    return out.copy_(drawn.mul_(std).add_(mean))


def _randn(generator: NoiseGenerator, call: Any, out: Tensor) -> Tensor:
    return out.copy_(generator.normal_(torch.empty(out.shape, dtype=torch.float64)))


def _exponential(generator: NoiseGenerator, call: Any, out: Tensor) -> Tensor:
    drawn = uniforms(generator, torch.empty(out.shape, dtype=torch.float64))
    return out.copy_(drawn.log_().div_(-call("lambd", 1.0)))


def _rrelu(generator: NoiseGenerator, call: Any, out: Tensor) -> Tensor:
    """Slopes of the negative inputs, written to `noise`, which the backward pass reads."""
    x, noise = call("self"), call("noise")
    lower, upper = call("lower", 1 / 8), call("upper", 1 / 3)
    if not call("training", False):
        slope = (lower + upper) / 2
        return torch.where(x > 0, x, x * slope)
    slopes = uniforms(generator, torch.empty_like(x)).mul_(upper - lower).add_(lower)
    noise.copy_(torch.where(x > 0, torch.ones_like(x), slopes))
    return torch.mul(x, noise)


def _dropout(generator: NoiseGenerator, call: Any, out: Tensor) -> tuple[Tensor, Tensor]:
    x, p, training = call("input"), call("p", 0.5), call("train", True)
    if training is False or p == 0.0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = uniforms(generator, torch.empty(x.shape)).to(x.device) >= p
    return torch.mul(x, mask.to(x.dtype) / (1 - p if p < 1 else 1.0)), mask


DRAWN = {
    "bernoulli": _bernoulli,
    "uniform": _uniform,
    "rand": _rand,
    "rand_like": _rand,
    "normal": _normal,
    "randn": _randn,
    "randn_like": _randn,
    "exponential": _exponential,
    "rrelu_with_noise": _rrelu,
    "native_dropout": _dropout,
}
