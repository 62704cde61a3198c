"""MNIST and Fashion-MNIST, in the IDX format of the official files."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError
from optical_dfa.data.card import DatasetCard
from optical_dfa.data.dataset import Dataset, check_labels, scaled
from optical_dfa.data.files import cache_dir, find


@dataclass(frozen=True)
class IdxSource:
    """An official set in IDX files.

    Attributes:
        title: its name, for messages.
        folder: name of its folder.
        url: address of the folder with the .gz files.
        sha256: digest of each DECOMPRESSED file (a .gz changes whenever somebody packs it again).
        centre, scale: public constants, in units of full white, close to the published mean and deviation.
    """

    title: str
    folder: str
    url: str
    sha256: dict[str, str]
    centre: float
    scale: float


# name -> shape of the whole file
SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}

SOURCES: dict[str, IdxSource] = {
    "mnist": IdxSource(
        title="MNIST",
        folder="MNIST",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        centre=0.13,
        scale=0.31,
    ),
    "fashion-mnist": IdxSource(
        title="Fashion-MNIST",
        folder="FashionMNIST",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        centre=0.29,
        scale=0.35,
    ),
}


@DatasetCard(
    summary="60,000 handwritten digits of 28 x 28 pixels, and 10,000 for the test",
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
def load_mnist(data_dir: Path | None, progress: bool) -> Dataset:
    """Images (N, 1, 28, 28), 60000 + 10000, ten classes.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database (1998).
    """
    return _load("mnist", data_dir, progress)


@DatasetCard(
    summary="60,000 pictures of clothes of 28 x 28 pixels, and 10,000 for the test",
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
def load_fashion_mnist(data_dir: Path | None, progress: bool) -> Dataset:
    """Images (N, 1, 28, 28), 60000 + 10000, ten classes.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747.
    """
    return _load("fashion-mnist", data_dir, progress)


def _load(name: str, data_dir: Path | None, progress: bool) -> Dataset:
    source = SOURCES[name]
    folders = (source.folder, f"{source.folder}/raw", "raw")
    paths = find(source.title, folders, [list(SHAPES)], data_dir)
    if paths is None:
        from optical_dfa.data.download import fetch_file

        folder = cache_dir() / source.folder
        paths = [
            fetch_file(source.title, f"{source.url}{file}.gz", digest, folder / file, progress)
            for file, digest in source.sha256.items()
        ]
    arrays = [read_idx(path, shape) for path, shape in zip(paths, SHAPES.values(), strict=True)]
    _check_identity(source, arrays[-1], paths[-1])
    x_train, x_test = (scaled(x[:, None], 255.0, [source.centre], [source.scale]) for x in arrays[::2])
    y_train, y_test = (
        check_labels(y, 10, str(path)) for y, path in zip(arrays[1::2], paths[1::2], strict=True)
    )
    return Dataset(name, x_train, y_train, x_test, y_test, 10, (1, 28, 28))


def _check_identity(source: IdxSource, labels: NDArray[np.uint8], path: Path) -> None:
    """Refuse another set's files under this set's name: their names and shapes are the same."""
    name = "t10k-labels-idx1-ubyte"
    digest = hashlib.sha256(_header(SHAPES[name]) + labels.tobytes()).hexdigest()
    for other in SOURCES.values():
        if other is not source and other.sha256[name] == digest:
            raise UsageError(f"{path} is of {other.title}; give the folder that has the {source.title} files")


def _header(shape: tuple[int, ...]) -> bytes:
    return bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, plain or .gz, which must have exactly this shape.

    Format: two zero bytes, 0x08 (unsigned byte), the number of dimensions, each dimension as big-endian 32
    bits, then the data in C order.

    Raises:
        UsageError: damaged or truncated, something else than IDX, another shape.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); replace it by the official file") from None
    header = 4 + 4 * len(shape)
    if len(content) < header or content[:4] != bytes((0, 0, 8, len(shape))):
        raise UsageError(
            f"{path} is no IDX file of {len(shape)}-dimensional bytes; replace it by the official file"
        )
    stored = tuple(int(n) for n in np.frombuffer(content, ">u4", len(shape), offset=4))
    if stored != shape:
        raise UsageError(f"{path} has shape {stored}; it must be {shape}: replace it by the official file")
    size = int(np.prod(shape))
    if len(content) != header + size:
        raise UsageError(
            f"{path} holds {len(content) - header} bytes of data, not {size}; replace it by the official file"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
