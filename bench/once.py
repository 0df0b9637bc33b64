"""One run of a suite by its key: to see it again, and that it gives the same."""

import itertools
from pathlib import Path

from . import plan, store
from .plan import Planned
from .suite import Suite
from .toml import SuiteError
from .train import Result, Trial


def find(suite: Suite, key: str) -> Planned:
    """The run of ``suite`` whose key begins with ``key``, at whatever learning rate of the grid or next to it.

    Raises:
        SuiteError: there is none, or more than one.
    """
    found = {run.key: run for run in _all(suite) if run.key.startswith(key)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise SuiteError(f"{len(found)} runs of {suite.name} have a key that begins with {key!r}")
    raise SuiteError(
        f"no run of {suite.name} has the key {key!r}: the suite, the code, the data or PyTorch are others than those "
        "that it was made with"
    )


def run(planned: Planned) -> Result:
    """Does the run, here and now."""
    trial = Trial(planned.spec)
    trial.run()
    return trial.result


def agrees(planned: Planned, result: Result, folder: Path) -> bool | None:
    """Whether what is stored in the results ``folder`` has the same scores; None where there is nothing stored."""
    path = store.run_path(folder, planned.key)
    return store.load(path).scores == result.scores if path.is_file() else None


def _all(suite: Suite) -> list[Planned]:
    """Every run that the suite may come to."""
    grid = suite.learning_rates
    if not grid:
        reported = plan.reported(suite, None)
        return [*reported, *plan.repeated(suite, reported), *plan.baselines(suite, reported)]
    wider = plan.widened(grid)
    grids = {entry.label: wider for entry in suite.problems}
    tuning = plan.tuning(suite, grids)
    chosen = plan.reported(suite, None)
    reported = [plan.at_rate(run, lr) for run, lr in itertools.product(chosen, wider)]
    repeated = [plan.at_rate(run, lr) for run, lr in itertools.product(plan.repeated(suite, chosen), wider)]
    baselines = [plan.at_rate(run, lr) for run, lr in itertools.product(plan.baselines(suite, chosen), wider)]
    return [*tuning, *reported, *repeated, *baselines]
