"""Run a suite, and check the tables in its results folder."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from bench.analysis import SuiteTables, derived_tables
from bench.execute import run_suite
from bench.execute.workforce import Workforce
from bench.report import results_folder
from bench.suite import plan, result_tables
from bench.suite.suite_entries import Suite

MakeSuite = Callable[..., Suite]


@pytest.mark.slow
def test_the_tables_of_a_folder_follow_from_its_runs_and_are_read_as_they_are(
    make_suite: MakeSuite, tmp_path: Path
) -> None:
    suite, folder = make_suite(baselines=True, learning_rates=None), tmp_path / "mine"
    run_suite.run(suite, folder, Workforce.of(0), Console(quiet=True))
    reported = plan.reported(suite, None)
    done = result_tables.load(suite, [*reported, *plan.baselines(suite, reported)], folder)
    tables = result_tables.assemble(suite, done, None, [])
    stored = {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}
    assert stored.keys() == tables.keys()
    assert stored.keys() <= {*result_tables.TABLES}
    assert {"leaderboard", "baselines", "delta_m"} <= stored.keys()
    for name, table in tables.items():
        pd.testing.assert_frame_equal(stored[name], table.reset_index(drop=True), check_dtype=False)

    results = results_folder.load(folder)
    pd.testing.assert_frame_equal(results.board, stored["leaderboard"])
    base = SuiteTables(
        **{name: results.tables[name] for name in results_folder.BASE}, constants=result_tables.constants(done)
    )
    for name, table in derived_tables(base, results.roles).items():
        pd.testing.assert_frame_equal(stored[name], table.reset_index(drop=True), check_dtype=False)


def test_a_table_of_an_earlier_time_is_removed(tmp_path: Path) -> None:
    table = pd.DataFrame({"problem": ["p"]})
    result_tables.write({"problems": table, "target": table}, tmp_path)
    (tmp_path / "notes.csv").write_text("the user's")
    result_tables.write({"problems": table}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"problems.parquet", "problems.csv", "notes.csv"}


def test_every_table_that_is_read_can_be_removed() -> None:
    assert {*results_folder.BASE, "leaderboard", "trajectory", "dynamics", "micro", "front"} <= {*result_tables.TABLES}
