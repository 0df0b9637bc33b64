"""Test the suite `all`, cut short: every problem trains with every method; data folders hold small made-up files."""

import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import tasks
from bench.cli import app
from bench.suite import suite_file

from ...tasks.dense_files import write

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of `all` with three steps per run, computed beside small data folders."""
    work = tmp_path_factory.mktemp("all")
    write(work / "data" / "nyuv2")
    write(work / "data" / "cityscapes", train=20, classes=7, normals=False, farthest=0.4)
    text = suite_file.find("all").read_text()
    text = re.sub(
        r"^name = (.*)\n(?=(label.*\n)?(options.*\n)?\n)", r"name = \1\nsteps = 3\n", text, flags=re.MULTILINE
    )
    text = (
        text.split("[[balancers]]", 1)[0]
        + "[[balancers]]"
        + text.split("[[balancers]]", 1)[1].replace("steps = 3\n", "")
    )
    text = text.replace("evaluations = 10", "evaluations = 1").replace("reported = [1, 2, 3]", "reported = [1]")
    text = re.sub(r'root = "(data/\w+)"', r'root = "\1", width = 4, num_workers = 0', text)
    (work / "all.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        done = CliRunner().invoke(app, ["run", "all.toml", "--jobs", "1"])
    assert done.exit_code == 0, done.output
    return work / "results" / "all"


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / f"{name}.parquet")


def test_every_problem_but_illustrations_is_in_it(folder: Path) -> None:
    ours = {name for name in tasks.names() if tasks.get(name).__module__.startswith("tasks.")}
    illustrations = {name for name in ours if tasks.get(name).illustration}
    assert illustrations == {"conflict-2d"}
    assert set(table(folder, "problems")["name"]) == ours - illustrations


def test_every_problem_trains_with_every_method(folder: Path) -> None:
    runs = table(folder, "runs")
    assert (runs["status"] == "ok").all()
    assert (runs["steps"] == 3).all()
    reported = runs[runs["phase"] == "reported"]
    for _, of_problem in reported.groupby("problem"):
        assert set(of_problem["balancer"]) == {"equal", "uncertainty", "gradnorm"}


def test_every_task_has_its_baselines(folder: Path) -> None:
    found = table(folder, "baselines")
    held = found[~found["problem"].isin(["helmholtz", "burgers"])]
    assert held[["constant", "equal", "single_task"]].notna().all().all()
    assert len(found) == len(held)  # those two have metrics of the whole solution alone


def test_every_problem_has_a_picture(folder: Path) -> None:
    source = (folder / "report.html").read_text()
    assert source.count("data:image/png;base64,") == len(table(folder, "problems"))
