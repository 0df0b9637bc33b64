"""One command for a GPU: parts end by themselves, are kept as they come, and the next call goes on."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from bench.cost.subject import MakeStep, make
from bench.cost.timed_methods import TimedMethod
from bench.execute import run_suite
from bench.gpu import captured_steps, device_tests, gpu_costs, gpu_suite, gpu_summary, outcome_log, part_measurement
from bench.gpu.__main__ import NAMES, REFERENCE, main
from bench.gpu.gpu_parts import MEASURE, PARTS
from bench.gpu.gpu_summary import GpuSummary, OtherMachineError
from bench.gpu.part_measurement import Findings, NotMeasurableError, PartMeasurement
from bench.gpu.part_runner import Part, run
from bench.report import gpu_tables
from bench.run import result_file
from bench.run.result_file import RunResult
from bench.suite import plan, suite_file
from bench.suite.result_tables import Done
from bench.suite.suite_entries import Suite

from ...slow_params import others_slow

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
DONE, FAILS, HANGS = "print('here')", "raise ValueError('no luck')", "import time; time.sleep(60)"


def part(name: str, least: float = 0.0, most: float = 30.0) -> Part:
    return Part(name, "a part", least, most)


def run_all(
    folder: Path, codes: dict[str, str], parts: Sequence[Part], seconds: float = 60.0, code: str = "a hash"
) -> list[str]:
    """Run parts whose processes run ``codes``, and return the names of those that were started."""
    started = []

    def command(each: Part, _: float) -> list[str]:
        started.append(each.name)
        return [sys.executable, "-c", codes[each.name]]

    run(parts, folder, GpuSummary(folder, dry=True), seconds, code, command, lambda line: None)
    return started


def records(folder: Path) -> dict[str, gpu_summary.PartRecord]:
    return GpuSummary(folder, dry=True).records


def lossbench_gpu(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


# Parts


@pytest.mark.slow
def test_a_part_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    parts = [part("a"), part("b"), part("c")]
    assert run_all(tmp_path, {"a": DONE, "b": FAILS, "c": DONE}, parts) == ["a", "b", "c"]
    assert {name: record.status for name, record in records(tmp_path).items()} == {
        "a": "done",
        "b": "failed",
        "c": "done",
    }
    assert "ValueError: no luck" in records(tmp_path)["b"].reason
    assert "ValueError" in (tmp_path / "b" / "log.txt").read_text()
    assert run_all(tmp_path, {"b": DONE}, parts) == ["b"]
    assert {record.status for record in records(tmp_path).values()} == {"done"}
    assert records(tmp_path)["b"].reason == ""


@pytest.mark.slow
def test_a_part_that_hangs_is_stopped(tmp_path: Path) -> None:
    assert run_all(tmp_path, {"a": HANGS, "b": DONE}, [part("a", most=0.5), part("b")]) == ["a", "b"]
    assert records(tmp_path)["a"].status == "stopped"
    assert records(tmp_path)["b"].status == "done"


@pytest.mark.slow
def test_a_part_that_would_not_fit_is_not_begun_and_named(tmp_path: Path) -> None:
    assert run_all(tmp_path, {"b": DONE}, [part("a", least=100), part("b")], seconds=50) == ["b"]
    record = records(tmp_path)["a"]
    assert record.status == "not begun"
    assert "it needs at least 100 s" in record.reason
    assert not (tmp_path / "a").exists()


def test_a_part_that_is_killed_with_the_command_is_no_success(tmp_path: Path) -> None:
    """The record is written before the part begins."""

    def command(each: Part, _: float) -> list[str]:
        assert records(tmp_path)[each.name].status == "stopped"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([part("a")], tmp_path, GpuSummary(tmp_path, dry=True), 60, "a hash", command, lambda line: None)
    assert records(tmp_path)["a"].status == "stopped"


def test_what_other_code_has_done_is_done_again(tmp_path: Path) -> None:
    summary = GpuSummary(tmp_path, dry=True)
    for name in "abc":
        summary.keep(name, gpu_summary.PartRecord(status="done", seconds=5, code="new" if name == "a" else "old"))
    assert run_all(tmp_path, {"b": DONE}, [part("a"), part("b"), part("c", least=100)], 50, "new") == ["b"]
    found = records(tmp_path)
    assert {name: (record.status, record.code) for name, record in found.items()} == {
        "a": ("done", "new"),
        "b": ("done", "new"),
        "c": ("stopped", "old"),
    }
    assert found["b"].seconds < 5  # those of the old code don't count


def test_a_pytorch_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    [required] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert required == f"torch>={gpu_summary.OLDEST_TORCH}"
    assert gpu_summary.machine(dry=True)["note"] == ""
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.11.0+cu130"))
    assert gpu_summary.machine(dry=True)["note"] == "PyTorch 2.11.0+cu130 is older than 2.12, the oldest supported"


@pytest.mark.parametrize("key", ["gpu", "processor", "torch"])
@pytest.mark.slow
def test_results_of_another_machine_are_not_continued(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(tmp_path, {"a": DONE}, [part("a")])
    here = gpu_summary.machine(dry=True)
    monkeypatch.setattr(gpu_summary, "machine", lambda dry: {**here, key: "another"})
    with pytest.raises(OtherMachineError, match=f"holds results with {key} .* but here it is 'another'"):
        GpuSummary(tmp_path, dry=True)


@pytest.mark.slow
def test_a_dry_run_and_a_real_one_are_kept_apart(tmp_path: Path) -> None:
    run_all(tmp_path, {"a": DONE}, [part("a")])
    with pytest.raises(OtherMachineError, match="dry_run True"):
        GpuSummary(tmp_path, dry=False)


def test_every_part_has_its_function() -> None:
    assert [each.name for each in PARTS] == list(MEASURE)
    assert sum(each.most for each in PARTS if each.name != "suite") + 30 < 60 * 8


# The pieces of a part


def test_pieces_are_kept_as_they_come_and_measured_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def piece(name: str, works: bool) -> pd.DataFrame:
        calls.append(name)
        if not works:
            raise ArithmeticError(f"{name} can't be\nmeasured")
        return pd.DataFrame({"value": [len(calls)]})

    def collect(*working: str) -> PartMeasurement:
        part = PartMeasurement(tmp_path, CPU, dry=True, seconds=10)
        part.collect("table", {name: lambda name=name: piece(name, name in working) for name in "abc"})
        return part

    assert collect("b", "c").findings.failed == {"a": "ArithmeticError: a can't be"}
    assert list(pd.read_csv(tmp_path / "table.csv")["piece"]) == ["b", "c"]
    assert not collect("a").findings.failed
    assert calls == ["a", "b", "c", "a"]
    assert list(pd.read_csv(tmp_path / "table.csv")["piece"]) == ["b", "c", "a"]
    assert not Findings.load(tmp_path).failed


def test_what_failed_before_comes_last(tmp_path: Path) -> None:
    PartMeasurement(tmp_path, CPU, dry=True, seconds=10).fail("a", "it crashed")
    order = []
    pieces = {name: lambda name=name: order.append(name) or pd.DataFrame({"x": [1]}) for name in "ab"}
    PartMeasurement(tmp_path, CPU, dry=True, seconds=10).collect("table", pieces)
    assert order == ["b", "a"]


def test_a_piece_whose_process_is_killed_comes_last(tmp_path: Path) -> None:
    """A kill is a `BaseException` here: nothing after it runs. What failed stays on record until it is measured."""
    order: list[str] = []

    def piece(name: str) -> pd.DataFrame:
        order.append(name)
        if name in "ab":
            raise KeyboardInterrupt
        return pd.DataFrame({"x": [1]})

    def collect() -> PartMeasurement:
        part = PartMeasurement(tmp_path, CPU, dry=True, seconds=10)
        part.collect("table", {name: lambda name=name: piece(name) for name in "abcd"})
        return part

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            collect()
    assert order == ["a", "b", "c", "d", "a", "b"]
    assert Findings.load(tmp_path).failed == dict.fromkeys("ab", part_measurement.INTERRUPTED)


def test_rows_of_other_code_are_measured_again(tmp_path: Path) -> None:
    measured = []

    def collect(code: str, *names: str) -> pd.DataFrame:
        pieces = {name: lambda name=name: measured.append(name) or pd.DataFrame({"x": [1]}) for name in names}
        PartMeasurement(tmp_path, CPU, dry=True, seconds=10, code=code).collect("table", pieces)
        return pd.read_csv(tmp_path / "table.csv", dtype=str)

    collect("1e5", "a")
    collect("1e5", "a", "b")
    assert measured == ["a", "b"]
    table = collect("new", "a")
    assert measured == ["a", "b", "a"]
    assert table[["piece", "code"]].to_numpy().tolist() == [["a", "new"]]


@pytest.mark.parametrize("broken", ["draw", "stream"])
def test_a_device_that_a_failed_capture_has_harmed_ends_the_part(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object, device: torch.device) -> None:
        if broken == "draw":
            raise RuntimeError("Offset increment outside graph capture")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "rand", draw)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "capture" if broken == "stream" else "default")
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: "default")

    def piece() -> pd.DataFrame:
        raise ArithmeticError("no capture")

    part = PartMeasurement(tmp_path, torch.device("cuda"), dry=True, seconds=10)
    with pytest.raises(RuntimeError, match="the device does not work any more: "):
        part.collect("table", {"a": piece, "b": piece})
    assert list(part.findings.failed) == ["a"]


@pytest.mark.parametrize("measure", [gpu_costs.limits, gpu_costs.methods])
def test_captured_steps_are_the_last_pieces(
    measure: Callable[[PartMeasurement], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setattr(PartMeasurement, "collect", lambda part, name, pieces: names.extend(pieces))
    monkeypatch.setattr(gpu_costs, "SIZES", ((2, 8), (3, 8)))
    measure(PartMeasurement(tmp_path, CPU, dry=False, seconds=10))
    are_captured = [name.endswith("captured") for name in names]
    assert are_captured == sorted(are_captured)
    assert 0 < sum(are_captured) < len(names)
    assert device_tests.FILES[-1] == "capture"


def test_methods_have_the_options_of_the_table_of_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NTK weighting's default is to measure at every thousandth step, which none of the timed ones would be."""
    seen: dict[str, int] = {}

    def compare(make_step: MakeStep, methods: Sequence[TimedMethod], num_tasks: int, rounds: int) -> pd.DataFrame:
        balancer = methods[-1].balancer(make(make_step), num_tasks)
        seen[methods[-1].name] = getattr(balancer, "update_every", 1)
        return pd.DataFrame({"ratio": [1.0, 1.0]})

    monkeypatch.setattr(gpu_costs, "compare", compare)
    monkeypatch.setattr(gpu_costs, "DRY_METHODS", ("ntk", "static"))
    monkeypatch.setattr(captured_steps, "compare", compare)
    gpu_costs.methods(PartMeasurement(tmp_path, CPU, dry=True, seconds=10))
    assert seen == {"equal, again": 1, "ntk": 1, "static": 1}


