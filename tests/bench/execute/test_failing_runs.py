"""Test suites with methods that raise, diverge or kill their process: they are scored worst, all others normally."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.execute import run_suite
from bench.execute.workforce import Workforce
from bench.suite import plan
from bench.suite.suite_entries import StatedLimits

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

MakeSuite = Callable[..., Any]
KILLED = "its process was killed by signal 9; perhaps it ran out of memory, and again when it ran alone"
METHODS = [
    {"name": "equal"},
    {"name": "failing"},
    {"name": "diverging"},
    {"name": "killing"},
    {"name": "uncertainty"},
]
ONCE = """
import os, signal
from pathlib import Path
from balancers import EqualWeighting, register

@register
class KilledOnce(EqualWeighting):
    name = "killed-once"
    summary = "Its process is killed the first time."

    def weigh(self, state):
        mark = Path({mark!r})
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().weigh(state)
"""


@pytest.fixture
def results(make_suite: MakeSuite, tmp_path: Path) -> Path:
    """Return the results folder of such a suite, run by the command, which exits with 1."""
    problems = [{"name": "small", "steps": 60}]
    make_suite(balancers=METHODS, problems=problems, learning_rates=None, reported=[1], rounds=2)
    command = ["run", str(tmp_path / "mine.toml"), "--results", str(tmp_path), "--jobs", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output
    assert f"killing on small, 1 run: {KILLED}" in done.output
    assert "failing on small, 1 run: RuntimeError: this method gave up" in done.output
    assert "diverging on small, 1 run: DivergenceError" in done.output
    assert "5 runs computed, 0 already stored, 3 failed" in done.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "0 runs computed, 5 already stored, 3 failed" in again.output
    return tmp_path / "mine"


def test_everything_else_is_reported_and_the_failed_are_scored_worst(results):
    runs = pd.read_parquet(results / "tables" / "runs.parquet").set_index("balancer")
    assert set(runs.loc[["equal", "uncertainty"], "status"]) == {"ok"}
    assert set(runs.loc[["failing", "diverging", "killing"], "status"]) == {"failed"}
    assert runs.loc["killing", "reason"] == KILLED
    assert "DivergenceError" in runs.loc["diverging", "reason"]

    scores = pd.read_parquet(results / "tables" / "scores.parquet")
    last = scores.query("split == 'test' and metric == 'error' and checkpoint == 'last'").set_index("balancer")["value"]
    assert last.notna().all()
    assert last["killing"].min() >= last[["equal", "uncertainty"]].max()
    costs = pd.read_parquet(results / "tables" / "costs.parquet")
    assert {"equal", "uncertainty"} <= set(costs["balancer"])
    assert "killing" not in set(costs["balancer"])
    assert KILLED in (results / "report.html").read_text()


def test_a_process_killed_once_costs_a_repetition_and_no_more(make_suite, tmp_path):
    (tmp_path / "once.py").write_text(ONCE.format(mark=str(tmp_path / "killed")))
    methods = [{"name": "equal"}, {"name": "killed-once"}, {"name": "uncertainty"}]
    plugins = [*Path(__file__).parents[1].glob("plugins/small.py"), tmp_path / "once.py"]
    loaded = make_suite(balancers=methods, learning_rates=None, plugins=plugins)
    with Workforce.of(2) as workforce:
        summary = run_suite.run(loaded, tmp_path / "results", workforce, Console(quiet=True))
    assert (tmp_path / "killed").exists()
    assert summary.computed == 9
    assert summary.failed == []


@pytest.mark.parametrize(("method", "limits"), [("hanging", StatedLimits(8.0)), ("hoarding", StatedLimits(None, 0.6))])
def test_first_steps_that_exceed_the_suites_limits_are_given_up(make_suite, method, limits):
    methods = [{"name": method, "options": {"after": 0}}]
    loaded = make_suite(balancers=methods, problems=[{"name": "small", "steps": 60}], learning_rates=None)
    [run, *_] = plan.reported(loaded, None)
    with Workforce.of(1) as workforce:
        assert workforce.paces([run], loaded.plugins, limits) == [None]
