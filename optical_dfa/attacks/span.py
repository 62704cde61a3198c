"""`span`: one released step, projected off the span of the other records' inputs (THEORY T1), on real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.attacks.records import AttackRecords, load_records
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import NEGLIGIBLE, Worlds, claimed, claimed_kind
from optical_dfa.networks import building as models
from privacy.attacks.finding import Finding
from privacy.attacks.off_span import off_span, off_span_share, span_basis
from privacy.auditing.bounds import clopper_pearson_bound
from privacy.notions import Adjacency
from privacy.releases import terms

Array = NDArray[np.float64]

BATCH = 256
WIDTH = 128
EPSILON = 4.0
TRIALS = 1500
ROUNDS = 6  # batches and targets that the trials are spread over
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class SpanScores:
    """What the attack read off every release.

    Attributes:
        without, with_record: share of the first layer's update off the others' span, shape (trials,).
        output_without, output_with: how far the output layer's update is from the others' own, relative to it.
        epsilon_claimed: of one step.
        noise_multiplier: of the release.
        backend: the device's name.
        batch: records in a step, the target included.
        dataset: where they come from.
    """

    without: Array
    with_record: Array
    output_without: Array
    output_with: Array
    epsilon_claimed: float
    noise_multiplier: float
    backend: str
    batch: int
    dataset: str


def run(setting: Setting) -> Finding:
    """The attack's finding; draws the two worlds' histograms into `setting.out`."""
    scores = measure(setting)
    if setting.out is not None:
        from optical_dfa.report.attacks import draw_span

        draw_span({setting.release: (scores.without, scores.with_record)}, setting.out / "span.png")
    return judged(setting, scores)


def judged(setting: Setting, scores: SpanScores) -> Finding:
    """The bound that scores give, against the claim."""
    bounds = {
        layer: clopper_pearson_bound(
            without, second, delta=setting.delta, confidence=1 - (1 - setting.confidence) / 2
        )
        for layer, without, second in (
            ("hidden", scores.without, scores.with_record),
            ("output", scores.output_without, scores.output_with),
        )
    }
    return Finding(
        attack="span",
        release=setting.release,
        backend=scores.backend,
        epsilon_lower=max(bound.epsilon for bound in bounds.values()),
        confidence=setting.confidence,
        epsilon_claimed=scores.epsilon_claimed,
        delta=setting.delta,
        kind=claimed_kind(setting.release).value,
        trials=2 * len(scores.without),
        claim=f"one released step of {scores.batch} records, all of which take part (q = 1)",
        details={
            "dataset": scores.dataset,
            "batch": scores.batch,
            "noise_multiplier": scores.noise_multiplier,
            "epsilon_lower_hidden_layer": bounds["hidden"].epsilon,
            "epsilon_lower_output_layer": bounds["output"].epsilon,
            "largest_share_without": float(scores.without.max()),
            "least_share_with": float(scores.with_record.min()),
            "largest_output_difference_without": float(scores.output_without.max()),
            "least_output_difference_with": float(scores.output_with.min()),
        },
        notes=(
            "the two layers are attacked separately and the larger bound counts; each holds with half the "
            "significance",
            "the generators are seeded, so that the attack can be repeated; the claim is that of secret noise",
        ),
    )


def measure(setting: Setting) -> SpanScores:
    """Take the releases of both worlds and score them.

    Raises:
        UsageError: a release that protects labels alone, or a batch wider than the layer.
    """
    if terms(setting.release).adjacency is Adjacency.LABEL:
        raise UsageError(
            f"release {setting.release} publishes the inputs, whose presence is all that span shows; attack another one"
        )
    records = load_records(setting.dataset, setting.data_dir)
    batch = min(BATCH, 3 * records.width // 4)
    worlds = Worlds.of(
        setting, max_grad_norm=MAX_GRAD_NORM, dark_pixels=1 << 17, net=_network(records, setting.seed)
    )
    rounds = [_round(worlds, records, batch, derive_seed(setting.seed, f"round {n}")) for n in range(ROUNDS)]
    sigma = rounds[0].calibrated(setting.epsilon or EPSILON, setting.delta)
    trials = -(-(setting.trials or TRIALS) // ROUNDS)
    setting.progress.start(2 * ROUNDS * trials)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        setting.progress.update(done, {})

    rows: dict[bool, list[Array]] = {False: [], True: []}
    claim, name = 0.0, worlds.backend_name
    for number, world in enumerate(rounds):
        read = _reader(world)
        for second in (False, True):
            sums, engine = world.make(second, sigma, derive_seed(setting.seed, f"world {number} {second}"))
            rows[second].append(sums.take(trials, keep=read, tell=tell)[:, 0])
            claim = claimed(engine, 1, setting.delta)
    # The bound's threshold is chosen on half of the trials: both halves hold all rounds.
    mixed = np.random.default_rng(setting.seed).permutation(ROUNDS * trials)
    without, second_rows = (np.concatenate(rows[second])[mixed] for second in (False, True))
    return SpanScores(
        without[:, 0], second_rows[:, 0], without[:, 1], second_rows[:, 1],
        epsilon_claimed=claim, noise_multiplier=sigma, backend=name, batch=batch, dataset=records.name,
    )  # fmt: skip


def _network(records: AttackRecords, seed: int) -> Callable[[], nn.Module]:
    return lambda: models.build(f"mlp:{WIDTH}", (records.width,), records.classes, seed)


def _round(worlds: Worlds, records: AttackRecords, batch: int, seed: int) -> Worlds:
    """The worlds around a random batch, whose last record is the target."""
    x, y = records.batch(batch, seed)
    return worlds.with_records((x[:-1], y[:-1]), (x[-1:], y[-1:]))


def _reader(worlds: Worlds) -> Callable[[Array], Array]:
    """(share off the span in the first layer, relative difference from the others in the output layer)."""
    h, target = (
        np.concatenate((x.double().numpy(), np.ones((len(x), 1))), 1)
        for x in (worlds.others[0], worlds.target[0])
    )
    direction = off_span(span_basis(h), target[0])
    first = WIDTH * h.shape[1]
    # The adversary's own run without the record, and without noise.
    others = worlds.readable.make(False, NEGLIGIBLE, 900, 1.0)[0].take(1)[0, 0, first:]
    size = max(float(np.linalg.norm(others)), np.finfo(float).tiny)

    def read(released: Array) -> Array:
        weights = released[: first - WIDTH].reshape(WIDTH, -1)
        update = np.concatenate((weights, released[first - WIDTH : first, None]), 1)
        share = off_span_share(update[None], direction)[0]
        return np.array([share, np.linalg.norm(released[first:] - others) / size])

    return read
