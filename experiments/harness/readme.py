"""`python -m experiments tables`: put every experiment's `table.md` between its markers in the documents."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from noise_models.errors import UsageError

DOCUMENTS = ("README.md", "docs/hardware.md", "docs/measured.md", "docs/rules.md", "docs/theory.md")
_MARKED = re.compile(r"(<!-- table: (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, root: Path) -> str:
    """`text` with the current tables.

    Args:
        text: Markdown with `<!-- table: PATH -->` and `<!-- end -->` on lines of their own.
        root: what the paths are relative to.
    Raises:
        UsageError: a marker names a file that is not there.
    """

    def table(match: re.Match[str]) -> str:
        path = root / match["path"]
        if not path.is_file():
            raise UsageError(f"a document names the table {path}, which is not there; run its experiment")
        return f"{match[1]}\n{path.read_text(encoding='utf-8')}\n{match[3]}"

    return _MARKED.sub(table, text)


def main() -> int:
    """Rewrite the documents of this source tree."""
    root = Path(__file__).parents[2]
    try:
        for name in DOCUMENTS:
            text = with_tables((root / name).read_text(encoding="utf-8"), root)
            (root / name).write_text(text, encoding="utf-8")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
