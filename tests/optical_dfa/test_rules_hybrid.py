"""Rules that mix direct feedback with backpropagation, against their equations written out, in float64."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from small_networks import assert_all_same, labels, mlp, normal, seeded
from test_capture_sums import alone, captured, clip, clipped_sum
from test_feedback_equations import error, feedback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign
from optical_dfa.feedback.cuts import OUTPUT
from optical_dfa.feedback.rules.cdfa import ConvolutionalFeedbackAlignment
from optical_dfa.measure.costs import cost

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
    assert_all_same(found, [p.grad for p in twin.parameters() if p.grad is not None])


def test_cdfa_lists_what_it_backpropagates_into() -> None:
    aligned = align(seeded(cnn), rule="cdfa", example=IMAGES, show=None)
    assert {cut.root: len(cut.parameters) for cut in aligned.cuts} == {OUTPUT: 2, "8": 8, "11": 2}


def test_cdfa_takes_residual_convolutions_whole() -> None:
    aligned = align(seeded(resnet), rule="cdfa", example=IMAGES, show=None)
    assert point_names(aligned) == ["2.outer"]
    assert len(gradients(aligned)) == 8


def test_cdfa_without_convolutions_is_dfa() -> None:
    x, found = normal(M, 5), []
    for rule in ("cdfa", "dfa"):
        net = mlp()
        cross_entropy(align(net, rule=rule, show=None)(x), CLASSES_OF).backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert_all_same(*found)


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
    assert_all_same(exact, gradients(seeded(linear_cnn)))


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


# ---- modules


def maps(aligned: AlignedModule) -> dict[str, Tensor]:
    """A_l as drawn, by point."""
    assert aligned.state is not None
    return {name.replace("/", "."): b.double() for name, b in aligned.state.named_buffers() if name != "seed"}


def transposed(error: Tensor, kernel: Tensor, size: tuple[int, int], dilation: int, groups: int) -> Tensor:
    """A_l(E) place by place, from its definition: the kernel's middle lies over `step` times the place of E."""
    records, channels, height, width = error.shape
    step = (size[0] // height, size[1] // width)
    out = torch.zeros(records, kernel.shape[1] * groups, *size, dtype=error.dtype)
    per, middle = channels // groups, kernel.shape[-1] // 2
    for y, x, dy, dx in itertools.product(
        range(height), range(width), range(kernel.shape[2]), range(kernel.shape[3])
    ):
        at = y * step[0] + (dy - middle) * dilation, x * step[1] + (dx - middle) * dilation
        if not (0 <= at[0] < size[0] and 0 <= at[1] < size[1]):
            continue
        for g in range(groups):
            rows = slice(g * kernel.shape[1], (g + 1) * kernel.shape[1])
            part = error[:, g * per : (g + 1) * per, y, x] @ kernel[g * per : (g + 1) * per, :, dy, dx]
            out[:, rows, at[0], at[1]] += part
    return out


MAPS: dict[str, tuple[str, dict[str, object], int, int]] = {
    "modular": ("modular", {}, 0, 0),
    "dilated": ("dilated", {}, 2, 1),
    "dilated by three": ("dilated", {"dilation": 3, "size": 5}, 3, 1),
    "grouped": ("grouped", {}, 1, 2),
}


@pytest.mark.parametrize("between", ["dfa", "bp"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", list(MAPS))
def test_modules_are_taught_by_the_equation(case: str, bias: bool, between: str) -> None:
    rule, options, dilation, groups = MAPS[case]
    aligned = align(
        seeded(lambda: cnn(bias)),
        rule=rule,
        rule_options={**options, "between": between},
        example=IMAGES,
        show=None,
    )
    found, drawn = gradients(aligned), maps(aligned)
    assert list(drawn) == ["1", "5"]
    assert point_names(aligned) == (["3", "8", "11"] if between == "dfa" else [])

    twin = seeded(lambda: cnn(bias))
    cuts = [0, 2, 4, 6, 9, 12]
    inputs, outputs = [IMAGES], []
    for first, end in itertools.pairwise(cuts):
        outputs.append(twin[first:end](inputs[-1]))
        inputs.append(outputs[-1].detach().requires_grad_())
    z = twin[12](inputs[-1])
    e = error(z, CLASSES_OF) / M
    z.backward(e)
    for module in reversed(range(3)):  # points 1 and 3, 5 and 8, 11 alone
        top = (1, 3, 4)[module]
        if between == "dfa":
            signal = (e @ feedback(aligned, ("3", "8", "11")[module]).T).view(outputs[top].shape)
        else:
            signal = inputs[top + 1].grad
        outputs[top].backward(signal)
        if module < 2:
            below, kernel = outputs[top - 1], drawn[("1", "5")[module]]
            if dilation:
                inner = transposed(signal, kernel, tuple(below.shape[2:]), dilation, groups)
            else:
                inner = (signal.flatten(1) @ kernel).view(below.shape)
            below.backward(inner)
    assert_all_same(found, [p.grad for p in twin.parameters() if p.grad is not None])


@pytest.mark.parametrize("size", [7, 9, 15])
def test_maps_fit_resolutions_that_do_not_divide(size: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.LazyLinear(4),
    )  # fmt: skip
    x = torch.randn(3, 2, size, size)
    net(x)
    aligned = align(net, rule="dilated", example=x, show=None)
    cross_entropy(aligned(x), labels(3)).backward()
    grad = net[0].weight.grad
    assert grad is not None
    assert grad.isfinite().all()
    assert grad.any()


def test_a_signal_is_as_long_as_the_error_it_comes_from() -> None:
    """Entries are scaled by the number of addends; the border loses a little."""
    big = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(16 * 256, 4),
    )  # fmt: skip
    for rule in ("modular", "dilated", "grouped", "hybrid"):
        aligned = align(big, rule=rule, example=torch.empty(1, 2, 16, 16), show=None)
        sent = torch.randn(20, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        (signal,) = aligned.state.within(0, sent)
        assert 0.7 < float(signal.norm() / sent.norm()) < 1.1
        unalign(aligned)


def test_exact_maps_between_modules_of_a_linear_network_give_backpropagation() -> None:
    def linear() -> nn.Module:
        return nn.Sequential(
            nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 7), nn.Identity(),
            nn.Linear(7, 6), nn.Identity(), nn.Linear(6, 4),
        )  # fmt: skip

    x, net = normal(M, 5), seeded(linear)
    aligned = align(
        net, rule="modular", rule_options={"between": "bp"}, points=["1", "3", "5", "7"], show=None
    )
    for inner, above in (("1", net[2]), ("5", net[6])):
        aligned.state.register_buffer(inner, above.weight.detach().clone(), persistent=False)
    cross_entropy(aligned(x), CLASSES_OF).backward()
    plain = seeded(linear)
    cross_entropy(plain(x), CLASSES_OF).backward()
    assert_all_same([p.grad for p in net.parameters()], [p.grad for p in plain.parameters()])


def test_modules_of_one_point_with_bp_between_are_backpropagation() -> None:
    aligned = align(seeded(cnn), rule="hybrid", rule_options={"modules": 1}, example=IMAGES, show=None)
    assert_all_same(gradients(aligned), gradients(seeded(cnn)))


def test_residual_blocks_can_be_modules() -> None:
    aligned = align(
        seeded(resnet), rule="hybrid", rule_options={"modules": ["1", "2"]}, example=IMAGES, show=None
    )
    assert [str(cut).partition(" <-")[0] for cut in aligned.cuts] == [
        "output [4]",
        "1 [4, 8, 8] (taught from 2.inner)",
        "2.inner [4, 8, 8] (taught from 2.outer)",
        "2.outer [4, 8, 8]",
    ]
    twin = seeded(resnet)
    found, (kernel,) = gradients(aligned), maps(aligned).values()
    first = twin[:2](IMAGES)
    below = first.detach().requires_grad_()
    inner = twin[2].inner(twin[2].enter(below))
    outer = twin[2].outer(below + twin[2].leave(inner.detach()))
    top = outer.detach().requires_grad_()
    z = twin[3:](top)
    z.backward(error(z, CLASSES_OF) / M)
    outer.backward(top.grad)
    inner.backward(transposed(top.grad, kernel, (8, 8), 1, 1))
    first.backward(below.grad)  # through the skip and through the block's lowest convolution
    assert_all_same(found, [p.grad for p in twin.parameters() if p.grad is not None])


def test_errors_within_modules_cost_what_the_maps_have() -> None:
    def error_macs(rule: str, **options: object) -> int:
        return cost(align(seeded(cnn), rule=rule, rule_options=options, example=IMAGES, show=None)).error

    projected = 4 * (6 * 64 + 4 * 4 + 7)
    assert error_macs("modular") == projected + 256 * 384 + 64 * 16
    assert error_macs("dilated") == projected + 64 * 9 * 6 * 4 + 4 * 9 * 4 * 4
    assert error_macs("grouped") == projected + (64 * 9 * 6 * 4 + 4 * 9 * 4 * 4) // 2
    between = (
        4 * 16 * 9 * 6 + 16 * 7 + 7 * 4
    )  # the lowest matrix of each module above the first, and the output's
    assert error_macs("hybrid") == between + 64 * 9 * 6 * 4 + 4 * 9 * 4 * 4


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("modular", {"modules": 0}, "modules=0"),
        ("modular", {"modules": []}, r"modules=\[\]"),
        ("modular", {"between": "fa"}, "between='fa'"),
        ("modular", {"modules": ["9"]}, "'9', in which there is no feedback point; there are 1, 3"),
        ("dilated", {"size": 4}, "size=4"),
        ("dilated", {"dilation": 0}, "dilation=0"),
        ("grouped", {"groups": 3}, "groups=3 must divide the channels of 1 and 3, which are 4 and 6"),
        ("hybrid", {"between": "dfa"}, "no option 'between'"),
    ],
)
def test_options_out_of_range(rule: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        align(seeded(cnn), rule=rule, rule_options=options, example=IMAGES, show=None)
    assert "\n" not in str(caught.value)


def test_points_called_at_several_times_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.out, self.phi = nn.Linear(5, 5), nn.Linear(5, 4), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.phi(self.enter(self.phi(self.enter(x)))))

    with pytest.raises(UsageError, match="called once"):
        align(Twice(), rule="modular", example=torch.empty(1, 5), show=None)