def test_a_method_with_a_cycle_is_timed_over_enough_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: dict[str, int] = {}

    def compare(make_step: MakeStep, methods: Sequence[TimedMethod], num_tasks: int, of_all: int) -> pd.DataFrame:
        names = [method.name for method in methods]
        rounds.update(dict.fromkeys(names, of_all))
        return pd.DataFrame({"method": names})

    monkeypatch.setattr(gpu_costs, "compare", compare)
    (case, _) = gpu_costs.regression(2, 8, CPU)
    table = gpu_costs._eager(case, gpu_costs.EAGER, 40)
    assert list(table["method"]) == [method.name for method in gpu_costs.EAGER]
    assert (rounds[gpu_costs.LAYER.name], rounds[gpu_costs.EVERY_TEN.name]) == (40, 100)


def test_times_of_an_earlier_run_are_not_taken_for_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "micro.json").write_text('{"benchmarks": []}')
    monkeypatch.setattr(gpu_costs.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 4))
    with pytest.raises(RuntimeError, match="pytest ended with 4 and wrote no times"):
        gpu_costs.norm_step(PartMeasurement(tmp_path, CPU, dry=True, seconds=10))


def test_what_can_not_be_measured_is_left_out(tmp_path: Path) -> None:
    def piece() -> pd.DataFrame:
        raise NotMeasurableError("it has no brakes")

    part = PartMeasurement(tmp_path, CPU, dry=True, seconds=10)
    part.collect("table", {"a": piece})
    assert part.findings.left_out == {"a": "it has no brakes"}
    assert not part.findings.failed


