"""Test a whole suite: which runs are done, which are not done again, and what its tables hold."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from filelock import FileLock
from rich.console import Console

from bench.cli import run_and_report
from bench.execute import run_suite
from bench.execute.job import EngineError
from bench.execute.run_suite import Summary
from bench.execute.workforce import Workforce
from bench.report import report_page
from bench.run.result_store import ResultStore
from bench.run.training import RunResult
from bench.suite import plan, suite_file
from bench.suite.claimed_folder import BusyError
from bench.suite.plan import Planned
from bench.suite.result_tables import Done
from bench.suite.suite_entries import Suite

pytestmark = pytest.mark.xdist_group("processes")

MakeSuite = Callable[..., Suite]
Run = Callable[..., Summary]
TREE = Path(__file__).resolve().parents[3]
PLUGINS = [Path(__file__).parents[1] / "plugins" / name for name in ("small.py", "methods.py")]
UNTIMED = ("problems", "runs", "scores", "curves", "trajectory", "dynamics", "selection")


@pytest.fixture
def run(make_suite: MakeSuite, tmp_path: Path) -> Run:
    """Return a function that runs such a suite in this process, always in the same folder."""

    def run(jobs: int = 0, **parts: Any) -> Summary:
        with Workforce.of(jobs) as workforce:
            return run_suite.run(make_suite(**parts), tmp_path / "results", workforce, Console(quiet=True))

    return run


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], pd.DataFrame]:
    """Return a function that reads a table that `run` wrote."""
    return lambda name: pd.read_parquet(tmp_path / "results" / "tables" / f"{name}.parquet")


Table = Callable[[str], pd.DataFrame]


def test_a_suite_ends_in_tables(run: Run, table: Table, tmp_path: Path) -> None:
    summary = run(learning_rates=[0.003, 0.01, 0.03], problems=[{"name": "small", "steps": 220}], rounds=3)
    runs, selection = table("runs"), table("selection")
    tuned = len(selection)
    assert summary.computed == len(runs) == tuned * 2 + 2 * 3
    assert summary.failed == []
    assert set(runs["status"]) == {"ok"}
    chosen = selection[selection["chosen"]].set_index("balancer")["lr"]
    reported = runs[runs["phase"] == "reported"]
    assert all(chosen[row.balancer] == row.lr for row in reported.itertuples())
    scores = table("scores")
    assert not scores["imputed"].any()
    assert set(scores.loc[scores["phase"] == "tuning", "split"]) == {"validation"}
    test = scores[(scores["split"] == "test") & (scores["metric"] == "error")]
    assert len(test) == 2 * 3 * 2
    trajectory = table("trajectory").groupby("key")["step"]
    assert (trajectory.nunique() == 200).all()
    assert (trajectory.min() == 1).all()
    assert (trajectory.max() == 220).all()
    costs = table("costs")
    assert list(costs["part"]) == ["forward", "backward", "optimizer", "step"] * 2
    assert costs.loc[costs["part"] == "step", "flops"].gt(0).all()
    for name in (*UNTIMED, "costs"):
        csv = pd.read_csv(tmp_path / "results" / "tables" / f"{name}.csv")
        assert list(csv.columns) == list(table(name).columns)
        assert len(csv) == len(table(name))


@pytest.mark.slow
def test_runs_that_choose_the_repeated_runs_rates_are_in_the_table_of_runs_alone(
    suite_text: Callable[..., str], table: Table, tmp_path: Path
) -> None:
    text = suite_text(learning_rates=[0.003, 0.01], tuning=[11], reported=[1], balancers=[{"name": "equal"}])
    path = tmp_path / "mine.toml"
    text = text.replace("[seeds]", "[seeds]\nrepeated = [4]\nretuning = [21, 22]")
    path.write_text(text.replace("[cost]", "finer = 2\n[cost]"))
    with Workforce.of(0) as here:
        summary = run_suite.run(suite_file.load(path), tmp_path / "results", here, Console(quiet=True))
    runs = table("runs")
    assert summary.computed == len(runs) == runs["key"].nunique()
    assert {phase: set(rows["seed"]) for phase, rows in runs.groupby("phase")} == {
        "tuning": {11},
        "reported": {1},
        "repeated": {4},
        "retuning": {21, 22},
    }
    assert set(table("scores")["seed"]) == {1, 4, 11}
    assert set(table("leaderboard")["seeds"]) == {1}
    assert re.search(r"retuning</td>\s*<td[^>]*>0", report_page.write(tmp_path / "results").read_text())


def test_searched_weights_in_a_suite_with_a_grid_have_no_front_in_the_forecast(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = {"name": "static", "label": "searched", "options": {"weights": "search"}}
    suite = make_suite(balancers=[{"name": "equal"}, searched])
    expected: list[str] = []

    def stop(work: object, tuning: object, fresh: list[Planned], costs: object) -> None:
        expected.extend(run.spec.phase for run in fresh)
        raise EngineError("stopped")

    monkeypatch.setattr("bench.execute.run_suite._Work.foretell", stop)
    with pytest.raises(EngineError, match="stopped"):
        run_suite.run(suite, tmp_path / "results", Workforce.of(0), Console(quiet=True))
    assert expected == ["reported"] * 6


@pytest.mark.slow
def test_what_was_done_is_not_done_again(run: Run) -> None:
    edge_free = {"learning_rates": [0.001, 0.01, 1.0]}
    first = run(**edge_free)
    assert first.reused == 0
    again = run(**edge_free)
    assert (again.computed, again.reused) == (0, first.computed)


@pytest.mark.slow
def test_one_line_says_how_far_it_is(make_suite: MakeSuite, tmp_path: Path) -> None:
    output = io.StringIO()
    methods = [{"name": "equal"}, {"name": "failing"}]
    loaded = make_suite(learning_rates=None, balancers=methods, rounds=1)
    run_suite.run(loaded, tmp_path / "results", Workforce.of(0), Console(file=output, width=200))
    forecast, *lines = output.getvalue().splitlines()
    assert re.fullmatch(r"6 runs and 2 step timings: about \d+ seconds?, estimated from a few steps .*", forecast)
    assert lines[0] == "reported runs: 0 of 8 done, 1 running on 1 worker, 0 failed"
    ended = r"reported runs: 6 of 8 done, 0 running on 1 worker, 3 failed, \S+ a (second|minute), 0:0\d left"
    assert re.fullmatch(ended, lines[1])
    assert lines[1].endswith(" left")
    assert "step timing: 8 of 8 done, 0 running on 1 worker, 4 failed" in lines  # what failed comes after


@pytest.mark.slow
def test_a_changed_option_reruns_what_it_touches(run: Run) -> None:
    parts = {"learning_rates": None, "reported": [1, 2, 3, 4]}
    methods = [{"name": "equal"}, {"name": "gradnorm", "options": {"alpha": 0.5}}]
    assert run(**parts, balancers=methods).computed == 8
    methods[1] = {"name": "gradnorm", "options": {"alpha": 0.6}}
    assert run(**parts, balancers=methods).computed == 4
    assert run(**parts, balancers=[*methods, {"name": "uncertainty"}]).computed == 4
    assert run(**{**parts, "reported": [1, 2, 3, 4, 5]}, balancers=methods).computed == 2
    assert run(**parts, problems=[{"name": "small", "options": {"scales": [1, 2]}}], balancers=methods).computed == 8


@pytest.mark.slow
def test_without_a_grid_the_problems_own_rate_is_used(run: Run, table: Table, tmp_path: Path) -> None:
    run(learning_rates=[0.001, 0.003])
    assert (tmp_path / "results/tables/selection.parquet").is_file()
    run(learning_rates=None)
    assert set(table("runs")["phase"]) == {"reported"}
    assert set(table("runs")["lr"]) == {0.01}
    assert not (tmp_path / "results/tables/selection.parquet").exists()  # tables of the earlier suite are removed


@pytest.mark.slow
def test_a_best_rate_at_the_edge_extends_the_grid_once_for_all(run: Run, table: Table) -> None:
    """The largest of these rates is far too small, so that every larger one scores better."""
    run(learning_rates=[1e-6, 1e-5], problems=[{"name": "small", "label": "p"}])
    selection = table("selection")
    assert selection.groupby("balancer")["lr"].agg(list).to_dict() == {
        "equal": [1e-6, 1e-5, 1e-4],
        "gradnorm": [1e-6, 1e-5, 1e-4],
    }
    assert set(selection.loc[selection["chosen"], "lr"]) == {1e-4}
    assert set(table("runs").query("phase == 'reported'")["lr"]) == {1e-4}


@pytest.mark.parametrize(
    ("best", "grid"),
    [
        ({"x": 0.1, "y": 0.1}, (0.05, 0.1, 0.3)),
        ({"x": 0.3, "y": 0.1}, (0.05, 0.1, 0.3, 0.9)),
        ({"x": 0.05, "y": 0.3}, (0.025, 0.05, 0.1, 0.3, 0.9)),
    ],
)
def test_one_method_at_an_edge_is_enough(best: dict[str, float], grid: tuple[float, ...]) -> None:
    selection = pd.DataFrame(
        [
            ("p", name, lr, -1.0 * (lr == best[name]), lr == best[name])
            for name in ("x", "y")
            for lr in (0.05, 0.1, 0.3)
        ],
        columns=["problem", "balancer", "lr", "mean_validation_score", "chosen"],
    )
    assert tuple(plan.extended({"p": (0.05, 0.1, 0.3)}, selection)["p"]) == pytest.approx(grid)


def test_a_method_that_always_fails_does_not_extend_the_grid() -> None:
    selection = pd.DataFrame(
        [
            ("p", "x", 0.05, 2.0, True),
            ("p", "x", 0.1, 2.0, False),
            ("p", "y", 0.05, 1.0, False),
            ("p", "y", 0.1, 0, True),
        ],
        columns=["problem", "balancer", "lr", "mean_validation_score", "chosen"],
    )
    assert tuple(plan.extended({"p": (0.05, 0.1)}, selection)["p"]) == (0.05, 0.1, 0.2)
    only_x = selection[selection["balancer"] == "x"]
    assert tuple(plan.extended({"p": (0.05, 0.1)}, only_x)["p"]) == (0.05, 0.1)


@pytest.mark.slow
def test_equal_specifications_share_a_result_and_keep_their_rows(run: Run, table: Table) -> None:
    methods = [{"name": "equal"}, {"name": "equal", "label": "equal again"}, {"name": "also-equal"}]
    assert run(learning_rates=None, balancers=methods).computed == 6
    runs = table("runs").set_index(["balancer", "seed"])["key"]
    assert (runs["equal"] == runs["equal again"]).all()
    assert not set(runs["equal"]) & set(runs["also-equal"])
    for name in ("scores", "curves", "trajectory", "dynamics"):
        rows = {
            balancer: of_balancer.drop(columns=["key", "balancer"]).reset_index(drop=True)
            for balancer, of_balancer in table(name).groupby("balancer")
        }
        pd.testing.assert_frame_equal(rows["equal"], rows["equal again"], check_exact=True)
        pd.testing.assert_frame_equal(rows["equal"], rows["also-equal"], check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("constant", [True, False])
def test_failed_runs_are_reported_with_the_worse_score(run: Run, table: Table, constant: bool) -> None:
    methods = [
        {"name": "equal"},
        {"name": "failing", "options": {"after": 5}},
        {"name": "diverging", "options": {"after": 4}},
    ]
    problem = {"name": "small", "steps": 60, "options": {"constant": constant}}
    summary = run(problems=[problem], balancers=methods, learning_rates=[0.003, 0.01], rounds=2)
    runs = table("runs").set_index("balancer")
    assert set(runs.loc["failing", "status"]) == {"failed"}
    assert runs.loc["failing", "reason"].str.startswith("RuntimeError: this method gave up").all()
    assert runs.loc["diverging", "reason"].str.startswith("DivergenceError: the loss of a is nan").all()
    assert set(runs.loc["equal", "status"]) == {"ok"}
    assert {one.planned.balancer for one in summary.failed} == {"failing", "diverging"}
    test = table("scores").query("split == 'test' and metric == 'error'")
    equal = test[test["balancer"] == "equal"]
    failed = test[test["balancer"] != "equal"]
    assert failed["imputed"].all()
    assert not equal["imputed"].any()
    worst = equal.loc[equal["checkpoint"] == "last", "value"].max()
    if constant:
        assert (failed["value"] > worst).all()  # predicting a constant is worse than 60 steps of training
        assert failed.groupby("seed")["value"].nunique().eq(1).all()
    else:
        assert (failed["value"] == worst).all()
    assert set(table("costs")["balancer"]) == {"equal", "diverging"}


@pytest.mark.slow
def test_a_file_edited_on_the_way_stops_the_suite(make_suite: MakeSuite, tmp_path: Path) -> None:
    """A worker that starts later would import the newer file, whose results have other keys."""
    source = (
        "from balancers import EqualWeighting, register\n\n"
        "@register\nclass Own(EqualWeighting):\n    name = 'edited'\n    summary = 'A test.'\n"
    )
    (tmp_path / "own.py").write_text(source)
    loaded = make_suite(plugins=[*PLUGINS, "own.py"], balancers=[{"name": "edited"}], learning_rates=None)
    runs = plan.reported(loaded, None)
    assert len({run.key for run in runs}) == 3
    (tmp_path / "own.py").write_text(source + "    changed = True\n")
    store = ResultStore(tmp_path / "results", print)
    with Workforce.of(2) as workforce, pytest.raises(EngineError, match="differs from the client's; start the suite"):
        list(workforce.do(runs, store, loaded.plugins))
    assert not list((tmp_path / "results").rglob("*.parquet"))


def test_a_tuning_run_that_fails_leaves_no_score_missing(run: Run) -> None:
    summary = run(learning_rates=[0.003, 1e30], tuning=[11], balancers=[{"name": "equal"}], reported=[1])
    assert 1e30 in {one.planned.spec.lr for one in summary.failed}
    assert summary.failed_tuning == summary.failed
    assert not summary.lacks_scores


def test_only_a_run_whose_score_is_reported_fails_the_command(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite = make_suite()
    failed = RunResult(status="failed", reason="no luck")
    planned = (plan.tuning(suite, plan.grids(suite))[0], plan.reported(suite, None)[0])
    tuning, reported = (Done(one, failed, suite.problems[0]) for one in planned)
    monkeypatch.setattr(run_and_report, "report", lambda folder: None)

    def exit_code(*runs: Done) -> int:
        monkeypatch.setattr(run_suite, "run", lambda *_: Summary(2, 0, list(runs)))
        try:
            run_and_report.run(suite, tmp_path, Workforce.of(0), Console(quiet=True), tmp_path / "mine.toml")
        except typer.Exit as end:
            return end.exit_code
        return 0

    assert (exit_code(), exit_code(tuning), exit_code(tuning, reported)) == (0, 0, 1)


def test_a_damaged_micro_benchmark_is_told_at_the_end(make_suite: MakeSuite, tmp_path: Path) -> None:
    (tmp_path / "micro.json").write_text("{")
    output = io.StringIO()
    suite = make_suite(learning_rates=None, balancers=[{"name": "equal"}], reported=[1])
    run_suite.run(suite, tmp_path, Workforce.of(0), Console(file=output, width=300))
    assert "micro.json is not a result of bench/cost/gradient_norm.py: the report lacks the mic" in output.getvalue()
    assert (tmp_path / "suite.toml").is_file()
    assert not (tmp_path / "tables" / "micro.csv").exists()


def test_a_folder_in_use_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with FileLock(tmp_path / "results/.lock"), pytest.raises(BusyError, match="another process"):
        run()


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
SLOW = {
    "balancers": [{"name": "equal"}, {"name": "slow", "options": {"seconds": 0.005}}, {"name": "random-weights"}],
    "problems": [{"name": "small", "steps": 60}],
    "learning_rates": [0.001, 0.003, 0.01],
    "reported": [1, 2],
}


def heed_ctrl_c() -> None:
    """Restore the default reaction to Ctrl-C, which a background job ignores, and so would the processes it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench", "run", "mine.toml", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(TREE)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=heed_ctrl_c,
    )


