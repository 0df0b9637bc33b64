"""Find the examples in a package's docstrings, by Sybil's parsers, each by the name of what it explains."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from sybil import Document, Region
from sybil.parsers.abstract.lexers import BlockLexer
from sybil.parsers.rest import CodeBlockParser
from sybil.parsers.rest.lexers import END_PATTERN_TEMPLATE

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
LITERAL_BLOCKS = BlockLexer(re.compile(r"^(?P<prefix> *)(?=\S)(?!\.\. )[^\n]*::\n", re.MULTILINE), END_PATTERN_TEMPLATE)
"""Sybil has a parser for directives alone. A literal block follows a line that ends with two colons."""
TOML_BLOCKS = CodeBlockParser("toml")


def examples(package: ModuleType, parser: Callable[[Document], Iterable[Region]] = LITERAL_BLOCKS) -> dict[str, str]:
    """Return the blocks that ``parser`` finds, by module and name, as ``engine.fork.Fork``; the second has ", 2"."""
    found = {}
    folder = Path(str(package.__file__)).parent
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (each for each in ast.walk(tree) if isinstance(each, DOCUMENTED)):
            text = ast.get_docstring(node)
            name = ".".join(parts if isinstance(node, ast.Module) else (*parts, node.name))
            for i, region in enumerate(parser(Document(text or "", str(path)))):
                found[f"{name}, {i + 1}" if i else name] = f"{region.lexemes['source'].strip()}\n"
    return found


def public_classes(package: ModuleType) -> dict[str, type]:
    """Return the classes of a package's ``__all__``, by module and name."""
    named = [getattr(package, name) for name in package.__all__]
    classes = [each for each in named if inspect.isclass(each)]
    return {f"{cls.__module__}.{cls.__name__}".removeprefix(f"{package.__name__}."): cls for cls in classes}
