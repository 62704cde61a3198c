"""`python -m experiments NAME [OPTIONS]`: every experiment by one command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from experiments.harness import readme, runner

FOLDER = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment that comes first on the command line, with the options after it; `tables` copies every
    experiment's table into the documents.

    Returns:
        its exit status; 2 without the name of one.
    """
    name, *options = (sys.argv[1:] if arguments is None else arguments) or [""]
    folder = FOLDER / name.replace("-", "_")
    if name == "tables":
        return readme.main()
    if folder.name in names():
        package = f"experiments.{folder.name}"
        if (folder / "study.py").is_file():
            study: Callable[[Sequence[str]], int] = import_module(f"{package}.study").main
            return study(options)
        return runner.main(folder, options, getattr(import_module(package), "prepare", None))
    print(
        f"usage: python -m experiments NAME [OPTIONS]; NAME is one of {', '.join(names())}", file=sys.stderr
    )
    return 0 if name in ("-h", "--help") else 2


def names() -> list[str]:
    """Of the experiments: folders with a study of their own, or with a table that the runner makes."""
    return sorted(
        {path.parent.name for kind in ("study.py", "config.toml") for path in FOLDER.glob(f"*/{kind}")}
    )


if __name__ == "__main__":
    sys.exit(main())
