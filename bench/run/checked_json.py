"""Write and read JSON files that carry a checksum of their content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import atomic_file
from .atomic_file import BadFileError

CHECKSUM = "checksum"


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """Write ``facts``, and their checksum under the name `CHECKSUM`."""
    atomic_file.write(path, json.dumps({**facts, CHECKSUM: _checksum(facts)}).encode())


def read(path: Path) -> dict[str, Any]:
    """Return the facts in a file that `write` wrote.

    Raises:
        BadFileError: it is not such a file, or it has changed since.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.pop(CHECKSUM) == _checksum(facts):
            whole: dict[str, Any] = facts
            return whole
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise BadFileError(f"{path} is damaged; remove it and run the suite again")


def checksum(content: bytes) -> str:
    """Return 32 hexadecimal digits that another content does not have."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _checksum(facts: Mapping[str, Any]) -> str:
    return checksum(json.dumps(facts, sort_keys=True).encode())
