"""Measure what steps cost on the device: the gradient-norm step, the limits table, every method, and the peers.

The sizes are smaller than those of ``python -m bench.cost``, so that all of it fits into minutes.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

import balancers
from bench.cost import compiled, method_costs, micro
from bench.cost.cases import Case, layer_networks, networks, regression, regression_step
from bench.cost.gradnorm_overhead import FLOORS
from bench.cost.step_clock import single_thread
from bench.cost.step_comparison import WARM_UP, compare, start, times, warm_up
from bench.cost.subject import MakeStep
from bench.cost.timed_methods import (
    AGAIN,
    EQUAL,
    EVERY_TEN,
    FEATURES,
    FEATURES_COMPILED,
    LAYER,
    LAYER_COMPILED,
    UNCERTAINTY,
    TimedMethod,
)
from bench.peers import peer_table
from bench.run import atomic_file, machine_facts

from . import captured_steps
from .part_measurement import PartMeasurement

SIZES, COMPILED_SIZES = ((2, 100), (10, 100), (40, 100), (10, 1000)), ((2, 100), (10, 100))
"""Number of tasks and batch size of each regression problem in the limits table, and of those that are compiled."""
EAGER = (EQUAL, AGAIN, LAYER, FEATURES, EVERY_TEN)
CAPTURED = (EQUAL, LAYER, FEATURES, UNCERTAINTY)
UPDATES = (EQUAL, LAYER_COMPILED, FEATURES_COMPILED)
"""The methods of the limits table in each mode."""
NUM_TASKS, BATCH = (2, 10), 100
"""Number of tasks and batch size at which every method is measured."""
ROUNDS, OF_NETWORKS, DRY = 60, 40, 2
"""Rounds on the regression problem, on the networks, and in a dry run."""
DRY_METHODS = ("famo", "gradnorm", "static")
"""The methods of a dry run."""
CYCLES = 10
"""Fewest cycles of a method that does not do the same in every step: six are the fewest that have an interval."""
SECONDS = 1.0
"""Seconds to time each peer, at each number of tasks."""

Measure = Callable[[], pd.DataFrame]


def norm_step(part: PartMeasurement) -> None:
    """Run the micro-benchmark on the CPU and on CUDA: ``norm-step.csv`` has both times and their ratio."""
    for package in ("pytest", "pytest_benchmark"):
        if find_spec(package) is None:
            part.leave_out("norm-step", f"{package.replace('_', '-')} is not installed")
            return
    path = part.folder / micro.MICRO
    path.unlink(missing_ok=True)
    file = machine_facts.ROOT / "bench" / "cost" / "gradient_norm.py"
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider"]
    command += ["--benchmark-enable", "--benchmark-only", f"--benchmark-json={path}", "--benchmark-columns=median"]
    if part.dry:
        command += ["-k", "cpu and 2"]
    # Within a test of this command, the worker's own variables would make pytest-benchmark refuse.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    code = subprocess.run(command, cwd=machine_facts.ROOT, check=False, env=own).returncode
    if not path.is_file():
        raise RuntimeError(f"pytest ended with {code} and wrote no times; log.txt has what it printed")
    atomic_file.write(part.folder / "norm-step.csv", micro.table(path).to_csv(index=False).encode())
    if code:
        part.fail("norm-step", f"pytest ended with {code}; log.txt has what it printed")


def limits(part: PartMeasurement) -> None:
    """Measure GradNorm's step next to equal weighting's: ``limits.csv``, whose column ``mode`` says how both were run.

    The modes are "eager", "captured" in a CUDA graph, "compiled update" (equal weighting has none and is eager), and
    "compiled", with the network compiled part by part. Captured steps are last: a failed capture can harm what follows.
    """
    rounds = DRY if part.dry else ROUNDS
    pieces: dict[str, Measure] = {}
    captured: dict[str, Measure] = {}
    for num_tasks, batch in SIZES[:1] if part.dry else SIZES:
        of_case = partial(_of_cases, num_tasks, batch, part)
        label = f"regression T={num_tasks}, batch {batch}"
        pieces[label] = partial(of_case, partial(_eager, methods=EAGER + FLOORS, rounds=rounds))
        captured[f"{label}, captured"] = partial(of_case, partial(_captured, rounds=rounds))
    if not part.dry:
        for case in networks(part.device):
            pieces[case.problem] = partial(_eager, case, EAGER, OF_NETWORKS)
        for num_tasks, batch in COMPILED_SIZES:
            label = f"regression T={num_tasks}, batch {batch}, compiled"
            pieces[label] = partial(_of_cases, num_tasks, batch, part, partial(_compiled, rounds=rounds))
        for case in layer_networks(part.device):
            pieces[case.problem] = partial(_eager, case, EAGER, OF_NETWORKS)
    with single_thread():
        part.collect("limits", pieces | captured)


def _of_cases(
    num_tasks: int, batch: int, part: PartMeasurement, measure: Callable[[Case], pd.DataFrame]
) -> pd.DataFrame:
    """Measure the regression problem with either kind of heads."""
    return pd.concat([measure(case) for case in regression(num_tasks, batch, part.device)], ignore_index=True)


def _eager(case: Case, methods: Sequence[TimedMethod], rounds: int) -> pd.DataFrame:
    alike, others = [each for each in methods if each.cycle == 1], [each for each in methods if each.cycle > 1]
    parts = [compare(case.make_step, alike, case.num_tasks, rounds)]
    for method in others:
        enough = max(rounds, CYCLES * method.cycle)
        parts.append(compare(case.make_step, [EQUAL, method], case.num_tasks, enough).iloc[1:])
    return case.beside(pd.concat(parts, ignore_index=True).assign(mode="eager"))


def _captured(case: Case, rounds: int) -> pd.DataFrame:
    rows = [captured_steps.compare(case.make_step, method, case.num_tasks, rounds) for method in CAPTURED]
    return case.beside(pd.concat(rows, ignore_index=True).assign(mode="captured"))


def _compiled(case: Case, rounds: int) -> pd.DataFrame:
    trainings = start(case.make_step, UPDATES, case.num_tasks)
    warm_up(trainings, WARM_UP)
    of_update = case.beside(times(trainings, UPDATES, rounds).assign(mode="compiled update"))
    return pd.concat([of_update, compiled.rows(case, rounds).assign(mode="compiled")], ignore_index=True)


def methods(part: PartMeasurement) -> None:
    """Measure every method's step next to equal weighting's: ``methods.csv``, eager, and then captured where it can be.

    Each method is measured at the cheapest place that it is defined for, as `method_costs` does.
    """
    rounds = DRY if part.dry else ROUNDS
    names = DRY_METHODS if part.dry else sorted({*balancers.names()} - {EQUAL.name})
    eager: dict[str, Measure] = {}
    captured: dict[str, Measure] = {}
    for num_tasks in NUM_TASKS[:1] if part.dry else NUM_TASKS:
        problem, make_step = regression_step(num_tasks, BATCH, "batched", part.device)
        eager[f"{AGAIN.name}, T={num_tasks}"] = partial(_method, AGAIN, "", make_step, num_tasks, rounds)
        for name in names:
            method, wrt = method_costs.timed(name, problem), method_costs.place(name) or ""
            label = f"{name}, T={num_tasks}"
            eager[label] = partial(_method, method, wrt, make_step, num_tasks, rounds)
            captured[f"{label}, captured"] = partial(_captured_method, method, wrt, make_step, num_tasks, rounds)
    with single_thread():
        part.collect("methods", eager | captured)


def _method(method: TimedMethod, wrt: str, make_step: MakeStep, num_tasks: int, rounds: int) -> pd.DataFrame:
    rows = compare(make_step, [EQUAL, method], num_tasks, rounds).iloc[1:].reset_index(drop=True)
    return _about(rows, num_tasks, wrt, "eager")


def _captured_method(method: TimedMethod, wrt: str, make_step: MakeStep, num_tasks: int, rounds: int) -> pd.DataFrame:
    return _about(captured_steps.compare(make_step, method, num_tasks, rounds), num_tasks, wrt, "captured")


def _about(rows: pd.DataFrame, num_tasks: int, wrt: str, mode: str) -> pd.DataFrame:
    for column, value in (("mode", mode), ("wrt", wrt), ("tasks", num_tasks)):
        rows.insert(0, column, value)
    return rows


def peers(part: PartMeasurement) -> None:
    """Measure what ``python -m bench.peers`` does, on one CPU thread; peers that are not installed are left out."""
    num_tasks, seconds = (peer_table.NUM_TASKS[:1], 0.0) if part.dry else (peer_table.NUM_TASKS, SECONDS)
    part.collect("peers", {f"T={T}": partial(peer_table.measure, [T], seconds) for T in num_tasks})
    if (part.folder / "peers.csv").is_file():
        note_missing(part, part.folder / "peers.csv")


def note_missing(part: PartMeasurement, path: Path) -> None:
    """Leave out the peers that the table says could not be measured."""
    table = pd.read_csv(path, dtype={"missing": str}, keep_default_na=False)
    missing = table[table["missing"] != ""].drop_duplicates("contender")
    for name, reason in missing.set_index("contender")["missing"].to_dict().items():
        part.leave_out(str(name), reason)
    part.note("measured on one CPU thread of this machine")
