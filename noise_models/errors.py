"""The errors a user meets, on the lowest floor so that every package can raise them.

Both carry ONE line: the value, what is allowed, what to do. The command line prints it and no traceback.
"""

from __future__ import annotations

from typing import Any


class UsageError(ValueError):
    """The caller asked for something that is not allowed or not there (exit code 2)."""


class DeviceError(RuntimeError):
    """A device is absent, unhealthy or answered nonsense; nothing was released (exit code 1)."""


class HealthError(DeviceError):
    """A camera failed a health test; nothing drawn since the last release may be released.

    Attributes:
        finding: the test's name, the value found, its limit, the number of frames drawn so far and the test's
            false alarm (JSON types).
    """

    def __init__(self, message: str, finding: dict[str, Any]) -> None:
        super().__init__(message)
        self.finding = finding


def apart(value: float, limit: float) -> tuple[str, str]:
    """Two numbers as a message shows them: with as many digits, four at least, as tell which is the larger."""
    for digits in range(4, 17):
        rounded = f"{value:.{digits}g}", f"{limit:.{digits}g}"
        if rounded[0] != rounded[1]:
            return rounded
    return repr(value), repr(limit)
