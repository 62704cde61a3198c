"""Leverage: how much of the noise in a direction is there without one record (THEORY T7).

Row k of a per-record projection's update has noise covariance `σ² H_k^T H_k`, rows of `H_k` being `φ'_ik (h_i, 1)`. A
record's shift in that row is `(b_k·Δ) φ'_ik (h_i, 1)`, so that its squared length in the noise's own metric is
`(b_k·Δ)² τ_ik / σ²` with the leverage

    τ_ik = φ'_ik² (h_i, 1)^T (H_k^T H_k)⁺ (h_i, 1)  ∈ [0, 1],   Σ_i τ_ik = rank H_k.

What is returned is an UPPER bound that holds for the inputs as they are in memory. No direction is ever cut off: a
pseudo-inverse's cut-off can turn τ = 1 into 0.113. Where rounding could hide a direction, τ is 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noise_models.errors import UsageError

MARGIN = 1e-3  # a rounding bound above this is not added to a leverage: it is 1 then
MOST_OPERATIONS = 1e12  # a layer and step: some minutes of one core
_ELEMENTS = 1 << 22  # elements of weighted inputs formed at a time
_UNIT = torch.finfo(torch.float64).eps / 2


def leverages(inputs: Tensor, gates: Tensor) -> Tensor:
    """Upper bounds on τ_ik.

    H = QR once (Householder); then for each unit the Cholesky factor of `Q^T diag(φ'_k²) Q`, whose range is that of
    H_k. Rounding (Higham, Accuracy and Stability of Numerical Algorithms, theorems 19.4 and 10.3) moves Q by at most
    about m·r·u·κ(H) and the factored matrix by m·r·u, both in units of their norms: relative to the smallest
    eigenvalue, these are the margins that are added.

    Args:
        inputs: (h_i, 1), shape (m, d), finite.
        gates: φ' at each record and unit, shape (m, n), finite.
    Returns:
        shape (m, n), float64, in [0, 1]; exactly 0 where the gate is 0.
    Raises:
        UsageError: the sizes are beyond MOST_OPERATIONS.
    """
    m, n = gates.shape
    h, g = inputs.double(), gates.double().abs()
    scale = h.abs().amax(0) if m else h.new_zeros(h.shape[1])
    h = h[:, scale > 0] / scale[scale > 0]  # a column of zeros adds nothing to the range; scales cancel
    h = h / torch.linalg.vector_norm(h, dim=0)
    r = h.shape[1]
    certain = (g > 0).to(torch.float64)  # τ = 1, but for records that are no part of the row
    if r == 0 or r >= m:
        return certain
    q, upper = torch.linalg.qr(h)
    unit = m * r * _UNIT
    spread = torch.linalg.svdvals(upper)
    drift = 4 * unit * float(spread[0] / spread[-1]) if float(spread[-1]) > 0 else math.inf
    if not drift <= MARGIN:
        return certain
    if bool((g == 1).all()):
        tau: Tensor = q.square().sum(1) * (1 + drift) + drift
        return tau.clamp_max(1.0).unsqueeze(1).expand(m, n)
    operations = 3.0 * n * m * r * r
    if operations > MOST_OPERATIONS:
        raise UsageError(
            f"the leverages of {n} units over {m} records with {r} inputs take {operations:.1g} operations, above "
            f"{MOST_OPERATIONS:.0e}; give the layer fewer inputs (--features pca:64) or units, or smaller batches"
        )
    found = torch.empty_like(g)
    size = max(1, _ELEMENTS // (m * r))
    for start in range(0, n, size):
        found[:, start : start + size] = _weighted(q, g[:, start : start + size], drift, unit).T
    return found.minimum(certain)


def _weighted(q: Tensor, gates: Tensor, drift: float, unit: float) -> Tensor:
    """Bounds for some units, shape (units, m); `q` has orthonormal columns."""
    largest = gates.amax(0).clamp_min(torch.finfo(torch.float64).tiny)
    rows = (gates / largest).T.unsqueeze(2) * q  # (units, m, r)
    factor, failed = torch.linalg.cholesky_ex(rows.mT @ rows)
    alive = failed == 0
    identity = torch.eye(q.shape[1], dtype=q.dtype).expand_as(factor)
    factor = torch.where(alive.view(-1, 1, 1), factor, identity)
    tau = torch.linalg.solve_triangular(factor, rows.mT, upper=False).square().sum(1)
    # λ_max <= trace(G) <= |L|², 1/λ_min <= trace(G^-1) = |L^-1|²
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    condition = factor.square().sum((1, 2)) * inverse.square().sum((1, 2))
    margin = 4 * unit * condition + drift * condition.sqrt()
    bounded = (tau * (1 + margin.unsqueeze(1)) + margin.unsqueeze(1)).clamp_max(1.0)
    sure = alive & (margin <= MARGIN)
    return torch.where(sure.unsqueeze(1), bounded, torch.ones_like(bounded))
