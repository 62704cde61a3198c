"""T5: aggregate, then project: one analog frame a column is a Gaussian mechanism; several rounded ones are not.

Exact: norms of random and extreme changes, laws of small integers by convolution.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, gaussian_delta, scaled_delta, total_variation
from noise_models.calibration.converter import dither_ripple, epsilon_of_ripple
from privacy.releases.aggregate import noise_multiplier

N, P, D = 48, 12, 20  # neurons, aggregated errors, inputs of the example
READ, OUTPUT = 0.7, 0.5  # standard deviations of the projection's and of the output layer's noise


def feedback(seed: int = 10) -> Array:
    """B of the example, shape (N, P)."""
    found: Array = np.random.default_rng(seed).standard_normal((N, P)) / math.sqrt(P)
    return found


def shift(b: Array, change: Array, output: Array) -> float:
    """mu of a record that changes A by `change`, shape (P, D), and the output layer by `output`."""
    return math.hypot(float(np.linalg.norm(b @ change)) / READ, float(np.linalg.norm(output)) / OUTPUT)


def claimed_mu(b: Array, clip: float = 1.0) -> float:
    """C · max(‖B‖/nu, 1/nu_0): the reciprocal of the product's noise multiplier."""
    return 1 / noise_multiplier(clip, [float(np.linalg.norm(b, 2))], [READ], OUTPUT)


def largest_shift(clip: float = 1.0, trials: int = 2000, seed: int = 11) -> float:
    """Largest mu of random records of joint norm C, of the leading singular direction and of the output layer alone."""
    generator, b = np.random.default_rng(seed), feedback()
    worst = 0.0
    for _ in range(trials):
        change, output = (
            generator.standard_normal((P, D)),
            generator.standard_normal(30) * generator.exponential(),
        )
        norm = math.hypot(float(np.linalg.norm(change)), float(np.linalg.norm(output))) / clip
        worst = max(worst, shift(b, change / norm, output / norm))
    leading = np.zeros((P, D))
    leading[:, 0] = np.linalg.svd(b)[2][0] * clip
    return max(worst, shift(b, leading, np.zeros(1)), shift(b, np.zeros((P, D)), np.full(1, clip)))


def rounded_frames(
    read_noise: float, values: tuple[int, int] = (15, 16), planes: int = 5
) -> tuple[float, float]:
    """(claimed, actual) total variation of an amplitude sent as bit planes and put together after the converter.

    Claimed: the planes' noise adds up to a Gaussian of read_noise · sqrt(sum 4^k), and the amplitude moves by
    values[1] − values[0]. Actual: the exact law of sum_k 2^k Q(bit_k + n_k).
    """
    moved = abs(values[1] - values[0])
    claimed = total_variation(moved / (read_noise * math.sqrt(sum(4**k for k in range(planes)))))
    laws = [_combined(value, read_noise, planes) for value in values]
    return claimed, float(np.abs(laws[0] - laws[1]).sum() / 2)


def dithered_frames(
    read_noise: float = 0.6, tau: float = 1.5, values: tuple[int, int] = (15, 16), planes: int = 5
) -> tuple[float, float]:
    """(bound, actual) total variation of `rounded_frames` with a Gaussian dither on every plane (T4).

    Bound: the Gaussian of both noises, with the ripple of as many frames charged.
    """
    weight = math.sqrt(sum(4**k for k in range(planes)))
    mu = abs(values[1] - values[0]) / (weight * math.hypot(read_noise, tau))
    eta = dither_ripple(read_noise, tau)
    bound = (1 + eta) ** planes * gaussian_delta(-epsilon_of_ripple(eta, planes), mu)
    reach = math.ceil(9 * weight * tau)
    dither = np.exp(-((np.arange(-reach, reach + 1) / (weight * tau)) ** 2) / 2)
    dither /= dither.sum()
    laws = [np.convolve(_combined(value, read_noise, planes), dither) for value in values]
    return bound, float(np.abs(laws[0] - laws[1]).sum() / 2)


def _combined(value: int, read_noise: float, planes: int) -> Array:
    reach = math.ceil(8 * read_noise) + 2
    codes = np.arange(-reach, reach + 1)
    total = np.ones(1)
    for k in range(planes):
        bit = value >> k & 1
        law = ndtr((codes + 0.5 - bit) / read_noise) - ndtr((codes - 0.5 - bit) / read_noise)
        spread = np.zeros(2 * reach * 2**k + 1)
        spread[:: 2**k] = law
        total = np.convolve(total, spread)
    return total


