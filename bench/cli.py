"""Define the command ``lossbench``: run suites, report them, list methods and problems, measure a user's own model."""

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import joblib
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import balancers
import tasks

from .catalogue import method_list, problem_list, show_problem
from .catalogue.show_problem import NothingToDrawError
from .cost import cost_terminal, devices, micro, own_model
from .cost.devices import DeviceName
from .cost.subject import SubjectError
from .diagnose import diagnose_terminal, gradient_profile
from .diagnose.gradient_profile import ProfileError
from .execute import forecast, repeat_run, run_suite
from .execute.run_suite import BusyError, NotDoneError, Summary
from .execute.task import EngineError
from .execute.workforce import Workforce, visible_gpus
from .paper import all_claims, claims_page
from .paper.all_claims import CLAIMS, judge
from .paper.experiments import FULL, QUICK
from .report import answer, folder_comparison, leaderboard_terminal, report_page, results_folder
from .run import plugins
from .run.atomic_file import BadFileError
from .run.plugins import PluginError
from .style.console import new_console
from .style.numbers import counted
from .suite import suite_file, try_suite, tune_suite
from .suite.suite_file import Suite
from .suite.toml_table import SuiteError

USER_ERRORS = (
    *(SuiteError, SubjectError, PluginError, NothingToDrawError, ProfileError, BusyError, BadFileError),
    OSError,
)
"""Errors whose message tells a user what to change."""
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
"""The numbers of errors of a file or folder that may not be written."""
MOST_FAILURES = 20
"""Maximum number of distinct failures to print."""

SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="Name of a suite, or path of its .toml file.")]
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

# Typer keeps the line breaks of a command's docstring, so these lines are short enough for narrow terminals.
app = typer.Typer(
    help="Compare multi-task loss balancers: run suites, and report accuracy, weights and the cost of a training step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Listing(StrEnum):
    """The kinds of things that can be listed."""

    BALANCERS = "balancers"
    PROBLEMS = "problems"
    SUITES = "suites"


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def run(
    name: SuiteArgument,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Run a suite, print its leaderboard and write its report.

    Each result is stored as soon as its run has ended. You can stop the command
    at any time, with Ctrl-C or by force; the same command then continues where
    it stopped. After a change to the suite or to a method, only the runs that
    the change affects are done again.

    Exit codes: 0, success; 1, some runs failed; 2, the suite cannot be run.
    """
    console = _messages()
    with _user_errors(console):
        loaded = suite_file.load(suite_file.find(name))
    with _workforce(loaded, jobs, scheduler, cluster, console) as workforce:
        _run(loaded, results / loaded.name, workforce, console)


@app.command("try")
def try_out(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.py", help="Python file that registers your problem; it may register methods too."),
    ],
    minutes: Annotated[
        float, typer.Option(min=0, help="Time limit; the comparison is made as large as fits into it.")
    ] = 15,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Find out which method to use for your own problem, and what it costs per step.

    Compares the eight core methods and random weights on every problem in FILE.
    Validation chooses a learning rate for each method, from values around the
    one in your recipe; the comparison then runs on other seeds. The suite made
    for this is stored with the results, so that you can extend it. A stopped
    command continues where it stopped.

    Exit codes: 0, success; 1, some runs failed; 2, nothing can be run, or every
    method fails in its first steps.
    """
    console = _messages()
    with _workforce(None, jobs, scheduler, cluster, console) as workforce:
        with _user_errors(console):
            loaded, notes = try_suite.make(file, results / file.stem, minutes, forecast.Forecast(workforce))
            for note in notes:
                console.print(Text(note))
        _run(loaded, results / loaded.name, workforce, console)


@app.command("tune")
def tune_all(
    name: SuiteArgument,
    trials: Annotated[int, typer.Option(min=4, help="Number of trials of each method on each problem.")] = 16,
    problem: Annotated[
        list[str] | None,
        typer.Option(help="Label or name of a problem of the suite; can be repeated.", show_default="all"),
    ] = None,
    balancer: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a balancer of the suite, or name of any other balancer; can be repeated.", show_default="all"
        ),
    ] = None,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Run a suite with every method tuned on the same number of trials, and show which lie beyond static weights.

    A trial is a learning rate together with options from the ranges that the
    method declares, or with static weights. Validation chooses the best trial
    of each method; the chosen trials are compared on the test split, on other
    seeds. The front of static weights is run on these seeds too: those trials
    of static weights that no other trial of static weights equals or beats in
    every task. A method lies beyond static weights if no point of the front is
    as good as it in every task. Results are stored in a folder called
    SUITE-tuned, together with the suite that was made.

    Exit codes: 0, success; 1, some runs failed; 2, the suite cannot be run.
    """
    console = _messages()
    with _user_errors(console):
        loaded, folder = tune_suite.make(suite_file.find(name), results, trials, problem or (), balancer or ())
    with _workforce(loaded, jobs, scheduler, cluster, console) as workforce:
        _run(loaded, folder, workforce, console)


@app.command("paper")
def paper_claims(
    full: Annotated[bool, typer.Option("--full", help="Use three times as many seeds; takes hours.")] = False,
    only: Annotated[
        list[int] | None,
        typer.Option(min=1, max=len(CLAIMS), help="Number of a claim; can be repeated.", show_default="all"),
    ] = None,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Test the claims of the GradNorm paper: one experiment and one verdict for each claim.

    Each claim is tested in two settings: with one learning rate for all
    methods, as in the paper, and with a learning rate that validation chooses
    for each method. A stopped command continues where it stopped. Steps are
    timed at the end; nothing else should be running then.

    Exit codes: 0, all claims were judged, whatever the verdicts; 1, the worker
    processes failed; 2, the claims cannot be tested.
    """
    console = _messages()
    folder = results / ("paper-full" if full else "paper")
    judged = []
    with _user_errors(console), _workforce(None, jobs, scheduler, cluster, console) as workforce:
        try:
            for one in judge(folder, FULL if full else QUICK, workforce, console, only or ()):
                console.print(f"claim {one.claim.number}, {one.claim.short}: {' / '.join(dict.fromkeys(one.verdicts))}")
                judged.append(one)
        except KeyboardInterrupt:
            console.print("stopped; the same command continues from here")
            raise typer.Exit(130) from None
        all_claims.write(judged, folder)
        page_of_claims = claims_page.write(judged, folder)
    new_console().print(all_claims.table(judged))
    Console(soft_wrap=True).print(Text(f"report: {page_of_claims}"))


@app.command()
def once(
    name: SuiteArgument,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Key of the run, or its first characters; the report lists all keys.")
    ],
    results: ResultsOption = Path("results"),
) -> None:
    """Do one run of a suite again, print its scores, and compare them with the stored scores.

    Exit codes: 0, success; 1, the run failed, or its scores differ from the
    stored ones; 2, there is no such run.
    """
    with _user_errors(_messages()):
        loaded = suite_file.load(suite_file.find(name, results))
        planned = repeat_run.find(loaded, key)
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
    agrees = repeat_run.agrees(planned, result, results / loaded.name)
    comparisons = {
        True: "the scores equal the stored ones",
        False: "the scores differ from the stored ones",
        None: "no scores are stored for this run",
    }
    console.print(comparisons[agrees])
    if agrees is False:
        raise typer.Exit(1)


