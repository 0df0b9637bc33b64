"""One run of a suite by its key: to see it again, and that it gives the same."""

from pathlib import Path

from bench.run import result_file
from bench.run.training import Result, Training
from bench.suite import plan
from bench.suite.plan import Planned
from bench.suite.suite_file import Suite
from bench.suite.toml_table import SuiteError


def find(suite: Suite, key: str) -> Planned:
    """The run of ``suite`` whose key begins with ``key``, at whatever learning rate that may be tried.

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
    training = Training(planned.spec)
    training.run()
    return training.result


def agrees(planned: Planned, result: Result, folder: Path) -> bool | None:
    """Whether what is stored in the results ``folder`` has the same scores; None where there is nothing stored."""
    path = result_file.run_path(folder, planned.key)
    return result_file.load(path).scores == result.scores if path.is_file() else None


def _all(suite: Suite) -> list[Planned]:
    """Every run that the suite may come to."""
    if not suite.learning_rates:
        return _reported(suite, None)
    rates = suite.learning_rates if suite.searches else plan.widened(suite.learning_rates)
    found = plan.tuning(suite, {entry.label: rates for entry in suite.problems})
    found += plan.front(suite, {entry.label: rates for entry in suite.problems})
    return [*found, *(run for lr in rates for run in _reported(suite, lr))]


def _reported(suite: Suite, lr: float | None) -> list[Planned]:
    """All runs but those for tuning, at one learning rate; None is each problem's own."""
    reported = plan.reported_at(suite, lambda problem, balancer: lr)
    return [*reported, *plan.repeated(suite, reported), *plan.baselines(suite, reported)]
