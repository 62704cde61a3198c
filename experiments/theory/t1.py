"""T1: noise inside each record's contribution protects no record; whoever knows the others reads it off.

The attack projects one row of the update off the span of the others' inputs: the rest is 0 without the record, and not
with it, at any sigma. Limits are Clopper and Pearson's at 99.9 %, trials with fixed seeds.
"""

from __future__ import annotations

import numpy as np

from experiments.theory.batch import errors, hidden
from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, delta_limit

EPSILON = 4.0
DELTA = 1e-5
TRIALS = 20_000
CONFIDENCE = 0.999
INPUTS = 64
# A residual above this part of the row is the record's; rounding leaves 1e-13 of it.
_VISIBLE = 1e-9


def residuals(h: Array, slope: Array, sigma: float, generator: np.random.Generator) -> Array:
    """Relative part of each trial's row that is off the span of records 1, 2, …, shape (TRIALS,).

    Args:
        h, slope: inputs, shape (m, d), and phi' of one neuron, shape (m,), of the batch; record 0 is the target, with
            slope 0 where it is absent.
    """
    others = slope[1:, None] * h[1:]
    basis = np.linalg.svd(others, full_matrices=False)
    kept = basis[2][basis[1] > 1e-10 * basis[1].max()]
    weights = 0.1 * generator.standard_normal(len(h)) + sigma * generator.standard_normal((TRIALS, len(h)))
    rows = weights @ (slope[:, None] * h)
    off = rows - (rows @ kept.T) @ kept
    relative: Array = np.linalg.norm(off, axis=1) / np.linalg.norm(rows, axis=1)
    return relative


def span_attack(sigma: float, records: int, *, dead_pixel: bool = False, seed: int = 1) -> float:
    """Lower limit on delta(EPSILON) of a step whose batch holds `records` others and the target.

    Args:
        sigma: of the projection's noise.
        records: others in the batch; the layer has INPUTS + 1 inputs.
        dead_pixel: input 0 is zero on all others.
    """
    generator = np.random.default_rng(seed)
    layer = hidden(generator, records + 1, INPUTS, 1, 10, sigma)
    if dead_pixel:
        layer.h[1:, 0] = 0.0
    slope = layer.slope[:, 0]
    absent = np.concatenate(([0.0], slope[1:]))
    seen, alarms = (
        int((residuals(layer.h, present, sigma, generator) > _VISIBLE).sum()) for present in (slope, absent)
    )
    return delta_limit(EPSILON, seen, alarms, TRIALS, CONFIDENCE)


def output_layer(sigma: float, seed: int = 2) -> float:
    """delta of a step from the output layer alone: its update is sum_i e_i h_i^T, whatever the projection's sigma.

    The adversary takes off the others' part; what is left is exactly 0 or not. 1 where the worlds never look alike.
    """
    generator = np.random.default_rng(seed)
    layer = hidden(generator, 201, INPUTS, 8, 10, sigma)
    _, e = errors(generator, 201, 10)
    others = e[1:].T @ layer.h[1:]
    present, absent = (
        (e[first:].T @ layer.h[first:], layer.update(e, layer.noise(generator))) for first in (0, 1)
    )
    return float(not np.array_equal(present[0], others) and np.array_equal(absent[0], others))


def whole_run(sample_rate: float, steps: int, runs: int = 20_000, seed: int = 3) -> float:
    """How often some step of a run of Poisson sampling had the target in its batch: the run's delta."""
    drawn = np.random.default_rng(seed).random((runs, steps)) < sample_rate
    return float(drawn.any(axis=1).mean())


def demonstrations() -> list[Demonstration]:
    figure = f"δ of a step at ε = {EPSILON:g}"
    published = "noise inside the record's own contribution is the only noise"
    found = [
        Demonstration(
            f"batch of 32 others, {INPUTS} inputs, σ = {sigma:g}: off the others' span",
            figure,
            DELTA,
            span_attack(sigma, 32),
            published,
        )
        for sigma in (1.0, 1e3, 1e6)
    ]
    found += [
        Demonstration(
            "batch of 256 others, one input zero on all of them, σ = 1000",
            figure,
            DELTA,
            span_attack(1e3, 256, dead_pixel=True),
            published,
        ),
        Demonstration(
            "batch of 256 others, no such input: this attack sees nothing (no guarantee either)",
            figure,
            DELTA,
            span_attack(1e3, 256),
        ),
        Demonstration(
            "output layer, σ = 1000", figure, DELTA, output_layer(1e3), "the output layer is noised too"
        ),
        Demonstration(
            "Poisson sampling at q = 0.02, 50 steps: share of runs that had the target",
            "δ of the run, 1 − (1 − q)^T",
            1 - 0.98**50,
            whole_run(0.02, 50),
            tolerance=0.02,
        ),
    ]
    return found
