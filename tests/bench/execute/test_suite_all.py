"""Test the suites `all` and `reserved`, cut short: every problem trains; data folders hold small made-up files."""

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from typer.testing import CliRunner

import tasks
from bench.cli import app
from bench.suite import suite_file

from ...tasks.dense_files import write

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

METHODS = {"all": {"equal", "uncertainty", "gradnorm"}, "reserved": {"equal", "static"}}


class Ran(NamedTuple):
    """A suite that has run."""

    suite: str
    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "tables" / f"{name}.parquet")


@pytest.fixture(scope="module", params=METHODS)
def ran(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Ran:
    """Run a suite with three steps per run, beside small data folders."""
    suite = request.param
    work = tmp_path_factory.mktemp(suite)
    write(work / "data" / "nyuv2")
    write(work / "data" / "cityscapes", train=20, classes=7, normals=False, farthest=0.4)
    problems, methods = suite_file.find(suite).read_text().split("[[balancers]]", 1)
    problems = re.sub(r"^(name = .*)$", r"\1\nsteps = 3", problems, flags=re.MULTILINE)
    text = f"{problems}[[balancers]]{methods}"
    text = text.replace("evaluations = 10", "evaluations = 1").replace("reported = [1, 2, 3]", "reported = [1]")
    text = re.sub(r'root = "(data/\w+)"', r'root = "\1", width = 4, num_workers = 0', text)
    (work / f"{suite}.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        done = CliRunner().invoke(app, ["run", f"{suite}.toml", "--jobs", "1"])
    assert done.exit_code == 0, done.output
    return Ran(suite, work / "results" / suite)


def ours() -> set[str]:
    """Return the names of this project's problems, other than illustrations."""
    names = {name for name in tasks.names() if tasks.get(name).__module__.startswith("tasks.")}
    illustrations = {name for name in names if tasks.get(name).illustration}
    assert illustrations == {"conflict-2d"}
    return names - illustrations


def test_every_problem_is_in_the_suite_for_its_kind(ran: Ran) -> None:
    expected = {name for name in ours() if tasks.get(name).reserved == (ran.suite == "reserved")}
    assert set(ran.table("problems")["name"]) == expected


def test_every_problem_trains_with_every_method(ran: Ran) -> None:
    runs = ran.table("runs")
    assert (runs["status"] == "ok").all()
    assert (runs["steps"] == 3).all()
    reported = runs[runs["phase"] == "reported"]
    for _, of_problem in reported.groupby("problem"):
        assert set(of_problem["balancer"]) == METHODS[ran.suite]


def test_every_task_that_is_measured_has_its_baselines(ran: Ran) -> None:
    found, metrics = ran.table("baselines"), ran.table("metrics")
    assert set(found["problem"]) == set(metrics.loc[metrics["task"].notna(), "problem"])
    assert found[["constant", "equal", "single_task"]].notna().all().all()


def test_every_problem_has_a_picture(ran: Ran) -> None:
    source = (ran.folder / "report.html").read_text()
    assert source.count("data:image/webp;base64,") == len(ran.table("problems"))
