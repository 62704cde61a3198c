"""The errors a user meets, on the lowest floor so that every package can raise them.

Both carry ONE line: the value, what is allowed, what to do. The command line prints it and no traceback.
"""

from __future__ import annotations


class UsageError(ValueError):
    """The caller asked for something that is not allowed or not there (exit code 2)."""


class DeviceError(RuntimeError):
    """A device is absent, unhealthy or answered nonsense; nothing was released (exit code 1)."""
