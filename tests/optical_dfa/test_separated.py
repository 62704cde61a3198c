"""Separated capture against the equations, and the networks it refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.aligning import align
from optical_dfa.capture.separated import SeparatedCapture
from optical_dfa.feedback.aligned import AlignedModule
from privacy.contributions.separated import SeparatedLayer


def chain(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def captured(net: nn.Module, example: Tensor, **options: object) -> AlignedModule:
    torch.manual_seed(1)
    module = align(net, example=example, show=None, **options)  # type: ignore[arg-type]
    capture = SeparatedCapture(module)
    capture.expected_records = lambda: len(example)
    module.attach(capture)
    return module


def taught(module: AlignedModule, x: Tensor, y: Tensor) -> list[SeparatedLayer]:
    torch.autograd.backward(nn.functional.cross_entropy(module(x), y))
    assert isinstance(module._capture, SeparatedCapture)
    return module._capture.separated()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus])
def test_factors_are_those_of_the_equations(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, 2), torch.randint(0, 4, (7,))
    net = chain(6, 8, 5, 4, activation=activation)
    first, second, last = (part for part in net if isinstance(part, nn.Linear))
    module = captured(net, x, rule_options={"scale": 1.0})
    layers = taught(module, x, y)
    assert [layer.name for layer in layers] == ["1", "3", "5"]
    assert module.backend is not None
    frame = module.backend.matrix()
    assert frame is not None
    with torch.no_grad():
        h: list[Tensor] = [x.flatten(1)]
        a = []
        for part in (first, second):
            a.append(part(h[-1]))
            h.append(activation()(a[-1]))
        e = torch.softmax(last(h[-1]), 1) - nn.functional.one_hot(y, 4)
    start = 0
    for layer, inputs, pre in zip(layers[:2], h, a, strict=False):
        n = pre.shape[1]
        given = pre.clone().requires_grad_()
        (slope,) = torch.autograd.grad(activation()(given).sum(), given)
        signal = e @ frame[start : start + n].T / n**0.5
        torch.testing.assert_close(layer.gate, slope)
        torch.testing.assert_close(layer.signal, signal * slope, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.inputs, torch.cat([inputs, torch.ones(7, 1)], 1))
        assert (layer.weight, layer.bias) == (f"{layer.name}.weight", f"{layer.name}.bias")
        start += n
    torch.testing.assert_close(layers[2].signal, e, rtol=1e-4, atol=1e-6)
    assert layers[2].gate.eq(1).all()
    assert layers[2].point is None


def test_factors_make_the_update_that_is_released_without_noise() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(9, 6), torch.randint(0, 3, (9,))
    module = captured(chain(6, 8, 3), x)
    layers = taught(module, x, y)
    capture = module._capture
    assert capture is not None
    total = torch.zeros(capture.dimension)
    capture.add_clipped(torch.ones(9, dtype=torch.float64), total)
    found = []
    for layer in layers:
        update = layer.signal.T @ layer.inputs
        found += [update[:, :-1].flatten(), update[:, -1]]
    torch.testing.assert_close(torch.cat(found), total)


def test_frozen_weights_and_biases_are_left_out() -> None:
    net = chain(6, 8, 3)
    net[1].bias.requires_grad_(False)
    net[3].weight.requires_grad_(False)
    x = torch.randn(4, 6)
    hidden, output = taught(captured(net, x), x, torch.tensor([0, 1, 2, 0]))
    assert (hidden.bias, output.weight) == (None, None)
    assert (hidden.inputs.shape, output.inputs.shape) == ((4, 6), (4, 1))


def test_an_empty_batch_has_empty_factors() -> None:
    module = captured(chain(6, 8, 3), torch.randn(0, 6))
    layers = taught(module, torch.randn(0, 6), torch.zeros(0, dtype=torch.long))
    assert [tuple(layer.signal.shape) for layer in layers] == [(0, 8), (0, 3)]


class Skip(nn.Module):
    """A network whose layer does not go to its activation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.one, self.two = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        h = self.one(a)
        out: Tensor = self.last(self.two(self.second(h) + a))
        return out


class Doubled(Skip):
    """A functional step between a layer and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.two(2 * self.second(self.one(self.first(x)))))
        return out


class Crossing(Skip):
    """Something comes after the last layer."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        h = self.one(a)
        b = self.second(h)
        out: Tensor = self.last(self.two(b)) + 0.0
        return out


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)), "LayerNorm"),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), "in place"),
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 3)), "Dropout"),
        (nn.Sequential(nn.Linear(6, 4), nn.RReLU(), nn.Linear(4, 3)), "RReLU"),
        (Skip(), "one and two"),
        (Doubled(), "second"),
        (Crossing(), "last"),
    ],
    ids=["norm", "inplace", "dropout", "random-slopes", "skip", "scaled", "after-output"],
)
def test_other_networks_are_refused_by_name(net: nn.Module, named: str) -> None:
    x = torch.randn(4, 6)
    with pytest.raises(UsageError, match=named):
        taught(captured(net, x), x, torch.tensor([0, 1, 2, 0]))


def test_a_second_pass_over_a_batch_is_refused() -> None:
    x = torch.randn(4, 6)
    module = captured(chain(6, 8, 3), x)
    module(x)
    with pytest.raises(UsageError, match="second forward pass"):
        module(x)


def test_a_batch_without_or_with_two_backward_passes_is_refused() -> None:
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    module = captured(chain(6, 8, 3), x)
    loss = nn.functional.cross_entropy(module(x), y)
    assert isinstance(module._capture, SeparatedCapture)
    with pytest.raises(UsageError, match="one backward pass"):
        module._capture.separated()
    torch.autograd.backward(loss, retain_graph=True)
    torch.autograd.backward(loss)
    with pytest.raises(UsageError, match="one backward pass"):
        module._capture.separated()


def test_another_feedback_point_is_refused() -> None:
    x = torch.randn(4, 6)
    with pytest.raises(UsageError, match="feedback point 0 is a Linear"):
        captured(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), x, points=["0"])


def test_a_signal_that_is_not_gate_times_feedback_is_refused() -> None:
    x = torch.randn(4, 6)
    module = captured(chain(6, 8, 3), x)
    assert isinstance(module._capture, SeparatedCapture)
    loss = nn.functional.cross_entropy(module(x), torch.tensor([0, 1, 2, 0]))
    module._capture._gates[0, "1"] *= 1.01
    torch.autograd.backward(loss)
    with pytest.raises(UsageError, match="taught by more"):
        module._capture.separated()


class Scaled(nn.Module):
    """A chain with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.chain, self.scale = chain(6, 8, 4), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x.flatten(1) * self.scale)


@pytest.mark.parametrize(
    ("net", "rule", "words"),
    [
        (chain(6, 8, 4, activation=nn.PReLU), "dfa", "2 (PReLU) has trained parameters of its own"),
        (Scaled(), "bp", "the module (Scaled) has trained parameters of its own"),
    ],
)
def test_trained_parameters_outside_linear_layers_are_refused(net: nn.Module, rule: str, words: str) -> None:
    x = torch.randn(3, 6)
    aligned = align(net, rule=rule, example=x, show=None)
    with pytest.raises(UsageError) as error:
        SeparatedCapture(aligned)
    assert words in str(error.value)
    assert not any(part._forward_hooks for part in net.modules() if isinstance(part, nn.Linear))
