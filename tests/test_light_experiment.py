"""What a step of release `photon` takes of a device: the table is what the release says."""

from __future__ import annotations

import pytest

from experiments.harness.experiment import TABLE
from experiments.light import study
from noise_models.camera import CAMERAS
from optical_dfa.networks.building import build


def test_the_table_has_what_a_gated_step_takes() -> None:
    text = (study.FOLDER / TABLE).read_text(encoding="utf-8")
    found, bound = study.gated_step(study.LIQUID_CRYSTAL.options(CAMERAS["machine-vision"], "homodyne"))
    assert found["light_path"]["levels"] == 255
    assert found["seconds_a_step"] == found["exposures_a_step"] / 200
    assert f"{found['columns_a_step']:,} columns" in text
    assert f"| {found['clamp'] / bound:.3g} | " in text
    # Columns of ten: four gates of ten classes for each coefficient and the bias, and the output layer by itself.
    net = build("gated", study.IMAGE, 10, 0)
    width, hidden = net.layers[0].in_features, net.layers[0].out_features  # type: ignore[index, union-attr]
    assert found["columns_a_step"] == 4 * (width + 1) + hidden + 1


@pytest.mark.slow
def test_the_table_has_what_a_sum_that_is_read_back_loses() -> None:
    text = (study.FOLDER / TABLE).read_text(encoding="utf-8")
    assert all(line in text for line in study.lost())
