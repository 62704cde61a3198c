"""Rule gated-dfa against its equation, delta_l = B_l (r(x) ⊗ e), in float64 (THEORY T5)."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict

import pytest
import torch
from small_networks import labels, mlp, normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign
from optical_dfa.feedback.points import ForwardPass, Tape
from optical_dfa.feedback.rules.gated import GatedFeedbackAlignment, hyperplanes

EXACT = {"rtol": 1e-12, "atol": 1e-12}
M, C = 9, 4
X, Y = normal(M, 5, seed=1), labels(M)


def aligned_with(gates: int, reduction: str = "mean", **options: object) -> AlignedModule:
    options = {"gates": gates, "gate_seed": 3, **options}
    return align(mlp(), rule="gated-dfa", rule_options=options, loss_reduction=reduction, show=None)  # type: ignore[arg-type]


def by_hand(net: nn.Sequential, aligned: AlignedModule, gates: int, divisor: int) -> dict[str, Tensor]:
    """The update written out: gates record by record, projections with B itself."""
    assert aligned.backend is not None
    matrix = aligned.backend.matrix()
    assert matrix is not None
    with torch.no_grad():
        h1 = torch.tanh(net[0](X))
        h2 = torch.tanh(net[2](h1))
        e = (torch.softmax(net[4](h2), -1) - nn.functional.one_hot(Y, C)) / divisor
    normals = hyperplanes(gates - 1, 5, 3).double() if gates > 1 else torch.zeros(0, 5, dtype=torch.float64)
    lifted = torch.stack(
        [
            torch.kron(torch.cat([torch.ones(1), (normals @ x > 0)]).double(), ei)
            for x, ei in zip(X, e, strict=True)
        ]
    )
    deltas = []
    for start, width in ((0, 6), (6, 8)):
        b = matrix[start : start + width].double() / math.sqrt(width * (gates + 1) / 2)
        deltas.append(lifted @ b.T)
    d1, d2 = deltas
    return {
        "0.weight": d1.T @ X, "0.bias": d1.sum(0),
        "2.weight": d2.T @ h1, "2.bias": d2.sum(0),
        "4.weight": e.T @ h2, "4.bias": e.sum(0),
    }  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("gates", [1, 2, 5])
def test_it_is_its_equation(gates: int, reduction: str) -> None:
    aligned = aligned_with(gates, reduction)
    assert [point.name for point in aligned.points] == ["0", "2"]  # before the activations, not at the output
    assert aligned.backend is not None
    assert aligned.backend.in_features == gates * C
    cross_entropy(aligned(X), Y, reduction=reduction).backward()
    expected = by_hand(aligned.module, aligned, gates, M if reduction == "mean" else 1)  # type: ignore[arg-type]
    for name, p in aligned.module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def test_gates_belong_to_their_own_forward_pass() -> None:
    """Two forward passes, one backward: each record keeps the gates of its own input."""
    aligned = aligned_with(5, "sum")
    outputs = torch.cat([aligned(part) for part in (X[:4], X[4:])])
    cross_entropy(outputs, Y, reduction="sum").backward()
    expected = by_hand(aligned.module, aligned, 5, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(aligned.module[0].weight.grad, expected["0.weight"], **EXACT)  # type: ignore[index]


def test_it_is_neither_backpropagation_nor_dfa() -> None:
    gradients = {}
    for rule, options in (("bp", {}), ("dfa", {}), ("gated-dfa", {"gates": 1}), ("gated-dfa", {"gates": 6})):
        aligned = align(mlp(), rule=rule, rule_options=options, show=None)
        cross_entropy(aligned(X), Y).backward()
        gradients[rule, len(gradients)] = aligned.module[0].weight.grad.flatten()  # type: ignore[index, union-attr]
    found = list(gradients.values())
    for i, first in enumerate(found):
        for second in found[:i]:
            assert abs(torch.cosine_similarity(first, second, dim=0)) < 0.95


def seen(x: Tensor) -> ForwardPass:
    """All that the gates see of a forward pass."""
    return ForwardPass(nn.Identity(), Tape(), [x], {}, (), torch.zeros(len(x), C))


def test_gates_are_a_public_function_of_the_input_alone() -> None:
    rule = GatedFeedbackAlignment(gates=9, gate_seed=1)
    gates = rule.context(seen(X))
    assert gates is not None
    assert gates.shape == (M, 9)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert (gates[:, 0] == 1).all()
    alone = torch.cat([rule.context(seen(x.unsqueeze(0))) for x in X])  # type: ignore[misc]
    assert torch.equal(gates, alone)
    assert torch.equal(gates, GatedFeedbackAlignment(gates=9, gate_seed=1).context(seen(X)))
    assert not torch.equal(gates, GatedFeedbackAlignment(gates=9, gate_seed=2).context(seen(X)))
    many = GatedFeedbackAlignment(gates=400).context(seen(normal(400, 20)))
    assert many is not None
    assert abs(float(many[:, 1:].mean()) - 0.5) < 0.02


def test_teaching_signals_keep_their_size_for_any_number_of_gates() -> None:
    error = normal(200, C).float()
    sizes = []
    for gates in (1, 16):
        rule = GatedFeedbackAlignment(gates=gates)
        device_inputs = rule.device_inputs(C)
        aligned = align(nn.Sequential(nn.Linear(30, 600), nn.Tanh(), nn.Linear(600, C)), rule=rule, show=None)
        assert aligned.backend is not None
        assert aligned.backend.in_features == device_inputs
        context = rule.context(seen(normal(200, 30).float()))
        _, (signal,) = aligned.teach(error * 1.0, context)
        assert signal is not None
        sizes.append(float((signal.norm(dim=1) / error.norm(dim=1)).square().mean()))
    assert sizes[0] == pytest.approx(1.0, rel=0.2)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_a_last_layer_called_output_is_taught_by_the_error() -> None:
    """Its name is not that of the root of the backward pass; it was taught by a projection."""
    gradients = []
    for name in ("output", "last"):
        net = mlp()
        part = nn.Sequential(OrderedDict([*list(net.named_children())[:-1], (name, net[-1])]))
        aligned = align(part, rule="gated-dfa", show=None)
        assert [point.name for point in aligned.points] == ["0", "2"]
        cross_entropy(aligned(X), Y).backward()
        gradients.append(part.get_submodule(name).weight.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_it_learns() -> None:
    """On the digits it is far above what frozen hidden layers of the same network reach after as many steps."""
    from optical_dfa.config import TrainConfig
    from optical_dfa.training.trainer import train

    accuracy = {
        rule: train(
            TrainConfig(
                rule=rule, backend="digital", release="none", model="mlp:32", epochs=6, rule_options=options
            )
        )["test_accuracy"]
        for rule, options in (("shallow", {}), ("gated-dfa", {"gates": 3}))
    }
    assert accuracy["gated-dfa"] > 0.9
    assert accuracy["gated-dfa"] > accuracy["shallow"]


@pytest.mark.parametrize("gates", [1, 5])
def test_it_compiles_into_one_graph(gates: int) -> None:
    """The hyperplanes, which no graph can draw, are a constant there."""
    hyperplanes.cache_clear()
    aligned = aligned_with(gates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        cross_entropy(compiled(X), Y).backward()
    expected = by_hand(aligned.module, aligned, gates, M)  # type: ignore[arg-type]
    for name, p in aligned.module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def test_a_checkpoint_names_the_gates() -> None:
    state = aligned_with(3).state_dict()
    aligned_with(3).load_state_dict(state)
    with pytest.raises(UsageError, match="rule_options"):
        align(mlp(), rule="gated-dfa", rule_options={"gates": 3, "gate_seed": 4}, show=None).load_state_dict(
            state
        )
    assert isinstance(unalign(aligned_with(3)), nn.Sequential)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": 0}, "gates=0: it must be a whole number from 1 to 4096"),
        ({"gates": 5000}, "gates=5000"),
        ({"gates": 1.5}, "gates of rule gated-dfa is 1.5"),
        ({"gates": True}, "gates of rule gated-dfa is True"),
        ({"gate_seed": -1}, "gate_seed=-1"),
        ({"scale": 0.0}, "scale=0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        align(mlp(), rule="gated-dfa", rule_options=options, show=None)
    assert "\n" not in str(error.value)


def test_what_has_no_gates_is_refused() -> None:
    tokens = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, C))
    aligned = align(
        tokens,
        rule="gated-dfa",
        rule_options={"gates": 3},
        example=torch.zeros(2, 3, dtype=torch.int64),
        points=["2"],
        show=None,
    )
    with pytest.raises(UsageError, match="one floating-point input"):
        aligned(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(UsageError, match="before its nonlinearity"):
        align(mlp(), rule="dfa", points=["0", "2"], show=None)  # the other rules keep their derivative
