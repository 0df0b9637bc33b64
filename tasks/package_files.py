"""Data files that come inside other Python packages, found without importing those."""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from .problem import MissingDataError


def data_file(package: str, path: str, problem: str) -> Path:
    """The file at ``path`` inside an installed ``package``, none of whose code is run.

    Raises:
        MissingDataError: it isn't there, and what to install so that ``problem`` has it.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(folder) / path).is_file():
            return found
    what = f"the file {path} of the package {package}" if spec else f"the package {package}"
    raise MissingDataError(f"{problem} needs {what}, which is not installed; pip install 'lossbench[data]' brings it")


def require_package(package: str, problem: str) -> None:
    """Checks that ``package`` is installed.

    Raises:
        MissingDataError: it isn't, and what to install so that ``problem`` has it.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingDataError(
            f"{problem} needs the package {package}, which is not installed; pip install 'lossbench[data]' brings it"
        )


@cache
def hash_files(*paths: Path) -> str:
    """The SHA-256 of the files' contents, one after another, in hexadecimal digits; read once a process."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
