"""The library needs PyTorch and nothing else, and the command line says which extra it needs."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Collection
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest

import balancers
from bench.__main__ import NEEDED

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.xdist_group("processes")

HIDE = """
import sys

HIDDEN = {hidden!r}

class Without:
    # A finder that does not find the packages in HIDDEN.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
sys.path.insert(0, {root!r})
"""

TRAIN = """
import torch
from torch import nn
import balancers
from balancers import Fork, GradientBalancer

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.fork = Fork(2)
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def forward(self, x):
        return [head(z) for head, z in zip(self.heads, self.fork(self.trunk(x)))]

for name in balancers.names():
    cls = balancers.get(name)
    places = [p for p in ("features", "layer", "parameters") if p not in cls.undefined_for] \
        if issubclass(cls, GradientBalancer) else [None]
    for place in places:
        torch.manual_seed(0)
        net = Net()
        if place is None:
            balancer = cls([1.0, 2.0]) if name == "static" else cls(2)
        elif place == "parameters":
            balancer = cls(None, wrt=net.trunk.parameters(), tasks=2)
        else:
            balancer = cls(net.fork, wrt=net.trunk if place == "layer" else None)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        before = net.trunk.weight.clone()

        def residuals(x):
            return [out - x.sum(1, keepdim=True) for out in net(x)]

        if cls.needs_second_batch:
            balancer.second_batch(lambda: [r.square().mean() for r in residuals(torch.randn(6, 4))])
        if cls.needs_optimizer:
            balancer.follow(optimizer)
        for _ in range(3):
            x = torch.randn(6, 4)
            left = residuals(x)
            losses = [r.square().mean() for r in left]
            if hasattr(balancer, "residuals"):
                balancer.residuals(left)
            optimizer.zero_grad()
            balancer(losses).backward()
            optimizer.step()
            if hasattr(balancer, "after_step"):
                balancer.after_step([(out - x.sum(1, keepdim=True)).square().mean().detach() for out in net(x)])
        moved = (net.trunk.weight - before).norm()
        assert balancer.weights.isfinite().all() and moved > 0 and moved.isfinite(), (name, place)
        print(name, place)
"""
COMMAND = "from bench.__main__ import main; main()"


def needed_by(requirement: str) -> set[str]:
    """Return the import names of an installed distribution and of all that it requires, extras left out."""
    todo, seen, found = [requirement], set(), set()
    provided = metadata.packages_distributions()
    while todo:
        name = re.split(r"[^A-Za-z0-9._-]", todo.pop())[0].replace("_", "-").lower()
        if name in seen:
            continue
        seen.add(name)
        found |= {module for module, by in provided.items() if name in {one.replace("_", "-").lower() for one in by}}
        with suppress(metadata.PackageNotFoundError):
            todo += [one for one in metadata.requires(name) or [] if "extra ==" not in one]
    return found


def run(code: str, but: Collection[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run ``code`` where nothing seems to be installed but PyTorch, what it needs, and ``but``."""
    hidden = set(metadata.packages_distributions()) - needed_by("torch") - {"balancers", "tasks", "bench", *but}
    assert {"numpy", "pandas", "scipy", "pytest"} <= {*hidden, *but}
    script = HIDE.format(hidden=hidden, root=str(ROOT)) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)


def test_the_distribution_depends_on_torch_alone() -> None:
    assert [re.split(r"[^a-z]", one)[0] for one in PROJECT["dependencies"]] == ["torch"]


def test_every_method_trains_with_nothing_but_torch() -> None:
    done = run(TRAIN)
    assert done.returncode == 0, done.stderr
    ours = {name for name in balancers.names() if balancers.get(name).__module__.startswith("balancers.")}
    assert {line.split()[0] for line in done.stdout.splitlines()} >= ours


@pytest.mark.slow
def test_the_command_line_names_the_extra_that_it_needs() -> None:
    done = run(COMMAND)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == 'lossbench needs pandas: pip install "lossbench[bench]"'


@pytest.mark.slow
def test_another_missing_package_is_no_error_of_the_user() -> None:
    """With the extra's packages but not those that these need, the traceback names what is missing."""
    done = run(COMMAND, but=NEEDED)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_the_names_are_those_of_the_extra() -> None:
    extra = {re.split(r"[^a-z0-9-]", one)[0] for one in PROJECT["optional-dependencies"]["bench"]}
    assert extra - {"pebble", "psutil", "pillow"} == set(NEEDED)
    assert {"pebble", "psutil", "pillow"} < extra
