"""Large vocabularies: words in numbers, a network that devices without a matrix teach, and the table of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.harness.experiment import TABLE
from experiments.vocabulary import study, words
from noise_models.errors import UsageError

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 60


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLASSES": 600, "HIDDEN": (64, 16), "STEPS": 40, "LEARNING_RATE": 1e-2}.items():
        monkeypatch.setattr(words, name, value)


def test_records_are_the_words_before_each_word() -> None:
    found = words.records(TEXT)
    assert found.known == 18
    (x, y), (x_test, _) = found.train, found.test
    assert x[0].tolist() == [0, 1, 2, 3]  # to be , or
    assert y[:4].tolist() == [4, 0, 1, 2]  # not to be ,
    assert torch.equal(x[1:, -1], y[:-1])
    assert len(x_test) == (len(x) + len(x_test)) // 10


@pytest.mark.parametrize("text", ["to be or not to be", " ".join(f"w{n}" for n in range(60_000))])
def test_a_text_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^the text has \d+ different words of \d+; it must have 400 or more"
    ):
        words.records(text)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("backend", ["streamed", "structured"])
def test_the_loss_falls(backend: str) -> None:
    """From that of a guess among all classes to less than that of a guess among the words there are."""
    found = words.trained(words.Way("dfa", backend), words.records(TEXT))
    assert found["before"] == pytest.approx(math.log(600), abs=0.2)
    assert found["after"] < math.log(18)
    assert found["seconds"] > 0


def test_the_published_table_is_what_was_kept() -> None:
    assert (study.FOLDER / TABLE).read_text(encoding="utf-8") == study.table("tinyshakespeare.txt")
    assert set(study.kept("tinyshakespeare.txt")) == set(words.WAYS)


def test_the_command_writes_the_table_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def told(way: words.Way, text: Path) -> dict[str, Any]:
        if len(trained) == 2 and not interrupted:
            interrupted.append(way)
            raise KeyboardInterrupt
        trained.append(way)
        return {**way._asdict(), "before": 10.82, "after": 6.5, "seconds": 0.51, "peak": 1234.4}

    interrupted: list[words.Way] = []

    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(words, "in_a_fresh_process", told)
    (tmp_path / "play.txt").write_text(TEXT, encoding="utf-8")
    assert study.main([str(tmp_path / "play.txt")]) == 130
    assert study.main([str(tmp_path / "play.txt")]) == 0
    assert trained == list(words.WAYS)
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert "| dfa | streamed | 10.82 | 6.50 | 0.51 | 1,234 |" in text
    assert "| bp | – |" in text
    assert "of play.txt" in text
    assert "50,000 classes of which the text uses 18" in text
    assert study.main([str(tmp_path / "none.txt")]) == 2
