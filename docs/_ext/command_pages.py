"""Generate the page of the command line from the help of `lossbench`, and from the modules that measure and that run.

The text is what ``--help`` prints, so that it has one place: the code.
"""

import importlib
import inspect
import re
from collections.abc import Iterator

import typer
from page_text import heading, table

from bench.cli import app

PAGE = "command-line"
MODULES = (
    *("bench.cost.__main__", "bench.cost.method_costs", "bench.cost.cost_markdown"),
    *("bench.peers.__main__", "bench.peers.solver_times", "bench.peers.step_times", "bench.peers.peer_markdown"),
    *("bench.gpu.__main__", "bench.execute.scale"),
)
"""Modules that the documentation tells readers to run."""


def page() -> str:
    """Return the page."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    commands = [heading(f"lossbench {name}", "-") + _command(name, each) for name, each in group.commands.items()]
    modules = [heading(_run_as(name), "-") + _module(name) for name in MODULES]
    parts = [heading("The command line"), f"{group.help}\n", _examples(group), _options(group), *commands, *modules]
    return "\n".join(parts)


def _options(command: "typer.core.click.Command") -> str:
    """Return the table of a command's arguments and options."""
    context = typer.Context(command, info_name="lossbench")
    rows = [
        _row(*record) for each in command.params if (record := each.get_help_record(context)) and each.name != "help"
    ]
    return table(("argument or option", "what it is"), rows) if rows else ""


def _examples(command: "typer.core.click.Command") -> str:
    """Return the examples at the end of a command's help, as a block of shell commands that can be copied."""
    lines = [line for line in (command.epilog or "").splitlines() if line.startswith("$ ")]
    return "\n.. code-block:: sh\n\n" + "".join(f"   {line[2:].rstrip()}\n" for line in lines) + "\n" if lines else ""


def _command(name: str, command: "typer.core.click.Command") -> str:
    context = typer.Context(command, info_name=f"lossbench {name}")
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    text = _literal(inspect.cleandoc(command.help or ""))
    return f"\n.. code-block:: text\n\n   {usage}\n\n{text}\n{_examples(command)}\n{_options(command)}"


def _row(names: str, text: str) -> tuple[str, str]:
    plain = re.sub(r"([\\*_|])", r"\\\1", _literal(" ".join(text.split())))
    plain = re.sub(r"(\w+://[\w.:]*\w)", r"``\1``", plain)  # an address of an example, which leads nowhere
    return f"``{names.strip()}``", plain


def _run_as(module: str) -> str:
    return f"python -m {module.removesuffix('.__main__')}"


def _module(name: str) -> str:
    found = importlib.import_module(name)
    text = inspect.cleandoc(found.__doc__ or "")
    main = inspect.getdoc(getattr(found, "main", None)) if name.endswith("__main__") else None
    paragraphs = [*_without_command(text), *([main] if main and main not in text else [])]
    return "\n" + "\n\n".join(map(_literal, paragraphs)) + "\n\n"


def _without_command(text: str) -> Iterator[str]:
    """Yield the paragraphs of a module's docstring, without the command itself, which is the heading."""
    for paragraph in text.split("\n\n"):
        shorter = re.sub(r"^``python -m [\w.]+``: ", "", paragraph)
        if not shorter.startswith("python -m"):
            yield shorter[:1].upper() + shorter[1:]


def _literal(text: str) -> str:
    """Return ``text`` with what stands between single backticks as code: it names modules, which have no pages."""
    return re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text)
