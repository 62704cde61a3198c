"""For the reference pages: the docstrings have no empty line between sections, and their reader needs one."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Attributes|Returns|Raises|Yields):\n)")


class Sections(griffe.Extension):
    """Docstrings with an empty line before every section."""

    def on_object(self, *, obj: griffe.Object, **more: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _SECTION.sub("\n\n", obj.docstring.value)
