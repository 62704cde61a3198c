"""What a loaded data set is, and the checks that every one passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noise_models.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """Training and test records.

    No statistic of private records enters: pixels are centred and scaled by constants that stand in the code
    and are the same whatever the records are, float tables are used as they are (docs/threat-model.md).

    Attributes:
        name: as asked for.
        x_train: float32, shape (N, *input_shape); images are (N, C, H, W); of text int64, the characters' numbers,
            shape (N, T).
        y_train: int64, in 0 ... classes - 1, shape (N,); of text the next characters, shape (N, T).
        x_test, y_test: likewise.
        classes: number of classes; of text, of different characters.
        input_shape: shape of one record.
        public: what was read off the private records and is thereby declared public; one sentence each.
        cardinalities: of a table, number of categories of each column, 0 for a numeric one; empty where none is
            categorical. A categorical column holds whole numbers in 0 ... cardinality - 1.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    input_shape: tuple[int, ...]
    public: tuple[str, ...] = ()
    cardinalities: tuple[int, ...] = ()

    @property
    def text(self) -> bool:
        """Whether records are sequences of characters, each with the next one as its target."""
        return not self.x_train.is_floating_point()


def scaled(pixels: NDArray[np.uint8], full: float, centre: Sequence[float], scale: Sequence[float]) -> Tensor:
    """`(pixels / full - centre) / scale` in float32, shape kept.

    Args:
        pixels: shape (N, C, H, W).
        full: the code of a white pixel.
        centre, scale: one for each channel, public constants, in units of full white.
    """
    out = torch.from_numpy(pixels.astype(np.float32))
    factor = torch.tensor([1.0 / (full * s) for s in scale])[:, None, None]
    shift = torch.tensor([-c / s for c, s in zip(centre, scale, strict=True)])[:, None, None]
    return out.mul_(factor).add_(shift)


def check_labels(labels: NDArray[np.generic], classes: int, what: str) -> Tensor:
    """Integer labels as int64, all in 0 ... classes - 1; `what` names them in the error."""
    y = labels.astype(np.int64)
    wrong = y[(y < 0) | (y >= classes)]
    if wrong.size:
        raise UsageError(f"{what} has label {wrong[0]}; labels must be 0 ... {classes - 1}: correct the file")
    return torch.from_numpy(y)
