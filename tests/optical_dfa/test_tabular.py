"""Embeddings and a perceptron on tables: cuts, gradients against the equations, private sums, training by settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.config import TrainConfig, merge
from optical_dfa.data import load
from optical_dfa.feedback.cuts import OUTPUT
from optical_dfa.networks.building import build
from optical_dfa.training.trainer import train
from privacy.releases.clipped import clip_factors

CARDINALITIES = (3, 0, 7, 0, 1)
MACRO, MICRO = ["2", "4"], None
TABLES = [f"0.tables.{k}" for k in range(3)]
M = 9


def network() -> nn.Sequential:
    net = build("embed:4,6,5", (5,), 3, seed=2, cardinalities=CARDINALITIES).double()
    assert isinstance(net, nn.Sequential)
    return net


def table(records: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [
        torch.randint(0, n, (records,), generator=generator).double()
        if n
        else torch.randn(records, generator=generator, dtype=torch.float64)
        for n in CARDINALITIES
    ]
    return torch.stack(columns, 1)


def labels(records: int) -> Tensor:
    return torch.randint(0, 3, (records,), generator=torch.Generator().manual_seed(5))


def aligned_with(points: list[str] | None, **more: Any) -> AlignedModule:
    return align(network(), points=points, example=table(1), show=None, **more)


def feedback(aligned: AlignedModule, name: str) -> Tensor:
    """B_l, entries of standard deviation 1/sqrt(n_l)."""
    point = next(p for p in aligned.points if p.name == name)
    matrix = aligned.backend.matrix() if aligned.backend is not None else None
    assert matrix is not None
    return matrix[point.start : point.start + point.width].double() / math.sqrt(point.width)


def test_the_forward_pass_is_rows_of_tables_beside_the_numeric_columns() -> None:
    net, x = network(), table(M)
    rows = []
    for record in x.tolist():
        looked_up = [net[0].tables[k].weight[int(record[j])] for k, j in enumerate((0, 2, 4))]
        rows.append(torch.cat([*looked_up, torch.tensor([record[1], record[3]], dtype=torch.float64)]))
    torch.testing.assert_close(net[0](x), torch.stack(rows))


def test_every_default_point_is_cut_and_macro_points_leave_the_tables_to_the_first_layer() -> None:
    micro, macro = ({cut.root: cut.parameters for cut in aligned_with(p).cuts} for p in (MICRO, MACRO))
    output = ("5.weight", "5.bias")
    upper = ("3.weight", "3.bias")
    assert micro == {
        OUTPUT: output,
        **{name: (f"{name}.weight",) for name in TABLES},
        "2": ("1.weight", "1.bias"),
        "4": upper,
    }
    assert macro == {
        OUTPUT: output,
        "2": (*(f"{name}.weight" for name in TABLES), "1.weight", "1.bias"),
        "4": upper,
    }


@pytest.mark.parametrize("points", [MICRO, MACRO], ids=["micro", "macro"])
@pytest.mark.parametrize("rule", ["dfa", "shallow", "bp"])
def test_gradients_are_the_equations(points: list[str] | None, rule: str) -> None:
    aligned = aligned_with(points, rule=rule)
    net, x, y = aligned.module, table(M, seed=3), labels(M)
    assert isinstance(net, nn.Sequential)
    cross_entropy(aligned(x), y).backward()
    with torch.no_grad():
        h0 = net[0](x)
        h1 = torch.tanh(net[1](h0))
        h2 = torch.tanh(net[3](h1))
        e = (torch.softmax(net[5](h2), 1) - nn.functional.one_hot(y, 3)) / M
        if rule == "dfa":
            d2 = (e @ feedback(aligned, "4").T) * (1 - h2**2)
            d1 = (e @ feedback(aligned, "2").T) * (1 - h1**2)
        else:
            d2 = (e @ net[5].weight) * (1 - h2**2)
            d1 = (d2 @ net[3].weight) * (1 - h1**2)
        below = d1 @ net[1].weight  # dL/dh0 through the first layer
        expected = {
            "1.weight": d1.T @ h0, "1.bias": d1.sum(0), "3.weight": d2.T @ h1, "3.bias": d2.sum(0),
            "5.weight": e.T @ h2, "5.bias": e.sum(0),
        }  # fmt: skip
        for k, (name, column) in enumerate(zip(TABLES, (0, 2, 4), strict=True)):
            direct = rule == "dfa" and points is MICRO
            g = e @ feedback(aligned, name).T if direct else below[:, 4 * k : 4 * k + 4]
            chosen = nn.functional.one_hot(x[:, column].long(), CARDINALITIES[column]).double()
            expected[f"{name}.weight"] = chosen.T @ g
    for name, p in net.named_parameters():
        if rule == "shallow" and not name.startswith("5"):
            assert p.grad is None or not p.grad.any(), name
        else:
            assert p.grad is not None, name
            torch.testing.assert_close(p.grad, expected[name], rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("points", [MICRO, MACRO], ids=["micro", "macro"])
@pytest.mark.parametrize("rule", ["dfa", "bp"])
def test_private_sums_are_those_of_each_record_alone(points: list[str] | None, rule: str) -> None:
    aligned = aligned_with(points, rule=rule)
    x, y = table(M, seed=4), labels(M)
    names, stacks = list(aligned.trained_parameters()), []
    parameters = dict(aligned.module.named_parameters())
    for i in range(M):
        aligned.zero_grad()
        cross_entropy(aligned(x[i : i + 1]), y[i : i + 1]).backward()
        stacks.append(torch.cat([parameters[name].grad.flatten().clone() for name in names]))
    each = torch.stack(stacks)
    clip = float(each.norm(dim=1).median())
    aligned.zero_grad()
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    assert list(capture.parameters) == names
    cross_entropy(aligned(x), y).backward()
    norms = capture.norms()
    torch.testing.assert_close(norms, each.norm(dim=1), rtol=1e-9, atol=0.0)
    total = torch.zeros(capture.dimension, dtype=torch.float64)
    capture.add_clipped(clip_factors(norms, clip), total)
    wanted = (each * (clip / each.norm(dim=1, keepdim=True)).clamp_max(1.0)).sum(0)
    torch.testing.assert_close(total, wanted, rtol=0.0, atol=1e-10)


def test_a_category_that_no_record_has_is_not_moved() -> None:
    aligned = aligned_with(MICRO)
    x = table(M)
    x[:, 2] = 4.0
    cross_entropy(aligned(x), labels(M)).backward()
    grad = dict(aligned.module.named_parameters())["0.tables.1.weight"].grad
    assert grad is not None
    assert grad.any(1).tolist() == [k == 4 for k in range(7)]


# ---- by settings


@pytest.fixture
def clicks(tmp_path: Path) -> str:
    """600 + 300 records of two classes; the label is a function of one category, but for a tenth of them."""
    rng = np.random.default_rng(3)
    x = np.column_stack([rng.integers(0, 8, 900), rng.normal(size=900), rng.integers(0, 4, 900)])
    y = (rng.permutation(8)[x[:, 0].astype(int)] < 4) ^ (rng.random(900) < 0.1)
    path = tmp_path / "clicks.npz"
    parts = {"x_train": x[:600], "x_test": x[600:], "y_train": y[:600] + 0, "y_test": y[600:] + 0}
    np.savez(path, cardinalities=[8, 0, 4], **parts)
    return str(path)


def settings(dataset: str, **more: Any) -> TrainConfig:
    common = {"model": "embed:4,16", "backend": "digital", "optimizer": "adam", "lr": 0.01, "epochs": 8}
    return merge({**common, "batch_size": 50}, {"dataset": dataset, **more})


@pytest.mark.parametrize("points", [MICRO, ["2"]], ids=["micro", "macro"])
def test_it_trains_and_the_summary_has_the_area_under_the_curve(
    clicks: str, points: list[str] | None
) -> None:
    summary = train(settings(clicks, release="none", points=points))
    assert summary["test_accuracy"] > 0.85
    assert 0.85 < summary["test_auc"] <= 1.0
    shallow = train(settings(clicks, release="none", rule="shallow", epochs=1))
    assert shallow["test_auc"] < summary["test_auc"]


def test_the_area_is_scikit_learns_of_the_kept_weights(clicks: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    summary = train(settings(clicks, release="none", epochs=1), tmp_path / "run")
    data = load(clicks)
    net = build("embed:4,16", (3,), 2, 0, cardinalities=data.cardinalities)
    kept = load_file(tmp_path / "run" / "checkpoint.safetensors")
    net.load_state_dict({name: kept[f"module.module.{name}"] for name in net.state_dict()})
    score = torch.softmax(net(data.x_test), 1)[:, 1].detach().numpy()
    assert summary["test_auc"] == pytest.approx(roc_auc_score(data.y_test.numpy(), score), abs=1e-6)


def test_a_private_run_of_tables(clicks: str, tmp_path: Path) -> None:
    from privacy.auditing.audit import audit

    out = tmp_path / "run"
    summary = train(settings(clicks, release="digital", epsilon=8.0, epochs=4, points=["2"]), out)
    assert summary["guarantee"]["kind"] == "record-dp"
    assert summary["guarantee"]["epsilon"] <= 8.0
    assert audit(out).consistent  # the area is a figure that may be shown


def test_more_classes_have_no_such_area() -> None:
    config = TrainConfig(dataset="digits", backend="digital", release="none", model="mlp:4", epochs=1)
    assert train(config)["test_auc"] is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"points": ["2", "6"]}, ["no module '6'", "0.tables.0"]),
        ({"points": []}, ["points", "list of modules' names"]),
        ({"points": "2"}, ["points", "list of modules' names", "macro"]),
        ({"model": "embed:4"}, ["one width, 4", "embed:8,128,128"]),
        ({"dataset": "digits"}, ["no", "categorical columns", "mlp"]),
        ({"features": "pca:2"}, ["categorical columns", "mlp"]),
    ],
)
def test_what_cannot_be_is_one_line(clicks: str, more: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        train(settings(**{"dataset": clicks, "release": "none", **more}))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
