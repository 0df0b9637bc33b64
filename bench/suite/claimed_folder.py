"""Hold a results folder: one process at a time works in it, and it belongs to one suite's file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from bench.run import suite_origin

from .toml_table import SuiteError


class BusyError(Exception):
    """Another process is running a suite in the same results folder."""


@contextmanager
def claimed(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Hold the results ``folder``, which is made if it is missing, for this process and for ``file``.

    A file in the folder itself, such as the suite that is kept there, may always use it.

    Args:
        folder: The results folder.
        file: The file that the folder is to belong to: a suite, or the Python file that ``lossbench try`` was given.
            If None, the folder belongs to whatever file it did before.

    Raises:
        BusyError: Another process holds the folder.
        SuiteError: The folder belongs to another file, which is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BusyError(f"another process is running a suite in {folder}") from None
    try:
        if file is not None and folder.resolve() not in file.resolve().parents:
            _require_owner(folder, file)
            suite_origin.keep(folder, file)
        yield
    finally:
        lock.release()


def _require_owner(folder: Path, file: Path) -> None:
    """Raise a `SuiteError` if the results ``folder`` belongs to another file than ``file``."""
    owner = suite_origin.owner(folder)
    if owner is not None and not owner.samefile(file):
        raise SuiteError(
            f"{folder} holds results of {_named(owner)}, and not of {_named(file.resolve())}: rename one of the files, "
            "or name another folder with --results"
        )


def _named(file: Path) -> str:
    return f"lossbench's suite {file.stem}" if file.parent == suite_origin.SUITES.resolve() else str(file)