def frame_sensitivity() -> tuple[float, float]:
    """mu of 15 → 16 in five un-rounded planes of read noise 1: of the weighted sum alone, and of all frames."""
    return 1 / math.sqrt(sum(4**k for k in range(5))), math.sqrt(5.0)


def denoised(seed: int = 12, frames: int = 4000) -> float:
    """Energy of the noise in a readout, over that left by B B^+."""
    b = feedback()
    noise = np.random.default_rng(seed).standard_normal((frames, N))
    return float(np.square(noise).sum() / np.square(noise @ np.linalg.pinv(b).T @ b.T).sum())


def scaled_by_maximum(epsilon: float = 1.0) -> tuple[float, float]:
    """(claimed, actual) delta where A is scaled by max|A| before the device, and the readout scaled back.

    The record doubles the largest entry, so the noise of all N · D readouts doubles. Claimed: sigma = 5 C.
    """
    return 1e-5, scaled_delta(epsilon, N * D, 4.0)


def quantised_after_the_clip(step: float = 0.1) -> float:
    """Largest norm, over C = 1, of a clipped record rounded to the device's grid, each entry just past the middle."""
    record = np.full(P * D, 0.5001 * step)
    assert np.linalg.norm(record) <= 1
    return float(np.linalg.norm(np.rint(record / step) * step))


def quantised_before_the_clip(step: float = 0.1) -> float:
    """As `quantised_after_the_clip`, rounded towards zero, which no norm survives longer."""
    record = np.random.default_rng(13).standard_normal((500, P * D))
    record /= np.linalg.norm(record, axis=1, keepdims=True)
    return float(np.linalg.norm(np.trunc(record / step) * step, axis=1).max())


def demonstrations() -> list[Demonstration]:
    tv = "total variation of 15 → 16"
    claimed, actual = rounded_frames(0.35)
    scale_claimed, scale_actual = scaled_by_maximum()
    one, all_ = frame_sensitivity()
    return [
        Demonstration(
            "largest shift of 2000 random and the two extreme records",
            "μ",
            claimed_mu(feedback()),
            largest_shift(),
        ),
        Demonstration("the bound is attained", "μ", claimed_mu(feedback()), largest_shift(), tolerance=1e-9),
        Demonstration(
            "one analog frame of amplitude 15 or 16, read noise 0.35 · √341 before the converter",
            tv,
            claimed,
            _one_frame(0.35 * math.sqrt(341.0)),
        ),
        Demonstration(
            "five bit planes, read noise 0.35, each rounded", tv, claimed, actual, "one analog frame a column"
        ),
        Demonstration(
            "five bit planes, read noise 0.6, rounded and dithered each, η charged", tv, *dithered_frames()
        ),
        Demonstration(
            "five bit planes seen each, un-rounded, read noise 1",
            "μ of 15 → 16",
            one,
            all_,
            "one analog frame a column",
        ),
        Demonstration(
            "energy of the noise, over that left by B B⁺", "n / p", N / P, denoised(), tolerance=0.02
        ),
        Demonstration(
            "amplitudes scaled by max|A|",
            "δ at ε = 1",
            scale_claimed,
            scale_actual,
            "the scale is a public constant",
        ),
        Demonstration(
            "rounded towards zero", "norm of a clipped record, in C", 1.0, quantised_before_the_clip()
        ),
        Demonstration(
            "rounded to the nearest after the clip",
            "norm of a clipped record, in C",
            1.0,
            quantised_after_the_clip(),
            "the grid comes before the clip",
        ),
        Demonstration(
            "output layer without noise",
            "μ",
            claimed_mu(feedback()),
            math.inf,
            "output layer and biases are noised",
        ),
    ]


def _one_frame(read_noise: float) -> float:
    """Exact total variation of the rounded readouts of the amplitudes 15 and 16 in one frame."""
    codes = np.arange(-400, 432)
    laws = [ndtr((codes + 0.5 - v) / read_noise) - ndtr((codes - 0.5 - v) / read_noise) for v in (15, 16)]
    return float(np.abs(laws[0] - laws[1]).sum() / 2)