@app.command()
def report(
    name: SuiteArgument = "default",
    results: ResultsOption = Path("results"),
) -> None:
    """Print the leaderboard of a suite that has finished, and write its report again."""
    with _user_errors(_messages()):
        folder = results / Path(name).stem
        if not (folder / "tables").is_dir():
            raise SuiteError(f"there are no tables in {folder}; first let `lossbench run {name}` finish")
        micro.add_table(folder)
        _report(folder)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A results folder, such as results/reference/core.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another results folder, such as results/core.")],
) -> None:
    """Compare results folder B with results folder A, and print which scores changed beyond noise.

    Exit codes: 0, no score in B is worse beyond noise; 1, at least one is; 2,
    the folders cannot be compared.
    """
    with _user_errors(_messages()):
        differences = folder_comparison.differences(first, second)
    console = new_console()
    for note in differences.notes:
        console.print(Text(note))
    if not all(cell.identical for cell in differences.cells):
        console.print(folder_comparison.table(differences))
    console.print(folder_comparison.summary(differences))
    if differences.worse:
        raise typer.Exit(1)


@app.command("list")
def list_all(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND|FILE.py",
            help="List only this kind in detail (balancers, problems or suites), or what your file registers.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the balancers as a Markdown table.")] = False,
) -> None:
    """List all balancers, problems and suites, or one kind or your own file in detail.

    The details of problems are tasks, metrics, numbers of samples, and how long
    a run takes on this machine, which is estimated from a few training steps of
    each.
    """
    if markdown:
        typer.echo(method_list.markdown(method_list.entries()))
        return
    if what is not None and what.endswith(".py"):
        with _user_errors(_messages()):
            found = plugins.registered(Path(what))
            if not any(found):
                raise PluginError(f"{what} registers neither a problem nor a balancer")
        _print_details(found.balancers, found.problems)
        return
    if what is not None and what not in list(Listing):
        raise typer.BadParameter(f"{what!r} is neither a .py file nor one of {', '.join(Listing)}")
    kind = None if what is None else Listing(what)
    if kind is Listing.BALANCERS:
        _print_details(balancers.names(), [])
        return
    if kind is Listing.PROBLEMS:
        _print_details([], tasks.names())
        return
    lines = {
        Listing.BALANCERS: [(name, balancers.get(name).summary) for name in balancers.names()],
        Listing.PROBLEMS: [(name, problem_list.line(name)) for name in tasks.names()],
        Listing.SUITES: [(name, suite_file.description(suite_file.find(name))) for name in suite_file.names()],
    }
    console = Console(highlight=False)
    for each in Listing if kind is None else (kind,):
        table = Table(title=each, title_justify="left", box=None, show_header=False)
        for name, description in lines[each]:
            table.add_row(Text(name, style="bold"), Text(description))
        console.print(table)


