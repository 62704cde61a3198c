"""Rules that mix direct feedback with backpropagation, against their equations written out, in float64."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from test_capture_sums import alone, captured, clip, clipped_sum
from test_feedback_equations import error, feedback, labels, normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa.feedback import AlignedModule, align, unalign
from optical_dfa.feedback.cdfa import ConvolutionalFeedbackAlignment

M = 6


class Block(nn.Module):
    """A residual block whose branch holds an activation of its own."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.inner = nn.Tanh()
        self.leave = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.outer = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x + self.leave(self.inner(self.enter(x))))


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(dtype)


def cnn(bias: bool = True) -> nn.Module:
    """Two modules of two convolutions each, then a fully connected hidden layer."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.Tanh(),
        nn.Conv2d(4, 6, 3, padding=1, bias=bias), nn.Tanh(),
        nn.Conv2d(6, 4, 3, padding=1, stride=2, bias=bias), nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.MaxPool2d(2), nn.Tanh(),
        nn.Flatten(), nn.Linear(16, 7, bias=bias), nn.Tanh(), nn.Linear(7, 4, bias=bias),
    )  # fmt: skip


def resnet(bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.Tanh(), Block(4, bias), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(16, 4, bias=bias),
    )  # fmt: skip


IMAGES, CLASSES_OF = normal(M, 2, 8, 8, seed=1), labels(M)


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    cross_entropy(model(IMAGES.to(next(model.parameters()).dtype)), CLASSES_OF).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(found: list[Tensor], expected: list[Tensor], atol: float = 1e-12) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=atol)


def point_names(aligned: AlignedModule) -> list[str]:
    return [point.name for point in aligned.points]


# ---- cdfa


@pytest.mark.parametrize("bias", [True, False])
def test_cdfa_is_its_equation(bias: bool) -> None:
    net = seeded(lambda: cnn(bias))
    aligned = align(net, rule="cdfa", example=IMAGES, show=None)
    assert point_names(aligned) == ["8", "11"]
    found = gradients(aligned)
    twin = seeded(lambda: cnn(bias))
    top = twin[:9](IMAGES)  # one projection here, plain autograd below
    h = twin[9:12](top.detach())
    z = twin[12](h.detach())
    e = error(z, CLASSES_OF) / M
    torch.autograd.backward(
        [z, h, top], [e, e @ feedback(aligned, "11").T, (e @ feedback(aligned, "8").T).view(top.shape)]
    )
    assert_same(found, [p.grad for p in twin.parameters() if p.grad is not None])


def test_cdfa_lists_what_it_backpropagates_into() -> None:
    aligned = align(seeded(cnn), rule="cdfa", example=IMAGES, show=None)
    assert {cut.root: len(cut.parameters) for cut in aligned.cuts} == {"output": 2, "8": 8, "11": 2}


def test_cdfa_takes_residual_convolutions_whole() -> None:
    aligned = align(seeded(resnet), rule="cdfa", example=IMAGES, show=None)
    assert point_names(aligned) == ["2.outer"]
    assert len(gradients(aligned)) == 8


def test_cdfa_without_convolutions_is_dfa() -> None:
    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))

    x, found = normal(M, 5), []
    for rule in ("cdfa", "dfa"):
        net = seeded(mlp)
        cross_entropy(align(net, rule=rule, show=None)(x), CLASSES_OF).backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert_same(*found)


def test_cdfa_with_the_exact_product_is_backpropagation() -> None:
    def linear_cnn() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.Identity(), nn.Conv2d(3, 2, 3, stride=4), nn.Flatten(),
            nn.Linear(8, 6), nn.Identity(), nn.Linear(6, 4),
        )  # fmt: skip

    net = seeded(linear_cnn)

    class Exact(ConvolutionalFeedbackAlignment):
        def feedback(self, error, points, backend):
            hidden = error @ net[6].weight.detach()
            return [hidden @ net[4].weight.detach(), hidden]

    exact = gradients(align(net, rule=Exact(), points=["2", "5"], example=IMAGES, show=None))
    assert_same(exact, gradients(seeded(linear_cnn)))


def test_cdfa_names_a_missing_activation() -> None:
    bare = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 6), nn.Tanh(), nn.Linear(6, 4))
    with pytest.raises(UsageError, match=r"right above the last convolution \(0\)"):
        align(bare, rule="cdfa", example=IMAGES.float(), show=None)


def test_cdfa_refuses_backpropagation_between_fully_connected_layers() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(108, 6),
        nn.Linear(6, 6),
        nn.Tanh(),
        nn.Linear(6, 4),
    )
    with pytest.raises(UsageError, match=r"3\.weight and 4\.weight are in one segment below 5"):
        align(net, rule="cdfa", example=IMAGES.float(), show=None)


# ---- every rule of this file

RULES: dict[str, tuple[str, dict[str, object]]] = {"cdfa": ("cdfa", {})}
NETWORKS = {"cnn": cnn, "cnn without bias": lambda: cnn(False), "residual": resnet}


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("case", list(RULES))
def test_it_is_not_backpropagation(case: str, network: str) -> None:
    rule, options = RULES[case]
    aligned = align(seeded(NETWORKS[network]), rule=rule, rule_options=options, example=IMAGES, show=None)
    found, plain = gradients(aligned), gradients(seeded(NETWORKS[network]))
    assert abs(torch.cosine_similarity(found[0].flatten(), plain[0].flatten(), dim=0)) < 0.9


@pytest.mark.parametrize("case", list(RULES))
def test_states_copies_and_pickles_give_the_same_gradient(case: str) -> None:
    rule, options = RULES[case]

    def make() -> AlignedModule:
        return align(
            seeded(cnn, torch.float32),
            rule=rule,
            rule_options=options,
            example=IMAGES.float(),
            seed=3,
            show=None,
        )

    aligned = make()
    expected = gradients(aligned)
    file = io.BytesIO()
    torch.save(aligned.state_dict(), file)
    file.seek(0)
    again = make()
    again.load_state_dict(torch.load(file, weights_only=True))
    for other in (again, copy.deepcopy(aligned), pickle.loads(pickle.dumps(aligned))):
        assert_same(gradients(other), expected)
    other_seed = align(
        seeded(cnn, torch.float32), rule=rule, rule_options=options, example=IMAGES.float(), seed=4, show=None
    )
    with pytest.raises(UsageError, match="this state was trained with"):
        other_seed.load_state_dict(aligned.state_dict())
    with torch.no_grad():
        assert torch.equal(aligned(IMAGES.float()), unalign(aligned)(IMAGES.float()))
    plain = gradients(aligned.module)
    assert_same(plain, gradients(seeded(cnn, torch.float32)))


@pytest.mark.parametrize("case", list(RULES))
def test_it_compiles_into_one_graph(case: str) -> None:
    rule, options = RULES[case]
    aligned = align(
        seeded(cnn, torch.float32), rule=rule, rule_options=options, example=IMAGES.float(), show=None
    )
    expected = gradients(aligned)
    aligned.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        cross_entropy(compiled(IMAGES.float()), CLASSES_OF).backward()
    assert_same([p.grad for p in aligned.parameters() if p.grad is not None], expected, atol=1e-5)


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("case", list(RULES))
def test_the_private_sum_is_that_of_each_record_alone(case: str, network: str) -> None:
    rule, options = RULES[case]
    aligned = align(seeded(NETWORKS[network]), rule=rule, rule_options=options, example=IMAGES, show=None)
    names = list(aligned.trained_parameters())
    stacks = alone(aligned, [IMAGES], CLASSES_OF, names)
    norm = float(stacks.norm(dim=1).median())
    capture = captured(aligned)
    cross_entropy(aligned(IMAGES), CLASSES_OF).backward()
    norms, total = clipped_sum(capture, norm)
    torch.testing.assert_close(norms, stacks.norm(dim=1), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(total, clip(stacks, norm).sum(0), rtol=0.0, atol=1e-9 * norm)


@pytest.mark.parametrize("case", list(RULES))
def test_output_and_hidden_gradients_scale_alike(case: str) -> None:
    rule, options = RULES[case]
    found = []
    for reduction in ("mean", "sum"):
        net = seeded(cnn)
        aligned = align(
            net, rule=rule, rule_options=options, example=IMAGES, loss_reduction=reduction, show=None
        )
        cross_entropy(aligned(IMAGES), CLASSES_OF, reduction=reduction).backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert_same([M * g for g in found[0]], found[1])
