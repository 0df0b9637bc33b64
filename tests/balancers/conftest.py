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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow the tests of `PRODUCTS` that `make test` leaves out.

    Small operations take longer on other devices than the CPU. There, the contract of a method that is not in `SOME` is
    tested only where its paper measures, and the rest is slow too.
    """
    on_cpu = config.getoption("device") == "cpu"
    others = {*names()} - SOME
    for item in items:
        module = item.nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")
        if module not in PRODUCTS:
            continue
        parameters = item.name.partition("[")[2].rstrip("]")
        of_others = any(f"-{name}-" in f"-{parameters}-" for name in others)
        if of_others and (module not in ALL_METHODS or not (on_cpu or _is_at_home(item))):
            item.add_marker(pytest.mark.slow)


def _is_at_home(item: pytest.Item) -> bool:
    """Return whether a test's case, if it has one, measures where the method's paper does, at every step."""
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")
    return case is None or (getattr(case, "at_home", True) and getattr(case, "mode", "") == "")


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
