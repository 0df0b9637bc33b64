"""Test that stored results load unchanged, are written whole or not at all, and execute no code when loaded."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.run import atomic_file, result_file, training
from bench.suite import plan
from bench.suite.suite_entries import Suite

MakeSuite = Callable[..., Suite]


@pytest.mark.parametrize("balancer", ["gradnorm", "failing", "diverging"])
@pytest.mark.parametrize("after", [0, 4])
def test_a_result_comes_back_as_it_was(make_suite: MakeSuite, tmp_path: Path, balancer: str, after: int) -> None:
    options = {} if balancer == "gradnorm" else {"after": after}
    run = plan.reported(make_suite(balancers=[{"name": balancer, "options": options}]), None)[0]
    result = training.run(run.spec)
    path = result_file.run_path(tmp_path, run.key)
    result_file.save(path, run.spec, result)
    back = result_file.load(path)
    assert (back.tasks, back.status, back.reason) == (("a", "b"), result.status, result.reason)
    assert (back.curves, back.dynamics) == (result.curves, result.dynamics)
    assert [vars(score) for score in back.scores] == [vars(score) for score in result.scores]
    assert back.losses.shape == (len(result.losses), 2)
    np.testing.assert_array_equal(back.losses, result.losses.reshape(-1, 2))
    np.testing.assert_array_equal(back.weights, result.weights.reshape(-1, 2))


def test_what_is_no_result_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for content in (b"", b"PAR1 and nothing more", pickle.dumps({"status": "ok"})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.parquet holds no whole result"):
            result_file.load(path)


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_file.write(path, b"old")

    def power_cut(_: int) -> None:
        raise OSError("no power")

    monkeypatch.setattr("os.fsync", power_cut)
    with pytest.raises(OSError, match="no power"):
        atomic_file.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    (tmp_path / "file.1.unfinished").write_bytes(b"half")  # of a process that was killed
    atomic_file.remove_unfinished(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_place_of_a_file_stays_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_file.write(tmp_path / "folder", b"content")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_whether_a_folder_can_be_written_is_found_without_a_trace(tmp_path: Path) -> None:
    atomic_file.require_writable(tmp_path / "new" / "folder")
    atomic_file.require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        atomic_file.require_writable(tmp_path / "file" / "folder")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 200])
def test_no_flipped_bit_changes_a_number(make_suite: MakeSuite, steps: int) -> None:
    run = plan.reported(make_suite(balancers=[{"name": "equal"}]), None)[0]
    result = training.run(run.spec)
    generator = np.random.default_rng(0)
    result.losses = np.tile(generator.normal(size=2), (steps, 1))  # what repeats is stored as a dictionary of pages
    result.weights = generator.normal(size=(steps, 2))
    whole = result_file.encode(run.spec, result)
    refused = 0
    for bit in generator.integers(8 * len(whole), size=1000):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            back = result_file.decode(bytes(damaged), run.key)
        except atomic_file.BadFileError:
            refused += 1
            continue
        assert [vars(score) for score in back.scores] == [vars(score) for score in result.scores]
        assert (back.tasks, back.status, back.curves) == (result.tasks, result.status, result.curves)
        np.testing.assert_array_equal(back.losses, result.losses)
        np.testing.assert_array_equal(back.weights, result.weights)
    assert refused > 300
