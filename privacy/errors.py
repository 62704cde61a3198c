"""Every error that a user of this package meets."""

from __future__ import annotations

from noise_models.errors import DeviceError as DeviceError
from noise_models.errors import HealthError as HealthError
from noise_models.errors import UsageError as UsageError


class BudgetExhaustedError(RuntimeError):
    """The next release would pass the target epsilon; nothing was released."""


class LedgerUnreadableError(UsageError):
    """A ledger that is there, and that permissions, a full disk or another program keep out of reach."""


class WorkerLostError(UsageError):
    """Another process of the run stopped or failed; this one releases nothing more."""
