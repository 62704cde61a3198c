"""Wrong inputs through the real program: one line on standard error, an exit code, and nothing written."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from noise_models.errors import UsageError
from optical_dfa.aligning import align
from optical_dfa.cli import main
from privacy.engine import PrivacyEngine

Change = Callable[[Path], None]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return {"x_train": x, "y_train": y, "x_test": x[:8], "y_test": y[:8], **changes}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, good and broken, and one finished private run."""
    shelf = tmp_path_factory.mktemp("shelf")
    good = arrays()
    np.savez(shelf / "good.npz", **good)
    broken = {
        "nan.npz": {"x_train": np.full((40, 5), np.nan, np.float32)},
        "labels.npz": {"classes": np.array(2), "y_train": np.full(40, 7)},
        "negative.npz": {"y_train": np.full(40, -1)},
        "float-labels.npz": {"y_train": np.zeros(40, np.float32)},
        "lengths.npz": {"y_train": good["y_train"][:39]},
        "widths.npz": {"x_test": np.zeros((8, 6), np.float32)},
        "empty.npz": {"x_train": np.zeros((0, 5), np.float32), "y_train": np.zeros(0, np.int64)},
        "flat.npz": {"x_train": np.zeros(40, np.float32)},
        "pickled.npz": {"x_train": np.array([{}] * 40, dtype=object)},
    }
    for name, change in broken.items():
        np.savez(shelf / name, **arrays(**change))
    np.savez(shelf / "lacking.npz", x_train=good["x_train"])
    (shelf / "text.npz").write_text("not a zip file")
    (shelf / "cut.npz").write_bytes((shelf / "good.npz").read_bytes()[:300])
    idx = shelf / "idx" / "MNIST" / "raw"
    idx.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (idx / f"{name}.gz").write_bytes(gzip.compress(bytes.fromhex("00000803 0000ea60 0000001c 0000001c")))
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        (idx / f"{name}.gz").write_bytes(gzip.compress(bytes.fromhex("00000801 0000ea60")))
    (shelf / "file").write_text("a file, no folder")
    (shelf / "broken.toml").write_text("epsilon = = 3\n")
    (shelf / "unknown.toml").write_text("epsilom = 3.0\n")
    (shelf / "typed.toml").write_text('epsilon = "three"\n')
    assert main(["train", *SMALL, "--dataset", str(shelf / "good.npz"), "--out", str(shelf / "run")]) == 0
    return shelf


SMALL = [
    *("--model", "mlp:8", "--batch-size", "8", "--epochs", "1", "--noise-multiplier", "2"),
    *("--max-grad-norm", "1", "--backend", "digital", "--release", "digital"),
]
DIGITAL = ["--release", "digital", "--backend", "digital"]
DIGITS = ["--dataset", "digits", "--epochs", "1"]

