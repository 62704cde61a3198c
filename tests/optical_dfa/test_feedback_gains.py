"""The feedback scale that is derived where none is given, and the note where feedback will probably teach nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from noise_models.errors import UsageError
from optical_dfa import align
from optical_dfa.data import load
from optical_dfa.feedback import make_rule
from optical_dfa.networks.building import build

DATA = os.environ.get("OPTICAL_DFA_DATA")


def network(phi: Callable[[], nn.Module]) -> nn.Module:
    """The network of Opacus' MNIST example, with activation modules."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), phi(), nn.MaxPool2d(2, 1), nn.Conv2d(16, 32, 4, 2), phi(),
        nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(512, 32), phi(), nn.Linear(32, 10),
    )  # fmt: skip


IMAGE = torch.zeros(2, 1, 28, 28)


def gains(net: nn.Module, example: torch.Tensor, **options: object) -> dict[str, float]:
    return {p.name: p.gain for p in align(net, example=example, show=None, **options).points}  # type: ignore[arg-type]


def test_by_hand() -> None:
    """3^(-1/2) 6^(-k/2) P^(-3/2): 14 x 14 and 5 x 5 places, then one."""
    assert gains(network(nn.ReLU), IMAGE) == pytest.approx(
        {"1": 3**-0.5 / 6 / 196**1.5, "4": 3**-0.5 / 6**0.5 / 125, "8": 3**-0.5}
    )


@pytest.mark.parametrize("phi", [nn.GELU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Softplus, nn.PReLU, nn.ReLU6])
def test_its_kind_is_scaled_as_relu(phi: type[nn.Module]) -> None:
    assert gains(network(phi), IMAGE) == gains(network(nn.ReLU), IMAGE)


@pytest.mark.parametrize("phi", [nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Softsign])
def test_saturating_activations_keep_a_scale_of_1(phi: type[nn.Module]) -> None:
    assert set(gains(network(phi), IMAGE).values()) == {1.0}


def test_pooling_before_the_activation_leaves_the_places_of_the_point() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    assert gains(net, torch.zeros(2, 1, 8, 8)) == pytest.approx({"2": 3**-0.5 / 16**1.5})


def test_normalised_and_mixed_networks() -> None:
    net = nn.Sequential(
        nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(),
        nn.Linear(6, 3),
    )  # fmt: skip
    assert gains(net, torch.zeros(2, 5)) == {"2": 1.0, "4": 3**-0.5, "6": 1.0}


@pytest.mark.parametrize("rule", ["dfa", "sign-dfa", "ternary", "bdfa", "drtp", "ssdfa", "cdfa"])
def test_every_direct_rule_derives_it_and_an_explicit_scale_keeps_its_meaning(rule: str) -> None:
    errors = torch.zeros(1, 4)
    errors[0, 0] = -1.0

    def signals(**options: float) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        aligned = align(net, rule=rule, rule_options=options, example=torch.zeros(2, 5), show=None)
        lifted = aligned.rule.lift(errors, None)
        found = aligned.rule.feedback(lifted, aligned.points, aligned.backend)
        return [s for s in found if s is not None]

    whole, double, derived = signals(scale=1.0), signals(scale=2.0), signals()
    for one, two, own, gain in zip(whole, double, derived, (3**-0.5 / 6**0.5, 3**-0.5), strict=True):
        torch.testing.assert_close(two, 2 * one)
        torch.testing.assert_close(own, gain * one)


def test_the_scale_that_acts_is_in_the_description_and_a_state_of_another_is_refused() -> None:
    tanh, relu = (nn.Sequential(nn.Linear(5, 6), phi(), nn.Linear(6, 3)) for phi in (nn.Tanh, nn.ReLU))
    plain = align(tanh, show=None)
    assert plain.describe()["rule_options"]["scale"] == 1.0
    explicit = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    align(explicit, rule_options={"scale": 1.0}, show=None).load_state_dict(plain.state_dict())
    assert align(relu, show=None).describe()["rule_options"]["scale"] == {"1": pytest.approx(3**-0.5)}
    with pytest.raises(UsageError, match="rule_options"):
        align(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), show=None).load_state_dict(
            plain.state_dict()
        )


