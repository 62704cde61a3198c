"""Release label (THEORY T7) through the production path: the predicted μ is the real one, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.aligning import align
from optical_dfa.feedback.aligned import AlignedModule
from privacy.accounting.gdp import gaussian_epsilon
from privacy.contributions.separated import SeparatedLayer
from privacy.engine import PrivacyEngine
from privacy.errors import BudgetExhaustedError
from privacy.guarantee import Kind
from privacy.releases.label import COVERAGE, LabelNoise, LabelRelease, make, shifts
from privacy.releases.source import Parts
from privacy.sampling import PublicLoader

Loss = Callable[[Tensor, Tensor], Tensor]
INPUTS, CLASSES = 5, 4
cross_entropy: Loss = nn.functional.cross_entropy


def network(seed: int = 0, hidden: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))


def records(m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(m, INPUTS, generator=draw), torch.randint(0, CLASSES, (m,), generator=draw)


class Step:
    """One step of a network that never learns, noised at will."""

    def __init__(self, m: int, seed: int = 0, *, parts: int = 1, **options: Any) -> None:
        self.module = align(network(seed), example=torch.zeros(1, INPUTS), seed=seed, show=None)
        made = make(
            Parts(
                device=None,
                generator=lambda name: NoiseGenerator.seeded(seed, name),
                start_capture=self.module.start_capture,
                expected_batch_size=m,
                steps_an_epoch=1,
                options=options,
            )
        )
        self.release = made
        self.x, self.y = records(m, seed)
        self.parts = parts
        self.asked: list[float] = []
        self.weights = torch.ones(m)

    def silent(self) -> None:
        """No noise from here on; the scales that were asked for are kept."""
        self.release.source.add_rows = lambda rows, std: self.asked.append(std)  # type: ignore[method-assign]

    def absorb(self, y: Tensor | None = None, loss: Loss = cross_entropy) -> list[SeparatedLayer]:
        """Teach the batch with these labels."""
        capture = self.release.contributions
        for number, (x, labels) in enumerate(
            zip(self.x.chunk(self.parts), (self.y if y is None else y).chunk(self.parts), strict=True)
        ):
            capture.expected_records = lambda x=x: len(x)  # type: ignore[misc]
            torch.autograd.backward(loss(self.module(x), labels))
            self.release.absorb(first=number == 0)
        return self.release._batches[0].layers

    def update(self, y: Tensor | None = None, noise_multiplier: float = 1.0) -> npt.NDArray[np.float64]:
        self.absorb(y)
        self.release.add_noise(noise_multiplier)
        return self.release.release().double().numpy()


def predicted(layers: list[SeparatedLayer], matrix: Tensor, scales: list[float]) -> npt.NDArray[np.float64]:
    """M_i for every record and pair of labels, from numpy's pseudo-inverse, shape (m, pairs)."""
    total = np.zeros((len(layers[0].inputs), math.comb(CLASSES, 2)))
    for layer, scale, b in zip(layers, scales, (matrix.numpy(), np.eye(CLASSES)), strict=True):
        h, gate = layer.inputs.double().numpy(), layer.gate.double().numpy()
        for k in range(gate.shape[1]):
            rows = gate[:, k : k + 1] * h
            tau = np.einsum("md,de,me->m", rows, np.linalg.pinv(rows.T @ rows), rows)
            for pair, (first, second) in enumerate(combinations(range(CLASSES), 2)):
                total[:, pair] += tau * (b[k, first] - b[k, second]) ** 2 / scale**2
    return np.sqrt(total)


def feedback(step: Step) -> Tensor:
    matrices = step.release.contributions.matrices
    assert matrices is not None
    return matrices["1"]


@given(seed=st.integers(0, 10**6), m=st.integers(9, 40))
@settings(max_examples=20, deadline=None)
def test_no_records_label_costs_more_than_the_ledger_says_and_some_costs_just_that(seed: int, m: int) -> None:
    step = Step(m, seed)
    step.silent()
    layers = step.absorb()
    step.release.add_noise(1.0)
    _, weights = step.release._public_scales(
        layers, [feedback(step), torch.eye(CLASSES, dtype=torch.float64)]
    )
    costs = predicted(layers, feedback(step), step.asked).max(1)
    spent = costs * weights.numpy()
    assert spent.max() <= 1 + 1e-6
    assert spent.max() >= 1 - 1e-6
    assert (costs <= 1 + 1e-6).mean() >= COVERAGE


