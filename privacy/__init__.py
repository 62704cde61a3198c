"""Differential privacy whose noise is a device's own: releases, accounting, ledger and audit.

from privacy import PrivacyEngine
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privacy.engine import BudgetExhaustedError, PrivacyEngine

__all__ = ["BudgetExhaustedError", "PrivacyEngine"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loads torch, which accounting does without
        return getattr(importlib.import_module("privacy.engine"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
