"""The records an attack on images works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.data import load
from optical_dfa.data.files import find
from optical_dfa.data.idx import SHAPES, SOURCES


@dataclass(frozen=True)
class AttackRecords:
    """Records with inputs of at least 0, black pixels being exactly 0.

    Attributes:
        name: of the data set.
        x: float32, shape (N, d).
        black: what was taken off every component to make it so.
        y: int64, shape (N,).
        classes: number of classes.
        shape: of one record as an image, rows and columns; None where it is none.
    """

    name: str
    x: Tensor
    black: float
    y: Tensor
    classes: int
    shape: tuple[int, int] | None

    @property
    def width(self) -> int:
        """d: components of one input."""
        return self.x.shape[1]

    def batch(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """A random batch of different records.

        Raises:
            UsageError: more than there are.
        """
        if size > len(self.x):
            raise UsageError(
                f"data set {self.name} has {len(self.x)} records, and the attack needs {size}; take mnist"
            )
        stream = torch.Generator().manual_seed(derive_seed(seed, "attacked records"))
        chosen = torch.randperm(len(self.x), generator=stream)[:size]
        return self.x[chosen], self.y[chosen]


def load_records(
    dataset: str | None, data_dir: Path | None, preferred: tuple[str, ...] = ("mnist",)
) -> AttackRecords:
    """The training records of a data set.

    Args:
        dataset: by name or path; None is the first of `preferred` whose files are on this machine, else the
            embedded digits.
        data_dir: folder with the files.
        preferred: MNIST, Fashion-MNIST or both.
    Raises:
        UsageError: as `optical_dfa.data.load`, and a `data_dir` without any of the preferred sets.
    """
    name = dataset or next((known for known in preferred if is_there(known, data_dir)), "digits")
    if dataset is None and name == "digits" and data_dir is not None:
        raise UsageError(
            f"data_dir {data_dir} holds no files of {' or '.join(preferred)}; correct it, or name a dataset"
        )
    data = load(name, data_dir, progress=True)
    x = data.x_train.flatten(1)
    image = data.input_shape if len(data.input_shape) == 3 and data.input_shape[0] == 1 else None
    # Pixels were centred by a public constant; taking the black level off undoes that, in floating point too.
    return AttackRecords(
        name,
        x - x.min(),
        float(x.min()),
        data.y_train,
        data.classes,
        None if image is None else (image[1], image[2]),
    )


def is_there(name: str, data_dir: Path | None) -> bool:
    """Whether the files of MNIST or Fashion-MNIST are on this machine, so that nothing has to be downloaded."""
    source = SOURCES[name]
    folders = (source.folder, f"{source.folder}/raw", "raw")
    try:
        return find(source.title, folders, [list(SHAPES)], data_dir) is not None
    except UsageError:
        return False
