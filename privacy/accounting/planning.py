"""A run planned: noise, steps and epsilon of one mechanism, each from the other two, never on the unsafe side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from noise_models.errors import UsageError
from privacy.ledger import ReleaseEvent
from privacy.mechanisms import MECHANISMS
from privacy.notions import Adjacency


@dataclass(frozen=True)
class Scheme:
    """What is fixed before noise, steps and epsilon are talked about.

    Attributes:
        mechanism: a name of `privacy.mechanisms.MECHANISMS`.
        delta: failure probability of the guarantee.
        sample_rate: of Poisson sampling; 1 where a record takes part in every step that is counted.
        adjacency: one the mechanism speaks of.
        accountant: one of the mechanism's.
        beta: probability that the device's calibration is wrong, taken from delta (THEORY T8).
        sensitivity: in grid units for "skellam", in photo-electrons for "poisson", a share of the
            amplitude for "photon"; no other depends on it.
        dimension: coordinates; "skellam" alone depends on it.
        largest: a single pixel's change in photo-electrons, for "poisson"; the sensitivity bounds it too.

    Raises:
        UsageError: a value out of range, an adjacency or accountant the mechanism does not have.
    """

    mechanism: str
    delta: float
    sample_rate: float = 1.0
    adjacency: Adjacency = Adjacency.ADD_REMOVE
    accountant: str = ""
    beta: float = 0.0
    sensitivity: float = 1.0
    dimension: int = 1
    largest: float = math.inf

    def __post_init__(self) -> None:
        from privacy.accounting import accountant_for
        from privacy.accounting.composition import check_budget

        if self.mechanism not in MECHANISMS:
            raise UsageError(f"unknown mechanism {self.mechanism!r}: use one of {', '.join(MECHANISMS)}")
        check_budget(self.delta, self.beta)
        object.__setattr__(self, "accountant", accountant_for(self.mechanism, self.accountant or None))
        object.__setattr__(self, "adjacency", Adjacency(self.adjacency))
        if MECHANISMS[self.mechanism].epochs and self.sample_rate != 1:
            raise UsageError(
                f"sample rate = {self.sample_rate!r}: batches of mechanism {self.mechanism} are public and not "
                "sampled; leave it at 1 and count one step an epoch"
            )
        if self.mechanism == "skellam" and not self.sensitivity >= 1:
            raise UsageError(
                f"sensitivity = {self.sensitivity!r}: integer contributions move by at least 1 grid unit"
            )

    def steps(self, noise_multiplier: float, count: int) -> Mapping[ReleaseEvent, int]:
        """The rows that `count` steps leave in a ledger (of public batches: one step an epoch, THEORY T7)."""
        sigma = noise_multiplier
        if MECHANISMS[self.mechanism].epochs:  # exactly one step with all their noise: mu² adds
            sigma, count = noise_multiplier / math.sqrt(count), 1
        row = ReleaseEvent(
            mechanism=self.mechanism,
            source="plan",
            sample_rate=self.sample_rate,
            noise_multiplier=sigma,
            sensitivity=self.sensitivity,
            dimension=self.dimension,
        )
        if self.mechanism == "poisson":
            from privacy.accounting.poisson_frames import FrameEvent

            row = FrameEvent(**asdict(row), largest=self.largest)
        return {row: count}


@dataclass(frozen=True)
class Plan:
    """A scheme with its noise, steps and the epsilon these cost.

    Attributes:
        scheme: as fixed.
        noise_multiplier: noise over sensitivity.
        steps: number of steps; of public batches the steps a record takes part in, one an epoch.
        epsilon: at the scheme's delta.
        capped: the steps were asked for, and are the most that are counted: as many fit, perhaps more.
    """

    scheme: Scheme
    noise_multiplier: float
    steps: int
    epsilon: float
    capped: bool = False

    def cross_check(self, left_out: dict[str, str] | None = None) -> dict[str, float]:
        """Epsilon by every accountant that covers the mechanism and adjacency, and exactly where a closed form is.

        Without sampling Gaussian steps are mu-Gaussian differentially private: "gdp", no limit theorem involved.

        Args:
            left_out: receives, of every accountant that has no figure here, why.
        """
        from privacy import accounting
        from privacy.accounting.gdp import gaussian_epsilon

        scheme, found = self.scheme, {}
        reasons = {} if left_out is None else left_out
        for name in MECHANISMS[scheme.mechanism].accountants:
            try:
                found[name] = _epsilon(replace(scheme, accountant=name), self.noise_multiplier, self.steps)
            except UsageError as error:  # it does not cover this adjacency, or its arithmetic ends here
                reasons[name] = str(error)
        if scheme.mechanism == "gaussian" and scheme.sample_rate == 1:
            width = 2 if scheme.adjacency is Adjacency.REPLACE_ONE else 1
            mu = width * math.sqrt(self.steps) / self.noise_multiplier
            found["gdp"] = gaussian_epsilon(mu, scheme.delta - scheme.beta)
        unresolved = not accounting.resolves(scheme.delta - scheme.beta, self.steps)
        if scheme.mechanism == "gaussian" and unresolved and found.pop("numerical", None) is not None:
            reasons["numerical"] = f"it does not resolve delta after {self.steps:,} steps"
        return found


def complete(
    scheme: Scheme,
    *,
    noise_multiplier: float | None = None,
    steps: int | None = None,
    epsilon: float | None = None,
) -> Plan:
    """The plan that two of the three make; the third is the least noise or the most steps within the budget.

    Raises:
        UsageError: not exactly two given, a value out of range, a budget that no noise reaches or that does not pay
            for one step.
    """
    from privacy import accounting

    given = sum(value is not None for value in (noise_multiplier, steps, epsilon))
    if given != 2:
        raise UsageError(f"{given} of noise multiplier, steps and epsilon given; give two: the third follows")
    if noise_multiplier is None:
        assert steps is not None
        assert epsilon is not None
        count = steps
        noise_multiplier = accounting.least_noise(
            epsilon,
            scheme.delta,
            lambda sigma: scheme.steps(sigma, count),
            scheme.adjacency,
            scheme.accountant,
            beta=scheme.beta,
        )
    asked_for_steps = steps is None
    if steps is None:
        assert epsilon is not None
        assert noise_multiplier is not None
        sigma = noise_multiplier
        steps = accounting.releases_within(
            epsilon,
            scheme.delta,
            lambda count: scheme.steps(sigma, count),
            scheme.adjacency,
            scheme.accountant,
            beta=scheme.beta,
        )
        if steps < 1:
            raise UsageError(
                f"epsilon = {epsilon:g} does not pay for one step; raise it or the noise multiplier"
            )
    capped = asked_for_steps and steps >= accounting.STEP_LIMIT
    return Plan(scheme, noise_multiplier, steps, _epsilon(scheme, noise_multiplier, steps), capped)


def _epsilon(scheme: Scheme, noise_multiplier: float, steps: int) -> float:
    from privacy import accounting

    rows = scheme.steps(noise_multiplier, steps)
    return accounting.epsilon(rows, scheme.delta, scheme.adjacency, scheme.accountant, beta=scheme.beta)
