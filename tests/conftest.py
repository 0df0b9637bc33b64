"""Settings for every test."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from .on_device import OnDevice


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="device for the tests marked on_device, such as cuda; default: cpu"
    )


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a file's tests in one process of pytest-xdist, so that its fixtures are made once.

    The tests that start processes form the longest group, so they begin first.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] != "processes")
