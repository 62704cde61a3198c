"""Values nobody means, through every command: an exit code, one line, never a traceback or an internal error."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from optical_dfa.cli import main

TRAIN = ["train", "--epochs", "1", "--model", "mlp:4", "--backend", "digital"]
ACCOUNT = ["account", "--delta", "1e-5", "--sample-rate", "0.1", "--steps", "3", "--noise-multiplier", "1"]
ODD = ["nan", "inf", "-1", "1e400", "", "  ", "x", "99999999999999999999999", "0x10", "é", "\udcff", "a\0b"]

FILES = {
    "bytes.toml": b"\xff\xfe\x00",
    "latin.toml": "rule='é'".encode("latin-1"),
    "deep.toml": b"a=" + b"[" * 3000,
    "types.toml": b"epochs='x'\nlr=[1]\n",
    "huge.toml": b"seed=1" + b"0" * 400 + b"\n",
    "table.toml": b"[release]\nx=1\n",
    "lists.toml": b"backend=[1]\nrule=[2]\n",
    "options.toml": b"backend_options='x'\n",
    "infinite.toml": b"lr=inf\n",
    "zero.toml": b'dataset="a\\u0000b.npz"\n',
    "empty.npz": b"",
    "broken.npz": b"PK\x03\x04xx",
    "bytes.txt": b"\xff" * 1000,
    "cut.json": b"[1,2",
    "number.json": b"3",
    "bytes.json": b"\xff",
    "ledger.sqlite": b"SQLite format 3\0garbage",
}


def one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(arguments)
    output = capsys.readouterr()
    assert code in (0, 1, 2, 3), output.err
    assert output.err.count("\n") == (0 if code == 0 else 1), output.err


@pytest.mark.parametrize("value", ODD, ids=ascii)
@pytest.mark.parametrize(
    "flag",
    ["--dataset", "--data-dir", "--features", "--rule", "--rule-option", "--points", "--backend",
     "--backend-option", "--release", "--release-option", "--epsilon", "--delta", "--noise-multiplier",
     "--max-grad-norm", "--batch-size", "--max-physical-batch-size", "--public-size", "--lr", "--lr-schedule",
     "--momentum", "--weight-decay", "--optimizer", "--seed", "--device", "--transfer", "--calibration"],
)  # fmt: skip
def test_train_answers_any_value_in_one_line(
    flag: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line([*TRAIN, flag, value], capsys)


@pytest.mark.parametrize("value", ODD, ids=ascii)
def test_account_and_calibrate_answer_any_value_in_one_line(
    value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for flag in ("delta", "sample-rate", "noise-multiplier", "steps", "epochs", "epsilon", "mechanism", "accountant",
                 "adjacency", "calibration-beta", "sensitivity", "dimension", "least-rate", "largest", "table",
                 "plot"):  # fmt: skip
        one_line([*ACCOUNT, f"--{flag}", value], capsys)
    for flag in ("in-features", "out-features", "frames", "confidence", "beta", "valid-days", "seed", "out"):
        one_line(["calibrate", "--backend", "digital", f"--{flag}", value], capsys)


@pytest.mark.parametrize("name", [*FILES, "objects.npz", "folder", "absent/x", "x" * 300])
def test_any_file_in_any_place_is_answered_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, content in FILES.items():
        Path(file).write_bytes(content)
    Path("folder").mkdir()
    records = np.array([{}] * 3, dtype=object)
    np.savez("objects.npz", x_train=records, y_train=[0, 1, 0], x_test=[[1.0]], y_test=[0])
    places = [
        [*TRAIN, flag, name]
        for flag in ("--config", "--dataset", "--data-dir", "--transfer", "--calibration")
    ]
    places += [
        ["audit", name],
        ["report", name],
        ["audit", "folder", "--filed", name],
        [*ACCOUNT, "--plot", name],
    ]
    places += [["calibrate", "--backend", "simulated-opu", "--health", "--calibration", name]]
    for arguments, more in itertools.product(places, ([], ["--json"])):
        if more:
            assert main([*arguments, *more]) in (0, 1, 2, 3)
            capsys.readouterr()
        else:
            one_line(arguments, capsys)
