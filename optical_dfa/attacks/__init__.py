"""The attacks by name: network, data and engine put together for the cores in `privacy.attacks`.

Importing this loads no torch. The file of attack `some-name` is `some_name.py` and has `run(setting: Setting) ->
Finding`. A new one is one new file and one line here.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from noise_models.errors import UsageError

if TYPE_CHECKING:
    from optical_dfa.attacks.setting import Setting
    from privacy.attacks.finding import Finding

ATTACKS: dict[str, str] = {
    "span": "what one step holds off the span of the other records' inputs (THEORY T1)",
    "dead-pixel": "a pixel that only one record lights, read from the final model alone (THEORY T1)",
    "lattice": "dark frames without dither, read modulo the converter's step (THEORY T4)",
    "distinguish": "the most powerful test of one record's presence, on worst-case neighbours",
    "canary": "one training run with many inserted canaries, their coins guessed from the releases",
    "gradient-inversion": "one record's input from a single step, as a picture",
}


SAME = 0.95  # a claim of less than this share of what was asked for is another one


def attack(name: str, setting: Setting) -> Finding:
    """Run the attack `name`.

    Raises:
        UsageError: no such attack, or a setting that it cannot serve.
        DeviceError: the device failed.
    """
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    _check_rule(name, setting.rule)
    found: Finding = import_module(f"optical_dfa.attacks.{name.replace('-', '_')}").run(setting)
    if setting.epsilon is not None and found.epsilon_claimed < SAME * setting.epsilon:
        note = (
            f"asked for was a claim of epsilon = {setting.epsilon:g}; what was attacked claims "
            f"{found.epsilon_claimed:.3g}, since the noise is not taken any smaller"
        )
        found = replace(found, notes=(note, *found.notes))
    return found


def _check_rule(name: str, rule: str | None) -> None:
    """
    Raises:
        UsageError: no such rule, or it freezes the layers that every attack looks at.
    """
    if rule is None:
        return
    from optical_dfa.feedback import RULES, make_rule

    if not make_rule(rule).teaches_hidden:
        allowed = ", ".join(known for known in RULES if make_rule(known).teaches_hidden)
        raise UsageError(
            f"rule {rule} trains no hidden layer, and attack {name} looks at one; choose one of {allowed}"
        )
