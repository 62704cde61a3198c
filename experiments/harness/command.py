"""How an experiment's command ends: its exit code, and one line where it did not come to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from noise_models.errors import DeviceError, UsageError


def exit_code(work: Callable[[], int], kept: str = "finished runs") -> int:
    """Of what `work` returns; 130 if it is interrupted, 2 for a usage mistake, 1 if a device fails.

    Args:
        work: the experiment; the same command goes on with what it has not finished.
        kept: what stays of it when it is interrupted.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(f"interrupted; {kept} are kept, the same command goes on", file=sys.stderr)
        return 130
    except (UsageError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
