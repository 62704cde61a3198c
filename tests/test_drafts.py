"""Files that are written whole or not at all: under a name of their own, of which nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from noise_models.drafts import draft_of, is_draft, replacing
from noise_models.errors import UsageError
from optical_dfa.config import TrainConfig, write
from optical_dfa.report.page import write_report
from optical_dfa.runs.folder import RunFolder
from privacy import checkpoint
from privacy.guarantee import Guarantee
from privacy.ledger import Ledger


def keep_checkpoint(path: Path) -> None:
    module = nn.Linear(2, 2)
    with Ledger.create(None, {}) as ledger:
        position = checkpoint.Position(0, 0, "", 0.0)
        checkpoint.save(path, module, torch.optim.SGD(module.parameters()), position, ledger)


def write_page(path: Path) -> None:
    run = RunFolder(path.parent)
    stated = Guarantee.of_run({"release": "none", "reproducible": False}, 1.0, 0.0, "none")
    run.write_json("summary.json", {"guarantee": stated.to_dict()})
    write_report([path.parent], path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "config.toml": lambda path: write(TrainConfig(), path),
    "report.html": write_page,
    "summary.json": lambda path: RunFolder(path.parent).write_json(path.name, {}),
    "checkpoint.safetensors": keep_checkpoint,
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_two_writers_share_a_draft(name: str, tmp_path: Path) -> None:
    """Another process's draft is in the way of nobody, and stays: here a folder of the name that was fixed before."""
    (tmp_path / f"{name}.partial").mkdir()
    WRITERS[name](tmp_path / name)
    assert {file.name for file in tmp_path.iterdir()} >= {name, f"{name}.partial"}
    assert not [file for file in tmp_path.iterdir() if is_draft(file.name, name)]
    (tmp_path / "taken" / name).mkdir(parents=True)
    if name == "report.html":
        WRITERS["summary.json"](tmp_path / "taken" / "summary.json")
    with pytest.raises((UsageError, OSError)):
        WRITERS[name](tmp_path / "taken" / name)
    assert not [file for file in (tmp_path / "taken").iterdir() if is_draft(file.name, name)]


def test_a_draft_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError), replacing(path) as draft:
        draft.write_text("half \ud800")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "before"


def test_only_drafts_are_taken_for_drafts(tmp_path: Path) -> None:
    drafts = {draft_of(tmp_path / "a.json") for _ in range(50)}
    assert len(drafts) == 50
    assert all(is_draft(draft.name, "a.json") for draft in drafts)
    for name in ("a.json", "a.json.new", "a.json.old-1.new", "b.json.1-ab.new", "a-json.1-ab.new"):
        assert not is_draft(name, "a.json")


def test_a_resume_removes_what_a_crash_left_and_nothing_else(tmp_path: Path) -> None:
    left, kept = tmp_path / "checkpoint.safetensors.9-ab.new", tmp_path / "config.toml.new"
    for file in (left, kept):
        file.write_text("")
    folder = RunFolder(tmp_path)
    folder.begin(TrainConfig(), resume=True, overwrite=False)
    folder.close()
    assert {file.name for file in tmp_path.iterdir()} == {"config.toml", "config.toml.new"}