@pytest.mark.parametrize(
    ("measure", "module", "package"),
    [
        (device_tests.run, device_tests, "pytest"),
        (gpu_costs.norm_step, gpu_costs, "pytest"),
        (gpu_costs.norm_step, gpu_costs, "pytest_benchmark"),
    ],
)
def test_a_missing_package_is_named(measure, module, package: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else object())
    part = PartMeasurement(tmp_path, CPU, dry=True, seconds=10)
    measure(part)
    assert f"{package.replace('_', '-')} is not installed" in part.findings.left_out.values()
    assert not part.findings.failed


def test_peers_that_are_not_installed_are_named(tmp_path: Path) -> None:
    rows = [(2, "ours", ""), (2, "LibMTL", "not installed"), (10, "LibMTL", "not installed")]
    path = tmp_path / "peers.csv"
    pd.DataFrame(rows, columns=["num_tasks", "contender", "missing"]).to_csv(path, index=False)
    part = PartMeasurement(tmp_path, CPU, dry=False, seconds=10)
    gpu_costs.note_missing(part, path)
    assert part.findings.left_out == {"LibMTL": "not installed"}


def test_peers_are_kept_one_number_of_tasks_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(num_tasks: Sequence[int], seconds: float) -> pd.DataFrame:
        measured.extend(num_tasks)
        if measured == [2, 10]:
            raise KeyboardInterrupt
        return pd.DataFrame({"num_tasks": num_tasks, "contender": "ours", "missing": ""})

    monkeypatch.setattr(gpu_costs.peer_table, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        gpu_costs.peers(PartMeasurement(tmp_path, CPU, dry=False, seconds=10))
    gpu_costs.peers(PartMeasurement(tmp_path, CPU, dry=False, seconds=10))
    assert measured == [2, 10, 40, 10]
    assert list(pd.read_csv(tmp_path / "peers.csv")["num_tasks"]) == [2, 40, 10]


# Tests on the device


@pytest.mark.slow
def test_outcomes_are_kept_and_tests_that_passed_are_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'unequal'\n"
        "def test_skipped(): pytest.skip('no wheels')\n"
    )
    path = tmp_path / "outcomes.jsonl"
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_some.py"), "-q", "-c", "/dev/null"]
    command += ["-p", "bench.gpu.outcome_log", "--outcomes", str(path), "-p", "no:cacheprovider", "--code"]

    def tests_run(code: str = "new") -> list[str]:
        before = path.read_text().count("\n") if path.is_file() else 0
        subprocess.run([*command, code], cwd=ROOT, check=False, capture_output=True)
        tests = [json.loads(line)["test"].rpartition("::")[2] for line in path.read_text().splitlines()[before:]]
        return list(dict.fromkeys(tests))

    assert tests_run() == ["test_good", "test_bad", "test_skipped"]
    assert tests_run() == ["test_skipped", "test_bad"]  # what failed comes last
    path.write_text(path.read_text() + '{"test": "cut o')
    found = {test.rpartition("::")[2]: outcome for test, outcome in outcome_log.load(path, "new").items()}
    assert outcome_log.load(path, "other") == {}
    assert {test: outcome["outcome"] for test, outcome in found.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
    }
    assert "unequal" in str(found["test_bad"]["reason"])
    assert "no wheels" in str(found["test_skipped"]["reason"])


