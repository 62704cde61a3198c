"""Exact errors between recurrent layers and sparse ones from later times, against the equation written out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from small_networks import assert_all_same
from test_rules_recurrent import (
    CELLS,
    UNITS,
    M,
    Network,
    T,
    X,
    assert_compiles,
    assert_private_sum,
    assert_repeats,
    assert_taught_nothing_by_an_empty_batch,
    gradients,
    loss,
    matrix,
    network,
    sequences_alone,
)
from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign
from optical_dfa.measure.alignment import alignment
from optical_dfa.measure.costs import cost
from optical_dfa.networks.recurrent import Unrolled


def aligned_network(net: nn.Module, seed: int = 0, **options: object) -> AlignedModule:
    x = X.to(next(net.parameters()).dtype)
    return align(net, rule="recurrent-hybrid", rule_options=options, example=x, seed=seed, show=None)


def by_hand(net: Network, matrices: list[Tensor], recursion: str) -> list[Tensor]:
    """Layer by layer from the top: the layer's own errors, then every time's cell alone, from detached states."""
    given, raws = [X], []
    for layer in net.cells:
        below = given[-1]
        h = carried = X.new_zeros(M, UNITS)
        raw = []
        for t in range(T):
            carried = carried.detach() if recursion == "truncated" else carried
            new, carried = layer.step(layer.into(below[:, t]), layer.over(h), carried)
            raw.append(new)
            h = new.detach()
        raws.append(raw)
        given.append(torch.stack([h.detach() for h in raw], 1).requires_grad_())
    top = net.out(given[-1][:, -1] if net.last else given[-1])
    loss(top).backward()
    for raw, own, b in zip(reversed(raws), reversed(given[1:]), reversed(matrices), strict=True):
        e = own.grad
        signals = [
            e[:, t] + sum(e[:, t + k] @ b[k - 1] for k in range(1, len(b) + 1) if t + k < T) for t in range(T)
        ]
        torch.autograd.backward(raw, signals)
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("recursion", ["truncated", "local"])
@pytest.mark.parametrize("reach", [1, 2, 9])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("cell", list(CELLS))
def test_states_are_taught_by_the_equation(cell: str, last: bool, reach: int, recursion: str) -> None:
    made = {"last": last, "layers": 2}
    aligned = aligned_network(network(cell, **made), density=0.4, reach=reach, recursion=recursion)
    found = gradients(aligned)
    matrices = [matrix(aligned, name) for name in ("cells.0", "cells.1")]
    assert all(b.shape == (reach, UNITS, UNITS) and b.any() for b in matrices)
    assert_all_same(found, by_hand(network(cell, **made), matrices, recursion), atol=1e-10)
    plain = gradients(network(cell, **made))
    names = [name for name, _ in network(cell, **made).named_parameters()]
    for name, own, exact in zip(names, found, plain, strict=True):
        alike = float(torch.cosine_similarity(own.flatten(), exact.flatten(), dim=0))
        assert alike > 1 - 1e-12 if name.startswith("out") else alike < 0.999, name


class Linear(Unrolled):
    """h_t = W x_t + U h_{t-1}."""

    gates = 1

    def step(self, x: Tensor, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        return x + h, carried


def test_powers_of_the_recurrent_matrix_give_backpropagation_through_time() -> None:
    """dh_{t+k}/dh_t = U^k in a linear cell."""
    net = nn.Sequential(Linear(3, UNITS), nn.Linear(UNITS, 4)).double()
    plain = copy.deepcopy(net)
    aligned = aligned_network(net, reach=T - 1)
    aligned.state.double()
    powers = [torch.linalg.matrix_power(net[0].over.weight.detach(), k) for k in range(1, T)]
    aligned.state.get_buffer("0").copy_(torch.stack(powers))
    assert_all_same(gradients(aligned), gradients(plain), atol=1e-12)


def test_entries_are_kept_with_the_density_and_counted() -> None:
    net = network("rnn", torch.float32)
    net.cells = nn.Sequential(CELLS["rnn"](3, 200))
    net.out = nn.Linear(200, 4)
    net_again = copy.deepcopy(net)
    plain = cost(align(copy.deepcopy(net), rule="bp", example=X.float(), show=None))
    aligned = aligned_network(net, density=0.2, reach=2)
    b = matrix(aligned, "cells.0")
    assert torch.equal(
        matrix(aligned_network(net_again, density=0.2, reach=2, scale=0.25), "cells.0"), b * 0.25
    )
    kept = float((b != 0).double().mean())
    assert kept == pytest.approx(0.2, abs=4 * (0.16 / b.numel()) ** 0.5)
    assert float(b.square().sum(1).mean()) == pytest.approx(1.0, rel=0.1)  # a component of E, to n_l units
    fixed = int((b[0] != 0).sum()) * (T - 1) + int((b[1] != 0).sum()) * (T - 2)
    out = 200 * 4 * T
    assert cost(aligned).error == out + fixed
    assert plain.error == out + 200 * 200 * (T - 1)  # through U, from every time to the one before


@pytest.mark.parametrize("cell", list(CELLS))
def test_its_alignment_is_measured_at_the_states(cell: str) -> None:
    net = network(cell, layers=2)
    exact = alignment(align(copy.deepcopy(net), rule="bp", example=X, show=None), X, loss)
    found = alignment(aligned_network(net), X, loss)
    assert list(found.points) == list(exact.points) == ["cells.0.state", "cells.1.state"]
    for name, point in found.points.items():
        assert exact.points[name].cosine == pytest.approx(1.0, abs=1e-12)
        assert 0.1 < point.cosine < 0.99


@pytest.mark.parametrize("cell", list(CELLS))
def test_the_private_sum_is_that_of_each_record_alone(cell: str) -> None:
    aligned = aligned_network(network(cell, layers=2))
    assert_private_sum(aligned, sequences_alone(aligned))


def test_states_copies_and_pickles_give_the_same_gradient() -> None:
    assert_repeats(*(aligned_network(network(dtype=torch.float32), seed) for seed in (3, 4)))


def test_it_compiles_into_one_graph() -> None:
    assert_compiles(aligned_network(network(dtype=torch.float32)))


def test_unaligned_it_is_the_plain_module_again() -> None:
    net = network()
    expected = gradients(network())
    aligned = aligned_network(net, recursion="truncated")
    with pytest.raises(UsageError, match=r"called directly \(at cells\.0\)"):
        net(X)
    assert_all_same(gradients(unalign(aligned)), expected)
    assert not any(part._forward_hooks for part in net.modules())


def test_an_empty_batch_teaches_nothing() -> None:
    assert_taught_nothing_by_an_empty_batch(aligned_network(network()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density=0.0"),
        ({"recursion": "full"}, "recursion='full'"),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"reach": 0}, "reach=0"),
        ({"reach": 10**11}, "reach=100000000000 needs"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        aligned_network(network(), **options)


class Together(Network):
    """Time by time through both layers: no layer's forward is called."""

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.cells
        h = [x.new_zeros(len(x), UNITS) for _ in range(2)]
        for x_t in x.unbind(1):
            h[0] = low.state(low.step(low.into(x_t), low.over(h[0]), h[0])[0])
            h[1] = high.state(high.step(high.into(h[0]), high.over(h[1]), h[1])[0])
        return self.out(h[1])


