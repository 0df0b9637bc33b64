"""Fixtures of the balancers' tests."""

from collections.abc import Iterator

import pytest
import torch

from balancers import names

from .ranks import Ranks

PRODUCTS = {
    "test_checkpoints",
    "test_combining_distributed",
    "test_compiled",
    "test_contract",
    "test_devices",
    "test_domains",
    "test_held",
    "test_passes",
    "test_ranks",
    "test_refusals",
    "test_state_formats",
}
"""Files whose tests run for every method: `make test-all` runs them all, `make test` a part.

That part is `SOME` of the methods, and of `ALL_METHODS` what the files themselves do not mark slow.
"""
ALL_METHODS = {"test_contract", "test_devices"}
SOME = {"gradnorm", "uncertainty", "famo", "imtl", "cagrad", "moco"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the tests of `PRODUCTS` that `make test` leaves out."""
    others = {*names()} - SOME
    for item in items:
        module = item.nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
        if module not in PRODUCTS:
            continue
        parameters = item.name.partition("[")[2].rstrip("]")
        left_out = module not in ALL_METHODS and any(f"-{name}-" in f"-{parameters}-" for name in others)
        if left_out:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed PyTorch's random numbers."""
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> None:
    """Reset ``torch.compile``, which gives up on code that it has compiled too often, in any test."""
    torch.compiler.reset()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Return the pair of gloo ranks that serves all tests."""
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.stop()
