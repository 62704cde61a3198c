"""Binary encodings of the error against the definition, record by record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from noise_models.errors import UsageError
from optical_dfa.backends.encoding import (
    ENCODINGS,
    BitPlanes,
    Encoding,
    EncodingOptions,
    Ternary,
    TernaryAbsolute,
)

ENTRIES = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
BATCHES = arrays(np.float64, st.tuples(st.integers(0, 5), st.integers(1, 7)), elements=ENTRIES)
ALL: list[Encoding] = [Ternary(), Ternary(0.0), TernaryAbsolute(), BitPlanes(1), BitPlanes(8)]


@settings(deadline=None, max_examples=60)
@given(e=BATCHES, threshold=st.floats(0, 0.99))
def test_ternary_definition(e: np.ndarray, threshold: float) -> None:
    frames = Ternary(threshold).encode(torch.from_numpy(e))
    decoded = Ternary(threshold).decode(frames).numpy()
    for row, answer in zip(e, decoded, strict=True):
        signs = np.where(np.abs(row) > threshold * np.abs(row).max(), np.sign(row), 0.0)
        amplitude = row @ signs / max(1.0, signs @ signs)
        np.testing.assert_allclose(answer, amplitude * signs, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(e=BATCHES)
def test_the_ternary_amplitude_is_the_best_one(e: np.ndarray) -> None:
    encoding = Ternary(0.4)
    frames = encoding.encode(torch.from_numpy(e))
    residual = torch.from_numpy(e) - encoding.decode(frames)
    signs = frames.planes[0] - frames.planes[1]
    scale = np.abs(e).max(initial=1.0)
    assert float((residual * signs).sum(dim=1).abs().max() if len(e) else 0.0) <= 1e-9 * scale


@settings(deadline=None, max_examples=60)
@given(e=BATCHES, bits=st.integers(1, 16))
def test_bit_planes_round_to_half_a_level(e: np.ndarray, bits: int) -> None:
    encoding = BitPlanes(bits)
    frames = encoding.encode(torch.from_numpy(e))
    assert frames.planes.shape == (2 * bits, *e.shape)
    error = np.abs(encoding.decode(frames).numpy() - e)
    largest = np.abs(e).max(axis=1, keepdims=True) if e.size else np.zeros((len(e), 1))
    assert (error <= largest * (0.5 / (2**bits - 1) + 1e-12)).all()


def test_absolute_ternary_uses_public_constants_only() -> None:
    encoding = TernaryAbsolute(threshold=0.2, amplitude=0.7)
    e = torch.tensor([[0.1, -0.1, 0.0], [0.3, -0.19, -0.21], [100.0, -100.0, 0.1]])
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.7, 0.0, -0.7], [0.7, -0.7, 0.0]])
    torch.testing.assert_close(encoding.decode(encoding.encode(e)), expected)


@pytest.mark.parametrize("encoding", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frames_are_binary_balanced_and_of_one_number(encoding: Encoding, dtype: torch.dtype) -> None:
    e = torch.randn(20, 9, generator=torch.Generator().manual_seed(1), dtype=dtype)
    frames = encoding.encode(e)
    assert set(frames.planes.unique().tolist()) <= {0.0, 1.0}
    assert frames.planes.dtype == frames.scale.dtype == dtype
    assert sum(frames.weights) == pytest.approx(0.0, abs=1e-12)
    assert len(encoding.encode(torch.zeros(3, 9, dtype=dtype)).planes) == len(frames.planes)
    assert encoding.encode(e[:0]).planes.shape == (len(frames.planes), 0, 9)


@pytest.mark.parametrize("encoding", ALL, ids=repr)
def test_a_record_is_encoded_alone(encoding: Encoding) -> None:
    e = torch.randn(20, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = encoding.encode(e)
    for row in range(20):
        alone = encoding.encode(e[row : row + 1])
        assert torch.equal(alone.planes[:, 0], together.planes[:, row])
        assert torch.equal(alone.scale[0], together.scale[row])


@pytest.mark.parametrize("encoding", ALL, ids=repr)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_record_is_dark_and_marked(encoding: Encoding, value: float) -> None:
    e = torch.ones(3, 4)
    e[1, 2] = value
    frames = encoding.encode(e)
    assert not frames.planes[:, 1].any()
    assert frames.scale.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("encoding", [Ternary(), BitPlanes(4)], ids=repr)
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 1e37])
def test_extreme_amplitudes_survive(encoding: Encoding, size: float) -> None:
    e = torch.tensor([[1.0, -1.0, 0.0]]) * size
    torch.testing.assert_close(encoding.decode(encoding.encode(e)), e, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("quaternary", {}),
        ("ternary", {"threshold": 1.0}),
        ("ternary", {"threshold": -0.1}),
        ("ternary", {"threshold": float("nan")}),
        ("ternary", {"bits": 4}),
        ("ternary", {"amplitude": 1.0}),
        ("ternary-absolute", {"threshold": float("inf")}),
        ("ternary-absolute", {"amplitude": 0.0}),
        ("bit-planes", {"bits": 0}),
        ("bit-planes", {"bits": 17}),
        ("bit-planes", {"bits": 2.5}),
        ("bit-planes", {"threshold": 0.5}),
    ],
)
def test_refused_encodings(name: str, constants: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        EncodingOptions(encoding=name, **constants).build()
    assert "\n" not in str(caught.value)


def test_descriptions_tell_encodings_apart() -> None:
    described = [str(encoding.describe()) for encoding in ALL]
    assert len(set(described)) == len(ALL)
    assert {cls.name for cls in ENCODINGS.values()} == set(ENCODINGS)