class Elsewhere(Network):
    """The state once more, outside of the layer's call."""

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self.cells
        return self.out(layer(x) + layer.state(torch.tanh(layer.into(x[:, 0])[:, :UNITS]))[:, None])


class Fused(Network):
    """A fused layer above, which nothing would keep from backpropagating through time."""

    def __init__(self) -> None:
        super().__init__("gru")
        self.above = nn.GRU(UNITS, UNITS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.above(self.cells(x))[0])


class Unused(Network):
    """A layer that the example does not pass."""

    def __init__(self) -> None:
        super().__init__("gru")
        self.spare = CELLS["gru"](3, UNITS)


class Residual(CELLS["gru"]):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Reverse(CELLS["gru"]):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1)).flip(1)


class LastState(CELLS["gru"]):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, -1:]


class TimeFirst(CELLS["gru"]):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(0, 1)


class Stateless(CELLS["gru"]):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(self.into(x_t), self.over(x_t), x_t)[0] for x_t in x.unbind(1)], 1)


def of(layer: type[Unrolled]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, UNITS), layer(UNITS, UNITS), nn.Linear(UNITS, 4))


def hooked() -> nn.Module:
    net = network()
    net.cells[0].register_forward_hook(lambda module, args, output: output * 2)
    return net


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Together("rnn", layers=2), r"in cells\.0\.state"),
        (lambda: Elsewhere("rnn"), r"in cells\.0\.state"),
        (Fused, "in above"),
        (Unused, "in spare"),
        (lambda: of(Residual), "in 1"),
        (lambda: of(Reverse), "in 1"),
        (lambda: of(LastState), "in 1"),
        (lambda: of(TimeFirst), "in 1"),
        (lambda: of(Stateless), "in 1"),
        (hooked, r"in cells\.0"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), "finds no layer"),
    ],
    ids=[
        "together",
        "elsewhere",
        "fused",
        "unused",
        "residual",
        "reverse",
        "last",
        "time",
        "stateless",
        "hook",
        "mlp",
    ],
)
def test_networks_that_the_rule_would_teach_otherwise_are_refused(
    make: Callable[[], nn.Module], named: str
) -> None:
    with pytest.raises(
        UsageError, match=f"rule recurrent-hybrid finds.*{named.removeprefix('finds ')}"
    ) as caught:
        aligned_network(make().double())
    assert "\n" not in str(caught.value)


