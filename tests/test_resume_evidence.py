"""A run is resumed only where its ledger knows everything that its folder tells of; a full disk is said in one line."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from optical_dfa.cli import main
from privacy import checkpoint
from privacy.auditing.audit import audit
from privacy.ledger import Ledger

SIZES = ["--dataset", "digits", "--model", "mlp:8", "--batch-size", "256", "--json"]
PRIVATE = ["--noise-multiplier", "2", "--delta", "1e-4", "--release", "digital", "--backend", "digital"]


def train(out: Path, *more: str, private: bool = True) -> int:
    kept = PRIVATE if private else ["--release", "none", "--backend", "digital"]
    return main(["train", *SIZES, *kept, "--out", str(out), *more])


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run after one part, and the same after two."""
    folder = tmp_path_factory.mktemp("days")
    assert train(folder / "run", "--epochs", "1") == 0
    shutil.copytree(folder / "run", folder / "yesterday")
    assert train(folder / "run", "--epochs", "2", "--resume") == 0
    return folder / "yesterday", folder / "run"


@pytest.fixture
def run(days: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(days[1], tmp_path / "run"))


def of_yesterday(*names: str) -> Callable[[Path, Path], None]:
    def put(run: Path, yesterday: Path) -> None:
        for name in names:
            shutil.copy(yesterday / name, run / name)

    return put


def without(*names: str) -> Callable[[Path, Path], None]:
    def take(run: Path, _: Path) -> None:
        for name in names:
            (run / name).unlink()

    return take


