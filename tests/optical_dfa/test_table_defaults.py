"""The settings chosen for private tables learn: better than a constant prediction, at epsilon 1."""

from __future__ import annotations

import pytest

from experiments.defaults.study import CASES, draw, trained


@pytest.mark.slow  # a small table stands for it
@pytest.mark.parametrize("categorical", [0, 8])
def test_a_private_table_of_adults_size_beats_a_constant_prediction_clearly(categorical: int) -> None:
    table = draw(32_561, 14, 2, categorical)
    summary = trained(table, epsilon=1.0, backend="digital")
    assert summary["guarantee"]["epsilon"] <= 1
    assert summary["model"] == ("embed" if categorical else "mlp")
    gain = (table.constant - summary["test_loss"]) / (table.constant - table.law)
    assert gain > 0.35
    assert summary["test_loss"] < 0.85 * table.constant


def test_a_small_table_does_too() -> None:
    table = draw(2000, 14, 2)
    summary = trained(table, epsilon=1.0, backend="digital")
    assert summary["model"] == "mlp"
    assert summary["guarantee"]["epsilon"] <= 1
    assert summary["test_loss"] < 0.9 * table.constant


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case[0] > 500], ids=str)
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize(("backend", "release"), [("digital", "digital"), ("simulated-opu", "dark-frame")])
def test_every_table_of_the_study(
    case: tuple[int, int, int, int], epsilon: float, backend: str, release: str
) -> None:
    table = draw(*case)
    summary = trained(table, epsilon=epsilon, backend=backend, release=release)
    assert summary["test_loss"] < 0.92 * table.constant
