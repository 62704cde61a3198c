"""`optical-dfa reproduce`: names, quick runs, going on where it stopped, exit codes; on a toy experiment."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from experiments.harness import runner
from experiments.harness.experiment import RESULTS, TABLE
from optical_dfa.cli import main, reproduce

ROOT = Path(__file__).parents[2]

TOY = """
command = "python -m experiments toy_rules"
datasets = ["digits"]
seeds = [0, 1]
spread = "std"

[common]
model = "mlp:8"
backend = "digital"
release = "none"
batch_size = 512
epochs = 1

[[row]]
name = "bp"
settings = { rule = "bp" }
published = "98.76 % (a paper)"

[[row]]
name = "shallow"
settings = { rule = "shallow" }

[[target]]
dataset = "digits"
rows = ["bp"]
at_least = LIMIT
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of experiments with one, toy_rules, in place of the project's."""
    places = tmp_path / "experiments"
    (places / "toy_rules").mkdir(parents=True)
    write(places, limit=0.05)

    def found(name: str) -> ModuleSpec | None:
        if name != "experiments":
            return None if name.endswith("toy_rules") else find_spec(name)
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(places)]
        return spec

    monkeypatch.setattr(reproduce, "find_spec", found)
    monkeypatch.chdir(tmp_path)
    return places


def write(places: Path, limit: float) -> None:
    (places / "toy_rules" / "config.toml").write_text(TOY.replace("LIMIT", str(limit)), encoding="utf-8")


def summary_with(accuracy: float) -> dict[str, Any]:
    return {
        "test_accuracy": accuracy,
        "test_loss": 1.0,
        "guarantee": {"kind": "none", "epsilon": "inf", "delta": 0.0, "device_share": None},
        "noise_multiplier": None,
        "steps": 3,
        "seconds": 2.0,
        "versions": {"torch": "2"},
    }


def test_the_projects_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    assert "rules-mnist" in text
    assert "Every feedback rule" in text
    assert main(["reproduce", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["experiments"]
    assert set(found) == {
        p.parent.name.replace("_", "-") for p in (ROOT / "experiments").glob("*/config.toml")
    }
    assert all(facts["shows"] for facts in found.values())
    assert found["rules-mnist"]["seeds"] == [0, 1, 2]
    assert found["rules-mnist"]["targets"] == 7


@pytest.mark.parametrize("arguments", [[], ["rules-minst"], ["rules_mnist"]])
def test_a_name_that_is_none_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "rules-mnist" in error
    assert all(name in error for name in arguments)


def test_without_the_experiments_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "find_spec", lambda name: None)
    assert main(["reproduce", "--list"]) == 2
    assert capsys.readouterr().err.startswith("error: this installation has no experiments; ")


def test_the_program_does_not_import_them() -> None:
    code = (
        "import sys, optical_dfa.cli.app as app; app._application();"
        "print([m for m in sys.modules if m.split('.')[0] in ('experiments', 'torch')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert ran.stdout == "[]\n"


def test_a_met_target_ends_well_and_the_results_are_kept_apart(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "toy-rules"]) == 0
    kept = toy.parent / "runs" / "reproduce" / "toy-rules"
    shown = capsys.readouterr()
    table = (kept / TABLE).read_text(encoding="utf-8")
    assert shown.out == table
    assert "[4/4] digits, shallow, seed 1" in shown.err
    assert "| 98.76 % (a paper) |" in table
    assert "Made by `optical-dfa reproduce toy-rules`." in table
    assert len((kept / RESULTS).read_text().splitlines()) == 4
    assert [path.name for path in (toy / "toy_rules").iterdir()] == ["config.toml"]


def test_a_missed_target_is_exit_code_1_and_json_says_which(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(toy, limit=0.999)
    monkeypatch.setattr(runner, "train", lambda config, progress: summary_with(0.25 + 0.5 * config.seed))
    assert main(["reproduce", "toy-rules", "--json", "--out", "elsewhere"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["experiment"] == "toy-rules"
    assert found["folder"] == "elsewhere"
    assert found["targets"] == [
        {"target": "digits: bp: mean test accuracy at least 99.90 %", "measured": "50.00 %", "met": False}
    ]
    assert found["rows"][0]["test_accuracy"] == [0.25, 0.75]
    assert found["rows"][0]["published"] == "98.76 % (a paper)"
    assert (toy.parent / "elsewhere" / TABLE).is_file()


def test_quick_runs_each_row_once_and_judges_nothing(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(toy, limit=0.999)
    asked: list[Any] = []

    def train(config: Any, progress: Any) -> dict[str, Any]:
        asked.append(config)
        return summary_with(0.5)

    monkeypatch.setattr(runner, "train", train)
    assert main(["reproduce", "toy-rules", "--quick"]) == 0
    assert [(c.rule, c.dataset, c.seed, c.epochs, c.batch_size) for c in asked] == [
        ("bp", "digits", 0, 2, 128),
        ("shallow", "digits", 0, 2, 128),
    ]
    table = capsys.readouterr().out
    assert "Target" not in table
    assert "98.76" not in table
    assert (toy.parent / "runs" / "reproduce" / "toy-rules-quick" / TABLE).is_file()


def test_interrupted_it_goes_on(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, int]] = []

    def train(config: Any, progress: Any) -> dict[str, Any]:
        if len(done) == 3 and ("stop", 0) not in done:
            done.append(("stop", 0))
            raise KeyboardInterrupt
        done.append((config.rule, config.seed))
        return summary_with(0.5)

    monkeypatch.setattr(runner, "train", train)
    assert main(["reproduce", "toy-rules"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("the same command goes on")
    assert main(["reproduce", "toy-rules"]) == 0
    assert done == [("bp", 0), ("shallow", 0), ("bp", 1), ("stop", 0), ("shallow", 1)]


def test_side_by_side_the_results_are_the_same(toy: Path) -> None:
    assert main(["reproduce", "toy-rules", "--quick"]) == 0
    assert main(["reproduce", "toy-rules", "--quick", "--jobs", "2", "--out", "two"]) == 0
    one, two = (
        {r["identity"]["rule"]: r["test_accuracy"] for r in map(json.loads, path.read_text().splitlines())}
        for path in (toy.parent / "runs/reproduce/toy-rules-quick" / RESULTS, toy.parent / "two" / RESULTS)
    )
    assert one == two
    assert set(one) == {"bp", "shallow"}


def test_a_data_set_that_is_not_there_is_one_line(
    toy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = toy / "toy_rules" / "config.toml"
    path.write_text(
        path.read_text().replace('["digits"]', '["mnist"]').replace('dataset = "digits"', 'dataset = "mnist"')
    )
    assert main(["reproduce", "toy-rules", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
