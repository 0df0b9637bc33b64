"""Keep the results of a suite's runs in a folder: the only writer of its run files, cost files and pictures.

A result is whole or not there. A file that was damaged since it was written, or that holds the result of another run,
is set aside under another name, and counts as missing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from . import atomic_file, checked_json, result_file, result_picture
from .atomic_file import BadFileError
from .result_picture import Picture
from .training import RunResult

Content = TypeVar("Content")

KIND = "machine.json"
"""The file beside the costs that says which kind of machine they were last measured on."""


class ResultStore:
    """The stored results of a suite.

    Args:
        folder: the suite's results folder.
        tell: called with a sentence about each damaged file.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self._tell = tell
        self._limits: dict[str, float | None] = {}
        """By key of each result that was found whole, or stored, by this process: see `limit`."""

    def has(self, key: str, pictured: bool = False) -> bool:
        """Return whether the result of the run with this key is stored, and its picture if it is to have one."""
        if key not in self._limits:
            result = self._whole(result_file.run_path(self.folder, key), result_file.load)
            if result is None:
                return False
            self._limits[key] = result.limit
        return not pictured or self._whole(result_picture.path(self.folder, key), result_picture.load) is not None

    def limit(self, key: str) -> float | None:
        """Return the stated time limit in seconds by which a stored run failed; None if it did not fail by one."""
        return self._limits[key] if self.has(key) else None

    def load(self, key: str) -> RunResult:
        """Return a stored result.

        Raises:
            BadFileError: it was damaged, it is that of another run, or there is none.
        """
        return result_file.load(result_file.run_path(self.folder, key))

    def keep(self, key: str, content: bytes, picture: Picture | None) -> None:
        """Store the content of a result's file, and a picture.

        Raises:
            BadFileError: the content was damaged on its way, or it is that of another run.
        """
        result = result_file.decode(content, key)
        if picture is not None:  # first, so that a stored result never waits for its picture
            result_picture.save(result_picture.path(self.folder, key), picture)
        atomic_file.write(result_file.run_path(self.folder, key), content)
        self._limits[key] = result.limit

    def kind_of_machine(self) -> tuple[str, str | None] | None:
        """Return the processor and the GPU that steps were last timed on; None if that is not stored."""
        facts = self._whole(self.folder / "costs" / KIND, checked_json.read)
        return None if facts is None else (facts["processor"], facts["gpu"])

    def keep_kind_of_machine(self, kind: tuple[str, str | None]) -> None:
        """Store the processor and the GPU that steps are timed on."""
        checked_json.write(self.folder / "costs" / KIND, {"processor": kind[0], "gpu": kind[1]})

    def cost(self, key: str) -> dict[str, Any] | None:
        """Return the stored cost of a step; None if there is none."""
        return self._whole(self._cost_path(key), checked_json.read)

    def keep_cost(self, key: str, facts: Mapping[str, Any]) -> None:
        """Store the cost of a step."""
        checked_json.write(self._cost_path(key), facts)

    def _cost_path(self, key: str) -> Path:
        return self.folder / "costs" / f"{key}.json"

    def _whole(self, path: Path, read: Callable[[Path], Content]) -> Content | None:
        """Return what a file holds; None if there is no file, or it is damaged and was set aside."""
        if not path.is_file():
            return None
        try:
            return read(path)
        except BadFileError:
            aside = atomic_file.set_aside(path)
            self._tell(f"{path.name} is damaged: it is now {aside.name}, and is made again")
            return None
