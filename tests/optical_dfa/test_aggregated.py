"""Release aggregate end to end: clip the joint stack, noise the sum, project it (THEORY T5)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import AlignedModule, align
from optical_dfa.attacks.worlds import Worlds, claimed
from optical_dfa.feedback.points import ForwardPass, Tape
from optical_dfa.feedback.rules.gated import GatedFeedbackAlignment
from privacy import PrivacyEngine
from privacy.auditing.bounds import gaussian_family_bound
from privacy.notions import Kind
from privacy.releases import terms

N, CLASSES = 12, 3
NEGLIGIBLE = 1e-9


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(N, 5, generator=source), torch.randint(0, CLASSES, (N,), generator=source)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))


UNCLIPPED = 15.0  # above every record's norm here, and not so far that the grid is coarse


class Run:
    """One network under release aggregate whose batch is the whole data set."""

    def __init__(self, gates: int = 1, noise_multiplier: float = NEGLIGIBLE, **settings: Any) -> None:
        self.x, self.y = settings.pop("data", data())
        net = settings.pop("net", None) or mlp()
        options = {
            "rule": "gated-dfa", "rule_options": {"gates": gates, "gate_seed": 2}, "loss_reduction": "sum", "seed": 4,
        }  # fmt: skip
        for name in ("rule", "rule_options", "backend", "backend_options", "example"):
            if name in settings:
                options[name] = settings.pop(name)
        self.aligned: AlignedModule = align(
            net,
            noise=NoiseGenerator.seeded(1, "device"),
            show=None,
            **options,  # type: ignore[arg-type]
        )
        self.engine = PrivacyEngine(reproducible_seed=settings.pop("seed", 0))
        self.module, self.optimizer, self.loader = self.engine.make_private(
            module=self.aligned,
            optimizer=torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.0),
            data_loader=DataLoader(TensorDataset(self.x, self.y), batch_size=len(self.x)),
            noise_multiplier=noise_multiplier,
            **{"max_grad_norm": 0.7, "release": "aggregate", **settings},
        )

    def step(self, passes: int = 1) -> dict[str, Tensor]:
        """The gradient of one step, by parameter."""
        for x, y in self.loader:
            self.optimizer.zero_grad()
            for _ in range(passes):
                nn.functional.cross_entropy(self.module(x), y, reduction="sum").backward()
            self.optimizer.step()
            named = self.aligned.module.named_parameters()
            found = {name: p.grad.clone() for name, p in named if p.grad is not None}
            if found:  # a part of a step releases nothing
                return found
        raise AssertionError("the loader is empty")


def stacks(run: Run) -> list[dict[str, Tensor]]:
    """Each record's stack (A of the hidden layers, the output layer's gradient), written out in float64."""
    net, rule = run.aligned.module.double(), run.aligned.rule
    assert isinstance(rule, GatedFeedbackAlignment)
    found = []
    with torch.no_grad():
        for x, y in zip(run.x.double(), run.y, strict=True):
            h1 = torch.tanh(net[0](x))  # type: ignore[operator, index]
            h2 = torch.relu(net[2](h1))  # type: ignore[operator, index]
            e = torch.softmax(net[4](h2), -1) - nn.functional.one_hot(y, CLASSES)  # type: ignore[operator, index]
            gates = rule.context(ForwardPass(net, Tape(), [x.float().unsqueeze(0)], {}, (), e.unsqueeze(0)))
            lifted = e if gates is None else torch.kron(gates[0].double(), e)
            found.append(
                {
                    "0.weight": torch.outer(lifted, x), "0.bias": lifted,
                    "2.weight": torch.outer(lifted, h1), "2.bias": lifted,
                    "4.weight": torch.outer(e, h2), "4.bias": e,
                }
            )  # fmt: skip
    net.float()
    return found


def norm(stack: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((part**2).sum()) for part in stack.values()))


def projected(run: Run, total: dict[str, Tensor], gates: int) -> dict[str, Tensor]:
    """The gradient: each hidden block times B_l, by the matrix itself."""
    assert run.aligned.backend is not None
    matrix = run.aligned.backend.matrix()
    assert matrix is not None
    gradient = dict(total)
    for layer, start, width in (("0", 0, 6), ("2", 6, 8)):
        b = matrix[start : start + width].double() / math.sqrt(width * (gates + 1) / 2)
        for name in (f"{layer}.weight", f"{layer}.bias"):
            gradient[name] = b @ total[name]
    return gradient


def near(found: Tensor, expected: Tensor, share: float = 0.06) -> None:
    """But for what rounding to whole numbers of the grid does, and for the room that clipped records leave for it."""
    assert float((found.double() - expected.double()).norm()) < share * float(expected.norm()) + 5e-3


@pytest.mark.parametrize("gates", [1, 4])
@pytest.mark.parametrize("clip", [0.05, 0.9, UNCLIPPED])
def test_the_release_is_its_equation(gates: int, clip: float) -> None:
    """Noise is negligible, so what is released is B Σ_i clip(A_i) / N, with one clip for the joint stack."""
    run = Run(gates, max_grad_norm=clip)
    each = stacks(run)
    norms = [norm(stack) for stack in each]
    assert min(norms) > 0.05
    total = {
        name: sum(min(1.0, clip / size) * stack[name] for size, stack in zip(norms, each, strict=True)) / N  # type: ignore[misc]
        for name in each[0]
    }
    expected = projected(run, total, gates)  # type: ignore[arg-type]
    for name, found in run.step().items():
        near(found, expected[name])


def test_without_clipping_it_is_the_rules_own_gradient() -> None:
    run = Run(gates=4, max_grad_norm=UNCLIPPED)
    found = run.step()
    plain = align(mlp(), rule="gated-dfa", rule_options={"gates": 4, "gate_seed": 2}, seed=4, show=None)
    nn.functional.cross_entropy(plain(run.x), run.y).backward()
    for name, p in plain.module.named_parameters():
        assert p.grad is not None
        near(found[name], p.grad)


def test_parts_of_a_step_are_one_step() -> None:
    whole, parts = Run(gates=3), Run(gates=3, max_physical_batch_size=5)
    expected = whole.step()
    for name, found in parts.step().items():
        near(found, expected[name])
    assert parts.engine.ledger.count() == 1  # type: ignore[union-attr]


def test_the_rule_serves_the_other_releases_too() -> None:
    """Release digital clips the projected contributions themselves (T3): another clip, the same direction unclipped."""
    found, other = (
        Run(gates=3, max_grad_norm=UNCLIPPED).step(),
        Run(gates=3, max_grad_norm=UNCLIPPED, release="digital").step(),
    )
    for name in found:
        near(found[name], other[name], 0.15)  # a coarser grid for the larger of two stacks


@pytest.mark.parametrize("backend", ["simulated-opu", "lightonml-simulated"])
def test_every_device_projects_the_noised_sum(backend: str) -> None:
    """Through frames and a camera it is the digital projection of the same sum, to the device's precision."""
    run = Run(gates=2, backend=backend, max_grad_norm=UNCLIPPED)
    each = stacks(run)
    total = {name: sum(stack[name] for stack in each) / N for name in each[0]}  # type: ignore[misc]
    found, expected = run.step(), projected(run, total, 2)  # type: ignore[arg-type]
    for name in ("0.weight", "2.weight"):
        cosine = torch.cosine_similarity(found[name].double().flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.95
    for name in ("4.weight", "4.bias"):  # the output layer goes through no device
        near(found[name], expected[name])


def test_the_noise_is_that_of_the_stack_then_projected() -> None:
    """B^+ of the hidden gradients is white, of the stack's own standard deviation. False alarm 1e-6 a test."""
    empty = (torch.zeros(N, 5), torch.zeros(N, dtype=torch.int64))
    run = Run(gates=2, noise_multiplier=1.7, max_grad_norm=0.5, data=empty)
    quiet = Run(gates=2, max_grad_norm=0.5, data=empty).step()
    assert run.aligned.backend is not None
    matrix = run.aligned.backend.matrix()
    assert matrix is not None
    header = run.engine.ledger.header()  # type: ignore[union-attr]
    std = 1.7 * header["sensitivity"] / N
    assert header["dimension"] == 2 * CLASSES * (5 + 1 + 6 + 1) + CLASSES * 9
    inverse = torch.linalg.pinv(matrix[:6].double() / math.sqrt(6 * 1.5))
    hidden, output = [], []
    for _ in range(200):
        found = run.step()
        hidden.append((inverse @ (found["0.weight"] - quiet["0.weight"]).double()).flatten())
        output.append((found["4.weight"] - quiet["4.weight"]).double().flatten())
    for draws in (hidden, output):
        values = (torch.cat(draws) / std).numpy()
        assert stats.kstest(values, "norm").pvalue > 1e-6
        square = float((values**2).sum())
        assert stats.chi2.ppf(5e-7, values.size) < square < stats.chi2.ppf(1 - 5e-7, values.size)


def test_a_record_that_is_not_finite_contributes_nothing() -> None:
    x, y = data()
    x[3, 1] = math.nan
    run = Run(gates=3, max_grad_norm=0.4, data=(x, y))
    kept = [i for i in range(N) if i != 3]
    without = Run(gates=3, max_grad_norm=0.4, data=(x[kept], y[kept]))
    for name, found in run.step().items():
        near(found * N, without.step()[name] * (N - 1))


def test_no_record_goes_through_the_device_and_the_number_of_projections_is_public() -> None:
    run = Run(gates=2)
    projections = []
    project = run.aligned.backend.project  # type: ignore[union-attr]
    run.aligned.backend.project = lambda e: (projections.append(len(e)), project(e))[1]  # type: ignore
    run.step()
    assert projections == [6 + 7] == [run.aligned.projections(10**6)]
    assert align(mlp(), show=None).projections(7) == 7


def test_its_rows_are_those_of_the_gaussian_mechanism() -> None:
    run = Run(noise_multiplier=2.0)
    run.step()
    (event,) = run.engine.ledger.releases()  # type: ignore[union-attr]
    assert (event.mechanism, event.source, event.noise_multiplier) == ("gaussian", "aggregate", 2.0)
    assert run.engine.ledger.header()["adjacency"] == "add-or-remove-one"  # type: ignore[union-attr]
    assert terms("aggregate").kind is Kind.RECORD_DP


def test_on_worst_case_neighbours_an_attack_comes_close_to_the_claim_and_not_above() -> None:
    """The adversary undoes the projection: it knows B. Confidence 95 %, at fixed seeds."""
    worlds = Worlds(release="aggregate", rule="gated-dfa")
    sigma = worlds.calibrated(4.0, 1e-5)
    sums: list[np.ndarray] = []
    for second in (False, True):
        released, engine = worlds.make(second, sigma, 50 + second)
        sums.append(released.take(500)[:, 0])
    quiet = [worlds.make(second, NEGLIGIBLE, 60 + second, 1.0)[0].take(1)[0, 0] for second in (False, True)]
    aligned = align(worlds.net(), rule="gated-dfa", seed=3, show=None)
    matrix = aligned.backend.matrix()  # type: ignore[union-attr]
    assert matrix is not None
    inverse = np.linalg.inv(matrix.double().numpy() / math.sqrt(2))  # hidden layer: 2 units, 2 classes
    stack = [np.concatenate([rows[..., :2] @ inverse.T, rows[..., 2:]], -1) for rows in (*sums, *quiet)]
    direction = stack[3] - stack[2]
    assert np.linalg.norm(direction) == pytest.approx(worlds.max_grad_norm, rel=0.04)
    without, with_record = (rows @ direction for rows in stack[:2])
    middle = float((stack[2] + stack[3]) @ direction) / 2
    bound = gaussian_family_bound(without, with_record, threshold=middle, delta=1e-5, confidence=0.95)
    shift = float((with_record.mean() - without.mean()) / without.std())
    claim = claimed(engine, 1, 1e-5)
    assert claim == pytest.approx(4.0, rel=0.01)
    assert 0.6 * claim < bound.epsilon <= claim
    # The scores are the whole of the Gaussian mechanism's: one record moves them by 1 / sigma.
    assert shift == pytest.approx(1 / sigma, abs=5 * math.sqrt(2 / 500))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.phi = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(self.first(x))
        h = self.phi(self.again(h))
        return self.last(self.phi(self.again(h)))


def normed() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES)
    )


def convolutional() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "dfa", "rule_options": {}}, "rule dfa does not project a sum.*needs rule gated-dfa"),
        ({"rule": "bp", "rule_options": {}}, "rule bp does not project"),
        ({"net": Twice()}, "again.weight is used several times"),
        ({"net": normed()}, "1.weight is taught through 3"),
        (
            {
                "net": convolutional(),
                "data": (torch.randn(N, 1, 4, 4), data()[1]),
                "example": torch.zeros(1, 1, 4, 4),
            },
            "hidden layer 0 is a Conv2d",
        ),
    ],
)
def test_what_it_does_not_cover_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Run(**settings)
    assert "\n" not in str(error.value)


def test_two_passes_over_a_batch_are_refused_before_anything_is_released() -> None:
    run = Run()
    with pytest.raises(UsageError, match="one forward and one backward pass"):
        run.step(passes=2)
    assert run.engine.ledger.count() == 0  # type: ignore[union-attr]


def test_sequences_are_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    x = torch.randn(N, 4, 5)
    with pytest.raises(UsageError, match="flat records"):
        Run(net=net, data=(x, data()[1]), example=x[:1])
