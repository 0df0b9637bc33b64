"""The commands that run suites, and those that look at their results."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from bench.style.console import new_console
from bench.suite.toml_table import SuiteError, closest

from . import run_and_report
from .arguments import (
    ClusterOption,
    JobsOption,
    ResultsOption,
    SchedulerOption,
    SuiteArgument,
    complete_balancer,
    complete_key,
    complete_problem_of_suite,
    complete_suite,
    results_name,
)
from .command_line import ON_SUITES, app, examples
from .user_errors import messages, user_errors

NUM_CLAIMS = 6
"""Number of the GradNorm paper's claims: that of `all_claims.CLAIMS`."""


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=examples(
        ("lossbench run smoke", "a test, in a minute"),
        ("lossbench run default", "some twenty minutes"),
        ("lossbench run mine.toml --jobs 2", "two runs at a time"),
        ("lossbench run core --scheduler tcp://HOST:8786", "on a Dask cluster"),
    ),
)
def run(
    name: SuiteArgument,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Run a suite, print its leaderboard and write its report.

    Each result is stored as soon as its run has ended. You can stop the command
    at any time, with Ctrl-C or by force. Give the same command again to go on.
    After a change to the suite or to a method, only the runs that the change
    affects are done again.

    The results folder has the name of the suite's file. Another file of the
    same name is refused there.

    Exit codes: 0, success; 1, a run whose score is reported failed, or some
    runs were not done; 2, the suite cannot be run; 130, stopped with Ctrl-C.
    A failed run that only decides on a learning rate, such as one that
    diverges at a high rate, does not count.
    """
    from bench.suite import suite_file

    console = messages()
    with user_errors(console):
        file = run_and_report.file_of(name)
        loaded = suite_file.load(file)
    with run_and_report.workforce(loaded, jobs, scheduler, cluster, console) as workforce:
        run_and_report.run(loaded, results / loaded.name, workforce, console, file)


@app.command(
    "tune",
    rich_help_panel=ON_SUITES,
    epilog=examples(
        ("lossbench tune mine.toml", ""),
        ("lossbench tune mine.toml --trials 8 --jobs 2", ""),
        ("lossbench tune default --problem flights --balancer famo", ""),
    ),
)
def tune_all(
    name: SuiteArgument,
    trials: Annotated[int, typer.Option(min=4, help="Number of trials of each method on each problem.")] = 16,
    problem: Annotated[
        list[str] | None,
        typer.Option(
            help="Label or name of a problem of the suite; can be repeated.",
            show_default="all",
            autocompletion=complete_problem_of_suite,
        ),
    ] = None,
    balancer: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a balancer of the suite, or name of any other balancer; can be repeated.",
            show_default="all",
            autocompletion=complete_balancer,
        ),
    ] = None,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Tune every method of a suite on the same number of trials, and show which lie beyond static weights.

    A trial is a learning rate with a value for each option that the method
    declares a range for. A trial of static weighting is a learning rate with
    weights. Validation chooses the best trial of each method. The chosen trials
    are compared on the test split, on other seeds.

    The front of static weights is run on these seeds too. A trial of static
    weights belongs to the front if no other equals or beats it in every task. A
    method lies beyond static weights if no point of the front is as good as it
    in every task.

    Results are stored in a folder called SUITE-tuned, together with the suite
    that was made. With --problem or --balancer, the folder has their names at
    its end, so that a part replaces nothing of the whole.

    Exit codes: 0, success; 1, a run whose score is reported failed, or some
    runs were not done; 2, the suite cannot be run; 130, stopped with Ctrl-C.
    A trial that fails, for example because it diverges, does not count.
    """
    from bench.suite import tune_suite

    console = messages()
    with user_errors(console):
        file = run_and_report.file_of(name)
        loaded, notes = tune_suite.make(file, results, trials, problem or (), balancer or ())
        for note in notes:
            console.print(Text(note))
    with run_and_report.workforce(loaded, jobs, scheduler, cluster, console) as workforce:
        run_and_report.run(loaded, results / loaded.name, workforce, console, file)


@app.command(
    "paper",
    rich_help_panel=ON_SUITES,
    epilog=examples(
        ("lossbench paper", "all claims: about half an hour"),
        ("lossbench paper --only 1 --only 4", "two of them"),
        ("lossbench paper --full", "more seeds: hours"),
    ),
)
def paper_claims(
    full: Annotated[bool, typer.Option("--full", help="Use three times as many seeds; takes hours.")] = False,
    only: Annotated[
        list[int] | None,
        typer.Option(min=1, max=NUM_CLAIMS, help="Number of a claim; can be repeated.", show_default="all"),
    ] = None,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Test the claims of the GradNorm paper: one experiment and one verdict for each claim.

    Each claim is tested in two settings: with one learning rate for all
    methods, as in the paper, and with a learning rate that validation chooses
    for each method. Give the same command again to go on after a stop. Steps
    are timed at the end; let nothing else run then. With --only, the tables
    and the page keep the claims that were judged before.

    Exit codes: 0, all claims were judged, whatever the verdicts; 1, the worker
    processes failed; 2, the claims cannot be tested.
    """
    from bench.paper import all_claims, claims_page, experiments

    console = messages()
    folder = results / ("paper-full" if full else "paper")
    scale = experiments.FULL if full else experiments.QUICK
    judged = []
    with user_errors(console):
        earlier = all_claims.stored(folder)
    with user_errors(console), run_and_report.workforce(None, jobs, scheduler, cluster, console) as workforce:
        try:
            for one in all_claims.judge(folder, scale, workforce, console, only or ()):
                console.print(f"claim {one.claim.number}, {one.claim.short}: {' / '.join(dict.fromkeys(one.verdicts))}")
                judged.append(one)
        except KeyboardInterrupt:
            console.print("stopped; the same command continues from here")
            raise typer.Exit(130) from None
        every = all_claims.merged(earlier, judged)
        all_claims.write(every, folder)
        page_of_claims = claims_page.write(every, folder)
    new_console().print(all_claims.table(judged))
    Console(soft_wrap=True).print(Text(f"report: {page_of_claims}"))


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=examples(
        ("lossbench once default 3f2a9c", "the key's beginning"),
        ("lossbench once mine.toml 3f2a9c --results elsewhere", ""),
    ),
)
def once(
    name: SuiteArgument,
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="Key of the run, or its first characters; the report lists all keys.",
            autocompletion=complete_key,
        ),
    ],
    results: ResultsOption = Path("results"),
) -> None:
    """Do one run of a suite again, print its scores, and compare them with the stored scores.

    Exit codes: 0, success; 1, the run failed, or its scores differ from the
    stored ones; 2, there is no such run, its stored result is damaged, or the
    code, the data or PyTorch has changed since it was stored.
    """
    from bench.execute import repeat_run
    from bench.suite import suite_file

    with user_errors(messages()):
        loaded = suite_file.load(run_and_report.file_of(name, results))
        planned = repeat_run.find(loaded, key, results / loaded.name)
        stored = repeat_run.stored(planned, results / loaded.name)
    console = Console(highlight=False, soft_wrap=True)
    spec = planned.spec
    console.print(Text(f"{planned.balancer} on {planned.problem}, learning rate {spec.lr:g}, seed {spec.seed}"))
    result = repeat_run.run(planned)
    if result.status == "failed":
        console.print(Text(result.reason))
        raise typer.Exit(1)
    for score in result.scores:
        values = ", ".join(f"{metric} {value:.6g}" for metric, value in score.metrics.items())
        console.print(Text(f"{score.checkpoint} checkpoint, {score.split}: {values}"))
    if stored is None:
        console.print("no scores are stored for this run")
    elif repeat_run.agree(stored, result):
        console.print("the scores equal the stored ones")
    else:
        console.print("the scores differ from the stored ones")
        raise typer.Exit(1)


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=examples(
        ("lossbench report", "the suite default"),
        ("lossbench report mine", "results/mine"),
        ("lossbench report elsewhere/mine", "a results folder"),
    ),
)
def report(
    name: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="Name of a suite, path of its .toml file, or a results folder.",
            autocompletion=complete_suite,
        ),
    ] = "default",
    results: ResultsOption = Path("results"),
) -> None:
    """Print the leaderboard of a suite that has finished, and write its report again.

    Nothing is run.

    Exit codes: 0, success; 2, there are no results.
    """
    from bench.cost import micro

    with user_errors(messages()):
        folder = Path(name) if (Path(name) / "tables").is_dir() else results / results_name(name)
        if not (folder / "tables").is_dir():
            finished = [path.parent.name for path in results.glob("*/tables")]
            hint = closest(folder.name, finished) if finished else ""
            raise SuiteError(f"there are no tables in {folder}; first let `lossbench run {name}` finish{hint}")
        micro.add_table(folder)
        run_and_report.report(folder)


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=examples(("lossbench compare results/reference/default results/default", "")),
)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A results folder, such as results/reference/default.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another results folder, such as results/default.")],
) -> None:
    """Compare results folder B with results folder A, and print which scores changed beyond noise.

    A score that A has and B lacks, because all runs failed, counts as worse.
    Methods and problems that only one folder has are named, and not compared.

    Exit codes: 0, no score in B is worse beyond noise; 1, at least one is; 2,
    the folders cannot be compared.
    """
    from bench.report import folder_comparison

    with user_errors(messages()):
        differences = folder_comparison.differences(first, second)
    console = new_console()
    for note in differences.notes:
        console.print(Text(note))
    if not all(cell.identical for cell in differences.cells):
        console.print(folder_comparison.table(differences))
    console.print(folder_comparison.summary(differences))
    if differences.worse:
        raise typer.Exit(1)
