"""Read results folders of which only some tables were kept, as CSV alone or without a leaderboard."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.analysis import SuiteTables, leaderboard
from bench.cli import app
from bench.report import folder_comparison, leaderboard_terminal, report_figures, report_page, results_folder
from bench.report.results_folder import BASE
from bench.run import suite_origin
from bench.run.atomic_file import BadFileError

from ...slow_params import others_slow
from .made_up_results import BALANCERS, build

REFERENCE = Path(__file__).parents[3] / "results" / "reference"
SUITES = ("all", "core", "default", "tuned")


def keep_csv(folder: Path) -> None:
    """Replace every Parquet file of ``folder`` by a CSV file."""
    for path in (folder / "tables").glob("*.parquet"):
        pd.read_parquet(path).to_csv(path.with_suffix(".csv"), index=False)
        path.unlink()


@pytest.mark.slow
def test_a_missing_leaderboard_is_made_from_the_other_tables(tmp_path):
    folder = build(tmp_path / "made-up")
    results = results_folder.load(folder)
    tables = SuiteTables(**{name: results.tables[name] for name in BASE})
    pd.testing.assert_frame_equal(results.board, leaderboard(tables, results.roles))
    assert results.ranking
    assert not results_folder.load(build(tmp_path / "untuned", grid=(), timed=False)).ranking


@pytest.mark.slow
def test_a_stored_leaderboard_is_read_and_not_made_again(tmp_path):
    folder = build(tmp_path / "made-up", timed=False)
    board = results_folder.load(folder).board
    for ranking in (True, False):
        changed = board.assign(score=board["score"] + 1, ranking=ranking)
        changed.to_parquet(folder / "tables" / "leaderboard.parquet", index=False)
        results = results_folder.load(folder)
        pd.testing.assert_frame_equal(results.board, changed.reset_index(drop=True))
        assert results.ranking == ranking


@pytest.mark.slow
def test_csv_alone_gives_the_same_results_whatever_the_labels(tmp_path):
    labels = {"equal": BALANCERS["equal"], "1": BALANCERS["GradNorm"], "NA": BALANCERS["uncertainty"]}
    folder = build(tmp_path / "made-up", balancers=labels, failing="1")
    parquet = results_folder.load(folder)
    parquet.board.to_parquet(folder / "tables" / "leaderboard.parquet", index=False)
    keep_csv(folder)
    stored = results_folder.load(folder)
    (folder / "tables" / "leaderboard.csv").unlink()
    made = results_folder.load(folder)
    for csv in (stored, made):
        pd.testing.assert_frame_equal(csv.board, parquet.board, check_exact=True)
        assert csv.ranking == parquet.ranking
    for name, table in parquet.tables.items():
        missing_alike = [frame.where(frame.notna(), None) for frame in (made.tables[name], table)]
        pd.testing.assert_frame_equal(*missing_alike, check_exact=True, check_dtype=False)


def test_a_table_that_was_not_kept_is_empty_unless_every_folder_has_it(tmp_path):
    folder = build(tmp_path / "made-up")
    (folder / "tables" / "curves.parquet").unlink()
    curves = results_folder.load(folder).tables["curves"]
    assert curves.empty
    assert "value" in curves
    for name in ("scores", "runs"):
        (folder / "tables" / f"{name}.parquet").unlink()
        with pytest.raises(FileNotFoundError, match=f"is not the results folder of a suite: it has no tables/{name}"):
            results_folder.load(folder)


def test_a_table_without_a_column_is_refused(tmp_path):
    folder = build(tmp_path / "made-up")
    path = folder / "tables" / "runs.parquet"
    pd.read_parquet(path).drop(columns="status").to_parquet(path, index=False)
    with pytest.raises(ValueError, match=r"the table runs in .* has no column status"):
        results_folder.load(folder)


@pytest.mark.slow
def test_the_page_says_what_the_score_is_if_that_was_stored(tmp_path):
    folder = build(tmp_path / "made-up", num_tasks=(2,), timed=False)
    said = "lower is better: mean of the losses, each over its first."
    assert said in " ".join(report_page.write(folder).read_text().split())
    path = folder / "tables" / "problems.parquet"
    pd.read_parquet(path).drop(columns="description").to_parquet(path, index=False)
    assert results_folder.load(folder).facts(results_folder.load(folder).problems[0]).description == ""
    assert "lower is better." in " ".join(report_page.write(folder).read_text().split())


@pytest.mark.parametrize("suite", others_slow(SUITES, "default"))
def test_the_reference_results_can_be_read(suite, tmp_path, capsys):
    folder = Path(shutil.copytree(REFERENCE / suite, tmp_path / suite))
    leaderboard_terminal.print_leaderboard(folder)
    out = capsys.readouterr().out
    results = results_folder.load(folder)
    for problem in results.problems:
        assert f"{problem}: " in out
    assert results.ranking == (suite != "all")


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["core", "tuned"])
def test_the_reference_results_are_reported_as_far_as_they_were_kept(suite, tmp_path):
    folder = Path(shutil.copytree(REFERENCE / suite, tmp_path / suite))
    (folder / "report.html").unlink(missing_ok=True)  # a source distribution does not have it
    done = CliRunner().invoke(app, ["report", suite, "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (folder / "report.html").read_text()
    for problem in results_folder.load(folder).problems:
        assert problem in page
    kinds = {path.stem.rpartition("-")[0] for path in (folder / "figures").glob("*.svg")}
    assert ("summary" in {path.stem for path in (folder / "figures").glob("*.svg")}) == (suite == "core")
    assert ({"scores", "cost", "learning-rates", "front"} <= kinds) == (suite == "tuned")
    assert not {"curves", "weights", "dynamics"} & kinds


@pytest.mark.parametrize("file", ["suite.toml", "environment.json", "tables/scores.parquet"])
def test_a_damaged_file_is_named_in_a_sentence(tmp_path, file):
    folder = build(tmp_path / "made-up", timed=False)
    (folder / file).write_bytes(b"{ no = such")
    done = CliRunner().invoke(app, ["report", "made-up", "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert f"{file} can't be read" in done.output.replace("\n", "")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Return a results folder of which only CSV files were kept."""
    folder = build(tmp_path_factory.mktemp("small") / "made-up", seeds=(1, 2), grid=(), timed=False, failing="")
    keep_csv(folder)
    return folder