@cache
def absorbed() -> tuple[Step, list[SeparatedLayer]]:
    step = Step(12, 1)
    return step, step.absorb()


@given(st.floats(-320, 140), st.floats(-30, 5), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_label_costs_more_at_any_size_of_the_feedback(exponent: float, spread: float, seed: int) -> None:
    """Squares of a feedback matrix that underflow: the cost, in extended precision, stays what the ledger says."""
    rows = 10.0 ** (
        spread * torch.rand(6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    check_costs(rows * 10.0**exponent)


@pytest.mark.parametrize("exponent", [-161.33, -160.67, -160.33, -160.0, -155.0, -140.0])
def test_no_label_costs_more_where_squares_underflow(exponent: float) -> None:
    check_costs(torch.full((6, 1), 10.0**exponent, dtype=torch.float64))


def check_costs(sizes: Tensor) -> None:
    """Of every record and pair of labels, for the feedback matrix times this, in extended precision."""
    step, layers = absorbed()
    b = feedback(step) * sizes
    scales, weights = step.release._public_scales(layers, [b, torch.eye(CLASSES, dtype=torch.float64)])
    assert min(scales) > 1e-140  # far above where normal numbers end
    costs = np.zeros((12, math.comb(CLASSES, 2)), dtype=np.longdouble)
    for layer, scale, matrix in zip(
        layers, scales, (b, torch.eye(CLASSES, dtype=torch.float64)), strict=True
    ):
        exact = matrix.numpy().astype(np.longdouble) / np.longdouble(scale)
        for number, (first, second) in enumerate(combinations(range(CLASSES), 2)):
            shift = (exact[:, first] - exact[:, second]) ** 2
            costs[:, number] += step.release._leverages(layer).numpy() @ shift
    assert float((np.sqrt(costs).max(1) * weights.numpy()).max()) <= 1


@pytest.mark.parametrize("what", ["inputs", "gate"])
def test_public_factors_have_no_subnormals(what: str) -> None:
    """A thread that flushes them would see another leverage than the one that sums."""
    step = Step(12)
    if what == "inputs":
        step.x[3] = 1e-40
    else:
        step.x[3] = 20.0  # 1 - tanh(a)²
    factors = [getattr(layer, what) for layer in step.absorb()]
    assert all(bool(((x == 0) | (x.abs() >= torch.finfo(x.dtype).tiny)).all()) for x in factors)


def test_what_is_released_is_the_weighted_sum_of_the_equations() -> None:
    step = Step(30)
    step.silent()
    layers = step.absorb()
    b = feedback(step)
    with torch.no_grad():
        logits = step.module(step.x)
    errors = (torch.softmax(logits, 1) - nn.functional.one_hot(step.y, CLASSES)).double()
    _, weights = step.release._public_scales(layers, [b, torch.eye(CLASSES, dtype=torch.float64)])
    step.release.add_noise(1.0)
    found = step.release.release().double()
    expected = []
    for layer, matrix in zip(layers, (b, torch.eye(CLASSES, dtype=torch.float64)), strict=True):
        rows = layer.gate.double() * (weights.unsqueeze(1) * errors @ matrix.T)
        update = rows.T @ layer.inputs.double() / 30
        expected += [update[:, :-1].flatten(), update[:, -1]]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-7)


def test_predicted_mu_equals_simulated_mu() -> None:
    """The best test of one label against another on the released update itself, 2000 releases.

    The shift is taken from two releases without noise; the noise's spread along the best direction is estimated. Its
    relative error is 1/sqrt(2·2000) = 1.6 %, so 8 % is 5 standard deviations: false alarms below 1e-6.
    """
    step, nu = Step(14, seed=3), 1.6
    layers = step.absorb()
    matrices = [feedback(step), torch.eye(CLASSES, dtype=torch.float64)]
    scales, weights = step.release._public_scales(layers, matrices)
    costs = predicted(layers, matrices[0], [nu * scale for scale in scales]) * weights.numpy()[:, None]
    record, pair = np.unravel_index(costs.argmax(), costs.shape)
    first, second = list(combinations(range(CLASSES), 2))[pair]
    assert costs[record, pair] == pytest.approx(1 / nu, rel=1e-6)

    quiet = Step(14, seed=3)
    quiet.silent()
    worlds = []
    for label in (first, second):
        labels = quiet.y.clone()
        labels[record] = label
        worlds.append(quiet.update(labels, nu))
    shift = worlds[1] - worlds[0]
    # The noise of row k is N(0, (ν S)² H_k^T H_k) / m²: the best direction is its inverse times the shift.
    direction, start = [], 0
    for layer, scale in zip(layers, scales, strict=True):
        h, gate = layer.inputs.double().numpy(), layer.gate.double().numpy()
        n, d = gate.shape[1], h.shape[1] - 1
        weight, bias = shift[start : start + n * d].reshape(n, d), shift[start + n * d : start + n * (d + 1)]
        rows = []
        for k in range(n):
            gated = gate[:, k : k + 1] * h
            rows.append(np.linalg.pinv(gated.T @ gated) @ np.append(weight[k], bias[k]) / (nu * scale) ** 2)
        both = np.array(rows)
        direction += [both[:, :-1].ravel(), both[:, -1]]
        start += n * (d + 1)
    best = np.concatenate(direction)
    kept = list(step.release._batches)
    step.release._public_scales = lambda *_: (scales, weights)  # type: ignore[method-assign]  # the same every time
    noise = []
    for _ in range(2000):
        step.release._batches = list(kept)
        step.release.add_noise(nu)
        noise.append(best @ step.release.release().double().numpy())
    assert best @ shift / np.std(noise) == pytest.approx(1 / nu, rel=0.08)


def test_without_leverage_every_record_pays_the_whole_shift() -> None:
    step = Step(30, leverage=False)
    step.silent()
    step.update()
    b = feedback(step)
    hidden, output = (float(shifts(m).sum(1).max()) for m in (b, torch.eye(CLASSES, dtype=torch.float64)))
    joint = shifts(b).sum(1) / step.asked[0] ** 2 + 2 / step.asked[1] ** 2
    assert output == 2
    assert float(joint.max()) == pytest.approx(1)
    assert step.asked[0] ** 2 / step.asked[1] ** 2 == pytest.approx(hidden / output)


def test_leverage_lowers_the_noise_by_the_batch() -> None:
    wide, alone = Step(400), Step(400, leverage=False)
    for step in (wide, alone):
        step.silent()
        step.update()
    assert all(a < 0.3 * b for a, b in zip(wide.asked, alone.asked, strict=True))


def test_a_step_in_parts_is_the_step() -> None:
    whole, parts = Step(30), Step(30, parts=3)
    for step in (whole, parts):
        step.silent()
    np.testing.assert_allclose(parts.update(), whole.update(), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(parts.asked, whole.asked, rtol=1e-5)


def test_the_public_scales_do_not_depend_on_labels() -> None:
    step = Step(30)
    step.silent()
    step.update()
    step.update((step.y + 1) % CLASSES)
    assert step.asked[:2] == step.asked[2:]


def test_rows_have_independent_noise_of_the_scale() -> None:
    """4000 normals: their deviation errs by 1.1 %, a correlation by 1.6 %; 6 % and 8 % are five of these."""
    step = Step(30)
    rows = torch.zeros(2000, 2, dtype=torch.float64)
    step.release.source.add_rows(rows, 3.0)
    assert float(rows.std()) == pytest.approx(3.0, rel=0.06)
    assert abs(float(torch.corrcoef(rows.T)[0, 1])) < 0.08 * math.sqrt(2)


def test_an_empty_batch_releases_nothing_at_all() -> None:
    step = Step(30)
    step.release.contributions.expected_records = lambda: 0
    step.release.absorb(first=True)
    step.release.add_noise(1.0)
    assert step.release.release().eq(0).all()


def test_nothing_is_released_without_noise() -> None:
    step = Step(30)
    with pytest.raises(UsageError, match="without noise"):
        step.release.release()
    step.update()
    with pytest.raises(UsageError, match="without noise"):
        step.release.release()
    step.absorb()
    step.release.discard()
    with pytest.raises(UsageError, match="without noise"):
        step.release.release()


# ---- conditions dropped


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z, y, label_smoothing=0.1)


def weighted(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(
        z, y, weight=torch.tensor([1.0, 2.0, 1.0, 1.0]), reduction="sum"
    ) / len(y)


def squares(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(z, nn.functional.one_hot(y, CLASSES).float())


def summed(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z, y, reduction="sum")


def rescaled(z: Tensor, y: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(z, y, reduction="none")
    return (losses * losses.detach()).mean()


@pytest.mark.parametrize(
    "loss", [smoothed, weighted, squares, summed, rescaled], ids=lambda loss: loss.__name__
)
def test_b_other_losses_are_refused(loss: Loss) -> None:
    with pytest.raises(UsageError, match="plain cross-entropy"):
        Step(30).absorb(loss=loss)


def made(module: AlignedModule) -> LabelRelease:
    return make(Parts(None, lambda name: NoiseGenerator.seeded(0, name), module.start_capture))


def test_a_an_output_layer_without_noise_is_refused() -> None:
    net = network()
    assert isinstance(net, nn.Sequential)
    net[2].requires_grad_(False)
    module = align(net, example=torch.zeros(1, INPUTS), show=None)
    release = made(module)
    x, y = records(9)
    release.contributions.expected_records = lambda: 9
    torch.autograd.backward(cross_entropy(module(x), y))
    with pytest.raises(UsageError, match="output layer is not trained"):
        release.absorb(first=True)


@pytest.mark.parametrize(
    "options", [{"rule": "bp"}, {"backend": "simulated-opu"}], ids=["bp", "device-with-noise"]
)
def test_g_i_other_rules_and_noisy_devices_are_refused(options: dict[str, Any]) -> None:
    module = align(network(), example=torch.zeros(1, INPUTS), show=None, **options)
    with pytest.raises(UsageError, match="--rule dfa with --backend digital"):
        made(module)


def test_g_a_signal_that_is_not_the_projection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(30)
    teach = type(step.module.rule).feedback

    def other(self: Any, error: Tensor, *others: Any) -> list[Tensor | None]:
        return [None if s is None else s + 0.1 * error[:, :1].sign() for s in teach(self, error, *others)]

    monkeypatch.setattr(type(step.module.rule), "feedback", other)
    step.module.capture.programs.clear()  # which would see that the rule does other operations than before
    with pytest.raises(UsageError, match="not taught by the projection"):
        step.absorb()


def test_inputs_that_are_not_finite_are_refused() -> None:
    step = Step(30)
    step.x[3, 1] = math.nan
    with pytest.raises(UsageError, match=r"plain cross-entropy|not finite"):
        step.update()


def test_shallow_networks_are_covered() -> None:
    module = align(network(), example=torch.zeros(1, INPUTS), rule="shallow", show=None)
    release = made(module)
    assert release.dimension == CLASSES * 7
    assert set(release.contributions.widths.values()) == {CLASSES}


# ---- with the engine


def private(path: Path | None = None, *, resume: bool = False, m: int = 60, **options: Any) -> Any:
    x, y = records(m)
    module = align(network(), example=x[:1], show=None)
    engine = PrivacyEngine(ledger=path, resume=resume)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    chosen = {"noise_multiplier": 2.0, "release": "label", **options}
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    return engine, *engine.make_private(module=module, optimizer=optimizer, data_loader=loader, **chosen)


def train(run: Any, steps: int) -> None:
    module, optimizer, loader = run
    while steps:
        for x, y in loader:
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(module(x), y))
            optimizer.step()
            steps -= 1
            if not steps:
                return


def test_epochs_compose_and_steps_of_one_do_not() -> None:
    engine, *run = private()
    for steps, epochs in ((1, 1), (2, 1), (1, 2), (3, 3)):
        train(run, steps)
        stated = engine.get_guarantee(1e-5)
        assert stated.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(epochs) / 2.0, 1e-5), rel=1e-6)
        assert stated.kind is Kind.LABEL_DP
        assert stated.adjacency.value == "label"
    assert any("inputs" in text and "public" in text for text in stated.assumptions)


def test_the_budget_is_spent_epoch_by_epoch() -> None:
    target = gaussian_epsilon(math.sqrt(3) / 2.0, 1e-5) * 1.0001
    engine, *run = private(target_epsilon=target, target_delta=1e-5)
    assert engine.steps_left() == 9
    train(run, 9)
    with pytest.raises(BudgetExhaustedError):
        train(run, 1)
    assert engine.get_epsilon(1e-5) <= target


def test_noise_is_calibrated_to_the_epochs() -> None:
    x, y = records(60)
    module = align(network(), example=x[:1], show=None)
    engine = PrivacyEngine()
    engine.make_private_with_epsilon(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=20),
        release="label",
        target_epsilon=1.0,
        target_delta=1e-5,
        epochs=4,
    )
    assert engine.ledger is not None
    sigma = engine.ledger.header()["noise_multiplier"]
    assert gaussian_epsilon(2 / sigma, 1e-5) == pytest.approx(1.0, rel=2e-3)
    assert gaussian_epsilon(2 / sigma, 1e-5) <= 1.0
    assert engine.steps_left() == 12


def test_a_resumed_run_begins_a_new_epoch(tmp_path: Path) -> None:
    """Whatever became of the last part's batches, and in whatever order the records now stand."""
    engine, *run = private(tmp_path / "ledger.sqlite")
    train(run, 4)
    engine.close()
    engine, module, optimizer, loader = private(tmp_path / "ledger.sqlite", resume=True)
    assert isinstance(loader, PublicLoader)
    train((module, optimizer, loader), 3)
    assert [row.epoch for row in engine.ledger.releases()] == [0, 0, 0, 1, 2, 2, 2]
    sigma = engine.ledger.header()["noise_multiplier"]
    assert engine.get_epsilon(1e-5) == pytest.approx(gaussian_epsilon(math.sqrt(3) / sigma, 1e-5), rel=1e-3)


def test_a_refused_batch_is_not_lost(tmp_path: Path) -> None:
    """A loop that asks for a batch twice is refused, and no record is drawn a second time in its epoch."""
    engine, module, optimizer, loader = private(tmp_path / "ledger.sqlite")
    x, y = next(iter(loader))
    for _ in range(2):
        with pytest.raises(UsageError, match="not followed by optimizer"):
            next(iter(loader))
    torch.autograd.backward(cross_entropy(module(x), y))
    optimizer.step()
    seen = len(x)
    for x, y in loader:
        torch.autograd.backward(cross_entropy(module(x), y))
        optimizer.step()
        seen += len(x)
    assert seen == 60
    assert [row.epoch for row in engine.ledger.releases()] == [0, 0, 0]


def test_the_budget_is_one_of_epochs(tmp_path: Path) -> None:
    """A part that ended within an epoch paid for the whole of it."""
    budget: dict[str, Any] = {"target_epsilon": 6.0, "target_delta": 1e-5}
    engine, *run = private(tmp_path / "ledger.sqlite", **budget)
    whole = engine.steps_left()
    train(run, 1)
    engine.close()
    engine, *_ = private(tmp_path / "ledger.sqlite", resume=True, **budget)
    assert whole is not None
    assert whole >= 6
    assert engine.steps_left() == whole - 3


def test_d_batches_are_public_and_hold_every_record_once_an_epoch() -> None:
    _, y = records(50)
    orders = []
    for labels in (y, y.flip(0)):
        loader = PublicLoader(DataLoader(TensorDataset(torch.arange(50), labels), batch_size=17), 3, seed=7)
        epoch = []
        for batch, _ in loader:
            epoch.append(batch.tolist())
            loader._note_step()
        orders.append(epoch)
    assert sorted(record for batch in orders[0] for record in batch) == list(range(50))
    assert orders[0] == orders[1]


def test_clipping_and_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="does not clip"):
        private(max_grad_norm=1.0)
    with pytest.raises(UsageError, match="no option of release label"):
        private(release_options={"tau": 1})
    with pytest.raises(UsageError, match="true or false"):
        private(release_options={"leverage": 1})


def test_the_source_says_what_it_relies_on() -> None:
    noise = LabelNoise(Parts(None, lambda name: NoiseGenerator.seeded(0, name), lambda kind: None), {"a": 1})  # type: ignore[arg-type,return-value]
    assert noise.describe() == {"a": 1}
    assert [g.name for g in noise.generators] == ["noise"]
