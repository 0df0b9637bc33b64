"""The command ``lossbench``: run a suite, show its report, list what there is, measure one's own model."""

import tomllib
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
from .cost import cost_terminal as cost_tables
from .cost import devices, micro, own_model
from .cost.devices import DeviceName
from .cost.subject import SubjectError
from .execute import forecast, run_suite
from .execute import rerun as once_more
from .execute.run_suite import BusyError, Summary
from .execute.workers import WorkerError
from .paper import all_claims
from .paper import claims_page as paper_page
from .paper.all_claims import CLAIMS, judge
from .paper.experiments import FULL, QUICK
from .report import answer, leaderboard_terminal, report_page, results_folder
from .report import folder_comparison as comparing
from .run.atomic_file import BadFileError
from .style.console import new_console
from .style.numbers import counted
from .suite import suite_file, try_suite, tune_suite
from .suite.suite_file import Suite
from .suite.toml_table import SuiteError

MOST_FAILURES = 20
"""So many ways in which runs failed are told of one by one."""

SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name, or the path of its .toml file.")]
ResultsOption = Annotated[Path, typer.Option(help="The folder in which each suite has a folder of results.")]

app = typer.Typer(
    help="Compares multi-task loss balancers: runs suites, and reports accuracy, weights and the cost of a step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Listing(StrEnum):
    """What can be listed."""

    BALANCERS = "balancers"
    PROBLEMS = "problems"
    SUITES = "suites"


def main() -> None:
    """Runs the command line."""
    app()


@app.command()
def run(
    name: SuiteArgument,
    results: ResultsOption = Path("results"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one a core, on CUDA one.", show_default=False)
    ] = None,
) -> None:
    """Run a suite, then show its leaderboard and write its report.

    What a run gives is kept as soon as it has ended. Stop the command whenever you like, by Ctrl-C or by force: the
    same command goes on where it was. After a change in the suite or in a method, it does only what that touches.

    Exit codes: 0, all is well; 1, some runs failed; 2, the suite can't be run.
    """
    console = _messages()
    with _told(console):
        loaded = suite_file.load(suite_file.find(name))
    _run(loaded, results / loaded.name, jobs, console)


@app.command("try")
def try_out(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="What registers your problem, and your methods too.")],
    minutes: Annotated[float, typer.Option(min=0, help="Make the comparison as large as fits this time.")] = 15,
    results: ResultsOption = Path("results"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one a core.", show_default=False)
    ] = None,
) -> None:
    """Find out which method your own problem should use, and at what cost a step.

    Compares the eight core methods and random weights on every problem in FILE, each at a learning rate that validation
    chose for it from values around your recipe's, on fresh seeds. The suite that it makes for that is kept, to go on
    from; a stopped command goes on where it was.

    Exit codes: 0, all is well; 1, some runs failed; 2, there is nothing that can be run.
    """
    console = _messages()
    workers = jobs or joblib.cpu_count()
    with _told(console):
        loaded, said = try_suite.make(file, results / file.stem, minutes, forecast.Forecast(workers))
        for one in said:
            console.print(Text(one))
    _run(loaded, results / loaded.name, workers, console)


@app.command("tune")
def tune_all(
    name: SuiteArgument,
    trials: Annotated[int, typer.Option(min=4, help="Trials of each method on each problem.")] = 16,
    problem: Annotated[
        list[str] | None, typer.Option(help="A problem of the suite, by label or name.", show_default="all")
    ] = None,
    balancer: Annotated[
        list[str] | None, typer.Option(help="A balancer of the suite, or another's name.", show_default="all")
    ] = None,
    results: ResultsOption = Path("results"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one a core, on CUDA one.", show_default=False)
    ] = None,
) -> None:
    """Run a suite with every method tuned on the same number of trials, and say which lie beyond static weights.

    Trials are of learning rate, of the ranges that a method declares for its options and of static weights; they are
    chosen by validation, and compared on the test split of fresh seeds. The front of the static weights is run on these
    seeds too. Results are kept in a folder called SUITE-tuned, with the suite that was made.

    Exit codes: 0, all is well; 1, some runs failed; 2, the suite can't be run.
    """
    console = _messages()
    with _told(console):
        loaded, folder = tune_suite.make(suite_file.find(name), results, trials, problem or (), balancer or ())
    _run(loaded, folder, jobs, console)


