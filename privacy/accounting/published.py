"""`published`: the epsilon that an isotropic reading of per-record projection noise gives (THEORY T1). NOT a bound.

A RECONSTRUCTION of the accounting in Ohana et al., "Photonic Differential Privacy with Direct Feedback Alignment"
(NeurIPS 2021, arXiv 2106.03645): we write the form down from the paper's description, not from its theorem. Each
record's projection carries noise g_i of standard deviation sigma, so coordinate (k, j) of a layer's update has the
variance

    sigma² Σ_i φ'(a_ik)² h_ij²  >=  sigma² m φ'_min² h_min²                                    (1)

if every activation and every derivative keeps a distance from zero. The update's noise is then TAKEN FOR an isotropic
Gaussian of that variance, and one record moves its mean by at most C, so that a step is read as the Gaussian mechanism
with

    noise multiplier  z = sigma sqrt(m) φ'_min h_min / C,                                      (2)

Poisson-subsampled at rate q, composed by Rényi divergences and converted by Mironov's rule (arXiv 1702.07476, prop. 3).
(1) bounds the covariance's diagonal, not its eigenvalues: the covariance of row k is `sigma² Σ_i φ'_ik² h_i h_i^T`,
of rank at most m, and most of its eigenvalues are zero. What follows is a number that can be reproduced, of kind
`conditional`; `privacy.releases.certificates` says which of its assumptions fail, `privacy.attacks.off_span`
exceeds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from noise_models.errors import UsageError
from privacy.accounting.amplification import subsampled
from privacy.accounting.discretisation import Group
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512)


def epsilon(tally: Mapping[ReleaseEvent, int], delta: float, adjacency: Adjacency, accountant: str) -> float:
    """The published-style epsilon of these releases at `delta`; 0 without releases, inf without noise.

    Args:
        tally: rows of mechanism "published", whose noise multiplier is (2).
        delta: 0 < delta < 1.
        adjacency: add-or-remove-one.
        accountant: "published" (this file) or "published-rdp" (the same form from dp_accounting's divergences).
    Raises:
        UsageError: another adjacency.
    """
    if adjacency is not Adjacency.ADD_REMOVE:
        raise UsageError(f"the published form speaks of add-or-remove-one, not {adjacency.value}")
    steps: dict[tuple[float, float], int] = {}
    for release, count in tally.items():
        if count > 0:
            key = (release.sample_rate, release.noise_multiplier)
            steps[key] = steps.get(key, 0) + count
    if not steps:
        return 0.0
    if any(multiplier == 0 for _, multiplier in steps):
        return math.inf
    groups = tuple(Group(q, multiplier, count) for (q, multiplier), count in sorted(steps.items()))
    if accountant == "published-rdp":
        from privacy.accounting.rdp import divergences

        spent = divergences(groups, ORDERS)
    else:
        spent = [
            math.fsum(
                group.steps * renyi(group.sample_rate, group.noise_multiplier, order) for group in groups
            )
            for order in ORDERS
        ]
    # Mironov's conversion, of the published form: tighter ones would make it another claim.
    best = math.inf
    for total, order in zip(spent, ORDERS, strict=True):
        best = min(best, total + math.log(1 / delta) / (order - 1))
    return best


@lru_cache(maxsize=4096)
def renyi(sample_rate: float, noise_multiplier: float, order: int) -> float:
    """Rényi divergence of one Poisson-subsampled Gaussian step, whole orders (Mironov et al. 2019, arXiv 1908.10530).

    Args:
        sample_rate: q, 0 < q <= 1.
        noise_multiplier: z > 0; unsampled, D_k = k / (2 z²).
        order: α >= 2.
    """
    return float(subsampled((order,), sample_rate, lambda k: k / (2 * noise_multiplier**2))[0])
