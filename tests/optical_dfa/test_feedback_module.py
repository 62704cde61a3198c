"""An aligned module is a module: graphs, copies, states, traps."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from small_networks import mlp as double_mlp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign
from optical_dfa.feedback import make_rule
from optical_dfa.feedback.cuts import OUTPUT

X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (7,), generator=torch.Generator().manual_seed(1))


mlp = partial(double_mlp, dtype=torch.float32)


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    cross_entropy(model(X), Y).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def assert_one_line(error: pytest.ExceptionInfo[UsageError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---- graphs


def test_several_forward_passes_before_one_backward() -> None:
    aligned = align(mlp(), loss_reduction="sum", show=None)
    outputs = [aligned(part) for part in X.split([3, 4])]
    cross_entropy(torch.cat(outputs), Y, reduction="sum").backward()
    found = [p.grad.clone() for p in aligned.parameters() if p.grad is not None]
    aligned.zero_grad()
    cross_entropy(aligned(X), Y, reduction="sum").backward()
    assert_same(found, [p.grad for p in aligned.parameters() if p.grad is not None])


def test_autograd_grad_leaves_no_grad_behind() -> None:
    aligned = align(mlp(), show=None)
    found = torch.autograd.grad(cross_entropy(aligned(X), Y), list(aligned.parameters()))
    assert all(p.grad is None for p in aligned.parameters())
    assert_same(list(found), gradients(aligned))


def test_retained_graph_accumulates() -> None:
    aligned = align(mlp(), show=None)
    once = gradients(aligned)
    aligned.zero_grad()
    loss = cross_entropy(aligned(X), Y)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same([p.grad for p in aligned.parameters() if p.grad is not None], [2 * g for g in once])


def test_compiles_into_one_graph() -> None:
    aligned = align(mlp(), show=None)
    expected = gradients(aligned)
    aligned.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        cross_entropy(compiled(X), Y).backward()
    assert_same([p.grad for p in aligned.parameters() if p.grad is not None], expected)


def test_no_gradient_reaches_the_input() -> None:
    """The first segment ends at the first point; what comes from above it is the device's."""
    aligned = align(mlp(), rule="shallow", show=None)
    x = X.clone().requires_grad_()
    cross_entropy(aligned(x), Y).backward()
    assert x.grad is None or not x.grad.any()


@pytest.mark.parametrize("rule", ["dfa", "bp", "shallow"])
def test_logits_may_be_changed_in_place(rule: str) -> None:
    aligned = align(mlp(), rule=rule, show=None)
    aligned.zero_grad()
    cross_entropy(aligned(X) * 2, Y).backward()
    expected = [p.grad.clone() for p in aligned.parameters() if p.grad is not None]
    aligned.zero_grad()
    logits = aligned(X)
    logits *= 2
    cross_entropy(logits, Y).backward()
    assert_same([p.grad for p in aligned.parameters() if p.grad is not None], expected)


def test_activations_may_work_in_place() -> None:
    expected = gradients(align(mlp(phi=nn.ReLU), show=None))
    assert_same(gradients(align(mlp(phi=lambda: nn.ReLU(inplace=True)), show=None)), expected)


def test_parametrised_activations_learn_from_the_same_signal() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.PReLU(), nn.Linear(6, 4)).double()
    aligned = align(net, show=None)
    x = X.double()
    cross_entropy(aligned(x), Y).backward()
    with torch.no_grad():
        a = net[0](x)
        e = (torch.softmax(net(x), 1) - nn.functional.one_hot(Y, 4)) / len(x)
        assert aligned.backend is not None
        signal = e @ aligned.backend.matrix().double().T / math.sqrt(3 * 6)  # gain 1/sqrt(3)
        torch.testing.assert_close(net[1].weight.grad, (signal * a.clamp_max(0)).sum().view(1))
        slope = torch.where(a > 0, torch.ones_like(a), net[1].weight)
        torch.testing.assert_close(net[0].weight.grad, (signal * slope).T @ x)


def test_evaluation_is_the_plain_module() -> None:
    net = mlp()
    plain = copy.deepcopy(net)
    aligned = align(net, show=None)
    aligned.eval()
    assert not net.training
    with torch.no_grad():
        assert torch.equal(aligned(X), plain(X))
        assert torch.equal(net(X), plain(X))  # even the module inside
    torch.testing.assert_close(aligned(X), plain(X))


def test_the_module_inside_is_refused_while_gradients_are_on() -> None:
    net = mlp()
    align(net, show=None)
    with pytest.raises(UsageError) as error:
        net(X)
    assert_one_line(error, "called directly", "unalign()")


def test_unalign_gives_the_plain_module_back() -> None:
    net = mlp()
    expected = gradients(copy.deepcopy(net))
    aligned = align(net, show=None)
    assert unalign(aligned) is net
    assert not any(part._forward_hooks for part in net.modules())
    assert_same(gradients(net), expected)
    with pytest.raises(UsageError, match="unaligned"):
        aligned(X)  # it would be backpropagation under another name
    assert_same(gradients(align(net, show=None)), gradients(align(mlp(), show=None)))


