"""The commands for a user's own problem or model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from bench.suite.toml_table import closest

from . import run_and_report
from .arguments import ClusterOption, JobsOption, ProblemOptions, ResultsOption, SchedulerOption, complete_problem
from .command_line import ON_YOURS, app, examples
from .user_errors import messages, user_errors

PROFILE_SEED = 1
"""Default seed of ``lossbench diagnose``: `gradient_profile.SEED`."""


class MeasuredOn(StrEnum):
    """Devices of ``lossbench cost``: those of `devices.DeviceName`."""

    CPU = "cpu"
    CUDA = "cuda"


@app.command(
    "try",
    rich_help_panel=ON_YOURS,
    epilog=examples(
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

    The command compares nine methods, equal weights trained for twice the
    steps, and random weights on every problem in FILE. For each of them,
    validation chooses a learning rate from values around the one in your
    recipe. The comparison then runs on other seeds. The suite that was
    made is stored with the results; you can extend it. If you give this
    command after that, your suite gets the ending .before. The time is a
    forecast: on a busy computer, or if the grid of learning rates grows at
    both edges, it takes longer. Give the same command again to go on after
    a stop.

    Exit codes: 0, success; 1, a run whose score is reported failed, or some
    runs were not done; 2, nothing can be run, or every method fails in its
    first steps; 130, stopped with Ctrl-C.
    """
    from bench.execute import forecast
    from bench.suite import try_suite

    console = messages()
    with run_and_report.workforce(None, jobs, scheduler, cluster, console) as workforce:
        with user_errors(console):
            loaded, notes = try_suite.make(file, results / file.stem, minutes, forecast.Forecast(workforce))
            for note in notes:
                console.print(Text(note))
        run_and_report.run(loaded, results / loaded.name, workforce, console, file)


@app.command(
    rich_help_panel=ON_YOURS,
    epilog=examples(
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
            autocompletion=complete_problem,
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
    Rule 34 of the protocol says how the rule is tested. The command prints the
    result, or says that there is none yet. If the rule fails, the advice is
    what is best on average over the problems of the evidence, and the rule's
    choice stands below. To compare methods on your problem, use `lossbench
    try`.

    Exit codes: 0, success; 2, the problem cannot be trained.
    """
    import tasks
    from bench.diagnose import diagnose_terminal
    from bench.diagnose.gradient_profile import ProfileError
    from bench.run import problem_argument

    console = messages()
    with user_errors(console, writes_to="--json"):
        names = problem_argument.named(problem)
        if unknown := [name for name in names if name not in tasks.names()]:
            raise ProfileError(f"no problem is named {unknown[0]!r}{closest(unknown[0], tasks.names())}")
        if json is not None and len(names) > 1:
            raise ProfileError(f"{problem} registers {', '.join(names)}, whose advice can't all be in {json}")
        for name in names:
            given = problem_argument.given_options(option or [])
            file = Path(problem) if problem not in names else None
            found = diagnose_terminal.diagnose(name, given, seed, console.print, file)
            if json is not None:
                diagnose_terminal.write(found, json)


@app.command(
    rich_help_panel=ON_YOURS,
    epilog=examples(
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
    """Time GradNorm and uncertainty weighting on your own model in about a minute, and compare its tasks' gradients.

    FUNCTION takes no arguments. It returns (model, losses) or (model, losses,
    wrt). The model should contain a balancers.Fork. losses is a function
    without arguments that returns the losses of a batch: a list, a {task:
    loss} dict or a tensor. wrt is the last shared layer. FUNCTION is called
    once per method, so that each method trains its own copy. Let nothing
    else run meanwhile.

    Exit codes: 0, success; 2, the model cannot be measured.
    """
    from bench.cost import cost_terminal, devices, own_model
    from bench.cost.devices import DeviceName
    from bench.run import atomic_file

    console = messages()
    folder = out or Path("results") / "cost" / Path(target.rpartition(":")[0]).stem
    with user_errors(console, writes_to="--out"):
        make_step = own_model.load(target)
        atomic_file.require_writable(folder)
        measured = own_model.measure(make_step, devices.find(DeviceName(device)), console.print)
        cost_terminal.print_own(measured)
        picture = own_model.write(measured, folder)
    Console(soft_wrap=True).print(Text(f"figure: {picture}"))
