"""The public names of the packages, and what stands in their place."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import noise_models
import optical_dfa
import privacy

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", [noise_models, privacy, optical_dfa], ids=lambda p: p.__name__)
def test_every_public_name_is_listed_and_there(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert sorted(names) == dir(package)
    for name in names:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        package.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_one_hierarchy_of_errors() -> None:
    for name in ("UsageError", "DeviceError"):
        found = {
            getattr(importlib.import_module(f"{p}.errors"), name)
            for p in ("noise_models", "privacy", "optical_dfa")
        }
        assert len(found) == 1


@pytest.mark.parametrize(
    ("shadow", "asked"),
    [
        ("privacy/__init__.py", "optical_dfa"),
        ("privacy.py", "optical_dfa"),
        ("noise_models/__init__.py", "optical_dfa"),
        ("noise_models.py", "privacy"),
    ],
)
def test_a_file_that_shadows_a_package_is_named_in_one_line(tmp_path: Path, shadow: str, asked: str) -> None:
    path = tmp_path / shadow
    path.parent.mkdir(exist_ok=True)
    path.write_text("", encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path.append({str(ROOT)!r}); import {asked}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {path} stands where this library's package")
    assert "rename it" in last
