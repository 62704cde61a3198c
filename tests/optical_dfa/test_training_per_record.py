"""Runs of the training program under `per-record` and `aggregate`: what the folder says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from noise_models.errors import UsageError
from optical_dfa.config import TrainConfig
from optical_dfa.training.trainer import train

SETTINGS: dict[str, Any] = {
    "backend": "digital", "model": "mlp:16", "epochs": 1, "batch_size": 32, "noise_multiplier": 1.0,
}  # fmt: skip


def certificate(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return found


def test_a_run_keeps_its_certificate_and_its_guarantee_names_what_fails(tmp_path: Path) -> None:
    summary = train(TrainConfig(release="per-record", **SETTINGS), tmp_path / "run")
    guarantee = summary["guarantee"]
    assert (guarantee["kind"], guarantee["accountant"]) == ("conditional", "published")
    found = certificate(tmp_path / "run")
    assert found["computed_from_private_records"] is False
    failing = [finding for finding in found["findings"] if finding["holds"] is False]
    assert found["failing"] == len(failing) == 1  # 32 of up to 161 records may span the 65 directions
    assert failing[0]["where"] == "3"
    assert failing[0]["figure"] == 16 * 10 + 10
    named = [text for text in guarantee["assumptions"] if text.startswith("FAILS: ")]
    assert len(named) == 1
    assert "coordinates of the output layer released without noise 170" in named[0]


def test_records_are_looked_at_under_unsafe_diagnostics_only(tmp_path: Path) -> None:
    config = TrainConfig(release="per-record", unsafe_diagnostics=True, **SETTINGS)
    summary = train(config, tmp_path / "run")
    assert summary["guarantee"]["kind"] == "none"
    found = certificate(tmp_path / "run")
    assert found["computed_from_private_records"] is True
    by = {finding["assumption"]: finding for finding in found["findings"] if not finding["public"]}
    constant = by["no coordinate is constant over the batch"]
    assert constant["holds"] is False  # the digits have pixels that are white in every picture
    assert by["every direction of a row of the update is noised"]["holds"] is False
    left = by["leaving a record out moves the law of the update by no more than is claimed of a step"]
    assert (left["holds"], left["figure"]) == (False, "inf")  # about 32 records in 65 directions
    train(config.model_copy(update={"release": "digital"}), tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "certificate.json").exists()


def test_aggregate_counts_the_columns_that_it_projects() -> None:
    config = TrainConfig(
        release="aggregate",
        rule="gated-dfa",
        rule_options={"gates": 2},
        **{**SETTINGS, "backend": "simulated-opu"},
    )
    summary = train(config)
    assert summary["guarantee"]["kind"] == "record-dp"
    wide = train(config.model_copy(update={"batch_size": 64}))
    columns = 65  # 64 inputs and a bias a step, whatever the batch
    for run in (summary, wide):
        assert run["data_frames"] == run["steps"] * columns * (
            summary["data_frames"] // (summary["steps"] * columns)
        )
    assert wide["steps"] < summary["steps"]


def test_aggregate_with_the_default_rule_says_which_one_it_takes() -> None:
    with pytest.raises(UsageError, match="needs rule gated-dfa") as error:
        train(TrainConfig(release="aggregate", rule="dfa", **SETTINGS))
    assert "\n" not in str(error.value)
