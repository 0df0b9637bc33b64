"""Every program in `examples` is short, says what it shows and how to run it, and is run by a test."""

import ast
import re
from pathlib import Path

import pytest

from .programs import EXAMPLES

LONGEST = 80
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
TESTS = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if path != Path(__file__)
)


def test_there_are_programs() -> None:
    assert len(PROGRAMS) >= 7


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
class TestProgram:
    def test_is_short(self, path: Path) -> None:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST

    def test_says_what_it_shows_and_how_to_run_it(self, path: Path) -> None:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring is not None
        sentences = re.findall(r"[.:](?=\s)", docstring)
        assert len(sentences) >= 2
        assert f"examples/{path.name}" in docstring

    def test_has_a_main_that_takes_a_number_of_steps_and_starts_it(self, path: Path) -> None:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        [main] = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        arguments = [*main.args.args, *main.args.kwonlyargs]
        assert "steps" in [argument.arg for argument in arguments]
        assert len([*main.args.defaults, *main.args.kw_defaults]) == len(arguments)
        assert ast.unparse(body[-1]).startswith("if __name__ == '__main__':")

    def test_is_run_by_a_test(self, path: Path) -> None:
        assert f'"{path.stem}"' in TESTS
