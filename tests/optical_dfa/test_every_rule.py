"""What holds for every registered rule, on a network it is defined on; each rule's own equation is in its own file."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from small_networks import EXACT, M, Y, assert_same, forward_pass, gradients, mlp, normal
from test_capture_sums import alone, clip
from test_rules_recurrent import Network as Recurrent
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign
from optical_dfa.feedback import RULES, make_rule
from optical_dfa.feedback.forward_mode import directional_derivative
from optical_dfa.feedback.rules.learned import LearnedState
from optical_dfa.feedback.rules.modular import ModularState
from optical_dfa.feedback.state import StateHook
from privacy import PrivacyEngine

C = 4
CONVOLUTIONAL = ("cdfa", "dilated", "grouped", "hybrid", "modular")
REFUSED = {  # by a private release: they learn or draw as they teach, or do not teach layer by layer
    "brsf": "brsf", "ddfa": "fdfa", "dkp": "dkp", "ebd": "ebd", "fdfa": "fdfa", "fg-a": "fg-a", "fg-w": "fg-w",
    "forward-forward": "forward-forward", "grape": "grape", "ldfa": "ldfa", "lg-fg-a": "lg-fg-a",
    "mono-forward": "mono-forward", "pepita": "pepita", "pfa": "pfa",
}  # fmt: skip


def cnn(bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 6, bias), nn.Tanh(), nn.Linear(6, C, bias),
    )  # fmt: skip


def network(rule: str, bias: bool = True) -> tuple[nn.Module, Tensor]:
    """A network that the rule is defined on, its biases 0, and M records for it."""
    make: Callable[[bool], nn.Module]
    if rule in ("sparse-recurrent", "recurrent-hybrid"):
        make, x = lambda bias: Recurrent("gru", bias, last=True), normal(M, 3, 3, seed=1)
    elif rule in CONVOLUTIONAL:
        make, x = cnn, normal(M, 2, 4, 4, seed=1)
    else:
        make, x = mlp, normal(M, 5, seed=1)
    net = make(bias).double()
    for p in (p for name, p in net.named_parameters() if "bias" in name):
        p.data.zero_()
    for number, p in enumerate(p for name, p in net.named_parameters() if "bias" not in name):
        p.data = normal(*p.shape, seed=20 + number) / math.sqrt(p[0].numel())
    return net, x


def make(rule: str, bias: bool = True, **options: Any) -> tuple[AlignedModule, Tensor]:
    net, x = network(rule, bias)
    if rule == "gated-dfa":
        options = {"rule_options": {"gates": 3}, **options}
    return align(net, rule=rule, example=x, show=None, **options), x


def taught(rule: str, bias: bool = True) -> dict[str, Tensor]:
    """Gradients of the second step, for a learned matrix is zero in the first."""
    aligned, x = make(rule, bias)
    gradients(aligned, x)
    return gradients(aligned, x)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))


# ---- every rule


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_biases_the_weights_learn_what_they_do_with_biases_of_zero(rule: str) -> None:
    having, lacking = taught(rule), taught(rule, bias=False)
    weights = {name: g for name, g in having.items() if "bias" not in name}
    assert lacking.keys() == weights.keys()
    if rule == "fg-w":  # biases are directions too: another draw, with a test of its own
        return
    assert_same(lacking, weights)
    if rule != "shallow":
        assert any("bias" in name and g.any() for name, g in having.items())


@pytest.mark.parametrize("rule", sorted(RULES))
def test_hidden_layers_do_not_learn_what_backpropagation_teaches(rule: str) -> None:
    net, x = network(rule)
    exact, found = gradients(copy.deepcopy(net), x), taught(rule)
    first = next(iter(exact))
    if rule == "bp":
        assert_same(found, exact)
    elif rule == "shallow":
        assert first not in found or not found[first].any()
    else:
        assert found[first].any()
        assert abs(cosine(found[first], exact[first])) < 0.9


class Foreign(StateHook):
    """A hook of another module's state."""

    def __call__(self, part: nn.Module, args: Any, output: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_unaligned_a_module_is_plain_and_has_the_hooks_of_others_alone(rule: str, private: bool) -> None:
    net, x = network(rule)
    exact = gradients(copy.deepcopy(net), x)
    aligned = align(net, rule=rule, example=x, show=None)
    gradients(aligned, x)
    if private:
        if rule in REFUSED:
            return
        aligned.start_capture()
    nothing, foreign = lambda *_: None, Foreign(object())
    for part in net.modules():
        part.register_forward_pre_hook(nothing, with_kwargs=True)
        part.register_forward_hook(nothing, with_kwargs=True)
        part.register_forward_hook(foreign)
    assert unalign(aligned) is net
    for part in net.modules():
        assert list(part._forward_pre_hooks.values()) == [nothing]
        assert list(part._forward_hooks.values()) == [nothing, foreign]
        assert part._forward_pre_hooks_with_kwargs.keys() == part._forward_pre_hooks.keys()
        assert list(part._forward_hooks_with_kwargs) == list(part._forward_hooks)[:1]
    assert_same(gradients(net, x), exact)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_saved_state_goes_on_to_the_same_gradients(rule: str) -> None:
    aligned, x = make(rule, seed=3)
    for _ in range(2):
        gradients(aligned, x)
    file = io.BytesIO()
    torch.save(aligned.state_dict(), file)
    file.seek(0)
    again, _ = make(rule, seed=3 if aligned.backend is not None else 4)  # a device is built again, not loaded
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    again.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(2):
        assert_same(gradients(again, x), gradients(aligned, x), rtol=0.0, atol=0.0)


def compiled(rule: str, **options: Any) -> tuple[AlignedModule, dict[str, Tensor]]:
    aligned, x = make(rule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cross_entropy(torch.compile(aligned, backend="aot_eager", **options)(x), Y).backward()
    return aligned, {n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rule", ["bp", "shallow"])  # the others': in their own files
def test_it_compiles_into_one_graph(rule: str) -> None:
    aligned, x = make(rule)
    assert_same(compiled(rule, fullgraph=True)[1], gradients(aligned, x))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_that_no_graph_holds_says_so(rule: str) -> None:
    """Those whose state draws or learns in a pass, which no release takes either, and no others."""
    aligned, _ = make(rule)
    assert (aligned.state is not None and not aligned.state.compiles) == (rule in REFUSED)
    if rule == "ddfa":
        with pytest.raises(torch._dynamo.exc.Unsupported, match="_forward_outside_graphs") as error:
            compiled(rule, fullgraph=True)
        if "reason" in str(error.value):  # from torch 2.7 on
            assert "the feedback rule draws or learns in a pass" in str(error.value)


def private_step(aligned: AlignedModule, x: Tensor, **settings: Any) -> Tensor:
    """The sum that a private step with almost no noise releases of all records."""
    module, optimizer, loader = PrivacyEngine().make_private(
        module=aligned,
        optimizer=torch.optim.SGD(aligned.parameters(), lr=0.0),
        data_loader=DataLoader(TensorDataset(x, Y), batch_size=M),
        noise_multiplier=1e-12,
        release="digital",
        **settings,
    )
    trained = list(aligned.trained_parameters().values())
    total = torch.zeros(sum(p.numel() for p in trained), dtype=torch.float64)
    batches = iter(loader)
    while not total.any():
        records, targets = next(batches)
        optimizer.zero_grad()
        cross_entropy(module(records), targets).backward()
        optimizer.step()
        found = [p.grad for p in trained]
        if all(g is not None for g in found):
            total = torch.cat([g.flatten() for g in found]) * M  # type: ignore[union-attr]
    return total


@pytest.mark.parametrize("parts", [None, 3])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_private_step_is_the_clipped_sum_of_single_records_or_refused(rule: str, parts: int | None) -> None:
    aligned, x = make(rule)
    if rule in REFUSED:
        with pytest.raises(UsageError, match=f"rule {REFUSED[rule]} ") as error:
            private_step(aligned, x, max_grad_norm=1.0, max_physical_batch_size=parts)
        assert "\n" not in str(error.value)
        return
    stacks = alone(aligned, [x], Y, list(aligned.trained_parameters()))
    norm = float(stacks.norm(dim=1).median())  # so that some are clipped and some are not
    found = private_step(aligned, x, max_grad_norm=norm, max_physical_batch_size=parts)
    # To whole numbers, and to the room that clipped records leave for their rounding.
    assert float((found - clip(stacks, norm).sum(0)).norm()) < 0.06 * M * norm


# ---- with the exact backward product in place of its matrices, a linear network learns as under backpropagation


@pytest.mark.parametrize("rule", sorted(set(RULES) - set(REFUSED)))
def test_a_private_batch_of_several_blocks_teaches_what_one_of_one_does(rule: str) -> None:
    """Each record's norm; a rule notes and teaches block by block."""
    norms = []
    for rows in (None, 32):
        aligned, x = make(rule)
        capture: Any = aligned.start_capture("records", rows)
        x = torch.cat([x, normal(70 - len(x), *x.shape[1:], seed=5)])
        capture.expected_records = lambda x=x: len(x)
        torch.autograd.backward(cross_entropy(aligned(x), torch.arange(len(x)) % C))
        norms.append(capture.norms())
    assert norms[0].all()
    assert torch.allclose(*norms, rtol=1e-9)


def linear() -> tuple[nn.Sequential, Tensor, list[Tensor]]:
    """The network, its inputs, and dz/dh_l of its hidden layers, shape (C, n_l)."""
    net = mlp(phi=nn.Identity).double()
    assert isinstance(net, nn.Sequential)
    for number, p in enumerate(net.parameters()):
        p.data = normal(*p.shape, seed=40 + number)
    top, middle = net[4].weight.detach(), net[2].weight.detach()
    return net, normal(M, 5, seed=1), [top @ middle, top]


def hand_over(aligned: AlignedModule, exact: Sequence[Tensor]) -> None:
    """The rule's device projects by these matrices, of the size the rule expects of a device."""
    device = aligned.backend
    assert device is not None
    frame = torch.cat([j * math.sqrt(j.shape[1]) / aligned.rule.scale for j in exact], 1)  # type: ignore[attr-defined]
    device.project = lambda e: e @ frame  # type: ignore[method-assign]


@pytest.mark.parametrize("rule", ["dfa", "sign-dfa", "ternary", "bdfa", "drtp", "gated-dfa"])
def test_exact_direct_feedback(rule: str) -> None:
    """Where the rule sees e through signs or targets: for errors that these are all of, up to drtp's sign.

    ssdfa scales by its own r: its test is in test_rules_direct, with those of the rules that backpropagate in parts.
    """
    net, x, exact = linear()
    errors = torch.randint(-1, 2, (M, C), generator=torch.Generator().manual_seed(2)).double()
    if rule == "drtp":
        errors = -one_hot(Y, C).double()
        exact = [-j for j in exact]  # it projects the target, +1, where the error is -1
    points = ["0", "2"] if rule == "gated-dfa" else ["1", "3"]
    aligned = align(net, rule=rule, points=points, example=x, loss_reduction="sum", show=None)
    hand_over(aligned, exact)
    aligned(x).backward(errors)
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    plain = linear()[0]
    plain(x).backward(errors)
    for g, p in zip(found, plain.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, **EXACT)
        assert p.grad is not None
        assert cosine(g, p.grad) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("rule", ["fdfa", "ddfa", "dkp"])
def test_exact_learned_feedback(rule: str) -> None:
    net, x, exact = linear()
    aligned = align(net, rule=rule, points=["1", "3"], example=x, show=None)
    assert isinstance(aligned.state, LearnedState)
    for point, j in zip(aligned.points, exact, strict=True):
        aligned.state.matrix(point).copy_(j)
    assert_same(gradients(aligned, x), gradients(linear()[0], x))


@pytest.mark.parametrize("rule", ["fa", "usf", "frsf", "brsf"])
def test_exact_layerwise_feedback(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices are the weights: drawn so, or (usf) weights that are all of the size that the rule has."""
    net, x, _ = linear()
    if rule == "usf":
        for layer in (net[0], net[2], net[4]):
            layer.weight.data = layer.weight.data.sign() * math.sqrt(2 / sum(layer.weight.shape))
    plain = copy.deepcopy(net)
    drawn = iter([p / math.sqrt(2 / sum(p.shape)) for n, p in plain.named_parameters() if "weight" in n])

    class Drawn:
        def __init__(self, *_: Any) -> None:
            self.values = next(drawn).detach()

    monkeypatch.setattr("optical_dfa.feedback.rules.layerwise.RandomMatrix", Drawn)
    assert_same(gradients(align(net, rule=rule, example=x, show=None), x), gradients(plain, x))


@pytest.mark.parametrize(
    ("rule", "dilation", "groups", "options"),
    [
        ("dilated", 2, 1, {"between": "bp", "dilation": 2}),
        ("grouped", 1, 2, {"between": "bp", "groups": 2}),
        ("hybrid", 2, 2, {"dilation": 2, "groups": 2}),
    ],
)
def test_exact_convolutional_maps(rule: str, dilation: int, groups: int, options: dict[str, Any]) -> None:
    """The map within a module is the transpose of the convolution between its two points."""
    layers = [
        nn.Conv2d(4, 6, 3, padding=1), nn.Identity(),
        nn.Conv2d(6, 4, 3, padding=dilation, dilation=dilation, groups=groups), nn.Identity(), nn.Flatten(),
        nn.Linear(100, C),
    ]  # fmt: skip
    net, x = nn.Sequential(*layers).double(), normal(M, 4, 5, 5)
    plain = copy.deepcopy(net)
    aligned = align(net, rule=rule, rule_options=options, points=["1", "3"], example=x, show=None)
    assert isinstance(aligned.state, ModularState)
    inner = aligned.state.get_buffer("1")
    kernel = plain[2].weight.detach()
    assert inner.shape == kernel.shape
    aligned.state.register_buffer("1", kernel.clone(), persistent=False)
    assert_same(gradients(aligned, x), gradients(plain, x))


def test_pepita_with_the_exact_product_on_the_way_back() -> None:
    """h - h' = -W F e: with W F = -s V^T, where V is the layer above, it is s V^T e; x' comes to x as s vanishes."""
    net = nn.Sequential(nn.Linear(5, 4), nn.Identity(), nn.Linear(4, C)).double()
    x, plain = normal(M, 5, seed=1), copy.deepcopy(net)
    aligned = align(net, rule="pepita", points=["1"], example=x, show=None)
    assert aligned.state is not None
    below, above = net[0].weight.detach(), net[2].weight.detach()
    aligned.state.get_buffer("projection").copy_(-1e-6 * torch.linalg.pinv(below) @ above.T)
    found, exact = gradients(aligned, x), gradients(plain, x)
    assert cosine(found["0.weight"], exact["0.weight"]) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(found["0.weight"] * 1e6, exact["0.weight"], rtol=1e-4, atol=1e-4)


# ---- fdfa against a forward gradient


def test_learned_feedback_has_less_gradient_variance_than_a_forward_gradient_by_the_formula() -> None:
    """For one record of a linear network, in which dL/dW_ij is h_i times the signal g_j that both estimate.

    Var g_j = sum_m |e J_m|^2 + (e J_l)_j^2 of a forward gradient, and a / (2 - a) / N of that with B_l from N records.

    Both measured: 60,000 forward gradients, whose sum over a layer is known to 0.7 %, within 2 %; 250 steps of the
    moving average over N = 128 records, which know it to 1.7 %, within 6 %.
    """
    rate, records, width = 0.5, 128, 40
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, width), nn.Identity(), nn.Linear(width, width), nn.Identity(), nn.Linear(width, C)
    ).double()  # fmt: skip
    top, middle = net[4].weight.detach(), net[2].weight.detach()
    jacobians, e = [top @ middle, top], normal(1, C, seed=3)
    signals = [(e @ j).squeeze(0) for j in jacobians]
    total = sum(float(g.square().sum()) for g in signals)
    options = {"rate": rate}
    aligned = align(net, rule="fdfa", rule_options=options, points=["1", "3"], show=None)
    state = aligned.state
    assert isinstance(state, LearnedState)

    count, x = 60_000, normal(1, 5, seed=1)
    stream = torch.Generator().manual_seed(0)
    u = [torch.randn(count, width, generator=stream, dtype=torch.float64) for _ in signals]
    d = directional_derivative(forward_pass(aligned, x.expand(count, -1)), u)
    forward = [float(((d @ e.T) * drawn).var(0).sum()) for drawn in u]

    seen: list[list[Tensor]] = [[], []]
    batch = x.expand(records, -1)
    for step in range(260):
        output = aligned(batch)
        output.backward(torch.zeros_like(output))  # the matrices learn, the weights stay
        if step >= 10:
            for taken, point in zip(seen, aligned.points, strict=True):
                taken.append((e @ state.matrix(point)).squeeze(0))
    for taken, measured, g in zip(seen, forward, signals, strict=True):
        predicted = width * total + float(g.square().sum())
        assert measured == pytest.approx(predicted, rel=0.02)
        learned = float(torch.stack(taken).var(0).sum())
        assert learned / measured == pytest.approx(rate / (2 - rate) / records, rel=0.06)


def test_the_registry_is_what_is_tested() -> None:
    assert set(REFUSED) | set(CONVOLUTIONAL) <= set(RULES)
    for name in RULES:
        assert make_rule(name).name == (name if name != "ddfa" else "fdfa")
