"""T12: several dark pixels a coordinate are Gaussian noise times prod (1 ± eta_j), and what breaks that.

Laws are exact: the probabilities of a rounded normal, convolved on the whole numbers. The network of the figures is
784-512-512-10: 669,706 coordinates.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, gaussian_delta, hockey_stick
from noise_models.calibration.converter import (
    dither_ripple,
    epsilon_of_ripple,
    ideal_probabilities,
    uneven_probabilities,
)
from privacy.releases.dark_digits import digit_weights

DIMENSION = 669_706
SIGMA = 4.0  # of the read noise, in converter steps
POWERS = (1, 3, 9, 27)
SHIFTED = (1, 3, 9, 26)  # as the release has it: the last weight is no multiple of the base
_LEVEL = 96.3  # dark level of the examples
_CODES = 192


def etas(sigma: float, weights: tuple[int, ...]) -> list[float]:
    """Ripple of every digit but the lowest."""
    return [
        dither_ripple(sigma, sigma * math.hypot(*weights[:j]) / weights[j]) for j in range(1, len(weights))
    ]


def measured_ripple(sigma: float, weights: tuple[int, ...]) -> float:
    """Largest relative difference of the exact density of n_0 + sum w_j Q(n_j) from the ideal one; at 48 places."""
    nodes, share = np.polynomial.legendre.leggauss(24)
    worst, std = 0.0, sigma * math.hypot(*weights)
    for mean in (0.0, 0.25, 0.5):
        codes = np.arange(math.floor(mean - 9 * sigma), math.ceil(mean + 9 * sigma) + 1)
        law = np.diff(ndtr((np.append(codes, codes[-1] + 1) - 0.5 - mean) / sigma))
        centre, mass, middle, part = np.zeros(1), np.ones(1), np.zeros(1), np.ones(1)
        for weight in weights[1:]:
            centre = np.add.outer(centre, weight * codes).ravel()
            mass = np.multiply.outer(mass, law).ravel()
            middle = np.add.outer(middle, weight * (mean + nodes / 2)).ravel()
            part = np.multiply.outer(part, share / 2).ravel()
        for z in (0.0, 0.5, -1.5, 3.0):
            for step in (0.0, 0.25, 0.5, 0.75):
                y = sum(weights[1:]) * mean + z * std + step * weights[1]
                found = float(mass @ np.exp(-(((y - centre) / sigma) ** 2) / 2)) / sigma
                ideal = float(part @ np.exp(-(((y - middle) / std) ** 2) / 2)) / std
                worst = max(worst, abs(found / ideal - 1))
    return worst


def digits_law(pixel: Array, weights: tuple[int, ...]) -> Array:
    """The law of sum w_j Q(n_j) on 0, 1, …, from that of one pixel's codes 0, 1, …"""
    law = np.ones(1)
    for weight in weights:
        spread = np.zeros((len(pixel) - 1) * weight + 1)
        spread[::weight] = pixel
        law = np.convolve(law, spread)
    return law


def loss(sigma: float, weights: tuple[int, ...], epsilon: float, moved: int) -> tuple[float, float, float]:
    """(delta of the digits, of the ideal Gaussian, and with the ripples charged); one coordinate moved by `moved`."""
    law = digits_law(ideal_probabilities(_CODES, _LEVEL, sigma), weights)
    p, q = np.append(np.zeros(moved), law), np.append(law, np.zeros(moved))
    ripples = etas(sigma, weights)
    mu = moved / (sigma * math.hypot(*weights))
    charge = sum(epsilon_of_ripple(eta, 1) for eta in ripples)
    charged = math.prod(1 + eta for eta in ripples) * gaussian_delta(epsilon - charge, mu)
    return max(hockey_stick(p, q, epsilon), hockey_stick(q, p, epsilon)), gaussian_delta(epsilon, mu), charged


def period(error: float, width: int, sigma: float = 6.0) -> Array:
    """Codes of one pixel of a converter whose widths are 1 + `error` once every `width` codes, and even otherwise.

    A constant error of the thresholds is taken off, as a calibration does.
    """
    widths = 1 + error * np.where(np.arange(_CODES - 2) % width == 0, 1.0, -1 / (width - 1))
    offsets = np.concatenate(([0.0], np.cumsum(widths))) - np.arange(_CODES - 1)
    return uneven_probabilities(np.arange(_CODES - 1) + 0.5 + offsets - offsets.mean(), _LEVEL, sigma)


