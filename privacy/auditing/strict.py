"""JSON as this program writes it: one value a name, finite numbers, text that can be written again."""

from __future__ import annotations

import json
import math
from typing import Any


def parsed(content: bytes | str) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is none, it names a key twice (a reader sees one of the two values only), has a number that is
            not finite, nests too deep, or has text that is no Unicode.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_float)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except RecursionError:
        raise ValueError("it nests too deep") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice[:5])} given more than once")
    return table


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)
