"""Load single modules of other people's packages, without running the packages and without their dependencies."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

HOW_TO_INSTALL = "run `make test-peers`, or see tests/peers/requirements.txt"


class NotInstalledError(ImportError):
    """A package is not installed."""


def load(name: str, stubs: Mapping[str, Mapping[str, object]] | None = None) -> ModuleType:
    """Return the module ``name``, such as ``"package.folder.module"``, imported anew.

    The packages above it do not run: their ``__init__`` modules import what the one module does not need. Afterwards,
    the imported modules of ``name``'s package, the ``stubs`` and the filters of warnings are as they were before.

    Args:
        name: full name of a module in a package that is installed.
        stubs: names of modules that stand-ins replace while ``name`` is imported, each with its attributes. Import
            beforehand what really needs one of them.

    Raises:
        NotInstalledError: its package is not installed.
    """
    package = name.partition(".")[0]
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise NotInstalledError(f"{package} is not installed")
    with _restored(package, *(stubs or {})), warnings.catch_warnings():
        root = found.submodule_search_locations[0]
        for parent in _parents(name):
            sys.modules[parent] = ModuleType(parent)
            sys.modules[parent].__path__ = [str(Path(root, *parent.split(".")[1:]))]
        for stub, attributes in (stubs or {}).items():
            sys.modules[stub] = ModuleType(stub)
            sys.modules[stub].__dict__.update(attributes)
        return import_module(name)


def _parents(name: str) -> list[str]:
    """Return the names of the packages above a module, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


@contextmanager
def _restored(*names: str) -> Iterator[None]:
    """Hide the modules ``names`` and all modules below them; at the end, put back what was there, and no more."""
    below = tuple(f"{name}." for name in names)

    def known() -> dict[str, ModuleType]:
        return {key: module for key, module in sys.modules.items() if key in names or key.startswith(below)}

    before = known()
    for key in before:
        del sys.modules[key]
    try:
        yield
    finally:
        for key in known():
            del sys.modules[key]
        sys.modules.update(before)
