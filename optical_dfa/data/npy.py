"""Data larger than memory: a folder of .npy files, x_train, y_train, x_test, y_test, which are mapped and not read."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError
from optical_dfa.data.card import DatasetCard
from optical_dfa.data.dataset import Dataset
from optical_dfa.data.npz import DAMAGED, OPTIONAL, REQUIRED, of_arrays


@DatasetCard(
    summary="a folder of x_train.npy, y_train.npy, x_test.npy and y_test.npy of one's own, mapped and not read",
    private={"batch_size": 256, "epochs": 40, "lr": 0.15, "max_grad_norm": 1.0, "epsilon": 8.0},
    plain={"batch_size": 128, "epochs": 10, "lr": 0.05},
    by_records=True,
)
def load_folder(path: Path) -> Dataset:
    """The records of a folder, with one .npy file for each array of an .npz file (`optical_dfa.data.npz.load_npz`).

    x_train and x_test are float32 and used as they are; they stay on disk, and a batch reads its records. Write them
    piece by piece with `numpy.lib.format.open_memmap`.

    Raises:
        UsageError: one line: what is wrong with which file.
    """
    folder = path.expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"{path} is no folder; name the folder that holds {', '.join(REQUIRED)} as .npy files"
        )
    arrays = {
        name: _mapped(file) for name in (*REQUIRED, *OPTIONAL) if (file := folder / f"{name}.npy").is_file()
    }
    for name in ("x_train", "x_test"):
        if name in arrays and arrays[name].dtype != np.float32:
            raise UsageError(
                f"{folder / name}.npy is of type {arrays[name].dtype}; it must be float32, which is used where it "
                "lies: convert it, scaled by public constants"
            )
        if name in arrays and not arrays[name].flags.c_contiguous:
            raise UsageError(
                f"{folder / name}.npy is in Fortran order, where a record lies all over the file; write it with "
                "numpy.ascontiguousarray"
            )
    return of_arrays(arrays, path)


def _mapped(file: Path) -> NDArray[np.generic]:
    """The array of a file; nothing is read until it is used, and nothing is ever written."""
    try:
        # Copy on write: torch wants memory that can be written.
        found: NDArray[np.generic] = np.load(file, mmap_mode="c", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("it holds several arrays")
    except (*DAMAGED, TokenError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{file} cannot be read ({reason}); write it with numpy.save, numbers only"
        ) from None
    held: Any = getattr(found, "_mmap", None)
    with suppress(AttributeError, ValueError, OSError):
        held.madvise(mmap.MADV_RANDOM)  # a batch's records lie anywhere: nothing is read ahead
    return found
