"""Make a suite for a user's own problem, as large as fits a given time: ``lossbench try my_problem.py``."""

import itertools
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import balancers
import tasks
from balancers.engine.method.declared_method import Wrt
from bench.analysis import loss_scales
from bench.run import atomic_file, build, plugins
from bench.run.plugins import PluginError
from bench.run.seeds import generator, stream_seed
from bench.run.spec import Method
from bench.run.task_order import in_task_order
from bench.style.numbers import in_words, rounded
from tasks import Problem

from . import plan, suite_file
from .claimed_folder import claimed
from .plan import Planned
from .suite_entries import Suite
from .toml_table import SuiteError
from .write_toml import to_toml

METHODS = (
    "equal", "static", "inverse-norm", "uncertainty", "dwa", "famo", "gradnorm", "pcgrad", "nash-mtl", "random",
)  # fmt: skip
"""The methods of the suite: the protocol's core methods, what ``lossbench diagnose`` advises most, and a control."""

FIXED: Mapping[str, Mapping[str, Any]] = {"inverse-norm": {"first_steps": 20}}
"""The options of methods that have others than their defaults, as in the evidence."""

ALIKE = 0.1
"""Weights that are no further from 1 say nothing that equal weights don't, but for the choice of a learning rate."""

LONGER = {"name": "equal", "label": "equal, 2 x steps", "times_steps": 2}
"""The row that says what a user gets by training longer in place of any method."""

UNTRAINED = "static 1/untrained loss"
"""The label of static weights that are made from an untrained model's losses."""

MADE_FOR = "# made by lossbench try for"
"""The beginning of a suite's first line, which ends with the minutes that it aims at."""

TUNING = 101
"""The first tuning seed."""


@dataclass(frozen=True)
class ComparisonSize:
    """The size of a comparison.

    Attributes:
        rates: The learning rates of the grid, as factors of the learning rate in the problem's recipe.
        tuning: The number of tuning seeds.
        reported: The number of reported seeds.
        finer: The factor above and below its best rate at which each method tries two more; None for no more rates.
    """

    rates: tuple[float, ...]
    tuning: int
    reported: int
    finer: float | None = None


SIZES = (
    ComparisonSize(rates=(0.1, 0.3, 1, 3, 10), tuning=3, reported=10, finer=1.78),
    ComparisonSize(rates=(0.1, 0.3, 1, 3, 10), tuning=2, reported=10),
    ComparisonSize(rates=(0.1, 0.3, 1, 3, 10), tuning=1, reported=5),
    ComparisonSize(rates=(0.3, 1, 3), tuning=1, reported=3),
)
"""The sizes from the largest to the smallest. The first that fits the time is run; if none fits, the smallest."""


def make(
    file: Path, folder: Path, minutes: float, seconds_of: Callable[[Suite, Sequence[Planned]], float]
) -> tuple[Suite, list[str]]:
    """Make a suite of all problems and methods in a file, and write it.

    A suite that this function made of ``file`` for as many minutes keeps its size, even if the forecast is another one
    now: so the same call goes on with the same runs. A suite of an earlier time that it does not make of ``file`` is
    kept under another name.

    Args:
        file: The Python file that registers problems, and perhaps methods.
        folder: The results folder, into which the suite is written.
        minutes: The time that the suite's runs aim at together.
        seconds_of: Returns how long the runs of a suite take together, in seconds.

    Returns:
        The suite, and sentences for the user about how it was made.

    Raises:
        SuiteError: ``file`` can't be loaded or registers no problem, a problem or its model can't be made without
            options, every method fails in its first steps, as far as ``seconds_of`` checks that, or ``folder`` belongs
            to another file.
        BusyError: Another process is running a suite in ``folder``.
    """
    notes: list[str] = []
    names = _registered(file, notes)
    problems = [_problem(file, name) for name in names]
    _require_models(file, problems)
    notes += [
        f"{problem.name} declares no metric of a single task, so the report can't show which task a method helps; "
        "give its metrics a `task`"
        for problem in problems
        if not any(metric.task for metric in problem.metrics)
    ]
    first_losses = {problem.name: _first_losses(problem) for problem in problems}
    notes += filter(None, (loss_scales.advice(losses, name) for name, losses in first_losses.items()))
    methods = _methods(file, problems, first_losses, notes)
    path = folder / f"{file.stem}.toml"
    bodies = [_toml(file, names, methods, size) for size in SIZES]
    first_line = f"{MADE_FOR} {minutes:g} minutes\n"
    with claimed(folder, file):
        stored = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        same = [body for body in bodies if stored == first_line + body]
        for body in same or bodies:
            text = first_line + body
            loaded = _load(text, file.stem)
            seconds = seconds_of(loaded, _runs(loaded))
            if seconds <= 60 * minutes:
                break
        if stored is not None and re.sub(rf"\A{re.escape(MADE_FOR)}.*\n", "", stored) not in bodies:
            before = _free(path)
            path.replace(before)
            notes.append(f"{path} is not as this command makes it, so it was kept: it is now {before.name}")
        atomic_file.write(path, text.encode())
    took = in_words(seconds, seconds)
    if same:
        notes.append(
            f"this goes on with the comparison made for {minutes:g} minutes: {len(_runs(loaded))} runs in {took}, "
            "counting those that are done"
        )
    elif seconds <= 60 * minutes:
        notes.append(
            f"the comparison aims at {minutes:g} minutes: {len(_runs(loaded))} runs in {took}, if the grid of learning "
            "rates grows at one edge; other programs make it slower"
        )
    else:
        notes.append(f"the smallest comparison takes longer than {minutes:g} minutes: {took}")
    elsewhere = "" if folder.parent == Path("results") else f" --results {folder.parent}"
    notes.append(f"the suite is in {path}; to go on from there, edit it and run: lossbench run {path}{elsewhere}")
    return loaded, notes


