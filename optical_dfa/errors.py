"""Every error that a user of this package meets."""

from privacy.errors import BudgetExhaustedError as BudgetExhaustedError
from privacy.errors import DeviceError as DeviceError
from privacy.errors import HealthError as HealthError
from privacy.errors import LedgerUnreadableError as LedgerUnreadableError
from privacy.errors import UsageError as UsageError
from privacy.errors import WorkerLostError as WorkerLostError
