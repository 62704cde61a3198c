"""The program: its commands, and what a command's ending means to the shell.

Exit codes: 0 ok; 1 the answer is no, or a device failed; 2 wrong usage; 3 this machine cannot (a file, a full
disc, memory); 70 a defect of the program; 75 a run's time is over; 130 interrupted (138 by SIGUSR1, 143 by SIGTERM);
141 whoever read the output has left. Only 1 is an answer.
A mistake is one line on standard error; with --json also a document on standard output, fields `error` and
`exit_code`. Command modules import what is heavy inside their functions, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from noise_models.errors import DeviceError, UsageError
from optical_dfa.cli import streams
from optical_dfa.cli.output import print_json
from privacy.workers import started_first

# Name on the command line -> "module:function". A new command is one new file and one line here.
COMMANDS = {
    "train": "optical_dfa.cli.train:train",
    "account": "optical_dfa.cli.account:account",
    "attack": "optical_dfa.cli.attack:attack",
    "audit": "optical_dfa.cli.audit:audit",
    "backends": "optical_dfa.cli.backends:backends",
    "bench": "optical_dfa.cli.bench:bench",
    "calibrate": "optical_dfa.cli.calibrate:calibrate",
    "report": "optical_dfa.cli.report:report",
    "reproduce": "optical_dfa.cli.reproduce:reproduce",
}

AUTO = "--resume-auto"

_NO, _USAGE, _MACHINE, _DEFECT, _INTERRUPTED, _READER_LEFT = 1, 2, 3, 70, 130, 141

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# click's base class of "the command line cannot be understood"; typer vendors click from 0.26 on.
_CommandLineError: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)


class UserInterruptError(Exception):
    """A command ended before it was done, by Ctrl-C or as `exit_code` says; the message says how to go on."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program on `arguments` (those of the process by default) and return its exit code."""
    # Before torch is loaded, whose threads would wait for each other awake: beside busy neighbours, for very long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    chosen = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    message: str | None = None
    with streams.readable():
        try:
            code, message = _outcome(chosen)
            if message is not None:
                _say(message, code, as_json="--json" in chosen and started_first())
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except BrokenPipeError:
            for stream in (sys.stdout, sys.stderr):
                streams.forget(stream)
            return _READER_LEFT
        except OSError as error:  # the output itself: a full disc
            streams.forget(sys.stdout)
            if message is None:  # or one line was said already
                with contextlib.suppress(OSError):
                    print(f"error: {_unwritten(error)}", file=sys.stderr)
            return _MACHINE
        return code


def with_values(arguments: Sequence[str]) -> list[str]:
    """Arguments as typer understands them: it knows no option whose value may be left out, as `--resume auto`."""
    found = list(arguments)
    for place in range(len(found) - 1, 0, -1):
        if found[place - 1 : place + 1] == ["--resume", "auto"]:
            found[place - 1 : place + 1] = [AUTO]
    return found


def _outcome(chosen: list[str]) -> tuple[int, str | None]:
    """Exit code, and what is to be said of an error."""
    broken = [text for text in chosen if "\0" in text]
    if broken:  # no shell passes one; whoever calls from Python may
        return _USAGE, f"{broken[0]!r} has a zero character, which no name has; leave it out"
    try:
        command = typer.main.get_command(_application())
        code = command.main(args=with_values(chosen), prog_name="optical-dfa", standalone_mode=False)
        return (code if isinstance(code, int) else 0), None
    except UsageError as error:
        return _USAGE, str(error)
    except _CommandLineError as error:
        return _USAGE, _explained(error, chosen)
    except DeviceError as error:
        return _NO, str(error)
    except BrokenPipeError:
        raise
    except SystemExit as error:  # how typer answers a broken pipe
        raise BrokenPipeError from error
    except OSError as error:
        if error.filename:
            return _MACHINE, f"{error.filename}: {error.strerror}"
        return _MACHINE, _unwritten(error) if error.errno in _NO_ROOM else str(error)
    except UserInterruptError as error:
        return error.exit_code, str(error)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _INTERRUPTED, str(error) or "interrupted"
    except Exception as error:
        if _out_of_memory(error):
            return _MACHINE, "not enough memory; ask for fewer steps, or a smaller network or batch"
        if sys.flags.dev_mode:
            raise
        return _DEFECT, _defect(error)


def _unwritten(error: OSError) -> str:
    """What an error says that names no file: the output's, or one of a file that was open already."""
    return f"the output cannot be written ({error.strerror}); make room, or send it elsewhere"


def _out_of_memory(error: Exception) -> bool:
    """Also torch's, which is a RuntimeError: on a CPU by its text, on an accelerator by its class."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def _defect(error: Exception) -> str:
    """Where an error came up that nobody foresaw. Its text is left out: it may speak of private records."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"internal error ({type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}); nothing follows from "
        "this run. Please report it, with the traceback of: python -X dev -m optical_dfa ..."
    )


def _application() -> typer.Typer:
    application = typer.Typer(
        name="optical-dfa",
        help="Train networks with Direct Feedback Alignment, on digital, simulated or real optical "
        "projections, under differential privacy whose assumptions are printed and whose budget can be "
        "audited.\n\n"
        "Example: optical-dfa train --dataset digits --epsilon 3 --out runs/first",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    application.callback()(_program_options)
    for name, target in COMMANDS.items():
        module, function = target.split(":")
        application.command(name)(_interruptible(getattr(importlib.import_module(module), function)))
    return application


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"optical-dfa {version('optical-dfa')}")
        except PackageNotFoundError:
            typer.echo("optical-dfa, from a source tree that is not installed")
        raise typer.Exit


def _program_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options of the program itself; the help text is the application's."""


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with Ctrl-C as our own exception: typer would end the program without a word."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise UserInterruptError("interrupted") from error

    return run


def _explained(error: Any, given: Sequence[str]) -> str:
    """A command line error's message with the value it is about, and where to read what is allowed."""
    context = getattr(error, "ctx", None)
    program = context.command_path if context is not None else "optical-dfa"
    message = str(error.format_message()).rstrip(".")
    for flag in getattr(getattr(error, "param", None), "opts", ()):
        for text, following in zip(given, [*given[1:], ""], strict=True):
            name, equals, value = text.partition("=")
            value = value if equals else following
            if name == flag and value and value not in message:
                message = f"{message} (given: {value!r})"
    return f"{message}; see {program} --help"


def _say(message: str, code: int, *, as_json: bool) -> None:
    """One line on standard error and, where JSON was asked for, a document on standard output."""
    line = " ".join(message.split())
    if as_json:
        print_json({"error": line, "exit_code": code})
    line = "".join(
        letter if letter.isprintable() else repr(letter)[1:-1] for letter in line
    )  # no terminal's codes
    print(line if code == _INTERRUPTED else f"error: {line}", file=sys.stderr)
