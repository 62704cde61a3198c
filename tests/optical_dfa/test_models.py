"""The reference networks: initial laws, shapes, and that no gradient passes around a feedback point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.networks.building import ACTIVATIONS, build
from optical_dfa.networks.skip import SkipNetwork

IMAGE = (1, 8, 8)
SPECS = [
    "mlp",
    "mlp:7,5",
    "mlp:6/relu",
    "cnn",
    "cnn:6",
    "cnn:4,8/relu",
    "cnn:4,6+9",
    "cnn:4+9,7/relu",
    "resmlp",
    "resmlp:9",
    "resmlp:8,8,8,8/relu",
    "skip",
    "skip:7,5",
    "skip:6/relu",
]


@pytest.mark.parametrize("spec", [*SPECS, "gated:7,5"])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_maps_records_to_logits(spec: str, rows: int) -> None:
    net = build(spec, IMAGE, classes=4, seed=0)
    x = torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(1))
    logits = net(x)
    assert logits.shape == (rows, 4)
    logits.sum().backward()
    for name, p in net.named_parameters():
        assert p.dtype == torch.float32
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("shape", [(6,), (2, 8, 8), (16, 4, 5), (81, 7, 7)])
def test_skip_adds_hidden_layers_to_a_linear_one(shape: tuple[int, ...]) -> None:
    net = build("skip:9", shape, 3, seed=0)
    assert isinstance(net, SkipNetwork)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    assert not net(x).any()  # both read-outs begin at 0
    with torch.no_grad():
        for p in (*net.direct.parameters(), *net.read_out.parameters()):
            p.normal_(generator=torch.Generator().manual_seed(2))
    coarse = x.flatten(1)
    if shape[0] >= 16:  # maps: an odd side's last place stands for itself
        rows = [x[:, :, i : i + 2].mean(2) for i in range(0, shape[1], 2)]
        coarse = torch.stack(
            [torch.stack([r[..., j : j + 2].mean(-1) for j in range(0, shape[2], 2)], -1) for r in rows], 2
        ).flatten(1)
    first = net.hidden[0]
    h = torch.tanh(coarse @ first.weight.T + first.bias)
    expected = x.flatten(1) @ net.direct.weight.T + net.direct.bias + h @ net.read_out.weight.T
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_default_is_512_tanh() -> None:
    net = build("mlp", (1, 28, 28), 10, 0)
    assert isinstance(net, nn.Sequential)
    assert [type(layer) for layer in net] == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear]
    assert [tuple(p.shape) for p in net.parameters()] == [(512, 784), (512,), (10, 512), (10,)]


@pytest.mark.parametrize("spec", SPECS)
def test_activations_are_modules_of_the_kind_asked_for(spec: str) -> None:
    kinds = {
        type(m) for m in build(spec, IMAGE, 4, 0).modules() if isinstance(m, tuple(ACTIVATIONS.values()))
    }
    assert kinds == {nn.ReLU if spec.endswith("/relu") else nn.Tanh}


def test_initial_values_are_those_of_pytorch() -> None:
    """Bit for bit: PyTorch's own constructors on its global generator with the same seed."""
    ours = build("mlp:32", (5,), 3, seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(11, "weights"))
        theirs = nn.Sequential(nn.Flatten(), nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
    conv = build("cnn:6", IMAGE, 3, seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(11, "weights"))
        reference = [nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Linear(6 * 16, 3)]
        wanted = [p for module in reference for p in module.parameters()]
        for a, b in zip(conv.parameters(), wanted, strict=True):
            assert torch.equal(a, b)


def test_fully_connected_layers_follow_a_cnns_channels_in_their_order() -> None:
    net = build("cnn:4+9,7/relu", IMAGE, 3, seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(11, "weights"))
        wanted = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * 16, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3),
        )  # fmt: skip
    assert str(net) == str(wanted)
    for a, b in zip(net.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("spec", [*SPECS, "gated:7,5"])
def test_weights_follow_the_seed_and_nothing_else(spec: str) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = build(spec, IMAGE, 4, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second = build(spec, IMAGE, 4, seed=5).state_dict()
    other = build(spec, IMAGE, 4, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("spec", SPECS)
def test_cutting_at_the_activations_cuts_everything(spec: str) -> None:
    """With the activations' outputs detached, only the read-outs get a gradient: nothing skips a point."""
    net = build(spec, IMAGE, 4, 0)
    for module in net.modules():
        if isinstance(module, tuple(ACTIVATIONS.values())):
            module.register_forward_hook(lambda module, args, output: output.detach())
    net(torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(1))).sum().backward()
    reached = [name for name, p in net.named_parameters() if p.grad is not None]
    outputs = ("direct.weight", "direct.bias", "read_out.weight")
    assert reached == (
        [name for name, _ in net.named_parameters()][-2:]
        if not isinstance(net, SkipNetwork)
        else [name for name, _ in net.named_parameters() if name in outputs]
    )


@pytest.mark.parametrize("spec", [*SPECS, "gated:7,5"])
def test_records_are_not_mixed(spec: str) -> None:
    """Replacing one record leaves the logits of the others as they were (docs/threat-model.md)."""
    net = build(spec, IMAGE, 4, 0).double()
    generator = torch.Generator().manual_seed(1)
    if isinstance(net, SkipNetwork):  # whose logits begin at 0
        torch.nn.init.normal_(net.direct.weight, generator=generator)
    x = torch.randn(5, *IMAGE, generator=generator, dtype=torch.float64)
    before = net(x)
    x[2] = 100 * torch.randn(IMAGE, generator=generator, dtype=torch.float64)
    after = net(x)
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(before[others], after[others], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[2], after[2])


def test_residual_block_is_the_equation() -> None:
    net = build("resmlp:6,6", (6,), 3, 0)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    W0, b0, W1, b1, W2, b2 = net.parameters()

    def affine(h: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("md,nd->mn", h, W) + b

    h = torch.tanh(affine(x, W0, b0))
    h = torch.tanh(h + affine(h, W1, b1))
    torch.testing.assert_close(net(x), affine(h, W2, b2))


def test_cnn_pools_before_the_activation_without_changing_the_function() -> None:
    """max then tanh is tanh then max, because tanh is monotone."""
    net = build("cnn:6", IMAGE, 3, 0)
    x = torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(2))
    assert isinstance(net, nn.Sequential)
    conv, norm, pool, tanh, flatten, linear = net
    torch.testing.assert_close(net(x), linear(flatten(pool(tanh(norm(conv(x)))))))
    assert math.prod(tanh(pool(norm(conv(x)))).shape[1:]) == 6 * 4 * 4


def test_embeddings_have_pytorchs_initial_law_too() -> None:
    ours = build("embed:4,6", (3,), 2, seed=11, cardinalities=(5, 0, 7))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(11, "weights"))
        reference = [nn.Embedding(5, 4), nn.Embedding(7, 4), nn.Linear(9, 6), nn.Linear(6, 2)]
        wanted = [p for module in reference for p in module.parameters()]
        for a, b in zip(ours.parameters(), wanted, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "spec",
    [
        "", "MLP", "mpl", "mlp:", "mlp:0", "mlp:-5", "mlp:5,", "mlp:5.5", "mlp:a", "mlp: 5", "mlp:65537",
        "mlp:٣", "mlp/", "mlp/sigmoid", "mlp:5/tanh/relu", "mlp/tanh:5", "cnn:1x2", "resmlp:5,6",
        "cnn:5+", "cnn:+5", "cnn:5+6+7", "cnn:5+0", "mlp:" + "9" * 5000,
    ],
)  # fmt: skip
def test_unknown_specifications(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(spec, IMAGE, 4, 0)
    assert "\n" not in str(caught.value)
    assert ("cnn:16,32+128" if spec.startswith("cnn") else "mlp") in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "word"),
    [
        ("cnn", (64,), 4, "mlp"),
        ("cnn", (1, 8, 3), 4, "4 pixels"),
        ("cnn:2,2,2,2", (1, 8, 8), 4, "16 pixels"),
        ("mlp:7+5", (1, 8, 8), 4, "separate the widths of mlp by commas"),
        ("embed:4,6", (5,), 4, "array cardinalities"),
        ("mlp", (5,), 1, "1 class"),
        ("mlp", (), 4, "shape"),
        ("mlp", (0,), 4, "shape"),
    ],
)
def test_specifications_that_do_not_fit(spec: str, shape: tuple[int, ...], classes: int, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        build(spec, shape, classes, 0)
    assert "\n" not in str(caught.value)
