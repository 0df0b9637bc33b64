"""TOML tables that know where they stand, so that whatever is wrong in one is told by file and key."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn


class SuiteError(ValueError):
    """A suite can't be run as it stands; the message says where and why."""


@dataclass(frozen=True)
class ValueKind:
    """What a key's value has to be: in words, and as a test."""

    words: str
    accepts: Callable[[Any], bool]


class TomlTable:
    """A table of a TOML file.

    Args:
        file: the file's name.
        path: the table's own key, such as ``balancers[2]``; empty for the whole file.
        values: what it holds.
        known: the keys it may hold.

    Raises:
        SuiteError: it holds another key.
    """

    def __init__(self, file: str, path: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
        self.file = file
        self.path = path
        self.values = values
        for key in values:
            if key not in known:
                self.fail(key, f"unknown key{closest(key, known)}")

    def fail(self, key: str, message: str) -> NoReturn:
        """Raises a `SuiteError` about ``key`` of this table."""
        raise SuiteError(f"{self.file}: {self.path}{'.' if self.path and key else ''}{key}: {message}")

    def take(self, key: str, kind: ValueKind, default: Any = None) -> Any:
        """The value of ``key``, which must be there unless there is a default."""
        if key not in self.values:
            if default is None:
                self.fail(key, f"missing; expected {kind.words}")
            return default
        value = self.values[key]
        if not kind.accepts(value):
            self.fail(key, f"expected {kind.words}, got {value!r}")
        return value

    def table(self, key: str, known: Iterable[str]) -> "TomlTable":
        """The table under ``key``; where there is none, an empty one."""
        values = self.values.get(key, {})
        if not isinstance(values, dict):
            self.fail(key, f"expected a table, got {values!r}")
        return TomlTable(self.file, f"{self.path}{'.' if self.path else ''}{key}", values, known)

    def tables(self, key: str, known: Iterable[str]) -> list["TomlTable"]:
        """The tables of the array ``key``, at least one."""
        array = self.values.get(key)
        if not isinstance(array, list) or not array or not all(isinstance(values, dict) for values in array):
            self.fail(key, f"expected one [[{key}]] table or more")
        return [TomlTable(self.file, f"{key}[{i}]", values, known) for i, values in enumerate(array)]


def closest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence that says that ``name`` is none of ``names``: which it may have meant, and all of them."""
    names = sorted(names)
    match = difflib.get_close_matches(name, names, n=1)
    known = ", ".join(names) or "none"
    return f"; did you mean {match[0]!r}? Known: {known}" if match else f"; known: {known}"
