"""`optical-dfa backends`: the projection devices this machine can use."""

from __future__ import annotations

from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_json, print_table


def backends(as_json: JsonOption = False) -> None:
    """List the projection backends, and whether each can be used here.

    Example: optical-dfa backends --json
    """
    from optical_dfa.backends import available

    with notes_to_stderr(as_json):
        found = available()
    if as_json:
        rows = [{"name": name, "available": usable, "detail": detail} for name, usable, detail in found]
        print_json({"backends": rows})
        return
    print_table(
        ("backend", "available", "what it is"),
        [(name, "yes" if usable else "no", detail) for name, usable, detail in found],
    )
