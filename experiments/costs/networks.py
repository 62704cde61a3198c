"""The networks of the SSDFA paper (Crafton et al. 2019, arXiv 1903.02083), and what a record's step costs on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from optical_dfa import align
from optical_dfa.measure.costs import Cost, cost


@dataclass(frozen=True)
class Network:
    """A network and the shape of its records."""

    build: Callable[[], nn.Sequential]
    shape: tuple[int, ...]


def connected(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def convolutional(channels: int, side: int, classes: int) -> nn.Sequential:
    """96-128-256 5x5 convolutions, each pooled by 3x3 windows of stride 2, then 2048-2048.

    Padded as TensorFlow's "same"; feedback arrives after the pooling, as in the authors' code.
    """
    layers: list[nn.Module] = []
    sizes = [channels, 96, 128, 256]
    for before, after in pairwise(sizes):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.MaxPool2d(3, 2, padding=1), nn.Tanh()]
        side = math.ceil(side / 2)
    return nn.Sequential(*layers, nn.Flatten(), *connected(sizes[-1] * side * side, 2048, 2048, classes))


NETWORKS = {
    "MNIST-FC": Network(lambda: connected(784, 400, 10), (784,)),
    "CIFAR10-FC": Network(lambda: connected(3072, 1000, 1000, 1000, 10), (3072,)),
    "CIFAR100-FC": Network(lambda: connected(3072, 1000, 1000, 1000, 100), (3072,)),
    "MNIST-conv": Network(lambda: convolutional(1, 28, 10), (1, 28, 28)),
    "CIFAR10-conv": Network(lambda: convolutional(3, 32, 10), (3, 32, 32)),
    "AlexNet, FC part": Network(lambda: connected(9216, 4096, 4096, 1000), (9216,)),
}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "BP": ("bp", {}),
    "DFA": ("dfa", {}),
    "BDFA": ("bdfa", {}),
    "ternary": ("ternary", {}),
    "SSDFA, k = 1": ("ssdfa", {"nonzeros": 1}),
}


def counted(network: Network, rule: str) -> Cost:
    """A record's cost under a rule of `RULES`; no weight or feedback matrix is held in memory."""
    name, options = RULES[rule]
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        example = torch.empty(1, *network.shape)
        return cost(align(network.build(), rule=name, rule_options=options, example=example, show=None))


def backward(cost: Cost) -> int:
    """Multiply-adds of the error and of the weight gradients."""
    return cost.error + cost.weight_gradient


def total(cost: Cost) -> int:
    """Multiply-adds of a step."""
    return cost.forward + backward(cost)
