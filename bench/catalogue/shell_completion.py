"""Find the names that the shell completes. They are read from files: importing PyTorch would take seconds.

Each function takes the beginning of a word and returns the names that begin with it. If there is none, the shell offers
files.
"""

import re
import shlex
import tomllib
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "bench" / "suites"
REGISTERED = re.compile(r'^@register\nclass .*?^    name = "([^"]+)"$', re.DOTALL | re.MULTILINE)
"""A registered class up to its name, as `balancers` and `tasks` write it."""


def suites(typed: str, results: Path | None = Path("results")) -> list[str]:
    """Return names of suites: those that come with the benchmark, and those whose results are in ``results``.

    If ``results`` is None, return the first alone.
    """
    kept = [path.parent.name for path in results.glob("*/suite.toml")] if results is not None else []
    return _beginning({*(path.stem for path in SUITES.glob("*.toml")), *kept}, typed)


def problems(typed: str) -> list[str]:
    """Return names of problems, those of installed packages too."""
    return _beginning(_registered("tasks", "lossbench.problems"), typed)


def balancers(typed: str) -> list[str]:
    """Return names of balancers, those of installed packages too."""
    return _beginning(_registered("balancers", "lossbench.balancers"), typed)


def of_suite(typed: str, suite: str | None, kind: str) -> list[str]:
    """Return names and labels of a suite's problems or balancers, without labels that a shell would need quoted.

    Args:
        typed: beginning of the name.
        suite: name or path of the suite.
        kind: ``"problems"`` or ``"balancers"``.
    """
    path = SUITES / f"{suite}.toml" if suite and not suite.endswith(".toml") else Path(suite or "")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8-sig"))[kind]
        found = {str(entry.get(key, entry["name"])) for entry in entries for key in ("name", "label")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # it is not a suite yet
        return []
    return _beginning((name for name in found if name == shlex.quote(name)), typed)


def keys(typed: str, results: Path) -> list[str]:
    """Return the keys of the runs that are stored in a results folder."""
    return _beginning((path.stem for path in (results / "runs").glob("*.parquet")), typed)


def _registered(package: str, group: str) -> set[str]:
    """Return the names that the files of a package register, and those of a group of entry points."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / package).rglob("*.py"))
    return {name for text in texts for name in REGISTERED.findall(text)} | {
        entry.name for entry in entry_points(group=group)
    }


def _beginning(names: Iterable[str], typed: str) -> list[str]:
    return sorted(name for name in names if name.startswith(typed))
