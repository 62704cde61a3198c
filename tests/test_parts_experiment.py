"""The parts of a private step: they add up to it, and the kept table has a line for every cell."""

from __future__ import annotations

import pytest

from experiments.harness.experiment import TABLE
from experiments.parts import study
from optical_dfa.bench.networks import NETWORKS
from privacy.releases.digital import DigitalNoise


def test_the_parts_add_up_to_the_step() -> None:
    add_noise = DigitalNoise.add_noise
    cells = study.row("gru", 16, 1)
    assert DigitalNoise.add_noise is add_noise
    assert len(cells) == len(study.HEAD)
    whole, *parts = (float(cells[study.HEAD.index(part)]) for part in ("Private", *study.HEAD[5:12]))
    assert sum(parts) == pytest.approx(whole, abs=0.5)
    assert min(parts) >= 0


def test_direct_feedback_needs_two_thirds_of_the_products_and_the_first_layers_share() -> None:
    """Plain training does not send errors back to the inputs: 784-1024-1024-10 has (3 · 1.86 - 0.80) M products."""
    forward = 784 * 1024 + 1024 * 1024 + 1024 * 10
    assert study.products_alone(NETWORKS["mlp"]) == pytest.approx(2 * forward / (3 * forward - 784 * 1024))
    assert study.products_alone(NETWORKS["transformer"]) == 1.0


def test_the_kept_table_has_every_cell() -> None:
    lines = (study.FOLDER / TABLE).read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"| {' | '.join(study.HEAD)} |"
    for name, batch in study.CELLS:
        assert any(line.startswith(f"| {name} | {batch} |") for line in lines)
