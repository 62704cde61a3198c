"""Direct Feedback Alignment through digital, simulated or real optical projections, trained privately.

from optical_dfa import PrivacyEngine, align
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

for _name in ("noise_models", "privacy"):
    _found = find_spec(_name)
    if _found is None or _found.origin is None or Path(_found.origin).parents[1] != Path(__file__).parents[1]:
        _where = _found and (_found.origin or next(iter(_found.submodule_search_locations or ()), None))
        raise ImportError(
            f"{_where or 'nothing'} stands where this library's package {_name} is looked for; rename it, or run "
            "Python in another folder"
        )

from noise_models.front_door import front_door  # noqa: E402 - what stands in its place is seen first

if TYPE_CHECKING:
    from optical_dfa.aligning import align, unalign
    from optical_dfa.backends import create
    from optical_dfa.data import load
    from optical_dfa.errors import (
        BudgetExhaustedError,
        DeviceError,
        LedgerUnreadableError,
        UsageError,
        WorkerLostError,
    )
    from optical_dfa.feedback.aligned import AlignedModule
    from optical_dfa.version import __version__
    from privacy.engine import PrivacyEngine
    from privacy.guarantee import Guarantee

__all__ = [
    "AlignedModule", "BudgetExhaustedError", "DeviceError", "Guarantee", "LedgerUnreadableError", "PrivacyEngine",
    "UsageError", "WorkerLostError", "__version__", "align", "create", "load", "unalign",
]  # fmt: skip

__getattr__, __dir__ = front_door(
    __name__,
    {
        "AlignedModule": "optical_dfa.feedback.aligned",
        "BudgetExhaustedError": "optical_dfa.errors",
        "DeviceError": "optical_dfa.errors",
        "Guarantee": "privacy.guarantee",
        "LedgerUnreadableError": "optical_dfa.errors",
        "PrivacyEngine": "privacy.engine",
        "UsageError": "optical_dfa.errors",
        "WorkerLostError": "optical_dfa.errors",
        "__version__": "optical_dfa.version",
        "align": "optical_dfa.aligning",
        "create": "optical_dfa.backends",
        "load": "optical_dfa.data",
        "unalign": "optical_dfa.aligning",
    },
)
