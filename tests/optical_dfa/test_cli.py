"""The command line: exit codes, one-line errors, clean JSON, quick help. Training is tested elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import write_run

from noise_models.errors import DeviceError, UsageError
from optical_dfa.cli import main
from optical_dfa.cli.app import COMMANDS
from optical_dfa.cli.train import parse_options
from optical_dfa.config import TrainConfig
from optical_dfa.networks.building import build
from optical_dfa.settings import SETTINGS

ROOT = Path(__file__).parents[2]
CASE = ["--sample-rate", "0.004266666666666667", "--delta", "1e-5"]

Train = Callable[..., dict[str, Any]]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """In place of the trainer: writes a run folder, prints, and remembers what it was called with."""
    module = types.ModuleType("optical_dfa.training.trainer")

    def train(
        config: Any, out: Path | None, *, resume: bool, overwrite: bool, progress: Any, **ending: Any
    ) -> dict[str, Any]:
        called = {"config": config, "resume": resume, "overwrite": overwrite, **ending}
        module.called = called  # type: ignore[attr-defined]
        print("a library's chatter")
        progress.start(10)
        progress.update(10, {"test accuracy": 0.85})
        folder = out if out is not None else Path(config.data_dir) / "scratch"
        return json.loads((write_run(folder) / "summary.json").read_text())

    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("optical_dfa.training.trainer", module, raising=False)
    return module


def account(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["account", *CASE, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_help_is_quick_and_light() -> None:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "optical_dfa", "--help"], cwd=ROOT, check=True, capture_output=True
        )
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 0.5
    code = (
        "import sys; from optical_dfa.cli import main; main(['train', '--help']);"
        "assert not {'torch', 'numpy', 'matplotlib', 'rich', 'optical_dfa.config'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: optical-dfa {name}" in text
    for spec in re.findall(r"\bmlp:\w[\w,]*", text):
        build(spec, (4,), 2, 0)
    assert "--json" in text


def test_no_arguments_show_help_and_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("optical-dfa")


WRONG = [
    ["accoutn"],
    ["--frobnicate"],
    ["account"],
    ["account", *CASE],
    ["account", *CASE, "--steps", "10"],
    ["account", *CASE, "--steps", "10", "--noise-multiplier", "1", "--epsilon", "1"],
    ["account", *CASE, "--steps", "10", "--epochs", "1", "--noise-multiplier", "1"],
    ["account", *CASE, "--steps", "-10", "--noise-multiplier", "1"],
    ["account", *CASE, "--steps", "1.5", "--noise-multiplier", "1"],
    ["account", *CASE, "--steps", "10", "--noise-multiplier", "0"],
    ["account", *CASE, "--steps", "10", "--noise-multiplier", "inf"],
    ["account", *CASE, "--steps", "10", "--epsilon", "nan"],
    ["account", *CASE, "--epochs", "nan", "--epsilon", "1"],
    ["account", *CASE, "--noise-multiplier", "0.3", "--epsilon", "0.001"],
    ["account", *CASE, "--steps", "10", "--noise-multiplier", "1", "--accountant", "moments"],
    ["account", *CASE, "--steps", "10", "--noise-multiplier", "1", "--adjacency", "label"],
    [
        "account",
        *CASE,
        "--steps",
        "10",
        "--noise-multiplier",
        "1",
        "--accountant",
        "rdp",
        "--adjacency",
        "replace-one",
    ],
    ["account", "--sample-rate", "0", "--delta", "1e-5", "--steps", "10", "--noise-multiplier", "1"],
    ["account", "--sample-rate", "1.1", "--delta", "1e-5", "--steps", "10", "--noise-multiplier", "1"],
    ["account", "--sample-rate", "0.1", "--delta", "0", "--steps", "10", "--noise-multiplier", "1"],
    ["account", "--sample-rate", "0.1", "--delta", "1", "--steps", "10", "--noise-multiplier", "1"],
    ["audit"],
    ["audit", "absent"],
    ["bench", "nothing"],
    ["report"],
    ["report", "absent"],
    ["report", "one", "two"],
    ["train", "--epsilon", "-1"],
    ["train", "--delta", "0"],
    ["train", "--rule", "backprop"],
    ["train", "--backend", "quantum"],
    ["train", "--release", "magic"],
    ["train", "--epochs", "many"],
    ["train", "--config", "absent.toml"],
    ["train", "--epsilon", "1", "--noise-multiplier", "1"],
    ["train", "--backend-option", "bits"],
    ["train", "--rule-option", "=8"],
    ["train", "--resume"],
    ["train", "--overwrite"],
    ["train", "--resume", "--overwrite", "--out", "run"],
    ["train", "--resume", "--out", "run"],
    ["train", "--out", "file"],
    ["train", "--out", ""],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trainer: types.ModuleType,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert len(output.err) > 25
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not hasattr(trainer, "called")


def test_account_gives_the_reference_figure() -> None:
    arguments = ["--noise-multiplier", "1.1", "--steps", "10000", "--json"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "optical_dfa", "account", *CASE, *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert time.perf_counter() - start < 6  # the promise is 3 s; the machine may be busy
    result = json.loads(done.stdout)
    assert result["epsilon"] == pytest.approx(1.978, abs=0.005)
    assert {"delta", "noise_multiplier", "sample_rate", "steps", "adjacency", "accountant"} <= set(result)
    assert not [line for line in done.stderr.splitlines() if line.endswith(" torch")]


def test_account_solves_for_each_of_the_three_and_never_overshoots(
    capsys: pytest.CaptureFixture[str],
) -> None:
    noise = account(capsys, "--epsilon", "1", "--steps", "1000")
    assert 0.99 < noise["epsilon"] <= 1
    sigma = str(noise["noise_multiplier"])
    spent = account(capsys, "--noise-multiplier", sigma, "--steps", "1000")
    assert spent["epsilon"] == pytest.approx(noise["epsilon"])
    steps = account(capsys, "--noise-multiplier", sigma, "--epsilon", "1")
    assert steps["steps"] >= 1000
    assert steps["epsilon"] <= 1
    more = account(capsys, "--noise-multiplier", sigma, "--steps", str(steps["steps"] + 1))
    assert more["epsilon"] > 1


def test_account_epochs_are_steps_times_the_sample_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        account(capsys, "--epochs", "2", "--noise-multiplier", "1")["steps"] == 469
    )  # 2 / 0.0042667 = 468.75
    assert (
        main(
            ["account", "--sample-rate", "0.1", "--delta", "1e-5", "--epochs", "3", "--noise-multiplier", "2"]
        )
        == 0
    )
    assert "steps             30\n" in capsys.readouterr().out


def test_account_text_carries_delta_adjacency_and_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--noise-multiplier", "1", "--steps", "100", "--adjacency", "replace-one"]
    assert main(["account", *CASE, *arguments]) == 0
    text = capsys.readouterr().out
    for expected in ("1e-05", "record-dp", "replace-one", "pld", "assumptions", "Poisson"):
        assert expected in text


def test_backends_json_is_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    from optical_dfa.backends import available

    assert main(["backends", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["backends"]
    assert [(row["name"], row["available"], row["detail"]) for row in rows] == available()
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(rows)
    assert len({line.index(row["detail"]) for line, row in zip(lines[1:], rows, strict=True)}) == 1


def test_train_json_is_the_summary_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: types.ModuleType
) -> None:
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((out / "summary.json").read_text())
    assert "chatter" in output.err
    assert "<!doctype html>" in (out / "report.html").read_text()


def test_train_text_gives_accuracy_and_the_whole_guarantee(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: types.ModuleType
) -> None:
    out = tmp_path / "run"
    assert main(["train", "--out", str(out)]) == 0
    output = capsys.readouterr()
    for expected in ("85.31 %", "record-dp", "pld", "88.1 %", "frames are independent", "report.html"):
        assert expected in output.out
    assert "\x1b" not in output.out + output.err
    assert "━" not in output.err


BY_FLAG: dict[
    Any, tuple[list[str], Any]
] = {  # type on the command line -> words, and what the setting is then
    str: (["a,b"], "a,b"),
    Path: (["p"], Path("p")),
    float: (["0.5"], 0.5),
    int: (["7"], 7),
    bool: ([], True),
    list[str]: (["bits=8"], {"bits": 8}),
}


def test_every_setting_has_a_flag_that_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(file: dict[str, Any], flags: dict[str, Any]) -> None:
        taken.append(flags)
        raise UsageError("enough")

    taken: list[dict[str, Any]] = []
    monkeypatch.setattr("optical_dfa.config.merge", merge)
    given = [word for setting in SETTINGS.values() for word in (setting.flag, *BY_FLAG[setting.given][0])]
    assert main(["train", *given]) == main(["train"]) == 2
    expected = {name: BY_FLAG[setting.given][1] for name, setting in SETTINGS.items()}
    assert taken == [{**expected, "points": ["a", "b"]}, dict.fromkeys(TrainConfig.model_fields)]


def test_flags_reach_the_trainer_and_win_over_the_file(tmp_path: Path, trainer: types.ModuleType) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("epochs = 3\nlr = 0.5\nseed = 4\n[backend_options]\nbits = 8\nseed = 1\n")
    flags = [
        "--config",
        str(file),
        "--lr",
        "0.25",
        "--data-dir",
        str(tmp_path),
        "--max-physical-batch-size",
        "64",
    ]
    options = ["--backend-option", "seed=2", "--backend-option", "mode=fast", "--reproducible"]
    options += ["--max-minutes", "7", "--checkpoint-every", "2min"]
    assert main(["train", *flags, *options]) == 0
    config = trainer.called["config"]
    assert (trainer.called["max_minutes"], trainer.called["checkpoint_every"].seconds) == (7.0, 120.0)
    assert (config.epochs, config.lr, config.seed, config.max_physical_batch_size) == (3, 0.25, 4, 64)
    assert config.backend_options == {"bits": 8, "seed": 2, "mode": "fast"}
    assert config.reproducible
    assert not config.unsafe_diagnostics


def test_a_run_is_not_touched_without_resume_or_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: types.ModuleType
) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.toml").write_text("epochs = 7\n")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(["train", "--out", str(run)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert not hasattr(trainer, "called")


def test_a_run_without_its_settings_is_told_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: types.ModuleType
) -> None:
    """Neither of the two refusals sends to the other: only one of them names --resume, and that one would help."""
    run = write_run(tmp_path / "run")
    (run / "config.toml").unlink(missing_ok=True)
    assert main(["train", "--resume", "--out", str(run)]) == 2
    said = capsys.readouterr().err
    for words in ("no config.toml", "put it back", "--overwrite", "another folder"):
        assert words in said
    assert "drop --resume" not in said
    assert main(["train", "--out", str(run)]) == 2
    assert "--resume" not in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["train", "--resume", "--out", str(tmp_path / "empty")]) == 2
    assert "drop --resume" in capsys.readouterr().err
    assert not hasattr(trainer, "called")


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_resume_takes_the_folders_settings_and_overwrite_does_not(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: types.ModuleType
) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.toml").write_text("epochs = 7\n")
    seen: dict[str, Any] = {}

    def train(config: Any, out: Path, **options: Any) -> dict[str, Any]:
        seen.update(options, epochs=config.epochs)
        return json.loads((out / "summary.json").read_text())

    monkeypatch.setattr(trainer, "train", train)
    assert main(["train", flag, "--out", str(run)]) == 0
    assert seen["resume"] == (flag == "--resume")
    assert seen["overwrite"] == (flag == "--overwrite")
    assert seen["epochs"] == (7 if flag == "--resume" else None)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("seed is -1;\nuse 0"), 2, "error: seed is -1; use 0\n"),
        (DeviceError("the camera is unplugged"), 1, "error: the camera is unplugged\n"),
        (OSError(28, "No space left on device", "/run/x"), 3, "error: /run/x: No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted; go on with: optical-dfa train --resume --out run\n"),
    ],
)
def test_failures_are_one_line_with_their_exit_code(
    error: BaseException,
    code: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trainer: types.ModuleType,
) -> None:
    def fail(*_: Any, **__: Any) -> dict[str, Any]:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "train", fail)
    assert main(["train", "--out", "run"]) == code
    output = capsys.readouterr()
    assert output.err == line
    assert output.out == ""


def test_a_programming_error_names_its_place_and_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, trainer: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(trainer, "train", fail)
    assert main(["train"]) == 70
    assert "ZeroDivisionError at test_cli.py:" in capsys.readouterr().err


def test_options_are_numbers_truths_or_text() -> None:
    given = ["bits=8", "gain=3.2e1", "dither=true", 'name="8"', "mode=phase-steps", "full-well=1", "path=a=b"]
    assert parse_options("--backend-option", given) == {
        "bits": 8,
        "gain": 32.0,
        "dither": True,
        "name": "8",
        "mode": "phase-steps",
        "full_well": 1,
        "path": "a=b",
    }
    assert parse_options("--backend-option", None) is None


def test_report_writes_into_the_run_or_to_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second")
    assert main(["report", str(first)]) == 0
    assert (first / "report.html").is_file()
    page = tmp_path / "comparison.html"
    capsys.readouterr()
    assert main(["report", str(first), str(second), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(page)
    assert "second" in page.read_text()


def test_audit_says_no_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from privacy.accounting import epsilon, gaussian
    from privacy.ledger import Ledger

    run = tmp_path / "run"
    run.mkdir()
    step = gaussian(0.1, 2.0)
    header = {"release": "digital", "reproducible": False, "adjacency": "add-or-remove-one", "delta": 1e-5}
    header |= {"sample_rate": 0.1, "noise_multiplier": 2.0, "max_grad_norm": 1.0, "nominal_size": 1000}
    with Ledger.create(run / "ledger.sqlite", {**header, "batch_size": 100, "accountant": "pld"}) as ledger:
        for _ in range(5):
            ledger.append_release(step)
    true = epsilon({step: 5}, 1e-5)
    claim = {"epsilon": true / 2, "delta": 1e-5, "kind": "record-dp", "adjacency": "add-or-remove-one"}
    claim |= {"accountant": "pld", "assumptions": []}
    (run / "summary.json").write_text(json.dumps({"guarantee": claim, "steps": 5}))
    assert main(["audit", str(run), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["consistent"] is False
    assert result["findings"]
    assert result["epsilon"] == pytest.approx(true, rel=0.02)
    assert main(["audit", str(run)]) == 1
    assert "finding: " in capsys.readouterr().out


def test_bench_dispatches_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("optical_dfa.bench.step")
    module.run = lambda: {"ratio_vs_backprop": 0.93, "threads": 1}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optical_dfa.bench.step", module)
    monkeypatch.setitem(sys.modules, "optical_dfa.bench", types.ModuleType("optical_dfa.bench"))
    assert main(["bench", "step", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ratio_vs_backprop": 0.93, "threads": 1}
    assert main(["bench", "step"]) == 0
    assert "0.93" in capsys.readouterr().out
