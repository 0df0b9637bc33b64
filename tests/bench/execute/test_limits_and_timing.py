"""A run is given up by what its own computer needs, a step that hangs is a failure, and a busy computer is told of."""

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from bench.execute import run_job, run_suite, workforce
from bench.execute.job import (
    CannotRunError,
    Ending,
    EngineError,
    Job,
    OtherVersionError,
    Raised,
    TookTooLong,
    WorkerLost,
)
from bench.execute.run_job import FailedStart, PortableRun
from bench.execute.run_suite import NotDoneError
from bench.execute.this_process import InThisProcess
from bench.execute.workforce import StepFailedError, WorkerLostError, Workforce
from bench.run.pace import Pace
from bench.suite import plan
from bench.suite.suite_entries import Suite

MakeSuite = Callable[..., Suite]


class Ends(InThisProcess):
    """An engine on which every attempt ends alike."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.ending = ending
        self.limits: list[float | None] = []

    def next(self) -> tuple[Job, Ending]:
        job = self._todo.popleft()
        self.limits.append(job.limits.seconds)
        return job, self.ending


def test_the_time_limit_is_twenty_times_what_a_run_takes_here(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan.reported(make_suite(), None)[0]
    pace = Pace(load=1.0, prepare=2.0, step=0.5, evaluation=0.25)
    monkeypatch.setattr(run_job, "first_steps", lambda job: pace)
    assert run_job.time_limit(PortableRun.of(run, [])) == pytest.approx(20 * (1.0 + pace.run(run.spec)))
    monkeypatch.setattr(run_job, "first_steps", lambda job: FailedStart("no luck"))
    assert run_job.time_limit(PortableRun.of(run, [])) == 0


def test_a_run_has_the_limit_of_its_forecast_and_a_way_to_ask_for_more(make_suite: MakeSuite) -> None:
    loaded = make_suite()
    runs = plan.reported(loaded, None)[:3]
    engine = Ends(TookTooLong(1.0))
    seconds = iter([None, 1.0, 10.0])
    ends = list(Workforce(engine).do(runs, None, forecast=lambda run: next(seconds)))  # type: ignore[arg-type]
    assert sorted(engine.limits) == sorted([3600.0, 60.0, 200.0] * 2)
    assert all(end.not_done for end in ends)


def test_a_step_that_hangs_has_failed_and_a_lost_worker_has_not(make_suite: MakeSuite) -> None:
    run = plan.costs(make_suite(rounds=1))[0]
    hanging = Ends(TookTooLong(workforce.WITHOUT_FORECAST))
    with pytest.raises(StepFailedError, match="it took longer than 3600 s, 2 times"):
        Workforce(hanging).step_cost(run, 1)
    assert hanging.limits == [3600.0] * 2
    with pytest.raises(WorkerLostError):
        Workforce(Ends(WorkerLost(1))).step_cost(run, 1)


def test_a_run_on_a_computer_that_has_lost_its_gpu_is_not_stored_as_failed(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job.torch.cuda, "is_available", lambda: False)
    run = plan.reported(make_suite(), None)[0]
    job = PortableRun.of(replace(run, spec=replace(run.spec, device="cuda")), [])
    for work in (run_job.do, run_job.first_steps):
        with pytest.raises(CannotRunError, match="the suite's device is cuda, but PyTorch finds no CUDA device"):
            work(job)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CannotRunError("data.csv is missing"), "data.csv is missing"),
        (
            OtherVersionError("the data differ from the client's"),
            "the data differ from the client's; start the suite again",
        ),
    ],
)
def test_only_a_file_edited_on_the_way_asks_for_another_start(
    make_suite: MakeSuite, error: CannotRunError, said: str
) -> None:
    runs = plan.reported(make_suite(), None)[:1]
    with pytest.raises(EngineError) as ended:
        list(Workforce(Ends(Raised(error))).do(runs, None))  # type: ignore[arg-type]
    assert str(ended.value) == said


@pytest.mark.slow
@pytest.mark.parametrize(("busy", "told"), [(1.34, True), (0.1, False)])
def test_a_busy_computer_that_times_steps_is_told_of(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: float, told: bool
) -> None:
    monkeypatch.setattr(run_job, "busy_cores", lambda: busy)
    output = io.StringIO()
    with Workforce.of(0) as here:
        run_suite.run(make_suite(learning_rates=None, rounds=1), tmp_path, here, Console(file=output, width=200))
    sentence = "steps are timed while other programs use 1.3 cores: the times may be too long"
    assert (sentence in output.getvalue()) == told
    assert set(busy_cores(tmp_path)) == {busy if told else 0.0}


def busy_cores(folder: Path) -> "pd.Series[float]":
    return pd.read_parquet(folder / "tables" / "costs.parquet")["busy_cores"]


@pytest.mark.slow
def test_without_the_folder_of_costs_steps_are_timed_again_and_no_run_is(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = make_suite(learning_rates=None, rounds=1, reported=(1,))
    monkeypatch.setattr(run_job, "busy_cores", lambda: 2.0)
    with Workforce.of(0) as here:
        run_suite.run(suite, tmp_path, here, Console(quiet=True))
        monkeypatch.setattr(run_job, "busy_cores", lambda: 0.0)
        assert run_suite.run(suite, tmp_path, here, Console(quiet=True)).computed == 0
        assert set(busy_cores(tmp_path)) == {2.0}
        shutil.rmtree(tmp_path / "costs")
        assert run_suite.run(suite, tmp_path, here, Console(quiet=True)).computed == 0
    assert set(busy_cores(tmp_path)) == {0.0}


@pytest.mark.slow
def test_steps_that_this_computer_cannot_time_are_named_and_timed_by_the_next_call(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = make_suite(rounds=1)
    first, *others = plan.costs(suite)
    absent, asked = {first.key}, []

    def step_cost(job: PortableRun, rounds: int) -> list[dict[str, object]]:
        asked.append(job.run.key)
        if job.run.key in absent:
            raise CannotRunError("its data are not here")
        return [{"step_ms": 1.0}]

    monkeypatch.setattr(run_job, "step_cost", step_cost)
    with Workforce.of(0) as here:
        with pytest.raises(NotDoneError) as caught:
            run_suite.step_costs(suite, tmp_path, here, Console(quiet=True))
        assert caught.value.runs == [(first, "its steps cannot be timed: its data are not here")]
        assert len(asked) == 1 + len(others)
        absent.clear()
        assert len(run_suite.step_costs(suite, tmp_path, here, Console(quiet=True))) == 1 + len(others)
    assert asked[1 + len(others) :] == [first.key]


@pytest.mark.slow
def test_why_a_step_is_not_timed_is_told_each_time(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_cost(job: PortableRun, rounds: int) -> list[dict[str, object]]:
        raise ValueError("no such layer")

    monkeypatch.setattr(run_job, "step_cost", step_cost)
    suite = make_suite(rounds=1)
    for _ in range(2):
        output = io.StringIO()
        with Workforce.of(0) as here:
            assert not run_suite.step_costs(suite, tmp_path, here, Console(file=output, width=300))
        for run in plan.costs(suite):
            sentence = f"the steps of {run.balancer} on {run.problem} are not timed: ValueError: no such layer (to try"
            assert sentence in output.getvalue()
    for named in re.findall(r"to try again, remove (.*)\)", output.getvalue()):
        (tmp_path / named).unlink()
    monkeypatch.setattr(run_job, "step_cost", lambda job, rounds: [{"step_ms": 1.0}])
    with Workforce.of(0) as here:
        assert len(run_suite.step_costs(suite, tmp_path, here, Console(quiet=True))) == len(plan.costs(suite))


@pytest.mark.slow
def test_the_cores_in_use_are_a_number_of_this_computer_s_cores() -> None:
    psutil = pytest.importorskip("psutil")
    assert 0 <= run_job.busy_cores() <= psutil.cpu_count()
