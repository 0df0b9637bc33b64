"""Measure what balancing would cost on a user's own model and batch, and compare the gradients of its tasks.

The user's file has a function that returns a `Subject`, or a plain tuple of its entries. Several methods are timed next
to equal weighting, and the tasks' gradients are recorded while equal weighting trains. This takes about a minute: the
slower a step is, the fewer steps are made. An error in the user's code is reported in one sentence, with the line of
that code where it arose.
"""

import functools
import runpy
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from balancers import Losses
from bench.analysis import loss_scales
from bench.style import figure_style

from . import cost_figures, fork_advice
from .devices import machine
from .gradient_agreement import Gradients, follow
from .step_clock import single_thread
from .step_comparison import counts, start, times, warm_up
from .subject import MakeStep, Subject, SubjectError, make, on_device, task_names
from .timed_methods import AGAIN, EQUAL, EVERY_TEN, FEATURES, LAYER, NO_FORK, UNCERTAINTY, TimedMethod
from .training_step import LR, TrainingStep

STEPS, SECONDS_OF_STEPS = 50, 12
"""Maximum number of steps, and seconds, for which gradients are recorded."""
MOST_WARM_UP, SECONDS_OF_WARM_UP = 20, 6
"""Maximum number of warm-up steps of each method, and the seconds that all of them may take."""
ROUNDS, SECONDS_OF_ROUNDS = (10, 300), 36
"""Minimum and maximum number of rounds, and the seconds that they may take; a method with a cycle of ten needs ten."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Report:
    """The results for one model.

    Attributes:
        costs: a row for each method, with the columns of `times` and `counts`.
        gradients: the tasks' gradients over some steps of equal weighting.
        machine: name of the machine it was measured on.
        notes: sentences on how it was measured, and on what could not be measured.
    """

    costs: pd.DataFrame
    gradients: Gradients
    machine: str
    notes: list[str]


def load(target: str) -> MakeStep:
    """Return the function that ``FILE.py:FUNCTION`` names, changed to raise a `SubjectError` in place of any exception.

    The file's folder is added at the end of the import path, so that the file can import its neighbours.

    Raises:
        SubjectError: there is no such file or function, or the file raises an exception.
    """
    file, _, name = target.rpartition(":")
    if not file or not name.isidentifier():
        raise SubjectError(f"{target!r} names no function; expected FILE.py:FUNCTION, such as mine.py:make_step")
    path = Path(file)
    if not path.is_file():
        raise SubjectError(f"there is no file {path}")
    sys.path.append(str(path.resolve().parent))
    function: Callable[[], Any] | None = _with_plain_errors(path.name, lambda: runpy.run_path(str(path)))().get(name)
    if not callable(function):
        raise SubjectError(f"{path.name} has no function {name}")

    @functools.wraps(function)
    def make_step() -> Any:
        made = _with_plain_errors(name, function)()
        if isinstance(made, tuple) and len(made) > 1 and callable(made[1]):
            return (made[0], _with_plain_errors("losses()", made[1]), *made[2:])
        return made

    return make_step


def measure(make_step: MakeStep, device: torch.device, say: Callable[[str], None]) -> Report:
    """Measure the costs and the gradients, with one CPU thread.

    Args:
        make_step: makes a subject, see `subject`.
        device: the CPU or a CUDA device.
        say: is called with a short text before each stage of the work.

    Raises:
        SubjectError: ``make_step`` raises an exception, or returns something that can't be measured.
    """
    make_step = on_device(make_step, device)
    subject = make(make_step)
    if subject.device.type != device.type:
        raise SubjectError(f"the model is on {subject.device}, but --device is {device}")
    with single_thread():
        losses = subject.losses()
        num_tasks = len(task_names(losses))
        methods, notes = eligible(subject, losses)
        del losses  # and with it the memory of their graph
        say("recording the tasks' gradients")
        gradients = follow(subject, STEPS, SECONDS_OF_STEPS)
        del subject  # the methods train copies of their own
        say(f"timing {len(methods)} methods")
        trainings = [_started(make_step, method, num_tasks) for method in methods]
        seconds = [_seconds(training) for training in trainings]
        warm = _within(SECONDS_OF_WARM_UP / sum(seconds), 2, MOST_WARM_UP)
        warm_up(trainings, warm)
        each = [seconds[0] + of_method for of_method in seconds]  # a step of each beside one of equal weighting
        rounds = _within(SECONDS_OF_ROUNDS / sum(each), *ROUNDS) // 10 * 10
        costs = times(trainings, methods, rounds)
        say("counting operations and memory")
        costs = costs.join(counts(trainings))
    timed = (
        f"Times are of {rounds} steps of each method, each next to one of equal weighting, after {warm} warm-up steps."
    )
    recorded = f"Gradients are with respect to {gradients.wrt}, over {len(gradients.losses)} steps of Adam at {LR:g}."
    if scales := loss_scales.advice(dict(zip(gradients.tasks, gradients.losses[0].tolist(), strict=True))):
        notes.append(scales)
    return Report(costs, gradients, machine(device), [f"{timed} {recorded}", *notes])


def write(report: Report, folder: Path) -> Path:
    """Write ``cost.csv``, ``gradients.csv``, ``cosines.csv`` and the figure, and return the figure's path."""
    folder.mkdir(parents=True, exist_ok=True)
    report.costs.assign(machine=report.machine).to_csv(folder / "cost.csv", index=False)
    found = report.gradients
    steps = [
        {"step": step, "task": task, "loss": loss, "gradient_norm": norm}
        for step, (losses, norms) in enumerate(zip(found.losses, found.norms, strict=True))
        for task, loss, norm in zip(found.tasks, losses, norms, strict=True)
    ]
    pd.DataFrame(steps).to_csv(folder / "gradients.csv", index=False)
    pairs = [
        {"step": step, "task": found.tasks[i], "other": found.tasks[j], "cosine": cosines[i, j]}
        for step, cosines in enumerate(found.cosines)
        for i, j in combinations(range(len(found.tasks)), 2)
    ]
    pd.DataFrame(pairs).to_csv(folder / "cosines.csv", index=False)
    with figure_style.theme():
        figure_style.save(cost_figures.own(report.costs, found, report.machine), folder, "cost")
    return folder / "cost.png"


