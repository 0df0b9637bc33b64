"""The time left of a suite is that of the runs that are left, also where a suite is resumed."""

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from bench.execute import progress, run_suite
from bench.execute.progress import Progress
from bench.execute.workforce import Workforce
from bench.suite.suite_entries import Suite

pytestmark = pytest.mark.xdist_group("processes")


def test_stored_runs_of_later_stages_are_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    output = io.StringIO()
    with Progress(Console(file=output, width=200)) as line:
        line.expect(10, stored=6)
        line.expect(20, stored=15)
        line.begin("learning rates", 4, lambda: (1, 1), reused=6)
        now = 11.0
        line.finish()
        now = 44.0
        for _ in range(3):
            line.finish()
        line.begin("reported runs", 5, lambda: (6, 2), reused=15)
    assert output.getvalue().splitlines() == [
        "learning rates: 6 of 30 done, 1 running on 1 worker, 0 failed",
        "learning rates: 7 of 30 done, 1 running on 1 worker, 0 failed, 5.5 a minute, 1:28 left",  # 8 runs of 11 s
        "learning rates: 8 of 30 done, 1 running on 1 worker, 0 failed, 2.7 a minute, 2:34 left",  # 7 runs of 22 s
        "learning rates: 10 of 30 done, 0 running on 1 worker, 0 failed, 5.5 a minute, 0:55 left",
        "reported runs: 25 of 30 done, 5 running on 2 workers, 0 failed, 5.5 a minute, 0:55 left",
    ]


def test_a_stage_with_more_runs_than_expected_raises_the_total() -> None:
    output = io.StringIO()
    with Progress(Console(file=output, width=200)) as line:
        line.expect(5, stored=1)
        line.begin("repeated runs", 6, lambda: (2, 2), reused=1)
    assert output.getvalue() == "repeated runs: 1 of 7 done, 2 running on 2 workers, 0 failed\n"


@pytest.mark.slow
def test_a_resumed_suite_forecasts_what_is_left(make_suite: Callable[..., Suite], tmp_path: Path) -> None:
    """The stored tuning runs choose the learning rates, by which the reported runs that are stored are known."""
    loaded = make_suite(learning_rates=[0.001, 0.01, 1.0], tuning=[11], rounds=1)
    folder = tmp_path / "results"
    run_suite.run(loaded, folder, Workforce.of(0), Console(quiet=True))
    runs = pd.read_parquet(folder / "tables/runs.parquet").query("phase == 'reported' and balancer == 'gradnorm'")
    for key in runs["key"].iloc[:2]:
        (folder / "runs" / f"{key}.parquet").unlink()
    next(path for path in (folder / "costs").glob("*.json") if path.stem != "machine").unlink()
    output = io.StringIO()
    summary = run_suite.run(loaded, folder, Workforce.of(0), Console(file=output, width=200))
    assert summary.computed == 2
    forecast, first, *_, last = output.getvalue().splitlines()
    assert forecast.startswith("2 runs and 1 step timing: ")
    done, total = (int(number) for number in first.removeprefix("reported runs: ").split(" done")[0].split(" of "))
    assert total - done == 2 + 2  # the runs, and two step timings, of which one is stored
    assert last == f"step timing: {total} of {total} done, 0 running on 1 worker, 0 failed"
