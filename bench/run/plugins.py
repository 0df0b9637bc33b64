"""Load a user's own methods and problems from Python files outside this repository.

Such a file registers its classes with the decorators of `balancers` and `tasks`. It can have any name, even
``tasks.py``: it becomes a module with a name of its own, and its folder is not added to the import path.
"""

import atexit
import hashlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import balancers
import tasks


class PluginError(ValueError):
    """A user's file can't be loaded; the message says why in one sentence."""


class Registered(NamedTuple):
    """The names of the problems and of the balancers that a file registers."""

    problems: list[str]
    balancers: list[str]


@dataclass(frozen=True)
class Source:
    """A plugin as it is sent to another process: its file's name without the ending, its content, and its path here."""

    stem: str
    content: bytes
    path: str


def sources(paths: Iterable[Path]) -> tuple[Source, ...]:
    """Read plugins, to send them."""
    return tuple(Source(path.stem, path.read_bytes(), str(path.resolve())) for path in paths)


def load_sources(given: Sequence[Source]) -> None:
    """Execute plugins that were sent, once per process. Errors that they raise propagate."""
    load(_file(source) for source in given)


@cache
def _file(source: Source) -> Path:
    """Return the plugin's own file, which finds the data beside it; a copy if that file is not here or has changed.

    Python reads modules, and keys are made, from files.
    """
    own = Path(source.path)
    with suppress(OSError):
        if own.read_bytes() == source.content:
            return own
    folder = Path(tempfile.mkdtemp(prefix="lossbench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"{source.stem}.py"
    path.write_bytes(source.content)
    return path


def module_name(path: Path) -> str:
    """Return the name of the module that the file at ``path`` becomes; it depends on the file's name and content."""
    return f"lossbench_plugin_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


def load(paths: Iterable[Path]) -> None:
    """Execute each file, once per process. Errors that a file raises propagate.

    Raises:
        ImportError: a file is not a Python file.
    """
    for path in paths:
        name = module_name(path)
        if name in sys.modules:
            continue
        path = path.resolve()
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path.name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise


def registered(file: Path) -> Registered:
    """Load a file, and return what it registers.

    Raises:
        PluginError: there is no such file, or it raises an exception or calls ``sys.exit``.
    """
    if not file.is_file():
        raise PluginError(f"there is no file {file}")
    try:
        load([file])
    except (Exception, SystemExit) as error:  # a SystemExit would end the command, and look like success
        raise PluginError(f"{file.name} can't be loaded: {type(error).__name__}: {error}") from error
    module = module_name(file)
    return Registered(
        [name for name in tasks.names() if tasks.get(name).__module__ == module],
        [name for name in balancers.names() if balancers.get(name).__module__ == module],
    )
