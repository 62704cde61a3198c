"""A folder of .npy files: records are used where they lie, and are those of the same arrays in an .npz file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noise_models.errors import UsageError
from optical_dfa.cli import main
from optical_dfa.data import load
from optical_dfa.data.npy import load_folder


def arrays(records: int = 64, shape: tuple[int, ...] = (3, 4, 4)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.standard_normal((records, *shape)).astype(np.float32),
        "y_train": np.arange(records) % 4,
        "x_test": rng.standard_normal((records // 2, *shape)).astype(np.float32),
        "y_test": np.arange(records // 2) % 4,
        "classes": np.array(4),
    }


def written(folder: Path, **changed: Any) -> Path:
    folder.mkdir()
    for name, array in (arrays() | changed).items():
        if array is not None:
            np.save(folder / f"{name}.npy", array)
    return folder


def test_it_is_what_the_same_arrays_in_one_file_are(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    np.savez(tmp_path / "set.npz", **arrays())  # type: ignore[arg-type]
    ours, theirs = load(str(folder)), load(str(tmp_path / "set.npz"))
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.classes, ours.input_shape, ours.public) == (4, (3, 4, 4), ())


def test_records_are_mapped_and_the_file_is_never_written(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    before = (folder / "x_train.npy").read_bytes()
    data = load_folder(folder)
    kept = data.x_train[3].clone()
    with (folder / "x_train.npy").open("r+b") as file:
        file.seek(len(before) - 4)
        file.write(np.float32(7.0).tobytes())
    assert float(data.x_train.flatten()[-1]) == 7.0  # it was not read when it was loaded
    data.x_train[3] = 0.0
    assert torch.equal(torch.from_numpy(np.load(folder / "x_train.npy"))[3], kept)


@pytest.mark.slow
def test_a_run_needs_the_memory_of_a_batch_and_not_of_the_data(tmp_path: Path) -> None:
    """Of 384 MiB of records a run of one pass keeps less than half in memory of its own."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    big = np.lib.format.open_memmap(folder / "x_train.npy", "w+", np.float32, (24576, 4096))
    for start in range(0, len(big), 512):
        big[start : start + 512] = rng.standard_normal((512, 4096), dtype=np.float32)
    big.flush()
    labels = np.arange(len(big)) % 4
    for name, array in (("y_train", labels), ("x_test", np.array(big[:64])), ("y_test", labels[:64])):
        np.save(folder / f"{name}.npy", array)
    code = (
        "import sys\n"
        "from optical_dfa.cli import main\n"
        "def grown():\n"
        "    rows = dict(line.split(':') for line in open('/proc/self/status') if ':' in line)\n"
        "    return int(rows['RssAnon'].split()[0]) / 1024\n"
        "private = ['--model', 'mlp:8', '--noise-multiplier', '1', '--epochs', '1', '--json']\n"
        "assert main(['train', '--dataset', 'digits', *private]) == 0\n"
        "before = grown()\n"
        "assert main(['train', '--dataset', sys.argv[1], '--batch-size', '32', *private]) == 0\n"
        "print(grown() - before, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert float(done.stderr.splitlines()[-1]) < 160


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x_train": None}, "has no array x_train"),
        ({"x_train": np.zeros((64, 3, 4, 4))}, "is of type float64; it must be float32"),
        ({"x_test": np.zeros((32, 3, 4, 4), np.uint8)}, "is of type uint8"),
        ({"y_train": np.arange(63) % 4}, "one label a record"),
        ({"x_train": np.full((64, 3, 4, 4), np.nan, np.float32)}, "not finite"),
        ({"x_test": np.zeros((32, 3, 5, 5), np.float32)}, "must be equal"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    changed: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "set", **changed)
    assert main(["train", "--dataset", str(folder), "--epsilon", "3"]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    (folder / "x_train.npy").write_bytes(b"no array")
    with pytest.raises(UsageError, match="cannot be read"):
        load_folder(folder)
    with pytest.raises(UsageError, match="is no folder"):
        load_folder(folder / "y_train.npy")
