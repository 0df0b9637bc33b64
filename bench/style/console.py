"""Make the console that tables are printed to."""

import sys

from rich.console import Console

WIDTH = 126
"""Width in characters where the output is not a terminal."""


def new_console(width: int = WIDTH) -> Console:
    """Return a console as wide as the terminal, or ``width`` characters wide if the output is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)
