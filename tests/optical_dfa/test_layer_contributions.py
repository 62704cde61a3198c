"""Every layer that a private run trains, with all that torch lets one set: the sum against each record's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from small_networks import seeded
from test_capture_sums import CLASSES, M, alone, captured, clip, clipped_sum, normal, whole
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import align
from optical_dfa.capture.layers.own import own_parameters

Case = tuple[Callable[[], nn.Module], Sequence[Tensor]]


class Around(nn.Module):
    """The layer between a linear one, where it takes numbers, and one that reads out."""

    def __init__(self, layer: nn.Module, inputs: Sequence[Tensor], *, whole: bool = False) -> None:
        super().__init__()
        self.before = nn.Identity() if whole else nn.Linear(inputs[0].shape[-1], inputs[0].shape[-1])
        self.layer, self.phi = layer.double(), nn.Tanh()
        with torch.no_grad():
            shape = self.layer(*inputs).shape
        self.out = nn.Linear(shape[1:].numel(), CLASSES)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.out(self.phi(self.layer(self.before(x), *others)).flatten(1))


def case(make: Callable[[], nn.Module], *inputs: Tensor) -> Case:
    return lambda: Around(make(), inputs, whole=not inputs[0].is_floating_point()), inputs


LINE, IMAGE, BLOCK = normal(M, 4, 7), normal(M, 4, 5, 4), normal(M, 4, 4, 3, 5)
BAGS, LOTS = whole(M, 5, high=6), normal(M, 5, seed=3)


def affine(layer: nn.Module) -> nn.Module:
    """Gains that are not all 1."""
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


class Weighted(nn.Module):
    """A bag with a weight an index, by name."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 3, mode="sum", padding_idx=padding)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.bag(x, per_sample_weights=weights)


