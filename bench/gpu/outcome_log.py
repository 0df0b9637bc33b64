"""A plugin of pytest that saves each test's outcome at once, and leaves out the tests that passed before.

::

    python -m pytest -p bench.gpu.outcome_log --outcomes outcomes.jsonl --code HASH ...

Outcomes of other code than ``HASH`` don't count. A test counts as failed while it runs, in case its process is killed.
Tests that failed before run last, the one that failed last at the end.
"""

import json
from pathlib import Path

import pytest

OPTION, CODE = "--outcomes", "--code"
INTERRUPTED = "its process ended while it ran: it was killed, or its time was up"
"""Why a test failed that has no other reason."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, required=True, help="file with lines of JSON, the last of each test being its outcome")
    parser.addoption(CODE, required=True, help="hash of the code")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_OutcomeLog(Path(config.getoption(OPTION)), config.getoption(CODE)))


def load(path: Path, code: str) -> dict[str, dict[str, object]]:
    """Return the last outcome of each test, by its id: ``test``, ``outcome``, ``seconds``, ``reason``, ``code``.

    The test that ran last is at the end. Outcomes of other code are left out, and so is a line that is not whole,
    because its process was killed.
    """
    outcomes: dict[str, dict[str, object]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            outcome = json.loads(line)
        except ValueError:
            continue
        outcomes.pop(outcome["test"], None)
        if outcome["code"] == code:
            outcomes[outcome["test"]] = outcome
    return outcomes


class _OutcomeLog:
    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = path, code
        outcomes = load(path, code)
        self.passed = {test for test, outcome in outcomes.items() if outcome["outcome"] == "passed"}
        failed = [test for test, outcome in outcomes.items() if outcome["outcome"] == "failed"]
        self.failed = {test: place for place, test in enumerate(failed, 1)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        again = [item for item in items if item.nodeid in self.passed]
        left = [item for item in items if item.nodeid not in self.passed]
        items[:] = sorted(left, key=lambda item: self.failed.get(item.nodeid, 0))
        config.hook.pytest_deselected(items=again)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._write(report.nodeid, report.outcome, 0.0, report.longrepr)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, "failed", 0.0, INTERRUPTED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.nodeid, report.outcome, report.duration, report.longrepr)

    def _write(self, test: str, outcome: str, seconds: float, problem: object) -> None:
        reason = problem[2] if isinstance(problem, tuple) else _cause(str(problem or ""))
        line = {"test": test, "outcome": outcome, "seconds": round(seconds, 3), "reason": reason, "code": self.code}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _cause(text: str) -> str:
    """Return the first line of the error in a test's traceback, which pytest begins with an ``E``."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return next(iter(errors), text.strip().splitlines()[-1] if text.strip() else "")[:300]