def test_a_test_whose_process_is_killed_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    log = outcome_log._OutcomeLog(path, "new")
    for test in "ab":
        log.pytest_runtest_logstart(test)
    log.pytest_runtest_logstart("a")
    found = outcome_log.load(path, "new")
    assert [(test, outcome["outcome"], outcome["reason"]) for test, outcome in found.items()] == [
        (test, "failed", outcome_log.INTERRUPTED) for test in "ba"
    ]
    assert outcome_log._OutcomeLog(path, "new").failed == {"b": 1, "a": 2}


def test_the_files_of_tests_exist() -> None:
    files = [ROOT / "tests" / "balancers" / f"test_{name}.py" for name in device_tests.FILES]
    assert all(file.is_file() for file in files)
    own = ("test_host_copy.py", "test_capture.py")  # these name their devices
    assert all("mark.on_device" in file.read_text() for file in files if file.name not in own)


# Steps and the suite


@pytest.mark.slow
def test_a_captured_step_on_the_cpu_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    (case, _) = gpu_costs.regression(2, 8, CPU)
    rows = captured_steps.compare(case.make_step, gpu_costs.LAYER, 2, rounds=3)
    assert list(rows["method"]) == ["gradnorm layer"]
    assert (rows["ratio"] > 0).all()
    with pytest.raises(NotMeasurableError, match=r"it can't be captured in a CUDA graph: with update_every=10"):
        captured_steps.compare(case.make_step, gpu_costs.EVERY_TEN, 2, rounds=3)


