"""The shipped training settings, one row for each data set, private or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Defaults:
    """Settings used where the user gave none.

    They were chosen on the public benchmark sets themselves, so no guarantee covers that choice (THEORY
    §4.4); for data of one's own (`OTHER_DATASET`) nothing was tuned on it.

    Attributes:
        batch_size: expected records a step; at most the size of the data set is used.
        epochs: expected passes over the data.
        lr: learning rate of SGD.
        momentum: of SGD.
        max_grad_norm: clipping norm C.
        epsilon, delta: privacy budget of the run; delta None: min(1e-5, 1/(10 N)).
    """

    batch_size: int
    epochs: int
    lr: float
    momentum: float = 0.9
    max_grad_norm: float | None = None
    epsilon: float | None = None
    delta: float | None = None


OTHER_DATASET, OTHER_TEXT = ".npz", ".txt"
ADAM_LR = 1e-3

_LARGE_PRIVATE = Defaults(batch_size=4096, epochs=40, lr=0.5, max_grad_norm=1.0, epsilon=8.0, delta=1e-5)
_PLAIN = Defaults(batch_size=128, epochs=10, lr=0.05)
_PRIVATE_TEXT = Defaults(batch_size=1024, epochs=20, lr=0.5, max_grad_norm=1.0, epsilon=8.0)
_PLAIN_TEXT = Defaults(batch_size=32, epochs=5, lr=0.5)

# (data set, private?) -> settings
DEFAULTS: dict[tuple[str, bool], Defaults] = {
    ("digits", True): Defaults(256, 40, 0.15, max_grad_norm=1.0, epsilon=8.0, delta=1e-4),
    ("mnist", True): _LARGE_PRIVATE,
    ("fashion-mnist", True): _LARGE_PRIVATE,
    ("cifar10", True): _LARGE_PRIVATE,
    ("tiny-shakespeare", True): _PRIVATE_TEXT,
    (OTHER_DATASET, True): Defaults(256, 40, 0.15, max_grad_norm=1.0, epsilon=8.0),
    (OTHER_TEXT, True): _PRIVATE_TEXT,
    ("digits", False): _PLAIN,
    ("mnist", False): _PLAIN,
    ("fashion-mnist", False): _PLAIN,
    ("cifar10", False): _PLAIN,
    ("tiny-shakespeare", False): _PLAIN_TEXT,
    (OTHER_DATASET, False): _PLAIN,
    (OTHER_TEXT, False): _PLAIN_TEXT,
}


def shipped_for(dataset: str) -> str:
    """Under which name the settings of a data set stand: its own, or the suffix of a file."""
    return dataset if (dataset, False) in DEFAULTS else Path(dataset).suffix.lower()
