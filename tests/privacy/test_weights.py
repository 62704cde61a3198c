"""Which weights a ledger names: the digest of a checkpoint's tensors, and the row that holds it."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from noise_models.errors import UsageError
from privacy.ledger import Ledger
from privacy.weights import ANNOUNCED, ROW, name_weights, names_weights, tensors_digest

WEIGHTS = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[3, 4]], dtype=torch.int16)}


def digest(tensors: dict[str, Tensor]) -> str:
    return tensors_digest(tensors, tensors.__getitem__)


def test_the_digest_is_of_names_types_shapes_and_bytes() -> None:
    """Written out by hand: the next version has to find the same."""
    text = b'["a", "torch.int16", [1, 2]]\n\x03\x00\x04\x00["b", "torch.float32", [2]]\n\x00\x00\x80?\x00\x00\x00\xc0'
    assert digest(WEIGHTS) == hashlib.sha256(text).hexdigest()
    assert digest(dict(reversed(WEIGHTS.items()))) == digest(WEIGHTS)
    assert digest(WEIGHTS | {"b": torch.nn.Parameter(WEIGHTS["b"])}) == digest(WEIGHTS)


@pytest.mark.parametrize(
    "other",
    [
        WEIGHTS | {"b": torch.tensor([1.0, -2.0000002])},
        WEIGHTS | {"b": torch.tensor([[1.0, -2.0]])},
        WEIGHTS | {"b": torch.tensor([1.0, -2.0]).view(torch.int32)},
        WEIGHTS | {"c": torch.empty(0)},
        {"a": WEIGHTS["a"]},
        {"a": WEIGHTS["a"], "c": WEIGHTS["b"]},
    ],
    ids=["value", "shape", "type", "more", "fewer", "name"],
)
def test_whatever_differs_has_another_digest(other: dict[str, Tensor]) -> None:
    assert digest(other) != digest(WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64])
def test_tensors_of_any_type_shape_and_layout(dtype: torch.dtype) -> None:
    rows = torch.arange(6).reshape(2, 3).to(dtype)
    assert digest({"w": rows.t().contiguous().t()}) == digest({"w": rows})
    assert digest({"w": rows.t()}) != digest({"w": rows})
    assert digest({"w": rows[0, 0]}) != digest({"w": rows[0, :1]})


def test_a_head_speaks_of_the_newest_weights_below_it() -> None:
    with Ledger.create(None, {ANNOUNCED: True}) as ledger:
        before = ledger.head()
        first = name_weights(ledger, "aa", 1)
        ledger.append_event("note", {})
        later = ledger.head()
        second = name_weights(ledger, "bb", 2)
        assert ledger.newest_at(before, ROW) is None
        assert [names_weights(ledger, head, "aa", 1) for head in (before, first, later, second)] == [
            *(False, True, True, False)
        ]
        assert names_weights(ledger, second, "bb", 2) is True
        assert names_weights(ledger, second, "bb", 1) is False
        assert names_weights(ledger, "no head of it", "bb", 2) is False


def test_a_ledger_that_announces_no_weights_says_nothing_of_them() -> None:
    with Ledger.create(None, {}) as ledger:
        assert names_weights(ledger, ledger.head(), "aa", 1) is None
        assert names_weights(ledger, name_weights(ledger, "aa", 1), "bb", 1) is False


def test_a_row_that_cannot_be_read() -> None:
    with Ledger.create(None, {}) as ledger:
        ledger._append(ROW, "{")
        with pytest.raises(UsageError, match="unreadable checkpoint row"):
            ledger.newest_at(ledger.head(), ROW)
