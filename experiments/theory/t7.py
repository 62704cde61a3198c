"""T7: label privacy of the per-record mechanism with all layers noised: predicted mu, and each condition dropped.

Inputs are public, so everything but the errors is known; the exact mu of a shift is the least noise that makes it,
found by least squares, which shares no formula with the leverage. Simulations have fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import fftconvolve
from scipy.special import ndtr

from experiments.theory.batch import Layer, errors, hidden, leverage, leverages
from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import (
    Array,
    energy_total_variation,
    gaussian_delta,
    scaled_delta,
    total_variation,
)
from privacy.accounting.discretisation import Group
from privacy.accounting.numerical import NumericalComposition
from privacy.notions import Adjacency
from privacy.releases import leverage as production

RECORDS, INPUTS, NEURONS, CLASSES = 24, 6, 16, 5
SIGMA = 1.5
TRIALS = 20_000


def network(seed: int = 20, sigma: float = SIGMA) -> list[Layer]:
    """A hidden tanh layer and the output layer of the same records."""
    generator = np.random.default_rng(seed)
    first = hidden(generator, RECORDS, INPUTS, NEURONS, CLASSES, sigma)
    h = np.column_stack((np.tanh(generator.standard_normal((RECORDS, NEURONS))), np.ones(RECORDS)))
    return [first, Layer(h, np.ones((RECORDS, CLASSES)), np.eye(CLASSES), sigma)]


def pairs(classes: int = CLASSES) -> list[Array]:
    """y − y' of every pair of labels."""
    unit = np.eye(classes)
    return [unit[i] - unit[j] for i in range(classes) for j in range(i)]


def predicted_mu(layers: Sequence[Layer], record: int, change: Array) -> float:
    """The theorem's mu of one record and one change of its error: sum of (b_k·Delta)² tau_ik / sigma²."""
    total = 0.0
    for layer in layers:
        moved = layer.feedback @ change
        total += float(moved**2 @ leverages(layer)[record]) / layer.sigma**2
    return math.sqrt(total)


def least_noise(rows: Array, shift: Array, sigma: float) -> float:
    """mu of a shift of `w^T rows + sigma g^T rows`: the norm of the least w that makes it, over sigma; inf if none."""
    w = np.linalg.lstsq(rows.T, shift, rcond=None)[0]
    if not np.allclose(w @ rows, shift, rtol=1e-8, atol=1e-10 * float(np.abs(shift).max(initial=0.0))):
        return math.inf
    length = float(np.linalg.norm(w))
    if length == 0:
        return 0.0
    return length / sigma if sigma > 0 else math.inf


def exact_mu(layers: Sequence[Layer], change: Array) -> float:
    """mu of a change of all errors, shape (m, c), of independent noise over records, neurons and layers."""
    found = [
        least_noise(layer.rows(k), shift, layer.sigma)
        for layer in layers
        for k, shift in enumerate(layer.update(change))
    ]
    return math.hypot(*found)


def of_record(record: int, change: Array, records: int = RECORDS) -> Array:
    """The change of all errors, shape (records, classes), where one record's changes."""
    total = np.zeros((records, len(change)))
    total[record] = change
    return total


def measured_mu(layers: Sequence[Layer], record: int, change: Array, seed: int = 21) -> tuple[float, float]:
    """(mu, its standard error) from simulated releases of both labels, seen along the best direction."""
    generator = np.random.default_rng(seed)
    _, e = errors(generator, RECORDS, CLASSES)
    scores = np.zeros((2, TRIALS))
    for layer in layers:
        moved = layer.update(of_record(record, change))
        for k, shift in enumerate(moved):
            rows = layer.rows(k)
            best = np.linalg.solve(rows.T @ rows, shift) / layer.sigma**2
            for world in (0, 1):
                mean = e @ layer.feedback[k] + world * (np.arange(RECORDS) == record) * (
                    layer.feedback[k] @ change
                )
                noise = layer.sigma * generator.standard_normal((TRIALS, RECORDS))
                scores[world] += (mean + noise) @ rows @ best
    spread = float(np.sqrt(scores.var(axis=1).mean()))
    mu = float(scores[1].mean() - scores[0].mean()) / spread
    return mu, math.sqrt((2 + mu**2 / 4) / TRIALS)


