"""`optical-dfa train`: train a network, and say what its guarantee is."""

from __future__ import annotations

import inspect
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.app import AUTO, UserInterruptError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json
from optical_dfa.settings import SETTINGS

if TYPE_CHECKING:
    from optical_dfa.config import TrainConfig
    from privacy.workers import Workers


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with a flag for every setting in the place of its keywords; one that is not given is None."""
    own = inspect.signature(command, eval_str=True)
    config, *others, _ = own.parameters.values()
    flags = [
        config.replace(
            name=name,
            annotation=Annotated[
                setting.given | None, typer.Option(setting.flag, metavar=setting.metavar, help=setting.help)
            ],
        )
        for name, setting in SETTINGS.items()
    ]
    command.__signature__ = own.replace(parameters=[config, *flags, *others])  # type: ignore[attr-defined]
    return command


@_with_settings
def train(
    *,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file of settings; flags win.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Run folder; none is kept without it.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; `--resume auto`: if there is one.")
    ] = False,
    resume_auto: Annotated[bool, typer.Option(AUTO, hidden=True)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            metavar="INTERVAL",
            help="A checkpoint as often too: steps (500) or minutes (10min); always once an epoch.",
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="End after so many, between two steps, with a checkpoint and exit code 75."),
    ] = None,
    progress_lines: Annotated[
        bool,
        typer.Option("--progress-lines", help="Progress as JSON, a line each, on standard error; no bar."),
    ] = False,
    as_json: JsonOption = False,
    **flags: Any,
) -> None:
    """Train a network and state the privacy guarantee of its weights.

    What is not given has a default that suits the data set. A private run stops on its budget.

    Example: optical-dfa train --dataset fashion-mnist --backend simulated-opu --release dark-frame
    --epsilon 3 --delta 1e-5 --out runs/f
    """
    from optical_dfa.config import merge, read
    from optical_dfa.runs.folder import CONFIG, REPORT
    from optical_dfa.training.ending import Interval
    from privacy.workers import joined

    every = None if checkpoint_every is None else Interval.parsed(checkpoint_every)
    asked: list[tuple[Path | None, bool, TrainConfig]] = []

    def ask() -> dict[str, Any]:
        goes_on = resume or _started_again(workers, out, overwrite=overwrite)
        if resume_auto:
            goes_on = _goes_on(out, overwrite=overwrite)
        folder = _folder(out, resume=goes_on, overwrite=overwrite)
        given = {name: _value(name, flag) for name, flag in flags.items()}
        source = folder / CONFIG if goes_on and folder is not None and config is None else config
        asked.append((folder, goes_on, merge(read(source) if source is not None else {}, given)))
        if folder is not None:
            workers.begins(str(folder))
        return asked[0][2].model_dump(mode="json", exclude_none=True)

    with joined() as workers:
        settings = workers.told(ask)
        folder, goes_on, merged = asked[0] if asked else (None, resume, merge(settings, {}))
        lines = progress_lines if workers.first else None
        with notes_to_stderr(as_json), _quiet_unless(workers.first):
            summary = _trained(
                merged,
                folder,
                lines,
                resume=goes_on,
                overwrite=overwrite,
                checkpoint_every=every,
                max_minutes=max_minutes,
            )
        if not workers.first:  # which says, and writes, for all
            return
    if folder is not None:
        from optical_dfa.report.page import write_report

        write_report([folder], folder / REPORT)
    if as_json:
        print_json(summary)
    else:
        _show(summary, folder)
    if merged.diagnose and folder is not None:
        _tell_of_tensorboard(folder)


def _trained(config: TrainConfig, folder: Path | None, lines: bool | None, **how: Any) -> dict[str, Any]:
    """The summary of the run.

    Args:
        lines: whether progress is shown as lines of JSON; None shows none.
    """
    from optical_dfa.progress import LineProgress, SilentProgress, progress_for
    from optical_dfa.training import trainer
    from optical_dfa.training.ending import EndedError

    progress = (
        SilentProgress() if lines is None else LineProgress(sys.stderr) if lines else progress_for(sys.stderr)
    )
    how_on = "" if lines is None else f"; {_how_to_resume(folder)}"  # the first worker says it for all
    try:
        return trainer.train(config, folder, progress=progress, **how)
    except EndedError as error:
        if lines is None:
            raise typer.Exit(error.exit_code) from error
        raise UserInterruptError(error.reason + how_on, error.exit_code) from error
    except KeyboardInterrupt as error:
        raise UserInterruptError("interrupted" + how_on) from error
    finally:
        progress.finish()


@contextmanager
def _quiet_unless(first: bool) -> Iterator[None]:
    """No warnings of workers that are not the first: it says what all have to say."""
    with warnings.catch_warnings():
        if not first:
            warnings.simplefilter("ignore")
        yield


def _tell_of_tensorboard(folder: Path) -> None:
    """Where TensorBoard's files are, or why there are none; on standard error."""
    from optical_dfa.runs.folder import TENSORBOARD
    from optical_dfa.training.diagnosis import TensorBoard

    if TensorBoard.installed():
        text = f"see the diagnosis with: tensorboard --logdir {folder / TENSORBOARD}"
    else:
        text = f"no TensorBoard files: pip install tensorboard, or read the diagnosis in {folder}"
    print(text, file=sys.stderr)


