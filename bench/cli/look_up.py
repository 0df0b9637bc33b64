"""The commands that tell what methods, problems and suites there are."""

from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.catalogue import shell_completion
from bench.style.console import new_console

from .arguments import ProblemOptions, complete_problem
from .command_line import ON_LISTS, app, examples
from .user_errors import messages, user_errors


class Listing(StrEnum):
    """The kinds of things that can be listed."""

    BALANCERS = "balancers"
    PROBLEMS = "problems"
    SUITES = "suites"


def complete_listed(typed: str) -> list[str]:
    kinds = [str(kind) for kind in Listing if kind.startswith(typed)]
    names = (shell_completion.balancers(typed), shell_completion.problems(typed), shell_completion.suites(typed, None))
    return [*kinds, *(name for of_kind in names for name in of_kind)]


@app.command(
    "list",
    rich_help_panel=ON_LISTS,
    epilog=examples(
        ("lossbench list", "everything, a line each"),
        ("lossbench list balancers", "what each reads, and when to use it"),
        ("lossbench list gradnorm", "one of them: its formula, its arguments"),
        ("lossbench list my_problem.py", "what your file registers"),
        ("lossbench list mine.toml", "what your suite compares"),
    ),
)
def list_all(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND|NAME|FILE.py|FILE.toml",
            help="List in detail only this kind (balancers, problems or suites), this balancer, problem or suite, "
            "what your file registers, or your suite.",
            show_default=False,
            autocompletion=complete_listed,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the balancers as a Markdown table.")] = False,
) -> None:
    """List all balancers, problems and suites; or one kind, one of them or your own file in detail.

    The details of a problem are its tasks, its metrics and its steps. For one
    problem, or the problems in your file, the command also prints the numbers
    of samples. It estimates the time of a run from a few training steps. The
    details of a suite are its problems, its balancers, its seeds and its file.

    Exit codes: 0, success; 2, there is no such kind, name or file.
    """
    import balancers
    import tasks
    from bench.catalogue import method_list, problem_list
    from bench.suite import suite_file

    if markdown and what not in (None, Listing.BALANCERS):
        raise typer.BadParameter(f"--markdown prints the balancers alone; leave out {what!r}")
    if markdown:
        typer.echo(method_list.markdown(method_list.entries()))
    elif what is None:
        for each in Listing:
            _print_lines(each)
    elif what.endswith(".py"):
        _print_registered(Path(what))
    elif what.endswith(".toml"):
        with user_errors(messages()):
            suite_file.load(suite_file.find(what))  # which checks it
        _print_suite(what)
    elif what == Listing.BALANCERS:
        _print_methods(balancers.names())
    elif what == Listing.PROBLEMS:
        new_console().print(problem_list.table(problem_list.entries(timed=False)))
    elif what == Listing.SUITES:
        _print_lines(Listing.SUITES)
    elif what in balancers.names():
        _print_methods([what])
        new_console().print(Text(method_list.documentation(what)))
    elif what in tasks.names():
        _print_problems([what])
    elif what in suite_file.names():
        _print_suite(what)
    else:
        known = [*map(str, Listing), *balancers.names(), *tasks.names(), *suite_file.names()]
        near = get_close_matches(what, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise typer.BadParameter(f"nothing is called {what!r}; {hint}`lossbench list` names everything")


def _print_lines(kind: Listing) -> None:
    """Print a table of one kind of things: a line for each."""
    import balancers
    import tasks
    from bench.catalogue import problem_list
    from bench.suite import suite_file

    match kind:
        case Listing.BALANCERS:
            lines = [(name, balancers.get(name).summary) for name in balancers.names()]
        case Listing.PROBLEMS:
            lines = [(name, problem_list.line(name)) for name in tasks.names()]
        case Listing.SUITES:
            lines = [(name, suite_file.description(suite_file.find(name))) for name in suite_file.names()]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(kind)
    table.add_column("what it is")
    for name, description in lines:
        table.add_row(Text(name, style="bold", overflow="fold"), Text(description))
    new_console().print(table)


def _print_registered(file: Path) -> None:
    """Print the details of the methods and problems that a user's file registers."""
    from bench.run import plugins

    with user_errors(messages()):
        found = plugins.registered(file)
        if not any(found):
            raise plugins.PluginError(f"{file} registers neither a problem nor a balancer")
    if found.balancers:
        _print_methods(found.balancers)
    if found.problems:
        _print_problems(found.problems)


def _print_methods(names: list[str]) -> None:
    from bench.catalogue import method_list

    shown = method_list.table(method_list.entries(names))
    shown.box, shown.padding, shown.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), True
    new_console().print(shown)


def _print_problems(names: list[str]) -> None:
    from bench.catalogue import problem_list

    with user_errors(messages()), messages().status("timing a few steps of each problem"):
        listed = problem_list.table(problem_list.entries(names))
    new_console().print(listed)


def _print_suite(name: str) -> None:
    """Print what a suite compares, and where its file is.

    Args:
        name: the path of its file, or the name of one that comes with the benchmark.
    """
    from bench.analysis import label_of
    from bench.run import suite_text
    from bench.suite import suite_file

    path = suite_file.find(name)
    suite = suite_text.read(path)
    lines = {kind: "; ".join(map(label_of, suite.values[kind])) for kind in ("problems", "balancers")}
    lines |= {"seeds": ", ".join(map(str, suite.values["seeds"]["reported"])), "file": str(path)}
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(path.stem), "", Text(suite.description))
    for what, text in lines.items():
        grid.add_row("", what, Text(text))
    new_console().print(grid)


@app.command(
    rich_help_panel=ON_LISTS,
    epilog=examples(
        ("lossbench show scenes --train", "data and predictions"),
        ("lossbench show conflict-2d --train", "the methods' paths"),
        ("lossbench show my_problem.py --out picture.png", "your own problem"),
    ),
)
def show(
    problem: Annotated[
        str,
        typer.Argument(
            metavar="PROBLEM|FILE.py",
            help="Name of a problem, see `lossbench list problems`; or your file, for the problems that it registers.",
            autocompletion=complete_problem,
        ),
    ],
    option: ProblemOptions = None,
    train: Annotated[bool, typer.Option("--train", help="Train the model first, and draw what it predicts.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File of the picture, a PNG; default: results/show/PROBLEM.png.", show_default=False),
    ] = None,
) -> None:
    """Draw a problem's data and, with --train, what its model predicts after training with equal weighting.

    Training uses the problem's default recipe. For the illustration
    conflict-2d, --train draws the paths that several methods take.

    Exit codes: 0, success; 2, there is nothing to draw.
    """
    from bench.catalogue import show_problem
    from bench.catalogue.show_problem import NothingToDrawError
    from bench.run import problem_argument

    with user_errors(messages(), writes_to="--out"):
        if out is not None and out.suffix.lower() != ".png":
            raise NothingToDrawError(f"--out is {out}, but pictures are PNG files: give a name that ends in .png")
        names = problem_argument.named(problem)
        if out is not None and len(names) > 1:
            raise NothingToDrawError(f"{problem} registers {', '.join(names)}, whose pictures can't all be in {out}")
        for name in names:
            picture = show_problem.draw(name, option or [], train)
            path = out or Path("results") / "show" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.png)
            Console(highlight=False).print(Text(picture.caption))
            Console(soft_wrap=True).print(Text(f"picture: {path}"))