# ---- every rule of this file

RULES: dict[str, tuple[str, dict[str, object]]] = {
    "cdfa": ("cdfa", {}),
    "modular": ("modular", {}),
    "modular, bp between": ("modular", {"between": "bp", "modules": 3}),
    "dilated": ("dilated", {}),
    "grouped": ("grouped", {}),
    "hybrid": ("hybrid", {"dilation": 2, "groups": 2}),
}
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
        assert_all_same(gradients(other), expected)
    other_seed = align(
        seeded(cnn, torch.float32),
        rule=rule,
        rule_options=options,
        example=IMAGES.float(),
        seed=4,
        show=None,
    )
    if aligned.backend is None:  # the seed of what the rule draws is part of the state
        other_seed.load_state_dict(aligned.state_dict())
        assert_all_same(gradients(other_seed), expected)
    else:
        with pytest.raises(UsageError, match="this state was trained with"):
            other_seed.load_state_dict(aligned.state_dict())
    with torch.no_grad():
        assert torch.equal(aligned(IMAGES.float()), unalign(aligned)(IMAGES.float()))
    plain = gradients(aligned.module)
    assert_all_same(plain, gradients(seeded(cnn, torch.float32)))


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
    assert_all_same([p.grad for p in aligned.parameters() if p.grad is not None], expected, atol=1e-5)


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
    assert_all_same([M * g for g in found[0]], found[1])
