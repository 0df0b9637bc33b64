"""Finding data files inside installed Python packages, without importing the packages."""

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from .problem import MissingDataError


def data_file(package: str, path: str, problem: str) -> Path:
    """Return the path of the file ``path`` inside the installed ``package``, without running the package's code.

    Raises:
        MissingDataError: If the file isn't there. The message names ``problem`` and says what to install.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(folder) / path).is_file():
            return found
    what = f"the file {path} of the package {package}" if spec else f"the package {package}"
    raise MissingDataError(f"{problem} needs {what}, which is not installed; to get it: pip install 'lossbench[data]'")


def require_package(package: str, problem: str) -> None:
    """Check that ``package`` is installed.

    Raises:
        MissingDataError: If it isn't. The message names ``problem`` and says what to install.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingDataError(
            f"{problem} needs the package {package}, which is not installed; to get it: pip install 'lossbench[data]'"
        )


@cache
def hash_files(*paths: Path) -> str:
    """Return the SHA-256 of the files' contents, concatenated in this order, as hexadecimal digits.

    The files are read once per process.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
