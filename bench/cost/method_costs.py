"""``python -m bench.cost.method_costs``: measure what a step costs with every method, next to equal weighting.

All methods train the regression problem with heads as one product, batch 100, on one CPU thread with fused Adam. A
method that reads gradients measures them at the cheapest place that it is defined for: the features, else the last
shared layer, else the parameters. A method that learns is also measured with ``compile=True``. ``methods.csv`` and
``environment-methods.json`` go to ``results/cost``. Nothing else should be running. It takes ten minutes.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import pandas as pd
import torch
import typer
from rich.text import Text

import balancers
import tasks
from balancers import GradientBalancer, LossBalancer
from balancers.engine.method.declared_method import Wrt
from bench.run import build, machine_facts
from bench.run.spec import Method
from bench.style.console import new_console

from . import cost_terminal, devices
from .cases import regression_step
from .devices import DeviceName
from .step_clock import single_thread
from .step_comparison import add_compiled, compare
from .subject import Subject, SubjectError
from .timed_methods import AGAIN, EQUAL, TimedMethod

SIZES, QUICK_SIZES = (2, 10, 40), (2,)
BATCH = 100
ROUNDS, QUICK = 100, 10
OPTIONS: Mapping[str, Mapping[str, Any]] = {"ntk": {"update_every": 1, "probes": 1}}
"""Options without which a step is not like the others: NTK weighting measures in every step here, with one probe."""


def measure(device: torch.device, num_tasks: Sequence[int], rounds: int) -> Iterator[pd.DataFrame]:
    """Yield a table for each number of tasks, with a row for each method; equal weighting's two copies come first."""
    for T in num_tasks:
        problem, make_step = regression_step(T, BATCH, "batched", device)
        names = sorted(set(balancers.names()) - {EQUAL.name})
        methods = [EQUAL, AGAIN, *(timed(name, problem) for name in names)]
        table = compare(make_step, methods, T, rounds)
        compiled = [timed(name, problem, compile=True) for name in names if updates(name)]
        add_compiled(table, make_step, compiled, T, rounds)
        table.insert(1, "wrt", ["", "", *(place(name) or "" for name in names)])
        table.insert(0, "tasks", T)
        yield table


def timed(name: str, problem: tasks.Problem[Any], **options: bool) -> TimedMethod:
    """Return the method for the problem, where it is cheapest, with `OPTIONS` and these options."""
    weights = {"weights": [1.0] * len(problem.tasks)} if name == "static" else {}
    method = Method(name, place(name), {**weights, **OPTIONS.get(name, {}), **options})
    return TimedMethod(name, partial(_make, method, problem))


def updates(name: str) -> bool:
    """Return whether the method has an update, which can be compiled."""
    return any(hasattr(balancers.get(name), function) for function in ("update", "solve"))


def place(name: str) -> Wrt | None:
    """Return the cheapest place for which the method is defined; None if it reads no gradients."""
    cls = balancers.get(name)
    if not issubclass(cls, GradientBalancer):
        return None
    return next(wrt for wrt in get_args(Wrt) if wrt not in cls.undefined_for)


def _make(method: Method, problem: tasks.Problem[Any], subject: Subject, _: int) -> LossBalancer:
    return build.balancer(method, problem, subject.model)


def main(
    device: Annotated[DeviceName, typer.Option(help="Device to measure on.")] = DeviceName.CPU,
    quick: Annotated[bool, typer.Option("--quick", help="Measure a few rounds with two tasks only.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("results/cost"),
) -> None:
    """Measure what a step costs with every method, next to equal weighting."""
    try:
        found = devices.find(device)
    except SubjectError as error:
        raise typer.BadParameter(str(error)) from error
    machine = devices.machine(found)
    suffix = "" if device is DeviceName.CPU else f"-{device}"
    machine_facts.write(out / f"environment-methods{suffix}.json", jobs=1)
    with single_thread():
        sizes, rounds = (QUICK_SIZES, QUICK) if quick else (SIZES, ROUNDS)
        tables = []
        for table in measure(found, sizes, rounds):
            tables.append(table)
            whole = pd.concat(tables, ignore_index=True)
            whole.assign(machine=machine).to_csv(out / f"methods{suffix}.csv", index=False)
            T = table["tasks"].iloc[0]
            labels = table["method"].where(table["wrt"] == "", table["method"] + " (" + table["wrt"] + ")")
            shown = cost_terminal.costs(table.assign(method=labels))
            new_console().print(Text(f"{T} tasks: {machine}", style="bold"), shown)


if __name__ == "__main__":
    typer.run(main)
