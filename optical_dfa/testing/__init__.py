"""What third parties run on their own projection backend."""

from optical_dfa.testing.conformance import (
    CHECKS,
    BackendConformance,
    ConformanceError,
    Limits,
    check_backend,
)

__all__ = ["CHECKS", "BackendConformance", "ConformanceError", "Limits", "check_backend"]
