"""The examples that torchrun starts on two processes: ranks agree, and a resumed run ends as one without a break."""

import os
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from .programs import EXAMPLES

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

PROGRAMS = ["data_parallel", "fully_sharded"]
CRASHED_AT_ITS_END = "terminate called without an active exception"
"""What a process prints if a thread of gloo frees a tensor, which has a Python object, while the interpreter ends."""
TRIES = 4


class Runs:
    """Runs of one program in a folder."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def run(self, *arguments: str) -> dict[tuple[int, int], list[float]]:
        """Return the weights that the program prints, by rank and step.

        PyTorch 2.13 can crash when a program that used gloo has ended (`CRASHED_AT_ITS_END`): then it is run again.
        """
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        for _ in range(TRIES):
            done = subprocess.run(
                [*torchrun, str(EXAMPLES / f"{self._program}.py"), *arguments],
                cwd=self._folder,
                env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=300,
            )
            if CRASHED_AT_ITS_END not in done.stderr:
                break
        assert done.returncode == 0, done.stderr[-3000:]
        printed = re.findall(r"rank (\d+), step (\d+): weights (\[.*?\])", done.stdout)
        return {(int(rank), int(step)): literal_eval(weights) for rank, step, weights in printed}


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_ranks_have_the_same_weights_and_resuming_changes_nothing(program: str, tmp_path: Path) -> None:
    runs = Runs(program, tmp_path)

    whole = runs.run("--steps", "8", "--checkpoint", "whole")
    begun = runs.run("--steps", "4", "--checkpoint", "half")
    resumed = runs.run("--steps", "8", "--resume", "half", "--checkpoint", "resumed")

    assert sorted(whole) == [(0, 0), (0, 7), (1, 0), (1, 7)]
    assert whole[0, 0] == [1.0, 1.0]
    assert whole[0, 7] != [1.0, 1.0]
    assert all(each[0, step] == each[1, step] for each in (whole, begun, resumed) for _, step in each)
    assert sorted(resumed) == [(0, 4), (0, 7), (1, 4), (1, 7)]
    assert resumed[0, 7] == whole[0, 7]
    if program == "data_parallel":
        saved = [torch.load(tmp_path / name, weights_only=True) for name in ("whole", "resumed")]
        assert all(value.isfinite().all() for value in saved[0]["net"].values())
        for name in ("net", "balancer"):
            torch.testing.assert_close(saved[1][name], saved[0][name], rtol=0, atol=0)
