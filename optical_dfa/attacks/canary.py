"""`canary`: one whole private training run with canaries in it, whose coins are guessed from the released updates.

Canaries are records of random inputs with random labels, each put into the training set by its own fair coin. The
auditor sees every released update, computes what each canary would have contributed at the released weights, and
guesses the coins of those it is surest of; the bound is that of Steinke, Nasr and Jagielski (2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa import align
from optical_dfa.attacks.records import AttackRecords, load_records
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import backend_for, claimed_kind, noise_std, rule_for
from optical_dfa.capture.records import capture_of
from optical_dfa.data import DATASETS
from optical_dfa.data.card import Defaults
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.networks import building as models
from privacy import PrivacyEngine
from privacy.accounting.gdp import gaussian_epsilon
from privacy.attacks.coin_scores import step_scores
from privacy.attacks.finding import Finding
from privacy.attacks.one_run import guess, one_run_bound
from privacy.notions import Adjacency
from privacy.releases import terms
from privacy.releases.clipped import clip_factors

Array = NDArray[np.float64]

MODEL = "mlp"
MOST_CANARIES = 1000
SHARE = 10  # at most one canary for so many records
QUIET = 3  # canaries lie in one of so many parts of the input space, the one the records use least
GUESSED = 5  # one guess for so many canaries: what a run at epsilon = 8 is bounded best with


@dataclass(frozen=True)
class Canaries:
    """Random records, and the coins that put them into the training set."""

    x: Tensor
    y: Tensor
    included: NDArray[np.bool_]


def run(setting: Setting) -> Finding:
    """`setting.trials` is the number of canaries.

    Raises:
        UsageError: a release whose contributions are not clipped records, or too many canaries.
    """
    if terms(setting.release).adjacency is not Adjacency.ADD_REMOVE or not terms(setting.release).clips:
        raise UsageError(
            f"release {setting.release} does not protect a record's presence by clipping it; attack canary needs one "
            "that does, such as digital or dark-frame"
        )
    records = load_records(setting.dataset, setting.data_dir, ("fashion-mnist", "mnist"))
    defaults = DATASETS.get(records.name, DATASETS[".npz"]).shipped(private=True)
    canaries = _draw(
        records, setting.trials or min(MOST_CANARIES, len(records.x) // SHARE // 10 * 10), setting.seed
    )
    engine, scores = _train(setting, records, canaries, defaults)
    guesses = len(scores) // GUESSED // 2 * 2
    found = guess(scores, canaries.included, guesses)
    guarantee = engine.get_guarantee(setting.delta)
    claim = guarantee.epsilon if guarantee.nominal_epsilon is None else guarantee.nominal_epsilon
    fit = _gaussian_fit(scores, canaries.included)
    assert engine.ledger is not None
    return Finding(
        attack="canary",
        release=setting.release,
        backend=setting.backend or backend_for(setting.release),
        epsilon_lower=one_run_bound(
            right=found.right,
            guesses=guesses,
            canaries=len(scores),
            delta=setting.delta,
            confidence=setting.confidence,
        ),
        confidence=setting.confidence,
        epsilon_claimed=claim,
        delta=setting.delta,
        kind=claimed_kind(setting.release).value,
        trials=len(scores),
        claim=f"the whole run of {engine.ledger.count()} steps",
        details={
            "dataset": records.name,
            "records": len(records.x),
            "canaries": len(scores),
            "included": int(canaries.included.sum()),
            "guesses": guesses,
            "right": found.right,
            "right_in": found.right_in,
            "right_out": found.right_out,
            "noise_multiplier": float(engine.ledger.header()["noise_multiplier"]),
            "epsilon_of_gaussian_fit": gaussian_epsilon(fit, setting.delta),
        },
        notes=(
            "every inserted canary is a record of the run, so the run's guarantee covers it; N, all canaries counted, "
            "is public",
            "epsilon_of_gaussian_fit takes the scores for two normal laws of equal width: an estimate, no bound",
            "the generators are seeded, so that the attack can be repeated; the claim is that of secret noise",
        ),
    )


def _draw(records: AttackRecords, count: int, seed: int) -> Canaries:
    """Random inputs as long as a record's, labels uniform, coins fair.

    They are drawn in those directions in which the records have least energy: the auditor may choose, and
    there the records' own updates hide little of a canary's.
    """
    if count < 2 * GUESSED:
        raise UsageError(f"{count} canaries allow no guess; give --trials {2 * GUESSED} or more")
    stream = np.random.default_rng(derive_seed(seed, "canaries"))
    x = (records.x + records.black).double().numpy()
    energies, directions = np.linalg.eigh(x.T @ x / len(x))
    quiet = directions[:, : max(1, len(energies) // QUIET)]
    signs = stream.choice([-1.0, 1.0], (count, quiet.shape[1]))
    inputs = signs @ quiet.T * np.sqrt(energies.sum() / quiet.shape[1])
    labels = stream.integers(0, records.classes, count)
    return Canaries(
        torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels), stream.random(count) < 0.5
    )


def _train(
    setting: Setting, records: AttackRecords, canaries: Canaries, defaults: Defaults
) -> tuple[PrivacyEngine, Array]:
    """The run with the shipped settings, and every canary's score."""
    kept = torch.from_numpy(canaries.included)
    x, y = torch.cat((records.x + records.black, canaries.x[kept])), torch.cat((records.y, canaries.y[kept]))
    public = len(records.x) + len(canaries.x)
    batch = min(defaults.batch_size, len(records.x))
    trained, twin = (_network(setting, records, name) for name in ("device", "auditor's device"))
    engine = PrivacyEngine(reproducible_seed=derive_seed(setting.seed, "canary run"))
    module, optimizer, loader = engine.make_private_with_epsilon(
        module=trained,
        optimizer=torch.optim.SGD(trained.parameters(), lr=defaults.lr, momentum=defaults.momentum),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=batch),
        target_epsilon=setting.epsilon or defaults.epsilon or 8.0,
        target_delta=setting.delta,
        epochs=defaults.epochs,
        max_grad_norm=defaults.max_grad_norm or 1.0,
        release=setting.release,
        public_size=public,
    )
    products = _auditor(twin, canaries, defaults.max_grad_norm or 1.0)
    groups, scores = canaries.y.numpy(), np.zeros(len(canaries.x))
    steps = defaults.epochs * len(loader)
    setting.progress.start(steps)
    done = 0
    for _ in range(defaults.epochs):
        for inputs, targets in loader:
            if engine.steps_left() == 0:
                return engine, scores
            read = products(module)  # at the weights that this step's batch is computed with
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(module(inputs), targets))
            optimizer.step()
            along, norms = read(batch)
            scores += step_scores(along, norms, groups, sample_rate=batch / public, noise=noise_std(engine))
            done += 1
            setting.progress.update(done, {})
    return engine, scores