def _print_details(methods: list[str], problems: list[str]) -> None:
    """Print the tables of these methods and problems."""
    if methods:
        new_console().print(method_list.table(method_list.entries(methods)))
    if problems:
        with _messages().status("timing a few steps of each problem"):
            listed = problem_list.table(problem_list.entries(problems))
        new_console().print(listed)


@app.command()
def show(
    problem: Annotated[
        str,
        typer.Argument(
            metavar="PROBLEM|FILE.py",
            help="Name of a problem, see `lossbench list problems`; or your file, for the problems that it registers.",
        ),
    ],
    option: ProblemOptions = None,
    train: Annotated[bool, typer.Option("--train", help="Train the model first, and draw what it predicts.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File of the picture; default: results/show/PROBLEM.png.", show_default=False),
    ] = None,
) -> None:
    """Draw a problem's data and, with --train, what its model predicts after training with equal weighting.

    Training uses the problem's default recipe. For the illustration
    conflict-2d, --train draws the paths that several methods take.

    Exit codes: 0, success; 2, there is nothing to draw.
    """
    with _user_errors(_messages(), writes_to="--out"):
        names = show_problem.named(problem)
        if out is not None and len(names) > 1:
            raise NothingToDrawError(f"{problem} registers {', '.join(names)}, whose pictures can't all be in {out}")
        for name in names:
            picture = show_problem.draw(name, option or [], train)
            path = out or Path("results") / "show" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.png)
            Console(highlight=False).print(Text(picture.caption))
            Console(soft_wrap=True).print(Text(f"picture: {path}"))


@app.command()
def diagnose(
    problem: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py|PROBLEM",
            help="Python file that registers your problem; or the name of a problem, see `lossbench list problems`.",
        ),
    ],
    option: ProblemOptions = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, initial values and batches.")] = gradient_profile.SEED,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the profile and the advice.", show_default=False)
    ] = None,
) -> None:
    """Advise on a method for your own problem, from the beginning of its training at equal weights.

    Trains the first 5 % of your recipe's steps (at least 20, at most 200), and
    measures the losses, and the norms, cosines and noise of the tasks'
    gradients. Only training data are read. A rule that was fixed before the
    evidence was run then advises one of six candidates, with weights to paste
    where they are static. `lossbench try` compares methods on your problem.

    Exit codes: 0, success; 2, the problem cannot be trained.
    """
    console = _messages()
    with _user_errors(console, writes_to="--json"):
        names = show_problem.named(problem)
        if json is not None and len(names) > 1:
            raise ProfileError(f"{problem} registers {', '.join(names)}, whose advice can't all be in {json}")
        for name in names:
            found = diagnose_terminal.diagnose(name, show_problem.given_options(option or []), seed, console.print)
            if json is not None:
                diagnose_terminal.write(*found, json)


@app.command()
def cost(
    target: Annotated[
        str, typer.Argument(metavar="FILE.py:FUNCTION", help="Function that makes your model, described above.")
    ],
    device: Annotated[
        DeviceName, typer.Option(help="Device to measure on; PyTorch's default device while FUNCTION is called.")
    ] = DeviceName.CPU,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the figure and the tables; default: results/cost/FILE.", show_default=False),
    ] = None,
) -> None:
    """Measure within about a minute what balancing costs on your own model, and compare its tasks' gradients.

    FUNCTION takes no arguments and returns (model, losses) or (model, losses,
    wrt): a model that contains a balancers.Fork; a function that takes the
    model and returns the losses of a batch (a list, a {task: loss} dict or a
    tensor); and the last shared layer. It is called once per method, so that
    each method trains its own copy. Nothing else should be running.

    Exit codes: 0, success; 2, the model cannot be measured.
    """
    console = _messages()
    with _user_errors(console, writes_to="--out"):
        measured = own_model.measure(own_model.load(target), devices.find(device), console.print)
        folder = out or Path("results") / "cost" / Path(target.rpartition(":")[0]).stem
        picture = own_model.write(measured, folder)
    cost_terminal.print_own(measured)
    Console(soft_wrap=True).print(Text(f"figure: {picture}"))


