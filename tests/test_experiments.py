"""Experiments: the runner goes on where it stopped, the table says what was measured, README repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main, names
from experiments.harness import runner
from experiments.harness.experiment import RESULTS, TABLE, Experiment, Results, identity, load
from experiments.harness.table import Cell, document, write_table
from noise_models.errors import UsageError

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/config.toml"))

TINY = """
command = "python -m experiments tiny"
datasets = ["digits"]
seeds = [0, 1]
spread = "std"

[common]
model = "mlp:8"
backend = "digital"
epochs = 1
batch_size = 512

[[row]]
name = "private"
settings = { release = "digital", epsilon = 3.0 }

[[row]]
name = "plain"
settings = { release = "none", rule = "shallow" }

[[target]]
dataset = "digits"
rows = ["private"]
figure = "epsilon"
at_most = 3.0

[[target]]
dataset = "digits"
rows = ["plain"]
at_least = 0.999
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(TINY, encoding="utf-8")
    return tmp_path


def results_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]


def test_a_finished_run_is_not_done_again_and_a_missed_target_is_told(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(tiny, []) == 1  # nobody reaches 99.9 % with frozen hidden layers in one epoch
    table = (tiny / TABLE).read_text(encoding="utf-8")
    assert capsys.readouterr().out == table
    assert "| digits: private: ε at most 3 |" in table
    found = results_of(tiny)
    private = [r for r in found if r["kind"] == "record-dp"]
    assert len(found) == 4
    assert len(private) == 2
    assert all(2.5 < r["epsilon"] <= 3.0 for r in private)
    monkeypatch.setattr(runner, "train", lambda *_, **__: pytest.fail("a finished run was done again"))
    assert runner.main(tiny, []) == 1
    assert (tiny / TABLE).read_text(encoding="utf-8") == table


def test_a_row_may_start_from_anothers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text(
        TINY.split("[[row]]")[0]
        + 'release = "none"\n[[row]]\nname = "bp"\nsettings = { rule = "bp" }\n'
        + '[[row]]\nname = "transfer"\nsettings = { rule = "shallow" }\nsource = "bp"\n'
        + '[[target]]\ndataset = "digits"\nrows = ["transfer"]\nat_least = 0.0\n',
        encoding="utf-8",
    )
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    (tmp_path / "config.toml").write_text(text.replace('"mlp:8"', '"cnn:4+8"'), encoding="utf-8")
    assert runner.main(tmp_path, ["--seeds", "1"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-bp-1"]
    asked: list[tuple[str, Path | None]] = []

    def train(config: Any, out: Path | None = None, **_: Any) -> dict[str, Any]:
        asked.append((config.rule, out))
        return summary_with(0.5)

    monkeypatch.setattr(runner, "train", train)
    assert runner.main(tmp_path, ["--seeds", "1"]) == 0  # wherever the folder is, both are finished
    assert asked == []
    lines = (tmp_path / RESULTS).read_text(encoding="utf-8").splitlines()
    (tmp_path / RESULTS).write_text(lines[0] + "\n", encoding="utf-8")
    (tmp_path / "runs").rename(tmp_path / "lost")
    runner.main(tmp_path, ["--seeds", "1"])  # what it starts from is needed again
    assert asked == [("bp", tmp_path / "runs" / "digits-bp-1"), ("shallow", None)]


def summary_with(accuracy: float) -> dict[str, Any]:
    guarantee = {"kind": "none", "epsilon": "inf", "delta": 0.0, "device_share": None}
    return {
        "test_accuracy": accuracy,
        "test_loss": 4 * (1 - accuracy),
        "guarantee": guarantee,
        "noise_multiplier": None,
        "steps": 3,
        "seconds": 2.0,
        "versions": {"torch": "2"},
    }


def test_an_interrupted_table_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, int]] = []

    def train(config: Any, progress: Any) -> dict[str, Any]:
        if len(done) == 3:
            done.append(("interrupt", -1))
            raise KeyboardInterrupt
        done.append((config.release, config.seed))
        return summary_with(0.5)

    monkeypatch.setattr(runner, "train", train)
    assert runner.main(tiny, []) == 130
    assert "same command goes on" in capsys.readouterr().err
    assert len(results_of(tiny)) == 3
    assert "(1 of 2 seeds)" in (tiny / TABLE).read_text(encoding="utf-8")
    runner.main(tiny, [])
    assert [d for d in done if d[0] != "interrupt"] == [
        ("digital", 0),
        ("none", 0),
        ("digital", 1),
        ("none", 1),
    ]


def test_a_torn_line_is_no_result_and_spoils_no_other(tiny: Path) -> None:
    experiment, results = load(tiny), Results(tiny / RESULTS)
    first, second = (experiment.config("digits", experiment.row[1], seed) for seed in (0, 1))
    results.append(first, summary_with(0.25), {"threads": 1, "processor": "x"})
    whole = results.path.read_text()
    results.path.write_text(whole[: len(whole) // 2])
    assert results.find(first) is None
    results.append(second, summary_with(0.75), {"threads": 1, "processor": "x"})
    found = results.find(second)
    assert found is not None
    assert found["test_accuracy"] == 0.75


def test_a_result_under_other_settings_does_not_count(tiny: Path) -> None:
    experiment, results = load(tiny), Results(tiny / RESULTS)
    config = experiment.config("digits", experiment.row[1], 0)
    results.append(config, summary_with(0.5), {"threads": 1, "processor": "x"})
    assert results.find(config.model_copy(update={"data_dir": Path("elsewhere")})) is not None
    assert results.find(config.model_copy(update={"epochs": 2})) is None


def judged(
    tmp_path: Path, accuracies: dict[str, list[float]], target: str, figure: str = "test_accuracy"
) -> tuple[bool | None, str]:
    """One target about rows with these accuracies, one a seed; and the table."""
    rows = "".join(f'[[row]]\nname = "{name}"\nsettings = {{ rule = "{name}" }}\n' for name in accuracies)
    seeds = list(range(max(len(values) for values in accuracies.values())))
    (tmp_path / "config.toml").write_text(
        f'command = "c"\ndatasets = ["digits"]\nseeds = {seeds}\nspread = "interval"\nfigures = ["{figure}"]\n'
        f'[common]\nrelease = "none"\n{rows}[[target]]\ndataset = "digits"\n{target}',
        encoding="utf-8",
    )
    experiment, results = load(tmp_path), Results(tmp_path / RESULTS)
    for row in experiment.row:
        for seed, accuracy in enumerate(accuracies[row.name]):
            config = experiment.config("digits", row, seed)
            results.append(config, summary_with(accuracy), {"threads": 1, "processor": "x"})
    (met,) = write_table(tmp_path, experiment)
    return met, (tmp_path / TABLE).read_text(encoding="utf-8")


def test_the_interval_is_students(tmp_path: Path) -> None:
    _, table = judged(tmp_path, {"dfa": [0.1, 0.2, 0.3, 0.4, 0.5]}, 'rows = ["dfa"]\nat_least = 0.3')
    # 2.776 (tables, 4 degrees of freedom) * sqrt(0.025) / sqrt(5) = 0.1963
    assert "| digits | dfa | 30.00 % ± 19.63 | 2 |" in table


def test_a_table_of_losses(tmp_path: Path) -> None:
    """4 (1 - accuracy): 1.2 and 1.0 against 1.0 and 1.0, a mean 10 % above."""
    target = 'rows = ["bp", "dfa"]\nfigure = "test_loss"\nabove = {}'
    accuracies = {"bp": [0.75, 0.75], "dfa": [0.7, 0.75]}
    for above, met in ((0.11, True), (0.09, False)):
        folder = tmp_path / str(above)
        folder.mkdir()
        assert judged(folder, accuracies, target.format(above), figure="test_loss")[0] is met
    table = (tmp_path / "0.11" / TABLE).read_text(encoding="utf-8")
    assert "| Data set | Run | Test loss | Seconds |" in table
    assert (
        "| digits | dfa | 1.100 ± 1.271 | 2 |" in table
    )  # 12.71 (tables, 1 degree of freedom) * 0.1414 / sqrt(2)
    assert "| digits: dfa: mean test loss at most 11 % above that of bp | +10.00 % | yes |" in table
    (row,) = [r for r in document(tmp_path / "0.11", load(tmp_path / "0.11"))["rows"] if r["run"] == "dfa"]
    assert row["test_loss"] == [pytest.approx(1.2), 1.0]


def test_a_loss_that_was_not_finite_meets_no_target(tiny: Path) -> None:
    experiment, results = load(tiny), Results(tiny / RESULTS)
    config = experiment.config("digits", experiment.row[1], 0)
    results.append(config, {**summary_with(0.1), "test_loss": None}, {"threads": 1, "processor": "x"})
    assert Cell([r for r in [results.find(config)] if r], 1).judged("test_loss") == float("inf")


def test_quick_takes_a_file_beside_the_settings(tiny: Path) -> None:
    """Digits for pictures; a text cannot be made of them."""
    assert load(tiny).quick().datasets == ("digits",)
    (tiny / "sample.txt").write_text("to be or not to be")
    text = '\n[quick_run]\ndataset = "sample.txt"\nbatch_size = 16\n'
    (tiny / "config.toml").write_text(TINY + text, encoding="utf-8")
    quick = load(tiny).quick()
    assert quick.datasets == (str(tiny / "sample.txt"),)
    assert {(row.settings["epochs"], row.settings["batch_size"]) for row in quick.row} == {(2, 16)}


def test_quick_does_rows_that_differ_in_their_epochs_once(tiny: Path) -> None:
    longer = '[[row]]\nname = "longer"\nsettings = { release = "none", rule = "shallow", epochs = 9 }\n\n'
    (tiny / "config.toml").write_text(TINY.replace("[[target]]", longer + "[[target]]", 1), encoding="utf-8")
    assert [row.name for row in load(tiny).row] == ["private", "plain", "longer"]
    assert [row.name for row in load(tiny).quick().row] == ["private", "plain"]


@pytest.mark.parametrize(
    ("accuracies", "target", "met"),
    [
        ({"dfa": [0.8, 0.9]}, 'rows = ["dfa"]\nat_least = 0.849', True),
        ({"dfa": [0.8, 0.9]}, 'rows = ["dfa"]\nat_least = 0.851', False),
        ({"dfa": [0.8, 0.8], "bp": [0.81, 0.81]}, 'rows = ["dfa", "bp"]\nwithin = 0.015', True),
        ({"dfa": [0.8, 0.8], "bp": [0.83, 0.81]}, 'rows = ["dfa", "bp"]\nwithin = 0.015', False),
        ({"dfa": [0.9, 0.9001], "bp": [0.88, 0.8801]}, 'rows = ["dfa", "bp"]\nbelow_by = 0.015', True),
        ({"dfa": [0.9, 0.9001], "bp": [0.89, 0.8901]}, 'rows = ["dfa", "bp"]\nbelow_by = 0.015', False),
        ({"dfa": [0.92, 0.88], "bp": [0.90, 0.84]}, 'rows = ["dfa", "bp"]\nbelow_by = 0.015', False),
        ({"dfa": [0.9, 0.9], "bp": [0.8]}, 'rows = ["dfa", "bp"]\nwithin = 0.5', None),
        ({"dfa": [0.9, 0.9]}, 'rows = ["dfa"]\nfigure = "epsilon"\nat_most = 3.0', False),
        ({"dfa": [0.9, 0.9]}, 'rows = ["dfa"]\nfigure = "seconds"\nat_most = 2.0', True),
    ],
)
def test_targets(tmp_path: Path, accuracies: dict[str, list[float]], target: str, met: bool | None) -> None:
    assert judged(tmp_path, accuracies, target)[0] is met


def test_an_experiment_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text(TINY.replace('spread = "std"', 'spread = "range"'))
    assert runner.main(tmp_path, ["--table-only"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: experiment")
    assert error.count("\n") == 1


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_experiment_is_sound(folder: Path) -> None:
    experiment: Experiment = load(folder)
    names = {row.name for row in experiment.row}
    assert len(names) == len(experiment.row)
    for target in experiment.target:
        assert set(target.rows) <= names
        assert target.dataset in experiment.datasets
        limits = (target.at_least, target.at_most, target.within, target.below_by, target.above)
        assert sum(limit is not None for limit in limits) == 1
    for which in (experiment, experiment.quick()):
        configs = [which.config(name, row, 0) for name in which.datasets for row in which.row]
        assert len({json.dumps(identity(config)) for config in configs}) == len(configs)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_published_table_is_its_results(folder: Path, tmp_path: Path) -> None:
    if not (folder / RESULTS).is_file():
        assert not (folder / TABLE).exists()  # nothing was measured yet
        return
    (tmp_path / "config.toml").write_bytes((folder / "config.toml").read_bytes())
    (tmp_path / RESULTS).write_bytes((folder / RESULTS).read_bytes())
    write_table(tmp_path, load(folder))
    assert (tmp_path / TABLE).read_text(encoding="utf-8") == (folder / TABLE).read_text(encoding="utf-8")


def test_an_unknown_setting_in_an_experiment_is_refused(tiny: Path) -> None:
    (tiny / "config.toml").write_text(TINY.replace("epochs = 1", "epochz = 1"))
    experiment = load(tiny)
    with pytest.raises(UsageError, match="epochz"):
        experiment.config("digits", experiment.row[0], 0)


def test_every_experiment_is_run_by_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"rules-mnist".replace("-", "_"), "theory", "defaults", "tabular"} <= set(names())
    for name in names():
        with pytest.raises(SystemExit) as done:
            main([name.replace("_", "-"), "--help"])
        assert done.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: python -m experiments {name}")
    assert main(["no-such"]) == 2
    assert "rules_mnist" in capsys.readouterr().err
