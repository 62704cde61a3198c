"""Filters: composition of steps whose noise is chosen on the way, against a budget fixed BEFORE the first (THEORY T9).

A filter is asked before a release, which is made only if it admits it. Whatever chose the costs, what was released
satisfies the BUDGET, and the budget is what may be reported. Stopping when the amount spent so far looks good and
reporting that amount is an odometer: it is no guarantee (its delta is several times the nominal one).

* Un-subsampled Gaussian steps: mu² adds (Smith and Thakurta 2022, arXiv 2210.17520; per record: Koskela, Tobaben,
  Honkela 2023, arXiv 2209.15596). Poisson-subsampled steps are not Gaussian: use the Rényi filter.
* Any steps with a Rényi divergence at ONE order fixed beforehand: divergences add (Feldman and Zrnic 2021, arXiv
  2008.11193, whole-data and per-record filters). No minimum over orders is taken afterwards.

Per record: a record whose own costs are used up contributes no more, the others go on. Each record's cost must be a
function of that record and of what was released. Who still takes part is then private and not to be shown.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noise_models.errors import UsageError
from privacy.accounting.gdp import gaussian_mu

Array = NDArray[np.float64]


class _Budget:
    """Amounts that only grow, one for everybody or one a record, each kept at or below the same limit."""

    def __init__(self, limit: float, records: int | None) -> None:
        if not 0 <= limit < math.inf:
            raise UsageError(f"a budget of {limit!r} is none: give a finite value >= 0")
        if records is not None and records < 1:
            raise UsageError(
                f"records = {records!r}: give the number of records, or None for one common budget"
            )
        self._limit = limit
        self._spent: Array = np.zeros(1 if records is None else records)
        self._common = records is None

    def admitted(
        self, amounts: ArrayLike, records: ArrayLike | None
    ) -> tuple[NDArray[np.bool_], Array, NDArray[np.int64]]:
        amount = np.atleast_1d(np.asarray(amounts, dtype=np.float64))
        if not (amount >= 0).all():
            raise UsageError(f"a cost of {float(np.nanmin(amount)):g} or NaN: give costs >= 0")
        if self._common:
            if records is not None or amount.size != 1:
                raise UsageError("a filter with one common budget takes one cost and no records")
            index = np.zeros(1, dtype=np.int64)
        else:
            everyone = np.arange(len(self._spent))
            index = everyone if records is None else _indices(records, len(self._spent))
            if index is not everyone and len(np.unique(index)) != len(index):
                raise UsageError("a record occurs twice in one release: add its costs up first")
            amount = np.broadcast_to(amount, index.shape)
        # Rounded up, so that a long run's sum is never below its true value.
        after = np.nextafter(self._spent[index] + amount, math.inf)
        return (after <= self._limit) | (amount == 0), np.where(amount == 0, self._spent[index], after), index

    def spend(self, amounts: ArrayLike, records: ArrayLike | None) -> None:
        allowed, after, index = self.admitted(amounts, records)
        if not allowed.all():
            raise UsageError(
                f"the budget of the filter does not admit this release ({int((~allowed).sum())} of {len(index)} "
                "costs): ask before, and stop or leave those records out"
            )
        self._spent[index] = after

    def left(self) -> Array:
        return np.maximum(self._limit - self._spent, 0.0)


def _indices(records: ArrayLike, count: int) -> NDArray[np.int64]:
    """Raises UsageError where `records` are no numbers of records (a mask, negative, beyond the last)."""
    given = np.asarray(records).ravel()
    if given.size and not (
        np.issubdtype(given.dtype, np.integer) and 0 <= given.min() <= given.max() < count
    ):
        raise UsageError(
            f"records {given[:4]}… are not all whole numbers from 0 to {count - 1}: give their indices"
        )
    return given.astype(np.int64)


class GaussianFilter:
    """Adaptively chosen Gaussian mechanisms, together mu-Gaussian differentially private for the preset mu.

    Args:
        mu: the budget, fixed before the first release.
        records: a budget for each of so many records; None: one for all, with worst-case costs.

    Raises:
        UsageError: a budget or a number of records out of range.
    """

    def __init__(self, mu: float, records: int | None = None) -> None:
        self._budget = _Budget(mu**2, records)
        self.mu = mu

    @classmethod
    def within(cls, epsilon: float, delta: float, records: int | None = None) -> Self:
        """The filter whose releases together satisfy (epsilon, delta). Raises UsageError on a value out of range."""
        return cls(gaussian_mu(epsilon, delta), records)

    def admits(self, mu: ArrayLike, records: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Whether a release of cost `mu` (sensitivity over noise) fits, per record of `records` (None: all).

        Returns:
            Shape (1,) for a common budget, else one entry a record.

        Raises:
            UsageError: a negative or NaN cost, a record named twice, records of a common budget.
        """
        return self._budget.admitted(np.square(_costs(mu)), records)[0]

    def spend(self, mu: ArrayLike, records: ArrayLike | None = None) -> None:
        """Takes the cost, BEFORE the release. Raises UsageError, and takes nothing, where it is not admitted."""
        self._budget.spend(np.square(_costs(mu)), records)

    def left(self) -> Array:
        """The largest mu that one more release may cost, per record or shape (1,)."""
        return np.sqrt(self._budget.left())


class RenyiFilter:
    """Adaptively chosen steps whose Rényi divergences of one fixed order add up to at most the preset budget.

    Args:
        order: > 1, fixed before the first release.
        divergence: the budget, in nats.
        records: as in `GaussianFilter`.

    Raises:
        UsageError: an order, a budget or a number of records out of range.
    """

    def __init__(self, order: float, divergence: float, records: int | None = None) -> None:
        if not 1 < order < math.inf:
            raise UsageError(f"order = {order!r}: give a finite Rényi order > 1")
        self._budget = _Budget(divergence, records)
        self.order = order

    @classmethod
    def within(cls, epsilon: float, delta: float, order: float, records: int | None = None) -> Self:
        """The filter whose releases together satisfy (epsilon, delta) (conversion: Canonne, Kamath, Steinke 2020).

        Raises:
            UsageError: a value out of range, or an order too low for any budget to be left.
        """
        if not 0 < epsilon < math.inf or not 0 < delta < 1 or not 1 < order < math.inf:
            raise UsageError(
                f"epsilon = {epsilon!r}, delta = {delta!r}, order = {order!r}: need epsilon > 0, 0 < delta < 1, "
                "order > 1, finite"
            )
        divergence = epsilon - math.log1p(-1 / order) + (math.log(delta) + math.log(order)) / (order - 1)
        if divergence < 0:
            raise UsageError(
                f"order = {order:g} leaves no budget at epsilon = {epsilon:g}, delta = {delta:g}: take a larger order"
            )
        return cls(order, divergence, records)

    def admits(self, divergence: ArrayLike, records: ArrayLike | None = None) -> NDArray[np.bool_]:
        """As `GaussianFilter.admits`; `divergence` is the step's at `order`, the larger of both directions."""
        return self._budget.admitted(_costs(divergence), records)[0]

    def spend(self, divergence: ArrayLike, records: ArrayLike | None = None) -> None:
        """As `GaussianFilter.spend`."""
        self._budget.spend(_costs(divergence), records)

    def left(self) -> Array:
        """The largest divergence that one more release may have, per record or shape (1,)."""
        return self._budget.left()


def _costs(values: ArrayLike) -> Array:
    costs = np.asarray(values, dtype=np.float64)
    if not (costs >= 0).all():
        raise UsageError("a cost is negative or NaN: give costs >= 0")
    return costs
