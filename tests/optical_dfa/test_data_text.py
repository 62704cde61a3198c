"""Text as records: what is cut where, what is refused, and where the official file is found."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from noise_models.errors import UsageError
from optical_dfa.data import load, text
from optical_dfa.data.text import LENGTH, in_records

REPOSITORY = Path(__file__).resolve().parents[2]
# Read before the fixture below takes the variable away.
REAL_DATA = Path(os.environ.get("OPTICAL_DFA_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPTICAL_DFA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_records_share_no_character_and_targets_come_next() -> None:
    whole = "".join(chr(ord("a") + i % 26) for i in range(2000)) + "é"
    data = in_records("t", whole)
    letters = sorted(set(whole))
    assert (data.classes, data.input_shape, data.text) == (27, (LENGTH,), True)
    assert data.x_train.dtype == data.y_train.dtype == torch.int64
    assert "27 different characters" in data.public[0]
    for x, y, part in ((data.x_train, data.y_train, whole[:-200]), (data.x_test, data.y_test, whole[-200:])):
        assert len(x) == len(part) // (LENGTH + 1)
        assert torch.equal(x[:, 1:], y[:, :-1])
        rows = torch.cat([x, y[:, -1:]], dim=1)
        assert "".join(letters[i] for i in rows.flatten()) == part[: rows.numel()]


def test_digits_are_no_text() -> None:
    assert not load("digits").text


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.TXT").write_text("naïve\r\n" * 200, encoding="utf-8", newline="")
    data = load(str(tmp_path / "own.TXT"))
    assert data.classes == 7  # both characters of the line's end are kept
    assert len(data.x_train) == 1260 // (LENGTH + 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe" * 1000, ("not UTF-8", "byte 0")),
        (b"ab" * 324, ("has 648 characters", "650")),
        (b"", ("has 0 characters",)),
        (b"a" * 1000, ("1 different characters", "2 to 65536")),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    refused(lambda: load(str(path)), str(path), *words)


def test_absent_files(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    refused(lambda: load(str(tmp_path / "absent.txt")), "does not exist", ".txt")
    refused(lambda: load(str(tmp_path / "folder.txt")), "is a folder")
    refused(lambda: load("tiny-shakespear"), "tiny-shakespeare", ".txt")
    refused(lambda: load("tiny-shakespeare", tmp_path), "no tiny-shakespeare files", "tinyshakespeare.txt")


def test_no_network_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "URL", "http://127.0.0.1:9/input.txt")  # port 9: nothing listens there
    refused(lambda: load("tiny-shakespeare"), "cannot be downloaded", "--data-dir or OPTICAL_DFA_DATA")


@pytest.mark.parametrize("place", ["tinyshakespeare.txt", "text/tinyshakespeare.txt.gz"])
def test_the_official_file_is_known_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    content = b"To be, or not to be. " * 50
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if place.endswith(".gz") else content)
    refused(lambda: load("tiny-shakespeare", tmp_path), "another text (SHA-256)")
    monkeypatch.setattr(text, "SHA256", hashlib.sha256(content).hexdigest())
    data = load("tiny-shakespeare", tmp_path)
    assert (data.name, len(data.x_train), len(data.x_test)) == ("tiny-shakespeare", 14, 1)
    path.write_bytes(gzip.compress(content)[:-9])
    refused(lambda: load("tiny-shakespeare", tmp_path), "cannot be read" if ".gz" in place else "SHA-256")


def test_the_official_text() -> None:
    if not (REAL_DATA / text.FOLDER / text.FILE).is_file():
        pytest.skip(f"no {text.FOLDER}/{text.FILE} under {REAL_DATA}: set OPTICAL_DFA_DATA")
    data = load("tiny-shakespeare", REAL_DATA)
    assert (data.classes, len(data.x_train), len(data.x_test)) == (65, 15443, 1715)