def _registered(file: Path, notes: list[str]) -> list[str]:
    """Load ``file`` and return the names of the problems that it registers on which methods may be compared.

    Illustrations are left out, and so are reserved problems; for each of these, a sentence is appended to ``notes``.
    """
    try:
        found = plugins.registered(file)
    except PluginError as error:
        raise SuiteError(str(error)) from error
    names = [name for name in found.problems if not tasks.get(name).illustration]
    if not names:
        raise SuiteError(f"{file.name} registers no problem; docs/add-a-problem.md shows how a file does that")
    reserved = [name for name in names if tasks.get(name).reserved]
    notes += [f"{name} is left out: it is reserved, so methods may not be compared on it yet" for name in reserved]
    if reserved == names:
        raise SuiteError(f"{file.name} registers only reserved problems, on which methods may not be compared yet")
    return [name for name in names if name not in reserved]


def _problem(file: Path, name: str) -> Problem[Any]:
    """Create a problem that ``file`` registers, without options."""
    try:
        return tasks.create(name)
    except (Exception, SystemExit) as error:
        raise SuiteError(f"{file.name}: {name} can't be made: {type(error).__name__}: {error}") from error


def _require_models(file: Path, problems: Sequence[Problem[Any]]) -> None:
    """Raise a `SuiteError` if not even equal weighting can be made on a problem: the problem is then at fault."""
    for problem in problems:
        try:
            _make("equal", problem, {})
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            raise SuiteError(f"{file.name}: the model of {problem.name} can't be used: {reason}") from error


def _methods(
    file: Path, problems: Sequence[Problem[Any]], first_losses: Mapping[str, Mapping[str, float]], notes: list[str]
) -> dict[str, dict[str, Any]]:
    """Return what the suite states of each method that can be made on all ``problems``, by the method's name.

    That is where its gradients are measured, if it is the same on all of them, and its options.

    For each method that can't be made, a sentence with the reason is appended to ``notes``.
    """
    own = plugins.registered(file).balancers
    methods: dict[str, dict[str, Any]] = {}
    for name in (*METHODS, *own):
        options = FIXED.get(name, {})
        try:
            if name == "static":
                options = {"weights": _weights(problems, first_losses, notes)}
            elif name == "uncertainty":
                options = _likelihoods(problems, notes)
            places = {_make(name, problem, options) for problem in problems}
        except (Exception, SystemExit) as error:
            notes.append(f"{name} is left out: {error}")
            continue
        methods[name] = {"wrt": place} if len(places) == 1 and (place := places.pop()) else {}
        methods[name] |= {"options": options} if options else {}
    return methods


def _weights(
    problems: Sequence[Problem[Any]], first_losses: Mapping[str, Mapping[str, float]], notes: list[str]
) -> str | list[float]:
    """Return the static weights of the suite: those that the problems state, else one over an untrained model's losses.

    If the weights are made from losses, a sentence that says so is appended to ``notes``.

    Raises:
        ValueError: The problems state no weights, and there are several problems, a loss that is not positive, or
            losses so alike that the weights would be equal ones.
    """
    if all(problem.static_weights for problem in problems):
        return "problem:first"
    if len(problems) > 1:
        raise ValueError("not every problem in the file states static_weights")
    (problem,) = problems
    values = [first_losses[problem.name].get(task, math.nan) for task in problem.tasks]
    if not all(0 < value < math.inf for value in values):
        raise ValueError("the problem states no static_weights, and not all of its first losses are positive")
    inverse = [1 / value for value in values]
    weights = [float(f"{len(values) * each / sum(inverse):.4g}") for each in inverse]
    if all(abs(weight - 1) <= ALIKE for weight in weights):
        raise ValueError(
            f"an untrained model's losses differ so little that its weights are within {100 * ALIKE:g} % of 1"
        )
    notes.append(
        f"{UNTRAINED} has weights of one over an untrained model's losses, because the problem states no static_weights"
    )
    return weights