def eligible(subject: Subject, losses: Losses) -> tuple[list[TimedMethod], list[str]]:
    """Return the methods that can be measured on ``subject``, and notes on what to add so that the others can be."""
    methods, notes = [EQUAL, AGAIN, UNCERTAINTY], []
    if subject.fork is None:
        methods += [] if subject.wrt is None else [NO_FORK]
        if instead := fork_advice.advice(subject.model, losses, wrt_is_given=subject.wrt is not None):
            return methods, [f"The model has no Fork. {instead}"]
        notes.append(
            "The model has no Fork, so GradNorm can't measure during the one backward pass. To add a fork: self.fork = "
            "balancers.Fork(num_tasks=T) where the trunk ends; head i gets self.fork(features)[i]."
        )
    else:
        methods.append(FEATURES)
        methods += [] if subject.wrt is None else [LAYER, EVERY_TEN]
    if subject.wrt is None:
        notes.append("To measure GradNorm at a layer, return the last shared layer as a third entry.")
    return methods, notes


def _started(make_step: MakeStep, method: TimedMethod, num_tasks: int) -> TrainingStep:
    """Return a training step that has run once, so that the balancer's check of its first input is not timed."""
    try:
        [training] = start(make_step, [method], num_tasks)
        training()
    except SubjectError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise SubjectError(f"{method.name}: {error}") from error
    return training


def _seconds(training: TrainingStep) -> float:
    """Return the seconds that a step takes, after one step that isn't timed."""
    training()
    begin = time.perf_counter()
    training()
    return time.perf_counter() - begin


def _within(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))


def _with_plain_errors(what: str, call: Callable[[], Value]) -> Callable[[], Value]:
    """Return ``call``, changed to raise a `SubjectError` of one sentence in place of any exception."""

    def checked() -> Value:
        try:
            return call()
        except (Exception, SystemExit) as error:
            ours = (str(Path(torch.__file__).parent), __file__, "<")
            frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(ours)]
            where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
            message = ": ".join(filter(None, (type(error).__name__, str(error))))
            raise SubjectError(f"{what} raised {message}{where}") from error

    return checked
