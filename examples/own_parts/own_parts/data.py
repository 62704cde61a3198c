"""A data set: which of two halves is larger."""

from __future__ import annotations

from pathlib import Path

import torch

from optical_dfa.data.card import DatasetCard
from optical_dfa.data.dataset import Dataset


@DatasetCard(
    summary="400 stripes",
    private={"batch_size": 40, "epochs": 2, "lr": 0.1, "max_grad_norm": 1.0, "epsilon": 4.0},
    plain={"batch_size": 40, "epochs": 1, "lr": 0.1},
)
def load_stripes(data_dir: Path | None, progress: bool) -> Dataset:
    """Rows (N, 6), 300 for training and 100 for the test, two classes."""
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3].sum(1) > x[:, 3:].sum(1)).long()
    return Dataset("stripes", x[:300], y[:300], x[300:], y[300:], 2, (6,))
