"""The sound ways of releasing a step, by name. A new one is one new file and one line here."""

from __future__ import annotations

RELEASES: dict[str, str] = {
    "digital": "noise from a cryptographic generator",
    "dark-frame": "noise from the device's dark frames, with a digital dither",
}