class Larger(nn.Module):
    """A transposed convolution that is told how large its output is to be."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 2, 3, stride=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=[17, 13])


CASES: dict[str, Case] = {
    "conv3d": case(lambda: nn.Conv3d(4, 3, 2), BLOCK),
    "conv3d, all set": case(
        lambda: nn.Conv3d(4, 6, (3, 2, 3), (2, 1, 1), (1, 0, 2), (1, 2, 1), groups=2, bias=False), BLOCK
    ),
    "conv3d same": case(lambda: nn.Conv3d(4, 2, (3, 1, 3), padding="same"), BLOCK),
    "conv3d reflect": case(lambda: nn.Conv3d(4, 2, 3, padding=(1, 2, 1), padding_mode="reflect"), BLOCK),
    "conv3d circular": case(lambda: nn.Conv3d(4, 4, 2, padding=1, padding_mode="circular", groups=4), BLOCK),
    "transposed 1d": case(lambda: nn.ConvTranspose1d(4, 3, 3), LINE),
    "transposed 1d, all set": case(
        lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2, bias=False), LINE
    ),
    "transposed 1d, more padding than stride": case(
        lambda: nn.ConvTranspose1d(4, 3, 2, output_padding=2, dilation=3), LINE
    ),
    "transposed 2d": case(lambda: nn.ConvTranspose2d(4, 3, (3, 2), (2, 3), (1, 0), (1, 2)), IMAGE),
    "transposed 2d, depthwise": case(lambda: nn.ConvTranspose2d(4, 8, 2, 2, groups=4), IMAGE),
    "transposed 2d, output size": case(Larger, IMAGE),
    "transposed 3d": case(lambda: nn.ConvTranspose3d(4, 2, 2, (2, 1, 1), groups=2), BLOCK),
    "rms norm": case(lambda: affine(nn.RMSNorm((5, 4), eps=1e-3)), IMAGE),
    "rms norm, last axis": case(lambda: affine(nn.RMSNorm(7)), LINE),
    "instance norm 1d": case(lambda: affine(nn.InstanceNorm1d(4, affine=True)), LINE),
    "instance norm 2d": case(lambda: affine(nn.InstanceNorm2d(4, eps=0.1, affine=True)), IMAGE),
    "instance norm 3d": case(lambda: affine(nn.InstanceNorm3d(4, affine=True)), BLOCK),
    "prelu": case(nn.PReLU, IMAGE),
    "prelu, a channel": case(lambda: nn.PReLU(4, init=-0.3), IMAGE),
    "prelu, flat": case(lambda: affine(nn.PReLU(5)), LOTS),
    "bilinear": case(lambda: nn.Bilinear(5, 3, 6), LOTS, normal(M, 3, seed=4)),
    "bilinear at positions": case(lambda: nn.Bilinear(7, 2, 3, bias=False), LINE, normal(M, 4, 2, seed=4)),
    **{
        f"bags, {mode}, padding {padding}": case(
            lambda mode=mode, padding=padding: nn.EmbeddingBag(6, 3, mode=mode, padding_idx=padding), BAGS
        )
        for mode in ("sum", "mean", "max")
        for padding in (None, 2)
    },
    "bags, weighted": case(lambda: Weighted(None), BAGS, normal(M, 5, seed=5)),
    "bags, weighted, padding": case(lambda: Weighted(1), BAGS, normal(M, 5, seed=5)),
}  # fmt: skip


# ---- modules with parameters of their own


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, 7))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.exp()


class Token(nn.Module):
    """A class token and a table of places, as in a vision Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 7)), nn.Parameter(torch.randn(1, 9, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places[:, : x.shape[1] + 1]


class LowRank(nn.Module):
    """A frozen layer and what is learned beside it: parameters of its own, and a layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down = nn.Linear(7, 6).requires_grad_(False), nn.Linear(7, 2, bias=False)
        self.up = nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.down(x) @ self.up.T


class Mixture(nn.Module):
    """Two inputs, one of them with whole numbers, a table, and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(4, 7), nn.Parameter(torch.randn(7, 7) / 3)

    def forward(self, x: Tensor, kind: Tensor, power: int = 2) -> Tensor:
        return (x + self.table(kind)) @ self.mix @ self.mix.T * power


class Written(nn.Module):
    """vmap writes no records into a tensor that it did not make; a loop serves."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.unused = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape, dtype=x.dtype)
        out[:, :, :3] = x[:, :, :3] * self.scale
        return out


class Scalar(nn.Module):
    """A number, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("mask", torch.ones(4, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        return (self.mask @ x) * self.scale


class Reading(nn.Module):
    """Parameters of its own above layers of torch's, one of them fused, and one that is there by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.read, self.mix = (
            nn.Parameter(torch.ones(7)),
            nn.GRU(7, 3, batch_first=True),
            nn.Linear(3, 3),
        )
        self.again = self.mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.again(self.read(x * self.scale)[0]).tanh())


class Tied(nn.Module):
    """One weight in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.one, self.two = nn.Parameter(torch.ones(7)), nn.Linear(7, 7), nn.Linear(7, 7)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x * self.scale).tanh())


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[x]


class Language(nn.Module):
    """A table of its own, whose weight a layer of torch's has as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.phi, self.out = Table(), nn.Tanh(), nn.Linear(7, CLASSES)
        self.out.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.phi(self.layer(x)).mean(1))


class Apart(nn.Module):
    """A layer that is called below a module with parameters of its own, and stands beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Reading()
        self.mix = self.inner.mix

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Direction(Scale):
    """0 / 0 for a record of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.flatten(1).norm(dim=1).view(-1, 1, 1))


class Mapped(nn.Module):
    """Calls a module of its own with what is the same for all records."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mapping()
        self.register_buffer("basis", torch.linspace(-1, 1, 49).view(7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, basis=self.basis.sin(), power=3)


class Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 1, 7))

    def forward(self, x: Tensor, power: int = 1, basis: Tensor | None = None) -> Tensor:
        return (x * self.scale) @ basis * power


class MyLinear(nn.Linear):
    """A subclass may do anything in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


CASES |= {
    "own scale": case(Scale, LINE),
    "own token and places": case(Token, LINE),
    "own low-rank factors": case(LowRank, LINE),
    "own, two inputs": case(Mixture, LINE, whole(M, 4, high=4)),
    "own scalar": case(Scalar, LINE),
    "own, tied": case(Tied, LINE),
    "own, tied to a layer of torch's": (Language, [whole(M, 5)]),
    "own direction": case(Direction, LINE),
    "own, above others": case(Reading, LINE),
    "own, above one that stands beside it": case(Apart, LINE),
    "own, a constant beside": case(Mapped, LINE),
    "own subclass": case(lambda: MyLinear(7, 3), LINE),
    "own loop": case(Written, LINE),
    "weight norm": case(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(7, 3)), LINE),
    "weight norm without bias": case(
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 3, 2, bias=False)), LINE
    ),
}


# What a layer hands out is the same under either rule.
@pytest.mark.parametrize("rule", [pytest.param("dfa", marks=pytest.mark.slow), "bp"])
@pytest.mark.parametrize("name", list(CASES))
def test_sum_of_each_record_alone(name: str, rule: str) -> None:
    make, inputs = CASES[name]
    net = seeded(make)
    points = ["phi"] if rule == "dfa" else None
    aligned = align(net, rule=rule, example=inputs, show=None, points=points)
    names = list(aligned.trained_parameters())
    assert any(name.startswith("layer.") for name in names)
    stacks = alone(aligned, [x[:5] for x in inputs], whole(M)[:5], names)
    capture, before = captured(aligned), dict(net.named_parameters(remove_duplicate=False))
    assert list(capture.parameters) == names
    for records in (1, 5):
        capture.expected_records = lambda records=records: records
        cross_entropy(aligned(*[x[:records] for x in inputs]), whole(M)[:records]).backward()
        norm = float(stacks[:records].norm(dim=1).median())
        norms, total = clipped_sum(capture, norm)
        after = dict(net.named_parameters(remove_duplicate=False))
        assert all(after[key] is p for key, p in before.items())
        torch.testing.assert_close(norms, stacks[:records].norm(dim=1), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(total, clip(stacks[:records], norm).sum(0), rtol=0.0, atol=1e-9 * norm)


def test_a_loop_serves_where_vmap_does_not_and_a_record_is_called_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    own = Written.forward
    monkeypatch.setattr(Written, "forward", lambda self, x: (sizes.append(len(x)), own(self, x))[1])
    x = normal(40, 4, 7)
    (_, scale), (_, unused) = own_parameters(Written().double(), x, x, [])
    expected = x[:, :, :3].square().flatten(1)
    torch.testing.assert_close(scale.explicit(0, 40), expected)
    assert not unused.explicit(0, 40).any()
    assert len(sizes) == 40 + 2  # vmap was tried on both chunks; all parameters are served by the same calls
    assert set(sizes) == {1}
    torch.testing.assert_close(scale.explicit(30, 35), expected[30:35])
    torch.testing.assert_close(scale.norms(), expected.norm(dim=1))


@pytest.mark.parametrize("make", [Scale, Token, LowRank])
def test_no_record_notices_how_many_others_there_are(make: Callable[[], nn.Module]) -> None:
    """Bit by bit: the calls have one shape."""
    layer = seeded(make, torch.float32)
    x = normal(70, 4, 7).float()
    taught = layer(x).cos().detach()
    everyone = own_parameters(layer, x, taught, [])
    for records in (1, 2, 31, 33, 69):
        fewer = own_parameters(layer, x[:records], taught[:records], [])
        for (_, one), (_, two) in zip(everyone, fewer, strict=True):
            assert torch.equal(one.explicit(0, records), two.explicit(0, records))


@pytest.mark.parametrize(
    "name", ["bilinear", "bags, weighted", "own, two inputs", "own token and places", "own direction"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_that_is_not_finite_adds_exactly_nothing(name: str, value: float) -> None:
    make, inputs = CASES[name]
    aligned = align(seeded(make), rule="bp", example=inputs, show=None)
    y, rest = whole(M), torch.arange(M) != 2
    for place in [i for i, x in enumerate(inputs) if x.is_floating_point()]:
        broken = [x.clone() for x in inputs]
        broken[place][2] = value
        capture = captured(aligned)
        cross_entropy(aligned(*broken), y).backward()
        norms, total = clipped_sum(capture, 0.5)
        assert norms.isfinite().tolist() == rest.tolist()
        capture.expected_records = lambda: M - 1
        cross_entropy(aligned(*[x[rest] for x in inputs]), y[rest]).backward()
        torch.testing.assert_close(total, clipped_sum(capture, 0.5)[1], rtol=0.0, atol=1e-12)
        aligned.stop_capture()


@pytest.mark.parametrize("name", ["own, a constant beside", "own, above others", "transposed 2d"])
def test_contributions_under_autocast_are_summed_in_float32(name: str) -> None:
    make, inputs = CASES[name]
    given = [x.float() for x in inputs]
    aligned = align(seeded(make, torch.float32), rule="bp", example=given, show=None)
    capture, sums = captured(aligned), []
    for autocast in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            cross_entropy(aligned(*given), whole(M)).backward()
            sums.append(clipped_sum(capture, 0.5)[1])
    assert sums[0].dtype == torch.float32
    assert 0 < (sums[0] - sums[1]).norm() < 0.1 * sums[1].norm()


@pytest.mark.parametrize(
    "name", ["transposed 2d", "bilinear", "bags, weighted", "own, two inputs", "own loop"]
)
def test_an_empty_batch_adds_nothing(name: str) -> None:
    make, inputs = CASES[name]
    aligned = align(seeded(make), rule="bp", example=inputs, show=None)
    capture = captured(aligned, 0)
    cross_entropy(aligned(*[x[:0] for x in inputs]), whole(0)).backward()
    norms, total = clipped_sum(capture, 1.0)
    assert norms.shape == (0,)
    assert not total.any()


# ---- what is refused


class Vision(nn.Module):
    """The token is the root's own, whose forward calls everything."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.enter = nn.Parameter(torch.randn(1, 1, 7)), nn.Linear(7, 7)
        self.phi, self.out = nn.Tanh(), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.out(self.phi(self.enter(h))[:, 0] + self.token[0])


class Unused(nn.Module):
    """A list of parameters that the root's forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.scales, self.out = nn.ParameterList([torch.ones(7)]), nn.Linear(28, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x * self.scales[0]).flatten(1))


class Masked(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Slow(Written):
    """Refused by the loop, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.rand_like(x)


class Two(Scale):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x * self.scale, x


class Calling(nn.Module):
    """Calls a module with parameters of its own in some way."""

    def __init__(self, inner: nn.Module, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.how, self.out = inner, how, nn.Linear(28, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(self.inner, x).flatten(1))


class Sharing(nn.Module):
    """A layer below a module with parameters of its own is called outside of it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = Reading(), nn.Linear(12, CLASSES)
        self.mix = self.inner.mix

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self.inner(x)).flatten(1))


class Squeezing(Scale):
    """Takes the records' axis away where there is one record."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.squeeze())


class Twisted(Scale):
    """Takes records where they are not first."""

    def forward(self, x: Tensor, times_first: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + times_first.transpose(0, 1)


class Spoiling(nn.Module):
    """Changes a second input after the layer has read it, which autograd does not notice in a first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Bilinear(7, 7, 3), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        other = x.cos()
        h = self.layer(x, other)
        other.mul_(2)
        return self.out(h.flatten(1))


class Named(Scale):
    def forward(self, x: Tensor, *, power: int = 1) -> Tensor:  # type: ignore[override]
        return super().forward(x) * power


class Pair(Scale):
    def forward(self, both: list[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(both[0] + both[1])


class Beside(Scale):
    def forward(self, x: Tensor, both: list[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(x + both[0])


REFUSED: dict[str, tuple[nn.Module, str, str]] = {
    "cut inside": (Vision(), "dfa", "token of the module (Vision) cannot be trained privately, as the same forward"),
    "a list": (Unused(), "bp", "parameter 0 of scales (ParameterList) cannot be trained privately, as another"),
    "masks": (Calling(Masked(), lambda inner, x: inner(x)), "bp", "draws at random (bernoulli"),
    "masks in a loop": (Calling(Slow(), lambda inner, x: inner(x)), "bp", "draws at random (rand_like)"),
    "two tensors": (Calling(Two(), lambda inner, x: inner(x)[0]), "bp", "inner returns a tuple"),
    "by name alone": (Calling(Named(), lambda inner, x: inner(x, power=2)), "bp", "is given power by name alone"),
    "a list of tensors": (Calling(Pair(), lambda inner, x: inner([x, x])), "bp", "called without a tensor of records"),
    "a list beside": (Calling(Beside(), lambda inner, x: inner(x, [x])), "bp", "inner is given a list, which may hold"),
    "used outside": (Calling(Scale(), lambda inner, x: inner(x) + inner.scale), "bp", "used outside its own layer"),
    "called outside": (Sharing(), "bp", "parameter inner.mix.weight is used outside its own layer"),
    "one record": (Calling(Squeezing(), lambda inner, x: inner(x)), "bp", "Squeezing, which has parameters of its own"),
    "records elsewhere": (
        Calling(Twisted(), lambda inner, x: inner(x, x.transpose(0, 1))), "bp", "sees the records in dimension 1",
    ),
    "changed in place": (Spoiling(), "bp", "the input of layer was changed in place"),
    "another record": (Calling(Scale(), lambda inner, x: inner(x.flip(0))), "bp", "mixes records"),
    "counts of the batch": (
        Calling(
            nn.EmbeddingBag(4, 4, scale_grad_by_freq=True),
            lambda inner, x: torch.stack([inner((x[:, :, t] > 0).long()) for t in range(7)], 1),
        ),
        "bp", "takes neither max_norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_private_is_refused_by_name(name: str) -> None:
    net, rule, words = REFUSED[name]
    points = ["phi"] if rule == "dfa" else None
    aligned = align(net.double(), rule=rule, example=LINE, points=points, show=None)
    with pytest.raises(UsageError) as error:
        aligned.start_capture()
    message = str(error.value)
    assert words in message
    assert "\n" not in message


def cut_at_its_output() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 7), nn.Tanh(), Token(), nn.Flatten(), nn.Linear(35, CLASSES))


@pytest.mark.parametrize(
    ("make", "points", "layers"),
    [
        (Vision, None, [""]),  # a root that nothing cuts is one layer
        (cut_at_its_output, ["1", "2"], ["0", "2", "4"]),
    ],
)
def test_a_module_of_ones_own_is_one_layer(
    make: Callable[[], nn.Module], points: list[str] | None, layers: list[str]
) -> None:
    rule = "dfa" if points else "bp"
    aligned = align(seeded(make), rule=rule, example=LINE, points=points, show=None)
    names, y = list(aligned.trained_parameters()), whole(M)
    stacks = alone(aligned, [LINE], y, names)
    capture = captured(aligned)
    assert list(capture.layers) == layers
    cross_entropy(aligned(LINE), y).backward()
    torch.testing.assert_close(clipped_sum(capture, 0.1)[1], clip(stacks, 0.1).sum(0), rtol=0.0, atol=1e-10)
