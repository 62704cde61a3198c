"""A stream of digits whose classes come in pairs, each record seen once: predict first, then learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from noise_models.randomness.generator import derive_seed
from optical_dfa.data import load
from optical_dfa.networks import building as models
from optical_dfa.training.online import OnlineLearner

MODEL = "mlp:128,64"
CLASSES, JOIN = 10, 2  # classes in all, and how many join at a time
FRAME = 5  # records a frame
HELD_OUT = 400  # records that no stream has


@dataclass(frozen=True)
class Outcome:
    """Accuracy of the predictions made before learning, over the stream; and of the last state on held-out records."""

    prequential: float
    final: float


@cache
def _records() -> tuple[Tensor, Tensor]:
    data = load("digits")
    return torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])


def make_digits(seed: int, shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A stream of 10 x shots records, and held-out ones.

    The classes join two by two in an order of the seed's. From one joining to the next come 2 x shots records, each of
    a class drawn from all those that have joined.

    Returns:
        (x, y) of the stream, (x, y) held out.
    """
    draws = torch.Generator().manual_seed(derive_seed(seed, "digits stream"))
    x, y = _records()
    order = torch.randperm(len(x), generator=draws)
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    classes = torch.randperm(CLASSES, generator=draws)
    pools = {c: iter(rest[y[rest] == c].tolist()) for c in range(CLASSES)}
    chosen = []
    for joined in range(JOIN, CLASSES + 1, JOIN):
        for pick in torch.randint(0, joined, (JOIN * shots,), generator=draws).tolist():
            chosen.append(next(pools[int(classes[pick])]))
    return x[chosen], y[chosen], x[held], y[held]


def learn_digits(rule: str, lr: float, seed: int, shots: int, **rule_options: float) -> Outcome:
    """One pass over the stream of `seed`."""
    x, y, x_held, y_held = make_digits(seed, shots)
    network = models.build(MODEL, tuple(x.shape[1:]), CLASSES, seed)
    learner = OnlineLearner(network, rule=rule, lr=lr, seed=seed, example=x[:1], rule_options=rule_options)
    right = 0
    for records, labels in zip(torch.split(x, FRAME), torch.split(y, FRAME), strict=True):
        right += int((learner.observe(records, labels).argmax(1) == labels).sum())
    held = (learner.predict(x_held).argmax(1) == y_held).double().mean()
    return Outcome(right / len(x), float(held))
