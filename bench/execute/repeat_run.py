"""Find one run of a suite by its key, do it again, and compare its scores with the stored ones."""

import math
from pathlib import Path

from bench.run import result_file
from bench.run.training import RunResult, Training
from bench.suite import plan
from bench.suite.plan import Planned
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError


def find(suite: Suite, key: str) -> Planned:
    """Return the run of ``suite`` whose key begins with ``key``, among all learning rates that the suite can try.

    Raises:
        SuiteError: no run has such a key, or more than one has.
    """
    matches = {run.key: run for run in _all(suite) if run.key.startswith(key)}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        raise SuiteError(
            f"{len(matches)} runs of {suite.name} have a key that begins with {key!r}; give more of its characters"
        )
    raise SuiteError(
        f"no run of {suite.name} has a key that begins with {key!r}. If an earlier report lists it, the suite, the "
        "code, the data or PyTorch has changed since."
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


def _all(suite: Suite) -> list[Planned]:
    """Return every run that the suite can lead to."""
    if not suite.learning_rates:
        return _reported(suite, None)
    rates = plan.possible_rates(suite)
    cells = [(problem.label, entry.label) for problem in suite.problems for entry in suite.balancers_on(problem.label)]
    runs = plan.tuning(suite, {entry.label: rates for entry in suite.problems}, dict.fromkeys(cells, rates))
    if suite.searches:
        runs += plan.front(suite, {entry.label: rates for entry in suite.problems})
    trials = {lr for entry in suite.balancers for problem in suite.problems for lr in entry.trial_rates(problem.label)}
    return [*runs, *(run for lr in sorted({*rates, *trials}) for run in _reported(suite, lr))]


def _reported(suite: Suite, lr: float | None) -> list[Planned]:
    """Return all runs except tuning runs and the front, at learning rate ``lr``; None means each problem's own rate."""
    reported = plan.reported_at(suite, lambda problem, balancer: lr)
    again = plan.retuning(suite, reported)
    return [*reported, *again, *plan.repeated(suite, reported), *plan.baselines(suite, reported)]