@app.command("paper")
def paper_claims(
    full: Annotated[bool, typer.Option("--full", help="Three times as many seeds; takes hours.")] = False,
    only: Annotated[
        list[int] | None, typer.Option(min=1, max=len(CLAIMS), help="The number of a claim.", show_default="all")
    ] = None,
    results: ResultsOption = Path("results"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one a core.", show_default=False)
    ] = None,
) -> None:
    """Test what the GradNorm paper claims, each claim by an experiment with a verdict.

    Each is tested with one learning rate for all methods, as in the paper, and with each method's own, chosen on
    validation. A stopped command goes on where it was. Nothing else should be running when steps are timed, at the end.

    Exit codes: 0, all claims are judged, whatever the verdicts; 1, the workers can't go on; 2, they can't be tested.
    """
    console = _messages()
    folder = results / ("paper-full" if full else "paper")
    judged = []
    with _told(console):
        try:
            for one in judge(folder, FULL if full else QUICK, jobs or joblib.cpu_count(), console, only or ()):
                console.print(f"claim {one.claim.number}, {one.claim.short}: {' / '.join(dict.fromkeys(one.verdicts))}")
                judged.append(one)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
        all_claims.write(judged, folder)
        page_of_claims = paper_page.write(judged, folder)
    new_console().print(all_claims.table(judged))
    Console(soft_wrap=True).print(Text(f"report: {page_of_claims}"))


@app.command()
def once(
    name: SuiteArgument,
    key: Annotated[str, typer.Argument(help="The run's key, or how it begins; the report has them all.")],
    results: ResultsOption = Path("results"),
) -> None:
    """Do one run of a suite again, and tell its scores, and whether they are those that were stored.

    Exit codes: 0, all is well; 1, the run failed, or scored otherwise than what is stored; 2, there is no such run.
    """
    with _told(_messages()):
        loaded = suite_file.load(suite_file.find(name, results))
        planned = once_more.find(loaded, key)
    console = Console(highlight=False, soft_wrap=True)
    spec = planned.spec
    console.print(Text(f"{planned.balancer} on {planned.problem}, learning rate {spec.lr:g}, seed {spec.seed}"))
    result = once_more.run(planned)
    if result.status == "failed":
        console.print(Text(result.reason))
        raise typer.Exit(1)
    for score in result.scores:
        values = ", ".join(f"{metric} {value:.6g}" for metric, value in score.metrics.items())
        console.print(Text(f"{score.checkpoint} checkpoint, {score.split}: {values}"))
    agrees = once_more.agrees(planned, result, results / loaded.name)
    console.print({True: "as stored", False: "not as stored", None: "nothing is stored to compare it with"}[agrees])
    if agrees is False:
        raise typer.Exit(1)


@app.command()
def report(
    name: SuiteArgument = "default",
    results: ResultsOption = Path("results"),
) -> None:
    """Show the leaderboard of a suite that was run, and write its report again."""
    with _told(_messages()):
        folder = results / Path(name).stem
        if not (folder / "tables").is_dir():
            raise SuiteError(f"there are no tables in {folder}; run `lossbench run {name}` first, and to its end")
        micro.add_table(folder)
        _show(folder)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A results folder, such as results/reference/core.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, such as results/core.")],
) -> None:
    """Tell what changed beyond noise from results folder A to results folder B.

    Exit codes: 0, nothing is worse beyond noise; 1, something is; 2, they can't be compared.
    """
    with _told(_messages()):
        found = comparing.differences(first, second)
    console = new_console()
    for note in found.notes:
        console.print(Text(note))
    if not all(cell.identical for cell in found.cells):
        console.print(comparing.table(found))
    console.print(comparing.summary(found))
    if found.worse:
        raise typer.Exit(1)


