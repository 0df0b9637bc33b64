"""Define the command ``lossbench``: run suites, report them, list methods and problems, measure a user's own model.

Each command imports what it needs when it runs. ``--help``, ``--version`` and the shell's completion therefore answer
at once: they import neither PyTorch nor pandas, which take seconds.
"""

import errno
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from .catalogue import shell_completion
from .style.console import new_console
from .suite.toml_table import SuiteError, closest

if TYPE_CHECKING:
    from .execute.run_suite import Summary
    from .execute.workforce import Workforce
    from .suite.suite_entries import Suite

NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
"""The numbers of errors of a file or folder that may not be written."""
MOST_FAILURES = 20
"""Maximum number of distinct failures to print."""
NUM_CLAIMS = 6
"""Number of the GradNorm paper's claims: that of `all_claims.CLAIMS`."""
PROFILE_SEED = 1
"""Default seed of ``lossbench diagnose``: `gradient_profile.SEED`."""

ON_SUITES, ON_YOURS, ON_LISTS = "Run suites and look at their results", "Your own problem or model", "Look things up"
"""Headings of the commands in ``lossbench --help``."""


class MeasuredOn(StrEnum):
    """Devices of ``lossbench cost``: those of `devices.DeviceName`."""

    CPU = "cpu"
    CUDA = "cuda"


