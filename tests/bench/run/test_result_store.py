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
def spec(make_suite: MakeSuite) -> RunSpec:
    return plan.reported(make_suite(), None)[0].spec


def content(spec: RunSpec, limit: float | None = None) -> bytes:
    failed = RunResult(tasks=("a", "b"), status="failed", reason="no luck", limit=limit, processor="a processor")
    return result_file.encode(spec, failed)


def test_what_is_kept_is_there_for_another_process_too(spec: RunSpec, tmp_path: Path) -> None:
    store = ResultStore(tmp_path, pytest.fail)
    assert not store.has("k")
    store.keep("k", content(spec), PICTURE)
    store.keep("l", content(spec, 3.0), None)
    store.keep_cost("c", {"rows": [1.5]})
    store.keep_kind_of_machine(("a processor", None))
    for each in (store, ResultStore(tmp_path, pytest.fail)):
        assert each.has("k", pictured=True)
        assert each.has("l")
        assert not each.has("l", pictured=True)
        assert (each.limit("k"), each.limit("l")) == (None, 3.0)
        assert each.load("k").reason == "no luck"
        assert each.cost("c") == {"rows": [1.5]}
        assert each.cost("d") is None
        assert each.kind_of_machine() == ("a processor", None)
    assert result_picture.load(result_picture.path(tmp_path, "k")) == PICTURE


def test_damaged_files_are_set_aside_and_told(spec: RunSpec, tmp_path: Path) -> None:
    store = ResultStore(tmp_path, pytest.fail)
    store.keep("k", content(spec), PICTURE)
    store.keep("l", content(spec), PICTURE)
    store.keep_cost("c", {"rows": [1.5]})
    paths = [result_file.run_path(tmp_path, "k"), result_picture.path(tmp_path, "l"), tmp_path / "costs" / "c.json"]
    for path in paths:
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    told: list[str] = []
    again = ResultStore(tmp_path, told.append)
    assert not again.has("k")
    assert again.has("l")
    assert not again.has("l", pictured=True)
    assert again.cost("c") is None
    assert told == [f"{path.name} is damaged: it is now {path.name}.damaged, and is made again" for path in paths]
    assert all(path.with_name(f"{path.name}.damaged").is_file() and not path.exists() for path in paths)


def test_a_result_that_was_damaged_on_its_way_is_not_kept(spec: RunSpec, tmp_path: Path) -> None:
    store, damaged = ResultStore(tmp_path, pytest.fail), bytearray(content(spec))
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(BadFileError):
        store.keep("k", bytes(damaged), None)
    assert not store.has("k")


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