@pytest.mark.parametrize("phases", [["tuning"], ["tuning", "reported"]])
def test_a_suite_goes_on_where_a_reported_run_failed(
    phases: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_suite: Callable[..., Suite]
) -> None:
    """Failed tuning runs are a note. A failed reported run is trained again by the next call, and no other is."""
    suite = make_suite()
    runs = {"tuning": plan.tuning(suite, plan.grids(suite))[0], "reported": plan.reported(suite, None)[0]}
    work = tmp_path / "unfinished" / "default-cpu"
    failed = []
    for phase in phases:
        result_file.run_path(work, runs[phase].key).parent.mkdir(parents=True, exist_ok=True)
        result_file.run_path(work, runs[phase].key).write_text("stored")
        result = RunResult(tasks=("a",), status="failed", reason="it diverged")
        failed.append(Done(runs[phase], result, suite.problems[0]))
    (work / "default-cpu.toml").write_text(gpu_suite.text(gpu_suite.DRY, "cpu", dry=True))
    summary = run_suite.Summary(2, 0, failed)
    monkeypatch.setattr(gpu_suite.run_suite, "run", lambda *_: summary)
    monkeypatch.setattr(gpu_suite.report_page, "write", lambda _: None)
    part = PartMeasurement(tmp_path, CPU, dry=True, seconds=10)
    gpu_suite.run(part)
    assert any(note.startswith("1 tuning run failed") for note in part.findings.notes)
    assert list(part.findings.failed.values()) == ["it diverged"] * (len(phases) - 1)
    assert work.exists() == ("reported" in phases)
    if work.exists():
        assert result_file.run_path(work, runs["tuning"].key).exists()
        assert not result_file.run_path(work, runs["reported"].key).exists()


@pytest.mark.parametrize("size", others_slow([*gpu_suite.SIZES, gpu_suite.DRY], gpu_suite.DRY))
def test_the_suite_is_made_as_small_as_asked(size: gpu_suite.SuiteSize, tmp_path: Path) -> None:
    path = tmp_path / "default-cpu.toml"
    path.write_text(gpu_suite.text(size, "cpu"))
    whole, made = suite_file.load(suite_file.find("default")), suite_file.load(path)
    assert made.device == "cpu"
    assert made.reported_seeds == whole.reported_seeds[: size.seeds]
    for entry, of_whole in zip(made.problems, whole.problems, strict=True):
        steps = max(made.evaluations, round(size.steps * of_whole.recipe.steps))
        assert (entry.label, entry.options, entry.recipe.steps) == (of_whole.label, of_whole.options, steps)
    assert [entry.methods for entry in made.balancers] == [entry.methods for entry in whole.balancers]
    assert ("whole" in made.description) == (size == gpu_suite.SIZES[0])