class Listing(StrEnum):
    """The kinds of things that can be listed."""

    BALANCERS = "balancers"
    PROBLEMS = "problems"
    SUITES = "suites"


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

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that ``args`` begins with, or say which commands there are."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"no command is called {args[0]!r}{closest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def _examples(*lines: tuple[str, str]) -> str:
    """Return the end of a command's help: its examples, each a command and what it is for."""
    width = max(len(command) for command, _ in lines)
    written = (f"$ {command:{width}}   # {remark}" if remark else f"$ {command}" for command, remark in lines)
    return "[bold]Examples[/bold]\n\n" + "\n".join(written)


def _complete_suite(typed: str) -> list[str]:
    return shell_completion.suites(typed)


def _complete_problem(typed: str) -> list[str]:
    return shell_completion.problems(typed)


def _complete_kind(typed: str) -> list[str]:
    return [kind for kind in Listing if kind.startswith(typed)]


def _complete_problem_of_suite(ctx: typer.Context, typed: str) -> list[str]:
    return shell_completion.of_suite(typed, _first_argument(ctx), "problems")


def _complete_balancer(ctx: typer.Context, typed: str) -> list[str]:
    of_suite = shell_completion.of_suite(typed, _first_argument(ctx), "balancers")
    return list(dict.fromkeys([*of_suite, *shell_completion.balancers(typed)]))


def _first_argument(ctx: typer.Context) -> str | None:
    """Return the suite in front of the option that is completed; its parser gives up at an option without value."""
    return next(iter(ctx.args), None)


def _complete_key(ctx: typer.Context, typed: str) -> list[str]:
    results = Path(ctx.params.get("results") or "results")
    return shell_completion.keys(typed, results / Path(ctx.params.get("name") or "").stem)


SuiteArgument = Annotated[
    str,
    typer.Argument(metavar="SUITE", help="Name of a suite, or path of its .toml file.", autocompletion=_complete_suite),
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

# Typer keeps the line breaks of a command's docstring, so these lines are short enough for narrow terminals.
app = typer.Typer(
    cls=CommandLine,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples(
        ("lossbench list", "what there is, a line each"),
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


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=_examples(
        ("lossbench run smoke", "a test, in a minute"),
        ("lossbench run default", "a quarter of an hour"),
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

    Exit codes: 0, success; 1, some runs failed; 2, the suite cannot be run.
    """
    from .suite import suite_file

    console = _messages()
    with _user_errors(console):
        loaded = suite_file.load(_suite_file(name))
    with _workforce(loaded, jobs, scheduler, cluster, console) as workforce:
        _run(loaded, results / loaded.name, workforce, console)


@app.command(
    "try",
    rich_help_panel=ON_YOURS,
    epilog=_examples(
        ("lossbench try my_problem.py", "about a quarter of an hour"),
        ("lossbench try my_problem.py --minutes 60", "a larger comparison"),
        ("lossbench report my_problem", "the answer and the report again"),
    ),
)
def try_out(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.py", help="Python file that registers your problem; it may register methods too."),
    ],
    minutes: Annotated[
        float, typer.Option(min=0, help="Time to aim at; the comparison is as large as its forecast allows.")
    ] = 15,
    results: ResultsOption = Path("results"),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Find out which method to use for your own problem, and what it costs per step.

    The command compares the eight core methods and random weights on every
    problem in FILE. For each method, validation chooses a learning rate from
    values around the one in your recipe. The comparison then runs on other
    seeds. The suite that was made is stored with the results; you can extend
    it. The time is a forecast: on a busy computer, or if the grid of learning
    rates grows at both edges, it takes longer. Give the same command again to
    go on after a stop.

    Exit codes: 0, success; 1, some runs failed; 2, nothing can be run, or every
    method fails in its first steps.
    """
    from .execute import forecast
    from .suite import try_suite

    console = _messages()
    with _workforce(None, jobs, scheduler, cluster, console) as workforce:
        with _user_errors(console):
            loaded, notes = try_suite.make(file, results / file.stem, minutes, forecast.Forecast(workforce))
            for note in notes:
                console.print(Text(note))
        _run(loaded, results / loaded.name, workforce, console)


@app.command(
    "tune",
    rich_help_panel=ON_SUITES,
    epilog=_examples(
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
            autocompletion=_complete_problem_of_suite,
        ),
    ] = None,
    balancer: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a balancer of the suite, or name of any other balancer; can be repeated.",
            show_default="all",
            autocompletion=_complete_balancer,
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
    that was made.

    Exit codes: 0, success; 1, some runs failed; 2, the suite cannot be run.
    """
    from .suite import tune_suite

    console = _messages()
    with _user_errors(console):
        loaded, folder = tune_suite.make(_suite_file(name), results, trials, problem or (), balancer or ())
    with _workforce(loaded, jobs, scheduler, cluster, console) as workforce:
        _run(loaded, folder, workforce, console)


@app.command(
    "paper",
    rich_help_panel=ON_SUITES,
    epilog=_examples(
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
    are timed at the end; let nothing else run then.

    Exit codes: 0, all claims were judged, whatever the verdicts; 1, the worker
    processes failed; 2, the claims cannot be tested.
    """
    from .paper import all_claims, claims_page, experiments

    console = _messages()
    folder = results / ("paper-full" if full else "paper")
    scale = experiments.FULL if full else experiments.QUICK
    judged = []
    with _user_errors(console), _workforce(None, jobs, scheduler, cluster, console) as workforce:
        try:
            for one in all_claims.judge(folder, scale, workforce, console, only or ()):
                console.print(f"claim {one.claim.number}, {one.claim.short}: {' / '.join(dict.fromkeys(one.verdicts))}")
                judged.append(one)
        except KeyboardInterrupt:
            console.print("stopped; the same command continues from here")
            raise typer.Exit(130) from None
        all_claims.write(judged, folder)
        page_of_claims = claims_page.write(judged, folder)
    new_console().print(all_claims.table(judged))
    Console(soft_wrap=True).print(Text(f"report: {page_of_claims}"))


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=_examples(
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
            autocompletion=_complete_key,
        ),
    ],
    results: ResultsOption = Path("results"),
) -> None:
    """Do one run of a suite again, print its scores, and compare them with the stored scores.

    Exit codes: 0, success; 1, the run failed, or its scores differ from the
    stored ones; 2, there is no such run.
    """
    from .execute import repeat_run
    from .suite import suite_file

    with _user_errors(_messages()):
        loaded = suite_file.load(_suite_file(name, results))
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


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=_examples(
        ("lossbench report", "the suite default"),
        ("lossbench report mine", "results/mine"),
        ("lossbench report mine --results elsewhere", ""),
    ),
)
def report(
    name: SuiteArgument = "default",
    results: ResultsOption = Path("results"),
) -> None:
    """Print the leaderboard of a suite that has finished, and write its report again.

    Nothing is run.

    Exit codes: 0, success; 2, there are no results.
    """
    from .cost import micro

    with _user_errors(_messages()):
        folder = results / Path(name).stem
        if not (folder / "tables").is_dir():
            finished = [path.parent.name for path in results.glob("*/tables")]
            hint = closest(folder.name, finished) if finished else ""
            raise SuiteError(f"there are no tables in {folder}; first let `lossbench run {name}` finish{hint}")
        micro.add_table(folder)
        _report(folder)


@app.command(
    rich_help_panel=ON_SUITES,
    epilog=_examples(("lossbench compare results/reference/core results/core", "what has changed?")),
)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A results folder, such as results/reference/core.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another results folder, such as results/core.")],
) -> None:
    """Compare results folder B with results folder A, and print which scores changed beyond noise.

    Exit codes: 0, no score in B is worse beyond noise; 1, at least one is; 2,
    the folders cannot be compared.
    """
    from .report import folder_comparison

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


@app.command(
    "list",
    rich_help_panel=ON_LISTS,
    epilog=_examples(
        ("lossbench list", "everything, a line each"),
        ("lossbench list balancers", "what each reads, and when to use it"),
        ("lossbench list my_problem.py", "what your file registers"),
    ),
)
def list_all(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND|FILE.py",
            help="List only this kind in detail (balancers, problems or suites), or what your file registers.",
            show_default=False,
            autocompletion=_complete_kind,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the balancers as a Markdown table.")] = False,
) -> None:
    """List all balancers, problems and suites, or one kind or your own file in detail.

    The details of a problem are its tasks, its metrics and its steps. Of the
    problems in your file, they are also the numbers of samples, and the time of
    a run on this machine, estimated from a few training steps.

    Exit codes: 0, success; 2, there is no such kind or file.
    """
    import balancers
    import tasks

    from .catalogue import method_list, problem_list
    from .run import plugins
    from .suite import suite_file

    if markdown:
        typer.echo(method_list.markdown(method_list.entries()))
        return
    if what is not None and what.endswith(".py"):
        with _user_errors(_messages()):
            found = plugins.registered(Path(what))
            if not any(found):
                raise plugins.PluginError(f"{what} registers neither a problem nor a balancer")
        _print_details(found.balancers, found.problems)
        return
    if what is not None and what not in list(Listing):
        raise typer.BadParameter(f"{what!r} is neither a .py file nor one of {', '.join(Listing)}")
    kind = None if what is None else Listing(what)
    if kind is Listing.BALANCERS:
        _print_details(balancers.names(), [])
        return
    if kind is Listing.PROBLEMS:
        new_console().print(problem_list.table(problem_list.entries(timed=False)))
        return
    lines = {
        Listing.BALANCERS: [(name, balancers.get(name).summary) for name in balancers.names()],
        Listing.PROBLEMS: [(name, problem_list.line(name)) for name in tasks.names()],
        Listing.SUITES: [(name, suite_file.description(suite_file.find(name))) for name in suite_file.names()],
    }
    for each in Listing if kind is None else (kind,):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(each)
        table.add_column("what it is")
        for name, description in lines[each]:
            table.add_row(Text(name, style="bold", overflow="fold"), Text(description))
        new_console().print(table)


def _print_details(methods: list[str], problems: list[str]) -> None:
    """Print the tables of these methods and problems."""
    from .catalogue import method_list, problem_list

    if methods:
        shown = method_list.table(method_list.entries(methods))
        shown.box, shown.padding, shown.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), True
        new_console().print(shown)
    if problems:
        with _messages().status("timing a few steps of each problem"):
            listed = problem_list.table(problem_list.entries(problems))
        new_console().print(listed)


