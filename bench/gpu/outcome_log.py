"""A plugin of pytest that saves each test's outcome at once, and leaves out the tests that passed before.

::

    python -m pytest -p bench.gpu.outcome_log --outcomes outcomes.jsonl ...
"""

import json
from pathlib import Path

import pytest

OPTION = "--outcomes"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, required=True, help="file with a line of JSON for each test")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_OutcomeLog(Path(config.getoption(OPTION))))


def load(path: Path) -> dict[str, dict[str, object]]:
    """Return the last outcome of each test, by its id: ``test``, ``outcome``, ``seconds``, ``reason``.

    A line that is not whole, because its process was killed, is left out.
    """
    outcomes = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            outcome = json.loads(line)
        except ValueError:
            continue
        outcomes[outcome["test"]] = outcome
    return outcomes


class _OutcomeLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed = {test for test, outcome in load(path).items() if outcome["outcome"] == "passed"}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        again = [item for item in items if item.nodeid in self.passed]
        items[:] = [item for item in items if item.nodeid not in self.passed]
        config.hook.pytest_deselected(items=again)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._write(report.nodeid, report.outcome, 0.0, report.longrepr)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.nodeid, report.outcome, report.duration, report.longrepr)

    def _write(self, test: str, outcome: str, seconds: float, problem: object) -> None:
        reason = problem[2] if isinstance(problem, tuple) else _cause(str(problem or ""))
        line = {"test": test, "outcome": outcome, "seconds": round(seconds, 3), "reason": reason}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _cause(text: str) -> str:
    """Return the first line of the error in a test's traceback, which pytest begins with an ``E``."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return next(iter(errors), text.strip().splitlines()[-1] if text.strip() else "")[:300]