def test_the_suite_for_cuda_names_cuda() -> None:
    top = tomllib.loads(gpu_suite.text(gpu_suite.SIZES[-1], "cuda"))
    assert (top["device"], top["cost"]["devices"]) == ("cuda", ["cuda"])


# The command, and what reports show


def test_without_cuda_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, output = lossbench_gpu("--out", str(tmp_path / "gpu"))
    assert code == 2
    assert output.count("\n") == 1
    assert "PyTorch finds no CUDA device" in output
    assert not (tmp_path / "gpu").exists()


def test_bad_arguments_are_told_in_a_sentence(tmp_path: Path) -> None:
    assert "there is no part limit" in lossbench_gpu("limit", "--dry-run", "--out", str(tmp_path))[1]
    code, output = lossbench_gpu("--dry-run")
    assert code == 2
    assert "a dry run needs a folder of its own" in output
    assert REFERENCE.name == "gpu"


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_a_dry_run_goes_through_all_parts(tmp_path: Path) -> None:
    """It measures nothing worth keeping, and takes about a minute."""
    code, output = lossbench_gpu("--dry-run", "--out", str(tmp_path / "gpu"))
    assert code == 0, output
    stored = json.loads((tmp_path / "gpu" / "summary.json").read_text())
    assert list(stored["parts"]) == NAMES
    assert {record["status"] for record in stored["parts"].values()} == {"done"}
    limits = pd.read_csv(tmp_path / "gpu" / "limits" / "limits.csv")
    assert set(limits["mode"]) == {"eager", "captured"}
    assert (tmp_path / "gpu" / "suite" / "report.html").is_file()
    assert not (tmp_path / "gpu" / "suite" / "unfinished").exists()
    assert str(ROOT) not in (tmp_path / "gpu" / "tests" / "log.txt").read_text()
    assert gpu_tables.find(tmp_path / "mine") is None  # results of a dry run are not shown
    assert "done before" in lossbench_gpu("--dry-run", "--out", str(tmp_path / "gpu"))[1]


@pytest.mark.parametrize("place", ["gpu", "reference/gpu"])
def test_reports_show_the_ratio_of_cpu_and_cuda(place: str, tmp_path: Path) -> None:
    assert gpu_tables.find(tmp_path / "mine") is None
    folder = tmp_path / place
    (folder / "norm-step").mkdir(parents=True)
    (folder / "limits").mkdir()
    machine = {"gpu": "A GPU", "driver": "1.2", "processor": "A CPU", "torch": "2.11", "python": "3.12"}
    machine |= {"dry_run": False}
    (folder / "summary.json").write_text(json.dumps({"machine": machine, "parts": {}}))
    times = pd.DataFrame(
        [(2, "whole step", 3.0, 1.5, 2.0)], columns=["num_tasks", "what", "cpu_ms", "cuda_ms", "ratio"]
    )
    times.to_csv(folder / "norm-step" / "norm-step.csv", index=False)
    of_case = ("regression T=2", "batched", 100)
    rows = [(*of_case, "gradnorm layer", "eager", 1.5), (*of_case, "gradnorm layer", "captured", 1.2)]
    columns = ["problem", "heads", "batch", "method", "mode", "ratio"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "limits" / "limits.csv", index=False)
    found = gpu_tables.find(tmp_path / "mine")
    assert found is not None
    assert found["machine"] == "A GPU, driver 1.2, A CPU, PyTorch 2.11, Python 3.12"
    norm_step, limits = found["grids"]
    assert norm_step["rows"] == [["whole step", "2", "3.00", "1.50", "2.00"]]
    assert limits["rows"][0][:6] == ["regression T=2", "100", "batched", "gradnorm layer", "1.50", "1.20"]
