"""The command line: `optical-dfa COMMAND`, also `python -m optical_dfa COMMAND`."""

from optical_dfa.cli.app import main

__all__ = ["main"]
