"""Parse a suite's TOML file. Nothing is checked here: `bench.suite.suite_file` does that, before a suite is run.

The report reads the copy of the file in a results folder in this way. It must not need the plugins, data sets and
methods that the suite was run with.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.analysis import Roles, assign_roles

from .suite_origin import relative_path

KEPT = "suite.toml"
"""Name of a suite's file in its results folder. The folder has the suite's name."""
ENCODING = "utf-8-sig"
"""The encoding of a suite's file: UTF-8, with or without a byte order mark, which some editors write."""


def is_kept(path: Path) -> bool:
    """Return whether a suite's file is the copy in a results folder, which describes the machine beside it."""
    return path.name == KEPT and (path.parent / "environment.json").is_file()


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
    return parse(path.read_text(encoding=ENCODING))


def kept(suite: SuiteText, plugins: Sequence[Path], folder: Path) -> str:
    """Return the suite's text as its results ``folder`` keeps it, from where its ``plugins`` are found too.

    Their paths are relative to the folder of a suite's file, so the line ``plugins`` is written anew. Without plugins,
    or if that line can't be found in the text, the text stays as it is.
    """
    folder = folder.resolve()
    written = suite.values.get("plugins", ())
    if [(folder / name).resolve() for name in written] == list(plugins):
        return suite.text
    paths = [relative_path(path, folder) for path in plugins]
    line = f"plugins = {json.dumps(paths, ensure_ascii=False)}"
    text = re.sub(r"^plugins\s*=\s*\[.*?\]", lambda _: line, suite.text, count=1, flags=re.MULTILINE | re.DOTALL)
    try:
        moved = parse(text).values == {**suite.values, "plugins": paths}
    except ValueError:
        moved = False
    return text if moved else suite.text
