"""Every number of a refusal is shown with the digits that make it wrong: none reads as what would be allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError, apart
from noise_models.health.entropy import ASSESSED_BITS
from optical_dfa import align
from optical_dfa.attacks.setting import Setting
from optical_dfa.cli import main
from optical_dfa.config import TrainConfig, resolve
from optical_dfa.data import load
from privacy import PrivacyEngine

PLAN = ["account", "--noise-multiplier", "1", "--steps", "10"]
ABOVE = math.nextafter(1.0, 2.0)


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--sample-rate", "1.0000001", "--delta", "1e-5"], "--sample-rate is 1.0000001;"),
        (["--sample-rate", repr(ABOVE), "--delta", "1e-5"], f"--sample-rate is {ABOVE!r};"),
        (["--sample-rate", "0.1", "--delta", "1.0000001"], "--delta is 1.0000001;"),
        (["--sample-rate", "0.1", "--delta", "1e-5", "--calibration-beta", "1.0000001e-5"], "is 1.0000001e-05;"),
        (["--mechanism", "label-gaussian", "--sample-rate", "1.0000001", "--delta", "1e-5"], "is 1.0000001;"),
    ],
)  # fmt: skip
def test_an_option_just_out_of_range(
    flags: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PLAN, *flags]) == 2
    assert shown in capsys.readouterr().err


def make_private(delta: float) -> None:
    data = TensorDataset(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    module = align(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), show=None)
    PrivacyEngine().make_private(
        module=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.1), noise_multiplier=1.0, max_grad_norm=1.0,
        data_loader=DataLoader(data, batch_size=1), target_epsilon=1.0, target_delta=delta,
    )  # fmt: skip


DELTA = math.nextafter(1 / 3, 1.0)


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: make_private(DELTA), (f"is {DELTA!r}", f"= {1 / 3!r}")),
        (lambda: resolve(TrainConfig(delta=DELTA), 3), (f"is {DELTA!r}", f"= {1 / 3!r}")),
        (lambda: Setting(epsilon=math.nextafter(64.0, 65.0)), ("64.00000000000001",)),
        (lambda: Setting(delta=ABOVE), (repr(ABOVE),)),
        (lambda: Setting(confidence=math.nextafter(0.9, 0.0)), ("0.8999999999999999",)),
    ],
)  # fmt: skip
def test_a_value_just_out_of_range(call: Callable[[], object], shown: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        call()
    for text in shown:
        assert text in str(error.value)


def test_a_category_that_is_almost_whole(tmp_path: Path) -> None:
    table, labels = np.array([[3.00000001], [1.0]]), np.arange(2)
    np.savez(
        tmp_path / "d.npz", x_train=table, y_train=labels, x_test=table, y_test=labels, cardinalities=[4]
    )
    with pytest.raises(UsageError, match=re.escape("has 3.00000001 in column 0")):
        load(str(tmp_path / "d.npz"))


FINITE = st.floats(min_value=-1e300, max_value=1e300)


@given(FINITE, FINITE | st.none())
def test_two_numbers_are_told_apart(value: float, other: float | None) -> None:
    limit = math.nextafter(value, math.inf) if other is None else other
    said, stands = map(float, apart(value, limit))
    assert (said < stands, said > stands) == (value < limit, value > limit)


def test_numbers_far_apart_are_short() -> None:
    assert apart(1 / 3, 2 / 3) == ("0.3333", "0.6667")
    assert apart(ASSESSED_BITS - 1e-6, ASSESSED_BITS)[1] == str(ASSESSED_BITS)
