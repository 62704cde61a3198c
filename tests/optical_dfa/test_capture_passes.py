"""Which passes count in a private step: those that plain PyTorch would have accumulated, each layer as it really is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.capture.records import Capture

M = 6
X = torch.randn(M, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (M,), generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))


def private(net: nn.Module, rule: str = "bp") -> tuple[Any, Capture]:
    aligned = align(net, rule=rule, example=X, loss_reduction="sum", show=None)
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    return aligned, capture


def recorded(capture: Capture) -> Tensor:
    out = torch.zeros(capture.dimension)
    capture.norms()
    capture.add_clipped(torch.ones(M, dtype=torch.float64), out)
    return out


def plain(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def loss(module: Any, x: Tensor, scale: float = 1.0) -> Tensor:
    return scale * cross_entropy(module(x), Y, reduction="sum")


def twice(module: Any) -> None:
    loss(module, X).backward()
    loss(module, X + 1, 0.5).backward()


def dropped(module: Any) -> None:
    loss(module, X + 1).backward()
    module.zero_grad()
    loss(module, X).backward()


def attacked(module: Any) -> None:
    """The fast gradient sign method asks for a gradient of the input; the weights are to learn from the second pass."""
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(module, x), x)
    loss(module, X + 0.1 * slope.sign()).backward()


def asked_only(module: Any) -> None:
    x = X.clone().requires_grad_()
    loss(module, x).backward(inputs=[x])
    loss(module, X).backward()


def retained(module: Any) -> None:
    value = loss(module, X)
    value.backward(retain_graph=True)
    value.backward()


def penalised(module: Any) -> None:
    """A gradient of the output taken on the way, by torch.autograd.grad on the same graph."""
    x = X.clone().requires_grad_()
    value = loss(module, x)
    torch.autograd.grad(value, x, retain_graph=True)
    value.backward()


@pytest.mark.parametrize("passes", [twice, dropped, attacked, asked_only, retained, penalised])
def test_what_counts_is_what_plain_training_accumulates(passes: Callable[[Any], None]) -> None:
    net = network()
    passes(net)
    wanted = plain(net)
    aligned, capture = private(network())
    passes(aligned)
    torch.testing.assert_close(recorded(capture), wanted)


@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_dropping_leaves_nothing_behind(rule: str) -> None:
    aligned, capture = private(network(), rule)
    loss(aligned, X).backward()
    aligned.zero_grad()
    assert not capture.taught
    assert not recorded(capture).any()


# ---- layers that do something else than their type says


def scaled(self: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, 3 * self.weight, self.bias)


def replaced() -> nn.Module:
    net = network()
    net[0].forward = MethodType(scaled, net[0])
    return net


def partially() -> nn.Module:
    net = network()
    net[0].forward = partial(scaled, net[0])
    return net


def low_rank() -> nn.Module:
    net = network()
    layer, original = net[2], net[2].forward
    layer.down, layer.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)
    layer.forward = lambda x: original(x) + layer.up(layer.down(x))
    return net


@pytest.mark.parametrize("made", [replaced, partially, low_rank])
def test_a_replaced_forward_is_refused(made: Callable[[], nn.Module]) -> None:
    with pytest.raises(UsageError, match=r"forward (of [02] )?was replaced"):
        private(made())


def test_a_layer_called_around_its_hooks_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one.forward(x)))

    with pytest.raises(UsageError, match="one"):
        private(Around())


class Unhooked:
    """Where a call of a layer goes when somebody took its way around the hooks."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.forward(*args, **kwargs)


def test_a_layer_whose_call_was_replaced_is_refused() -> None:
    net = network()
    net[0]._call_impl = Unhooked(net[0])
    with pytest.raises(UsageError):
        private(net)


def test_other_hooks_are_part_of_the_layer() -> None:
    def hooked() -> nn.Module:
        net = network()
        net[0].register_forward_hook(lambda layer, args, output: 2 * output)
        net[2].register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
        return net

    net = hooked()
    loss(net, X).backward()
    aligned, capture = private(hooked())
    loss(aligned, X).backward()
    torch.testing.assert_close(recorded(capture), plain(net))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.one, self.two, self.reentrant = nn.Linear(5, 6), nn.Linear(6, 4), reentrant
        self.phi = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda x: self.phi(self.one(x)), x, use_reentrant=self.reentrant)
        return self.two(h)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.*requires_grad=True.*:UserWarning")
def test_activation_checkpointing_is_refused(reentrant: bool) -> None:
    with pytest.raises(UsageError, match="checkpoint"):
        private(Checkpointed(reentrant))


def test_tensors_saved_elsewhere_are_refused() -> None:
    """The kind: hooks on what the backward pass reads."""

    class Offloaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.save_on_cpu():
                return self.net(x)

    with pytest.raises(UsageError, match="max_physical_batch_size"):
        private(Offloaded())


# ---- positions without a row a record


class Places(nn.Module):
    def __init__(self, expanded: bool) -> None:
        super().__init__()
        self.into, self.place, self.out = nn.Linear(3, 4), nn.Embedding(M, 4), nn.Linear(4, 4)
        self.expanded = expanded

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        places = places.expand(len(x), -1) if self.expanded else places
        return self.out((self.into(x) + self.place(places)).mean(1))


