"""The terminal that tables are printed to."""

import sys

from rich.console import Console

WIDTH = 126
"""Characters in a line where the output is not a terminal."""


def new_console() -> Console:
    """Return a console as wide as the terminal, or `WIDTH` characters wide where there is none."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
