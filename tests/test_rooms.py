"""Every module and every public class has a name of its own, and the library's rooms don't know its methods."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAME_EVERYWHERE = {"__init__", "__main__", "conftest"}


def modules(*packages: str) -> Iterator[Path]:
    """Yield the modules of ``packages``, as paths from the root."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT)


def twice(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the names that stand for more than one thing, and where."""
    return {name: places for name, places in names.items() if len(places) > 1}


def public_classes(path: Path) -> Iterator[str]:
    """Yield the classes that a module defines for others."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_no_two_modules_share_a_name() -> None:
    """Problems are apart: each may lie in a folder of its own and have its network, its data and its metrics."""
    names: dict[str, list[str]] = defaultdict(list)
    for path in modules("balancers", "bench"):
        if path.stem not in SAME_EVERYWHERE:
            names[path.stem].append(str(path))
    assert len(names) > 100
    assert not twice(names)


def test_no_two_public_classes_share_a_name() -> None:
    names: dict[str, list[str]] = defaultdict(list)
    for path in modules("balancers", "bench"):
        for name in public_classes(path):
            names[name].append(str(path))
    for path in modules("tasks"):
        for name in public_classes(path):
            if name in names:
                names[name].append(str(path))
    assert len(names) > 80
    assert not twice(names)


def imported(path: Path) -> Iterator[str]:
    """Yield the absolute name of everything that a module imports."""
    package = list(path.parts[:-1])
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names)


@pytest.mark.parametrize("room", ["engine", "solvers"])
def test_rooms_of_the_library_know_no_method(room: str) -> None:
    """They import from each other, and never from `balancers` itself, whose names are those of the methods."""
    names = [name for path in modules(f"balancers/{room}") for name in imported(path)]
    ours = [name for name in names if name.partition(".")[0] == "balancers"]
    assert ours
    assert not [name for name in ours if name.split(".")[1:2] not in (["engine"], ["solvers"])]


def test_an_import_of_a_method_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = Path("balancers/engine/base.py")
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(
        "import balancers\nfrom balancers import GradNorm\nfrom ..gradnorm import G\nfrom . import fork"
    )
    assert list(imported(path)) == ["balancers", "balancers.GradNorm", "balancers.gradnorm.G", "balancers.engine.fork"]
