"""The evidence is run part by part, and what is kept of the parts makes the tables of the whole suite."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.analysis import derived_tables
from bench.evidence import __main__ as command
from bench.evidence import evidence_parts, kept_tables
from bench.evidence.evidence_parts import EvidencePart
from bench.execute import run_suite
from bench.execute.job import EngineError
from bench.execute.workforce import Workforce
from bench.suite import plan, suite_file
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

MakeSuite = Callable[..., Suite]


@pytest.fixture
def two_problems(suite_text: Callable[..., str], tmp_path: Path) -> Suite:
    """Return a suite of two problems that chooses learning rates for both of its sets of seeds."""
    text = suite_text(
        problems=[{"name": "small"}, {"name": "small", "label": "other", "options": {"scales": [1.0, 9.0]}}],
        balancers=[{"name": "equal"}, {"name": "static", "options": {"weights": "search"}}],
        baselines=True,
        tuning=[11],
    )
    text = text.replace("tuning = [11]", "tuning = [11]\nrepeated = [4, 5]\nretuning = [12]")
    path = tmp_path / "core.toml"
    path.write_text(text.replace("[cost]", "growths = 0\nfiner = 2\n[cost]"))
    return suite_file.load(path)


def done(suite: Suite, folder: Path) -> Path:
    with Workforce.of(0) as workforce:
        run_suite.run(suite, folder, workforce, Console(quiet=True))
    return folder / "tables"


@pytest.mark.slow
def test_kept_parts_make_the_tables_of_the_whole(two_problems: Suite, tmp_path: Path) -> None:
    whole = done(two_problems, tmp_path / "whole")
    kept = []
    for problem in two_problems.problems:
        part = EvidencePart("A", replace(two_problems, problems=(problem,)))
        kept.append(tmp_path / "kept" / part.name)
        kept_tables.keep(done(part.suite, part.folder(tmp_path)), kept[-1])
    assert [folder.name for folder in kept] == ["small", "other"]
    tables, others = kept_tables.joined(kept)
    roles = two_problems.written.roles("core")
    derived = derived_tables(tables, roles) | others | {"retuning": tables.retuning}
    del derived["target"]  # which is made of what is not kept
    for name, table in derived.items():
        keys = [column for column in ("problem", "balancer", "lr") if name == "retuning" and column in table]
        stored = pd.read_parquet(whole / f"{name}.parquet")
        found = table.sort_values(keys) if keys else table
        pd.testing.assert_frame_equal(found.reset_index(drop=True), stored, check_dtype=False, obj=name)
    assert {"leaderboard", "retuning", "baselines", "repeated", "delta_m"} <= set(derived)
    assert "train" in set(tables.scores["split"])


@pytest.mark.slow
def test_parts_are_named_by_table_and_problem() -> None:
    names = [part.name for part in evidence_parts.parts()]
    assert names[:5] == ["A/same-tasks", "B/same-tasks", "A/apart", "B/apart", "A/regression-10-tasks"]
    assert len(names) == 2 * 9
    assert [part.name for part in evidence_parts.parts(["scenes", "B/apart"])] == ["B/apart", "A/scenes", "B/scenes"]
    assert {part.table for part in evidence_parts.parts(reserved=True)} == {"reserved"}
    with pytest.raises(SuiteError, match="no part of the evidence is called 'sceens'; did you mean 'scenes'"):
        evidence_parts.parts(["sceens"])


@pytest.mark.slow
def test_the_command_runs_times_and_keeps(two_problems: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "core.toml"
    path.write_text(path.read_text().replace("rounds = 0", "rounds = 1"))
    monkeypatch.setattr(evidence_parts, "TABLES", {"A": "core", "B": "core"})
    monkeypatch.setattr(suite_file, "find", lambda name: path)
    where = ["--results", str(tmp_path / "results"), "--kept", str(tmp_path / "kept")]
    ran = CliRunner().invoke(command.app, ["run", "A/other", "--jobs", "0", *where])
    assert ran.exit_code == 0, ran.output
    assert [folder.name for folder in (tmp_path / "kept" / "A").iterdir()] == ["other"]
    again = CliRunner().invoke(command.app, ["run", "A/other", "--jobs", "0", *where])
    assert "0 runs computed" in again.output
    repeated = CliRunner().invoke(command.app, ["repeat", "--seeds", "2", "--jobs", "0", *where])
    assert repeated.exit_code == 0, repeated.output
    assert "A/other: 4 of 4 scores are the same to the last bit" in repeated.output
    assert "missing: A/small" in repeated.output
    timed = CliRunner().invoke(command.app, ["costs", "A/other", *where])
    assert timed.exit_code == 0, timed.output
    costs = pd.read_parquet(tmp_path / "kept" / "A" / "other" / "costs.parquet")
    assert set(costs["balancer"]) == {"equal", "static"}
    timed_on = json.loads((tmp_path / "kept" / "A" / "other" / "timed-on.json").read_text())
    assert timed_on["jobs"] == 1
    scores = pd.read_parquet(tmp_path / "kept" / "A" / "other" / "scores.parquet")
    scores["value"] = scores["value"].where(scores["balancer"] != "static", scores["value"] * 2)
    scores.to_parquet(tmp_path / "kept" / "A" / "other" / "scores.parquet")
    differing = CliRunner().invoke(command.app, ["repeat", "A/other", "--jobs", "0", *where])
    assert differing.exit_code == 1
    assert "1 of 2 scores are the same" in differing.output
    assert "static, seed 1: " in differing.output
    assert "equal, seed" not in differing.output
    wrong = CliRunner().invoke(command.app, ["run", "nothing", *where])
    assert wrong.exit_code == 2
    assert "error: no part of the evidence is called 'nothing'" in wrong.output


def test_a_part_counts_as_kept_only_when_all_of_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(kept_tables, "_compact", lambda scores, problems: scores)
    monkeypatch.setattr(kept_tables.atomic_file, "write_parquet", lambda path, table: written.append(path.stem))
    for name in (*kept_tables.BASE, *kept_tables.OTHERS):
        pd.DataFrame({"x": [1]}).to_parquet(tmp_path / f"{name}.parquet")
    kept_tables.keep(tmp_path, tmp_path / "kept")
    assert len(written) == 8
    assert written[-1] == "scores"


def test_a_part_with_a_stubborn_run_does_not_keep_the_next_ones(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = make_suite(problems=[{"name": "small"}, {"name": "small", "label": "other"}])
    parts = [EvidencePart("A", replace(suite, problems=(problem,))) for problem in suite.problems]

    def run(part: Suite, folder: Path, *_: object) -> run_suite.Summary:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environment.json").touch()
        if part.problems[0].label == "small":
            raise run_suite.NotDoneError([(plan.reported(part, None)[0], "it took too long")])
        return run_suite.Summary(1, 0, [])

    kept: list[str] = []
    monkeypatch.setattr(evidence_parts, "parts", lambda only, reserved: parts)
    monkeypatch.setattr(run_suite, "run", run)
    monkeypatch.setattr(kept_tables, "keep", lambda tables, kept_at: kept.append(kept_at.name))
    where = ["--results", str(tmp_path / "results"), "--kept", str(tmp_path / "kept")]
    done = CliRunner().invoke(command.app, ["run", "--jobs", "0", *where])
    assert done.exit_code == 1, done.output
    assert kept == ["other"]
    told = "not done: equal on small, seed 1: it took too long\n1 runs are not done, so this part is not kept\n"
    assert told in done.output

    def lose(part: Suite, folder: Path, *_: object) -> run_suite.Summary:
        if part.problems[0].label == "other":
            raise EngineError("the scheduler is gone")
        return run(part, folder)

    monkeypatch.setattr(run_suite, "run", lose)
    done = CliRunner().invoke(command.app, ["run", "--jobs", "0", *where])
    assert done.exit_code == 1, done.output
    assert told in done.output
    assert done.output.endswith(
        "error: the scheduler is gone. What is finished is kept; the same command continues from there.\n"
    )
