"""`optical-dfa reproduce`: do the runs of a published table again, on this machine."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.app import UserInterruptError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_json, print_table


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which experiment; --list shows them.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the experiments and exit.")] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Every row once, two epochs on the embedded digits: whether it runs. Judges no target.",
        ),
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the data sets' files.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of results.jsonl and table.md.  [default: runs/reproduce/NAME]"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs side by side; they share the threads.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Do the runs of a published table again, and judge its targets; exit code 1 where one is missed.

    Finished runs are kept in the folder: interrupted, the same command goes on.

    Example: optical-dfa reproduce rules-mnist --data-dir DIR --jobs 2
    """
    folders = experiments()
    if listed:
        _list(folders, as_json)
        return
    if name is None or name not in folders:
        given = "no experiment is named" if name is None else f"there is no experiment {name!r}"
        raise UsageError(f"{given}; choose one of: {', '.join(folders)}")

    from experiments.harness.experiment import TABLE, load
    from experiments.harness.runner import run
    from experiments.harness.table import document, write_table

    experiment = load(folders[name])
    command = f"optical-dfa reproduce {name}" + (" --quick" if quick else "")
    experiment = (experiment.quick() if quick else experiment).model_copy(update={"command": command})
    kept = out or Path("runs") / "reproduce" / (name + ("-quick" if quick else ""))
    kept.mkdir(parents=True, exist_ok=True)
    try:
        with notes_to_stderr(as_json):
            _prepare(folders[name])
            run(experiment, kept, data_dir, jobs=jobs)
    except KeyboardInterrupt as error:
        raise UserInterruptError("interrupted; finished runs are kept, the same command goes on") from error
    met = write_table(kept, experiment)
    if as_json:
        print_json({"experiment": name, "quick": quick, "folder": str(kept), **document(kept, experiment)})
    else:
        print((kept / TABLE).read_text(encoding="utf-8"), end="")
        print(f"kept in {kept}", file=sys.stderr)
    if False in met:
        raise typer.Exit(1)


def experiments() -> dict[str, Path]:
    """Name on the command line -> folder of every experiment that the runner can do.

    Raises:
        UsageError: the experiments are not part of this installation.
    """
    spec = find_spec("experiments")
    places = (spec.submodule_search_locations if spec is not None else None) or []
    found = {
        path.parent.name.replace("_", "-"): path.parent
        for place in places
        for path in sorted(Path(place).glob("*/config.toml"))
    }
    if not found:
        raise UsageError(
            "this installation has no experiments; run the command in the source tree, or install the project from it"
        )
    return found


def _package(folder: Path) -> ModuleType | None:
    """An experiment's Python package; one that is a configuration alone has none."""
    name = f"experiments.{folder.name}"
    return import_module(name) if find_spec(name) is not None else None


def _prepare(folder: Path) -> None:
    """Do first what an experiment needs besides its runs: `prepare()` of its package, where there is one."""
    getattr(_package(folder), "prepare", lambda: None)()


def _list(folders: dict[str, Path], as_json: bool) -> None:
    from experiments.harness.experiment import load

    facts: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        experiment = load(folder)
        facts[name] = {
            "shows": (getattr(_package(folder), "__doc__", None) or "").partition("\n")[0].rstrip("."),
            "datasets": experiment.datasets,
            "seeds": experiment.seeds,
            "rows": [row.name for row in experiment.row],
            "targets": len(experiment.target),
        }
    if as_json:
        print_json({"experiments": facts})
        return
    rows = [
        (
            name,
            str(len(e["rows"]) * len(e["seeds"]) * len(e["datasets"])),
            ", ".join(e["datasets"]),
            e["shows"],
        )
        for name, e in facts.items()
    ]
    print_table(("Name", "Runs", "Data", "What it shows"), rows)
