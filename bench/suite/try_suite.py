"""Make a suite for a user's own problem, as large as fits a given time: ``lossbench try my_problem.py``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import balancers
import tasks
from bench.run import build, plugins
from bench.run.seeds import generator, stream_seed
from bench.run.spec import Method
from bench.style.numbers import in_words, rounded
from tasks import Problem

from . import plan, suite_file
from .plan import Planned
from .suite_file import Suite
from .toml_table import SuiteError

METHODS = ("equal", "static", "uncertainty", "dwa", "famo", "gradnorm", "pcgrad", "nash-mtl", "random")
"""The methods of the suite: the protocol's core methods, and a control."""

TUNING = 101
"""The first tuning seed."""


@dataclass(frozen=True)
class ComparisonSize:
    """The size of a comparison.

    Attributes:
        rates: The learning rates of the grid, as factors of the learning rate in the problem's recipe.
        tuning: The number of tuning seeds.
        reported: The number of reported seeds.
    """

    rates: tuple[float, ...]
    tuning: int
    reported: int


SIZES = (
    ComparisonSize(rates=(0.1, 0.3, 1, 3, 10), tuning=2, reported=10),
    ComparisonSize(rates=(0.1, 0.3, 1, 3, 10), tuning=1, reported=5),
    ComparisonSize(rates=(0.3, 1, 3), tuning=1, reported=3),
)
"""The sizes from the largest to the smallest. The first that fits the time is run; if none fits, the smallest."""


def make(
    file: Path, folder: Path, minutes: float, seconds_of: Callable[[Suite, Sequence[Planned]], float]
) -> tuple[Suite, list[str]]:
    """Make a suite of all problems and methods in a file, and write it.

    Args:
        file: The Python file that registers problems, and perhaps methods.
        folder: The folder into which the suite is written.
        minutes: The time that the suite's runs should take together.
        seconds_of: Returns how long the runs of a suite take together, in seconds.

    Returns:
        The suite, and sentences for the user about how it was made.

    Raises:
        SuiteError: ``file`` can't be loaded or registers no problem, or a problem can't be made without options.
    """
    names = _registered(file)
    notes: list[str] = []
    methods = _methods(file, [_problem(file, name) for name in names], notes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file.stem}.toml"
    for size in SIZES:
        path.write_text(_toml(file, names, methods, size), encoding="utf-8")
        loaded = suite_file.load(path)
        seconds = seconds_of(loaded, _runs(loaded))
        if seconds <= 60 * minutes:
            break
    else:
        notes.append(f"the smallest comparison takes longer than {minutes:g} minutes: {in_words(seconds, seconds)}")
    notes.append(f"the suite is in {path}; edit a copy of it to go on from there")
    return loaded, notes


def _registered(file: Path) -> list[str]:
    """Load ``file`` and return the names of the problems that it registers, illustrations excepted."""
    if not file.is_file():
        raise SuiteError(f"there is no file {file}")
    try:
        plugins.load([file])
    except Exception as error:
        raise SuiteError(f"{file.name} can't be loaded: {type(error).__name__}: {error}") from error
    names = [name for name in tasks.names() if _is_from(tasks.get(name), file) and not tasks.get(name).illustration]
    if not names:
        raise SuiteError(f"{file.name} registers no problem; docs/add-a-problem.md shows how a file does that")
    return names


def _problem(file: Path, name: str) -> Problem[Any]:
    """Create a problem that ``file`` registers, without options."""
    try:
        return tasks.create(name)
    except Exception as error:
        raise SuiteError(f"{file.name}: {name} can't be made: {type(error).__name__}: {error}") from error


