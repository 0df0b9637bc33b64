"""A suite for a problem of one's own, as large as fits a stretch of time: ``lossbench try my_problem.py``."""

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
"""What is tried: the protocol's core methods, and a control."""

TUNING = 101
"""The first of the tuning seeds."""


@dataclass(frozen=True)
class ComparisonSize:
    """How much of a comparison there is; ``rates`` are factors of the learning rate in the problem's recipe."""

    rates: tuple[float, ...]
    tuning: int
    reported: int


SIZES = (
    ComparisonSize(rates=(0.1, 0.3, 1, 3, 10), tuning=2, reported=10),
    ComparisonSize(rates=(0.1, 0.3, 1, 3, 10), tuning=1, reported=5),
    ComparisonSize(rates=(0.3, 1, 3), tuning=1, reported=3),
)
"""From the largest on; the first that fits is run, or the last."""


def make(
    file: Path, folder: Path, minutes: float, seconds_of: Callable[[Suite, Sequence[Planned]], float]
) -> tuple[Suite, list[str]]:
    """A suite of all problems and methods in ``file``, written to ``folder``, and what to say about it.

    Args:
        seconds_of: returns how long the runs of a suite take together, in seconds.

    Raises:
        SuiteError: ``file`` can't be loaded, has no problem that can be run without options, or a problem is wrong.
    """
    names = _registered(file)
    said: list[str] = []
    methods = _methods(file, [_problem(file, name) for name in names], said)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file.stem}.toml"
    for size in SIZES:
        path.write_text(_toml(file, names, methods, size), encoding="utf-8")
        loaded = suite_file.load(path)
        seconds = seconds_of(loaded, _runs(loaded))
        if seconds <= 60 * minutes:
            break
    else:
        said.append(f"the smallest comparison takes longer than {minutes:g} minutes: {in_words(seconds, seconds)}")
    said.append(f"the suite is in {path}; edit a copy of it to go on from there")
    return loaded, said


def _registered(file: Path) -> list[str]:
    """The names of the problems that ``file`` registers."""
    if not file.is_file():
        raise SuiteError(f"there is no file {file}")
    try:
        plugins.load([file])
    except Exception as error:
        raise SuiteError(f"{file.name} can't be loaded: {type(error).__name__}: {error}") from error
    names = [name for name in tasks.names() if _is_from(tasks.get(name), file) and not tasks.get(name).illustration]
    if not names:
        raise SuiteError(f"{file.name} registers no problem; see `@register` in the package tasks, and README")
    return names


def _problem(file: Path, name: str) -> Problem[Any]:
    try:
        return tasks.create(name)
    except Exception as error:
        raise SuiteError(f"{file.name}: {name} can't be made: {type(error).__name__}: {error}") from error


def _methods(file: Path, problems: Sequence[Problem[Any]], said: list[str]) -> dict[str, Mapping[str, Any]]:
    """The options of each method that can be made on all ``problems``; why others can't is told in ``said``."""
    own = [name for name in balancers.names() if _is_from(balancers.get(name), file)]
    methods: dict[str, Mapping[str, Any]] = {}
    for name in (*METHODS, *own):
        options: Mapping[str, Any] = {}
        try:
            if name == "static":
                options = {"weights": _weights(problems, said)}
            for problem in problems:
                _make(name, problem)
        except Exception as error:
            said.append(f"{name} is left out: {error}")
            continue
        methods[name] = options
    return methods


def _weights(problems: Sequence[Problem[Any]], said: list[str]) -> str | list[float]:
    """What static weights to try: those that the problems state, else one over the first losses of an untrained model.

    Raises:
        ValueError: there are neither.
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
    said.append("static has weights of one over an untrained model's losses: the problem states no static_weights")
    weights: list[float] = (len(values) / values / (1 / values).sum()).tolist()
    return [float(f"{weight:.4g}") for weight in weights]


def _make(name: str, problem: Problem[Any]) -> None:
    """Makes a method on the problem's model, or raises what keeps it from that."""
    cls = balancers.get(name)
    with torch.random.fork_rng(devices=[]):
        model = problem.model()
        options = {"weights": [1.0] * len(problem.tasks)} if name == "static" else {}
        build.balancer(Method(name, build.default_wrt(cls, problem.shared(model)), options), problem, model)


def _is_from(cls: type, file: Path) -> bool:
    return cls.__module__ == plugins.module_name(file)


def _toml(file: Path, names: Sequence[str], methods: Mapping[str, Mapping[str, Any]], size: ComparisonSize) -> str:
    """The suite's text. Of texts and of lists of numbers, JSON is TOML."""
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
    """All runs, if the grid grows at one edge."""
    grids = {entry.label: plan.widened(loaded.learning_rates)[1:] for entry in loaded.problems}
    reported = plan.reported(loaded, None)
    return [*plan.tuning(loaded, grids), *reported, *plan.baselines(loaded, reported)]
