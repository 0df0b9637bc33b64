"""Hash what Python code does, not how it is worded or where it lies.

A run's key contains such a hash. Rewording a docstring, adding a comment or moving a module therefore keeps every
stored result; a changed constant, operator or call makes new keys for exactly the runs that go through it.

What is hashed is the parsed source without

- comments, positions, docstrings and the strings that document attributes,
- the attributes `WORDING` of a registered class, which only describe a method or a problem,
- the attributes `PERMISSION` of one, which only say which suites may compare methods on a problem,
- the paths of modules of the packages in question: ``from .engine.base import Range`` counts as importing ``Range``,
- the order of neighbouring import statements.

Two imported names that change places between two modules (``from .a import f`` and ``from .b import g``, afterwards the
other way round) are not noticed; neither is code outside the packages in question. The hash is the same on every Python
from 3.11 on.

A process hashes a file when a key first needs it, and may have imported the file long before. A file that has changed
since this process started is therefore refused: its hash would stand for code that the process does not run.
"""

import ast
import hashlib
import importlib.util
import json
import sys
import time
import tokenize
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

from . import plugins

OURS = ("balancers", "tasks", "bench")
"""The packages of this project."""
WORDING = ("summary", "use_when")
"""Attributes of a class under ``@register`` that are left out if their value is a text."""
PERMISSION = ("reserved",)
"""Attributes of a class under ``@register`` that are left out if their value is true or false."""
_NOT_HASHED = ("kind", "type_comment", "ctx")
STARTED = time.time()
"""When this module was imported, in seconds since 1970: about when the process started."""


class ChangedCodeError(ValueError):
    """A Python file has changed since this process started; the message names it and says what to do."""


def digest(value: object) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def source_hash(source: str, packages: Collection[str]) -> str:
    """Return the hash of one module's ``source``.

    Args:
        packages: top-level packages whose modules may move without changing the hash; relative imports always may.
    """
    return digest(_plain(ast.parse(source), frozenset(packages)))


def file_hashes(files: Iterable[Path], packages: Collection[str]) -> list[str]:
    """Return the hashes of the modules in ``files``, sorted, so that neither names nor order of files matter.

    Files are read once a process.

    Raises:
        ChangedCodeError: one of the files has changed since this process started.
    """
    return sorted(_file_hash(file, frozenset(packages)) for file in files)


def files_of(modules: Iterable[str], packages: Collection[str]) -> set[Path]:
    """Return the files of ``modules`` and of everything they import from ``packages``, directly or not.

    Importing a name from a package (``from balancers import Fork``) leads to the module that defines it, not to
    everything that the package imports. Imports for type checkers alone are not followed.
    """
    packages = frozenset(packages)
    found: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        file = _file(module)
        if module in found or file is None:
            continue
        found[module] = file
        todo.extend(_imported(module, file, packages))
    return set(found.values())


@cache
def _file_hash(file: Path, packages: frozenset[str]) -> str:
    _require_unchanged(file)
    return source_hash(_source(file), packages)


def _require_unchanged(file: Path) -> None:
    changed_at = file.stat().st_mtime
    if not STARTED < changed_at < time.time():  # a time in the future is that of another clock
        return
    if plugins.module_name(file) in sys.modules:  # loaded with this very content
        return
    raise ChangedCodeError(
        f"{file} has changed since this process started, which may run the code from before; start it again "
        "(on a cluster: the worker)"
    )


def _source(file: Path) -> str:
    """Return the text of a Python file, in the encoding that it declares."""
    with tokenize.open(file) as opened:
        return opened.read()


