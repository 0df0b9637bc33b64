"""A suite ends in the undisturbed tables if the link to a worker's computer is cut, for good or for a moment."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .dask_processes import DaskProcesses
from .separate_host import separate_host, why_not
from .suite_processes import here, same_tables, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
pytest.importorskip("distributed")

SECONDS = 60.0
"""Seconds after which a cut link is mended."""


@pytest.fixture(scope="module")
def second_host() -> None:
    """Skip a test where this computer can't make a second host."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.mark.usefixtures("second_host")
@pytest.mark.parametrize("seconds", [5.0, SECONDS], ids=["for a moment", "for a minute"])
def test_the_link_to_a_worker_is_cut(suite_text: Callable[..., str], tmp_path: Path, seconds: float) -> None:
    path, results = tmp_path / "mine.toml", tmp_path / "cluster"
    slow = {"name": "slow", "options": {"seconds": 0.008}}
    problems = [{"name": "small", "steps": 60}]
    path.write_text(suite_text(problems, balancers=[{"name": "equal"}, slow], reported=[1, 2, 3, 4]))
    (tmp_path / "dask").mkdir()
    with separate_host() as host:
        dask = DaskProcesses(tmp_path / "dask", host=host.address)
        try:
            dask.start_worker("near")
            dask.start_worker("far", within=host.within)
            process = start(path, results, "--scheduler", dask.address)
            wait_for(results, 3, process)
            host.cut()
            end = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            host.join()
            output = process.communicate(timeout=300)[0].decode()
        finally:
            dask.stop()
    assert process.returncode == 0, output
    same_tables(results / "mine", here(path, tmp_path / "here"))