def divergence(law: Array) -> float:
    """Kullback–Leibler divergence of a law on the whole numbers from itself, a step further."""
    p, q = law[1:], law[:-1]
    seen = (p > 1e-14 * p.max()) & (q > 0)
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def shown_by_widths(width: int, weights: tuple[int, ...], sigma: float = 6.0) -> float:
    """What one step of the sum shows on a converter with widths off by 1 %, over what it shows on an ideal one."""
    even = ideal_probabilities(_CODES, _LEVEL, sigma)
    return divergence(digits_law(period(0.01, width, sigma), weights)) / divergence(digits_law(even, weights))


def modulo(weights: tuple[int, ...], gain: int = 1, one_pixel: bool = False) -> float:
    """Total variation of the released sums 0 and 1: codes that come in steps of `gain`, or one pixel for all digits."""
    pixel = ideal_probabilities(_CODES, _LEVEL, SIGMA)
    if gain > 1:
        held = np.zeros(len(pixel))
        np.add.at(held, np.arange(len(pixel)) // gain * gain, pixel)
        pixel = held
    law = digits_law(pixel, (sum(weights),) if one_pixel else weights)
    return hockey_stick(np.append(0.0, law), np.append(law, 0.0), 0.0)


def clipped(digits: int, level: float, epsilon: float = 1.0) -> float:
    """delta of a step from one end of the converter: dark level `level` standard deviations above zero."""
    return min(1.0, digits * DIMENSION * (1 + math.exp(epsilon)) * float(ndtr(-level)))


def demonstrations() -> list[Demonstration]:
    ripple, step = "relative difference of densities, Π(1 + η_j) − 1", "privacy loss of a step, ε"
    shown, apart = (
        "KL of one step of the sum, over an ideal converter's",
        "total variation of the sums 0 and 1",
    )
    ideal, fresh = "an ideal uniform converter", "k fresh pixels a coordinate"
    narrow, gaussian, charged = loss(SIGMA, (1, 11), 4.0, 40)
    wide, wide_gaussian, _ = loss(4.0, (1, 3, 8), 3.0, 27)
    release = digit_weights(8192.0, SIGMA, 8)
    assert release is not None
    return [
        *(
            Demonstration(
                f"exact density, σ_G = {sigma:g}, weights {', '.join(map(str, weights))}",
                ripple,
                math.prod(1 + eta for eta in etas(sigma, weights)) - 1,
                measured_ripple(sigma, weights),
            )
            for sigma, weights in ((2.0, (1, 3, 9)), (1.5, (1, 3, 8)), (2.5, (1, 5, 23)))
        ),
        Demonstration(
            "σD = 8192 at σ_G = 4: eight digits of base 3",
            "standard deviation, in grid steps",
            8192.0,
            SIGMA * math.hypot(*release),
            tolerance=1e-3,
        ),
        Demonstration(
            "whole network, those eight digits",
            step,
            1e-6,
            sum(epsilon_of_ripple(eta, DIMENSION) for eta in etas(SIGMA, release)),
        ),
        Demonstration("one coordinate, σ_G = 4, weights 1, 3, 8", "δ at ε = 3", wide_gaussian, wide),
        Demonstration("one coordinate, σ_G = 4, weights 1, 11, η charged", "δ at ε = 4", charged, narrow),
        Demonstration(
            "one coordinate, σ_G = 4, weights 1, 11, η left out",
            "δ at ε = 4",
            gaussian,
            narrow,
            "η is charged",
        ),
        Demonstration(
            "whole network at σ_G = 2: the lowest digit is too narrow",
            step,
            1e-6,
            sum(epsilon_of_ripple(eta, DIMENSION) for eta in etas(2.0, release)),
            "σ_G ≥ 1.25 √(1 + a²)",
        ),
        Demonstration(
            "widths off by 1 %, period 3, weights 1, 3, 9, 27", shown, 1.01, shown_by_widths(3, POWERS), ideal
        ),
        *(
            Demonstration(
                f"widths off by 1 %, period {width}, weights {said}", shown, 1.01, shown_by_widths(width, w)
            )
            for width, w, said in ((2, POWERS, "1, 3, 9, 27"), (3, SHIFTED, "1, 3, 9, 26"))
        ),
        Demonstration("every third code comes, weights 1, 3, 9, 26", apart, 0.01, modulo(SHIFTED, 3), ideal),
        Demonstration("all codes come, weights 1, 3, 9, 26", apart, 0.01, modulo(SHIFTED)),
        Demonstration("one pixel for all four digits", apart, 0.01, modulo(POWERS, one_pixel=True), fresh),
        Demonstration(
            "black level 10 σ above zero, eight digits",
            "δ of a step from one end, at ε = 1",
            1e-15,
            clipped(8, 10.0),
        ),
        Demonstration(
            "black level 4 σ above zero, eight digits",
            "δ of a step from one end, at ε = 1",
            1e-15,
            clipped(8, 4.0),
            "10 σ to either end",
        ),
    ]
