"""Test ``lossbench once``: one run of a suite, found by its key and done again."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.execute import repeat_run, run_suite
from bench.execute.workforce import Workforce
from bench.run import result_file
from bench.run.spec import RunSpec, provenance
from bench.run.suite_text import kept as suite_kept
from bench.run.suite_text import parse
from bench.run.training import RunResult, Score
from bench.suite import plan, suite_file
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

from ..conftest import PLUGINS

LOSSBENCH = CliRunner()


def run(path: Path) -> None:
    """Run the suite in ``path`` in this process, and store its results beside it, in a folder of its name."""
    run_suite.run(suite_file.load(path), path.with_suffix(""), Workforce.of(0), Console(quiet=True))


@pytest.mark.slow
def test_any_run_is_had_again(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(suite_text(learning_rates=[0.001, 0.003], reported=[1], tuning=[11], baselines=True))
    results = ["--results", str(tmp_path)]
    run(path)
    runs = pd.read_parquet(tmp_path / "mine" / "tables" / "runs.parquet")
    assert set(runs["phase"]) == {"tuning", "reported", "baseline"}
    for phase, of_phase in runs.groupby("phase"):
        one = of_phase.iloc[-1]
        again = LOSSBENCH.invoke(app, ["once", str(path), one["key"], *results])
        assert again.exit_code == 0, again.output
        assert again.output.startswith(f"{one['balancer']} on small, learning rate {one['lr']:g}, seed {one['seed']}")
        assert again.output.strip().endswith("the scores equal the stored ones")
        assert ("last checkpoint, test: error" in again.output) == (phase != "tuning")

    path.write_text(suite_text(learning_rates=None, reported=[5]))
    kept = LOSSBENCH.invoke(app, ["once", str(path), runs["key"].iloc[0], *results])
    assert kept.output.strip().endswith("the scores equal the stored ones")
    gone = LOSSBENCH.invoke(app, ["once", str(path), runs["key"].iloc[0]])
    assert gone.exit_code == 2
    assert gone.output.startswith("error: no run of mine has a key that begins with")
    assert LOSSBENCH.invoke(app, ["once", str(path), ""]).output.startswith("error: 2 runs of mine have a key")


@pytest.mark.slow
def test_what_scores_otherwise_than_stored_is_told(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(suite_text(learning_rates=None, reported=[1, 2], balancers=[{"name": "equal"}]))
    results = ["--results", str(tmp_path)]
    run(path)
    one, other = sorted((tmp_path / "mine" / "runs").glob("*.parquet"))
    loaded = suite_file.load(path)
    planned, result = repeat_run.find(loaded, one.stem, tmp_path / "mine"), result_file.load(one)
    result.scores[0].metrics["error"] += 1
    result_file.save(one, planned.spec, result)
    again = LOSSBENCH.invoke(app, ["once", str(path), one.stem[:10], *results])
    assert again.exit_code == 1
    assert again.output.strip().endswith("the scores differ from the stored ones")
    elsewhere = LOSSBENCH.invoke(app, ["once", str(path), other.stem, "--results", str(tmp_path / "elsewhere")])
    assert elsewhere.exit_code == 0
    assert elsewhere.output.strip().endswith("no scores are stored for this run")
    for content in (other.read_bytes(), one.read_bytes()[:100]):  # of another run, and a part of its own
        one.write_bytes(content)
        damaged = LOSSBENCH.invoke(app, ["once", str(path), one.stem, *results])
        assert damaged.exit_code == 2
        told = "holds no whole result of the run with this key; remove it and run the suite again"
        assert damaged.output == f"error: {one} {told}\n"


def stored(spec: RunSpec, folder: Path) -> str:
    """Store a result of the run without doing it, and return its key."""
    result_file.save(result_file.run_path(folder, spec.key), spec, RunResult(tasks=("a", "b"), losses=np.empty((0, 2))))
    return spec.key


def test_a_stored_run_is_found_at_any_learning_rate(make_suite: Callable[..., Suite], tmp_path: Path) -> None:
    """Rates around another balancer's best, and those of retuning, follow from results."""
    static = {"name": "static", "label": "fixed", "options": {"weights": [1.0, 3]}}
    suite = make_suite(problems=[{"name": "small", "label": "mine"}], balancers=[{"name": "equal"}, static])
    [run] = [run for run in plan.reported(suite, None) if run.balancer == "fixed" and run.spec.seed == 2]
    for spec in (
        replace(run.spec, recipe=replace(run.spec.recipe, lr=0.12345, betas=(0.9, 0.95))),
        replace(run.spec, recipe=replace(run.spec.recipe, lr=0.0777)),
        run.spec,
    ):
        key = stored(spec, tmp_path)
        found = repeat_run.find(suite, key[:12], tmp_path)
        assert (found.spec, found.key) == (spec, key)
    assert (found.problem, found.balancer) == ("mine", "fixed")


