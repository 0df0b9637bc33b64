"""A peer's module is loaded alone, leaves nothing behind, and has the version that requirements.txt names."""

import re
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from .loading import HOW_TO_INSTALL, NotInstalledError, load

PINNED = re.findall(r"^([\w-]+)==(\S+)", (Path(__file__).parent / "requirements.txt").read_text(), re.MULTILINE)

MODULE = """
import warnings
from heavy.parts import Part
from made_up_peer.sibling import VALUE
from .near import Near
warnings.filterwarnings("ignore", message="only this")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a package that fails when it is imported as a whole, and return the name of a module inside."""
    folder = tmp_path / "made_up_peer" / "inner"
    folder.mkdir(parents=True)
    for init in (folder / "__init__.py", folder.parent / "__init__.py"):
        init.write_text("raise ImportError('the whole package was imported')")
    (folder / "module.py").write_text(MODULE)
    (folder / "near.py").write_text("Near = 'near'")
    (folder.parent / "sibling.py").write_text("VALUE = 3")
    monkeypatch.syspath_prepend(tmp_path)
    return "made_up_peer.inner.module"


def test_a_module_is_loaded_without_its_packages_and_what_they_need(package: str) -> None:
    module = load(package, {"heavy.parts": {"Part": 1}})
    assert (module.Part, module.VALUE, module.Near) == (1, 3, "near")


def test_nothing_is_left_behind(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(sys)("heavy.parts")
    monkeypatch.setitem(sys.modules, "heavy.parts", real)
    before, filters = dict(sys.modules), list(warnings.filters)
    load(package, {"heavy.parts": {"Part": 1}})
    assert sys.modules["heavy.parts"] is real
    assert dict(sys.modules) == before
    assert warnings.filters == filters


def test_nothing_is_left_behind_by_an_import_that_fails(package: str) -> None:
    before = dict(sys.modules)
    with pytest.raises(ModuleNotFoundError, match="heavy"):
        load(package)
    assert dict(sys.modules) == before


def test_a_missing_package_is_named() -> None:
    with pytest.raises(NotInstalledError, match="no_such_peer is not installed"):
        load("no_such_peer.module")


def test_all_peers_are_pinned() -> None:
    lines = (Path(__file__).parent / "requirements.txt").read_text().splitlines()
    assert len(PINNED) == len([line for line in lines if line and not line.startswith("#")]) > 5


@pytest.mark.parametrize(("name", "version"), PINNED)
def test_the_installed_version_is_the_pinned_one(name: str, version: str) -> None:
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed: {HOW_TO_INSTALL}")
    assert installed == version
