"""Every kind of layer that Opacus 1.6.0 trains, in one private step: the clipped sum of each record's own gradient.

The step is the production path: make_private, the loader, whole numbers, and noise too small to see.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from optical_dfa import align
from privacy import PrivacyEngine

CLASSES, WIDTH, MOST = 3, 24, 5
TINY = 1e-6  # a noise multiplier below which the clipped sum itself is seen
ROUNDED = 0.03  # of C: what rounding to whole numbers may cost a record at the clip, and a little more


class Network(nn.Module):
    """Numbers in the shape that the layer takes, the layer, and what reads it out."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.enter = nn.Identity() if how is looked_up else nn.Linear(WIDTH, WIDTH)
        self.layer, self.shape, self.how = layer, shape, how
        with torch.no_grad():
            made = how(layer, torch.zeros(2, *shape)).flatten(1)
        self.phi, self.out = nn.Tanh(), nn.Linear(made.shape[1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.how(self.layer, self.enter(x).view(-1, *self.shape))
        return self.out(self.phi(h).flatten(1))


def called(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h)


def looked_up(layer: nn.Module, h: Tensor) -> Tensor:
    """Numbers in place of words."""
    return layer((h.detach() > 0).long() + 2 * (h.detach() > 0.5).long())


def attended(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h, h, h, need_weights=False)[0]


def read(layer: nn.Module, h: Tensor) -> Tensor:
    states: Tensor = layer(h)[0]
    return states


def stepped(layer: nn.Module, h: Tensor) -> Tensor:
    # No assert: pytest's own has all of the test run in reach, which a private run looks through for generators.
    state = layer(h[:, 0])
    for t in range(1, h.shape[1]):
        state = layer(h[:, t], state)
    return state[0] if isinstance(state, tuple) else state


class Adapter(nn.Module):
    """A number, a table of places and low-rank factors."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.places = nn.Parameter(torch.ones(())), nn.Parameter(torch.randn(1, 4, 6))
        self.down, self.up = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.places + x @ self.down @ self.up


Row = tuple[Callable[[], nn.Module], tuple[int, ...], Callable[..., Tensor]]
SEQUENCE, LINE, IMAGE, BLOCK = (4, 6), (3, 8), (2, 4, 3), (2, 2, 3, 2)
ROWS: dict[str, Row] = {
    "Linear": (lambda: nn.Linear(6, 5), SEQUENCE, called),
    "Bilinear": (lambda: nn.Bilinear(6, 6, 3), SEQUENCE, lambda layer, h: layer(h, h.cos())),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), LINE, called),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 2, groups=2), IMAGE, called),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), BLOCK, called),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 2, 3, stride=2), LINE, called),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 4, 2, output_padding=1, stride=2, groups=2), IMAGE, called),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), BLOCK, called),
    "GroupNorm": (lambda: nn.GroupNorm(1, 2), IMAGE, called),
    "LayerNorm": (lambda: nn.LayerNorm(6), SEQUENCE, called),
    "RMSNorm": (lambda: nn.RMSNorm(6), SEQUENCE, called),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(3, affine=True), LINE, called),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(2, affine=True), IMAGE, called),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(2, affine=True), BLOCK, called),
    "PReLU": (lambda: nn.PReLU(2), IMAGE, called),
    "Embedding": (lambda: nn.Embedding(4, 2), SEQUENCE, looked_up),
    "EmbeddingBag": (
        lambda: nn.EmbeddingBag(4, 5, mode="mean"), (WIDTH,), looked_up
    ),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(6, 2, add_bias_kv=True, batch_first=True), SEQUENCE, attended),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), SEQUENCE, called,
    ),
    "RNN": (lambda: nn.RNN(6, 4, 2, batch_first=True, bidirectional=True), SEQUENCE, read),
    "GRU": (lambda: nn.GRU(6, 4, 2, batch_first=True, bidirectional=True), SEQUENCE, read),
    "LSTM": (lambda: nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True), SEQUENCE, read),
    "RNNCell": (lambda: nn.RNNCell(6, 4), SEQUENCE, stepped),
    "GRUCell": (lambda: nn.GRUCell(6, 4), SEQUENCE, stepped),
    "LSTMCell": (lambda: nn.LSTMCell(6, 4), SEQUENCE, stepped),
    "nn.Parameter": (Adapter, SEQUENCE, called),
}  # fmt: skip


# In other tests, and of a kind that another row stands for.
SIBLINGS = ("Conv1d", "ConvTranspose1d", "ConvTranspose3d", "InstanceNorm1d", "InstanceNorm3d", "RNN", "GRU")


def network(name: str) -> nn.Module:
    make, shape, how = ROWS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Network(make(), shape, how)


def batch(records: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(MOST, WIDTH, generator=torch.Generator().manual_seed(2))
    return x[:records], torch.arange(records) % CLASSES


def each_alone(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Each record's gradient under plain autograd, shape (m, dimension)."""
    net = network(name)
    rows = []
    for i in range(len(y)):
        net.zero_grad()
        cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return torch.stack(rows)


def released(name: str, x: Tensor, y: Tensor, clip: float) -> Tensor:
    """The sum that one step releases, shape (dimension,)."""
    aligned = align(network(name), rule="bp", example=torch.zeros(2, WIDTH), show=None)
    parameters = list(aligned.module.parameters())
    module, optimizer, loader = PrivacyEngine(reproducible_seed=7).make_private(
        module=aligned,
        optimizer=torch.optim.SGD(aligned.parameters(), lr=1.0),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=len(y)),
        noise_multiplier=TINY,
        max_grad_norm=clip,
    )
    before = torch.cat([p.detach().flatten() for p in parameters])
    for given, target in loader:
        cross_entropy(module(given), target).backward()
        optimizer.step()
    return (before - torch.cat([p.detach().flatten() for p in parameters])).double() * len(y)


@pytest.mark.parametrize(
    "name",
    # A cell is called time by time, and every call is followed: these take five seconds each. Others have siblings.
    [
        pytest.param(name, marks=pytest.mark.slow) if name.endswith("Cell") or name in SIBLINGS else name
        for name in ROWS
    ],
)
def test_a_private_step_is_the_clipped_sum_of_each_records_own_gradient(name: str) -> None:
    x, y = batch(MOST)
    rows = each_alone(name, x, y)
    norms = rows.norm(dim=1, keepdim=True)
    clip = float(norms.median())  # some records are clipped, and some are not
    clipped = (rows * (clip / norms).clamp_max(1.0)).double()
    layer = torch.cat(
        [torch.full((p.numel(),), "layer." in key) for key, p in network(name).named_parameters()]
    )
    found = {records: released(name, x[:records], y[:records], clip) for records in (1, MOST - 1, MOST)}
    for records, total in found.items():
        wrong = total - clipped[:records].sum(0)
        assert float(wrong.norm()) <= ROUNDED * clip * records
        assert float(wrong[layer].norm()) <= ROUNDED * (float(clipped[:records, layer].norm()) + clip)
        assert bool(total[layer].any())
    assert float(found[1].norm()) <= clip * (1 + 1e-5)
    assert float((found[MOST] - found[MOST - 1]).norm()) <= clip * (1 + MOST * ROUNDED)


def test_the_table_of_layers_has_these_rows_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text(encoding="utf-8")
    section = page.split("### Layers")[1].split("\n## ")[0]
    listed = [
        name for row in re.findall(r"(?m)^\| (`.*?) \|", section) for name in re.findall(r"`(.*?)`", row)
    ]
    assert sorted(listed) == sorted(ROWS)
