"""Our rules against public implementations: the numbers these gave stand in `public_implementations.json`.

Each case there was made once, outside of this repository: a network of `NETWORKS`, run in the public code's own
classes, was given the numbers that `draw` draws here, made its own backward pass, and its gradients were stored. No
line of that code is here. Here the same network is aligned with our rule, our rule is handed the same random numbers
where it asks for its own, and must come to the same gradients. What an implementation and a rule do not share stands at
each test.

A tensor is stored as [its norm, its product with cos(0), cos(1), cos(2), ..., its first four entries].
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optical_dfa import AlignedModule, align
from optical_dfa.feedback.rules.learned import LearnedState

STORED = json.loads(Path(__file__).with_name("public_implementations.json").read_text())
TOLERANCE = {"float64": 1e-10, "float32": 1e-6}
RECORDS, CLASSES = 7, 4


# ---- what both sides are given


def draw(case: str, what: str, *shape: int, law: str = "normal") -> Tensor:
    """Numbers for one purpose in one case, in float64: N(0, 1), U[0, 1) or whole numbers below CLASSES.

    From numpy's legacy generator, whose stream is frozen, seeded with the CRC-32 of "case/what".
    """
    stream = np.random.RandomState(zlib.crc32(f"{case}/{what}".encode()))
    if law == "labels":
        return torch.from_numpy(stream.randint(0, CLASSES, shape))
    found = stream.standard_normal(shape) if law == "normal" else stream.random_sample(shape)
    return torch.from_numpy(np.asarray(found))


def centred(case: str, what: str, *shape: int) -> Tensor:
    """U[-1, 1)."""
    return 2 * draw(case, what, *shape, law="unit") - 1


def mlp(phi: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, 6), phi(), nn.Linear(6, 8), phi(), nn.Linear(8, CLASSES))


def mlp_without_bias() -> nn.Sequential:
    layers = [nn.Linear(a, b, bias=False) for a, b in ((9, 6), (6, 8), (8, CLASSES))]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def mlp_normalised() -> nn.Sequential:
    """Without the biases that normalisation takes away again."""
    return nn.Sequential(
        nn.Linear(9, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8),
        nn.ReLU(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def mlp_shallow() -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def cnn() -> nn.Sequential:
    """The second convolution's output is flat before its activation, so that one point has space and one has not."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Tanh(),
        nn.Linear(40, CLASSES),
    )  # fmt: skip


def cnn_strided() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(12, CLASSES),
    )  # fmt: skip


def cnn_pooled(phi: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), phi(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 6), phi(),
        nn.Linear(6, CLASSES),
    )  # fmt: skip


def cnn_shallow() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, CLASSES, bias=False),
    )


# name -> how it is built, shape of a record
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (mlp, (9,)),
    "mlp without bias": (mlp_without_bias, (9,)),
    "mlp normalised": (mlp_normalised, (9,)),
    "mlp shallow": (mlp_shallow, (9,)),
    "cnn": (cnn, (2, 4, 5)),
    "cnn strided": (cnn_strided, (2, 5, 4)),
    "cnn pooled": (cnn_pooled, (1, 4, 4)),
    "cnn pooled relu": (lambda: cnn_pooled(nn.ReLU), (1, 4, 4)),
    "cnn shallow": (cnn_shallow, (1, 6, 6)),
}


def given(case: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, Tensor, Tensor]:
    """The case's network, with drawn parameters, inputs and targets."""
    make, shape = NETWORKS[STORED["cases"][case]["network"]]
    net = make().to(dtype)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(0.5 * draw(case, name, *p.shape))
    inputs = draw(case, "inputs", RECORDS, *shape).to(dtype)
    return net, inputs, draw(case, "targets", RECORDS, law="labels")


# ---- comparing


def summary(found: Tensor) -> list[float]:
    flat = found.detach().double().flatten()
    waves = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return [float(flat.norm()), float(flat @ waves), *flat[:4].tolist()]


