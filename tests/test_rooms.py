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


@pytest.mark.parametrize("room", ["engine", "solvers"])
def test_rooms_of_the_library_know_no_method(room: str) -> None:
    methods = {path.stem for path in modules("balancers") if len(path.parts) == 2 and path.stem not in SAME_EVERYWHERE}
    assert {"gradnorm", "mgda"} <= methods
    for path in modules(f"balancers/{room}"):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                parts = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
                assert not parts & methods, f"{path} imports {parts & methods}"
