"""Settings for every test."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from .balancers.contract_plugins import OWN
from .on_device import OnDevice

FEW = 3
"""With ``--sample``, the number of cases up to which all cases of a test function are run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="device for the tests marked on_device, such as cuda; default: cpu"
    )
    parser.addoption(
        "--method", type=Path, help="file of your own method, to test its contract: tests/balancers/test_contract.py"
    )
    parser.addoption(
        "--sample",
        action="store_true",
        help="mark as slow, of each test function with many cases, all but a fixed fifth of them",
    )
    parser.addoption("--site", type=Path, help="folder of built pages to check, build/docs/html; default: builds them")


def pytest_configure(config: pytest.Config) -> None:
    """Load the file that ``--method`` names, before tests are collected."""
    if (file := config.getoption("--method")) is None:
        return
    import balancers
    from bench.run import plugins

    try:
        found = plugins.registered(file).balancers
    except plugins.PluginError as error:
        raise pytest.UsageError(str(error)) from error
    if not found:
        raise pytest.UsageError(f"{file} registers no method; docs/add-a-method.md shows how a file does that")
    OWN.extend(map(balancers.get, found))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device that ``--device`` names."""
    return torch.device(request.config.getoption("device"))


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test marked ``on_device``, but not ``on_cpu``, with its tensors on the device that ``--device`` names."""
    marked = request.node.get_closest_marker("on_device") and not request.node.get_closest_marker("on_cpu")
    device = torch.device(request.config.getoption("device"))
    with OnDevice(device) if marked and device.type != "cpu" else nullcontext():
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Run on one CPU thread: the networks of the tests are so small that a second one only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the documentation's pages: what ``--site`` names, or built here with warnings as errors."""
    if (built_before := request.config.getoption("site")) is not None:
        return built_before.resolve(strict=True)
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("docs")
    options = ["-n", "-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "html")],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> list[pytest.Item] | None:
    """Leave out functions that are slow before their parameters are made, where ``-m "not slow"`` leaves them out."""
    marks = getattr(obj, "pytestmark", None)
    if not str(collector.config.getoption("markexpr")).startswith("not slow") or not isinstance(marks, list):
        return None
    return [] if any(isinstance(mark, pytest.Mark) and mark.name == "slow" for mark in marks) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run a file's tests in one process of pytest-xdist, so that its fixtures are made once.

    The tests that start processes form the longest group, so they begin first. With ``--method``, the only tests are
    those of the contract.
    """
    if OWN:
        others = [item for item in items if not _is_contract(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _is_contract(item)]
    elif config.getoption("sample"):
        _mark_all_but_a_sample(items)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] != "processes")


def _mark_all_but_a_sample(items: Sequence[pytest.Item]) -> None:
    """Mark as slow all but a sample of the cases of each test function: a fifth of them, and at least `FEW`.

    The sample has the cases whose names have the smallest hashes. So it is the same in each process, a new case changes
    at most one other, and two functions leave out different methods.
    """
    cases_of = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("slow") is None:
            cases_of[item.parent, item.originalname].append(item)
    for cases in cases_of.values():
        kept = max(FEW, -(-len(cases) // 5))
        for item in sorted(cases, key=lambda case: sha256(case.nodeid.encode()).digest())[kept:]:
            item.add_marker("slow")


def _is_contract(item: pytest.Item) -> bool:
    """Return whether a test takes a case of a method."""
    return item.path.stem == "test_contract" and "case" in getattr(getattr(item, "callspec", None), "params", ())
