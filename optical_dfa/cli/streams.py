"""Standard output and error as they are: an encoding without Greek, a closed stream, a reader who has left."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator

ERRORS = "optical-dfa-spelt"  # the codec error handler's name

# What an encoding may lack -> how a person spells it in ASCII.
_SPELLINGS = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "Δ": "Delta", "ε": "epsilon", "η": "eta", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "µ": "micro", "ν": "nu", "π": "pi", "ρ": "rho", "σ": "sigma", "Σ": "Sigma", "τ": "tau",
    "φ": "phi", "Φ": "Phi", "²": "^2", "³": "^3", "⁴": "^4", "⁵": "^5", "⁶": "^6", "⁷": "^7", "⁻": "^-", "⁺": "^+",
    "₀": "_0", "₁": "_1", "₂": "_2", "₃": "_3", "₊": "_+", "₋": "_-", "√": "sqrt", "·": "*", "×": "x", "±": "+-",
    "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "≈": "~", "∞": "inf", "∈": "in",
    "‖": "||", "∘": "o", "⊙": "*", "⊗": "*", "⊛": "*", "ᵀ": "^T", "§": "section ", "∫": "integral ",
    "━": "-", "╸": "-", "╺": "-", "─": "-", "•": "*",
}  # fmt: skip


def spelt(text: str, encoding: str | None) -> str:
    """`text` as a stream of this encoding shows it: what the encoding lacks in ASCII, all else unchanged."""
    known = encoding or "utf-8"
    return text.encode(known, ERRORS).decode(known, "surrogateescape")


def encodable(text: str, encoding: str | None) -> bool:
    """Whether `text` can be written in this encoding as it is."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    byte = ord(character) - 0xDC00
    if 0x80 <= byte <= 0xFF and codecs.lookup(error.encoding).name == "ascii":
        return bytes([byte]), error.start + 1  # of a file's name in a C locale, as the system has it
    return _SPELLINGS.get(character, _escaped(character)), error.start + 1


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(ERRORS, _spell)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """While open, anything can be printed to standard output and error: `spelt`, and into nothing where closed.

    The streams are as before afterwards.
    """
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            stack.callback(setattr, sys, name, stream)
            if stream is None:  # closed by whoever started the program
                nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                setattr(sys, name, nothing)
            elif isinstance(stream, io.TextIOWrapper) and stream.errors != ERRORS:
                stack.callback(_restore, stream, stream.errors)
                stream.reconfigure(errors=ERRORS)
        yield


def _restore(stream: io.TextIOWrapper, errors: str | None) -> None:
    with contextlib.suppress(OSError, ValueError):  # a reader who left, or a stream that was closed since
        stream.reconfigure(errors=errors)


def forget(stream: object) -> None:
    """Let what `stream` still holds go nowhere: nobody reads it, and the interpreter must not complain of that."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
        finally:
            os.close(nowhere)
