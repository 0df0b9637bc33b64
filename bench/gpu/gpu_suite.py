"""Run the suite ``default`` on the device, with as many seeds and steps as fit into the time.

The suite runs in ``unfinished/default-DEVICE`` of the part's folder, where a later call goes on. What is kept of it is
copied to the part's folder, as ``make reference`` does. The rest is removed once no run but a tuning run has failed.
"""

import shutil
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from rich.console import Console

import tasks
from bench.cost import micro
from bench.execute import forecast, run_suite
from bench.execute.workforce import IN_THIS_PROCESS, Workforce
from bench.report import report_page
from bench.run import result_file
from bench.style.numbers import counted
from bench.suite import plan, suite_file
from bench.suite.write_toml import to_toml

from .part_measurement import PartMeasurement

MOST_JOBS = 8
"""Maximum number of runs at a time on a GPU: their steps are short, so that the CPU has to launch them."""
TABLES = (
    *("runs.csv", "scores.parquet", "baselines.csv", "problems.csv", "leaderboard.csv", "metrics.csv", "selection.csv"),
    *("costs.csv", "micro.csv", "delta_m.csv", "controls.csv", "target.csv", "repeated.csv"),
)
"""Tables that are kept, where the suite has them."""
SHARE = 0.8
"""Share of the time that the forecast may take."""


class SuiteSize(NamedTuple):
    """How much of the suite is run: number of reported seeds, and the share of each run's steps."""

    seeds: int
    steps: float


SIZES = (SuiteSize(3, 1.0), SuiteSize(1, 1.0), SuiteSize(1, 0.5), SuiteSize(1, 0.2))
"""From the whole suite to the smallest. The first that fits is run, else the smallest."""
DRY = SuiteSize(1, 0.002)


def run(part: PartMeasurement) -> None:
    """Run the suite, and keep its report and its tables in the part's folder."""
    device = part.device.type
    name = f"default-{device}"
    work = part.folder / "unfinished" / name
    path = work / f"{name}.toml"
    jobs = IN_THIS_PROCESS if part.dry else min(MOST_JOBS, joblib.cpu_count())
    with Workforce.of(jobs) as workforce:
        _run(part, work, path, workforce)


def _run(part: PartMeasurement, work: Path, path: Path, workforce: Workforce) -> None:
    if not path.is_file():
        _choose(path, part.device.type, workforce, part)
    loaded = suite_file.load(path)
    part.note(loaded.description)
    for problem, missing in loaded.left_out.items():
        part.leave_out(problem, missing)
    _bring_norm_step(part, work)
    summary = run_suite.run(loaded, work, workforce, Console(soft_wrap=True))
    for failed in summary.failed:
        spec = failed.planned.spec
        if spec.phase != "tuning":
            run_label = f"{failed.planned.balancer} on {failed.planned.problem}, seed {spec.seed}, lr {spec.lr:g}"
            part.fail(run_label, failed.result.reason)
            result_file.run_path(work, failed.planned.key).unlink(missing_ok=True)  # the next call trains it again
    if summary.failed_tuning:
        part.note(f"{counted(len(summary.failed_tuning), 'tuning run')} failed, as too high a learning rate makes them")
    report_page.write(work)
    _keep(work, part.folder)
    if not part.findings.failed:
        shutil.rmtree(part.folder / "unfinished")


def _choose(path: Path, device: str, workforce: Workforce, part: PartMeasurement) -> None:
    """Write the largest suite that fits into the part's time to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tried = path.with_name("tried.toml")
    seconds_of = forecast.Forecast(workforce)
    for size in (DRY,) if part.dry else SIZES:
        tried.write_text(text(size, device, part.dry), encoding="utf-8")
        if part.dry:
            break
        loaded = suite_file.load(tried)
        seconds = seconds_of(loaded, [*plan.tuning(loaded, plan.grids(loaded)), *plan.reported(loaded, None)])
        print(f"{size.seeds} seeds, {size.steps:.0%} of the steps: about {seconds:.0f} s", flush=True)
        if seconds <= SHARE * part.seconds:
            break
    tried.replace(path)


def text(size: SuiteSize, device: str, dry: bool = False) -> str:
    """Return the suite ``default`` as TOML, for ``device`` and made as small as ``size``.

    A dry run has the first problem and two balancers only.
    """
    top: dict[str, Any] = tomllib.loads(suite_file.find("default").read_text(encoding="utf-8"))
    top["device"] = device
    seeds = top["seeds"]["reported"]
    top["seeds"]["reported"] = seeds[: size.seeds]
    top["cost"] = {"rounds": 4 if dry else 50, "devices": [device]}
    if dry:
        top["problems"], top["balancers"] = top["problems"][:1], top["balancers"][:2]
    for entry in top["problems"]:
        steps = entry.get("steps") or tasks.create(entry["name"], **entry.get("options", {})).recipe.steps
        if size.steps < 1:
            entry["steps"] = max(top["evaluations"], round(size.steps * steps))
    whole = size.steps == 1 and size.seeds >= len(seeds)
    how = "whole" if whole else f"{len(seeds[: size.seeds])} of {len(seeds)} seeds, {100 * size.steps:g} % of the steps"
    top["description"] = f"The suite default on {device.upper()}: {how}"
    return to_toml(top)


def _bring_norm_step(part: PartMeasurement, work: Path) -> None:
    """Copy the micro-benchmark's times to the suite, whose report then shows them."""
    times = part.folder.parent / "norm-step" / micro.MICRO
    if times.is_file():
        shutil.copy(times, work / micro.MICRO)


def _keep(work: Path, folder: Path) -> None:
    """Copy what is kept of the suite to ``folder``."""
    for name in ("report.html", "suite.toml", "environment.json", "figures/summary.png"):
        _copy(work / name, folder / name)
    for name in TABLES:
        _copy(work / "tables" / name, folder / "tables" / name)


def _copy(file: Path, to: Path) -> None:
    if file.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
