"""A stored result is whole or not there: damaged files are set aside, told, and made again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.run import checked_json, result_file, result_picture
from bench.run.atomic_file import BadFileError
from bench.run.result_picture import Picture
from bench.run.result_store import ResultStore
from bench.run.spec import RunSpec
from bench.run.training import RunResult
from bench.suite import plan
from bench.suite.suite_entries import Suite

MakeSuite = Callable[..., Suite]
PICTURE = Picture(b"png", "a caption")


@pytest.fixture
def specs(make_suite: MakeSuite) -> list[RunSpec]:
    return [run.spec for run in plan.reported(make_suite(), None)]


def content(spec: RunSpec, limit: float | None = None) -> bytes:
    failed = RunResult(tasks=("a", "b"), status="failed", reason="no luck", limit=limit, processor="a processor")
    return result_file.encode(spec, failed)


def test_what_is_kept_is_there_for_another_process_too(specs: list[RunSpec], tmp_path: Path) -> None:
    store = ResultStore(tmp_path, pytest.fail)
    first, second = specs[0].key, specs[1].key
    assert not store.has(first)
    store.keep(first, content(specs[0]), PICTURE)
    store.keep(second, content(specs[1], 3.0), None)
    store.keep_cost("c", {"rows": [1.5]})
    store.keep_kind_of_machine(("a processor", None))
    for each in (store, ResultStore(tmp_path, pytest.fail)):
        assert each.has(first, pictured=True)
        assert each.has(second)
        assert not each.has(second, pictured=True)
        assert (each.limit(first), each.limit(second)) == (None, 3.0)
        assert each.load(first).reason == "no luck"
        assert each.cost("c") == {"rows": [1.5]}
        assert each.cost("d") is None
        assert each.kind_of_machine() == ("a processor", None)
    assert result_picture.load(result_picture.path(tmp_path, first)) == PICTURE


def test_damaged_files_are_set_aside_and_told(specs: list[RunSpec], tmp_path: Path) -> None:
    store = ResultStore(tmp_path, pytest.fail)
    first, second = specs[0].key, specs[1].key
    store.keep(first, content(specs[0]), PICTURE)
    store.keep(second, content(specs[1]), PICTURE)
    store.keep_cost("c", {"rows": [1.5]})
    paths = [
        result_file.run_path(tmp_path, first),
        result_picture.path(tmp_path, second),
        tmp_path / "costs" / "c.json",
    ]
    for path in paths:
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    told: list[str] = []
    again = ResultStore(tmp_path, told.append)
    assert not again.has(first)
    assert again.has(second)
    assert not again.has(second, pictured=True)
    assert again.cost("c") is None
    assert told == [f"{path.name} is damaged: it is now {path.name}.damaged, and is made again" for path in paths]
    assert all(path.with_name(f"{path.name}.damaged").is_file() and not path.exists() for path in paths)


def test_a_result_that_was_damaged_on_its_way_is_not_kept(specs: list[RunSpec], tmp_path: Path) -> None:
    store, damaged, first = ResultStore(tmp_path, pytest.fail), bytearray(content(specs[0])), specs[0].key
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(BadFileError):
        store.keep(first, bytes(damaged), None)
    assert not store.has(first)


def test_the_result_of_another_run_counts_as_damaged(specs: list[RunSpec], tmp_path: Path) -> None:
    """A file that was copied or renamed is whole, but its scores are those of another run."""
    one, other = specs[0].key, specs[1].key
    store = ResultStore(tmp_path, pytest.fail)
    store.keep(one, content(specs[0]), None)
    with pytest.raises(BadFileError):
        store.keep(other, content(specs[0]), None)
    path = result_file.run_path(tmp_path, other)
    path.write_bytes(result_file.run_path(tmp_path, one).read_bytes())
    told: list[str] = []
    again = ResultStore(tmp_path, told.append)
    with pytest.raises(BadFileError, match="holds no whole result of the run with this key"):
        again.load(other)
    assert again.has(one)
    assert not again.has(other)
    assert told == [f"{path.name} is damaged: it is now {path.name}.damaged, and is made again"]


def test_no_flipped_bit_of_json_is_read_as_something_else(tmp_path: Path) -> None:
    path, facts = tmp_path / "facts.json", {"rows": [{"median": 1.25, "name": "step"}], "reason": ""}
    checked_json.write(path, facts)
    whole = path.read_bytes()
    refused = 0
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert checked_json.read(path) == facts
        except BadFileError:
            refused += 1
    assert refused > 0.9 * 8 * len(whole) / 3