def finished_runs(folder: Path) -> int:
    return len(list((folder / "results/mine/runs").glob("*.parquet")))


def processes_of(parent: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in children.stdout.split()]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> int:
    """Stop a started suite, wait until its workers have ended, and return its exit code."""
    workers = processes_of(process.pid)
    process.send_signal(how)
    code = process.wait(timeout=30)
    wait_until(lambda: not any(map(is_alive, workers)), seconds=10)
    return code


@pytest.mark.slow
@needs_proc
def test_killed_at_any_moment_it_goes_on_to_the_same_tables(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    (tmp_path / "mine.toml").write_text(suite_text(**SLOW))
    moments = random.Random(1)
    for _ in range(2):
        goal = finished_runs(tmp_path) + moments.randint(1, 5)
        process = start(tmp_path)
        while finished_runs(tmp_path) < goal:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        assert stop(process, signal.SIGKILL) == -signal.SIGKILL
    results = tmp_path / "results/mine"
    (results / "runs/half.parquet.1.unfinished").write_bytes(b"half")
    loaded = suite_file.load(tmp_path / "mine.toml")
    with Workforce.of(1) as workforce:
        resumed = run_suite.run(loaded, results, workforce, Console(quiet=True))
    assert resumed.reused > 1
    assert not list(results.rglob("*.unfinished"))

    with Workforce.of(1) as workforce:
        undisturbed = run_suite.run(loaded, tmp_path / "undisturbed", workforce, Console(quiet=True))
    assert undisturbed.computed == resumed.computed + resumed.reused
    for name in UNTIMED:
        for ending in ("csv", "parquet"):
            path = Path("tables", f"{name}.{ending}")
            assert (results / path).read_bytes() == (tmp_path / "undisturbed" / path).read_bytes(), path


@pytest.mark.slow
@needs_proc
def test_ctrl_c_stops_at_once_and_keeps_what_is_done(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    slower = {"name": "slow", "options": {"seconds": 0.1}}
    (tmp_path / "mine.toml").write_text(suite_text(**SLOW | {"balancers": [{"name": "equal"}, slower]}))
    process = start(tmp_path)
    wait_until(lambda: finished_runs(tmp_path) >= 2)
    assert stop(process, signal.SIGINT) == 130
    assert finished_runs(tmp_path) >= 2