def assert_stored(case: str, kind: str, found: dict[str, Tensor]) -> None:
    """Each tensor's numbers are those stored, to within the tolerance times its norm."""
    stored = STORED["cases"][case]
    assert found.keys() >= stored[kind].keys(), (found.keys(), stored[kind].keys())
    for name, numbers in stored[kind].items():
        assert numbers[0] > 0
        wrong = max(abs(a - b) for a, b in zip(summary(found[name]), numbers, strict=True))
        assert wrong <= TOLERANCE[stored["dtype"]] * numbers[0], f"{kind} {name}: {wrong / numbers[0]:.2g}"


def gradients(aligned: AlignedModule, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    aligned.zero_grad()
    cross_entropy(aligned(x), y, reduction=aligned.loss_reduction).backward()
    return {name: p.grad for name, p in aligned.module.named_parameters() if p.grad is not None}


def hand(monkeypatch: pytest.MonkeyPatch, module: str, matrices: Sequence[Tensor]) -> None:
    """Our code in `module` draws these matrices next, of unit variance, shape (out, in), instead of its own."""
    waiting = list(matrices)

    class Handed:
        def __init__(self, in_features: int, out_features: int, *_: Any) -> None:
            self.values = waiting.pop(0)
            self.std = 1.0
            assert self.values.numel() == in_features * out_features

        def times(self, e: Tensor) -> Tensor:
            return e @ self.values.T.to(e)

    name = "SparseMatrix" if module.endswith(":sparse") else "RandomMatrix"
    monkeypatch.setattr(f"optical_dfa.{module.removesuffix(':sparse')}.{name}", Handed)


def frame(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The device's one matrix, from the layers' own of shape (C, n_l)."""
    return [torch.cat([b.T for b in matrices])]


ROOT3 = math.sqrt(3)  # U[-1, 1) times this has variance 1


# ---- direct feedback


@pytest.mark.parametrize(("case", "widest"), [("tinydfa mlp", 8), ("tinydfa cnn", 60)])
def test_tinydfa(case: str, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule dfa as in "DFA scales": one matrix U[-1, 1) of the widest layer's size over sqrt(it), sliced."""
    net, x, y = given(case)
    hand(monkeypatch, "backends.digital", [ROOT3 * centred(case, "feedback", CLASSES, widest).T])
    options = {"law": "uniform", "slices": "shared", "normalisation": "widest", "scale": 1 / ROOT3}
    aligned = align(net, rule="dfa", rule_options=options, example=x, show=None)
    assert_stored(case, "gradients", gradients(aligned, x, y))


@pytest.mark.parametrize(("case", "widest"), [("principled mlp", 8), ("principled cnn", 60)])
def test_principled_dfa(case: str, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule dfa as in Launay et al. 2019: one normal matrix, slices rescaled to 1/sqrt(n_l C).

    Their error is never divided by the batch, so our loss is a sum; theirs divides the output layer's alone.
    """
    net, x, y = given(case)
    hand(monkeypatch, "backends.digital", [draw(case, "feedback", CLASSES, widest).T])
    options = {"slices": "shared", "scale": 1 / math.sqrt(CLASSES)}
    aligned = align(net, rule="dfa", rule_options=options, example=x, loss_reduction="sum", show=None)
    assert_stored(case, "gradients", gradients(aligned, x, y))


@pytest.mark.parametrize("network", ["mlp", "cnn pooled"])
@pytest.mark.parametrize(("rule", "mode"), [("dfa", "DFA"), ("sign-dfa", "sDFA"), ("drtp", "DRTP")])
def test_drtp_repository(rule: str, mode: str, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their B is Kaiming-uniform: a standard deviation of sqrt(2 / n_l). Nothing is divided by the batch."""
    case = f"{mode} {network}"
    net, x, y = given(case)
    sizes = (6, 8) if network == "mlp" else (48, 6)
    fixed = [ROOT3 * centred(case, f"feedback {i}", CLASSES, n) for i, n in enumerate(sizes)]
    hand(monkeypatch, "backends.digital", frame(fixed))
    options = {"law": "uniform", "scale": math.sqrt(2)}
    aligned = align(net, rule=rule, rule_options=options, example=x, loss_reduction="sum", show=None)
    assert_stored(case, "gradients", gradients(aligned, x, y))


def test_drtp_repository_shallow() -> None:
    net, x, y = given("shallow mlp")
    aligned = align(net, rule="shallow", loss_reduction="sum", show=None)
    found = gradients(aligned, x, y)
    assert not any(found[name].any() for name in ("0.weight", "2.weight") if name in found)
    assert_stored("shallow mlp", "gradients", found)


@pytest.mark.parametrize("case", ["biotorch dfa mlp", "biotorch dfa mlp without bias", "biotorch dfa cnn"])
def test_biotorch_dfa(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs belongs to the layer above, Xavier-uniform; its size is handed over as it is, ours has its own.

    A convolution's is a kernel that meets the error broadcast over space, with that convolution's geometry. Our
    shared kernels have stride 1 and keep the resolution; where the convolution does so too, both are the same.
    """
    net, x, y = given(case)
    below = STORED["cases"][case]["feedback shapes"]
    matrices = []
    for name, shape in below.items():
        bound = math.sqrt(6 / (math.prod(shape[2:]) * (shape[0] + shape[1])))  # Xavier, fans of the kernel
        kernel = bound * centred(case, f"feedback {name}", *shape).flatten(1)
        space = 4 * 5 if len(shape) > 2 else 1
        matrices.append(
            kernel * math.sqrt(kernel.shape[1] * space)
        )  # n_l of a flat point, times taps of another
    hand(monkeypatch, "backends.digital", frame(matrices))
    options = {"conv": "shared-kernel", "kernel": 3}
    aligned = align(net, rule="dfa", rule_options=options, example=x, show=None)
    assert_stored(case, "gradients", gradients(aligned, x, y))


def test_sparse_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    """ssdfa with two entries a unit, from TensorFlow in float32: their law is U[-r, r], r from n_l, C and k."""
    case = "ssdfa mlp shallow"
    net, x, y = given(case, torch.float32)
    chosen = torch.stack([draw(case, f"places {i}", CLASSES, law="unit").argsort()[:2] for i in range(8)])
    mask = torch.zeros(8, CLASSES).scatter_(1, chosen, 1.0)
    hand(monkeypatch, "backends.digital:sparse", [ROOT3 * centred(case, "feedback", CLASSES, 8).T * mask])
    aligned = align(net, rule="ssdfa", rule_options={"nonzeros": 2}, show=None)
    assert_stored(case, "gradients", gradients(aligned, x, y))


# ---- layer by layer


@pytest.mark.parametrize("network", ["mlp", "mlp without bias", "cnn", "cnn strided"])
@pytest.mark.parametrize("rule", ["fa", "usf", "brsf", "frsf"])
def test_biotorch_layerwise(rule: str, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their matrices are Xavier-uniform, as ours under fa's law; our frsf and brsf draw theirs normal, of that size."""
    case = f"biotorch {rule} {network}"
    net, x, y = given(case)
    layers = {n: p.shape for n, p in net.named_parameters() if n.endswith("weight")}
    drawn = [ROOT3 * centred(case, f"feedback {n}", *s).flatten(1) for n, s in layers.items()]
    # brsf draws in the pass, where the first layer hands no error down.
    hand(monkeypatch, "feedback.rules.layerwise", drawn[1:] if rule == "brsf" else drawn)
    options = {"law": "uniform"} if rule == "fa" else {}
    aligned = align(net, rule=rule, rule_options=options, example=x, show=None)
    assert_stored(case, "gradients", gradients(aligned, x, y))


@pytest.mark.parametrize("network", ["mlp", "cnn pooled"])
def test_drtp_repository_feedback_alignment(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaiming-uniform matrices, U[±sqrt(6 / fan_in)], handed over as they are: ours are of Xavier's size."""
    case = f"FA {network}"
    net, x, y = given(case)
    drawn = []
    for name, p in net.named_parameters():
        if name.endswith("weight"):
            fan_in, fan_out = p[0].numel(), p.numel() // p.shape[1]
            ratio = math.sqrt(2 / fan_in) / math.sqrt(2 / (fan_in + fan_out))
            drawn.append(ratio * ROOT3 * centred(case, f"feedback {name}", *p.shape).flatten(1))
    hand(monkeypatch, "feedback.rules.layerwise", drawn)
    options = {"law": "uniform"}
    aligned = align(net, rule="fa", rule_options=options, example=x, loss_reduction="sum", show=None)
    assert_stored(case, "gradients", gradients(aligned, x, y))


# ---- learned feedback


def learned(case: str, aligned: AlignedModule) -> tuple[LearnedState, dict[str, Tensor]]:
    """The aligned module's matrices, set to the case's first ones of shape (C, n_l)."""
    state = aligned.state
    assert isinstance(state, LearnedState)
    matrices = {}
    for index, point in enumerate(aligned.points):
        matrices[f"feedback {index}"] = state.matrix(point)
        state.matrix(point).copy_(0.3 * draw(case, f"feedback {index}", CLASSES, point.width))
    return state, matrices


def direct(monkeypatch: pytest.MonkeyPatch, case: str, step: int) -> None:
    """The directions u_l that our forward-mode pass draws next."""
    waiting = iter(range(100))
    monkeypatch.setattr(
        torch, "randn", lambda shape, **_: draw(case, f"direction {next(waiting)} of step {step}", *shape)
    )


@pytest.mark.parametrize(
    ("case", "rule", "optimizer"),
    [
        ("FDFA sgd", "fdfa", "sgd"),
        ("FDFA adam", "fdfa", "adam"),
        ("FDFA cnn", "fdfa", "sgd"),
        ("FDFA's DKP sgd", "dkp", "sgd"),
        ("DKP sgd", "dkp", "sgd"),
        ("DKP adam", "dkp", "adam"),
        ("DKP cnn", "dkp", "adam"),
    ],
)
def test_learned_feedback(case: str, rule: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, weights and matrices learning together: the gradients of the last, and the matrices after it.

    The hooks of Bacho's and of Webster's repositories, behind batch normalisation and ReLU as in their networks; the
    matrices by plain SGD (the equations) and by torch's Adam with their weight decay (their released loops).
    """
    net, x, y = given(case)
    options = {"optimizer": optimizer, "rate": 0.2 if optimizer == "sgd" else 0.01, "decay": 0.05}
    aligned = align(net, rule=rule, rule_options=options, example=x, show=None)
    _, matrices = learned(case, aligned)
    weights = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        with monkeypatch.context() as patched:
            direct(patched, case, step)
            found = gradients(aligned, x, y)
        weights.step()
    assert_stored(case, "gradients", found)
    assert_stored(case, "feedback", matrices)


# ---- two forward passes


def test_pepita(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden layers, in numpy record by record. Their output layer learns from the second pass, ours from the first."""
    case = "PEPITA mlp"
    net, x, y = given(case)
    hand(monkeypatch, "feedback.rules.pepita", [ROOT3 * centred(case, "feedback", 9, CLASSES)])
    found = gradients(align(net, rule="pepita", show=None), x, y)
    assert set(STORED["cases"][case]["gradients"]) == {"0.weight", "2.weight"}
    assert_stored(case, "gradients", found)


def test_pepita_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """The changes as their script forms them before it multiplies by the learning rate and divides by the batch.

    Of a convolution it takes the mean over records and places, and adds it where it subtracts other layers' from the
    weights. With one layer above, the output layer learns from the first pass's error there too.
    """
    case = "PEPITA cnn"
    net, x, y = given(case)
    hand(monkeypatch, "feedback.rules.pepita", [ROOT3 * centred(case, "feedback", 36, CLASSES)])
    found = gradients(align(net, rule="pepita", example=x, show=None), x, y)
    places = 4 * 4
    assert_stored(
        case, "changes", {"0.weight": found["0.weight"] / places, "4.weight": -RECORDS * found["4.weight"]}
    )


# ---- the stored numbers themselves


def test_every_case_is_compared_and_says_where_it_is_from() -> None:
    for name, case in STORED["cases"].items():
        source = STORED["sources"][case["source"]]
        assert len(source["commit"]) == 40, name
        assert source["repository"].startswith("https://github.com/"), name
    text = Path(__file__).read_text()
    modes = {"biotorch fa", "biotorch usf", "biotorch brsf", "biotorch frsf", "DFA", "sDFA", "DRTP", "FA"}
    for name in STORED["cases"]:
        network = STORED["cases"][name]["network"]
        assert f'"{name}"' in text or name.removesuffix(f" {network}") in modes, name
