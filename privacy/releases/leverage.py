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
_ELEMENTS = 1 << 22  # elements formed at a time
_UNIT = torch.finfo(torch.float64).eps / 2


def leverages(inputs: Tensor, gates: Tensor) -> Tensor:
    """Upper bounds on τ_ik.

    H = QR once (Householder); then for each unit the inverse of `Q^T diag(φ'_k²) Q`. Rounding (Higham, Accuracy and
    Stability of Numerical Algorithms, theorem 19.4) moves Q by at most about m·r·u·κ(H); what that, the sum over the
    records and the inversion may do to τ, relative to the smallest eigenvalue, is added.

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
    spread = torch.linalg.svdvals(upper)
    drift = 4 * m * r * _UNIT * float(spread[0] / spread[-1]) if float(spread[-1]) > 0 else math.inf
    if not drift <= MARGIN:
        return certain
    if bool((g == 1).all()):
        tau: Tensor = q.square().sum(1) * (1 + drift) + drift
        return tau.clamp_max(1.0).unsqueeze(1).expand(m, n)
    operations = 2.0 * n * m * r * r
    if operations > MOST_OPERATIONS:
        raise UsageError(
            f"the leverages of {n} units with {r} inputs over a batch take more than {MOST_OPERATIONS:.0e} operations; "
            f"give the layer fewer inputs (--features pca:64) or units, or smaller batches"
        )
    size = max(1, _ELEMENTS // (r * r))
    parts = [_weighted(q, g[:, start : start + size], drift) for start in range(0, n, size)]
    return torch.cat(parts, dim=1).minimum(certain)


def _weighted(q: Tensor, gates: Tensor, drift: float) -> Tensor:
    """Bounds for some units, shape (m, units); `q` has orthonormal columns.

    Both passes over the records are plain matrix products, with the upper triangles of `q_i q_i^T` as their rows.
    """
    m, r = q.shape
    weights = (gates / gates.amax(0).clamp_min(torch.finfo(torch.float64).tiny)).square()  # τ is scale-free
    upper = torch.triu_indices(r, r)
    size = max(1, _ELEMENTS // len(upper[0]))
    blocks = [slice(start, start + size) for start in range(0, m, size)]
    packed = q.new_zeros(len(upper[0]), gates.shape[1])
    for block in blocks:
        packed += _products(q[block], upper).T @ weights[block]
    gram = q.new_zeros(gates.shape[1], r, r)
    gram[:, upper[0], upper[1]] = gram[:, upper[1], upper[0]] = packed.T
    eigenvalues, vectors = torch.linalg.eigh(gram)
    trace, most = eigenvalues.sum(1), eigenvalues[:, -1]
    least = eigenvalues[:, 0] - (m + r) * _UNIT * trace
    alive = least > 0
    least = torch.where(alive, least, torch.ones_like(least))
    inverse = (vectors / torch.where(alive.unsqueeze(1), eigenvalues, 1.0).unsqueeze(1)) @ vectors.mT
    both = torch.where(upper[0] == upper[1], 1.0, 2.0).unsqueeze(1)  # off the diagonal twice
    form = inverse[:, upper[0], upper[1]].T * both
    tau = torch.cat([_products(q[block], upper) @ form for block in blocks]) * weights
    # The sum of the matrix, its inverse (Higham, theorem 14.1 and problem 14.6), and Q itself.
    relative = 2 * m * _UNIT * trace / least
    absolute = 16 * r * r * _UNIT * most / least.square() + drift * most.sqrt() / least
    sure = alive & (relative + absolute <= MARGIN)
    return torch.where(
        sure, (tau * (1 + relative) + relative + absolute).clamp(0.0, 1.0), torch.ones_like(tau)
    )


def _products(q: Tensor, upper: Tensor) -> Tensor:
    """The upper triangle of each record's `q_i q_i^T`, shape (m, r(r+1)/2)."""
    return q[:, upper[0]] * q[:, upper[1]]