def _likelihoods(problems: Sequence[Problem[Any]], notes: list[str]) -> dict[str, list[str]]:
    """Return the options of uncertainty weighting: the likelihoods that the problems declare, in the order of tasks.

    A suite gives a method the same options on all problems. If these declare different likelihoods, the options are
    empty, and a sentence that says so is appended to ``notes``.
    """
    declared = [[problem.likelihoods[task] for task in problem.tasks if problem.likelihoods] for problem in problems]
    if any(each != declared[0] for each in declared):
        notes.append("uncertainty has Gaussian likelihoods, because the problems in the file declare different ones")
        return {}
    return {"likelihoods": declared[0]} if declared[0] else {}


def _first_losses(problem: Problem[Any]) -> dict[str, float]:
    """Return an untrained model's loss of each task on one batch; empty if the problem raises an error.

    The first steps of the methods, which come later, show what the error is.
    """
    try:
        data = problem.data(generator(TUNING, "data"), "cpu")
        batch = next(iter(problem.batches(data, generator(TUNING, "batches"), problem.recipe.batch_size)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(TUNING, "initial values"))
            losses = problem.losses(problem.model(), batch)
        values = in_task_order(losses, problem.tasks)
        return {task: float(loss.detach()) for task, loss in zip(problem.tasks, values, strict=True)}
    except (Exception, SystemExit):
        return {}


def _make(name: str, problem: Problem[Any], options: Mapping[str, Any]) -> Wrt | None:
    """Create a method on the problem's model, to see whether that raises an error; return where it measures."""
    cls = balancers.get(name)
    with torch.random.fork_rng(devices=[]):
        model = problem.model()
        if name == "static":
            options = {"weights": [1.0] * len(problem.tasks)}
        wrt = build.default_wrt(cls, problem.shared(model))
        build.balancer(Method(name, wrt, options), problem, model)
    return wrt


def _toml(file: Path, names: Sequence[str], methods: Mapping[str, dict[str, Any]], size: ComparisonSize) -> str:
    """Return the suite's text."""
    rates = sorted({rounded(tasks.get(name)().recipe.lr * factor, 1) for name in names for factor in size.rates})
    balancers = []
    for name, stated in methods.items():
        labelled = name == "static" and stated["options"]["weights"] != "problem:first"
        balancers.append({"name": name} | ({"label": UNTRAINED} if labelled else {}) | stated)
        balancers += [LONGER] if name == LONGER["name"] else []
    return to_toml(
        {
            "description": f"Which method, and at what cost, for {file.name}",
            "evaluations": 20,
            "baselines": True,
            "plugins": [str(file.resolve())],
            "seeds": {
                "tuning": list(range(TUNING, TUNING + size.tuning)),
                "reported": list(range(1, 1 + size.reported)),
            },
            "learning_rates": {"grid": rates} | ({"finer": size.finer} if size.finer else {}),
            "cost": {"rounds": 50},
            "problems": [{"name": name} for name in names],
            "balancers": balancers,
        }
    )


def _load(text: str, name: str) -> Suite:
    """Return the suite with this text and this name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return replace(suite_file.load(path), name=name)


def _free(path: Path) -> Path:
    """Return a path beside ``path`` that no file has: ``waves.toml.before``, then ``waves.toml.before-2``."""
    names = (f"{path.name}.before{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(free for name in names if not (free := path.with_name(name)).exists())


def _runs(loaded: Suite) -> list[Planned]:
    """Return all runs of the suite, assuming that the grid grows at one edge, which then has all best rates."""
    wider = plan.widened(loaded.learning_rates)[1:]
    grids = {entry.label: wider for entry in loaded.problems}
    finer = plan.around(wider[-1], loaded.finer)
    own = {(problem.label, entry.label): finer for problem in loaded.problems for entry in loaded.balancers}
    reported = plan.reported(loaded, None)
    return [*plan.tuning(loaded, grids, own), *reported, *plan.baselines(loaded, reported)]
