"""T10: shot noise of a sum carried by light. Exact divergences of Poisson counts, nothing sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array
from privacy.accounting.photon import factor
from privacy.accounting.poisson import renyi

DEVICES = 300
BOUND = 4.0  # D of the random devices


@dataclass(frozen=True)
class Light:
    """A light path: E = κ T a beside a reference of amplitude r, |E| <= ρ r for |a_j| <= clamp.

    Attributes:
        arms: behind a half mirror, 2, or one camera's pixels by themselves, 1.
    """

    field: Array
    reference: float
    light: float
    clamp: float
    arms: int = 2

    @property
    def ratio(self) -> float:
        """ρ."""
        return float(self.light * np.abs(self.field).sum(1).max() * self.clamp / self.reference)

    def norm(self, gamma: float | None = None) -> float:
        """M; γ follows from ρ unless it is given."""
        return float(np.linalg.norm(self.stacked(gamma), 2))

    def stacked(self, gamma: float | None = None) -> Array:
        """L, whose norm M is: what the field in phase and the one in quadrature may count, pixel by pixel."""
        phase = 1.0
        if gamma is None and self.arms == 1:
            phase, gamma = math.sqrt(1 + self.ratio), math.sqrt(self.ratio)
        elif gamma is None:
            gamma = self.ratio / math.sqrt(1 + self.ratio**2)
        return np.concatenate([phase * self.field.real, gamma * self.field.imag])

    def allowed(self, order: float, bound: float, gamma: float | None = None) -> float:
        """Φ κ² M² D²."""
        step = self.light * bound * float(np.linalg.norm(self.field, axis=1).max())
        change = step / ((1 - self.ratio) * self.reference)
        return factor(order, change) * (self.light * self.norm(gamma) * bound) ** 2

    def rates(self, column: Array, turned: float = 0.0) -> Array:
        """Expected counts of all arms, the reference's phase `turned` by so many radians."""
        reference = self.reference * np.exp(1j * turned)
        field = self.light * (self.field @ column)
        signs = (1, -1)[: self.arms]
        return np.concatenate([np.abs(reference + sign * field) ** 2 / self.arms for sign in signs])

    def divergence(self, first: Array, second: Array, order: float, turned: float = 0.0) -> float:
        """The larger direction of D_order between the counts of two columns, exactly."""
        a, b = self.rates(first, turned), self.rates(second, turned)
        return max(renyi(a, b, order), renyi(b, a, order))


def attained(order: float, change: float) -> float:
    """Largest D over squared change of amplitude, over amplitudes and changes that are allowed, both directions."""
    found = 0.0
    for low in np.geomspace(1.0, 100.0, 60):
        for step in np.linspace(change / 20, change, 20):
            for s, t in ((low + step, low), (low, low + step)):
                found = max(found, renyi(s * s, t * t, order) / step**2)
    return found


def random_light(rng: np.random.Generator, arms: int) -> Light:
    """A device of up to 12 pixels and 8 entries, dim or bright."""
    shape = (int(rng.integers(1, 13)), int(rng.integers(1, 9)))
    field = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    reference, ratio, clamp = float(rng.uniform(5, 200)), float(rng.uniform(0.001, 0.7)), 40.0
    light = ratio * reference / float(np.abs(field).sum(1).max() * clamp)
    return Light(field, reference, light, clamp, arms)


def worst_share(arms: int) -> float:
    """Largest share of the bound over random devices, columns and orders, the worst record shown."""
    rng, found = np.random.default_rng(0), 0.0
    for _ in range(DEVICES):
        light = random_light(rng, arms)
        worst: Array = np.linalg.svd(light.stacked())[2][0] * BOUND
        inputs = int(light.field.shape[1])
        starts: tuple[Array, ...] = (np.zeros(inputs), rng.uniform(-light.clamp, light.clamp, inputs))
        for start in starts:
            other: Array = np.clip(start + worst, -light.clamp, light.clamp)
            order = float(rng.integers(2, 20))
            found = max(found, light.divergence(start, other, order) / light.allowed(order, BOUND))
    return found


def planes(entry: int) -> list[int]:
    """The bit planes of a whole number below 1024."""
    return [((entry >> bit) & 1) << bit for bit in range(10)]


def bit_planes() -> tuple[float, float]:
    """D_2 from 511 to 512: the bound on one step of the grid, and what ten exposures of bit planes show."""
    light = Light(np.array([[1.0 + 0.0j]]), 70.0, 0.01, 1024.0)
    found = sum(
        light.divergence(np.array([float(a)]), np.array([float(b)]), 2)
        for a, b in zip(planes(511), planes(512), strict=True)
    )
    return light.allowed(2, 1.0), found


def in_quadrature() -> tuple[float, float]:
    """A medium whose field is in quadrature: the bound with γ, and D_2 once the reference has turned by π/2."""
    light = Light(np.array([[1.0j]]), 70.0, 0.05, 20.0)
    return light.allowed(2, 4.0), light.divergence(np.zeros(1), np.full(1, 4.0), 2, turned=math.pi / 2)


