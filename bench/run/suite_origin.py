"""Remember which file a results folder belongs to.

A results folder has its suite's name. Two files of the same name would otherwise replace each other's results, and a
user's file called like one of our suites would pass for it.
"""

import json
import os
from pathlib import Path

from . import atomic_file

ORIGIN = "origin.json"
"""Name of the file in a results folder that says which file the folder belongs to."""
SUITES = Path(__file__).parents[1] / "suites"
"""The folder of the suites that come with the benchmark."""


def keep(folder: Path, file: Path) -> None:
    """Write into the results ``folder`` that it belongs to ``file``.

    A suite that comes with the benchmark is named. Another file is written as its path from the folder, so that both
    can move together.
    """
    file = file.resolve()
    facts = {"suite": file.stem} if file.parent == SUITES.resolve() else {"file": relative_path(file, folder.resolve())}
    atomic_file.write(folder / ORIGIN, json.dumps(facts, ensure_ascii=False).encode())


def owner(folder: Path) -> Path | None:
    """Return the file that the results ``folder`` belongs to.

    None if the folder does not say so, or if the file is not there any more: then it was moved, renamed or removed.
    """
    facts = _read(folder)
    suite, file = facts.get("suite"), facts.get("file")
    path = SUITES / f"{suite}.toml" if suite else folder.resolve() / file if file else None
    return path.resolve() if path is not None and path.is_file() else None


def is_users(folder: Path) -> bool:
    """Return whether the results ``folder`` says that it belongs to a file that does not come with the benchmark."""
    return "file" in _read(folder)


def _read(folder: Path) -> dict[str, str]:
    """Return the content of the folder's `ORIGIN`; nothing if there is no such file, or it is damaged."""
    try:
        facts = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}


def relative_path(path: Path, folder: Path) -> str:
    """Return the path from ``folder`` to a file; on another drive of Windows, the whole path."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()