def test_a_scale_below_nought_is_refused_still() -> None:
    with pytest.raises(UsageError, match="positive"):
        make_rule("dfa", {"scale": -1.0})


# ---- the note


def notes(net: nn.Module, example: torch.Tensor, **options: object) -> list[str]:
    shown: list[str] = []
    align(net, example=example, show=shown.append, **options)  # type: ignore[arg-type]
    return [line for text in shown for line in text.splitlines() if line.startswith("note: ")]


@pytest.mark.parametrize(
    "spec",
    ["mlp", "mlp:64,64/relu", "cnn", "cnn/relu", "cnn:4,8+16/relu", "resmlp", "resmlp:16,16,16/relu", "skip"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_built_networks_get_no_note(spec: str, seed: int) -> None:
    assert notes(build(spec, (1, 28, 28), 10, seed), IMAGE) == []
    assert notes(build(spec, (1, 28, 28), 10, seed), IMAGE, rule="hybrid" if spec[0] == "c" else "fa") == []


@pytest.mark.parametrize("spec", ["gru:8", "lstm:8", "rnn:8", "transformer:16,2", "transformer:16,2/tanh"])
def test_networks_for_text_get_no_note(spec: str) -> None:
    net = build(spec, (6,), 11, 0, text=True)
    points = net.points_of("micro") if spec.startswith("tr") else None  # type: ignore[operator]
    assert notes(net, torch.zeros(2, 6, dtype=torch.int64), points=points) == []


def test_embeddings_get_no_note() -> None:
    net = build("embed:4,8", (3,), 2, 0, cardinalities=(3, 0, 5))
    assert notes(net, torch.zeros(2, 3)) == []


@pytest.mark.parametrize("phi", [nn.ReLU, nn.GELU, nn.LeakyReLU])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_scale_out_of_proportion_is_noted(phi: type[nn.Module], scale: float) -> None:
    (line,) = notes(network(phi), IMAGE, rule_options={"scale": scale})
    for word in ("feedback to 1 is", "leave scale out", "nn.Tanh", "GroupNorm", "hybrid"):
        assert word in line
    assert notes(network(nn.Tanh), IMAGE, rule_options={"scale": scale}) == []
    assert notes(network(phi), IMAGE) == []


@pytest.mark.parametrize("phi", [nn.ReLU, nn.ReLU6])
def test_dead_units_are_noted(phi: type[nn.Module]) -> None:
    def net(bias: float) -> nn.Module:
        torch.manual_seed(0)
        found = nn.Sequential(nn.Linear(5, 16), phi(), nn.Linear(16, 3))
        found[0].bias.data.fill_(bias)  # type: ignore[operator,union-attr]
        return found

    (line,) = notes(net(-50.0), torch.zeros(2, 5))
    for word in ("100% of the units of 1", "dead", "nn.Tanh", "hybrid", "of mean 0 and deviation 1"):
        assert word in line
    assert notes(net(-50.0), torch.full((2, 5), 1e6)) == [
        line
    ]  # of an example nothing but its shape is shown
    assert notes(net(0.0), torch.zeros(2, 5)) == []


# ---- what it is for


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="set OPTICAL_DFA_DATA to a folder with MNIST")
def test_relu_learns_within_5_points_of_tanh() -> None:
    """Two passes over 10,000 digits, SGD 0.05 with momentum 0.9, three seeds."""
    data = load("mnist", Path(str(DATA)))
    x, y = data.x_train[:10_000], data.y_train[:10_000]

    def accuracy(phi: type[nn.Module], seed: int) -> float:
        torch.manual_seed(seed)
        aligned = align(network(phi), example=x[:2], seed=seed, show=None)
        optimizer = torch.optim.SGD(aligned.parameters(), lr=0.05, momentum=0.9)
        order = torch.Generator().manual_seed(seed)
        for _ in range(2):
            for rows in torch.randperm(len(x), generator=order).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(aligned(x[rows]), y[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            return float((aligned(data.x_test).argmax(1) == data.y_test).double().mean())

    relu, tanh = (sum(accuracy(phi, seed) for seed in range(3)) / 3 for phi in (nn.ReLU, nn.Tanh))
    assert relu > tanh - 0.05