def one_arm_as_two() -> tuple[float, float]:
    """One camera's pixel with the light of two arms: the bound of two arms, and D_2. Nothing takes away what the field
    in quadrature adds to one count."""
    light = Light(np.array([[0.5 + 1.0j]]), 70.0, 1.0, 20.0)
    alone = replace(light, arms=1)
    return light.allowed(2, 4.0), alone.divergence(np.full(1, 16.0), np.full(1, 20.0), 2)


def uneven_levels(step: float = 1.5) -> tuple[float, float, float]:
    """A pixel whose level 16 is half a step too bright, 3 % of its amplitude: what one unit may cost where steps are
    taken for even, where they are charged, and D_2 from 15 to 16."""
    light = Light(np.array([[1.0 + 0.0j]]), 70.0, 0.05, 20.0)
    found = light.divergence(np.array([15.0]), np.array([15.0 + step]), 2)
    return light.allowed(2, 1.0), light.allowed(2, step), found


def without_quadrature() -> tuple[float, float]:
    """The same medium, the phase still, and γ = 0: at a large sum what is in quadrature shows."""
    light = Light(np.array([[0.02 + 1.0j]]), 70.0, 2.0, 20.0)
    return light.allowed(2, 4.0, gamma=0.0), light.divergence(np.full(1, 16.0), np.full(1, 20.0), 2)


def excess_noise(electrons: float = 2e4, intensity: float = 0.01) -> float:
    """κ² that a photon-transfer gain finds, over the true one, where all light flickers by `intensity`."""
    return 1 / (1 + intensity**2 * electrons)


def heated(columns: int = 1000, memory: float = 0.1) -> tuple[float, float]:
    """D_2 of one changed column, and of what follows it where each later field keeps `memory` of the change."""
    light = Light(np.array([[1.0 + 0.0j]]), 70.0, 0.05, 20.0)
    alone = light.divergence(np.zeros(1), np.full(1, 4.0), 2)
    after = light.divergence(np.zeros(1), np.full(1, 4.0 * memory), 2)
    return light.allowed(2, 4.0), alone + (columns - 1) * after


def regular(fano: float = 0.1) -> tuple[float, float]:
    """D_2 of counts of less variance than Poisson's, in the limit of bright light: 1 / fano times as much."""
    light = Light(np.array([[1.0 + 0.0j]]), 200.0, 0.05, 20.0)
    return light.allowed(2, 4.0), light.divergence(np.zeros(1), np.full(1, 4.0), 2) / fano


def demonstrations() -> list[Demonstration]:
    """Conditions kept, then dropped."""
    even, bits = bit_planes()
    still, turned = in_quadrature()
    even_steps, charged, uneven = uneven_levels()
    paired, alone = one_arm_as_two()
    blind, shown = without_quadrature()
    once, heat = heated()
    coherent, squeezed = regular()
    kappa = excess_noise()
    return [
        Demonstration(
            "counts of amplitude 1 and more, changed by 0.05 at most, order 32",
            "largest D over squared change of amplitude",
            factor(32, 0.05),
            attained(32, 0.05),
            tolerance=1e-6,
        ),
        Demonstration(
            f"{DEVICES} random devices, worst record, sums inside the clamp, orders 2 to 19",
            "largest exact divergence over Φ κ² M² D²",
            1.0,
            worst_share(2),
        ),
        Demonstration(
            "the same with one arm: every pixel of one camera counts for itself",
            "largest exact divergence over Φ κ² M² D²",
            1.0,
            worst_share(1),
        ),
        Demonstration(
            "ten bit planes of one exposure each, 511 to 512",
            "D_2 of one step of the grid",
            even,
            bits,
            dropped="the number itself is the amplitude: bit planes",
        ),
        Demonstration(
            "field in quadrature, ρ = 0.014, reference turned by π/2",
            "D_2",
            still,
            turned,
            dropped="the phase is bounded, or γ = 1",
        ),
        Demonstration(
            "field in quadrature, ρ = 0.57, large sum",
            "D_2 against the bound of the part in phase alone",
            blind,
            shown,
            dropped="γ counts what is in quadrature",
        ),
        Demonstration(
            "a grey level that is half a step too bright, charged",
            "D_2 of one step of the grid",
            charged,
            uneven,
        ),
        Demonstration(
            "a grey level that is half a step too bright",
            "D_2 of one step of the grid",
            even_steps,
            uneven,
            dropped="unequal mirrors and steps between levels are charged",
        ),
        Demonstration(
            "one arm, field between phase and quadrature, ρ = 0.32",
            "D_2 against the bound of two arms",
            paired,
            alone,
            dropped="one arm counts √(1 + ρ) Re and √ρ Im",
        ),
        Demonstration(
            "1 % common intensity noise at 20,000 electrons, gain from the photon-transfer line",
            "true κ² over the one measured",
            1.0,
            1 / kappa,
            dropped="common noise is removed before κ is measured",
        ),
        Demonstration(
            "1000 later columns keep a tenth of the change",
            "D_2 of a step",
            once,
            heat,
            dropped="mirrors and medium have no memory",
        ),
        Demonstration(
            "counts of a tenth of Poisson's variance",
            "D_2",
            coherent,
            squeezed,
            dropped="the light is no more regular than coherent",
        ),
    ]
