"""Two gloo ranks: methods that decide in the step weigh by the global batch, and the network's gradient is its."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from .worker_combining import CASES, train

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("worker_combining.py")
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    processes = [subprocess.Popen([sys.executable, worker, str(i), "2", folder], env=environment) for i in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("name", "wrt"), CASES)
def test_ranks_together_are_one_with_the_whole_batch(ranks: list[dict], name: str, wrt: str) -> None:
    first, second = (rank[f"{name}-{wrt}"] for rank in ranks)
    alone = train(name, wrt, 0, 1)
    for what in ("weights", "gradients"):
        for one, other, expected in zip(first[what], second[what], alone[what], strict=True):
            assert one.equal(other)
            torch.testing.assert_close(one, expected, rtol=1e-7, atol=1e-9)
