"""The running average of a run's weights, with which it is evaluated.

    a_t = a_{t-1} + (1 - d_t) (w_t - a_{t-1}),    d_t = min(decay, (1 + t) / (10 + t)),    a_1 = w_1

It is a function of weights that were released, so that it costs no privacy (post-processing; De et al. 2022, arXiv
2204.13650, section 3, whose warm-up d_t is). It averages the noise of the last 1 / (1 - decay) steps or so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim import SGD, Optimizer

_NAME = "average"


class WeightAverage:
    """Averages of the parameters of an optimizer, kept in its state, with which a checkpoint holds them."""

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        """
        Args:
            optimizer: of torch's kind, whose steps are averaged.
            decay: 0 up to, not including, 1.
        """
        self.optimizer, self.decay = optimizer, decay

    def take(self, step: int) -> None:
        """Add the weights after step number `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = [], []
        for p in self._parameters():
            state = self.optimizer.state[p]
            if not state and not isinstance(self.optimizer, SGD):
                continue  # it takes an empty state for a parameter that was never moved
            if _NAME in state:
                averages.append(state[_NAME])
                weights.append(p.detach())
            else:
                state[_NAME] = p.detach().clone()
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the parameters' place, inside."""
        held = [(p, p.data) for p in self._parameters() if _NAME in self.optimizer.state.get(p, {})]
        try:
            for p, _ in held:
                p.data = self.optimizer.state[p][_NAME]
            yield
        finally:
            for p, weights in held:
                p.data = weights

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