def half(text: str) -> str:
    return "\n".join(text.splitlines()[: text.count("\n") // 2])


def cut(text: str) -> str:
    return text.rsplit(",", 3)[0]


def nameless(text: str) -> str:
    return text.replace('name = "static"\n', "")


def other(text: str) -> str:
    return text.replace('label = "GradNorm"', 'label = "other"')


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("suite.toml", lambda _: 'description = "x"', "suite.toml is no suite: it has no [[problems]] with names"),
        ("suite.toml", lambda text: text[: text.index("[[balancers]]")], "it has no [[balancers]] with names"),
        ("suite.toml", nameless, "it has no [[balancers]] with names"),
        ("suite.toml", other, "have results of GradNorm, which suite.toml there lacks"),
        ("tables/runs.csv", half, "is damaged: it lacks 9 of the runs that have scores"),
        ("tables/runs.csv", cut, "is damaged: it has a run without a status"),
        ("tables/problems.csv", lambda text: text.splitlines()[0], "has no row for 'regression, 10 tasks'"),
        ("tables/problems.csv", lambda _: "", "problems.csv can't be read"),
    ],
)
def test_what_is_damaged_or_of_another_suite_is_told(small, tmp_path, file, how, message):
    folder = Path(shutil.copytree(small, tmp_path / "made-up"))
    (folder / file).write_text(how((folder / file).read_text()))
    with pytest.raises(BadFileError, match=re.escape(message)):
        results_folder.load(folder)


def test_only_our_own_suite_has_confirmatory_verdicts(tmp_path):
    folder = build(tmp_path / "core", num_tasks=(2,), balancers={"equal": BALANCERS["equal"]}, grid=(), timed=False)
    assert results_folder.load(folder).roles.by_label == {"equal": "confirmatory"}
    suite = folder / "suite.toml"
    text = suite.read_text()
    suite.write_text(f'plugins = ["../../waves.py"]\n{text}')
    assert results_folder.load(folder).roles.by_label == {"equal": "exploratory"}
    suite.write_text(text)
    suite_origin.keep(folder, tmp_path / "core.toml")
    assert results_folder.load(folder).roles.by_label == {"equal": "exploratory"}


@pytest.mark.slow
def test_a_kept_summary_is_drawn_again_or_stays(tmp_path):
    """The folder of core has many problems, that of tuned few; neither has its curves."""
    for suite, again in (("core", True), ("tuned", False)):
        folder = Path(shutil.copytree(REFERENCE / suite, tmp_path / suite))
        summary = folder / "figures" / "summary.png"
        summary.write_bytes(b"an older one")
        report_figures.draw(results_folder.load(folder))
        assert (summary.read_bytes() != b"an older one") == again


@pytest.mark.slow
def test_the_protocols_first_version_is_that_of_older_results(tmp_path):
    folders = [build(tmp_path / name, timed=False) for name in ("older", "newer")]
    for folder, protocol in zip(folders, (folder_comparison.HASH_OF_VERSION_1, "1"), strict=True):
        path = folder / "environment.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "protocol": protocol}))
    assert not [note for note in folder_comparison.differences(*folders).notes if "protocol" in note]
