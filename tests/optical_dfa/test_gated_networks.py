"""Networks with public gates: rule gated-dfa is exactly DFA of them, and their releases are of the sum of r ⊗ e."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_networks import EXACT, gradients, labels, normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import AlignedModule, align
from optical_dfa.networks.building import build
from optical_dfa.networks.gated import GATES, GatedNetwork, PublicGates
from optical_dfa.networks.scattering import DIRECTIONS, Scattering
from privacy import PrivacyEngine

M, C = 9, 4
IMAGE = (1, 20, 18)
X, Y = normal(M, 5, seed=1), labels(M)


def network(spec: str = "gated:6,9,7", shape: tuple[int, ...] = (5,)) -> GatedNetwork:
    found = build(spec, shape, C, seed=0).double()
    assert isinstance(found, GatedNetwork)
    return found


def aligned_with(rule: str, net: nn.Module | None = None, x: Tensor = X, **options: Any) -> AlignedModule:
    return align(
        net or network(), rule=rule, rule_options=options, backend="digital", seed=2, loss_reduction="sum",
        example=x, show=None,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), IMAGE])
def test_the_rule_is_dfa_to_the_bit_and_not_backpropagation(shape: tuple[int, ...]) -> None:
    """`dfa` is cut after the gates and goes back through them; `gated-dfa` is cut before them and knows them."""
    x = normal(M, *shape, seed=1)
    found = {
        rule: gradients(aligned_with(rule, network(shape=shape), x), x, Y)
        for rule in ("gated-dfa", "dfa", "bp")
    }
    for name, gradient in found["gated-dfa"].items():
        assert torch.equal(gradient, found["dfa"][name]), name
    for name in ("layers.0.weight", "layers.1.weight", "layers.2.weight"):
        cosine = torch.cosine_similarity(found["gated-dfa"][name].flatten(), found["bp"][name].flatten(), 0)
        assert abs(cosine) < 0.9, name


def test_it_is_autograd_with_the_backward_signal_replaced() -> None:
    aligned = aligned_with("gated-dfa")
    found = gradients(aligned, X, Y)
    net, matrix = network(), aligned.backend.matrix().double()  # type: ignore[union-attr]
    assert matrix.shape == (6 + 9 + 7, C)  # a row of B reads c errors: those of its gate's block
    error = torch.softmax(net(X), -1).detach() - nn.functional.one_hot(Y, C)
    gates, h, start = net.gates(X), X, 0
    for number, layer in enumerate(net.layers):
        n = layer.out_features
        h = layer(h.detach())
        opened = torch.stack([gates[:, k % GATES] for k in range(n)], 1)
        signal = error @ matrix[start : start + n].T / math.sqrt(n)
        weight, bias = torch.autograd.grad(((h := h * opened) * signal).sum(), [layer.weight, layer.bias])
        torch.testing.assert_close(found[f"layers.{number}.weight"], weight, **EXACT)
        torch.testing.assert_close(found[f"layers.{number}.bias"], bias, **EXACT)
        start += n


def midpoint_gap(net: nn.Module, name: str) -> float:
    """How far the output at the middle of two values of a parameter is from the middle of the outputs."""
    p = net.get_parameter(name)
    values = [normal(*p.shape, seed=k) for k in (5, 6)]
    outputs = []
    with torch.no_grad():
        for value in (*values, (values[0] + values[1]) / 2):
            p.copy_(value)
            outputs.append(net(X))
    return float((outputs[2] - (outputs[0] + outputs[1]) / 2).abs().max())


@pytest.mark.parametrize("name", ["layers.0.weight", "layers.1.weight", "layers.2.bias", "logits.weight"])
def test_the_output_is_linear_in_the_weights_of_a_layer(name: str) -> None:
    assert midpoint_gap(network(), name) < 1e-12
    assert midpoint_gap(build("mlp:6,9/relu", (5,), C, 0).double(), "1.weight") > 1e-3


def test_gates_are_a_public_function_of_the_record_alone() -> None:
    gates = PublicGates(20, 40).double()
    x = normal(500, 4, 5)
    opened = gates(x)
    assert opened.shape == (500, 40)
    assert set(opened.unique().tolist()) == {0.0, 1.0}
    assert (opened[:, 0] == 1).all()
    assert abs(float(opened[:, 1:].mean()) - 0.5) < 0.02
    assert torch.equal(opened, torch.cat([gates(one[None]) for one in x]))
    assert torch.equal(opened, gates(2 * x + 0.3))  # a picture's brightness and contrast are of no account
    seeds = [build("gated", (5,), C, seed).gates.normals for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


def test_units_start_at_the_same_size_in_every_layer() -> None:
    net = network("gated:400,300,200", (50,))
    gates, h = net.gates(x := normal(500, 50)), x
    for layer in net.layers:
        h = layer(h)
        assert 0.8 < float(h.detach().square().mean()) < 1.3
        h = h * net.gates.of_units(gates, h.shape[1])


def test_scattering_tells_directions_and_forgets_brightness() -> None:
    front = Scattering((1, 24, 24)).double()
    column = torch.arange(24, dtype=torch.float64)
    raw: list[Tensor] = []
    for k in range(DIRECTIONS):
        angle = k * math.pi / DIRECTIONS
        wave = torch.cos(0.75 * math.pi * (column * math.cos(angle) + column[:, None] * math.sin(angle)))
        window = torch.exp(-((column - 12) ** 2 + (column[:, None] - 12) ** 2) / 18)
        raw.append(front((wave * window)[None, None]).unflatten(1, (front.maps, -1))[0])
    # The map of a grating's own direction is the smoothest copy of its window: largest before it is normalised.
    energy = torch.stack([maps[1 : 1 + DIRECTIONS].square().sum(1) for maps in raw])
    assert energy.argmax(1).tolist() == list(range(DIRECTIONS))
    x = normal(3, 1, 24, 24)
    found = front(x)
    assert found.shape == (3, front.width)
    assert (found.norm(dim=1) <= math.sqrt(front.maps)).all()
    torch.testing.assert_close(front(10 * x + 5), front(10 * x), rtol=0, atol=1e-2)
    torch.testing.assert_close(front(x[1:2]), found[1:2], **EXACT)
    assert float(front(torch.full_like(x, 0.7)).abs().max()) < 1e-6  # nothing to see
    colours = build("gated:4", (3, 17, 16), C, 0)
    assert colours(torch.randn(2, 3, 17, 16)).shape == (2, C)


def test_a_run_says_whose_gates_taught_it() -> None:
    """The network's, where it has some; the rule's own where not, of which 1 is none."""
    aligned = align(network("gated:6,8").float(), rule="gated-dfa", example=X.float(), show=None)
    plain = align(
        build("mlp:6,8", (5,), C, 0).float(),
        rule="gated-dfa",
        rule_options={"gates": 3},
        example=X.float(),
        show=None,
    )
    own, other = (made.describe()["rule_options"] for made in (aligned, plain))
    assert own.keys() - other.keys() == {"gates_of_the_network"}
    assert own["gates_of_the_network"] == GATES
    assert {name: other[name] for name in other.keys() - own.keys()} == {"gates": 3, "gate_seed": 0}
    with pytest.raises(UsageError, match="gates_of_the_network"):
        aligned.set_extra_state(plain.get_extra_state())


# ---- private


class Run:
    """One network whose batch is the whole data set."""

    def __init__(self, release: str, max_grad_norm: float, backend: str = "digital") -> None:
        self.net = network("gated:6,8").float()
        x = X.float()
        aligned = align(
            self.net, rule="gated-dfa", backend=backend, seed=2, loss_reduction="sum", example=x, show=None,
            backend_options={"method": "homodyne"} if release == "photon" else None,
            noise=NoiseGenerator.seeded(1, "device"),
        )  # fmt: skip
        self.aligned, self.engine = aligned, PrivacyEngine(reproducible_seed=0)
        self.module, self.optimizer, self.loader = self.engine.make_private(
            module=aligned, optimizer=torch.optim.SGD(self.net.parameters(), lr=0.0), release=release,
            data_loader=DataLoader(TensorDataset(x, Y), batch_size=M),
            noise_multiplier=1e-9 if release == "aggregate" else 0.1, max_grad_norm=max_grad_norm,
        )  # fmt: skip

    def step(self) -> dict[str, Tensor]:
        x, y = next(iter(self.loader))
        cross_entropy(self.module(x), y, reduction="sum").backward()
        self.optimizer.step()
        return {name: p.grad.double() for name, p in self.net.named_parameters() if p.grad is not None}


def clipped_sum(aligned: AlignedModule, norm: float) -> dict[str, Tensor]:
    """The update written out: every record's r ⊗ e (h, 1) and output gradient, clipped together, then B on the sum."""
    net, device = network("gated:6,8"), aligned.backend
    assert device is not None
    matrix = device.matrix().double() / device.std  # type: ignore[union-attr]
    total: dict[str, Tensor] = {}
    for x, y in zip(X, Y, strict=True):
        with torch.no_grad():
            r, h, parts = net.gates(x[None])[0], x, {}
            lifted: dict[str, Tensor] = {}
            for number, layer in enumerate(net.layers):
                lifted[f"layers.{number}"] = torch.cat([h, torch.ones(1)])
                h = layer(h) * r.repeat(3)[: layer.out_features]
            e = torch.softmax(net.logits(h), -1) - nn.functional.one_hot(y, C)
            parts = {name: torch.einsum("g,c,d->gcd", r, e, one) for name, one in lifted.items()}
            parts["logits"] = torch.outer(e, torch.cat([h, torch.ones(1)]))
        size = math.sqrt(sum(float(part.square().sum()) for part in parts.values()))
        for name, part in parts.items():
            total[name] = total.get(name, 0) + part * min(1.0, norm / size)
    start = 0
    for number, layer in enumerate(net.layers):
        n = layer.out_features
        b = matrix[start : start + n] / math.sqrt(n)
        groups = total[f"layers.{number}"]
        total[f"layers.{number}"] = torch.stack([b[k] @ groups[k % GATES] for k in range(n)])
        start += n
    return {
        key: value
        for name, whole in total.items()
        for key, value in ((f"{name}.weight", whole[:, :-1] / M), (f"{name}.bias", whole[:, -1] / M))
    }


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference, over that of what is expected."""
    wanted = torch.cat([expected[name].flatten() for name in found])
    return float((torch.cat([x.flatten() for x in found.values()]) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("norm", [0.5, 40.0])
def test_aggregate_is_the_clipped_sum_then_projected_block_by_block(norm: float) -> None:
    run = Run("aggregate", norm)
    found, expected = run.step(), clipped_sum(run.aligned, norm)
    assert found.keys() == expected.keys()
    assert gap(found, expected) < 0.05  # whole numbers of a grid
    assert run.aligned.projections(M) == GATES * (5 + 1 + 6 + 1)


def test_photon_shows_every_block_of_a_column_and_reads_it_back() -> None:
    run = Run("photon", 0.5, "simulated-opu")
    steps = [run.step() for _ in range(12)]
    mean = {name: torch.stack([step[name] for step in steps]).mean(0) for name in steps[0]}
    assert gap(mean, clipped_sum(run.aligned, 0.5)) < 0.4
    credit = run.engine.ledger.header()["credit"]  # type: ignore[union-attr]
    assert credit["columns_a_step"] == GATES * (5 + 1 + 6 + 1) + 8 + 1


# ---- refusals


def test_gates_are_asked_for_in_one_place() -> None:
    with pytest.raises(
        UsageError, match="gates=3, gate_seed=0, but the network has 4 public gates of its own"
    ) as error:
        aligned_with("gated-dfa", gates=3)
    assert "\n" not in str(error.value)
    net = network()
    net.more = PublicGates(5)
    with pytest.raises(UsageError, match="2 sets of public gates"):
        aligned_with("gated-dfa", net)


class Ungated(nn.Module):
    """Gates that open nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.layers = PublicGates(5), nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def test_only_layers_that_the_gates_let_through_are_taught() -> None:
    net, example = network(), torch.randn(2, 5, dtype=torch.float64)
    with pytest.raises(
        UsageError, match=r"feedback point logits is no layer .* teaches layers\.0, layers\.1"
    ):
        align(net, rule="gated-dfa", points=["logits"], example=example, show=None)
    with pytest.raises(UsageError, match=r"layers\.0 is no layer .* teaches those of a GatedNetwork"):
        align(Ungated(), rule="gated-dfa", points=["layers.0"], example=torch.randn(2, 5), show=None)
    with pytest.raises(UsageError, match="gate_seed=7"):
        align(net, rule="gated-dfa", rule_options={"gate_seed": 7}, example=example, show=None)
