"""`dead-pixel`: many short trainings, of each of which the adversary sees the final model alone (THEORY T1)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.attacks.records import load_records
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import World, Worlds, claimed, claimed_kind
from optical_dfa.networks import building as models
from privacy.attacks.finding import Finding
from privacy.attacks.untouched_column import dead_pixels, displacement
from privacy.auditing.bounds import clopper_pearson_bound
from privacy.notions import Adjacency
from privacy.releases import terms

Array = NDArray[np.float64]

BATCH = 64
WIDTH = 32
STEPS = 8
SAMPLE_RATE = 0.5
LEARNING_RATE = 0.1
EPSILON = 3.0
TRIALS = 600


def run(setting: Setting) -> Finding:
    """
    Raises:
        UsageError: a release that protects labels alone, or too few records.
    """
    if terms(setting.release).adjacency is Adjacency.LABEL:
        raise UsageError(
            f"release {setting.release} publishes the inputs, whose presence is all that dead-pixel shows; attack "
            "another one"
        )
    records = load_records(setting.dataset, setting.data_dir)
    x, y = records.batch(4 * BATCH, setting.seed)
    target, pixel, others = _target(x)
    rate = 1.0 if terms(setting.release).public_batches else SAMPLE_RATE
    worlds = Worlds.of(
        setting,
        sample_rate=rate,
        max_grad_norm=1.0,
        learning_rate=LEARNING_RATE,
        dark_pixels=1 << 15,
        net=lambda: models.build(f"mlp:{WIDTH}", (records.width,), records.classes, setting.seed),
        others=(x[others], y[others]),
        target=(x[target : target + 1], y[target : target + 1]),
    )
    sigma = worlds.calibrated(setting.epsilon or EPSILON, setting.delta, STEPS)
    trials = setting.trials or TRIALS
    setting.progress.start(2 * trials)
    moved: dict[bool, Array] = {}
    claim = 0.0
    for second in (False, True):
        world = worlds.world(second, derive_seed(setting.seed, f"world {second}"), noise_multiplier=sigma)
        moved[second] = _final_models(world, pixel, trials, setting, second * trials)
        claim = claimed(world.engine, STEPS, setting.delta)
    bound = clopper_pearson_bound(
        moved[False], moved[True], delta=setting.delta, confidence=setting.confidence
    )
    return Finding(
        attack="dead-pixel",
        release=setting.release,
        backend=worlds.backend_name,
        epsilon_lower=bound.epsilon,
        confidence=setting.confidence,
        epsilon_claimed=claim,
        delta=setting.delta,
        kind=claimed_kind(setting.release).value,
        trials=2 * trials,
        claim=f"the final model of {STEPS} steps at sample rate {rate:g}",
        details={
            "dataset": records.name,
            "records": len(others),
            "pixel": pixel,
            "noise_multiplier": sigma,
            "still_without": int((moved[False] == 0).sum()),
            "still_with": int((moved[True] == 0).sum()),
        },
        notes=(
            "still_without and still_with count the trainings after which the pixel's weights had their initial values",
            "the generators are seeded, so that the attack can be repeated; the claim is that of secret noise",
        ),
    )


def _target(x: torch.Tensor) -> tuple[int, int, list[int]]:
    """The record that lights a pixel no other of BATCH records lights: (record, pixel, the others)."""
    lit = (x != 0).numpy()
    values = x.double().numpy()
    pixel = min((p for p in range(lit.shape[1]) if lit[:, p].any()), key=lambda p: int(lit[:, p].sum()))
    target = int(np.argmax(values[:, pixel]))
    others = [n for n in range(len(x)) if n != target and not lit[n, pixel]][:BATCH]
    return target, int(dead_pixels(values[others], values[target])[0]), others


def _final_models(world: World, pixel: int, trials: int, setting: Setting, done: int) -> Array:
    """Train from the same start again and again; how far the pixel's weights moved, shape (trials,)."""
    parameters = list(world.module.parameters())
    initial = [p.detach().clone() for p in parameters]
    start = initial[0].double().numpy()
    loss = nn.CrossEntropyLoss(reduction="sum")
    batches = world.batches()
    moved = np.empty(trials)
    for trial in range(trials):
        for p, value in zip(parameters, initial, strict=True):
            p.data.copy_(value)
        for _ in range(STEPS):
            inputs, targets = next(batches)
            world.optimizer.zero_grad()
            loss(world.module(inputs), targets).backward()
            world.optimizer.step()
        moved[trial] = displacement(start, parameters[0].detach().double().numpy(), pixel)
        setting.progress.update(done + trial + 1, {})
    return moved