def test_a_stored_run_that_would_differ_now_is_refused(
    make_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = make_suite()
    key = stored(plan.reported(suite, None)[0].spec, tmp_path)
    monkeypatch.setattr(repeat_run, "provenance", lambda spec: {**provenance(spec), "torch": "3.0"})
    with pytest.raises(SuiteError, match=f"the run {key} can't be done again as it was: PyTorch changed since"):
        repeat_run.find(suite, key, tmp_path)


def test_a_metric_that_is_no_number_agrees_with_itself() -> None:
    def scored(**metrics: float) -> RunResult:
        return RunResult(scores=[Score("last", "test", {"error": 0.5, **metrics})])

    nan = float("nan")
    assert repeat_run.agree(scored(other=nan), scored(other=-nan))
    assert repeat_run.agree(scored(), scored())
    for different in (scored(other=0.5), scored(), scored(other=nan, more=nan), scored(error=nan, other=nan)):
        assert not repeat_run.agree(scored(other=nan), different)


def test_the_reports_command_finds_plugins_beside_the_suite(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    """The kept copy of the suite lies in another folder than the suite and its plugins."""
    for plugin in PLUGINS:
        shutil.copy(plugin, tmp_path)
    path = tmp_path / "mine.toml"
    methods = [{"name": "equal"}]
    names = [plugin.name for plugin in PLUGINS]
    path.write_text(suite_text(learning_rates=None, reported=[1], balancers=methods, plugins=names))
    run(path)
    folder = tmp_path / "mine"
    assert 'plugins = ["../small.py", "../methods.py"]\n' in (folder / "suite.toml").read_text()
    [key] = [file.stem for file in (folder / "runs").glob("*.parquet")]
    again = LOSSBENCH.invoke(app, ["once", "mine", key, "--results", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert again.output.strip().endswith("the scores equal the stored ones")


LINES = [
    ('plugins = ["own.py"]  # mine\n', 'plugins = ["../../own.py"]  # mine\n'),
    ('plugins=[\n  "own.py",\n]\n', 'plugins = ["../../own.py"]\n'),
    ('"plugins" = ["own.py"]\n', '"plugins" = ["own.py"]\n'),
    ('plugins = ["odd].py"]\n', 'plugins = ["odd].py"]\n'),
    ('plugins = ["../../own.py"]\n', 'plugins = ["../../own.py"]\n'),
    ("", ""),
]


@pytest.mark.parametrize(("line", "kept"), LINES)
def test_the_kept_suite_names_its_plugins_from_where_it_lies(tmp_path: Path, line: str, kept: str) -> None:
    """A line that can't be replaced stays as it was."""
    suite = parse(f'description = "plugins = []"\n{line}evaluations = 3\n')
    files = [(tmp_path / Path(name).name).resolve() for name in suite.values.get("plugins", ())]
    expected = f'description = "plugins = []"\n{kept}evaluations = 3\n'
    assert suite_kept(suite, files, tmp_path / "results" / "mine") == expected


def test_a_run_that_fails_says_why(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(suite_text(learning_rates=None, reported=[1], balancers=[{"name": "equal"}, {"name": "failing"}]))
    run(path)
    runs = pd.read_parquet(tmp_path / "mine" / "tables" / "runs.parquet")
    (failed,) = runs.loc[runs["status"] == "failed", "key"]
    again = LOSSBENCH.invoke(app, ["once", str(path), failed])
    assert again.exit_code == 1
    assert runs.loc[runs["key"] == failed, "reason"].item() in again.output
