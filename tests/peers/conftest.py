"""Each peer as a fixture: the module of an other implementation that a test needs, or a skip where it is missing.

A test calls a peer as its package documents it, such as ``torch_rechub.MetaBalance(parameters).step(losses)``. What
a peer computes, and where it departs from its paper, is in the docstring of its test file.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from .loading import HOW_TO_INSTALL, NotInstalledError, load


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="in tests/peers, a test that is skipped fails")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.peers)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure, if ``--no-skips`` was given."""
    report = yield
    if report.skipped and item.config.getoption("no_skips", default=False):
        report.outcome = "failed"
        report.longrepr = f"skipped, against --no-skips: {report.longrepr[-1]}"
    return report


def peer(name: str, stubs: dict[str, dict[str, Any]] | None = None) -> ModuleType:
    """Return the module ``name`` of a peer, or skip the test where its package is missing."""
    try:
        return load(name, stubs)
    except NotInstalledError as missing:
        pytest.skip(f"{missing}: {HOW_TO_INSTALL}")


@pytest.fixture
def double_by_default() -> Iterator[None]:
    """Make float64 the type of tensors that are made without one: some peers make constants so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def audiocraft() -> ModuleType:
    """Return the module with ``Balancer``. It averages with flashy, as in a run on one process."""
    one_process = {"rank": lambda: 0, "world_size": lambda: 1, "init": None}
    distrib = peer("flashy.distrib", {"dora.distrib": one_process})
    averager = peer("flashy.utils").averager
    return peer("audiocraft.losses.balancer", {"flashy": {"averager": averager, "distrib": distrib}})


@pytest.fixture(scope="session")
def conflictfree() -> ModuleType:
    """Return the module with ``PseudoMomentumOperator`` and ``ConFIGOperator``."""
    return peer("conflictfree.momentum_operator")


@pytest.fixture(scope="session")
def libmoon() -> ModuleType:
    """Return the module with ``EPO_LP``, whose solver is CVXPY's GLPK."""
    for solver in ("cvxpy", "cvxopt"):
        pytest.importorskip(solver, reason=f"{solver} is not installed: {HOW_TO_INSTALL}")
    return peer(
        "libmoon.solver.gradient.epo_solver",
        {
            "libmoon.solver.gradient.base_solver": {"GradBaseSolver": object},
            "libmoon.util_global.constant": {"solution_eps": None},
            "pymoo.indicators.hv": {"HV": None},
            "tqdm": {"tqdm": None},
        },
    )


@pytest.fixture(scope="session")
def pina() -> ModuleType:
    """Return the module with ``SelfAdaptiveWeighting``."""
    return peer("pina._src.weighting.self_adaptive_weighting")


@pytest.fixture(scope="session")
def taming() -> ModuleType:
    """Return the module with ``VQLPIPSWithDiscriminator``, which can't be constructed: its networks are stubs."""
    return peer(
        "taming.modules.losses.vqperceptual",
        {
            "taming.modules.losses.lpips": {"LPIPS": None},
            "taming.modules.discriminator.model": {"NLayerDiscriminator": None, "weights_init": None},
        },
    )


@pytest.fixture(scope="session")
def torch_rechub() -> ModuleType:
    """Return the module with ``MetaBalance``."""
    return peer("torch_rechub.basic.metaoptimizer")
