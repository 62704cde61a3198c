"""The program: its commands, and what a command's ending means to the shell.

Exit codes: 0 ok; 1 the answer is no, or a device failed; 2 wrong usage; 130 interrupted. A mistake is
answered in one line on standard error. Command modules import what is heavy inside their functions, so that
`--help` is quick.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from noise_models.errors import DeviceError, UsageError

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

# click's base class of "the command line cannot be understood"; typer vendors click from 0.26 on.
_CommandLineError: type[Exception] = next(
    c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"
)


class UserInterruptError(Exception):
    """The user pressed Ctrl-C; the message says how to go on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program on `arguments` (those of the process by default) and return its exit code."""
    chosen = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        command = typer.main.get_command(_application())
        code = command.main(args=chosen, prog_name="optical-dfa", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UsageError as error:
        return _fail(error, code=2)
    except _CommandLineError as error:
        return _fail(_explained(error, chosen), code=2)
    except DeviceError as error:
        return _fail(error, code=1)
    except MemoryError as error:
        return _fail(
            f"not enough memory ({error}); ask for fewer steps, or a smaller network or batch", code=1
        )
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error, code=1)
    except (UserInterruptError, KeyboardInterrupt, typer.Abort) as error:
        return _fail(str(error) or "interrupted", code=130)


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


def _fail(error: Exception | str, *, code: int) -> int:
    message = " ".join(str(error).split())
    print(message if code == 130 else f"error: {message}", file=sys.stderr)
    return code
