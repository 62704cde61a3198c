"""Direct Feedback Alignment through digital, simulated or real optical projections, trained privately.

from optical_dfa import align
from privacy import PrivacyEngine
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optical_dfa.aligning import align, unalign
    from optical_dfa.feedback.aligned import AlignedModule

__all__ = ["AlignedModule", "align", "unalign"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loads torch, which the command line's --help must not
        return getattr(importlib.import_module("optical_dfa.aligning"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
