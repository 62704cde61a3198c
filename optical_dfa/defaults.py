"""The shipped training settings, one row for each data set, private or not."""

from __future__ import annotations

import math
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
TEXTS = ("tiny-shakespeare", OTHER_TEXT)
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
    (OTHER_DATASET, True): Defaults(256, 40, 0.15, max_grad_norm=1.0, epsilon=8.0),  # but see `for_records`
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


# A private run on data of one's own takes its settings from the number of records, see `for_records`.
_SHARE, _LEAST_BATCH, _LARGEST_BATCH = 16, 32, 4096
_EPOCHS, _CLIP = 10, 8.0
_LABEL_EPOCHS = 4


def for_records(size: int, *, clips: bool) -> Defaults:
    """Settings of a private run on data of one's own; the learning rate follows from them, see `rate_for_records`.

    Chosen on synthetic tables (`python -m experiments.defaults`): 500 to 50,000 records, 5 to 100 columns, 2 or 10
    classes, epsilon 1 and 8. There the number of columns made no difference, nor did the batch beyond 1/16 of the
    records; a clipping norm of 1 clips every record, so that networks grow overconfident, whatever the noise.

    Args:
        size: number of training records, declared public.
        clips: whether the release clips; one that does not has its noise in every record's projection.
    """
    batch = min(_LARGEST_BATCH, max(_LEAST_BATCH, size // _SHARE))
    return Defaults(
        batch_size=batch,
        epochs=_EPOCHS if clips else _LABEL_EPOCHS,
        lr=0.0,  # rate_for_records
        max_grad_norm=_CLIP if clips else None,
        epsilon=8.0,
    )


def rate_for_records(
    size: int,
    *,
    batch_size: int,
    epochs: int,
    momentum: float,
    max_grad_norm: float | None,
    epsilon: float | None,
    noise_multiplier: float | None,
) -> float:
    """Learning rate of SGD for a private run on data of one's own.

    What the noise of a whole run does to a weight, over what a clipped record can, is about 4 / (N ε^(2/3)), whatever
    batch and epochs; so the way that the weights may go in all, steps × lr × C, is what is chosen: proportional to
    N ε^(2/3), up to where more gained nothing. Of a given noise multiplier σ the same holds with 4 q sqrt(T) / σ.

    Args:
        size: number N of training records, declared public.
        batch_size, epochs, momentum, max_grad_norm: of the run; max_grad_norm None for a release that does not clip.
        epsilon, noise_multiplier: one of the two, the other None.
    """
    steps = max(1.0, epochs * size / batch_size)
    if epsilon is not None:
        strength = epsilon ** (2 / 3)
    else:
        assert noise_multiplier is not None
        strength = 4 * batch_size / size * math.sqrt(steps) / noise_multiplier
    if max_grad_norm is None:
        way = min(0.5, 5e-6 * size * strength)
    else:
        way = min(8.0, size * strength / 700) / max_grad_norm
    rate = way / steps * (1 - momentum) / 0.1
    return float(f"{min(max(rate, 1e-8), 1.0):.3g}")
