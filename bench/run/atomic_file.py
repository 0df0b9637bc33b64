"""Write files that appear whole or not at all."""

import io
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pandas as pd

UNFINISHED = ".unfinished"
"""End of the name of a file that is being written."""
DAMAGED = ".damaged"
"""End of the name of a file that was found damaged."""


class BadFileError(ValueError):
    """A file does not have the expected content."""


def write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, replacing an older file.

    The content goes to the disk under a temporary name in the same folder, which is then renamed to ``path``. If that
    raises an error, no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Raise an `OSError` if no file can be written into ``folder``, which need not exist. Nothing is left there."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for each in missing:
            with suppress(OSError):  # it was not made, or another process uses it already
                each.rmdir()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write ``table`` twice, as ``path.parquet`` and as ``path.csv``."""
    write_parquet(path.with_suffix(".parquet"), table)
    write(path.with_suffix(".csv"), table.to_csv(index=False).encode())


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write ``table`` to ``path`` as Parquet."""
    content = io.BytesIO()
    table.to_parquet(content, index=False, compression="zstd")
    write(path, content.getvalue())


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that nobody takes it for a whole one, and return its new path."""
    aside = path.with_name(f"{path.name}{DAMAGED}")
    path.replace(aside)
    return aside


def remove_unfinished(folder: Path) -> None:
    """Remove the files that interrupted writers left anywhere under ``folder``. No process may be writing there."""
    for path in folder.rglob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