@app.command(
    rich_help_panel=ON_LISTS,
    epilog=_examples(
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
            autocompletion=_complete_problem,
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
    from .catalogue import show_problem
    from .catalogue.show_problem import NothingToDrawError

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


@app.command(
    rich_help_panel=ON_YOURS,
    epilog=_examples(
        ("lossbench diagnose my_problem.py", "what to try first"),
        ("lossbench diagnose regression --option 'sigmas=\"T=10\"'", ""),
        ("lossbench diagnose my_problem.py --json advice.json", ""),
    ),
)
def diagnose(
    problem: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py|PROBLEM",
            help="Python file that registers your problem; or the name of a problem, see `lossbench list problems`.",
            autocompletion=_complete_problem,
        ),
    ],
    option: ProblemOptions = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, initial values and batches.")] = PROFILE_SEED,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the profile and the advice.", show_default=False)
    ] = None,
) -> None:
    """Advise on a method for your own problem, from the beginning of its training at equal weights.

    The command trains the first 5 % of your recipe's steps (at least 20, at
    most 200). It measures the losses, and the norms, cosines and noise of the
    tasks' gradients. It reads training data alone. From losses, norms and
    cosines, a rule then advises one of five: equal weights, one over the
    initial loss, one over the initial gradient norm, uncertainty weighting or
    Nash-MTL. If that is static weighting, you get its weights to paste.
    The rule has not been tested yet; rule 34 of the protocol says how it will
    be. To compare methods on your problem, use `lossbench try`.

    Exit codes: 0, success; 2, the problem cannot be trained.
    """
    import tasks

    from .catalogue import show_problem
    from .diagnose import diagnose_terminal
    from .diagnose.gradient_profile import ProfileError

    console = _messages()
    with _user_errors(console, writes_to="--json"):
        names = show_problem.named(problem)
        if unknown := [name for name in names if name not in tasks.names()]:
            raise ProfileError(f"no problem is named {unknown[0]!r}{closest(unknown[0], tasks.names())}")
        if json is not None and len(names) > 1:
            raise ProfileError(f"{problem} registers {', '.join(names)}, whose advice can't all be in {json}")
        for name in names:
            found = diagnose_terminal.diagnose(name, show_problem.given_options(option or []), seed, console.print)
            if json is not None:
                diagnose_terminal.write(*found, json)