def _value(name: str, flag: Any) -> Any:
    """A setting as it is in a file, from its flag."""
    setting = SETTINGS[name]
    if setting.given == list[str]:
        return parse_options(setting.flag, flag)
    if name == "points" and flag not in (None, "macro", "micro"):
        return flag.split(",")
    return flag


def parse_options(flag: str, given: Sequence[str] | None) -> dict[str, Any] | None:
    """`NAME=VALUE` texts as a table: numbers, true/false and quoted text as in TOML, anything else is text.

    Raises:
        UsageError: one of them has no name or no `=`.
    """
    if not given:
        return None
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{flag} is {text!r}; it must be NAME=VALUE, such as {flag} bits=8")
        try:
            options[name.strip().replace("-", "_")] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            options[name.strip().replace("-", "_")] = value
    return options


def _folder(out: str | None, *, resume: bool, overwrite: bool) -> Path | None:
    """The run folder asked for, None without one; UsageError where it cannot be meant."""
    from optical_dfa.runs.folder import CONFIG, RunFolder

    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite deletes it; give one of the two")
    if out is None:
        if resume or overwrite:
            raise UsageError(
                f"{'--resume' if resume else '--overwrite'} needs the run's folder; add --out DIR"
            )
        return None
    if not out:
        raise UsageError("--out is empty; name the run's folder")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    holds = RunFolder(folder).holds_run()
    whole = (folder / CONFIG).is_file()
    if holds and whole and not resume and not overwrite:
        raise UsageError(
            f"{out} already holds a run; add --resume to go on with it, --overwrite to replace it"
        )
    if holds and not whole and not overwrite:
        raise UsageError(
            f"{out} holds files of a run and no {CONFIG}, without which nothing goes on; put it back, replace the "
            "run with --overwrite, or name another folder with --out"
        )
    if resume and not holds:
        raise UsageError(f"{out} holds no run to resume; drop --resume, or name the run's folder with --out")
    return folder


def _started_again(workers: Workers, out: str | None, *, overwrite: bool) -> bool:
    """Whether a launcher started these workers again, in a folder where those before them had begun the run."""
    from optical_dfa.runs.folder import RunFolder

    if out is None or not workers.began(str(Path(out))) or not RunFolder(Path(out)).holds_run():
        return False
    if overwrite:
        raise UsageError(
            "the workers were started again, and --overwrite would delete the ledger of the run that they began in "
            f"{out}; go on with it: --resume in its place"
        )
    return True


def _how_to_resume(out: Path | None) -> str:
    if out is None:
        return "nothing was kept, because no --out folder was named"
    return f"go on with: optical-dfa train --resume --out {out}"


def _goes_on(out: str | None, *, overwrite: bool) -> bool:
    """Whether `--resume auto` finds a run in its folder."""
    from optical_dfa.runs.folder import RunFolder

    if overwrite:
        raise UsageError("--resume auto goes on with a run and --overwrite deletes it; give one of the two")
    if not out:
        raise UsageError("--resume auto needs the run's folder; add --out DIR")
    return RunFolder(Path(out)).holds_run()


def _show(summary: Mapping[str, Any], out: Path | None) -> None:
    from privacy.guarantee import Guarantee

    accuracy, seconds, per_step = (
        summary.get(key) for key in ("test_accuracy", "seconds", "seconds_per_step")
    )
    facts = {
        name.replace("_", " "): str(summary.get(name))
        for name in ("dataset", "model", "rule", "backend", "release")
    }
    facts["steps"] = f"{summary.get('steps')} in {summary.get('epochs')} epochs"
    lost = (summary.get("releases") or 0) - (summary.get("steps") or 0)
    if lost > 0:
        facts["releases"] = (
            f"{summary['releases']}: {lost} more than steps, released and then lost when the run was interrupted; they "
            "are paid for"
        )
    if accuracy is not None:
        facts["test accuracy"] = f"{100 * accuracy:.2f} %"
    if summary.get("test_auc") is not None:
        facts["test AUC"] = f"{summary['test_auc']:.4f}"
    if summary.get("test_loss") is not None:
        facts["test loss"] = f"{summary['test_loss']:.4f} nats"
    if seconds is not None:
        facts["time"] = f"{seconds:.1f} s" + (
            f", {1000 * per_step:.3g} ms a step" if per_step is not None else ""
        )
    if summary.get("data_frames"):
        facts["on hardware"] = (
            f"{summary['data_frames']:,} data frames, {summary['hardware_seconds']:,.0f} s at the device's frame rate"
        )
    print_facts(facts)
    print(f"\nguarantee: {Guarantee.from_dict(summary['guarantee'])}")
    if out is not None:
        from optical_dfa.runs.folder import CERTIFICATE, REPORT

        print(f"\nreport: {out / REPORT}\naudit:  optical-dfa audit {out}")
        if (out / CERTIFICATE).exists():
            print(f"assumptions of the published proof that fail: {out / CERTIFICATE}")
