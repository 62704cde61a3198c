"""No import runs up, none runs round: the contracts of pyproject.toml, and every file."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

import grimp
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def test_the_rooms_stand_in_layers() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_no_file_imports_itself_however_far_round() -> None:
    """Those imported for their types alone count, too."""
    graph = grimp.build_graph("noise_models", "privacy", "optical_dfa", "experiments", cache_dir=None)
    files = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(list(TopologicalSorter(files).static_order())) == len(files)  # a CycleError names the circle
