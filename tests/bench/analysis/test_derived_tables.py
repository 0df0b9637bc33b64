"""Check which derived tables a suite has, and that they are what the functions of their names return."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench.analysis import (
    Roles,
    SuiteTables,
    baselines,
    controls,
    delta_m,
    derived_tables,
    leaderboard,
    repeated_verdicts,
    time_to_target,
)
from bench.analysis.suite_tables import COLUMNS
from bench.report import results_folder

from ..report.made_up_results import core


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuiteTables, Roles]:
    """Return the tables of a made-up suite with everything in it: tuning, timing, baselines, controls, other seeds."""
    folder: Path = tmp_path_factory.mktemp("results") / "core"
    results = results_folder.load(core(folder, num_tasks=(2, 5), seeds=(11, 12), repeated=(21, 22)))
    return SuiteTables(**{name: results.tables[name] for name in results_folder.BASE}), results.roles


@pytest.mark.slow
def test_every_table_is_what_its_function_returns(suite: tuple[SuiteTables, Roles]) -> None:
    tables, roles = suite
    board = leaderboard(tables, roles)
    expected = {
        "leaderboard": board,
        "baselines": baselines(tables, roles),
        "delta_m": delta_m(tables.scores, tables.metrics),
        "controls": controls(tables, roles),
        "target": time_to_target(tables, roles),
        "repeated": repeated_verdicts(board, leaderboard(tables, roles, "repeated")),
    }
    derived = derived_tables(tables, roles)
    assert derived.keys() == expected.keys()
    for name, table in expected.items():
        assert len(table) or name == "delta_m"  # the made-up runs have no metrics of single tasks
        pd.testing.assert_frame_equal(derived[name], table)


@pytest.mark.slow
def test_verdicts_on_other_seeds_do_not_depend_on_the_timing(suite: tuple[SuiteTables, Roles]) -> None:
    tables, roles = suite
    untimed = derived_tables(replace(tables, costs=tables.costs[:0]), roles)
    pd.testing.assert_frame_equal(untimed["repeated"], derived_tables(tables, roles)["repeated"])
    assert untimed["leaderboard"]["step_ratio"].isna().all()


@pytest.mark.slow
def test_a_table_without_its_runs_is_absent(suite: tuple[SuiteTables, Roles]) -> None:
    tables, roles = suite
    untuned = replace(tables, selection=tables.selection[:0])
    assert derived_tables(untuned, roles).keys() == {"leaderboard", "baselines", "delta_m", "controls"}
    reported = replace(
        tables,
        runs=tables.runs[tables.runs["phase"].isin(["tuning", "reported"])],
        scores=tables.scores[tables.scores["phase"].isin(["tuning", "reported"])],
    )
    alone = replace(roles, second=None, random=None)
    assert derived_tables(reported, alone).keys() == {"leaderboard", "baselines", "target"}


def test_without_metrics_of_single_tasks_there_are_no_baselines(suite: tuple[SuiteTables, Roles]) -> None:
    tables, roles = suite
    assert baselines(replace(tables, metrics=tables.metrics[tables.metrics["task"].isna()]), roles).empty


def test_a_table_that_is_not_given_is_empty_and_has_its_columns() -> None:
    for name, columns in COLUMNS.items():
        table = getattr(SuiteTables(), name)
        assert table.empty
        assert tuple(table) == columns
    assert SuiteTables().step_costs.empty
