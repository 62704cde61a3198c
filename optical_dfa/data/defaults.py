"""The settings of a private run on data of one's own, from the number of its records."""

from __future__ import annotations

import math

from optical_dfa.data.card import Defaults

ADAM_LR = 1e-3

# A private run on data of one's own takes its settings from the number of records, see `for_records`.
_SHARE, _LEAST_BATCH, _LARGEST_BATCH = 16, 32, 4096
_EPOCHS, _CLIP = 10, 8.0
_LABEL_EPOCHS = 4


def for_records(size: int, *, clips: bool) -> Defaults:
    """Settings of a private run on data of one's own; the learning rate follows from them, see `rate_for_records`.

    Chosen on synthetic tables (`python -m experiments defaults`): 500 to 50,000 records, 5 to 100 columns, 2 or 10
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
