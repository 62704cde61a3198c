"""Text, character by character: records of `LENGTH` characters, whose targets are the characters that follow."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.data.card import DatasetCard
from optical_dfa.data.dataset import Dataset
from optical_dfa.data.files import cache_dir, find

TITLE = "tiny-shakespeare"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FOLDER, FILE = "text", "tinyshakespeare.txt"

LENGTH = 64  # characters that are read, and as many that are predicted
TEST_PART = 10  # the last 1/10 is the test set
MOST_CHARACTERS = 65536


@DatasetCard(
    summary="1,115,394 characters of Shakespeare's plays",
    private={"batch_size": 1024, "epochs": 20, "lr": 0.5, "max_grad_norm": 1.0, "epsilon": 8.0},
    plain={"batch_size": 32, "epochs": 5, "lr": 0.5},
    text=True,
)
def load_tiny_shakespeare(data_dir: Path | None, progress: bool) -> Dataset:
    """1,115,394 characters of Shakespeare's plays, 65 different ones.

    Source: A. Karpathy, char-rnn (2015), data/tinyshakespeare/input.txt.
    """
    found = find(TITLE, (FOLDER,), [[FILE]], data_dir)
    if found is None:
        from optical_dfa.data.download import fetch_file

        found = [fetch_file(TITLE, URL, SHA256, cache_dir() / FOLDER / FILE, progress)]
    (path,) = found
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UsageError(f"{path} is another text (SHA-256); replace it by the official file")
    return in_records(TITLE, content.decode())


@DatasetCard(
    summary="a text of one's own, in UTF-8",
    private={"batch_size": 1024, "epochs": 20, "lr": 0.5, "max_grad_norm": 1.0, "epsilon": 8.0},
    plain={"batch_size": 32, "epochs": 5, "lr": 0.5},
    text=True,
)
def load_text(path: Path) -> Dataset:
    """The records of a text file in UTF-8.

    Raises:
        UsageError: one line: no such file, no text, too short, too many different characters.
    """
    path = path.expanduser()
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {kind}; give the path of a .txt file")
    try:
        text = _read(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from None
    return in_records(str(path), text)


def in_records(name: str, text: str) -> Dataset:
    """The text as records of LENGTH + 1 characters, the last 10 % of it for the test.

    Records share no character, so that one character is of one record. What does not fill a record is left out.

    Raises:
        UsageError: no record for the test, or less than two or more than `MOST_CHARACTERS` different characters.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
    if len(codes) < TEST_PART * (LENGTH + 1):
        raise UsageError(
            f"{name} has {len(codes)} characters; it must have {TEST_PART * (LENGTH + 1)} or more, for one test "
            f"record of {LENGTH + 1}"
        )
    known, places = np.unique(codes, return_inverse=True)
    if not 2 <= len(known) <= MOST_CHARACTERS:
        raise UsageError(f"{name} has {len(known)} different characters; it must have 2 to {MOST_CHARACTERS}")
    test = len(codes) // TEST_PART
    (x_train, y_train), (x_test, y_test) = (_cut(part) for part in (places[:-test], places[-test:]))
    public = (
        f"the {len(known)} different characters were read off the text and are declared public",
        f"a record is {LENGTH + 1} characters in a row; what is longer, or said again, is several records",
    )
    return Dataset(name, x_train, y_train, x_test, y_test, len(known), (LENGTH,), public)


def _cut(places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(inputs, targets), each of shape (records, LENGTH)."""
    count = len(places) // (LENGTH + 1)
    rows = torch.from_numpy(places[: count * (LENGTH + 1)].astype(np.int64)).view(count, LENGTH + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); replace it") from None