def _messages() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def _workforce(
    loaded: Suite | None, jobs: int | None, scheduler: str | None, cluster: str | None, console: Console
) -> Iterator[Workforce]:
    """Yield whoever does runs: the workers of a cluster if one is named, otherwise processes of this machine."""

    def tell(sentence: str) -> None:
        console.print(Text(sentence))

    with _user_errors(console):
        if scheduler and cluster:
            raise SuiteError("--scheduler and --cluster exclude each other")
        if jobs and (scheduler or cluster):
            raise SuiteError(
                "--jobs is for this machine; on a cluster, the workers say how many at a time (--nthreads)"
            )
        if scheduler:
            made = Workforce.at(scheduler, tell)
        elif cluster:
            made = Workforce.made_by(cluster, tell)
        else:
            gpus = visible_gpus() if loaded is not None and loaded.device == "cuda" else []
            at_a_time = len(gpus) * loaded.runs_per_gpu if loaded is not None and gpus else joblib.cpu_count()
            made = Workforce.of(jobs or at_a_time, tell, gpus)
    with made:
        yield made


def _run(loaded: Suite, folder: Path, workforce: Workforce, console: Console) -> None:
    """Run a suite, report it, and exit with 1 if any run failed."""
    with _user_errors(console):
        try:
            summary = run_suite.run(loaded, folder, workforce, console)
        except KeyboardInterrupt:
            console.print("stopped; the same command continues from here")
            raise typer.Exit(130) from None
        _report(folder)
    _print_summary(summary, folder, console)
    if summary.failed:
        raise typer.Exit(1)


def _report(folder: Path) -> None:
    """Print the leaderboard and the short answer of a results folder, and write its page."""
    leaderboard_terminal.print_leaderboard(folder)
    report_page.write(folder)
    for sentence in answer.answer(results_folder.load(folder)):
        Console(highlight=False, soft_wrap=True).print(Text(sentence))
    Console(soft_wrap=True).print(Text(f"report: {folder / 'report.html'}"))


def _print_summary(summary: Summary, folder: Path, console: Console) -> None:
    """Print how many runs were done, how many were already stored, and which failed for what reason."""
    console.print(f"{summary.computed} runs computed, {summary.reused} already stored, {len(summary.failed)} failed")
    failures = Counter((run.planned.balancer, run.planned.problem, run.result.reason) for run in summary.failed)
    for (balancer, problem, reason), count in list(failures.items())[:MOST_FAILURES]:
        console.print(Text(f"  {balancer} on {problem}, {counted(count, 'run')}: {reason}"))
    if len(failures) > MOST_FAILURES:
        console.print(f"  and {sum(list(failures.values())[MOST_FAILURES:])} more, for other reasons")
    if summary.failed:
        console.print(Text(f"Failed runs are stored too; {folder / 'tables' / 'runs.csv'} lists their keys."))
        console.print(Text(f"To do a run again, remove {folder / 'runs' / 'KEY.parquet'} and repeat this command."))


@contextmanager
def _user_errors(console: Console, writes_to: str = "--results") -> Iterator[None]:
    """Print user errors as one line and exit with 2; if no run can be done, or some are given up, exit with 1.

    Args:
        console: where the line is printed.
        writes_to: the option that names where the command writes, for a user who may not write there.
    """
    try:
        yield
    except USER_ERRORS as error:
        may_not = isinstance(error, OSError) and error.errno in NO_PERMISSION
        remedy = f"; if nothing can be written there, {writes_to} names another place" if may_not else ""
        console.print(Text(f"error: {error}{remedy}"))
        raise typer.Exit(2) from None
    except EngineError as error:
        console.print(Text(f"error: {error}. What is finished is kept; the same command continues from there."))
        raise typer.Exit(1) from None
    except NotDoneError as error:
        reasons = Counter((run.balancer, run.problem, why) for run, why in error.runs)
        for (balancer, problem, why), count in list(reasons.items())[:MOST_FAILURES]:
            console.print(Text(f"not done: {balancer} on {problem}, {counted(count, 'run')}: {why}"))
        console.print(
            f"error: {error}. Everything else is kept, and the same command tries them again. To count runs that take "
            "too long as failed, state [limits] seconds in the suite."
        )
        raise typer.Exit(1) from None
