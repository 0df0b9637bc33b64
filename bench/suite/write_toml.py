"""Write a suite's values as TOML, which `tomllib` reads back."""

import json
import re
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any]) -> str:
    """Return the text of ``values``: single values first, then tables, then arrays of tables."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    arrays = {key: value for key, value in values.items() if _is_array_of_tables(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items() if key not in (*tables, *arrays)]
    for key, table in tables.items():
        lines += [f"\n[{_key(key)}]", *_pairs(table)]
    for key, entries in arrays.items():
        for entry in entries:
            lines += [f"\n[[{_key(key)}]]", *_pairs(entry)]
    return "\n".join(lines) + "\n"


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(each, Mapping) for each in value)


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _value(value: object) -> str:
    """Return a value within a line. Strings, numbers and lists are written as in JSON, but without escaping letters."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_pairs(value)) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON does not escape


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)
