"""What balancing would cost on a user's own model and batch, and what its tasks' gradients look like.

The user's file has a function that returns a `Subject`, or a plain tuple of its entries. Some methods are timed next to
equal weighting, and gradients are looked at while that trains, in about a minute: the slower the step, the fewer of
them. What goes wrong in the user's code is told with its last line.
"""

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

from bench.style import figure_style

from . import cost_figures
from .devices import machine
from .gradient_agreement import Gradients, follow
from .step_clock import single_thread
from .step_comparison import counts, start, times, warm_up
from .subject import MakeStep, Subject, SubjectError, make, on_device, task_names
from .timed_methods import AGAIN, EQUAL, EVERY_TEN, FEATURES, LAYER, NO_FORK, UNCERTAINTY, TimedMethod
from .training_step import LR, TrainingStep

STEPS, SECONDS_OF_STEPS = 50, 12
"""Of looking at gradients."""
MOST_WARM_UP, SECONDS_OF_WARM_UP = 20, 6
ROUNDS, SECONDS_OF_ROUNDS = (10, 300), 36
"""The fewest and the most rounds; what takes ten steps needs ten of them."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        costs: what `times` and `counts` say, a row a method.
        gradients: over some steps of equal weighting.
        machine: what it was measured on.
        notes: how it was measured, and what could not be, in sentences.
    """

    costs: pd.DataFrame
    gradients: Gradients
    machine: str
    notes: list[str]


def load(target: str) -> MakeStep:
    """The function that ``FILE.py:FUNCTION`` names; what it raises later becomes a `SubjectError` too.

    The file's folder comes last on the import path, so that it can import its neighbours.

    Raises:
        SubjectError: there is no such file or function, or the file raises something.
    """
    file, _, name = target.rpartition(":")
    if not file or not name.isidentifier():
        raise SubjectError(f"{target!r} names no function; expected FILE.py:FUNCTION, such as mine.py:make_step")
    path = Path(file)
    if not path.is_file():
        raise SubjectError(f"there is no file {path}")
    sys.path.append(str(path.resolve().parent))
    function: Callable[[], Any] | None = _telling(path.name, lambda: runpy.run_path(str(path)))().get(name)
    if not callable(function):
        raise SubjectError(f"{path.name} has no function {name}")

    def make_step() -> Any:
        made = _telling(name, function)()
        if isinstance(made, tuple) and len(made) > 1 and callable(made[1]):
            return (made[0], _telling("losses()", made[1]), *made[2:])
        return made

    return make_step


def measure(make_step: MakeStep, device: torch.device, say: Callable[[str], None]) -> Report:
    """Measures on one CPU thread, or on a CUDA device; ``say`` is told what is going on.

    Raises:
        SubjectError: what ``make_step`` returns can't be measured.
    """
    make_step = on_device(make_step, device)
    subject = make(make_step)
    if subject.device.type != device.type:
        raise SubjectError(f"the model is on {subject.device}, but --device is {device}")
    with single_thread():
        num_tasks = len(task_names(subject.losses()))
        contenders, notes = eligible(subject)
        say("looking at the tasks' gradients")
        gradients = follow(subject, STEPS, SECONDS_OF_STEPS)
        say(f"timing {len(contenders)} methods")
        trainings = [_begun(make_step, contender, num_tasks) for contender in contenders]
        step = _seconds(trainings[0])
        warm = _within(SECONDS_OF_WARM_UP / (len(trainings) * step), 2, MOST_WARM_UP)
        warm_up(trainings, warm)
        rounds = _within(SECONDS_OF_ROUNDS / (2 * len(trainings) * step), *ROUNDS) // 10 * 10
        costs = times(trainings, contenders, rounds)
        say("counting")
        costs = costs.join(counts(trainings))
    how = f"{rounds} steps of each method, each next to one of equal weighting, after {warm} that don't count"
    seen = f"gradients with respect to {gradients.wrt}, over {len(gradients.losses)} steps with Adam at {LR:g}"
    return Report(costs, gradients, machine(device), [f"{how}; {seen}.", *notes])


def write(report: Report, folder: Path) -> Path:
    """Writes ``cost.csv``, ``gradients.csv``, ``cosines.csv`` and the figure, whose path it returns."""
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


def eligible(subject: Subject) -> tuple[list[TimedMethod], list[str]]:
    """The methods that can be had for ``subject``, and what to change to have the others."""
    contenders, notes = [EQUAL, AGAIN, UNCERTAINTY], []
    if subject.fork is None:
        notes.append(
            "The model has no Fork, so GradNorm can't measure in the one backward pass. To add one: self.fork = "
            "balancers.Fork(num_tasks=T) where the trunk ends; head i gets self.fork(features)[i]."
        )
        contenders += [] if subject.wrt is None else [NO_FORK]
    else:
        contenders.append(FEATURES)
        contenders += [] if subject.wrt is None else [LAYER, EVERY_TEN]
    if subject.wrt is None:
        notes.append("For GradNorm with respect to a layer, return the last shared layer as a third entry.")
    return contenders, notes


def _begun(make_step: MakeStep, contender: TimedMethod, num_tasks: int) -> TrainingStep:
    """A training that has made its first step, in which a balancer checks what it was given."""
    try:
        [training] = start(make_step, [contender], num_tasks)
        training()
    except SubjectError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise SubjectError(f"{contender.name}: {error}") from error
    return training


def _seconds(training: TrainingStep) -> float:
    """The time of a step, once it is under way."""
    training()
    begin = time.perf_counter()
    training()
    return time.perf_counter() - begin


def _within(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))


def _telling(what: str, call: Callable[[], Value]) -> Callable[[], Value]:
    """The same, with what it raises told in a sentence."""

    def telling() -> Value:
        try:
            return call()
        except Exception as error:
            ours = (str(Path(torch.__file__).parent), __file__, "<")
            frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(ours)]
            where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
            said = ": ".join(filter(None, (type(error).__name__, str(error))))
            raise SubjectError(f"{what} raised {said}{where}") from error

    return telling
