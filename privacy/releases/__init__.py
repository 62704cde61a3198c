"""The sound ways of releasing a step, by name. A new one is one new file and one line here.

The file of release `some-name` is `some_name.py` and has a function `make(parts: Parts) -> NoiseSource`.
"""

from __future__ import annotations

RELEASES: dict[str, str] = {
    "digital": "noise from a cryptographic generator",
    "dark-frame": "noise from the device's dark frames, with a digital dither",
    "device-entropy": "noise from a cryptographic generator that the device's dark frames key",
}
