"""CIFAR-10, from the official binary files or the official Python batches."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError
from optical_dfa.data.card import DatasetCard
from optical_dfa.data.dataset import Dataset, check_labels, scaled
from optical_dfa.data.files import cache_dir, find

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER = "cifar-10-batches-bin"
FOLDERS = (FOLDER, "cifar-10-batches-py", f"CIFAR10/{FOLDER}", "CIFAR10/cifar-10-batches-py")
BINARY = (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")
PYTHON = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")

BATCH = 10000
PIXELS = 3 * 32 * 32
# Public constants, in units of full white, close to the published means and deviations of the three channels.
CENTRE = (0.49, 0.48, 0.45)
SCALE = (0.25, 0.24, 0.26)


@DatasetCard(
    summary="50,000 colour pictures of 32 x 32 pixels, and 10,000 for the test",
    private={
        "batch_size": 4096,
        "epochs": 40,
        "lr": 0.5,
        "max_grad_norm": 1.0,
        "epsilon": 8.0,
        "delta": 1e-5,
    },
    plain={"batch_size": 128, "epochs": 10, "lr": 0.05},
)
def load_cifar10(data_dir: Path | None, progress: bool) -> Dataset:
    """Images (N, 3, 32, 32), 50000 + 10000, ten classes.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    """
    paths = find("CIFAR-10", FOLDERS, [BINARY, PYTHON], data_dir)
    if paths is None:
        from optical_dfa.data.download import fetch_tar

        folder = cache_dir() / FOLDER
        fetch_tar("CIFAR-10", URL, SHA256, [f"{FOLDER}/{name}" for name in BINARY], folder, progress)
        paths = [folder / name for name in BINARY]
    batches = [read_binary(path) if path.suffix == ".bin" else read_python(path) for path in paths]
    x = np.concatenate([pixels for pixels, _ in batches[:-1]])
    y = np.concatenate([labels for _, labels in batches[:-1]])
    x_test, y_test = batches[-1]
    return Dataset(
        "cifar10",
        scaled(x, 255.0, CENTRE, SCALE),
        check_labels(y, 10, str(paths[0].parent)),
        scaled(x_test, 255.0, CENTRE, SCALE),
        check_labels(y_test, 10, str(paths[-1])),
        10,
        (3, 32, 32),
    )


def read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(pixels (10000, 3, 32, 32), labels (10000,)) of a .bin file: records of a label and 3072 pixel bytes.

    Raises:
        UsageError: another size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error}); replace it by the official file") from None
    if len(content) != BATCH * (1 + PIXELS):
        raise UsageError(
            f"{path} has {len(content)} bytes, not {BATCH * (1 + PIXELS)}; replace it by the official file"
        )
    records = np.frombuffer(content, np.uint8).reshape(BATCH, 1 + PIXELS)
    return records[:, 1:].reshape(BATCH, 3, 32, 32), records[:, 0]


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain containers only: a pickle may otherwise run any code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_python(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(pixels (10000, 3, 32, 32), labels (10000,)) of a batch of the Python version; no code in it is run.

    Raises:
        UsageError: no pickle, one that holds anything but arrays and plain containers, or other shapes.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"])
    # A damaged pickle raises nearly anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path} is no CIFAR-10 batch ({reason}); replace it by the official file") from None
    if pixels.shape != (BATCH, PIXELS) or pixels.dtype != np.uint8:
        raise UsageError(
            f"{path} has {pixels.dtype} pixels of shape {pixels.shape}, not uint8 of {(BATCH, PIXELS)}; "
            "replace it by the official file"
        )
    if labels.shape != (BATCH,) or labels.dtype.kind not in "iu":
        raise UsageError(
            f"{path} has {labels.dtype} labels of shape {labels.shape}, not integers of {(BATCH,)}; "
            "replace it by the official file"
        )
    return pixels.reshape(BATCH, 3, 32, 32), labels.astype(np.int64)