# What is given besides `train --out NEW`; {shelf} is the folder of inputs. The last entry is part of the answer.
WRONG: list[tuple[list[str], str]] = [
    (["--dataset", "digit"], "digits"),
    (["--dataset", "{shelf}/absent.npz"], "does not exist"),
    (["--dataset", "{shelf}/nan.npz"], "not finite"),
    (["--dataset", "{shelf}/labels.npz"], "0 ... 1"),
    (["--dataset", "{shelf}/negative.npz"], "0 ... "),
    (["--dataset", "{shelf}/float-labels.npz"], "integers"),
    (["--dataset", "{shelf}/lengths.npz"], "one label a record"),
    (["--dataset", "{shelf}/widths.npz"], "must be equal"),
    (["--dataset", "{shelf}/empty.npz"], "x_train of"),
    (["--dataset", "{shelf}/flat.npz"], "x_train of"),
    (["--dataset", "{shelf}/pickled.npz"], "Object arrays"),
    (["--dataset", "{shelf}/lacking.npz"], "y_train"),
    (["--dataset", "{shelf}/text.npz"], "numpy.savez"),
    (["--dataset", "{shelf}/cut.npz"], "numpy.savez"),
    (["--dataset", "mnist", "--data-dir", "{shelf}/idx"], "holds 0 bytes"),
    (["--dataset", "mnist", "--data-dir", "{shelf}/absent"], "absent"),
    (["--dataset", "cifar10", "--data-dir", "{shelf}/idx"], "no CIFAR-10 files"),
    (["--epsilon", "-1"], "above 0"),
    (["--epsilon", "0"], "above 0"),
    (["--epsilon", "nan"], "above 0"),
    (["--epsilon", "inf"], "above 0"),
    (["--epsilon", "much"], "much"),
    (["--epsilon", "1", "--noise-multiplier", "1"], "one of the two"),
    (["--noise-multiplier", "0"], "above 0"),
    (["--noise-multiplier", "1e300", *DIGITAL], "up to 1e+06"),
    (["--noise-multiplier", "1e-300", *DIGITAL], "no finite epsilon"),
    (["--noise-multiplier", "2", "--delta", "1e-300", *DIGITAL], "no finite epsilon"),
    (["--epsilon", "3", "--delta", "1e-300", *DIGITAL], "out of reach"),
    (["--max-grad-norm", "0"], "above 0"),
    (["--max-grad-norm", "1e300", *DIGITAL], "1e+12"),
    (["--max-grad-norm", "1e-300", *DIGITAL], "1e-12"),
    (["--max-grad-norm", "inf"], "above 0"),
    (["--delta", "0"], "delta"),
    (["--delta", "1"], "delta"),
    (["--delta", "0.001"], "1/N"),
    (["--delta", "1e-4", "--public-size", "20000"], "1/N"),
    (["--batch-size", "0"], "batch_size"),
    (["--batch-size", "100000"], "at most"),
    (["--batch-size", "2.5"], "2.5"),
    (["--public-size", "0"], "public_size"),
    (["--public-size", "10", "--batch-size", "10", "--noise-multiplier", "2", *DIGITAL], "public size is 10"),
    (["--epochs", "0"], "epochs"),
    (["--epochs", "99999999999999999999"], "10^9"),
    (["--lr", "-0.1"], "lr"),
    (["--lr", "1e300"], "at most 10^6"),
    (["--weight-decay", "1e300"], "0 to 10^6"),
    (["--momentum", "1.5"], "momentum"),
    (["--optimizer", "adamw"], "sgd"),
    (["--optimizer", "adam", "--momentum", "0.9"], "momentum"),
    (["--seed", "-1"], "seed"),
    (["--rule", "backprop"], "dfa"),
    (["--rule-option", "gain=2"], "gain"),
    (["--rule-option", "gain"], "NAME=VALUE"),
    (["--backend", "optical"], "simulated-opu"),
    (["--backend-option", "exposure=2"], "exposure"),
    (["--backend-option", "read_noise_electrons=-1"], "read_noise_electrons"),
    (["--backend-option", "full_scale=abc"], "must be a finite number"),
    (["--backend-option", "full_scale=true"], "must be a finite number"),
    (["--backend-option", "full_scale=nan"], "must be a finite number"),
    (["--backend-option", "read_noise_electrons=abc"], "must be a finite number"),
    (["--backend-option", "threshold=abc"], "must be a finite number"),
    (["--backend-option", "dark_pixels=1.5"], "must be a whole number"),
    (["--backend-option", "dark_pixels=abc"], "must be a whole number"),
    (["--backend-option", "dark_pixels=true"], "must be a whole number"),
    (["--backend-option", "adc_bits=abc"], "must be a whole number"),
    (["--backend-option", "encoding=3"], "must be text"),
    (["--rule-option", "scale=true"], "must be a finite number"),
    (["--rule-option", "scale=abc"], "must be a finite number"),
    (["--release", "differential"], "dark-frame"),
    (["--release", "dark-frame", "--backend", "digital"], "no dark frames"),
    (["--release", "dark-frame", "--rule", "bp"], "no dark frames"),
    (["--release", "none", "--epsilon", "3"], "no privacy"),
    (["--model", "transformer"], "model"),
    (["--model", "mlp:0"], "mlp"),
    (["--model", "mlp:wide"], "mlp"),
    (["--model", "mlp:-5x3"], "mlp"),
    (["--model", "mlp:65536,65536,65536"], "200,000,000"),
    (["--device", "tpu"], "cuda"),
    (["--max-physical-batch-size", "0"], "max_physical_batch_size"),
    (["--config", "{shelf}/absent.toml"], "absent.toml"),
    (["--config", "{shelf}/broken.toml"], "not valid TOML"),
    (["--config", "{shelf}/unknown.toml"], "did you mean epsilon"),
    (["--config", "{shelf}/typed.toml"], "three"),
    (["--resume"], "no run"),
    (["--resume", "--overwrite"], "one of the two"),
    (["--no-such-flag"], "--help"),
]
if not torch.cuda.is_available():
    WRONG.append((["--device", "cuda"], "--device cpu"))


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], answer: str, code: int = 2) -> None:
    capsys.readouterr()
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert answer in said.err