@app.command("list")
def list_all(
    kind: Annotated[Listing | None, typer.Argument(help="One kind alone.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Balancers as README has them.")] = False,
) -> None:
    """List the balancers, problems and suites there are; one kind alone with all that is known of it.

    Of problems that is tasks, metrics, sizes and how long a run takes here, for which a few steps of each are made.
    """
    if markdown:
        typer.echo(method_list.markdown(method_list.entries()))
        return
    if kind is Listing.BALANCERS:
        new_console().print(method_list.table(method_list.entries()))
        return
    if kind is Listing.PROBLEMS:
        console = _messages()
        with console.status("a few steps of each, for the time that a run takes"):
            shown_table = problem_list.table(problem_list.entries())
        new_console().print(shown_table)
        return
    lines = {
        Listing.BALANCERS: [(name, balancers.get(name).summary) for name in balancers.names()],
        Listing.PROBLEMS: [(name, tasks.get(name).summary) for name in tasks.names()],
        Listing.SUITES: [(name, _description(name)) for name in suite_file.names()],
    }
    console = Console(highlight=False)
    for each in Listing if kind is None else (kind,):
        table = Table(title=each, title_justify="left", box=None, show_header=False)
        for name, description in lines[each]:
            table.add_row(Text(name, style="bold"), Text(description))
        console.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="PROBLEM", help="A problem's name; `lossbench list problems`.")],
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the problem as in a suite, such as 'sigmas=\"T=10\"'.", show_default=False),
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Train its model first, and draw what it predicts.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The picture's file; by default results/show/PROBLEM.png.", show_default=False),
    ] = None,
) -> None:
    """Draw a problem's data and, with --train, what a model makes of them: equal weighting, the default recipe.

    Of an illustration it draws the paths that methods take.

    Exit codes: 0, all is well; 2, there is nothing to draw.
    """
    with _told(_messages()):
        picture = show_problem.draw(name, option or [], train)
        path = out or Path("results") / "show" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.png)
    Console(highlight=False).print(Text(picture.caption))
    Console(soft_wrap=True).print(Text(f"picture: {path}"))


@app.command()
def cost(
    target: Annotated[str, typer.Argument(metavar="FILE.py:FUNCTION", help="What makes your model; see above.")],
    device: Annotated[DeviceName, typer.Option(help="Torch's default while it is called.")] = DeviceName.CPU,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for figure and tables; by default results/cost/FILE.", show_default=False),
    ] = None,
) -> None:
    """Measure in a minute what balancing would cost on your own model, and how its tasks' gradients compare.

    FUNCTION takes no arguments and returns (model, losses) or (model, losses, wrt): a model with a balancers.Fork, a
    function that computes a batch's losses from it (a list, a {task: loss} dict or a tensor), and the last shared
    layer. It is called once a method; each method trains its own copy. Nothing else should be running.

    Exit codes: 0, all is well; 2, the model can't be measured.
    """
    console = _messages()
    with _told(console):
        found = own_model.measure(own_model.load(target), devices.find(device), console.print)
        folder = out or Path("results") / "cost" / Path(target.rpartition(":")[0]).stem
        picture = own_model.write(found, folder)
    cost_tables.print_own(found)
    Console(soft_wrap=True).print(Text(f"figure: {picture}"))


def _description(name: str) -> str:
    description: str = tomllib.loads(suite_file.find(name).read_text(encoding="utf-8")).get("description", "")
    return description


def _messages() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _run(loaded: Suite, folder: Path, jobs: int | None, console: Console) -> None:
    """Does a suite and shows what came of it."""
    with _told(console):
        default = joblib.cpu_count() if loaded.device == "cpu" else 1
        try:
            summary = run_suite.run(loaded, folder, jobs or default, console)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
        _show(folder)
    _tell(summary, folder, console)
    if summary.failed:
        raise typer.Exit(1)


def _show(folder: Path) -> None:
    leaderboard_terminal.print_leaderboard(folder)
    report_page.write(folder)
    for sentence in answer.answer(results_folder.load(folder)):
        Console(highlight=False, soft_wrap=True).print(Text(sentence))
    Console(soft_wrap=True).print(Text(f"report: {folder / 'report.html'}"))


def _tell(summary: Summary, folder: Path, console: Console) -> None:
    console.print(f"{summary.computed} runs computed, {summary.reused} found from before, {len(summary.failed)} failed")
    ways = Counter((one.planned.balancer, one.planned.problem, one.result.reason) for one in summary.failed)
    for (balancer, problem, reason), count in list(ways.items())[:MOST_FAILURES]:
        console.print(Text(f"  {balancer} on {problem}, {counted(count, 'run')}: {reason}"))
    if len(ways) > MOST_FAILURES:
        console.print(f"  and otherwise {sum(list(ways.values())[MOST_FAILURES:])} more")
    if summary.failed:
        console.print(Text(f"Failed runs are kept too, with their keys in {folder / 'tables' / 'runs.csv'}."))
        console.print(Text(f"To have one done again, remove {folder / 'runs' / 'KEY.parquet'}."))


@contextmanager
def _told(console: Console) -> Iterator[None]:
    """What is the caller's to put right is told in a sentence instead of a traceback."""
    try:
        yield
    except (SuiteError, SubjectError, NothingToDrawError, BusyError, BadFileError, OSError) as error:
        console.print(Text(f"error: {error}"))
        raise typer.Exit(2) from None
    except WorkerError as error:
        console.print(Text(f"error: {error}"))
        raise typer.Exit(1) from None