def test_a_layer_that_changes_after_it_was_tried_is_refused_in_its_pass() -> None:
    net = of(CELLS["gru"]).double()
    aligned = aligned_network(net)
    net[1].__class__ = LastState
    with pytest.raises(UsageError, match="layer 1 returned 1 times from 4 states"):
        aligned(X)


class Twice(Network):
    """One layer, called twice in a pass."""

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self.cells
        return self.out(layer(x) + layer(x[:, : T - 1].flip(1)).sum(1, keepdim=True))


def test_a_layer_may_be_called_twice() -> None:
    """Each call is taught by its own errors: as by two layers with the same weights and the same feedback."""

    class Apart(Twice):
        def forward(self, x: Tensor) -> Tensor:
            first, second = self.cells
            return self.out(first(x) + second(x[:, : T - 1].flip(1)).sum(1, keepdim=True))

    net = Twice("gru").double()
    apart = Apart("gru", layers=2).double()
    apart.cells = nn.Sequential(*(copy.deepcopy(net.cells[0]) for _ in range(2)))
    apart.out = copy.deepcopy(net.out)
    one, two = aligned_network(net, reach=2), aligned_network(apart, reach=2)
    assert not torch.equal(matrix(two, "cells.0"), matrix(two, "cells.1"))
    for name in ("cells/0", "cells/1"):
        two.state.get_buffer(name).copy_(one.state.get_buffer("cells/0"))
    gradients(one), gradients(two)
    for (name, p), q, r in zip(
        net.cells[0].named_parameters(), *(c.parameters() for c in apart.cells), strict=True
    ):
        torch.testing.assert_close(p.grad, q.grad + r.grad, rtol=0.0, atol=1e-12, msg=name)
    entries = [int((b != 0).sum()) for b in matrix(one, "cells.0")]
    assert one.state.work(1, 1)[0] == entries[0] * (2 * T - 3) + entries[1] * (2 * T - 5)


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    aligned = aligned_network(network())
    expected = gradients(aligned)

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    hook = aligned.module.cells[0].over.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        aligned(X)
    hook.remove()
    assert_all_same(gradients(aligned), expected)


def test_what_follows_may_work_in_place() -> None:
    def net(inplace: bool) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(
                CELLS["rnn"](3, UNITS), nn.ReLU(inplace=inplace), nn.Linear(UNITS, 4)
            ).double()

    assert_all_same(*(gradients(aligned_network(net(inplace))) for inplace in (False, True)))