# ---- one condition dropped at a time


def output_without_noise() -> float:
    """(a) mu where the output layer is released as it is."""
    first, last = network()
    bare = Layer(last.h, last.slope, last.feedback, 0.0)
    return exact_mu([first, bare], of_record(0, pairs()[0]))


def ternarised(threshold: float = 0.05) -> float:
    """(b) mu where errors are rounded to −1, 0, 1 before the projection: predictions all alike."""
    p = np.full(CLASSES, 1 / CLASSES)
    unit = np.eye(CLASSES)
    found = [np.sign(e) * (np.abs(e) > threshold) for e in (p - unit[0], p - unit[1])]
    return exact_mu(network(), of_record(0, found[0] - found[1]))


def weighted(weights: tuple[float, float] = (1.0, 5.0)) -> float:
    """(b) mu where the loss weights the classes."""
    p = np.full(CLASSES, 1 / CLASSES)
    unit = np.eye(CLASSES)
    return exact_mu(network(), of_record(0, weights[0] * (p - unit[0]) - weights[1] * (p - unit[1])))


def error_norms() -> tuple[float, float]:
    """Norms of a confident prediction's error for its own label and for another one."""
    p = np.array([0.9, 0.1, 0.0, 0.0, 0.0])
    unit = np.eye(CLASSES)
    return float(np.linalg.norm(p - unit[0])), float(np.linalg.norm(p - unit[1]))


def rescaled(neurons: int = 64) -> float:
    """(b) delta(4) where each error is sent at norm 1 and scaled back: the noise scales with it.

    One record, noise so large that the mean does not matter; the claim is that of a label-independent noise.
    """
    own, other = error_norms()
    return scaled_delta(4.0, neurons, (other / own) ** 2)


def other_labels(record: int = 0) -> tuple[float, float]:
    """(c) (largest mu over the changes FROM one label, largest over all pairs): the label with the smallest first."""
    unit = np.eye(CLASSES)
    layers = network()
    rows = [
        [exact_mu(layers, of_record(record, unit[i] - unit[j])) for j in range(CLASSES)]
        for i in range(CLASSES)
    ]
    return min(max(row) for row in rows), max(max(row) for row in rows)


def balanced_batches(per_class: int = 4, seed: int = 22) -> float:
    """(d) delta of a step whose batch is the first `per_class` records of each class: a label decides who is in it.

    1 where the span of one world's inputs does not hold the other's.
    """
    generator = np.random.default_rng(seed)
    h = generator.standard_normal((60, 64))
    y = np.arange(60) % 3
    changed = y.copy()
    changed[0] = 1
    batches = [
        np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(3)]) for labels in (y, changed)
    ]
    spans = [np.linalg.matrix_rank(h[batch]) for batch in batches]
    joint = np.linalg.matrix_rank(h[np.concatenate(batches)])
    return float(joint > max(spans))


def subsampled(mu: float = 1.0, sample_rate: float = 0.05) -> tuple[float, float]:
    """(d) (delta(1) with amplification claimed, delta(1) of the step whose batch holds the record, publicly)."""
    claim = NumericalComposition((Group(sample_rate, 1 / mu, 1),), Adjacency.ADD_REMOVE)
    return claim.delta(1.0), gaussian_delta(1.0, mu)


def shared_noise(sigma: float = 1.0) -> tuple[float, float]:
    """(e) (mu by the sum of both layers' leverages, exact) of two layers fed by ONE noisy projection.

    Two records; layer 1 has inputs 1, 1, layer 2 has inputs 1, 2.
    """
    layers = [np.array([[1.0], [1.0]]), np.array([[1.0], [2.0]])]
    by_sum = math.sqrt(sum(float(leverage(rows)[0]) for rows in layers)) / sigma
    stacked = np.hstack(layers)
    return by_sum, least_noise(stacked, stacked[0], sigma)


def nearly_dependent(seed: int = 23, own: float = 1e-9) -> Array:
    """Inputs where record 0 alone has a tiny coordinate of its own: its leverage is 1."""
    h = np.random.default_rng(seed).standard_normal((12, 4))
    h[:, 3] = 0.0
    h[0, 3] = own
    return h


