"""Data sets: names, files on disk, downloads with checksums. Importing this package does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from noise_models.errors import UsageError

if TYPE_CHECKING:
    from optical_dfa.data.dataset import Dataset

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "tiny-shakespeare")
SUFFIXES = (".npz", ".txt")  # of data of one's own


def load(name_or_path: str, data_dir: Path | None = None, progress: bool = False) -> Dataset:
    """A data set as tensors, by name or from a file.

    Args:
        name_or_path: one of `NAMES`, or a path ending in .npz or .txt (`optical_dfa.data.npz`, `.text`).
        data_dir: folder with the official files (MNIST/, FashionMNIST/, cifar-10-batches-bin/, text/, or one of
            these itself); None: the folder in the environment variable OPTICAL_DFA_DATA, the cache, or a
            download.
        progress: show a bar while downloading, if standard error is a terminal.
    Raises:
        UsageError: one line: no such data set, files absent, damaged or of the wrong kind, no network.
    """
    if name_or_path == "digits":
        from optical_dfa.data.digits import load_digits

        return load_digits()
    if name_or_path in ("mnist", "fashion-mnist"):
        from optical_dfa.data.idx import load_idx_set

        return load_idx_set(name_or_path, data_dir, progress)
    if name_or_path == "cifar10":
        from optical_dfa.data.cifar import load_cifar10

        return load_cifar10(data_dir, progress)
    if name_or_path.lower().endswith(".npz"):
        from optical_dfa.data.npz import load_npz

        return load_npz(Path(name_or_path))
    if name_or_path == "tiny-shakespeare":
        from optical_dfa.data.text import load_tiny_shakespeare

        return load_tiny_shakespeare(data_dir, progress)
    if name_or_path.lower().endswith(".txt"):
        from optical_dfa.data.text import load_text

        return load_text(Path(name_or_path))
    raise UsageError(
        f"dataset is {name_or_path!r}; it must be one of {', '.join(NAMES)} or a path ending in "
        f"{' or '.join(SUFFIXES)}"
    )