def both(*changes: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def change(run: Path, yesterday: Path) -> None:
        for each in changes:
            each(run, yesterday)

    return change


LEDGER, WEIGHTS, METRICS, SUMMARY = "ledger.sqlite", "checkpoint.safetensors", "metrics.jsonl", "summary.json"
PAIR = (LEDGER, WEIGHTS)
BEYOND: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "yesterday's ledger and weights": (of_yesterday(*PAIR), "metrics.jsonl reports step 12"),
    "and metrics": (of_yesterday(*PAIR, METRICS), "summary.json reports 12 steps"),
    "yesterday's ledger and weights, no metrics": (both(of_yesterday(*PAIR), without(METRICS)), "summary.json reports"),
    "yesterday's ledger": (of_yesterday(LEDGER), "newer than its ledger"),
    "yesterday's ledger, no weights": (both(of_yesterday(LEDGER), without(WEIGHTS)), "metrics.jsonl reports step 12"),
    "no ledger": (without(LEDGER), "newer than its ledger"),
    "no ledger, no weights": (without(*PAIR), "there is no ledger.sqlite"),
    "only metrics": (without(*PAIR, SUMMARY, "report.html"), "metrics.jsonl can only be written after it"),
    "only a summary": (without(*PAIR, METRICS, "report.html"), "summary.json can only be written after it"),
    "only a page": (without(*PAIR, METRICS, SUMMARY), "report.html can only be written after it"),
    "no weights": (without(WEIGHTS), "without checkpoint.safetensors"),
    "no metrics": (without(METRICS), "without a row of metrics.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), BEYOND.values(), ids=BEYOND)
def test_no_run_goes_on_that_tells_of_more_than_its_ledger(
    change: Callable[[Path, Path], None],
    said: str,
    run: Path,
    days: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(run, days[0])
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert not audit(run).consistent
    capsys.readouterr()
    assert train(run, "--epochs", "3", "--resume") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before  # the evidence is still there
    assert not audit(run).consistent


def in_row(line: int, text: bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        rows = (run / METRICS).read_bytes().split(b"\n")
        rows[line] = text
        (run / METRICS).write_bytes(b"\n".join(rows))

    return change


@pytest.mark.parametrize(
    "change",
    [
        in_row(0, b'{"step": 6,'),
        in_row(0, b"\xff\xfe"),
        in_row(0, b""),
        in_row(0, b'{"step": 6, "step": 5, "test_accuracy": 0.5}'),
        in_row(0, b'{"step": 7, "test_accuracy": 0.5}'),
        in_row(0, b'{"step": true}'),
        in_row(2, b'{"step": 13, "test_accuracy": 0.5}'),
        in_row(2, b'{"step": 12, "training_lo'),
        lambda run: (run / SUMMARY).write_text("{"),
    ],
    ids=["cut", "no text", "empty", "twice", "no weights named", "no number", "one more", "one more, cut", "summary"],
)  # fmt: skip
def test_rows_that_no_crash_explains_are_not_dropped(
    change: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run)
    before = (run / METRICS).read_bytes()
    capsys.readouterr()
    assert train(run, "--epochs", "3", "--resume") == 2
    assert "cannot be resumed" in capsys.readouterr().err
    assert (run / METRICS).read_bytes() == before
    assert not audit(run).consistent


def test_rows_that_a_crash_explains_are_dropped(run: Path, days: tuple[Path, Path]) -> None:
    """The weights of an earlier step, under a ledger that knows the later ones: what was released is known."""
    shutil.copy(days[0] / WEIGHTS, run / WEIGHTS)
    with (run / METRICS).open("a") as file:
        file.write('{"step": 18, "ep')  # a crash cut it
    assert any("was cut by a crash" in note for note in audit(run).notes)
    assert train(run, "--epochs", "3", "--resume") == 0
    report = audit(run)
    assert (report.findings, report.releases) == ((), 18)
    said = json.loads((run / SUMMARY).read_text())
    assert (said["steps"], said["releases"]) == (12, 18)
    steps = [json.loads(line)["step"] for line in (run / METRICS).read_text().splitlines()]
    assert steps == [6, 12]


def test_a_run_without_privacy_is_held_to_its_ledger_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, "--epochs", "1", private=False) == 0
    yesterday = Path(shutil.copytree(run, tmp_path / "yesterday"))
    assert train(run, "--epochs", "2", "--resume", private=False) == 0
    assert audit(run).findings == ()
    for name in PAIR:
        shutil.copy(yesterday / name, run / name)
    capsys.readouterr()
    assert train(run, "--epochs", "3", "--resume", private=False) == 2
    assert "the ledger names no weights of that step" in capsys.readouterr().err
    assert not audit(run).consistent


# ---- what makes it another run stands in the ledger, whatever the settings' file says


@pytest.mark.parametrize("weights", [True, False], ids=["", "killed before the first weights"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("seed = 0", "seed = 1"),
        ('model = "mlp:8"', 'model = "mlp:9"'),
        ('optimizer = "sgd"', 'optimizer = "adam"'),
    ],
)
def test_an_edited_setting_does_not_make_another_run_of_it(
    before: str, after: str, weights: bool, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in () if weights else (WEIGHTS, METRICS, SUMMARY, "report.html"):
        (run / name).unlink()
    text = (run / "config.toml").read_text()
    assert before in text
    text = text.replace(before, after)
    if "adam" in after:
        text = "".join(line + "\n" for line in text.splitlines() if not line.startswith("momentum"))
    (run / "config.toml").write_text(text)
    capsys.readouterr()
    assert main(["train", "--resume", "--epochs", "3", "--out", str(run)]) == 2
    assert f"the run to resume had {before.split(' ')[0]}" in capsys.readouterr().err


def test_the_ledger_holds_the_settings_of_every_part(run: Path) -> None:
    assert train(run, "--epochs", "3", "--resume", "--lr", "0.01") == 0
    assert main(["train", "--resume", "--out", str(run)]) == 0  # no other ones, no other row
    with Ledger.open(run / LEDGER, read_only=True) as ledger:
        parts = [ledger.header()["settings"], *ledger.events("settings")]
    assert [part["epochs"] for part in parts] == [1, 2, 3]
    assert [part["lr"] for part in parts][1:] == [parts[0]["lr"], 0.01]
    assert parts[0]["dataset"] == "digits"
    assert not {"data_dir", "device"} & parts[0].keys()
    report = audit(run)
    assert report.findings == ()
    assert "settings that changed when the run was resumed: epochs, lr" in report.notes


# ---- time, and steps that were lost


def test_time_counts_every_part_and_lost_steps_are_said(
    run: Path, days: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checkpoint.load

    def loaded(*given: Any) -> checkpoint.Position:
        position = load(*given)
        return checkpoint.Position(**{**vars(position), "seconds": 1e6})

    shutil.copy(days[0] / WEIGHTS, run / WEIGHTS)
    monkeypatch.setattr(checkpoint, "load", loaded)
    capsys.readouterr()
    assert main(["train", "--resume", "--epochs", "3", "--out", str(run)]) == 0
    shown = capsys.readouterr().out
    said = json.loads((run / SUMMARY).read_text())
    assert said["seconds"] > 1e6
    assert said["seconds_per_step"] == pytest.approx(1e6 / 12, rel=1e-3)
    assert "12 in 3 epochs" in shown
    assert "18: 6 more than steps, released and then lost" in shown


# ---- a full disk


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows past `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 300, 2_000, 10_000, 20_000, 35_000, 50_000, 70_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of up to 80 kB: every one of them is cut at one of these sizes."""
    run = tmp_path / "run"
    with disk_of(size):
        code = main(["train", *SIZES, "--model", "mlp:128", *PRIVATE, "--epochs", "2", "--out", str(run)])
    error = capsys.readouterr().err
    assert code in (1, 2), error
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [error.splitlines()[-1]]
    assert "Traceback" not in error
    spent = 0
    if run.exists():
        assert audit(run).findings == ()
        spent = audit(run).releases
        assert main(["train", "--resume", "--out", str(run)]) == 0
    else:
        assert (
            main(["train", *SIZES, "--model", "mlp:128", *PRIVATE, "--epochs", "2", "--out", str(run)]) == 0
        )
    report = audit(run)
    assert (report.findings, report.unchecked) == ((), ("report.html",))
    assert spent <= report.releases == 12


def refusing(name: str, error: Exception) -> Callable[[pytest.MonkeyPatch], None]:
    """The library's call fails on its second use."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        owner, _, attribute = name.rpartition(".")
        target: Any = {"checkpoint": checkpoint, "os": os, "Path": Path}[owner]
        call, calls = getattr(target, attribute), [0]

        def fail(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                raise error
            return call(*args, **kwargs)

        monkeypatch.setattr(target, attribute, fail)

    return patch


@pytest.mark.parametrize(
    "patch",
    [
        refusing("checkpoint.save_file", SafetensorError("Error while serializing: No space left on device")),
        refusing("checkpoint.save_file", OSError(28, "No space left on device")),
        refusing("os.fsync", OSError(5, "Input/output error")),
        refusing("Path.replace", OSError(122, "Disk quota exceeded")),
    ],
    ids=["safetensors", "no space", "input/output", "quota"],
)
def test_whatever_library_meets_it(
    patch: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        assert train(run, "--epochs", "2") == 2
    error = capfd.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert "cannot be written" in error
    assert "Traceback" not in error
    assert audit(run).findings == ()
    assert train(run, "--epochs", "2", "--resume") == 0
    assert audit(run).findings == ()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_every_file_has_the_same_mode(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        assert train(tmp_path / "run", "--epochs", "1") == 0
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "run").iterdir()}
    assert modes[WEIGHTS] == 0o666 & ~mask
    assert {modes[name] for name in (METRICS, SUMMARY, "config.toml", "report.html")} == {0o666 & ~mask}
    assert modes[LEDGER] == 0o644 & ~mask  # SQLite's own choice
