"""The documentation as a site: it builds without a warning, and describes every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed, reason="the extra docs is not installed: pip install .[docs]")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("package", ["optical_dfa", "privacy", "noise_models"])
def test_every_public_name_is_described(site: Path, package: str) -> None:
    page = (site / "api" / package / "index.html").read_text(encoding="utf-8")
    described = set(re.findall(rf'id="{package}\.(\w+)"', page)) | set(
        re.findall(r"<code>(\w+)</code>", page)
    )
    assert set(import_module(package).__all__) <= described


def test_a_page_names_nothing_of_another_host_to_load(site: Path) -> None:
    """Nor a diagram in words, for which the theme's own script fetches what draws it."""
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*?(?:src|href)="([^"]+)"', text)
        assert loaded
        assert [address for address in loaded if "//" in address] == []
        assert 'class="mermaid"' not in text
