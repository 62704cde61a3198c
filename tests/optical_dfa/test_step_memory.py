"""What a private step holds in memory at most, in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from optical_dfa.bench import memory

pytestmark = pytest.mark.skipif(not memory._RESET.exists(), reason=f"{memory._RESET} is of Linux alone")
MOST = 2.0  # times plain backpropagation's; it was 2.35 where all of a batch's numbers, and a second sum, were held

_EMBEDDING = """
import json, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from optical_dfa import align
from optical_dfa.bench.memory import peak
from privacy import PrivacyEngine

def step(records, vocabulary):
    x = torch.randint(vocabulary, (2 * records, 16))
    net = nn.Sequential(nn.Embedding(vocabulary, 16), nn.Flatten(), nn.Linear(256, 2))
    module, optimizer, loader = PrivacyEngine().make_private(
        module=(aligned := align(net, rule="bp", example=x[:2], show=None)),
        optimizer=torch.optim.SGD(aligned.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, x[:, 0] % 2), batch_size=records),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    def one():
        x, y = next(iter(loader))
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return one

step(8, 50)()
one = step(64, 50_000)
print(json.dumps(peak(one)))
"""


def in_a_fresh_process(code: str) -> float:
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **memory._GIVEN_BACK, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(json.loads(ended.stdout.splitlines()[-1]))


def test_a_private_step_takes_less_than_twice_what_plain_backpropagation_does() -> None:
    private, plain = (memory._fresh_process("mlp", 256, name) for name in ("private", "backprop"))
    assert isinstance(private, float)
    assert isinstance(plain, float)
    assert private < MOST * plain


@pytest.mark.slow
def test_an_embedding_is_held_once_and_never_for_every_record() -> None:
    """Its gradient takes 3 MiB, that of every record apart 200 MiB."""
    assert in_a_fresh_process(_EMBEDDING) < 4 * 50_000 * 16 * 4 / 2**20
