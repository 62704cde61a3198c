"""T9: composition at settings fixed in advance, and why an odometer is no guarantee. Exact, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, hockey_stick
from privacy import accounting
from privacy.accounting.gdp import gaussian_epsilon
from privacy.notions import Adjacency

NOMINAL = 1e-3
MU, STEPS = 0.2, 400


def best_stop(claim: Callable[[int], float], mu: float = MU, steps: int = STEPS) -> float:
    """Largest delta of the claim epsilon = claim(t) that stopping at a step t chosen by what was seen can reach.

    sup over stopping times tau <= steps of E[(1 − exp(claim(tau) − L_tau))_+], L the privacy loss of un-subsampled
    Gaussian steps: a random walk with steps N(mu²/2, mu²). Backwards over a grid of losses.
    """
    interval = mu / 24
    spread = mu * math.sqrt(steps)
    low, high = -6 * spread, steps * mu**2 / 2 + 8 * spread
    losses = (
        np.arange(math.floor(low / interval), math.ceil(high / interval) + 1, dtype=np.float64) * interval
    )
    reach = math.ceil((9 * mu + mu**2) / interval)
    moves = np.arange(-reach, reach + 1, dtype=np.float64) * interval
    weights = np.exp(-(((moves - mu**2 / 2) / mu) ** 2) / 2)
    weights /= weights.sum()
    value = _gain(losses, claim(steps))
    for t in range(steps - 1, 0, -1):
        value = np.maximum(_gain(losses, claim(t)), _expected(value, weights, reach))
    value = _expected(value, weights, reach)
    return float(np.interp(0.0, losses, value))


def _gain(losses: Array, epsilon: float) -> Array:
    return np.maximum(-np.expm1(np.minimum(epsilon - losses, 0.0)), 0.0)


def _expected(value: Array, weights: Array, reach: int) -> Array:
    """E[value(L + move)]; 0 below the grid and value's last above it."""
    padded = np.concatenate((np.zeros(reach), value, np.full(reach, value[-1])))
    found: Array = np.convolve(padded, weights[::-1], mode="valid")
    return found


def odometer() -> float:
    """delta of "epsilon so far, at delta = NOMINAL" reported at a step of one's choice."""
    return best_stop(lambda t: gaussian_epsilon(MU * math.sqrt(t), NOMINAL))


def preset() -> float:
    """delta of the whole budget's epsilon reported wherever one stops."""
    whole = gaussian_epsilon(MU * math.sqrt(STEPS), NOMINAL)
    return best_stop(lambda t: whole)


def one_direction(sample_rate: float, sigma: float, epsilon: float) -> tuple[float, float]:
    """delta(epsilon) of one step by adding a record and by removing it, on a fine grid."""
    x = np.arange(-12.0, 13.0, 1 / 2048)
    absent = np.exp(-((x / sigma) ** 2) / 2)
    present = (1 - sample_rate) * absent + sample_rate * np.exp(-(((x - 1) / sigma) ** 2) / 2)
    total = absent.sum()
    return hockey_stick(absent / total, present / total, epsilon), hockey_stick(
        present / total, absent / total, epsilon
    )


def accountants(sample_rate: float = 0.02, sigma: float = 1.0, steps: int = 300) -> dict[str, float]:
    """epsilon at delta = 1e-5 of the same run by accountants that share no code."""
    run = {accounting.gaussian(sample_rate, sigma): steps}
    return {
        name: accounting.epsilon(run, 1e-5, Adjacency.ADD_REMOVE, name)
        for name in ("pld", "numerical", "prv", "rdp")
    }


def demonstrations() -> list[Demonstration]:
    found = accountants()
    adding, removing = one_direction(0.5, 1.0, 0.5)
    run = f"{STEPS} steps of μ = {MU:g}, stopped where one likes"
    figure = "ε at δ = 10⁻⁵, q = 0.02, σ = 1, 300 steps"
    return [
        Demonstration(
            "PLD against direct numerical composition",
            figure,
            found["pld"],
            found["numerical"],
            tolerance=1e-3,
        ),
        Demonstration(
            "PRV against direct numerical composition",
            figure,
            found["prv"],
            found["numerical"],
            tolerance=0.02,
        ),
        Demonstration("RDP is an upper bound", figure, found["rdp"], found["pld"]),
        Demonstration(f"{run}; the budget's ε is reported", "δ", NOMINAL, preset()),
        Demonstration(f"{run}; the ε so far is reported", "δ", NOMINAL, odometer(), "a preset budget"),
        Demonstration(
            "one step, q = 1/2, σ = 1: adding a record only",
            "δ at ε = 1/2",
            adding,
            removing,
            "both directions",
        ),
    ]
