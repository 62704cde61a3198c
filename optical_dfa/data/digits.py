"""The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn: no download needed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from optical_dfa.data.card import DatasetCard
from optical_dfa.data.dataset import Dataset, scaled

TRAIN_SIZE = 1437


def split(records: int) -> list[int]:
    """A fixed order of `records` indices that depends on nothing but the indices (so the split is public).

    Sorted by SHA-256, not drawn from a library's generator: the same for ever, on every version.
    """
    return sorted(range(records), key=lambda i: hashlib.sha256(f"digits split {i}".encode()).digest())


@DatasetCard(
    summary="1,437 handwritten digits of 8 x 8 pixels, and 360 for the test; comes with scikit-learn",
    private={
        "batch_size": 256,
        "epochs": 40,
        "lr": 0.15,
        "max_grad_norm": 1.0,
        "epsilon": 8.0,
        "delta": 1e-4,
    },
    plain={"batch_size": 128, "epochs": 10, "lr": 0.05},
)
def load_digits(data_dir: Path | None = None, progress: bool = False) -> Dataset:
    """Images (N, 1, 8, 8), 1437 for training and 360 for the test, ten classes.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), its test part.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    x = scaled(bunch.images.astype(np.uint8)[:, None], full=16.0, centre=[0.3], scale=[0.4])
    y = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.tensor(split(len(x)))
    train, test = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
    return Dataset("digits", x[train], y[train], x[test], y[test], 10, (1, 8, 8))
