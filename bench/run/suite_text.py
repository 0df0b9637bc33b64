"""Parse a suite's TOML file. Nothing is checked here: `bench.suite.suite_file` does that, before a suite is run.

The report reads the copy of the file in a results folder in this way. It must not need the plugins, data sets and
methods that the suite was run with.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.analysis import Roles, assign_roles

KEPT = "suite.toml"
"""Name of a suite's file in its results folder. The folder has the suite's name."""


@dataclass(frozen=True)
class SuiteText:
    """The text of a suite's file, and the values in it.

    Attributes:
        text: The text of the file.
        values: The top table of the parsed text.
    """

    text: str
    values: Mapping[str, Any]

    @property
    def description(self) -> str:
        """The suite's description; empty if it has none."""
        return str(self.values.get("description", ""))

    def roles(self, suite: str) -> Roles:
        """Return the roles of the suite's methods.

        Args:
            suite: The suite's name.
        """
        return assign_roles(suite, self.values["balancers"])


def parse(text: str) -> SuiteText:
    """Parse the text of a suite's file.

    Raises:
        ValueError: ``text`` is not TOML.
    """
    return SuiteText(text, tomllib.loads(text))


def read(path: Path) -> SuiteText:
    """Read and parse a suite's file.

    Raises:
        ValueError: The file is not TOML in UTF-8.
    """
    return parse(path.read_text(encoding="utf-8"))