def cut_off() -> tuple[float, float]:
    """(f) (leverage of record 0 by numpy's pseudo-inverse, by the singular vectors without a cut-off)."""
    h = nearly_dependent()
    inverse = np.linalg.pinv(h.T @ h)
    return float(h[0] @ inverse @ h[0]), float(leverage(h)[0])


def production_bound(record: int = 0) -> tuple[float, float]:
    """(f) (the product's leverage, the exact one) of the nearly dependent inputs."""
    h = nearly_dependent()
    found = production.leverages(torch.from_numpy(h), torch.ones(len(h), 1))
    return float(found[record, 0]), float(leverage(h)[record])


def production_excess() -> float:
    """Smallest of the product's leverages minus the exact ones, over the hidden layer's records and neurons."""
    layer = network()[0]
    found = production.leverages(torch.from_numpy(layer.h), torch.from_numpy(layer.slope)).numpy()
    return float((found - leverages(layer)).min())


def learned_feedback(rate: float = 0.5, seed: int = 24) -> float:
    """(g) mu of a step that does not hold the record, with B moved by the record's error a step before, un-noised."""
    generator = np.random.default_rng(seed)
    first = network()[0]
    _, e = errors(generator, RECORDS, CLASSES)
    moved = rate * np.outer(generator.standard_normal(NEURONS), pairs()[0])
    shifts = ((e @ moved.T) * first.slope).T @ first.h
    return math.hypot(*(least_noise(first.rows(k), shift, first.sigma) for k, shift in enumerate(shifts)))


def forward_noise(records: int = 64, shift: float = 3.0) -> tuple[float, float]:
    """(g) (claimed, actual) total variation where equal inputs carry noise that is not released.

    Claimed: leverage 1/m of the noiseless inputs. With many inputs the adversary still sees sum_i w_i² of the
    projections w_i = b·e_i + g_i, whose law is chi-square; `shift` is b·Delta/sigma.
    """
    return total_variation(shift / math.sqrt(records)), energy_total_variation(records, shift)


def denoised(
    records: int = 60, neurons: int = 40, classes: int = 3, seed: int = 25
) -> tuple[float, float, float]:
    """(h) (mu² by leverages, exact mu², mu² at leverage 1) where readouts are projected on the range of B first."""
    layer = hidden(np.random.default_rng(seed), records, INPUTS, neurons, classes, 0.5)
    b, change = layer.feedback, pairs(classes)[0]
    root = np.linalg.inv(np.linalg.cholesky(b.T @ b)).T  # (B^T B)^-1 = root root^T
    maps = np.einsum("kc,ik,id->ickd", b @ root, layer.slope, layer.h).reshape(records * classes, -1)
    shift = layer.update(of_record(0, change, records)).reshape(-1)
    at_one = float(np.square(b @ change).sum()) / layer.sigma**2
    return predicted_mu([layer], 0, change) ** 2, least_noise(maps, shift, layer.sigma) ** 2, at_one


def following_the_signal(neurons: int = 512) -> float:
    """(i) delta(4) where each readout's noise variance has a part that is proportional to the light, |e|² / 4."""
    own, other = error_norms()
    return scaled_delta(4.0, neurons, (1 + other**2 / 4) / (1 + own**2 / 4))


def digitised(sigma: float = 10.0) -> tuple[float, float, float]:
    """(j) (predicted with leverage, actual of the rounded readouts, value at leverage 1): total variations.

    Two records with inputs 1 and sqrt 2; the label moves the first's readout by sigma steps. Rounded, the two whole
    numbers can be read off the sum r_1 + sqrt(2) r_2, so all of the second's noise is taken off.
    """
    tau = float(leverage(np.array([[1.0], [math.sqrt(2.0)]]))[0])
    codes = np.arange(-round(12 * sigma), round(13 * sigma) + 1)
    laws = [ndtr((codes + 0.5 - s) / sigma) - ndtr((codes - 0.5 - s) / sigma) for s in (0.0, sigma)]
    return (
        total_variation(math.sqrt(tau)),
        float(np.abs(laws[0] - laws[1]).sum() / 2),
        total_variation(1.0),
    )


