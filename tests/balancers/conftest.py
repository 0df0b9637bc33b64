import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The networks here are so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler():
    """torch.compile gives up on code that it has compiled too often, in whatever test."""
    torch.compiler.reset()
