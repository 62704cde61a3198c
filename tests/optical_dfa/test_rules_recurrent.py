"""Sparse direct feedback to unrolled recurrent cells, against its equation written out, in float64."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from small_networks import assert_all_same, labels, normal, seeded
from test_capture_sums import alone, captured, clip, clipped_sum
from test_feedback_equations import error, feedback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.measure.costs import cost
from optical_dfa.networks.recurrent import GRU, LSTM, RNN, Unrolled

M, T, UNITS, CLASSES = 5, 4, 7, 4
CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
FUSED = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
X = normal(M, T, 3, seed=1)
Y, Y_LAST = labels(M, T), labels(M)


class Network(nn.Module):
    """A class at every time, or one after the last."""

    def __init__(self, cell: str, bias: bool = True, last: bool = False, layers: int = 1) -> None:
        super().__init__()
        sizes = [3, *[UNITS] * layers]
        self.cells = nn.Sequential(*(CELLS[cell](a, b, bias) for a, b in itertools.pairwise(sizes)))
        self.out, self.last = nn.Linear(UNITS, CLASSES, bias=bias), last

    def forward(self, x: Tensor) -> Tensor:
        h = self.cells(x)
        return self.out(h[:, -1] if self.last else h)


def network(cell: str = "gru", dtype: torch.dtype = torch.float64, **options: object) -> Network:
    found = seeded(lambda: Network(cell, **options), dtype)
    assert isinstance(found, Network)
    return found


def loss(z: Tensor) -> Tensor:
    return cross_entropy(z, Y_LAST) if z.ndim == 2 else cross_entropy(z.flatten(0, 1), Y.flatten())


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    loss(model(X.to(next(model.parameters()).dtype))).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def matrix(aligned: AlignedModule, name: str) -> Tensor:
    return aligned.state.get_buffer(name.replace(".", "/")).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", list(CELLS))
def test_cells_are_those_of_pytorch(cell: str, bias: bool) -> None:
    ours = CELLS[cell](3, UNITS, bias).double()
    fused = FUSED[cell](3, UNITS, bias=bias, batch_first=True).double()
    with torch.no_grad():
        for target, source in ((fused.weight_ih_l0, ours.into), (fused.weight_hh_l0, ours.over)):
            target.copy_(source.weight)
        if bias:
            fused.bias_ih_l0.copy_(ours.into.bias)
            fused.bias_hh_l0.copy_(ours.over.bias)
    torch.testing.assert_close(ours(X), fused(X)[0], rtol=0.0, atol=1e-12)


def by_hand(net: Network, b: list[Tensor], recursion: str) -> list[Tensor]:
    """Every time's cell alone, from detached states, each taught by S B e_t; then their sum."""
    layers: list[Unrolled] = list(net.cells)
    reads = X
    kept: list[list[Tensor]] = []
    for layer in layers:
        h = carried = X.new_zeros(M, UNITS)
        raw = []
        for t in range(T):
            if recursion == "truncated":
                carried = carried.detach()
            new, carried = layer.step(layer.into(reads[:, t]), layer.over(h), carried)
            raw.append(new)
            h = new.detach()
        kept.append(raw)
        reads = torch.stack(raw, 1).detach()
    z = net.out(reads[:, -1] if net.last else reads)
    e = error(z, Y_LAST if net.last else Y) / (M if net.last else M * T)
    roots, signals = [z], [e]
    for raw, feedback_matrix in zip(kept, b, strict=True):
        for t, h in enumerate(raw):
            roots.append(h)
            signals.append((e if net.last else e[:, t]) @ feedback_matrix.T)
    torch.autograd.backward(roots, signals)
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("recursion", ["truncated", "local"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", list(CELLS))
def test_states_are_taught_by_the_equation(cell: str, bias: bool, last: bool, recursion: str) -> None:
    net = network(cell, bias=bias, last=last, layers=2)
    options = {"density": 0.4, "recursion": recursion}
    aligned = align(net, rule="sparse-recurrent", rule_options=options, example=X, show=None)
    names = ["cells.0.state", "cells.1.state"]
    assert [point.name for point in aligned.points] == names
    found = gradients(aligned)
    twin = network(cell, bias=bias, last=last, layers=2)
    assert_all_same(found, by_hand(twin, [matrix(aligned, name) for name in names], recursion))
    plain = gradients(network(cell, bias=bias, last=last, layers=2))
    assert torch.cosine_similarity(found[0].flatten(), plain[0].flatten(), dim=0) < 0.9


def test_dense_feedback_teaches_every_time_by_its_own_error() -> None:
    """Rule dfa cuts the states too; what a cell carries elementwise stays connected."""
    net = network("gru")
    aligned = align(net, rule="dfa", example=X, show=None)
    assert_all_same(
        gradients(aligned), by_hand(network("gru"), [feedback(aligned, "cells.0.state")], "local")
    )


def test_the_exact_matrix_gives_backpropagation_through_a_layer_without_recurrence() -> None:
    """With U = 0 a state moves its own output alone: B = W_out^T is exact."""
    nets = [network("rnn") for _ in range(2)]
    for net in nets:
        net.cells[0].over.weight.data.zero_()
    aligned = align(nets[0], rule="sparse-recurrent", rule_options={"density": 1.0}, example=X, show=None)
    aligned.state.get_buffer("cells/0/state").copy_(nets[0].out.weight.detach().T)
    exact, plain = gradients(aligned), gradients(nets[1])
    torch.testing.assert_close(exact, plain, rtol=0.0, atol=1e-7)  # the matrix is kept in float32


def test_entries_are_kept_with_the_density() -> None:
    big = nn.Sequential(RNN(3, 400), nn.Linear(400, 50))
    aligned = align(
        big,
        rule="sparse-recurrent",
        rule_options={"density": 0.2},
        example=torch.empty(1, 2, 3),
        show=None,
    )
    b = matrix(aligned, "0.state")
    kept = float((b != 0).double().mean())
    assert kept == pytest.approx(0.2, abs=4 * (0.16 / b.numel()) ** 0.5)
    assert float(b.square().sum(0).mean()) == pytest.approx(1.0, rel=0.05)  # |g| ~ |e|
    assert cost(aligned).error == int((b != 0).sum())


def sequences_alone(aligned: AlignedModule) -> Tensor:
    """Each record's own gradient of the mean over its times, a row each."""
    trained, stacked = list(aligned.trained_parameters().values()), []
    for i in range(M):
        own = cross_entropy(aligned(X[i : i + 1]).flatten(0, 1), Y[i])
        stacked.append(torch.cat([g.flatten() for g in torch.autograd.grad(own, trained)]))
    return torch.stack(stacked)


def assert_private_sum(aligned: AlignedModule, stacks: Tensor) -> None:
    """What a capture clips and sums is each record's own gradient; some are clipped and some are not."""
    norm = float(stacks.norm(dim=1).median())
    capture = captured(aligned, M)
    loss(aligned(X)).backward()
    norms, total = clipped_sum(capture, norm)
    torch.testing.assert_close(norms, stacks.norm(dim=1), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(total, clip(stacks, norm).sum(0), rtol=0.0, atol=1e-9 * norm)


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("last", [False, True])
def test_the_private_sum_is_that_of_each_record_alone(cell: str, last: bool) -> None:
    aligned = align(network(cell, last=last), rule="sparse-recurrent", example=X, show=None)
    names = list(aligned.trained_parameters())
    assert_private_sum(aligned, alone(aligned, [X], Y_LAST, names) if last else sequences_alone(aligned))


def assert_repeats(aligned: AlignedModule, other: AlignedModule) -> None:
    """A float32 module's gradient comes again from its state_dict in `other` (of another seed), a copy and a pickle."""
    expected = gradients(aligned)
    assert not all(torch.equal(a, b) for a, b in zip(gradients(other), expected, strict=True))
    other.load_state_dict(aligned.state_dict())
    for again in (other, copy.deepcopy(aligned), pickle.loads(pickle.dumps(aligned))):
        assert_all_same(gradients(again), expected)
    with torch.no_grad():
        assert torch.equal(aligned(X.float()), aligned.module(X.float()))


def assert_compiles(aligned: AlignedModule) -> None:
    """Into one graph, with the gradient of a float32 module."""
    expected = gradients(aligned)
    aligned.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        loss(compiled(X.float())).backward()
    assert_all_same([p.grad for p in aligned.parameters() if p.grad is not None], expected, atol=1e-5)


def test_states_copies_and_pickles_give_the_same_gradient() -> None:
    def make(seed: int) -> AlignedModule:
        return align(
            network(dtype=torch.float32), rule="sparse-recurrent", example=X.float(), seed=seed, show=None
        )

    assert_repeats(make(3), make(4))


def test_it_compiles_into_one_graph() -> None:
    assert_compiles(
        align(network(dtype=torch.float32), rule="sparse-recurrent", example=X.float(), show=None)
    )


def assert_taught_nothing_by_an_empty_batch(aligned: AlignedModule) -> None:
    """Of sequences, under a loss that adds up."""
    cross_entropy(aligned(X[:0]).flatten(0, 1), Y[:0].flatten(), reduction="sum").backward()
    assert not any(p.grad is not None and p.grad.any() for p in aligned.parameters())


def test_an_empty_batch_teaches_nothing() -> None:
    assert_taught_nothing_by_an_empty_batch(
        align(network(), rule="sparse-recurrent", example=X, loss_reduction="sum", show=None)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density=0.0"),
        ({"recursion": "full"}, "recursion='full'"),
        ({"scale": -1.0}, "scale=-1.0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        align(network(), rule="sparse-recurrent", rule_options=options, example=X, show=None)


def test_a_network_without_cells_is_refused() -> None:
    with pytest.raises(UsageError, match=r"use optical_dfa\.networks\.recurrent"):
        align(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), rule="sparse-recurrent", show=None)


def test_a_layer_that_reads_backwards_is_refused() -> None:
    """Its first call belongs to the last position: the errors would be each other's."""

    class Backwards(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cells(x.flip(1)).flip(1))

    for rule in ("sparse-recurrent", "dfa"):
        with pytest.raises(UsageError, match="not in the order of the positions"):
            align(Backwards("gru").double(), rule=rule, example=X, show=None)


def test_layers_may_be_unrolled_together() -> None:
    """Time by time through both layers, as well as layer by layer."""

    class Together(Network):
        def forward(self, x: Tensor) -> Tensor:
            low, high = self.cells
            h = [x.new_zeros(len(x), UNITS) for _ in range(2)]
            outputs = []
            for x_t in x.unbind(1):
                h[0] = low.state(low.step(low.into(x_t), low.over(h[0]), h[0])[0])
                h[1] = high.state(high.step(high.into(h[0]), high.over(h[1]), h[1])[0])
                outputs.append(self.out(h[1]))
            return torch.stack(outputs, 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        together = Together("rnn", layers=2).double()
    apart = network("rnn", layers=2)
    found = [
        gradients(align(net, rule="sparse-recurrent", example=X, show=None)) for net in (together, apart)
    ]
    assert_all_same(*found)
