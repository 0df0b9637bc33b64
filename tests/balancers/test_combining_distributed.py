"""Two gloo ranks: weights are those of the global batch, equal on both, and so is the network's gradient.

This also holds where the ranks' batches have labels for different tasks. In the gradient, which DistributedDataParallel
averages over all ranks, a loss that a rank lacks counts zero. The state reads a task's mean loss over the ranks that
have it.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from balancers import GradientBalancer, get, names

from .ranks import Ranks
from .worker_combining import run

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("processes")

WRT = ("features", "layer", "parameters")
CASES = [
    ("nash-mtl", "features"),
    ("nash-mtl", "layer"),
    ("nash-mtl", "parameters"),
    ("upgrad", "layer"),
    ("gradvac", "parameters"),
    ("imtl-g", "features"),
    ("imtl", "features"),
    ("imtl", "layer"),
    ("imtl", "parameters"),
    ("gls", ""),
    ("dwa", ""),
    ("random", ""),
]
"""Methods, and where they measure."""


def places(name: str) -> list[str]:
    cls = get(name)
    return [wrt for wrt in WRT if wrt not in cls.undefined_for] if issubclass(cls, GradientBalancer) else [""]


OURS = [name for name in names() if get(name).__module__.startswith("balancers.") and name != "graddrop"]
"""All methods but GradDrop, whose random numbers belong to the features of a rank's own samples."""
ALL = [(name, wrt) for name in OURS for wrt in places(name)]
different_tasks = pytest.mark.parametrize("tasks", ["one missing", "one each"])


def agree(ranks: Ranks, name: str, wrt: str, form: str = "dict", tasks: str = "all", **ddp: Any) -> None:
    """Raise AssertionError unless two ranks do the same as one process with the whole batch."""
    case = {"name": name, "wrt": wrt, "form": form, "tasks": tasks, "ddp": ddp}
    first, second = ranks.run("worker_combining", case)
    alone = run(case, 0, 1)
    for what in ("weights", "gradients"):
        for one, other, expected in zip(first[what], second[what], alone[what], strict=True):
            assert one.equal(other)
            torch.testing.assert_close(one, expected, rtol=1e-7, atol=1e-9)
    for key, expected in alone["state"].items():
        assert first["state"][key].equal(second["state"][key])
        torch.testing.assert_close(first["state"][key], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize(("name", "wrt"), CASES)
def test_ranks_together_are_one_with_the_whole_batch(ranks: Ranks, name: str, wrt: str, form: str) -> None:
    agree(ranks, name, wrt, form)


@different_tasks
@pytest.mark.parametrize(("name", "wrt"), ALL)
def test_ranks_with_different_tasks_are_one_with_the_whole_batch(ranks: Ranks, name: str, wrt: str, tasks: str) -> None:
    agree(ranks, name, wrt, tasks=tasks, find_unused_parameters=True)


@pytest.mark.parametrize("tasks", ["all", "one missing", "one each"])
@pytest.mark.parametrize(
    ("name", "wrt"),
    [("gradnorm", "layer"), ("imtl", "features"), ("imtl", "parameters"), ("moco", "parameters"), ("upgrad", "layer")],
)
def test_a_message_for_each_parameter_does_not_get_in_the_way(ranks: Ranks, name: str, wrt: str, tasks: str) -> None:
    """DistributedDataParallel sends its messages during the backward pass, among those of the balancer."""
    agree(ranks, name, wrt, tasks=tasks, find_unused_parameters=tasks != "all", bucket_cap_mb=0.0001)
