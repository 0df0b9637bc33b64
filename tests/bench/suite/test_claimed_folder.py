"""A results folder belongs to one file, wherever both are moved, and to one process at a time."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.execute import run_suite
from bench.execute.workforce import Workforce
from bench.run import suite_origin
from bench.suite import suite_file
from bench.suite.claimed_folder import BusyError, claimed
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return two files of the same name, in two folders."""
    paths = tmp_path / "one" / "mine.toml", tmp_path / "two" / "mine.toml"
    for path in paths:
        path.parent.mkdir()
        path.touch()
    return paths


def test_two_files_of_one_name_do_not_share_a_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results" / "mine"
    for _ in range(2):
        with claimed(folder, files[0]):
            pass
    with pytest.raises(SuiteError, match=r"holds results of .*one/mine\.toml, and not of .*two/mine\.toml: rename"):
        claimed(folder, files[1]).__enter__()
    with claimed(folder):  # by whoever does not ask
        assert suite_origin.owner(folder) == files[0].resolve()


def test_a_moved_checkout_keeps_its_results(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = files[0].parent / "results" / "mine"
    with claimed(folder, files[0]):
        pass
    moved = Path(shutil.move(files[0].parent, tmp_path / "three"))
    files[0].parent.mkdir()
    files[0].touch()
    with claimed(moved / "results" / "mine", moved / "mine.toml"):
        assert suite_origin.owner(moved / "results" / "mine") == (moved / "mine.toml").resolve()


def test_a_moved_file_keeps_its_results(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results" / "mine"
    with claimed(folder, files[0]):
        pass
    files[0].unlink()
    with claimed(folder, files[1]):
        assert suite_origin.owner(folder) == files[1].resolve()


def test_the_suite_in_the_folder_may_be_run_there(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "results" / "mine"
    with claimed(folder, files[0]):
        (folder / "mine.toml").touch()
    with claimed(folder, folder / "mine.toml"):
        assert suite_origin.owner(folder) == files[0].resolve()


def test_a_users_suite_is_not_ours_of_the_same_name(tmp_path: Path) -> None:
    own, folder = tmp_path / "core.toml", tmp_path / "results" / "core"
    own.touch()
    with claimed(folder, suite_file.find("core")):
        assert not suite_origin.is_users(folder)
    with pytest.raises(SuiteError, match=r"holds results of lossbench's suite core, and not of .*core\.toml"):
        claimed(folder, own).__enter__()
    (folder / "origin.json").write_text("damaged")
    with claimed(folder, own):
        assert suite_origin.is_users(folder)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(BusyError, match="another process is running a suite in"):
        claimed(tmp_path).__enter__()
    with claimed(tmp_path):
        pass


def test_another_suite_of_the_same_name_is_not_run(
    files: tuple[Path, Path], tmp_path: Path, suite_text: Callable[..., str]
) -> None:
    for path in files:
        path.write_text(suite_text(learning_rates=None, reported=[1], balancers=[{"name": "equal"}]))
    for command, name in (("run", "mine"), ("tune", "mine-tuned")):
        folder = tmp_path / "results" / name
        with claimed(folder, files[0]):
            pass
        done = CliRunner().invoke(app, [command, str(files[1]), "--results", str(folder.parent), "--jobs", "1"])
        assert done.exit_code == 2
        assert f"error: {folder} holds results of {files[0]}" in done.output
        assert not (folder / "runs").exists()


def test_a_suite_that_is_run_claims_its_folder(make_suite: Callable[..., Suite], tmp_path: Path) -> None:
    suite = make_suite(learning_rates=None, reported=[1], balancers=[{"name": "equal"}])
    run_suite.run(suite, tmp_path / "results", Workforce.of(0), Console(quiet=True), tmp_path / "mine.toml")
    assert suite_origin.owner(tmp_path / "results") == (tmp_path / "mine.toml").resolve()