def _methods(file: Path, problems: Sequence[Problem[Any]], notes: list[str]) -> dict[str, Mapping[str, Any]]:
    """Return the options of each method that can be made on all ``problems``, by the method's name.

    For each method that can't be made, a sentence with the reason is appended to ``notes``.
    """
    own = [name for name in balancers.names() if _is_from(balancers.get(name), file)]
    methods: dict[str, Mapping[str, Any]] = {}
    for name in (*METHODS, *own):
        options: Mapping[str, Any] = {}
        try:
            if name == "static":
                options = {"weights": _weights(problems, notes)}
            for problem in problems:
                _make(name, problem)
        except Exception as error:
            notes.append(f"{name} is left out: {error}")
            continue
        methods[name] = options
    return methods


def _weights(problems: Sequence[Problem[Any]], notes: list[str]) -> str | list[float]:
    """Return the static weights of the suite: those that the problems state, else one over an untrained model's losses.

    If the weights are made from losses, a sentence that says so is appended to ``notes``.

    Raises:
        ValueError: The problems state no weights, and there are several problems or a loss that is not positive.
    """
    if all(problem.static_weights for problem in problems):
        return "problem:first"
    if len(problems) > 1:
        raise ValueError("not every problem in the file states static_weights")
    (problem,) = problems
    data = problem.data(generator(TUNING, "data"), "cpu")
    batch = next(problem.batches(data, generator(TUNING, "batches"), problem.recipe.batch_size))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(stream_seed(TUNING, "initial values"))
        losses = problem.losses(problem.model(), batch)
    values = torch.stack([*(losses.values() if isinstance(losses, Mapping) else losses)]).double()
    if not ((values > 0) & values.isfinite()).all():
        raise ValueError("the problem states no static_weights, and not all of its first losses are positive")
    notes.append("static has weights of one over an untrained model's losses: the problem states no static_weights")
    weights: list[float] = (len(values) / values / (1 / values).sum()).tolist()
    return [float(f"{weight:.4g}") for weight in weights]


def _make(name: str, problem: Problem[Any]) -> None:
    """Create a method on the problem's model, to see whether that raises an error."""
    cls = balancers.get(name)
    with torch.random.fork_rng(devices=[]):
        model = problem.model()
        options = {"weights": [1.0] * len(problem.tasks)} if name == "static" else {}
        build.balancer(Method(name, build.default_wrt(cls, problem.shared(model)), options), problem, model)


def _is_from(cls: type, file: Path) -> bool:
    """Check whether the plugin ``file`` defines ``cls``."""
    return cls.__module__ == plugins.module_name(file)


def _toml(file: Path, names: Sequence[str], methods: Mapping[str, Mapping[str, Any]], size: ComparisonSize) -> str:
    """Return the suite's text. JSON is used for strings and lists of numbers, which are the same in TOML."""
    rates = sorted({rounded(tasks.get(name)().recipe.lr * factor, 1) for name in names for factor in size.rates})
    lines = [
        f"description = {json.dumps(f'Which method, and at what cost, for {file.name}')}",
        "evaluations = 20",
        "baselines = true",
        f"plugins = {json.dumps([str(file.resolve())])}",
        "\n[seeds]",
        f"tuning = {list(range(TUNING, TUNING + size.tuning))}",
        f"reported = {list(range(1, 1 + size.reported))}",
        "\n[learning_rates]",
        f"grid = {json.dumps(rates)}",
        "\n[cost]",
        "rounds = 50",
    ]
    for name in names:
        lines += ["\n[[problems]]", f"name = {json.dumps(name)}"]
    for name, options in methods.items():
        lines += ["\n[[balancers]]", f"name = {json.dumps(name)}"]
        lines += [f"options.{key} = {json.dumps(value)}" for key, value in options.items()]
    return "\n".join(lines) + "\n"


def _runs(loaded: Suite) -> list[Planned]:
    """Return all runs of the suite, assuming that the grid grows at one edge."""
    grids = {entry.label: plan.widened(loaded.learning_rates)[1:] for entry in loaded.problems}
    reported = plan.reported(loaded, None)
    return [*plan.tuning(loaded, grids), *reported, *plan.baselines(loaded, reported)]
