"""`optical-dfa attack`: attack a release through its production path, and compare what it shows with the claim."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noise_models.errors import UsageError
from optical_dfa.attacks import ATTACKS
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, print_table, show

if TYPE_CHECKING:
    from optical_dfa.attacks.setting import Setting
    from privacy.attacks.finding import Finding

_DEFAULT_RELEASE = {"lattice": "dark-frame", "span": "per-record", "dead-pixel": "per-record",
                    "gradient-inversion": "per-record"}  # fmt: skip
_NAMES = ", ".join(ATTACKS)


def attack(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help=f"{_NAMES}.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what each attack does, and end.")] = False,
    release: Annotated[
        str | None, typer.Option(help="What to attack; default: what the attack is about.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Projection device; default: one that the release works with.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Feedback rule; default: one that the release works with.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set of the attacks on images; default: MNIST if here, else digits."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the data sets' files.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="The claim attacked; default: the attack's.")] = None,
    delta: Annotated[float, typer.Option(help="Of the claim.")] = 1e-5,
    confidence: Annotated[float, typer.Option(help="Of the lower bound on epsilon.")] = 0.999,
    trials: Annotated[int | None, typer.Option(help="In each world; default: the attack's.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, records and noise: the attack can be repeated.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for pictures and the finding.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Attack a release, and say whether a lower bound on epsilon stays below what the release claims.

    Exit code 1 when it does not: the claim is refuted at the given confidence.

    Example: optical-dfa attack span --release per-record --json
    """
    if listed:
        if as_json:
            print_json(ATTACKS)
        else:
            print_table(("attack", "what it looks at"), list(ATTACKS.items()))
        return
    if name is None or name not in ATTACKS:
        given = "no attack is named" if name is None else f"NAME is {name!r}"
        raise UsageError(f"{given}; it must be one of: {_NAMES} (--list says what they do)")
    if out is not None:
        _check_out(out)
    from optical_dfa.attacks.setting import Setting as Asked
    from optical_dfa.progress import progress_for

    progress = progress_for(sys.stderr, "attacking")
    setting = Asked(
        release=release or _DEFAULT_RELEASE.get(name, "digital"), backend=backend, rule=rule, dataset=dataset,
        data_dir=data_dir, epsilon=epsilon, delta=delta, confidence=confidence, trials=trials, seed=seed, out=out,
        progress=progress,
    )  # fmt: skip
    started = time.perf_counter()
    try:
        with notes_to_stderr(as_json):
            finding = _run(name, setting)
    finally:
        progress.finish()
    _say(finding, time.perf_counter() - started, out, as_json)
    if finding.consistent is False:
        raise typer.Exit(1)


def _run(name: str, setting: Setting) -> Finding:
    from optical_dfa import attacks

    return attacks.attack(name, setting)


def _check_out(out: Path) -> None:
    """Make the folder, and try it: minutes of work shall not end in a file that cannot be written."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out is {out}; name a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"--out is {out}, where nothing can be written ({error.strerror}); name another folder"
        ) from None


def _say(finding: Finding, seconds: float, out: Path | None, as_json: bool) -> None:
    document = {**finding.to_dict(), "seconds": round(seconds, 3)}
    if out is not None:
        import json

        (out / "finding.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(document)
        return
    verdict = {True: "consistent with the claim", False: "the claim is REFUTED", None: "no bound"}
    notes = document.pop("notes")
    print_facts({key.replace("_", " "): show(value) for key, value in document.items()})
    print(f"\nverdict: {verdict[finding.consistent]}")
    print("\n".join(f"note: {text}" for text in notes))
