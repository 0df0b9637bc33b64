"""Two gloo ranks: methods that decide in the step weigh by the global batch, and the network's gradient is its own."""

import pytest
import torch
import torch.distributed as dist

from .ranks import Ranks
from .worker_combining import run

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
pytestmark = pytest.mark.xdist_group("processes")

CASES = [
    ("nash-mtl", "features"),
    ("nash-mtl", "layer"),
    ("nash-mtl", "parameters"),
    ("upgrad", "layer"),
    ("gradvac", "parameters"),
    ("imtl-g", "features"),
    ("gls", ""),
    ("dwa", ""),
    ("random", ""),
]
"""Methods, and where they measure."""


@pytest.mark.parametrize(("name", "wrt"), CASES)
def test_ranks_together_are_one_with_the_whole_batch(ranks: Ranks, name: str, wrt: str) -> None:
    case = {"name": name, "wrt": wrt}
    first, second = ranks.run("worker_combining", case)
    alone = run(case, 0, 1)
    for what in ("weights", "gradients"):
        for one, other, expected in zip(first[what], second[what], alone[what], strict=True):
            assert one.equal(other)
            torch.testing.assert_close(one, expected, rtol=1e-7, atol=1e-9)
