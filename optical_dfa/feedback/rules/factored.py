"""Layer-wise feedback through the product of two learned matrices.

    g_{l-1} = delta_l B_l,    B_l = P_l^T Q_l,    P_l of shape (r, n_l),    Q_l of shape (r, n_{l-1})
    Q_l <- Q_l - rate (P_l dW_l + decay Q_l),    dW_l = delta_l^T h_{l-1}

Kolen and Pollack's rule (1994) through P_l: where W_l is trained by plain SGD at the same rate and decay, P_l W_l - Q_l
shrinks by the factor 1 - rate · decay a step while P_l stands still. What is left to a rule is r, and how P_l learns.
For a convolution n_{l-1} counts the taps of a kernel, and delta_l and h_{l-1} are those of every place.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight

from noise_models.randomness.generator import derive_seed
from optical_dfa.feedback.card import Refusal
from optical_dfa.feedback.cuts import check_layerwise
from optical_dfa.feedback.rules.layerwise import (
    LAYERS,
    Geometry,
    LayerwiseFeedback,
    LayerwiseState,
    Listener,
)
from optical_dfa.feedback.rules.learned import checked_learning, descend, register
from optical_dfa.feedback.state import Placement, key


class FactoredFeedback(LayerwiseFeedback):
    """A rule with B_l = P_l^T Q_l. Both learn in the backward pass, from the error that goes down through them.

    What they descend is the gradient of the loss as the weight's optimizer is given it, mean or sum. A layer that is
    called several times in a pass teaches them once a call. The layer that reads the network's input hands no error
    down; its matrices stay as they were drawn.

    Attributes:
        default_rate: of optimizer sgd, where the user gives none.
    """

    draws = "never"
    refused = Refusal.LEARNS
    default_rate: ClassVar[float] = 0.1

    def __init__(
        self, optimizer: str = "sgd", rate: float | None = None, decay: float = 1e-4, scale: float = 1.0
    ) -> None:
        """
        Args:
            optimizer: of the matrices that descend, "sgd" or "adam".
            rate: its learning rate; by default `default_rate` for sgd and 1e-4 for adam.
            decay: of the equation.
            scale: size of the first B_l's entries, relative to the layer's Xavier standard deviation.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(scale)
        self.optimizer, self.rate, self.decay = checked_learning(optimizer, rate, decay, self.default_rate)

    def matrix(self, weight: Tensor, drawn: Tensor | None, size: float) -> Tensor:
        assert drawn is not None
        return drawn  # the product as it is

    @abstractmethod
    def rank(self, outputs: int, components: int) -> int:
        """r of a layer of so many outputs (channels), in a network of c output components."""

    @abstractmethod
    def first(self, outputs: int, rank: int, stream: torch.Generator) -> Tensor:
        """The first P_l, shape (rank, outputs)."""

    @abstractmethod
    def learn_left(self, left: Tensor, right: Tensor, delta: Tensor, gradient: Tensor) -> Tensor | None:
        """What P_l descends by the optimizer, shape (r, n_l); None where it learns in its own way, or was changed.

        Args:
            left, right: P_l and Q_l, as a matrix.
            delta: shape (records and places, n_l).
            gradient: dW_l as a matrix, shape (n_l, n_{l-1}).
        """

    def state(self, placed: Placement) -> FactoredState:
        check_layerwise(placed.module, placed.example, LAYERS, self.name)
        return FactoredState(self, placed)


class FactoredState(LayerwiseState):
    """P_l and Q_l (as a matrix) of every layer, by its name."""

    rule: FactoredFeedback

    def __init__(self, rule: FactoredFeedback, placed: Placement) -> None:
        super().__init__(rule, placed.module, placed.seed)
        self.compiles = False
        self.shapes: dict[str, torch.Size] = {}
        for name, size in self.layers.items():
            weight = placed.module.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            self.shapes[name] = weight.shape
            outputs, inputs = weight.shape[0], weight[0].numel()
            stream = torch.Generator().manual_seed(derive_seed(placed.seed, f"factors for {name}"))
            rank = rule.rank(outputs, placed.components)
            left = rule.first(outputs, rank, stream)
            right = torch.randn(rank, inputs, generator=stream) * size * rule.scale
            dtype = torch.promote_types(weight.dtype, torch.float32)
            for side, drawn in (("left", left), ("right", right)):
                register(self, f"{key(name)}:{side}", drawn.to(weight.device, dtype), rule.optimizer)
            self.register_buffer(f"{key(name)}:updates", torch.zeros((), dtype=torch.int64))

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """P_l and Q_l (as a matrix) of the layer called `name`, as they are now."""
        return self.get_buffer(f"{key(name)}:left"), self.get_buffer(f"{key(name)}:right")

    def matrix(self, name: str, weight: Tensor) -> Tensor:
        left, right = self.factors(name)
        return self.rule.matrix(weight, (left.T @ right).view_as(weight).to(weight.dtype), self.layers[name])

    def listener(self, name: str) -> Listener:
        return partial(self._learn, name, [False])

    def _learn(self, name: str, done: list[bool], delta: Tensor, x: Tensor, geometry: Geometry) -> None:
        """Once for each call of a layer in a forward pass; the products are a batch's, not a record's."""
        if done[0] or not len(delta):
            return
        done[0] = True
        left, right = self.factors(name)
        rows, gradient = self._gradient(name, delta.to(left.dtype), x.to(left.dtype), geometry)
        for_right = (left @ gradient).add_(right, alpha=self.rule.decay)
        for_left = self.rule.learn_left(left, right, rows, gradient)
        count = self.get_buffer(f"{key(name)}:updates").add_(1)
        if for_left is not None:
            for_left = for_left.add_(left, alpha=self.rule.decay)
            descend(self, f"{key(name)}:left", for_left, self.rule, int(count))
        descend(self, f"{key(name)}:right", for_right, self.rule, int(count))

    def _gradient(self, name: str, delta: Tensor, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """The errors as rows, shape (records and places, n_l), and dW_l as a matrix."""
        shape = self.shapes[name]
        if geometry is None:
            rows = delta.reshape(-1, shape[0])
            return rows, rows.T @ x.reshape(-1, shape[1])
        of_weight = conv1d_weight if len(shape) == 3 else conv2d_weight
        gradient: Tensor = of_weight(x, shape, delta, *geometry)  # type: ignore[no-untyped-call]
        return delta.movedim(1, -1).reshape(-1, shape[0]), gradient.flatten(1)