@pytest.mark.parametrize(("wrong", "answer"), WRONG, ids=[" ".join(wrong) for wrong, _ in WRONG])
def test_a_wrong_input_is_answered_in_one_line_and_nothing_is_written(
    wrong: list[str], answer: str, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text.format(shelf=shelf) for text in wrong]
    out = tmp_path / "run"
    refused(capsys, ["train", *DIGITS, *given, "--out", str(out)], answer)
    assert not out.exists()


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        (["--release", "dark-frame", "--backend", "digital"], "no dark frames"),
        (["--batch-size", "100000"], "at most"),
        (["--model", "mlp:wide"], "mlp"),
        (["--rule-option", "gain=2"], "gain"),
    ],
)
def test_a_refused_overwrite_leaves_the_earlier_run(
    wrong: list[str], answer: str, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shelf / "run", run)
    before = contents(run)
    refused(capsys, ["train", *DIGITS, *wrong, "--overwrite", "--out", str(run)], answer)
    assert contents(run) == before


def test_a_folder_of_the_users_own_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    arguments = ["train", *DIGITS, "--release", "dark-frame", "--backend", "digital", "--out", str(tmp_path)]
    refused(capsys, arguments, "no dark frames")
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_out_on_a_file(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["train", *DIGITS, "--out", str(shelf / "file")], "is a file")
    assert (shelf / "file").read_text() == "a file, no folder"


