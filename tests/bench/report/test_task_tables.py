"""Test what the report says about single tasks: which method helps which."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.report import leaderboard_terminal, report_page, task_tables
from bench.report.answer import answer
from bench.report.results_folder import Results, load

from .made_up_results import build

FACTORS = {"equal": (1.0, 1.0), "static 1/sigma²": (0.5, 1.5), "uncertainty": (1.0, 0.9), "GradNorm": (0.8, 1.0)}
"""Factors of the losses of two tasks under each method."""
SEEDS = (1, 2, 3, 4, 5)


def with_tasks(folder: Path, failing: str = "") -> Path:
    """Write a results folder of one problem whose methods scale the losses of its tasks by `FACTORS`.

    Of the method ``failing``, the first run has no metrics of single tasks.
    """
    build(folder, num_tasks=(2,), failing=failing, seeds=SEEDS)
    scores = pd.read_parquet(folder / "tables" / "scores.parquet")
    metrics = pd.read_parquet(folder / "tables" / "metrics.parquet")
    random = np.random.default_rng(1)
    rows, facts = [], []
    primary = scores[(scores["phase"] == "reported") & (scores["checkpoint"] == "last") & (scores["split"] == "test")]
    for task in range(len(FACTORS["equal"])):
        about = {"metric": f"loss of {task}", "task": f"task {task}"}
        facts.append({"problem": "regression, 2 tasks", **about, "unit": "m", "higher_is_better": False})
        for _, row in primary.iterrows():
            value = 0.3 * FACTORS[row["balancer"]][task] * np.exp(random.normal(0, 0.003))
            lost = row["balancer"] == failing and row["seed"] == SEEDS[0]
            rows.append({**row, **about, "value": np.nan if lost else value, "imputed": False})
    pd.concat([scores, pd.DataFrame(rows)]).to_parquet(folder / "tables" / "scores.parquet", index=False)
    pd.concat([metrics, pd.DataFrame(facts)]).to_parquet(folder / "tables" / "metrics.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tasks(tmp_path_factory.mktemp("results") / "mine")


@pytest.fixture
def results(folder: Path) -> Results:
    return load(folder)


def verdicts(results: Results) -> dict[str, list[str]]:
    found = task_tables.task_table(results)
    assert found is not None
    return {label: [cell["verdict"] for cell in cells] for label, cells in found["rows"]}


def test_every_method_has_every_task_with_its_mean_change_and_verdict(results: Results) -> None:
    found = task_tables.task_table(results)
    assert found is not None
    assert found["header"] == ["loss of 0 (m), lower is better", "loss of 1 (m), lower is better"]
    assert [label for label, _ in found["rows"]] == list(results.board["balancer"])
    assert verdicts(results) == {
        "equal": ["", ""],
        "static 1/sigma²": ["better", "worse"],
        "uncertainty": ["tie", "better"],
        "GradNorm": ["better", "tie"],
    }
    cells = dict(found["rows"])["static 1/sigma²"]
    assert [cell["mean"][:3] for cell in cells] == ["0.1", "0.4"]
    assert [float(cell["change"].rstrip("×")) for cell in cells] == pytest.approx([0.5, 1.5], rel=0.03)
    assert found["incomplete"] == []


@pytest.mark.slow
def test_the_page_and_the_terminal_show_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = report_page.write(folder).read_text()
    assert source.count("<h3>Task by task</h3>") == 1
    section = source[source.index("<h3>Task by task</h3>") :]
    assert re.search(r'<span class="bounds verdict-better">0\.\d+× better</span>', section)
    assert re.search(r'<span class="bounds verdict-worse">1\.\d+× worse</span>', section)
    leaderboard_terminal.print_leaderboard(folder)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    table = out[out.index("Task by task, means over seeds") :]
    assert re.search(r"static 1/sigma² +0\.\d+ 0\.\d+× better +0\.\d+ 1\.\d+× worse", table)


def test_heads_take_two_lines_where_there_is_room(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    task_tables.print_tasks(results, Console(width=80))
    out = capsys.readouterr().out
    head = out[: out.index("─")].splitlines()[2:]
    assert len(head) <= 2
    assert "is better" not in out
    assert " ".join(" ".join(head).split()).count("↓") == 2


def test_a_terminal_too_narrow_for_it_refers_to_the_page(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    task_tables.print_tasks(results, Console(width=40))
    assert " ".join(capsys.readouterr().out.split()) == (
        "Task by task: 2 metrics are too wide for this table; the page has them."
    )


def test_the_answer_says_which_task_pays(results: Results) -> None:
    (said,) = answer(results)
    assert re.search(r" Task by task: loss of 0 better \(0\.\d+×\) and loss of 1 worse \(1\.\d+×\)\.$", said)


def test_of_many_tasks_the_answer_counts(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_tables, "MOST_NAMED", 1)
    assert task_tables.finding(results, "static 1/sigma²") == "Of 2 metrics of single tasks: 1 better and 1 worse."
    assert task_tables.finding(results, "uncertainty") == "Of 2 metrics of single tasks: 1 better and 1 tie."


@pytest.mark.slow
def test_means_of_a_method_with_a_failed_run_are_told_apart(tmp_path: Path) -> None:
    folder = with_tasks(tmp_path / "mine", failing="GradNorm")
    results = load(folder)
    found = task_tables.task_table(results)
    assert found is not None
    assert found["incomplete"] == ["GradNorm"]
    assert verdicts(results)["GradNorm"] == ["", ""]
    assert verdicts(results)["uncertainty"] == ["tie", "better"]
    text = " ".join(report_page.write(folder).read_text().split())
    assert "The means of GradNorm are those of the runs that did not fail." in text


def test_without_a_ranking_changes_have_no_verdict(results: Results) -> None:
    untuned = replace(results, ranking=False)
    assert {word for words in verdicts(untuned).values() for word in words} == {""}
    assert task_tables.finding(untuned, "GradNorm") == ""


def test_without_metrics_of_single_tasks_there_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = load(build(tmp_path / "mine", num_tasks=(2,), failing=""))
    assert task_tables.task_table(results) is None
    assert task_tables.finding(results, "GradNorm") == ""
    task_tables.print_tasks(results, Console(width=100))
    assert capsys.readouterr().out == ""
