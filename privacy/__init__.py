"""Differential privacy whose noise is a device's own: releases, accounting, ledger and audit.

from privacy import PrivacyEngine
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

for _name in ("noise_models",):
    _found = find_spec(_name)
    if _found is None or _found.origin is None or Path(_found.origin).parents[1] != Path(__file__).parents[1]:
        _where = _found and (_found.origin or next(iter(_found.submodule_search_locations or ()), None))
        raise ImportError(
            f"{_where or 'nothing'} stands where this library's package {_name} is looked for; rename it, or run "
            "Python in another folder"
        )

from noise_models.front_door import front_door  # noqa: E402 - what stands in its place is seen first

if TYPE_CHECKING:
    from privacy.auditing.audit import audit
    from privacy.batch_memory_manager import BatchMemoryManager
    from privacy.engine import PrivacyEngine
    from privacy.errors import (
        BudgetExhaustedError,
        DeviceError,
        LedgerUnreadableError,
        UsageError,
        WorkerLostError,
    )
    from privacy.guarantee import Guarantee
    from privacy.ledger import Ledger
    from privacy.validation import validate

__all__ = [
    "BatchMemoryManager", "BudgetExhaustedError", "DeviceError", "Guarantee", "Ledger", "LedgerUnreadableError",
    "PrivacyEngine", "UsageError", "WorkerLostError", "audit", "validate",
]  # fmt: skip

__getattr__, __dir__ = front_door(
    __name__,
    {
        "BatchMemoryManager": "privacy.batch_memory_manager",
        "BudgetExhaustedError": "privacy.errors",
        "DeviceError": "privacy.errors",
        "Guarantee": "privacy.guarantee",
        "Ledger": "privacy.ledger",
        "LedgerUnreadableError": "privacy.errors",
        "PrivacyEngine": "privacy.engine",
        "UsageError": "privacy.errors",
        "WorkerLostError": "privacy.errors",
        "audit": "privacy.auditing.audit",
        "validate": "privacy.validation",
    },
)
