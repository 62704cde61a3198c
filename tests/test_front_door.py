"""The public names of the packages, and what stands in their place."""

from __future__ import annotations

import importlib
import os
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


@pytest.mark.parametrize("own", [None, "AVX2"])
def test_a_row_of_a_product_is_the_same_wherever_it_lies(own: str | None) -> None:
    script = """
import os
import torch
import optical_dfa

print(os.environ["MKL_CBWR"])
generator = torch.Generator().manual_seed(0)
on = torch.arange(128).roll(1)
for width, units in ((13, 7), (256, 10), (3969, 10), (10, 256)):
    x, w = torch.randn(128, width, generator=generator), torch.randn(units, width, generator=generator)
    error = torch.randn(128, units, generator=generator)
    assert torch.equal((x @ w.T)[on], x[on] @ w.T), (width, units)
    assert torch.equal((error @ w)[on], error[on] @ w), (width, units)
"""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "OMP_NUM_THREADS": "1", **({} if own is None else {"MKL_CBWR": own})},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, [own or "AUTO"]), ended.stderr
