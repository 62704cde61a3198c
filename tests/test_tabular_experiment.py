"""The synthetic click-through table: its law, its ideal figures, and how the experiment makes and shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments import tabular
from experiments.harness.experiment import RESULTS, TABLE, Results, load
from experiments.harness.table import document, write_table
from experiments.tabular.clicks import CARDINALITIES, TEST, TRAIN, Clicks, best_auc, draw, popularity
from optical_dfa.data import load as load_data


@pytest.fixture(scope="module")
def clicks() -> Clicks:
    return draw(tabular.SEED)


def test_the_ideal_area_is_that_of_labels_drawn_again_and_again(clicks: Clicks) -> None:
    """Mean of scikit-learn's area over 40 fresh draws of the labels, within 5 standard errors (false alarm < 1e-5)."""
    rng, p = np.random.default_rng(7), clicks.probability[TRAIN : TRAIN + 4000]
    areas = [roc_auc_score(rng.random(len(p)) < p, p) for _ in range(40)]
    assert abs(np.mean(areas) - best_auc(p)) < 5 * np.std(areas, ddof=1) / np.sqrt(40)


def test_closed_forms_of_the_ideal_area() -> None:
    assert best_auc(np.array([0.0, 0.0, 1.0])) == pytest.approx(1.0)
    assert best_auc(np.linspace(0.3, 0.3 + 1e-9, 500)) == pytest.approx(0.5, abs=1e-3)
    uniform = (np.arange(20000) + 0.5) / 20000  # E[p (1 - p') 1(p > p')] / E[p (1 - p')] = (5/24) / (1/4)
    assert best_auc(uniform) == pytest.approx(5 / 6, abs=1e-4)


def test_labels_follow_the_law(clicks: Clicks) -> None:
    """Deviation of the number of ones from its expectation, in ten classes of odds: chi-square, false alarm 1e-6."""
    from scipy.stats import chi2

    order = np.array_split(np.argsort(clicks.probability), 10)
    found = sum(
        (clicks.y[part].sum() - clicks.probability[part].sum()) ** 2
        / (clicks.probability[part] * (1 - clicks.probability[part])).sum()
        for part in order
    )
    assert found < chi2.ppf(1 - 1e-6, 10)


def test_popularity_has_a_long_tail(clicks: Clicks) -> None:
    counts = np.bincount(clicks.x[:, 0].astype(int), minlength=CARDINALITIES[0])
    expected = popularity(CARDINALITIES[0]) * len(clicks.x)
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()
    assert counts[:10].sum() > 0.3 * len(clicks.x)


def test_the_notes_figures_are_the_laws(clicks: Clicks) -> None:
    note = load(tabular.FOLDER).note
    assert f"AUC is {clicks.best_auc():.4f}" in note
    assert f"accuracy {100 * clicks.best_accuracy():.2f} %" in note
    assert f"{100 * clicks.y.mean():.0f} % of label 1" in note
    assert f"{TRAIN:,} + {TEST:,} records" in note


def test_the_table_is_made_once_and_made_again_where_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clicks: Clicks
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tabular, "draw", lambda seed: clicks)
    tabular.prepare()
    (path,) = (tmp_path / "runs").iterdir()
    data = load_data(str(path))
    assert data.cardinalities == (*CARDINALITIES, 0, 0, 0, 0)
    assert (len(data.x_train), len(data.x_test), data.classes, data.public) == (TRAIN, TEST, 2, ())
    made = path.stat().st_ino
    tabular.prepare()
    assert path.stat().st_ino == made
    path.write_bytes(b"torn")
    tabular.prepare()
    assert load_data(str(path)).x_train.equal(data.x_train)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [path.name]


def test_quick_keeps_a_table_of_its_own() -> None:
    assert load(tabular.FOLDER).quick().datasets == load(tabular.FOLDER).datasets


# ---- the figure in a table


def judged(folder: Path, areas: dict[str, list[float]], target: str) -> tuple[bool | None, str, Any]:
    rows = "".join(f'[[row]]\nname = "{name}"\nsettings = {{ rule = "{name}" }}\n' for name in areas)
    (folder / "config.toml").write_text(
        f'command = "c"\ndatasets = ["runs/own.npz"]\nseeds = [0, 1]\nspread = "interval"\nnote = "A note."\n'
        f'figures = ["test_accuracy", "test_auc"]\n'
        f'[common]\nrelease = "none"\n{rows}[[target]]\ndataset = "runs/own.npz"\nfigure = "test_auc"\n{target}',
        encoding="utf-8",
    )
    experiment, results = load(folder), Results(folder / RESULTS)
    for row in experiment.row:
        for seed, area in enumerate(areas[row.name]):
            summary = {
                "test_accuracy": 0.5, "test_auc": area, "noise_multiplier": None, "steps": 3, "seconds": 2.0,
                "guarantee": {"kind": "none", "epsilon": "inf", "delta": 0.0, "device_share": None},
                "versions": {"torch": "2"},
            }  # fmt: skip
            config = experiment.config("runs/own.npz", row, seed)
            results.append(config, summary, {"threads": 1, "processor": "x"})
    (met,) = write_table(folder, experiment)
    return met, (folder / TABLE).read_text(encoding="utf-8"), document(folder, experiment)


@pytest.mark.parametrize(
    ("areas", "target", "met", "shown"),
    [
        ({"dfa": [0.8, 0.9]}, 'rows = ["dfa"]\nat_least = 0.849', True, "mean test AUC at least 0.8490 | 0.8500"),
        ({"dfa": [0.8, 0.9]}, 'rows = ["dfa"]\nat_least = 0.851', False, "| 0.8500 | **no**"),
        (
            {"bp": [0.8, 0.8], "dfa": [0.81, 0.83]}, 'rows = ["bp", "dfa"]\nwithin = 0.015', False,
            "AUC within 0.0150 of each other | 0.0200 |",
        ),
        (
            {"bp": [0.9, 0.9001], "dfa": [0.88, 0.8801]}, 'rows = ["bp", "dfa"]\nbelow_by = 0.015', True,
            "dfa at least 0.0150 below bp in AUC, 95 % intervals disjoint | 0.0200, intervals disjoint |",
        ),
        (
            {"bp": [0.92, 0.88], "dfa": [0.9, 0.84]}, 'rows = ["bp", "dfa"]\nbelow_by = 0.015', False,
            "0.0300, intervals overlap",
        ),
    ],
)  # fmt: skip
def test_targets_of_the_area(
    tmp_path: Path, areas: dict[str, list[float]], target: str, met: bool, shown: str
) -> None:
    found, table, told = judged(tmp_path, areas, target)
    assert found is met
    assert shown in table
    assert "| Data set | Run | Test accuracy | Test AUC | Seconds |" in table
    assert "| own | " in table
    assert "\nA note.\n" in table
    assert told["rows"][0]["test_auc"] == next(iter(areas.values()))
    assert (
        json.loads((tmp_path / RESULTS).read_text().splitlines()[0])["test_auc"]
        == next(iter(areas.values()))[0]
    )
