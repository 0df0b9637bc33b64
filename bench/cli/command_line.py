"""The frame of the command ``lossbench``: its help, its version and how it tells of wrong arguments.

Each command imports what it needs when it runs. ``--help``, ``--version`` and the shell's completion therefore answer
at once: they import neither PyTorch nor pandas, which take seconds.
"""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bench.suite.toml_table import closest

ON_SUITES, ON_YOURS, ON_LISTS = "Run suites and look at their results", "Your own problem or model", "Look things up"
"""Headings of the commands in ``lossbench --help``, in their order there."""


class CommandLine(TyperGroup):
    """Print an error in the arguments as one line, as all other errors of the user."""

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the command line and exit."""
        try:
            code = super().main(*args, **{**settings, "standalone_mode": False})
        except typer.Abort:
            sys.exit(1)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer keeps the class of these errors to itself
                raise
            told = " ".join(error.format_message().split())
            context = getattr(error, "ctx", None)
            place = f"; see {context.command_path} --help" if context else ""
            if told:  # without any argument, the help has been printed
                print(f"error: {told[:1].lower()}{told[1:].removesuffix('.')}{place}", file=sys.stderr)
            sys.exit(2)
        sys.exit(code or 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands in the order of their headings."""
        headings = [ON_SUITES, ON_YOURS, ON_LISTS]
        heading = {name: str(getattr(command, "rich_help_panel", None)) for name, command in self.commands.items()}
        return sorted(self.commands, key=lambda name: headings.index(heading[name]))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that ``args`` begins with, or say which commands there are."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"no command is called {args[0]!r}{closest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def examples(*lines: tuple[str, str]) -> str:
    """Return the end of a command's help: its examples, each a command and what it is for."""
    width = max(len(command) for command, _ in lines)
    written = (f"$ {command:{width}}   # {remark}" if remark else f"$ {command}" for command, remark in lines)
    return "[bold]Examples[/bold]\n\n" + "\n".join(written)


# Typer keeps the line breaks of a command's docstring, so these lines are short enough for narrow terminals.
app = typer.Typer(
    cls=CommandLine,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        ("lossbench list", "all methods, problems and suites"),
        ("lossbench try my_problem.py", "which method to use"),
        ("lossbench cost my_model.py:make_step", "what a method adds to your step"),
        ("lossbench run smoke", "a test, in a minute"),
    ),
)


def main() -> None:
    """Run the command line."""
    app()


def _print_versions(wanted: bool) -> None:
    """Print the versions that a report of a bug needs, and exit."""
    if wanted:
        told = [f"lossbench {_version('lossbench')}", f"PyTorch {_version('torch')}"]
        typer.echo(", ".join([*told, f"Python {platform.python_version()}"]))
        raise typer.Exit


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"


@app.callback()
def lossbench(
    versions: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Show the versions of lossbench, PyTorch and Python, and exit.",
        ),
    ] = False,
) -> None:
    """Compare loss balancers for multi-task learning: their scores, their weights, and what they add to a step."""
