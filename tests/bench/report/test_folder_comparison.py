"""Test ``lossbench compare``, and the intervals of scores whose seeds are not the same."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from bench.analysis import compare_unpaired
from bench.cli import app
from bench.report import folder_comparison
from bench.run.atomic_file import BadFileError

from .made_up_results import build


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a made-up results folder and a copy of it."""
    first = build(tmp_path / "first", failing="")
    return first, Path(shutil.copytree(first, tmp_path / "second"))


def change(folder: Path, name: str, how) -> None:
    """Replace a table of ``folder`` by ``how`` of it."""
    path = folder / "tables" / f"{name}.parquet"
    how(pd.read_parquet(path)).to_parquet(path, index=False)


def scaled(balancer: str, problem: str, factor: float):
    def how(scores: pd.DataFrame) -> pd.DataFrame:
        of_cell = (scores["balancer"] == balancer) & (scores["problem"] == problem)
        scores.loc[of_cell, "value"] *= factor
        return scores

    return how


def lossbench(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.mark.slow
def test_a_copy_is_identical(folders):
    found = folder_comparison.differences(*folders)
    assert len(found.cells) == 8
    assert all(cell.identical and cell.paired for cell in found.cells)
    code, output = lossbench(*folders)
    assert code == 0
    assert "8 of 8 scores are identical to the bit." in output


@pytest.mark.parametrize(("factor", "verdict", "code"), [(1.1, "worse", 1), (0.9, "better", 0), (1.001, "tie", 0)])
def test_what_changed_is_told_and_the_rest_folded(folders, factor, verdict, code):
    change(folders[1], "scores", scaled("GradNorm", "regression, 10 tasks", factor))
    found = folder_comparison.differences(*folders)
    (cell,) = [cell for cell in found.cells if not cell.identical]
    assert (cell.problem, cell.balancer, cell.paired) == ("regression, 10 tasks", "GradNorm", True)
    assert cell.comparison.mean == pytest.approx(factor)
    assert cell.comparison.verdict == verdict
    exit_code, output = lossbench(*folders)
    assert exit_code == code
    assert f"7 of 8 scores are identical to the bit; of the others: 1 {verdict}." in output


@pytest.mark.slow
def test_other_seeds_are_compared_without_pairs(folders):
    for name in ("scores", "runs"):
        change(
            folders[1],
            name,
            lambda table: table.assign(seed=table["seed"].where(table["seed"] > 100, table["seed"] + 50)),
        )
    found = folder_comparison.differences(*folders)
    assert not any(cell.paired or cell.identical for cell in found.cells)
    assert all(cell.comparison.mean == pytest.approx(1) for cell in found.cells)
    assert lossbench(*folders)[1].count("different") >= 8


def lost(problem: str, balancer: str | None = None):
    """Return a function that takes the scores of a problem away, of one method or of all."""

    def how(scores: pd.DataFrame) -> pd.DataFrame:
        of_cell = (scores["problem"] == problem) & ((scores["balancer"] == balancer) | (balancer is None))
        return scores.assign(value=scores["value"].mask(of_cell))

    return how


@pytest.mark.parametrize("balancer", [None, "GradNorm"])
def test_a_score_that_is_lost_counts_as_worse(folders, balancer):
    change(folders[1], "scores", lost("regression, 10 tasks", balancer))
    found = folder_comparison.differences(*folders)
    cells = [cell for cell in found.cells if cell.lost]
    assert len(cells) == (1 if balancer else 4)
    assert all(cell.verdict == "worse" and cell.paired and not cell.identical for cell in cells)
    exit_code, output = lossbench(*folders)
    assert exit_code == 1
    assert f"of the others: {len(cells)} worse." in output
    assert "different" not in output
    back = folder_comparison.differences(*folders[::-1])  # the other way round, these scores are won
    assert not any(cell.lost for cell in back.cells)


def test_a_score_that_both_lack_is_the_same(folders):
    for folder in folders:
        change(folder, "scores", lost("regression, 10 tasks"))
    assert all(cell.identical for cell in folder_comparison.differences(*folders).cells)
    assert lossbench(*folders)[0] == 0


def test_a_damaged_table_is_told(folders):
    change(folders[1], "runs", lambda table: table[: len(table) // 2])
    exit_code, output = lossbench(*folders)
    assert exit_code == 2
    assert "the table runs in" in output


@pytest.mark.slow
def test_csv_will_do_where_that_is_all_that_was_kept(folders):
    for path in (folders[0] / "tables").glob("*.parquet"):
        pd.read_parquet(path).to_csv(path.with_suffix(".csv"), index=False)
        path.unlink()
    cells = folder_comparison.differences(*folders).cells
    assert all(cell.comparison.mean == pytest.approx(1, abs=1e-12) for cell in cells)


def test_what_only_one_has_and_what_else_differs_is_said(folders):
    for name in ("scores", "runs"):
        change(folders[1], name, lambda table: table[table["balancer"] != "uncertainty"])
    environment = folders[1] / "environment.json"
    environment.write_text(environment.read_text().replace('"commit"', '"was"'))
    notes = folder_comparison.differences(*folders).notes
    assert f"only in {folders[0]}: uncertainty" in notes
    assert any(note.startswith("commit: ") for note in notes)


def test_a_method_that_is_gone_on_one_problem_is_named(folders):
    def without(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["balancer"] != "uncertainty") | (table["problem"] != "regression, 2 tasks")]

    for name in ("scores", "runs"):
        change(folders[1], name, without)
    found = folder_comparison.differences(*folders)
    assert found.notes == [f"only in {folders[0]}: uncertainty on regression, 2 tasks"]


@pytest.mark.slow
def test_what_can_not_be_compared_is_said_in_a_sentence(folders, tmp_path):
    code, output = lossbench(folders[0], tmp_path / "nowhere")
    assert code == 2
    assert "has no table of runs" in output
    change(folders[1], "problems", lambda table: table.assign(primary="another"))
    with pytest.raises(BadFileError, match=r"is scored by .* in .*, by 'another' in"):
        folder_comparison.differences(*folders)
    other = build(tmp_path / "other", problem_label="another of {} tasks")
    with pytest.raises(BadFileError, match="no problem and method in common"):
        folder_comparison.differences(folders[0], other)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 3), (10, 10), (10, 3)])
def test_the_unpaired_interval_covers(sizes):
    """By simulation, in 93 to 97 % of cases, for differences of scores that vary equally in both folders."""
    random = np.random.default_rng(5)
    cases = 4000
    a, b = (random.normal(5, 1, (cases, size)) for size in sizes)
    intervals = [compare_unpaired(x, y, False, "difference") for x, y in zip(a, b, strict=True)]
    covered = np.mean([one.low <= 0 <= one.high for one in intervals])
    assert 0.93 <= covered <= 0.97


def test_the_unpaired_interval_against_welchs_formulas():
    a, b = np.array([27.5, 21.0, 19.0, 23.6, 17.0, 17.9]), np.array([27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8])
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = stats.t.ppf(0.975, df) * np.sqrt(va + vb)
    found = compare_unpaired(a, b, True, "difference")
    assert [found.mean, found.low, found.high] == pytest.approx([a.mean() - b.mean() + x for x in (0, -half, half)])
    ratio = compare_unpaired(np.exp(a), np.exp(b), False, "ratio")
    assert np.log([ratio.mean, ratio.low, ratio.high]) == pytest.approx([found.mean, found.low, found.high])


def test_a_single_seed_has_no_interval():
    found = compare_unpaired([1.0], [2.0, 3.0], False, "ratio")
    assert np.isnan([found.low, found.high]).all()
    assert found.verdict == ""