@pytest.mark.parametrize(
    ("out", "answer"),
    [("", "--out is empty"), ("{shelf}/file/run", "Not a directory"), ("/proc/nope", "cannot be written")],
)
def test_out_where_no_folder_can_be(
    out: str,
    answer: str,
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", str(shelf / "good.npz"), "--out", out.format(shelf=shelf)]
    refused(capsys, ["train", *SMALL, *data], answer)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("rate", ["0.1", "1"])
def test_steps_that_nobody_takes_are_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = ["account", "--sample-rate", rate, "--delta", "1e-5", "--noise-multiplier", "1"]
    refused(capsys, [*case, "--steps", "10000000001"], "at most 10,000,000")
    refused(capsys, [*case, "--epochs", "1e300"], "at most 10,000,000")


def test_an_absent_device_is_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["train", *DIGITS, "--backend", "lightonml", "--release", "digital", "--out", str(out)]
    refused(capsys, arguments, "lighton", code=1)
    assert not out.exists()


def cut_file(name: str) -> Change:
    def change(run: Path) -> None:
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: len(data) // 2])

    return change


def write_file(name: str, text: str) -> Change:
    return lambda run: (run / name).write_text(text) and None


def edit_ledger(statement: str) -> Change:
    def change(run: Path) -> None:
        with sqlite3.connect(run / "ledger.sqlite") as connection:
            for name in ("no_update", "no_delete"):
                connection.execute(f"DROP TRIGGER IF EXISTS {name}")
            connection.execute(statement)
        connection.close()

    return change


def nothing(run: Path) -> None: ...


def edit_checkpoint(**changes: torch.Tensor) -> Change:
    def change(run: Path) -> None:
        path = run / "checkpoint.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        save_file({**tensors, **{k.replace("__", "."): v for k, v in changes.items()}}, path, metadata)

    return change


def remove_file(name: str) -> Change:
    return lambda run: (run / name).unlink()


RESUMED: dict[str, tuple[Change, list[str], str]] = {
    "no flag": (nothing, ["no-resume"], "already holds a run"),
    "another seed, so another device": (nothing, ["--seed", "1"], "seed"),
    "another backend": (nothing, ["--backend", "simulated-opu"], "backend"),
    "another rule": (nothing, ["--rule", "bp"], "rule"),
    "another network": (nothing, ["--model", "mlp:9"], "model"),
    "another data set": (nothing, ["--dataset", "digits"], "dataset"),
    "another optimizer": (nothing, ["--optimizer", "adam"], "momentum"),
    "another sample rate": (nothing, ["--batch-size", "4"], "batch_size"),
    "less noise": (nothing, ["--noise-multiplier", "1"], "noise_multiplier"),
    "a calibrated noise": (nothing, ["--epsilon", "100"], "target_epsilon"),
    "another clipping norm": (nothing, ["--max-grad-norm", "2"], "max_grad_norm"),
    "another delta": (nothing, ["--delta", "1e-3"], "delta"),
    "seeded noise": (nothing, ["--reproducible"], "reproducible"),
    "diagnostics": (nothing, ["--unsafe-diagnostics"], "unsafe_diagnostics"),
    "config cut": (write_file("config.toml", 'dataset = "dig'), [], "not valid TOML"),
    "config of something else": (write_file("config.toml", "colour = 3\n"), [], "colour"),
    "checkpoint cut": (cut_file("checkpoint.safetensors"), [], "checkpoint"),
    "checkpoint is text": (write_file("checkpoint.safetensors", "hello"), [], "checkpoint"),
    "checkpoint with a broken description": (
        edit_checkpoint(module___extra_state=torch.tensor([123], dtype=torch.uint8)),
        [],
        "checkpoint",
    ),
    "checkpoint with an odd description": (
        edit_checkpoint(module___extra_state=torch.tensor([[300.0]])),
        [],
        "checkpoint",
    ),
    "checkpoint with an odd optimizer entry": (edit_checkpoint(optimizer__x__y=torch.zeros(1)), [], "'x.y'"),
    "checkpoint with an entry of no parameter": (
        edit_checkpoint(optimizer__99__momentum_buffer=torch.zeros(1)),
        [],
        "'99.momentum_buffer'",
    ),
    "checkpoint of another shape": (
        edit_checkpoint(optimizer__0__momentum_buffer=torch.zeros(3)),
        [],
        "has shape (3,)",
    ),
    "ledger gone": (remove_file("ledger.sqlite"), [], "ledger"),
    "ledger cut": (cut_file("ledger.sqlite"), [], "ledger"),
    "ledger is text": (write_file("ledger.sqlite", "hello"), [], "ledger"),
    "a release edited": (
        edit_ledger(
            "UPDATE entries SET body = replace(body, '\"noise_multiplier\":2.0', '\"noise_multiplier\":9.0')"
        ),
        [],
        "ledger",
    ),
    "the last releases cut off": (
        edit_ledger("DELETE FROM entries WHERE seq >= (SELECT max(seq) FROM entries) - 1"),
        [],
        "newer than its ledger",
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_wrong_resume_is_refused_and_the_run_stays_as_it_was(
    case: str, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, flags, answer = RESUMED[case]
    run = tmp_path / "run"
    shutil.copytree(shelf / "run", run)
    change(run)
    before = contents(run)
    again = [*SMALL, "--dataset", str(shelf / "good.npz")]
    given = again if flags == ["no-resume"] else ["--resume", *flags]
    refused(capsys, ["train", *given, "--out", str(run)], answer)
    assert contents(run) == before


def test_a_row_of_metrics_that_a_crash_cut_is_dropped_and_a_finished_run_gets_no_row_twice(
    shelf: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shelf / "run", run)
    metrics = run / "metrics.jsonl"
    before = metrics.read_bytes()
    assert before.count(b"\n") == 1
    metrics.write_bytes(before + b'{"ste')
    for _ in range(2):
        assert main(["train", "--resume", "--out", str(run)]) == 0
        assert metrics.read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"3", b"{}", b"[]", b'{"step":"a"}', b'{"step":true}', b"\xff", b'{"loss": 0.']
)
def test_a_damaged_row_of_metrics_that_no_crash_explains_is_kept_and_refused(
    line: bytes, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shelf / "run", run)
    metrics = run / "metrics.jsonl"
    before = metrics.read_bytes()
    for content in (before + line, line + b"\n" + before, b'{"ste\n' + before):
        metrics.write_bytes(content)
        refused(capsys, ["train", "--resume", "--out", str(run)], "cannot be resumed")
        assert metrics.read_bytes() == content


def test_a_diverged_training_loss_is_no_crash(tmp_path: Path, shelf: Path) -> None:
    run, data = tmp_path / "run", ["--dataset", str(shelf / "good.npz"), "--backend", "digital"]
    options = ["--release", "none", "--lr", "1e6", "--weight-decay", "1e6", "--batch-size", "1"]
    assert main(["train", *data, *options, "--epochs", "1", "--out", str(run)]) == 0
    assert json.loads((run / "metrics.jsonl").read_text())["training_loss"] is None


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["audit", "absent"], "absent"),
        (["audit", "file"], "file"),
        (["audit", "idx"], "ledger"),
        (["report", "absent"], "absent"),
        (["account", "--sample-rate", "2", "--delta", "1e-5"], "sample-rate"),
        (["account", "--sample-rate", "0.1", "--delta", "0"], "delta"),
        (["account", "--sample-rate", "0.1", "--delta", "1e-5", "--steps", "0", "--epsilon", "1"], "steps"),
        (["account", "--sample-rate", "0.1", "--delta", "1e-5", "--steps", "5"], "give two"),
        (["bench", "everything"], "everything"),
        (["fly"], "fly"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_other_commands_answer_alike(
    arguments: list[str],
    answer: str,
    shelf: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shelf)
    before = contents(shelf)
    refused(capsys, arguments, answer)
    assert contents(shelf) == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--dataset", "digit", "--out", "new"], 2),
        (["train", "--backend", "lightonml", "--out", "new"], 1),
    ],
    ids=["name", "device"],
)
def test_the_program_itself(arguments: list[str], code: int, shelf: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "optical_dfa", *arguments],
        cwd=shelf,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not (shelf / "new").exists()


