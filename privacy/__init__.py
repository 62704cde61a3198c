"""Differential privacy whose noise is a device's own: releases, accounting, ledger and audit.

from privacy import PrivacyEngine
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privacy.batch_memory_manager import BatchMemoryManager
    from privacy.engine import BudgetExhaustedError, PrivacyEngine

__all__ = ["BatchMemoryManager", "BudgetExhaustedError", "PrivacyEngine"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loads torch, which accounting does without
        module = "privacy.batch_memory_manager" if name == "BatchMemoryManager" else "privacy.engine"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
