"""Fixtures of the balancers' tests."""

from collections.abc import Iterator

import pytest
import torch

from .ranks import Ranks


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
