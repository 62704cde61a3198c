"""What every test of this folder starts from."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    """Each test meets the compiler afresh: one code object is compiled for a few modules only, then left."""
    yield
    compiler = sys.modules.get("torch._dynamo")
    if compiler is not None:
        compiler.reset()
