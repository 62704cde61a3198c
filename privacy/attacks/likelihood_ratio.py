"""White-box distinguishing attack through the production release path: was the record in, or not?

The adversary of THEORY, Setting knows all other records, the code, the device's matrix and calibration, and sees every
released update. It steps the real module, optimizer and loader in both worlds, with and without its record, and
scores every trial (T consecutive releases) with the log-likelihood ratio of the subsampled mixture,

    LLR = sum_t log((1 - q) + q f(r_t - S - v) / f(r_t - S)),

where S is the others' sum, v what the record changes and f the law of the noise: the most powerful test there is
(Neyman and Pearson), hence tight lower bounds on epsilon (Nasr et al. 2023, arXiv:2302.07956).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noise_models.errors import UsageError
from noise_models.places import on_cpu
from privacy.attacks.laws import Array, NoiseLaw
from privacy.auditing.bounds import Bound, clopper_pearson_bound, gaussian_family_bound


class ReleasedSums:
    """Steps a private training loop for ever and reads what every step releases.

    The weights must stand still (learning rate 0), so that all releases answer the same question.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        loader: Any,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        expected_batch_size: float,
    ) -> None:
        """
        Args:
            module, optimizer, loader: what `PrivacyEngine.make_private` returned; batches are (input, target).
            loss: the loss of a batch, in the reduction the module was aligned with.
            expected_batch_size: public; undoes the release's division.
        Raises:
            UsageError: the optimizer moves the weights.
        """
        if any(group["lr"] != 0 for group in optimizer.param_groups):
            raise UsageError(
                "the attacked optimizer moves the weights; set its learning rate to 0 so that every release answers "
                "the same question"
            )
        self._module = module
        self._optimizer = optimizer
        self._loss = loss
        self._expected_batch_size = expected_batch_size
        self._batches = self._forever(loader)

    @staticmethod
    def _forever(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

    def take(
        self,
        trials: int,
        steps: int = 1,
        keep: Callable[[Array], Array] | None = None,
        tell: Callable[[], None] | None = None,
    ) -> Array:
        """The noised sums of `trials · steps` consecutive releases, shape (trials, steps, dimension).

        Args:
            trials, steps: how many.
            keep: what the adversary keeps of each sum, a function of it; None keeps all.
            tell: called after every trial.
        """
        rows = []
        for _ in range(trials):
            for _ in range(steps):
                released = self._release()
                rows.append(released if keep is None else keep(released))
            if tell is not None:
                tell()
        return np.stack(rows).reshape(trials, steps, -1)

    def _release(self) -> Array:
        inputs, targets = next(self._batches)
        self._optimizer.zero_grad()
        self._loss(self._module(inputs), targets).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        seen = [p.grad.flatten() for p in self._module.parameters() if p.grad is not None]
        return np.asarray(on_cpu(torch.cat(seen), torch.float64).numpy() * self._expected_batch_size)


@dataclass(frozen=True)
class Knowledge:
    """What the adversary knows of the noiseless sum.

    Attributes:
        others: S, the sum without the record, shape (dimension,).
        change: v, what the record changes, shape (dimension,).
        spread: standard deviation of v (device noise inside contributions), the largest over coordinates.
    """

    others: Array
    change: Array
    spread: float

    @classmethod
    def of(cls, without: Array, with_record: Array) -> Knowledge:
        """From releases with negligible noise and q = 1 in both worlds, shape (trials, 1, dimension) each.

        The adversary makes them itself: code and device are public, and so is every record but one.
        """
        before, after = without.reshape(-1, without.shape[-1]), with_record.reshape(-1, with_record.shape[-1])
        spread = math.hypot(float(before.std(0).max()), float(after.std(0).max()))
        others: Array = before.mean(0)
        return cls(others, after.mean(0) - others, spread)


def log_likelihood_ratio(
    releases: Array, knowledge: Knowledge, law: NoiseLaw, *, sample_rate: float
) -> Array:
    """log of (density with the record / density without), shape (trials,).

    Args:
        releases: shape (trials, steps, dimension), in units of the noised sum.
        knowledge: S and v.
        law: of the noise.
        sample_rate: q of the record, 0 < q <= 1.
    Raises:
        UsageError: a sample rate outside (0, 1].
    """
    if not 0 < sample_rate <= 1:
        raise UsageError(f"sample rate is {sample_rate}; it must be above 0 and at most 1")
    noise = releases - knowledge.others
    ratio = law.log_density(noise - knowledge.change, knowledge.spread) - law.log_density(noise, 0.0)
    absent = math.log1p(-sample_rate) if sample_rate < 1 else -math.inf
    total: Array = np.logaddexp(absent, math.log(sample_rate) + ratio).sum(-1)
    return total


@dataclass(frozen=True)
class Distinguished:
    """What the attack found.

    Attributes:
        scores_without, scores_with: log-likelihood ratios of the trials of either world, shape (trials,).
        worst_case: lower bound on epsilon that assumes nothing about the release.
        gaussian_family: lower bound within the family of T-fold subsampled Gaussian mechanisms: tight, and
            meant for releases that claim to be one.
    """

    scores_without: Array
    scores_with: Array
    worst_case: Bound
    gaussian_family: Bound


def distinguish(
    without: Array,
    with_record: Array,
    knowledge: Knowledge,
    law: NoiseLaw | tuple[NoiseLaw, NoiseLaw],
    *,
    sample_rate: float,
    delta: float,
    confidence: float,
) -> Distinguished:
    """Score every trial of both worlds and bound epsilon from below.

    Args:
        without, with_record: releases of either world, shape (trials, steps, dimension), equally many trials.
        knowledge: S and v.
        law: of the noise; a pair where it differs between the worlds' trials (known noise).
        sample_rate: q.
        delta: the claim's.
        confidence: of each bound separately, such as 0.95.
    Raises:
        UsageError: a value out of range, or worlds of different shapes.
    """
    if without.shape != with_record.shape or without.ndim != 3:
        raise UsageError(
            f"releases have shapes {without.shape} and {with_record.shape}; both worlds need the same "
            "(trials, steps, dimension)"
        )
    first, second = law if isinstance(law, tuple) else (law, law)
    low = log_likelihood_ratio(without, knowledge, first, sample_rate=sample_rate)
    high = log_likelihood_ratio(with_record, knowledge, second, sample_rate=sample_rate)
    return Distinguished(
        low,
        high,
        clopper_pearson_bound(low, high, delta=delta, confidence=confidence),
        gaussian_family_bound(
            low,
            high,
            threshold=0.0,  # of a likelihood ratio: the best at equal odds, known before any trial
            delta=delta,
            confidence=confidence,
            sample_rate=sample_rate,
            steps=without.shape[1],
        ),
    )
