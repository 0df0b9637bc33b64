"""Find one run of a suite by its key, do it again, and compare its scores with the stored ones."""

import glob
import math
from collections.abc import Sequence
from pathlib import Path

from bench.run import result_file
from bench.run.spec import provenance
from bench.run.training import RunResult, Training
from bench.suite import plan
from bench.suite.plan import Planned
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

from .run_job import NAMES


def find(suite: Suite, key: str, folder: Path) -> Planned:
    """Return the run of ``suite`` whose key begins with ``key``.

    A run that is stored in ``folder`` says what it is. Without one, all runs are searched that the suite leads to
    whatever the results are, and those at the learning rates of the grid and of its growth.

    Raises:
        SuiteError: no run has such a key, more than one has, or the stored run can't be done again as it was.
        BadFileError: the file of the stored run was damaged, or holds the result of another run.
    """
    paths = (folder / "runs").glob(f"{glob.escape(key)}*.parquet")
    matches: dict[str, Path | Planned] = {path.stem: path for path in paths}
    if not matches:
        matches = {run.key: run for run in _all(suite) if run.key.startswith(key)}
    if len(matches) > 1:
        raise SuiteError(
            f"{len(matches)} runs of {suite.name} have a key that begins with {key!r}; give more of its characters"
        )
    for match in matches.values():
        return _stored(suite, match) if isinstance(match, Path) else match
    raise SuiteError(
        f"no run of {suite.name} has a key that begins with {key!r}, and none is stored in {folder / 'runs'}. If an "
        "earlier report lists it, the suite, the code, the data or PyTorch may have changed since."
    )


def run(planned: Planned) -> RunResult:
    """Do the run in this process."""
    training = Training(planned.spec)
    training.run()
    return training.result


def stored(planned: Planned, folder: Path) -> RunResult | None:
    """Return the run's result that is stored in ``folder``; None if there is none.

    Raises:
        BadFileError: the file was damaged, or holds the result of another run.
    """
    path = result_file.run_path(folder, planned.key)
    return result_file.load(path) if path.is_file() else None


def agree(one: RunResult, other: RunResult) -> bool:
    """Return whether two results have the same scores; a metric that is NaN in both counts as the same."""
    return _comparable(one) == _comparable(other)


def _comparable(result: RunResult) -> list[object]:
    """Return the scores with None in place of NaN, which equals nothing, not even itself."""
    return [
        (score.checkpoint, score.split, {name: None if math.isnan(x) else x for name, x in score.metrics.items()})
        for score in result.scores
    ]


def _stored(suite: Suite, path: Path) -> Planned:
    """Return the run whose result is in ``path``, with the suite's labels of its problem and balancer.

    They are the registered names if the suite has been edited since, or has the run for a result alone.
    """
    spec, depended_on = result_file.load_spec(path)
    try:
        here = provenance(spec)
    except ValueError as error:
        raise SuiteError(f"the run {path.stem} can't be done again: {error}") from error
    if changed := [NAMES[what] for what, value in depended_on.items() if here[what] != value]:
        raise SuiteError(
            f"the run {path.stem} can't be done again as it was: {' and '.join(changed)} changed since it was stored"
        )
    of_suite = (run for run in _at(suite, [spec.lr]) if run.spec == spec)
    return next(of_suite, Planned(spec.problem, spec.method.name, spec))


def _all(suite: Suite) -> list[Planned]:
    """Return every run that the suite can lead to, apart from learning rates around those of another balancer."""
    if not suite.learning_rates:
        return _reported(suite, None)
    trials = (lr for entry in suite.balancers for problem in suite.problems for lr in entry.trial_rates(problem.label))
    return _at(suite, sorted({*plan.possible_rates(suite), *trials}))


def _at(suite: Suite, rates: Sequence[float]) -> list[Planned]:
    """Return the runs of all phases at these learning rates, and all runs of trials."""
    grids = {entry.label: rates for entry in suite.problems}
    cells = [(problem.label, entry.label) for problem in suite.problems for entry in suite.balancers_on(problem.label)]
    runs = plan.tuning(suite, grids, dict.fromkeys(cells, rates))
    if suite.searches:
        trials = [lr for lr in rates if lr in suite.learning_rates]
        runs += plan.front(suite, dict.fromkeys(grids, trials))
    return [*runs, *(run for lr in rates for run in _reported(suite, lr))]


def _reported(suite: Suite, lr: float | None) -> list[Planned]:
    """Return all runs except tuning runs and the front, at learning rate ``lr``; None means each problem's own rate."""
    reported = plan.reported_at(suite, lambda problem, balancer: lr)
    again = plan.retuning(suite, reported)
    return [*reported, *again, *plan.repeated(suite, reported), *plan.baselines(suite, reported)]
