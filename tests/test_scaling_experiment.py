"""The study of sizes: its figures of matrices against closed forms, its table against what was measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from experiments.harness.experiment import TABLE
from experiments.scaling import study
from experiments.scaling.cells import DEVICES, Cell, in_a_fresh_process
from experiments.scaling.nearness import means, nearness
from experiments.scaling.picture import draw_scaling
from optical_dfa.backends import BACKENDS


def orthogonal(rows: int, columns: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(rows, columns, generator=stream, dtype=torch.float64)).Q
    return q * math.sqrt(rows)


@pytest.mark.parametrize("columns", [400, 100, 25])
def test_an_orthogonal_matrix_has_a_flat_spectrum(columns: int) -> None:
    """All singular values are √rows: over √rows + √columns, and all at 1 in a law of which a part lies below 1."""
    found = nearness(orthogonal(400, columns))
    assert found.norm == pytest.approx(20 / (20 + math.sqrt(columns)), abs=1e-9)
    assert found.coherence < 1e-9
    # Of a ratio of 1 the law below 1 is that of a quarter circle of radius 2 below 1: 1/3 + √3/(2π).
    if columns == 400:
        assert found.spectrum == pytest.approx(1 / 3 + math.sqrt(3) / (2 * math.pi), abs=1e-3)
    else:
        assert 0.5 < found.spectrum < 0.6


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (500, 100), (100, 500)])
def test_independent_entries_have_the_law_of_marchenko_and_pastur(rows: int, columns: int) -> None:
    found = means(0, rows, columns)
    assert found.spectrum < 0.03  # of linear statistics: of order 1 / rows, not 1 / √rows
    assert found.norm == pytest.approx(1.0, abs=0.03)
    assert found.kurtosis == pytest.approx(3.0, abs=0.05)
    vectors = min(rows, columns)
    assert found.coherence == pytest.approx(math.sqrt(4 * math.log(vectors)), rel=0.2)


def test_one_round_is_signs_and_three_are_nearly_normal() -> None:
    one, three = (means(rounds, 256, 40) for rounds in (1, 3))
    assert one.kurtosis == pytest.approx(1.0)
    assert three.kurtosis == pytest.approx(3.0, abs=0.1)


def test_a_cell_is_measured_in_a_process_of_its_own() -> None:
    found = in_a_fresh_process(Cell("digital", 1000, 2000, 2))
    assert found["seconds"] > 0
    # The matrix and its transpose.
    assert found["peak"] * (1 << 20) >= 2 * 4 * 1000 * 2000


def test_parts_of_a_devices_outputs_are_measured_apart() -> None:
    whole, part = (in_a_fresh_process(Cell("streamed", 2048, 20_480, 1, part)) for part in (0, 3))
    assert part["part"] == 3
    assert part["seconds"] < whole["seconds"] / 5  # of 20


def invented(cell: Cell) -> dict[str, float]:
    """Time as the square of the side, but structured as the side; memory as many MiB as there are inputs."""
    power = 1 if cell.device == "structured" else 2
    return {"seconds": 1e-9 * cell.inputs**power * (300 if power == 1 else 1), "peak": float(cell.inputs)}


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    found = {cell: invented(cell) for cell in study.CELLS}
    text = study.table(found, ["STATISTICS"])
    assert "| 4,096 | 4,096 | 0.017 s, 4,096 MiB | 0.017 s, 4,096 MiB | 0.0012 s, 4,096 MiB |" in text
    assert "| 32,768 | 32,768 | – | 1.1 s, 32,768 MiB | 0.0098 s, 32,768 MiB |" in text
    assert "structured is quicker than digital from 512 x 512 entries on." in text
    assert "batch 32: at most 60 s | 10 s | yes |" in text
    assert "at most 2 GiB | 97.7 GiB | no |" in text
    assert "2 times digital's product | 1 times | yes |" in text
    assert "10⁶ x 10⁶, batch 1, in 20 parts of its outputs: it runs | 2e+04 s | – |" in text
    assert "STATISTICS" in text
    partly = study.table({cell: found[cell] for cell in (*study.CURVE, *study.WHOLE[:3])}, ())
    assert "it runs; of 3 parts so far | 3e+03 s" in partly
    assert "batch 32: at most 60 s | not measured | – |" in partly
    draw_scaling({cell: found[cell]["seconds"] for cell in study.CURVE}, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 5000


def test_the_published_table_is_what_was_kept() -> None:
    published = (study.FOLDER / TABLE).read_text(encoding="utf-8")
    assert set(study.table(study.kept(), ()).splitlines()) <= set(published.splitlines())
    assert set(study.CURVE) <= set(study.kept())


def test_the_list_of_backends_gives_the_measured_crossover() -> None:
    (size,) = (
        line.removeprefix("structured is quicker than digital from ").split(" x ")[0]
        for line in study.crossovers(study.kept())
        if line.startswith("structured is quicker than digital")
    )
    assert f"{size} x {size} entries on" in BACKENDS["structured"].summary
    assert set(DEVICES) <= set(BACKENDS)