def dithered(sigma: float = 10.0, tau: float = 1.5) -> tuple[float, float]:
    """(j) (predicted with leverage, actual) total variation of `digitised` with a Gaussian dither on each readout."""
    fine = 64
    codes = np.arange(-round(9 * sigma), round(10 * sigma) + 1)
    laws = [ndtr((codes + 0.5 - s) / sigma) - ndtr((codes - 0.5 - s) / sigma) for s in (0.0, sigma)]
    places = np.rint((codes[:, None] + math.sqrt(2.0) * codes) * fine).astype(np.int64)
    places -= places.min()
    reach = math.ceil(8 * math.sqrt(3.0) * tau * fine)
    noise = np.exp(-((np.arange(-reach, reach + 1) / (math.sqrt(3.0) * tau * fine)) ** 2) / 2)
    noise /= noise.sum()
    seen = [
        fftconvolve(np.bincount(places.ravel(), weights=np.outer(law, laws[0]).ravel()), noise)
        for law in laws
    ]
    leveraged = math.sqrt(1 / 3) * sigma / math.hypot(sigma, tau)
    return total_variation(leveraged), float(np.abs(seen[0] - seen[1]).sum() / 2)


def demonstrations() -> list[Demonstration]:
    layers, change = network(), pairs()[0]
    predicted = predicted_mu(layers, 0, change)
    measured, error = measured_mu(layers, 0, change)
    from_true, over_all = other_labels()
    amplified, full = subsampled()
    by_sum, stacked = shared_noise()
    pinv, whole = cut_off()
    product, true = production_bound()
    noiseless, seen = forward_noise()
    independent, joint, undivided = denoised()
    leveraged, rounded, at_one = digitised()
    mu = "μ of a label"
    return [
        Demonstration(
            f"predicted against {TRIALS:,} simulated releases a label (± {error:.2g})",
            mu,
            predicted,
            measured,
            tolerance=0.05,
        ),
        Demonstration(
            "predicted against the least noise that makes the shift",
            mu,
            predicted,
            exact_mu(layers, of_record(0, change)),
            tolerance=1e-9,
        ),
        Demonstration(
            "(a) output layer as it is", mu, predicted, output_without_noise(), "the output layer is noised"
        ),
        Demonstration(
            "(b) errors rounded to −1, 0, 1", mu, predicted, ternarised(), "errors are projected as they are"
        ),
        Demonstration(
            "(b) class weights 1 and 5", mu, predicted, weighted(), "no class weights, or Δ with them"
        ),
        Demonstration(
            "(b) errors sent at norm 1, 64 neurons", "δ at ε = 4", 1e-5, rescaled(), "a public scale"
        ),
        Demonstration(
            "(c) changes of one record's own label only", mu, from_true, over_all, "all pairs of labels"
        ),
        Demonstration(
            "(d) class-balanced batches", "δ of a step at every ε", 1e-5, balanced_batches(), "public batches"
        ),
        Demonstration(
            "(d) amplification at q = 0.05 claimed, μ = 1", "δ at ε = 1", amplified, full, "no amplification"
        ),
        Demonstration(
            "(e) two layers share one projection's noise",
            mu,
            by_sum,
            stacked,
            "independent noise, or stacked rows",
        ),
        Demonstration("(f) leverage by a pseudo-inverse", "leverage", pinv, whole, "nothing is cut off"),
        Demonstration("(f) the product's leverage of the same inputs", "leverage", product, true),
        Demonstration(
            "(g) B learned from labels",
            "μ of the next step, without the record",
            0.0,
            learned_feedback(),
            "B is public",
        ),
        Demonstration(
            "(g) forward noise that is not released",
            "total variation",
            noiseless,
            seen,
            "all of the forward pass is public",
        ),
        Demonstration(
            "(h) readouts denoised by B B⁺", "μ²", independent, joint, "no denoising, or leverage 1"
        ),
        Demonstration("(h) the same, leverage 1", "μ²", undivided, joint),
        Demonstration(
            "(i) a quarter of |e|² more noise variance, 512 neurons",
            "δ at ε = 4",
            1e-5,
            following_the_signal(),
            "noise that does not follow the signal",
        ),
        Demonstration(
            "(j) rounded readouts, leverage 1/3",
            "total variation",
            leveraged,
            rounded,
            "un-rounded readouts, or dither",
        ),
        Demonstration("(j) readouts with dither, leverage 1/3", "total variation", *dithered()),
        Demonstration("(j) rounded readouts, leverage 1", "total variation", at_one, rounded),
    ]
