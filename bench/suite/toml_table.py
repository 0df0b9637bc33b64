"""Read values from TOML tables that know their place in the file, so that errors name file and key."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn


class SuiteError(ValueError):
    """A suite cannot be run as it stands; the message says where and why."""


@dataclass(frozen=True)
class ValueKind:
    """A kind of value that a key may have: its description in words, and the test for it."""

    words: str
    accepts: Callable[[Any], bool]


class TomlTable:
    """A table of a TOML file.

    Args:
        file: The file's name.
        path: The table's own key, such as ``balancers[2]``; empty for the whole file.
        values: The keys and values of the table.
        known: The keys that the table may have.

    Raises:
        SuiteError: The table has another key.
    """

    def __init__(self, file: str, path: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
        self.file = file
        self.path = path
        self.values = values
        for key in values:
            if key not in known:
                self.fail(key, f"unknown key{closest(key, known)}")

    def fail(self, key: str, message: str) -> NoReturn:
        """Raise a `SuiteError` about ``key`` of this table."""
        raise SuiteError(f"{self.file}: {self.path}{'.' if self.path and key else ''}{key}: {message}")

    def take(self, key: str, kind: ValueKind, default: Any = None) -> Any:
        """Return the value of ``key``, or the default if the table lacks the key.

        Raises:
            SuiteError: The value is not of the ``kind``, or the key is missing and there is no default.
        """
        if key not in self.values:
            if default is None:
                self.fail(key, f"missing; expected {kind.words}")
            return default
        value = self.values[key]
        if not kind.accepts(value):
            self.fail(key, f"expected {kind.words}, got {value!r}")
        return value

    def table(self, key: str, known: Iterable[str]) -> "TomlTable":
        """Return the table under ``key``, which may have the keys ``known``; an empty table if the key is missing.

        Raises:
            SuiteError: The value is not a table, or has another key.
        """
        values = self.values.get(key, {})
        if not isinstance(values, dict):
            self.fail(key, f"expected a table, got {values!r}")
        return TomlTable(self.file, f"{self.path}{'.' if self.path else ''}{key}", values, known)

    def tables(self, key: str, known: Iterable[str]) -> list["TomlTable"]:
        """Return the tables of the array ``key``, each of which may have the keys ``known``.

        Raises:
            SuiteError: There is no such array, it has no table, or a table has another key.
        """
        array = self.values.get(key)
        if not isinstance(array, list) or not array or not all(isinstance(values, dict) for values in array):
            self.fail(key, f"expected one [[{key}]] table or more")
        return [TomlTable(self.file, f"{key}[{i}]", values, known) for i, values in enumerate(array)]


def closest(name: str, names: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown ``name``: the closest of the known ``names``, and all of them."""
    names = sorted(names)
    match = difflib.get_close_matches(name, names, n=1)
    known = ", ".join(map(repr, names)) or "none"
    return f"; did you mean {match[0]!r}? Known: {known}" if match else f"; known: {known}"
