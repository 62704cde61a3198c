"""Data sets: names, files on disk, downloads with checksums. Importing this package does not import torch.

A new one is one new file and one line here, or an entry point of another package: a function `(data_dir, progress)`
that returns a `Dataset`, or, where the name is a suffix such as ".csv", a function of the file's path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from noise_models.cards import Registry
from noise_models.errors import UsageError
from optical_dfa.data.card import DatasetCard

if TYPE_CHECKING:
    from optical_dfa.data.dataset import Dataset

FOLDER = ".npy"  # whose files are arrays of one's own, in a folder

DATASETS: Registry[DatasetCard] = Registry(
    "dataset",
    DatasetCard,
    {
        "digits": "optical_dfa.data.digits:load_digits",
        "mnist": "optical_dfa.data.idx:load_mnist",
        "fashion-mnist": "optical_dfa.data.idx:load_fashion_mnist",
        "cifar10": "optical_dfa.data.cifar:load_cifar10",
        "tiny-shakespeare": "optical_dfa.data.text:load_tiny_shakespeare",
        ".npz": "optical_dfa.data.npz:load_npz",
        ".npy": "optical_dfa.data.npy:load_folder",
        ".txt": "optical_dfa.data.text:load_text",
    },
    group="optical_dfa.datasets",
)


def names() -> list[str]:
    """Of the data sets that are not files of one's own."""
    return [name for name in DATASETS if not name.startswith(".")]


def choices() -> str:
    """What may be asked for, in words."""
    suffixes = [name for name in DATASETS if name.startswith(".") and name != FOLDER]
    return f"{', '.join(names())} or a path ending in {' or '.join(suffixes)}, or a folder of {FOLDER} files"


def registered(name_or_path: str) -> str:
    """Under which name of `DATASETS` a data set is registered: its own, or the suffix of its file.

    Raises:
        UsageError: under none.
    """
    suffix = Path(name_or_path).suffix.lower()
    if suffix in DATASETS:
        return suffix
    if name_or_path in DATASETS:
        return name_or_path
    if name_or_path and Path(name_or_path).expanduser().is_dir():
        return FOLDER
    raise UsageError(f"dataset is {name_or_path!r}; it must be one of {choices()}")


def load(name_or_path: str, data_dir: Path | None = None, progress: bool = False) -> Dataset:
    """A data set as tensors, by name or from a file.

    Args:
        name_or_path: one of `names()`, or a path with a suffix in `DATASETS` (`optical_dfa.data.npz`, `.text`).
        data_dir: folder with the official files (MNIST/, FashionMNIST/, cifar-10-batches-bin/, text/, or one of
            these itself); None: the folder in the environment variable OPTICAL_DFA_DATA, the cache, or a
            download.
        progress: show a bar while downloading, if standard error is a terminal.
    Raises:
        UsageError: one line: no such data set, files absent, damaged or of the wrong kind, no network.
    """
    name = registered(name_or_path)
    loader = DATASETS.load(name)
    found: Dataset = loader(Path(name_or_path)) if name.startswith(".") else loader(data_dir, progress)
    return found