# ---- copies and states


@pytest.mark.parametrize("backend", ["digital", "simulated-opu"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_learn_on_their_own(how: str, backend: str) -> None:
    options = {"dark_pixels": 64} if backend == "simulated-opu" else {}
    aligned = align(mlp(), backend=backend, backend_options=options, show=None)
    if how == "deepcopy":
        twin = copy.deepcopy(aligned)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(aligned))
    else:
        file = io.BytesIO()
        torch.save(aligned, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert twin.describe() == aligned.describe()
    found = gradients(twin)
    assert all(p.grad is None for p in aligned.parameters())
    if backend == "digital":
        assert_same(found, gradients(aligned))
    else:  # fresh noise; only the output layer sees none of it
        assert_same(found[-2:], gradients(aligned)[-2:])
    unalign(twin)
    gradients(aligned)  # the original's cuts are still there


@pytest.mark.parametrize("rule", ["dfa", "fa", "modular"])
def test_hooks_put_on_after_unpickling_take_no_place_of_ours(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = align(mlp(), rule=rule, example=X, show=None)
    expected, saved = gradients(aligned), pickle.dumps(aligned)
    tried = 0
    for place, part in enumerate(aligned.module.children()):
        for before in (False, True):
            for number in part._forward_pre_hooks if before else part._forward_hooks:
                monkeypatch.setattr(RemovableHandle, "next_id", number)  # where another process may be
                twin = pickle.loads(saved)
                theirs = twin.module[place]
                put = theirs.register_forward_pre_hook if before else theirs.register_forward_hook
                put(lambda *_: None).remove()
                assert_same(gradients(twin), expected)
                tried += 1
    assert tried >= 2


def test_state_dict_round_trip() -> None:
    aligned = align(mlp(), seed=3, show=None)
    state = aligned.state_dict()
    other = align(mlp(), seed=3, show=None)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(state)
    assert_same(gradients(other), gradients(aligned))


def test_a_state_of_another_feedback_is_refused() -> None:
    state = align(mlp(), seed=3, show=None).state_dict()
    cases = {
        "fingerprint": align(mlp(), seed=4, show=None),
        "rule": align(mlp(), rule="bp", show=None),
        "points": align(mlp(), points=["1"], seed=3, show=None),
    }
    for word, aligned in cases.items():
        with pytest.raises(UsageError) as error:
            aligned.load_state_dict(state)
        assert_one_line(error, word, "align the module with the same")


def test_state_survives_safe_loading() -> None:
    aligned = align(mlp(), show=None)
    file = io.BytesIO()
    torch.save(aligned.state_dict(), file)
    file.seek(0)
    aligned.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.Adam(p, lr=0.01),
])  # fmt: skip
def test_optimizers_and_schedulers_are_the_users(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Stepping on aligned gradients is stepping on those gradients."""
    aligned, twin = align(mlp(), show=None), mlp()
    first, second = make(aligned.parameters()), make(twin.parameters())
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in (first, second)]
    for _ in range(5):
        for p, g in zip(twin.parameters(), gradients(aligned), strict=True):
            p.grad = g
        for stepper in (first, second, *schedules):
            stepper.step()
    assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"] < 0.1
    assert_same([p.detach() for p in aligned.parameters()], [p.detach() for p in twin.parameters()])


# ---- cuts and traps


def test_cuts_are_returned_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    aligned = align(mlp())
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(cut) for cut in aligned.cuts]
    assert [(cut.root, cut.parameters) for cut in aligned.cuts] == [
        (OUTPUT, ("4.weight", "4.bias")),
        ("1", ("0.weight", "0.bias")),
        ("3", ("2.weight", "2.bias")),
    ]


def test_an_activation_at_the_output_is_no_point() -> None:
    net = nn.Sequential(*mlp(), nn.Sigmoid())
    aligned = align(net, show=None)
    assert [point.name for point in aligned.points] == ["1", "3"]
    assert aligned.cuts[0].parameters == ("4.weight", "4.bias")


def test_a_frozen_output_layer_is_not_backpropagated_through() -> None:
    net = mlp()
    net[4].requires_grad_(False)
    aligned = align(net, show=None)
    assert [point.name for point in aligned.points] == ["1", "3"]
    assert aligned.cuts[0].parameters == ()
    expected = gradients(align(mlp(), show=None))[:4]
    assert_same(gradients(aligned), expected)


class Functional(nn.Module):
    """Where the nonlinearity stands in the code of `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.tanh(self.two(torch.relu(self.one(x)))))


def test_functional_activations_have_no_default_points() -> None:
    with pytest.raises(UsageError) as error:
        align(Functional(), show=None)
    assert_one_line(error, "one segment", "nn.Tanh, not torch.tanh", "points=")


@pytest.mark.parametrize(
    "phi", [torch.relu, torch.tanh, torch.sigmoid, nn.functional.gelu, nn.functional.softplus, torch.sin]
)
def test_a_point_before_its_nonlinearity_is_refused(phi: Callable[[Tensor], Tensor]) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(phi(self.one(x)).flatten(1))

    with pytest.raises(UsageError) as error:
        align(Late(), points=["one"], show=None)
    assert_one_line(error, "one is cut before its nonlinearity")


class Branch(nn.Module):
    """Activation INSIDE the residual branch: the skip goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.first, self.second = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave(self.second(h + self.first(self.inner(h))))


@pytest.mark.parametrize("points", [None, ["first"], ["first", "second"]])
def test_a_point_inside_a_residual_branch_is_refused(points: list[str] | None) -> None:
    with pytest.raises(UsageError) as error:
        align(Branch(), points=points, example=X, show=None)
    assert_one_line(error, "skip connection goes around", "after the addition")


def test_points_by_name_may_leave_a_segment_of_several_layers() -> None:
    """Then the gradient within the segment is backpropagated, because the user says so."""
    net = double_mlp()
    aligned = align(net, points=["3"], show=None)
    x = X.double()
    cross_entropy(aligned(x), Y).backward()
    found = [p.grad.clone() for p in net[:4].parameters()]
    twin = double_mlp()
    h = twin[:4](x)
    e = (torch.softmax(twin[4](h.detach()), 1) - nn.functional.one_hot(Y, 4)).detach() / len(x)
    assert aligned.backend is not None
    h.backward(e @ aligned.backend.matrix().double().T / math.sqrt(8))
    assert_same(found, [p.grad for p in twin[:4].parameters() if p.grad is not None])


class Twice(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), x


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: align(mlp(), rule="hebb", show=None), ("'hebb'", "it must be one of: bdfa, bp, ")),
        (lambda: align(mlp(), rule_options={"gain": 1}, show=None), ("'gain'", "scale")),
        (lambda: align(mlp(), rule_options={"scale": 0}, show=None), ("scale=0", "positive")),
        (lambda: align(mlp(), rule_options={"scale": math.nan}, show=None), ("scale of rule dfa is nan", "finite")),
        (lambda: align(mlp(), backend="laser", show=None), ("laser", "digital")),
        (lambda: align(mlp(), points=["7"], show=None), ("'7'", "0, 1, 2")),
        (lambda: align(mlp(), points=[""], show=None), ("''",)),
        (lambda: align(mlp(), points=["1", "1"], show=None), ("'1'", "twice")),
        (lambda: align(mlp(), loss_reduction="none", show=None), ("'none'", "'mean' or 'sum'")),
        (lambda: align(align(mlp(), show=None), show=None), ("already aligned",)),
        (lambda: align(nn.Sequential(nn.Conv1d(1, 1, 1)), show=None), ("example=",)),
        (lambda: align(Twice(), show=None), ("tuple", "one tensor")),
        (lambda: align(mlp(), backend=narrow(), show=None), ("4 -> 3", "4 -> 14")),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(call: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert_one_line(error, *parts)


def test_records_of_another_shape_than_the_examples_are_refused() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 4))
    aligned = align(net, example=torch.zeros(2, 1, 8), show=None)
    aligned(torch.zeros(5, 1, 8))
    with pytest.raises(UsageError) as error:
        aligned(torch.zeros(5, 1, 9))
    assert_one_line(error, "point 1 has shape [2, 7]", "[2, 6]")


def narrow() -> object:
    from noise_models.randomness.generator import NoiseGenerator
    from optical_dfa.backends import create

    return create("digital", in_features=4, out_features=3, seed=0, noise=NoiseGenerator.secure("device"))


def test_one_device_may_be_larger_than_needed_and_the_scale_is_the_rules() -> None:
    nets = [double_mlp() for _ in range(2)]
    grads = []
    for net, scale in zip(nets, (1.0, 2.5), strict=True):
        aligned = align(net, rule=make_rule("dfa", {"scale": scale}), show=None)
        aligned.zero_grad()
        cross_entropy(aligned(X.double()), Y).backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for name, (a, b) in enumerate(zip(*grads, strict=True)):
        torch.testing.assert_close(b, a * (2.5 if name < 4 else 1.0))


def test_gradient_alignment_is_a_random_projection_per_record_at_any_width() -> None:
    """|g_l| is about |e|: entries of standard deviation 1/sqrt(n_l)."""
    net = nn.Sequential(nn.Linear(5, 4096), nn.Identity(), nn.Linear(4096, 4))
    aligned: AlignedModule = align(net, points=["1"], loss_reduction="sum", show=None)
    error = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    _, (signal,) = aligned.teach(error, None)
    assert signal is not None
    ratio = signal.norm(dim=1) / error.norm(dim=1)
    torch.testing.assert_close(ratio, torch.ones(7), rtol=0.1, atol=0.0)  # 9 standard deviations of a chi
