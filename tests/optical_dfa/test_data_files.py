"""The official files: formats, where they are found, and what damage is answered with."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import datasets

from noise_models.errors import UsageError
from optical_dfa.data import cifar, idx, load
from optical_dfa.data.digits import split

REPOSITORY = Path(__file__).resolve().parents[2]
# Read before the fixture below takes the variable away.
REAL_DATA = Path(os.environ.get("OPTICAL_DFA_DATA", REPOSITORY.parent / "shared" / "data"))


def real_data(folder: str) -> Path:
    if not (REAL_DATA / folder).is_dir():
        pytest.skip(
            f"no {folder} under {REAL_DATA}: set OPTICAL_DFA_DATA to the folder with the official files"
        )
    return REAL_DATA


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write_idx_set(folder: Path, compress: bool = False) -> dict[str, NDArray[np.uint8]]:
    """A set of the official shapes in which pixel (0, 0) of record i is i mod 251 and its label i mod 10."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, shape in idx.SHAPES.items():
        array = np.zeros(shape, np.uint8)
        if len(shape) == 1:
            array[:] = np.arange(shape[0]) % 10
        else:
            array[:, 0, 0] = np.arange(shape[0]) % 251
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))
        else:
            (folder / name).write_bytes(idx_bytes(array))
        arrays[name] = array
    return arrays


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test of this file may find the user's own data or cache."""
    monkeypatch.delenv("OPTICAL_DFA_DATA", raising=False)
    monkeypatch.setattr("optical_dfa.data.files.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("optical_dfa.data.idx.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("optical_dfa.data.cifar.cache_dir", lambda: tmp_path / "cache")


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_digits_are_scikit_learns() -> None:
    data = load("digits")
    bunch = datasets.load_digits()
    x = torch.cat([data.x_train, data.x_test]) * 0.4 + 0.3
    y = torch.cat([data.y_train, data.y_test])
    assert data.x_train.shape == (1437, 1, 8, 8)
    assert data.x_test.shape == (360, 1, 8, 8)
    assert data.x_train.dtype == torch.float32
    assert data.y_train.dtype == torch.int64
    assert (data.classes, data.input_shape, data.public) == (10, (1, 8, 8), ())
    # Same multiset of (image, label) as the source, in another order.
    ours = sorted(
        (*(xi * 16).round().int().flatten().tolist(), yi) for xi, yi in zip(x, y.tolist(), strict=True)
    )
    theirs = sorted(
        (*xi.astype(int).flatten().tolist(), int(yi))
        for xi, yi in zip(bunch.images, bunch.target, strict=True)
    )
    assert ours == theirs


def test_digits_split_is_fixed() -> None:
    order = split(1797)
    assert sorted(order) == list(range(1797))
    digest = hashlib.sha256(",".join(map(str, order)).encode()).hexdigest()
    assert digest == "ad17f22a1a3c03f6ab2e73d6b1e5716e6f96025942530cad9f34809dda62c1f1"


def test_unknown_name() -> None:
    refused(lambda: load("imagenet"), "'imagenet'", "digits, mnist, fashion-mnist, cifar10", ".npz")


@pytest.mark.parametrize("layout", ["", "MNIST", "MNIST/raw", "raw"])
def test_idx_set_found(tmp_path: Path, layout: str) -> None:
    write_idx_set(tmp_path / layout)
    data = load("mnist", tmp_path)
    assert data.x_train.shape == (60000, 1, 28, 28)
    assert data.x_test.shape == (10000, 1, 28, 28)
    i = torch.arange(60000)
    assert torch.equal(data.y_train, i % 10)
    expected = ((i % 251).double() / 255 - 0.13) / 0.31
    torch.testing.assert_close(data.x_train[:, 0, 0, 0].double(), expected, atol=1e-6, rtol=1e-6)


def test_idx_gz_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_set(tmp_path / "FashionMNIST", compress=True)
    monkeypatch.setenv("OPTICAL_DFA_DATA", str(tmp_path))
    data = load("fashion-mnist")
    assert data.name == "fashion-mnist"
    assert torch.equal(data.y_test, torch.arange(10000) % 10)
    assert data.x_test[7, 0, 0, 0].item() == pytest.approx((7 / 255 - 0.29) / 0.35, abs=1e-6)


def test_data_dir_goes_before_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTICAL_DFA_DATA", str(tmp_path / "nowhere"))
    write_idx_set(tmp_path)
    assert load("mnist", tmp_path).classes == 10


def test_data_dir_without_the_files(tmp_path: Path) -> None:
    refused(lambda: load("mnist", tmp_path), "--data-dir", str(tmp_path), "MNIST", "OPTICAL_DFA_DATA")
    refused(lambda: load("cifar10", tmp_path), "--data-dir", str(tmp_path), "data_batch_1.bin")
    refused(lambda: load("mnist", tmp_path / "nowhere"), "--data-dir", "nowhere", "existing folder")


def test_one_file_missing(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    refused(lambda: load("mnist", tmp_path), "not t10k-labels-idx1-ubyte")


def test_idx_labels_out_of_range(tmp_path: Path) -> None:
    arrays = write_idx_set(tmp_path)
    name = "t10k-labels-idx1-ubyte"
    arrays[name][17] = 10
    (tmp_path / name).write_bytes(idx_bytes(arrays[name]))
    refused(lambda: load("mnist", tmp_path), "label 10", "0 ... 9", name)


def good_idx() -> bytes:
    return idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


def test_read_idx_round_trip(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(good_idx())
    (tmp_path / "a.gz").write_bytes(gzip.compress(good_idx()))
    for name in ("a", "a.gz"):
        assert idx.read_idx(tmp_path / name, (2, 3, 4)).tolist() == np.arange(24).reshape(2, 3, 4).tolist()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a", good_idx()[:-1], "23 bytes"),
        ("a", good_idx() + b"x", "25 bytes"),
        ("a", b"", "no IDX"),
        ("a", good_idx()[:10], "no IDX"),
        ("a", b"\0\0\x0d\x03" + good_idx()[4:], "no IDX"),
        ("a", b"<html>not found</html>", "no IDX"),
        ("a", idx_bytes(np.zeros((2, 3), np.uint8)), "no IDX"),
        ("a", idx_bytes(np.zeros((2, 4, 3), np.uint8)), "(2, 4, 3)"),
        ("a.gz", gzip.compress(good_idx(), mtime=0)[:-12], "cannot be read"),
        ("a.gz", good_idx(), "cannot be read"),
        ("a.gz", gzip.compress(good_idx(), mtime=0)[:12] + b"\xff" * 40, "cannot be read"),
    ],
)
def test_damaged_idx(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(lambda: idx.read_idx(tmp_path / name, (2, 3, 4)), str(tmp_path / name), word, "official file")


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_real_idx_content(name: str, folder: str) -> None:
    """The digests in the code are those of the real files, and the parse agrees with an independent one."""
    root = real_data(folder)
    source = idx.SOURCES[name]
    for file, digest in source.sha256.items():
        content = gzip.decompress((root / folder / f"{file}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
    data = load(name, root)
    labels = np.frombuffer(
        gzip.decompress((root / folder / "train-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
    )
    assert data.y_train.tolist() == labels.tolist()
    assert data.y_test.bincount().tolist() == ([1000] * 10 if name == "fashion-mnist" else MNIST_TEST_COUNTS)
    # The public constants do their work: about centred, about unit scale.
    assert abs(data.x_train.mean().item()) < 0.05
    assert abs(data.x_train.std().item() - 1) < 0.05


def test_another_sets_files_are_not_taken() -> None:
    root = real_data("MNIST")
    refused(lambda: load("fashion-mnist", root / "MNIST"), "is of MNIST;", "Fashion-MNIST files")


def test_own_folder_goes_before_the_root(tmp_path: Path) -> None:
    """Both sets use the same file names: those in the folder of the set's name are meant."""
    write_idx_set(tmp_path)
    arrays = write_idx_set(tmp_path / "FashionMNIST")
    name = "t10k-labels-idx1-ubyte"
    (tmp_path / "FashionMNIST" / name).write_bytes(idx_bytes(np.full_like(arrays[name], 4)))
    assert load("fashion-mnist", tmp_path).y_test.unique().tolist() == [4]
    assert load("mnist", tmp_path).y_test.unique().tolist() == list(range(10))


def test_real_cifar_is_balanced_and_centred() -> None:
    data = load("cifar10", real_data("cifar-10-batches-bin"))
    assert data.y_train.bincount().tolist() == [5000] * 10
    assert data.y_test.bincount().tolist() == [1000] * 10
    torch.testing.assert_close(data.x_train.mean((0, 2, 3)), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(data.x_train.std((0, 2, 3)), torch.ones(3), atol=0.05, rtol=0)


# From the MNIST page: how often each digit occurs in the test set.
MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def cifar_batch(k: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels = np.zeros((cifar.BATCH, cifar.PIXELS), np.uint8)
    pixels[:, 0] = np.arange(cifar.BATCH) % 256
    pixels[:, 1024] = k
    pixels[:, 33] = 200
    return pixels, (np.arange(cifar.BATCH) % 10).astype(np.uint8)


def write_cifar(folder: Path, python: bool) -> None:
    folder.mkdir(parents=True)
    for k, name in enumerate(cifar.PYTHON if python else cifar.BINARY):
        pixels, labels = cifar_batch(k)
        if python:
            content = {
                b"data": pixels,
                b"labels": labels.tolist(),
                b"filenames": [b"a.png"],
                b"batch_label": b"x",
            }
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            np.concatenate([labels[:, None], pixels], axis=1).tofile(folder / name)


@pytest.mark.parametrize("python", [False, True])
def test_cifar_layouts(tmp_path: Path, python: bool) -> None:
    write_cifar(tmp_path / ("cifar-10-batches-py" if python else "cifar-10-batches-bin"), python)
    data = load("cifar10", tmp_path)
    assert data.x_train.shape == (50000, 3, 32, 32)
    assert data.x_test.shape == (10000, 3, 32, 32)
    assert torch.equal(data.y_train, torch.arange(50000) % 10)
    codes = [
        (image[channel, row, column].item() * cifar.SCALE[channel] + cifar.CENTRE[channel]) * 255
        for image, channel, row, column in (
            (data.x_train[20003], 0, 0, 0),  # record 3 of batch 2
            (data.x_train[20003], 1, 0, 0),  # channel-major: the number of the batch
            (data.x_train[20003], 0, 1, 1),  # row-major within a channel
            (data.x_test[0], 1, 0, 0),
        )
    ]
    assert codes == pytest.approx([3, 2, 200, 5], abs=1e-4)


def test_cifar_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH", 10)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(b"\0" * 3073)
    refused(lambda: cifar.read_binary(path), "3073 bytes", "official file")
    batch = tmp_path / "data_batch_1"
    pixels, labels = cifar_batch(0)
    for content, word in (
        (b"", "no CIFAR-10 batch"),
        (b"text", "no CIFAR-10 batch"),
        (pickle.dumps([1, 2], protocol=2), "no CIFAR-10 batch"),
        (pickle.dumps({b"data": pixels}, protocol=2), "labels"),
        (pickle.dumps({b"data": pixels[:5], b"labels": labels.tolist()}, protocol=2), "(5, 3072)"),
        (pickle.dumps({b"data": pixels.astype(float), b"labels": [0]}, protocol=2), "float64"),
        (pickle.dumps({b"data": pixels, b"labels": [0.5] * 10}, protocol=2), "float64 labels"),
        (pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)[:-20], "no CIFAR-10 batch"),
    ):
        batch.write_bytes(content)
        refused(lambda: cifar.read_python(batch), str(batch), word)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_cifar_pickle_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    batch = tmp_path / "data_batch_1"
    batch.write_bytes(pickle.dumps({b"data": _Payload(marker)}, protocol=2))
    refused(lambda: cifar.read_python(batch), "mkdir")
    assert not marker.exists()
    # The payload does run under an ordinary unpickler: the test can fail.
    pickle.loads(batch.read_bytes())
    assert marker.exists()


def test_importing_data_does_not_import_torch() -> None:
    code = "import sys, optical_dfa.data; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