# ---- what only the library can be given


def private(network: nn.Module, loader: DataLoader[tuple[torch.Tensor, ...]], **options: object) -> None:
    module = align(network, rule="dfa", backend="digital", show=None)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    PrivacyEngine().make_private(
        module=module,
        optimizer=optimizer,
        data_loader=loader,
        **{"noise_multiplier": 1.0, "max_grad_norm": 1.0, **options},  # type: ignore[arg-type]
    )


def records() -> TensorDataset:
    return TensorDataset(torch.randn(40, 5), torch.randint(0, 2, (40,)))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("network", "loader", "options", "answer"),
    [
        (
            nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)),
            None,
            {},
            "GroupNorm",
        ),
        (None, None, {"poisson_sampling": False}, "poisson_sampling"),
        (None, DataLoader(records(), batch_sampler=[[0, 1], [2, 3]]), {}, "sampler"),
        (None, DataLoader(records(), batch_size=4, sampler=[0, 1, 2, 3]), {}, "sampler"),
        (
            None,
            DataLoader(records(), batch_size=4, sampler=RandomSampler(records(), replacement=True)),
            {},
            "replacement",
        ),
        (None, [torch.zeros(4, 5)], {}, "DataLoader"),
        (None, DataLoader(records(), batch_size=41), {}, "41"),
        (None, None, {"noise_multiplier": 0.0}, "noise_multiplier"),
        (None, None, {"noise_multiplier": float("nan")}, "noise_multiplier"),
        (None, None, {"max_grad_norm": -1.0}, "max_grad_norm"),
        (None, None, {"release": "homomorphic"}, "digital"),
        (None, None, {"release": "dark-frame"}, "no dark frames"),
        (None, None, {"target_epsilon": 1.0}, "target_delta"),
    ],
    ids=[
        *("BatchNorm", "shuffled", "batch sampler", "own sampler", "replacement", "no loader", "huge batch"),
        *("no noise", "NaN noise", "negative norm", "release", "no dark frames", "budget without delta"),
    ],
)
def test_the_library_refuses_in_one_line(
    network: nn.Module | None,
    loader: DataLoader[tuple[torch.Tensor, ...]] | None,
    options: dict[str, object],
    answer: str,
) -> None:
    with pytest.raises(UsageError, match=answer) as caught:
        private(network or plain(), loader or DataLoader(records(), batch_size=8), **options)
    assert "\n" not in str(caught.value)


# ---- what looks wrong and is not


def test_empty_poisson_batches_are_steps(tmp_path: Path) -> None:
    """One record a step is expected of 40; a step is empty with probability e^-1, so some of 40 are (all but 1e-8)."""
    np.savez(tmp_path / "tiny.npz", **arrays())
    out = tmp_path / "run"
    flags = ["--batch-size", "1", "--model", "mlp:8", "--epochs", "1", "--noise-multiplier", "2"]
    arguments = ["train", "--dataset", str(tmp_path / "tiny.npz"), *flags, "--out", str(out)]
    assert main([*arguments, "--release", "digital", "--backend", "digital"]) == 0
    assert main(["audit", str(out)]) == 0


def test_a_record_that_is_not_finite_trains_on() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.randint(0, 2, (40,))
    x[3], x[7] = torch.nan, torch.inf
    module = align(plain(), rule="dfa", backend="digital", show=None)
    module, optimizer, loader = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=20),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    before = [p.detach().clone() for p in module.parameters()]
    for records, labels in itertools.chain.from_iterable(loader for _ in range(4)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(records), labels).backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