def test_places_without_a_row_a_record_are_refused_at_any_batch_size() -> None:
    """A batch as large as the sequence is long has rows that look like records."""
    example = torch.zeros(1, M, 3)
    with pytest.raises(UsageError, match=r"place .*"):
        align(Places(False), rule="bp", example=example, show=None).start_capture()
    aligned = align(Places(True), rule="bp", example=example, loss_reduction="sum", show=None)
    capture = aligned.start_capture()
    for records in (M, M - 1):
        x = torch.randn(records, M, 3, generator=torch.Generator().manual_seed(records))
        capture.expected_records = lambda records=records: records
        aligned(x).square().sum().backward()
        alone = []
        for record in x:
            aligned.module.zero_grad()
            aligned.module(record[None]).square().sum().backward()
            alone.append(plain(aligned.module))
        torch.testing.assert_close(
            capture.norms(), torch.stack(alone).double().norm(dim=1), rtol=1e-4, atol=0
        )
        capture.clear()
        aligned.module.zero_grad()


# ---- masks


class Random(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.draw = nn.Linear(5, 6), nn.Linear(6, 4), draw
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return self.two(h * self.draw(h))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda h: nn.functional.dropout(torch.ones_like(h), 0.4),
    "feature dropout": lambda h: nn.functional.dropout1d(torch.ones_like(h), 0.4),
    "alpha dropout": lambda h: nn.functional.alpha_dropout(torch.ones_like(h), 0.4, training=True),
    "rrelu": lambda h: nn.functional.rrelu(-torch.ones_like(h), 0.1, 0.4, training=True),
    "stochastic depth": lambda h: h.new_empty((len(h), 1)).bernoulli_(0.6),
    "bernoulli": lambda h: torch.bernoulli(torch.full_like(h, 0.6)),
    "rand": lambda h: torch.rand(h.shape),
    "rand_like": lambda h: torch.rand_like(h),
    "randn": lambda h: torch.randn(len(h), 6),
    "randn_like": lambda h: torch.randn_like(h),
    "uniform_": lambda h: torch.empty_like(h).uniform_(-1, 2),
    "normal_": lambda h: torch.empty_like(h).normal_(1, 3),
    "exponential_": lambda h: torch.empty_like(h).exponential_(2.0),
}


@pytest.mark.parametrize("name", DRAWS)
def test_masks_come_from_the_secret_stream_alone(name: str) -> None:
    """The same seed of torch's generator, as an adversary would try them, gives other masks; the stream's repeats."""
    aligned, capture = private(Random(DRAWS[name]))
    outputs = []
    for stream in (1, 1, 2):
        torch.manual_seed(7)
        before = torch.random.get_rng_state()
        capture.masks = NoiseGenerator.seeded(stream, "masks")
        outputs.append(aligned(X).detach())
        capture.clear()
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


MOMENTS = {
    "dropout": (1.0, 0.4 / 0.6), "stochastic depth": (0.6, 0.24), "bernoulli": (0.6, 0.24), "rand": (0.5, 1 / 12),
    "rand_like": (0.5, 1 / 12), "randn_like": (0.0, 1.0), "randn": (0.0, 1.0), "uniform_": (0.5, 9 / 12),
    "normal_": (1.0, 9.0), "exponential_": (0.5, 0.25), "rrelu": (-0.25, 0.3**2 / 12),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_masks_have_their_law(name: str) -> None:
    """Mean and variance of 4000 records' masks within 5 standard errors (false alarm 1e-6 a figure), rows apart."""
    records = 4000
    seen: list[Tensor] = []

    def noting(h: Tensor) -> Tensor:
        drawn = DRAWS[name](h)
        seen.append(drawn)
        return drawn

    noting.__module__ = "tests"
    aligned, capture = private(Random(noting))
    capture.masks = NoiseGenerator.seeded(11, "masks")
    capture.expected_records = lambda: records
    aligned(torch.zeros(records, 5))
    drawn = seen[-1].double().reshape(records, -1)
    mean, variance = MOMENTS[name]
    count = drawn.numel()
    fourth = float((drawn - drawn.mean()).pow(4).mean())
    assert abs(float(drawn.mean()) - mean) < 5 * (variance / count) ** 0.5
    assert abs(float(drawn.var()) - variance) < 5 * (max(fourth - variance**2, 1e-12) / count) ** 0.5
    pairs = ((drawn[1:] - mean) * (drawn[:-1] - mean)).mean() / variance
    assert abs(float(pairs)) < 5 / (count * (records - 1) / records) ** 0.5


def test_a_generator_of_the_modules_own_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UsageError):
        private(Random(lambda h: torch.empty_like(h).bernoulli_(0.5, generator=generator)))


@pytest.mark.parametrize("draw", [
    lambda h: torch.randint(0, 2, h.shape).float(),
    lambda h: torch.empty_like(h).geometric_(0.5),
    lambda h: torch.poisson(torch.ones_like(h)),
    lambda h: h.abs().multinomial(3).float().mean(1, keepdim=True),
])  # fmt: skip
def test_draws_without_a_secret_stream_are_refused(draw: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UsageError, match="draws at random"):
        private(Random(draw))