@cache
def _file(module: str) -> Path | None:
    """Return the source file of ``module``; None where there is no such module, or it is not Python source."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a part of the path is a module and no package
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(_source(file))


def _imported(module: str, file: Path, packages: frozenset[str]) -> Iterator[str]:
    """Yield the modules of ``packages`` that ``module`` takes names from."""
    for base, name in _references(module, file):
        if base.partition(".")[0] in packages:
            yield from _defining(base, name)


def _references(module: str, file: Path) -> Iterator[tuple[str, str]]:
    """Yield each name that ``module`` takes from another module, as ``(module, name)``; ``*`` is all names."""
    aliases: dict[str, str] = {}
    for node in _walk(_parsed(file)):
        if isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, file)
            for alias in node.names:
                yield base, alias.name
                aliases[alias.asname or alias.name] = f"{base}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                if "." in alias.name:
                    yield alias.name.rpartition(".")[0], alias.name.rpartition(".")[2]
    for node in ast.walk(_parsed(file)):  # tasks.evaluating, after "import tasks"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield aliases[node.value.id], node.attr


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those under ``if TYPE_CHECKING:``; those of its ``else`` are among them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _walk(other)
            continue
        yield node
        yield from _walk(node)


def _absolute(node: ast.ImportFrom, module: str, file: Path) -> str:
    """Return the absolute path of the module that ``node`` imports from."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _defining(base: str, name: str) -> Iterator[str]:
    """Yield the module that defines ``name`` of the module ``base``; none where ``base`` is no Python module."""
    file = _file(base)
    if file is not None and file.name != "__init__.py":
        yield base
    elif name != "*" and _file(f"{base}.{name}"):
        yield f"{base}.{name}"
    elif file is not None:
        passed_on = [
            (_absolute(node, base, file), alias.name)
            for node in _walk(_parsed(file))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if name in ("*", alias.asname or alias.name)
        ]
        if name == "*" or not passed_on or _does_more_than_export(file):
            yield base
        for source, original in passed_on:
            yield from _defining(source, original)


@cache
def _does_more_than_export(file: Path) -> bool:
    """Tell whether a package's ``__init__`` holds anything but a docstring, imports without aliases and ``__all__``."""
    for statement in _parsed(file).body:
        if isinstance(statement, ast.ImportFrom) and not any(alias.asname for alias in statement.names):
            continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.Assign) and all(ast.unparse(one) == "__all__" for one in statement.targets):
            continue
        return True
    return False


def _plain(value: object, packages: frozenset[str]) -> object:
    """Return a syntax tree as lists and dictionaries, without what does not change what the code does."""
    if isinstance(value, ast.Constant):
        return [type(value.value).__name__, ascii(value.value)]  # repr depends on the Python's Unicode tables
    if isinstance(value, ast.JoinedStr):  # Python 3.12.1 puts an empty text behind a nested field
        parts = [part for part in value.values if not (isinstance(part, ast.Constant) and part.value == "")]
        return ["JoinedStr", [_plain(part, packages) for part in parts]]
    if isinstance(value, ast.AST):
        fields = {
            name: _plain(_statements(field, value, packages), packages)
            for name, field in ast.iter_fields(value)
            if name not in _NOT_HASHED
        }
        return [type(value).__name__, {name: field for name, field in fields.items() if field not in (None, [])}]
    if isinstance(value, list):
        return [_plain(item, packages) for item in value]
    return value


def _statements(field: object, node: ast.AST, packages: frozenset[str]) -> object:
    """Return a block without its wording, each run of adjacent imports sorted; anything else as it is."""
    if not (isinstance(field, list) and field and all(isinstance(item, ast.stmt) for item in field)):
        return field
    kept: list[object] = []
    imports: list[list[str]] = []
    for item in field:
        if isinstance(item, ast.Import | ast.ImportFrom):
            imports += _names(item, packages)
        elif not _is_wording(item, node):
            kept += [*sorted(imports), item]
            imports = []
    return [*kept, *sorted(imports)]


def _is_wording(statement: ast.stmt, node: ast.AST) -> bool:
    """Tell whether a statement does nothing, or only describes a class or says who may use it."""
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if not (isinstance(node, ast.ClassDef) and isinstance(statement, ast.Assign | ast.AnnAssign)):
        return False
    if not any(_is_register(decorator) for decorator in node.decorator_list):
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    if not isinstance(statement.value, ast.Constant):
        return False
    value = statement.value.value
    left_out = WORDING if isinstance(value, str) else PERMISSION if isinstance(value, bool) else ()
    return all(isinstance(target, ast.Name) and target.id in left_out for target in targets)


def _is_register(decorator: ast.expr) -> bool:
    """Tell whether a decorator is ``register``, of whatever module, with or without arguments."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] == "register"


def _names(statement: ast.stmt, packages: frozenset[str]) -> Iterator[list[str]]:
    """Yield what an import binds, as ``[module, name, alias]``; the module is empty where it may move."""
    if isinstance(statement, ast.ImportFrom):
        moves = statement.level > 0 or (statement.module or "").partition(".")[0] in packages
        for alias in statement.names:
            yield ["" if moves else statement.module or "", alias.name, alias.asname or ""]
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            base, _, name = alias.name.rpartition(".")
            yield ["" if alias.name.partition(".")[0] in packages else base, name, alias.asname or ""]
