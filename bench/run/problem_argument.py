"""Read how a command line names a problem: by its name or by the file that registers it, with options."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import plugins


class ProblemArgumentError(ValueError):
    """A problem's file registers none, or an option is not ``KEY=VALUE``."""


def named(problem: str) -> list[str]:
    """Return the name of the problem, or if ``problem`` is the path of a Python file, of those that it registers.

    Raises:
        ProblemArgumentError: the file registers no problem.
        PluginError: there is no such file, or it can't be loaded.
    """
    if not problem.endswith(".py"):
        return [problem]
    names = plugins.registered(Path(problem)).problems
    if not names:
        raise ProblemArgumentError(f"{problem} registers no problem; docs/add-a-problem.md shows how a file does that")
    return names


def given_options(options: Sequence[str]) -> dict[str, Any]:
    """Return options of a problem from texts ``KEY=VALUE`` with a value in TOML.

    Raises:
        ProblemArgumentError: a text is not of that form.
    """
    try:
        return tomllib.loads("\n".join(options))
    except tomllib.TOMLDecodeError as error:
        raise ProblemArgumentError(f"--option takes KEY=VALUE as in a suite ({error})") from error
