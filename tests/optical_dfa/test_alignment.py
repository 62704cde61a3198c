"""Diagnostics: alignment with backpropagation, feedback angles, estimators, costs."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from small_networks import labels, normal
from test_feedback_equations import feedback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.bottleneck.mask import mask_gradients
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import AlignedModule, align
from optical_dfa.aligning import unalign
from optical_dfa.config import merge
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment
from optical_dfa.measure.alignment import alignment, direction, estimator, exact_gradients, feedback_angles
from optical_dfa.measure.costs import cost
from optical_dfa.networks.building import build
from optical_dfa.progress import SilentProgress
from optical_dfa.report.page import single_page
from optical_dfa.runs.reading import Run
from optical_dfa.training.diagnosis import TensorBoard
from optical_dfa.training.trainer import train

M = 9
X, Y = normal(M, 5, seed=1), labels(M)


def loss(z: Tensor) -> Tensor:
    return cross_entropy(z, Y)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).double()


def test_per_record_cosines_are_those_of_the_equations() -> None:
    net = mlp()
    aligned = align(net, show=None)
    found = alignment(aligned, X, loss)
    with torch.no_grad():
        h1 = torch.tanh(net[0](X))
        h2 = torch.tanh(net[2](h1))
        e = torch.softmax(net[4](h2), 1) - nn.functional.one_hot(Y, 4)
        g2 = e @ net[4].weight
        g1 = (g2 * (1 - h2**2)) @ net[2].weight
    assert list(found.points) == ["1", "3"]
    for name, exact in (("1", g1), ("3", g2)):
        cosines = torch.cosine_similarity(e @ feedback(aligned, name).T, exact, dim=1)
        point = found.points[name]
        assert point.cosine == pytest.approx(float(cosines.mean()), abs=1e-12)
        assert point.spread == pytest.approx(float(cosines.std(correction=0)), abs=1e-12)
        assert point.records == M
        ratio = float((e @ feedback(aligned, name).T).norm() / exact.norm())
        assert point.norm_ratio == pytest.approx(ratio, abs=1e-12)
    assert found.parameters["4.weight"].cosine == pytest.approx(1.0, abs=1e-12)
    assert -0.9 < found.parameters["0.weight"].cosine < 0.9


def test_backpropagation_is_aligned_with_itself() -> None:
    found = alignment(align(mlp(), rule="bp", show=None), X, loss)
    for point in found.points.values():
        assert point.cosine == pytest.approx(1.0, abs=1e-12)
        assert point.norm_ratio == pytest.approx(1.0, abs=1e-12)
    assert found.network.cosine == pytest.approx(1.0, abs=1e-12)


class Scaled(DirectFeedbackAlignment):
    """The exact feedback of a linear network, times a number."""

    def __init__(self, net: nn.Sequential, factor: float) -> None:
        super().__init__()
        self.weights = [net[4].weight.detach() @ net[2].weight.detach(), net[4].weight.detach()]
        self.factor = factor

    def feedback(self, error, points, backend):
        return [self.factor * error @ w.to(error.dtype) for w in self.weights]


def linear() -> nn.Sequential:
    net = mlp()
    net[1], net[3] = nn.Identity(), nn.Identity()
    return net


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(0.01, 100), sign=st.sampled_from([-1.0, 1.0]))
def test_the_sign_of_an_alignment_is_kept(factor: float, sign: float) -> None:
    net = linear()
    aligned = align(net, rule=Scaled(net, sign * factor), points=["1", "3"], show=None)
    for point in alignment(aligned, X, loss).points.values():
        assert point.cosine == pytest.approx(sign, abs=1e-9)
        assert point.spread == pytest.approx(0.0, abs=1e-6)
        assert point.norm_ratio == pytest.approx(factor, rel=1e-9)
    for angle in feedback_angles(aligned).values():
        assert angle.degrees == pytest.approx(0.0 if sign > 0 else 180.0, abs=1e-2)
        assert angle.norm_ratio == pytest.approx(factor, rel=1e-5)


def test_exact_gradients_are_those_of_the_plain_network_and_leave_it_alone() -> None:
    """Under a rule that teaches otherwise, and whatever gradients stand there."""
    aligned = align(build("mlp:6,5", (4,), 4, 0), rule="dfa", show=None)
    x, y = normal(7, 4, seed=1).float(), labels(7)
    for p in aligned.parameters():
        p.grad = torch.ones_like(p)
    found = exact_gradients(aligned, x, lambda logits: cross_entropy(logits, y))
    assert all(bool((p.grad == 1).all()) for p in aligned.parameters() if p.grad is not None)
    plain = unalign(copy.deepcopy(aligned))
    plain.zero_grad()
    cross_entropy(plain(x), y).backward()
    assert found.keys() == dict(plain.named_parameters()).keys()
    for name, p in plain.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad)
        assert direction(-3 * found[name], p.grad).cosine == pytest.approx(-1)


def test_frozen_layers_have_no_direction() -> None:
    found = alignment(align(mlp(), rule="shallow", show=None), X, loss)
    assert all(math.isnan(point.cosine) and point.records == 0 for point in found.points.values())
    assert found.to_dict()["points"]["1"] == [None, None, 0.0]


def test_feedback_angles_are_those_of_the_matrices() -> None:
    net = mlp()
    aligned = align(net, show=None)
    found = feedback_angles(aligned)
    products = {"1": net[4].weight @ net[2].weight, "3": net[4].weight}
    for name, product in products.items():
        b = feedback(aligned, name).T.flatten()
        cosine = float(torch.cosine_similarity(b, product.detach().flatten(), dim=0))
        assert found[name].degrees == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-4)
    assert feedback_angles(align(build("resmlp:6,6", (5,), 4, 0), show=None, example=X.float())) == {}


def test_diagnosis_changes_nothing() -> None:
    """Weights, buffers, gradients, torch's generator and a seeded device's stream stay where they were."""
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))
    aligned = align(net, backend="simulated-opu", noise=NoiseGenerator.seeded(0, "device"), show=None)
    assert aligned.backend is not None
    positions = [g.position for g in aligned.backend.generators]
    before, torch_state = copy.deepcopy(aligned.state_dict()), torch.get_rng_state()
    alignment(aligned, X.float(), loss)
    estimator(aligned, X.float(), loss, 2)
    cost(aligned)
    assert [g.position for g in aligned.backend.generators] == positions
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), aligned.state_dict().values(), strict=True))
    assert all(p.grad is None for p in aligned.parameters())
    loss(aligned(X.float())).backward()


def test_a_noiseless_rule_has_bias_and_no_variance() -> None:
    found = estimator(align(mlp(), show=None), X, loss, 3)
    assert found.variance == pytest.approx(0.0, abs=1e-20)
    assert found.bias > 0.1
    assert estimator(align(mlp(), rule="bp", show=None), X, loss, 2).bias == pytest.approx(0.0, abs=1e-12)


class Noisy(Scaled):
    """Exact feedback and independent noise of one standard deviation: unbiased, of known variance."""

    def feedback(self, error, points, backend):
        return [
            s + torch.randn(s.shape, generator=self.generator, dtype=s.dtype)
            for s in super().feedback(error, points, backend)
        ]


def test_an_unbiased_estimator_is_found_to_be_one() -> None:
    net, repeats = linear(), 1000
    rule = Noisy(net, 1.0)
    rule.generator = torch.Generator().manual_seed(0)
    aligned = align(net, rule=rule, points=["1", "3"], show=None)
    rule.__class__.__deepcopy__ = lambda self, memo: self  # one stream for the copies
    found = estimator(aligned, X, loss, repeats)
    with torch.no_grad():  # noise n/M at each unit: variance of dW = |h|² / M² summed over units
        h1 = net[0](X)
        variance = (8 * (X.square().sum() + M) + 6 * (h1.square().sum() + M)) / M**2
    plain = linear()
    scale = sum(
        float(g.square().sum()) for g in torch.autograd.grad(loss(plain(X)), list(plain.parameters()))
    )
    assert found.variance == pytest.approx(float(variance) / scale, rel=0.02)
    assert found.bias == pytest.approx(math.sqrt(found.variance / repeats), rel=0.2)


def test_costs_of_the_worked_example() -> None:
    """3072-3x1000-10, counted by hand."""

    def of(rule: str) -> AlignedModule:
        return align(
            build("mlp:1000,1000,1000", (3072,), 10, 0), rule=rule, example=torch.empty(1, 3072), show=None
        )

    macs = 3072 * 1000 + 2 * 1000 * 1000 + 1000 * 10
    bp, dfa, shallow = (cost(of(rule)) for rule in ("bp", "dfa", "shallow"))
    assert (bp.forward, bp.weight_gradient, bp.error, bp.words) == (macs, macs, 2_010_000, 4_020_000)
    assert (dfa.forward, dfa.weight_gradient, dfa.error, dfa.words) == (macs, macs, 30_000, 30_000)
    assert (shallow.weight_gradient, shallow.error, shallow.words) == (10_000, 0, 0)


def test_costs_of_convolutions_and_of_segments() -> None:
    """Two 3x3 convolutions on 8x8 pixels; under cdfa the error passes the upper one and is projected to its top."""

    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.Tanh(),
            nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip

    x = torch.empty(1, 3, 8, 8)
    lower, upper, top = 4 * 64 * 27, 6 * 16 * 36, 960
    assert cost(align(net(), rule="bp", example=x, show=None)).error == upper + top
    assert cost(align(net(), rule="cdfa", example=x, show=None)).error == upper + 10 * 96
    assert cost(align(net(), rule="dfa", example=x, show=None)).error == 10 * (96 + 256)
    assert cost(align(net(), rule="dfa", example=x, show=None)).forward == lower + upper + top


def test_a_weight_used_at_several_times_costs_that_often() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.over, self.out = nn.Linear(3, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 4)
            self.phi = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 6)
            for t in range(x.shape[1]):
                h = self.phi(self.into(x[:, t]) + self.over(h))
            return self.out(h)

    x = torch.empty(1, 5, 3)
    assert cost(align(Recurrent(), rule="bp", example=x, show=None)).error == 4 * 36 + 24
    assert cost(align(Recurrent(), rule="dfa", example=x, show=None)).error == 4 * 6


def test_what_cannot_be_diagnosed_is_said_in_one_line() -> None:
    flat = align(nn.Sequential(nn.Linear(5, 4)).double(), show=None)
    with pytest.raises(UsageError, match="needs an activation module"):
        alignment(flat, X, loss)
    with pytest.raises(UsageError, match="repeats is 1"):
        estimator(flat, X, loss, 1)


# ---- train --diagnose


def run(folder: Path, **settings_of: object) -> dict[str, Any]:
    config = merge({}, {"model": "mlp:16,12", "release": "none", "epochs": 2, **settings_of})
    return train(config, folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_diagnosed_run_is_the_same_run(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    diagnosed = run(tmp_path / "diagnosed", diagnose=True)
    assert diagnosed["test_accuracy"] == plain["test_accuracy"]
    weights = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("plain", "diagnosed")]
    tensors = [load_safetensors(data) for data in weights]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0] if "weight" in name)
    last = rows(tmp_path / "diagnosed")[-1]
    assert list(last["alignment"]) == ["2", "4"]
    assert last["alignment"]["4"][0] > 0.1  # DFA aligns
    assert 0 < last["feedback_angles"]["4"] < 90
    assert last["estimator_variance"] > 0  # of the simulated device
    assert diagnosed["cost_per_record"]["rule"]["error"] == 10 * 28
    assert "alignment" not in rows(tmp_path / "plain")[-1]
    html = single_page(Run.read(tmp_path / "diagnosed"))
    assert "How the rule teaches" in html
    assert "How the rule teaches" not in single_page(Run.read(tmp_path / "plain"))


def test_a_private_run_is_diagnosed_only_where_the_user_insists(tmp_path: Path) -> None:
    private = {"release": "digital", "diagnose": True, "epochs": 1}
    with pytest.raises(UsageError, match="add unsafe_diagnostics"):
        run(tmp_path / "refused", **private)
    assert not (tmp_path / "refused").exists()
    summary = run(tmp_path / "run", **private, unsafe_diagnostics=True)
    assert summary["guarantee"]["kind"] == "none"
    assert list(rows(tmp_path / "run")[-1]["alignment"]) == ["2", "4"]


def test_tensorboard_gets_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, tuple[float, int]] = {}

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written[name] = (value, step)

        def close(self) -> None:
            written["closed"] = (0.0, 0)

    monkeypatch.setattr(TensorBoard, "installed", staticmethod(lambda: True))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    run(tmp_path / "run", diagnose=True)
    last = rows(tmp_path / "run")[-1]
    assert written["alignment cosine/2"] == (last["alignment"]["2"][0], last["step"])
    assert written["estimator/bias"] == (last["estimator_bias"], last["step"])
    assert "closed" in written


def test_the_progress_line_shows_the_alignment(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Watching(SilentProgress):
        def update(self, step: int, fields: Mapping[str, float | str]) -> None:
            seen.append(dict(fields))

    config = merge({}, {"model": "mlp:16,12", "release": "none", "epochs": 1, "diagnose": True})
    train(config, progress=Watching())
    assert len(str(seen[-1]["alignment"]).split()) == 2


def test_angles_of_layerwise_feedback() -> None:
    net = mlp()
    aligned = align(net, rule="fa", show=None)
    found = feedback_angles(aligned)
    assert list(found) == ["2", "4"]
    assert all(45 < angle.degrees < 135 for angle in found.values())
    signs = feedback_angles(align(mlp(), rule="usf", show=None))
    assert all(0 < angle.degrees < 60 for angle in signs.values())  # every sign is right


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_a_bottleneck_lets_only_so_many_units_learn(kept: int) -> None:
    free, narrow = mlp(), mlp()
    handles = mask_gradients(narrow[0], kept)
    for net in (free, narrow):
        loss(align(net, show=None)(X)).backward()
    learning = narrow[0].weight.grad.any(dim=1)
    assert int(learning.sum()) == kept
    torch.testing.assert_close(narrow[0].weight.grad[learning], free[0].weight.grad[learning])
    assert torch.equal(narrow[0].bias.grad != 0, learning)
    torch.testing.assert_close(narrow[2].weight.grad, free[2].weight.grad)
    for handle in handles:
        handle.remove()
    with pytest.raises(UsageError, match="kept is 9"):
        mask_gradients(narrow[0], 9)


def test_transfer_freezes_a_runs_convolutions(tmp_path: Path) -> None:
    cnn = {"model": "cnn:4,6", "epochs": 1, "backend": "digital"}
    run(tmp_path / "base", **cnn, rule="bp")
    run(tmp_path / "top", **cnn, transfer=tmp_path / "base")
    before, after = (
        load_safetensors((tmp_path / name / "checkpoint.safetensors").read_bytes())
        for name in ("base", "top")
    )
    moved = {
        name for name, value in before.items() if ".weight" in name and not torch.equal(value, after[name])
    }
    assert {name.removeprefix("module.module.") for name in moved} == {"9.weight"}
    with pytest.raises(UsageError, match="network with convolutions"):
        run(tmp_path / "mlp", transfer=tmp_path / "base")
    with pytest.raises(UsageError, match="does not serve"):
        run(tmp_path / "none", **cnn, transfer=tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"whose 0\.weight has shape"):
        run(tmp_path / "other", **{**cnn, "model": "cnn:8,6"}, transfer=tmp_path / "base")
    with pytest.raises(UsageError, match=r"transfer is .* but release is digital"):
        run(tmp_path / "private", **cnn, release="digital", transfer=tmp_path / "base")
