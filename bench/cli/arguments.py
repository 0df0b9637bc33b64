"""Arguments that several commands take, and what the shell completes in them."""

from pathlib import Path
from typing import Annotated

import typer

from bench.catalogue import shell_completion


def complete_suite(typed: str) -> list[str]:
    return shell_completion.suites(typed)


def complete_problem(typed: str) -> list[str]:
    return shell_completion.problems(typed)


def complete_problem_of_suite(ctx: typer.Context, typed: str) -> list[str]:
    return shell_completion.of_suite(typed, _first_argument(ctx), "problems")


def complete_balancer(ctx: typer.Context, typed: str) -> list[str]:
    of_suite = shell_completion.of_suite(typed, _first_argument(ctx), "balancers")
    return list(dict.fromkeys([*of_suite, *shell_completion.balancers(typed)]))


def complete_key(ctx: typer.Context, typed: str) -> list[str]:
    results = Path(ctx.params.get("results") or "results")
    return shell_completion.keys(typed, results / results_name(ctx.params.get("name") or ""))


def results_name(suite: str) -> str:
    """Return the name of the results folder of a suite, which is given by its name or by the path of a file.

    Only the endings .toml and .py are dropped: a suite may be called ``mine.v2``. The copy of a suite that its results
    folder keeps has the name of that folder.
    """
    path = Path(suite)
    if path.name == "suite.toml":
        return path.resolve().parent.name
    return path.stem if path.suffix in (".toml", ".py") else path.name


def _first_argument(ctx: typer.Context) -> str | None:
    """Return the suite in front of the option that is completed; its parser gives up at an option without value."""
    return next(iter(ctx.args), None)


SuiteArgument = Annotated[
    str,
    typer.Argument(metavar="SUITE", help="Name of a suite, or path of its .toml file.", autocompletion=complete_suite),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of runs at a time here; default: one per core, or on CUDA as the suite says.",
        show_default=False,
    ),
]
ProblemOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="Option of the problem, written as in a suite, such as 'sigmas=\"T=10\"'; can be repeated.",
        show_default=False,
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler: tcp://HOST:8786."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(metavar="FILE.py:FUNCTION", help="Run on the Dask cluster that this function of yours returns."),
]
ResultsOption = Annotated[Path, typer.Option(help="Folder of all results; each suite has its own folder in it.")]