def _network(setting: Setting, records: AttackRecords, device: str) -> AlignedModule:
    network = models.build(MODEL, (records.width,), records.classes, setting.seed)
    return align(
        network,
        rule=setting.rule or rule_for(setting.release),
        backend=setting.backend or backend_for(setting.release),
        seed=setting.seed,
        noise=NoiseGenerator.seeded(setting.seed, device),
        show=None,
    )


_Read = Callable[[int], tuple[Array, Array]]


def _auditor(twin: AlignedModule, canaries: Canaries, max_grad_norm: float) -> Callable[[nn.Module], _Read]:
    """What the auditor does at each step: before it, form the canaries' contributions; after it, multiply.

    Of a contribution the part in the first layer's weights is looked at, where canaries lie apart from the records.
    """
    twin.start_capture()
    capture = capture_of(twin)
    capture.expected_records = lambda: len(canaries.x)

    def before(module: nn.Module) -> _Read:
        twin.load_state_dict(module.state_dict())
        capture.clear()
        torch.autograd.backward(nn.functional.cross_entropy(twin(canaries.x), canaries.y))
        factors = clip_factors(capture.norms(), max_grad_norm)
        first = next(use for use in capture.uses if use.layer == next(iter(capture.layers)))

        def read(expected_batch_size: int) -> tuple[Array, Array]:
            gradient = dict(module.named_modules())[f"module.{first.layer}"].weight.grad
            along = ((first.delta @ gradient) * first.x).sum(1).double() * factors
            norms = first.delta.norm(dim=1).double() * first.x.norm(dim=1).double() * factors
            return (along * expected_batch_size).numpy(), norms.numpy()

        return read

    return before


def _gaussian_fit(scores: Array, included: NDArray[np.bool_]) -> float:
    """mu of the two groups' scores: the distance of their means in standard deviations, at least 0."""
    inside, outside = scores[included], scores[~included]
    spread = float(np.sqrt((inside.var() + outside.var()) / 2))
    return max(0.0, float(inside.mean() - outside.mean()) / spread) if spread > 0 else 0.0