@app.command(
    rich_help_panel=ON_YOURS,
    epilog=_examples(
        ("lossbench cost my_model.py:make_step", ""),
        ("lossbench cost my_model.py:make_step --device cuda", ""),
    ),
)
def cost(
    target: Annotated[
        str, typer.Argument(metavar="FILE.py:FUNCTION", help="Function that makes your model; see above.")
    ],
    device: Annotated[
        MeasuredOn, typer.Option(help="Device to measure on; PyTorch's default device while FUNCTION is called.")
    ] = MeasuredOn.CPU,
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
    each method trains its own copy. Let nothing else run meanwhile.

    Exit codes: 0, success; 2, the model cannot be measured.
    """
    from .cost import cost_terminal, devices, own_model
    from .cost.devices import DeviceName

    console = _messages()
    with _user_errors(console, writes_to="--out"):
        measured = own_model.measure(own_model.load(target), devices.find(DeviceName(device)), console.print)
        folder = out or Path("results") / "cost" / Path(target.rpartition(":")[0]).stem
        picture = own_model.write(measured, folder)
    cost_terminal.print_own(measured)
    Console(soft_wrap=True).print(Text(f"figure: {picture}"))


def _suite_file(name: str, results: Path | None = None) -> Path:
    """Return the file of a suite, which a folder of ``results`` may keep; check that it is a text."""
    from .suite import suite_file

    path = suite_file.find(name, results)
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path} is not a text in UTF-8: {error}") from error
    return path


def _messages() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def _workforce(
    loaded: "Suite | None", jobs: int | None, scheduler: str | None, cluster: str | None, console: Console
) -> "Iterator[Workforce]":
    """Yield whoever does runs: the workers of a cluster if one is named, otherwise processes of this machine."""
    import joblib

    from .execute.task import EngineError
    from .execute.workforce import Workforce, visible_gpus

    def tell(sentence: str) -> None:
        console.print(Text(sentence))

    with _user_errors(console):
        if scheduler and cluster:
            raise SuiteError("--scheduler and --cluster exclude each other")
        if jobs and (scheduler or cluster):
            raise SuiteError(
                "--jobs is for this machine; on a cluster, the workers say how many at a time (--nthreads)"
            )
        if scheduler or cluster:
            try:
                made = Workforce.at(scheduler, tell) if scheduler else Workforce.made_by(str(cluster), tell)
            except EngineError as error:
                raise SuiteError(str(error)) from error
        else:
            gpus = visible_gpus() if loaded is not None and loaded.device == "cuda" else []
            at_a_time = len(gpus) * loaded.runs_per_gpu if loaded is not None and gpus else joblib.cpu_count()
            made = Workforce.of(jobs or at_a_time, tell, gpus)
    with made:
        yield made


def _run(loaded: "Suite", folder: Path, workforce: "Workforce", console: Console) -> None:
    """Run a suite, report it, and exit with 1 if any run failed."""
    from .execute import run_suite

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
    from .report import answer, leaderboard_terminal, report_page, results_folder

    leaderboard_terminal.print_leaderboard(folder)
    report_page.write(folder)
    for sentence in answer.answer(results_folder.load(folder)):
        Console(highlight=False, soft_wrap=True).print(Text(sentence))
    Console(soft_wrap=True).print(Text(f"report: {folder / 'report.html'}"))


def _print_summary(summary: "Summary", folder: Path, console: Console) -> None:
    """Print how many runs were done, how many were already stored, and which failed for what reason."""
    from .style.numbers import counted

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
    from .catalogue.show_problem import NothingToDrawError
    from .cost.subject import SubjectError
    from .diagnose.gradient_profile import ProfileError
    from .execute.run_suite import BusyError, NotDoneError
    from .execute.task import EngineError
    from .run.atomic_file import BadFileError
    from .run.plugins import PluginError
    from .style.numbers import counted

    ours = (SuiteError, SubjectError, PluginError, NothingToDrawError, ProfileError, BusyError, BadFileError)
    try:
        yield
    except (*ours, OSError) as error:
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
