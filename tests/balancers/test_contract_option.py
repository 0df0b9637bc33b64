"""``pytest tests/balancers/test_contract.py --method my_method.py`` tests the methods that a user's file registers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

METHODS = """
from torch import Tensor
from balancers import LossBalancer, register


@register
class Mine(LossBalancer):
    name = "mine"
    summary = "Weigh by the inverse losses, which then sum to the number of tasks."
    needs_positive_losses = True

    def weigh(self, losses: Tensor) -> Tensor:
        inverse = 1 / losses
        return self.count(losses) * inverse / inverse.sum(-1, keepdim=True)

    def count(self, losses: Tensor) -> int:
        return losses.shape[-1]


@register
class Forgetful(Mine):
    name = "forgetful"
    summary = "The same, but it counts tasks that have no loss."

    def count(self, losses: Tensor) -> int:
        return self.num_tasks
"""


def contract(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "pytest", "tests/balancers/test_contract.py", "--method", str(file), "-q", "-rA", *options]
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_methods_of_a_file_are_tested_and_nothing_else(tmp_path: Path):
    file = tmp_path / "methods.py"
    file.write_text(METHODS)
    found = contract(file, "-k", "left_out or shows_the_weights")
    assert found.returncode == 1, found.stdout + found.stderr
    test = "tests/balancers/test_contract.py::test_a_task_left_out_takes_no_part"
    assert f"PASSED {test}[mine]" in found.stdout
    assert f"FAILED {test}[forgetful]" in found.stdout
    outcomes = [line for line in found.stdout.splitlines() if line.startswith(("PASSED ", "FAILED "))]
    assert outcomes
    assert all("[mine" in line or "[forgetful" in line for line in outcomes)


@pytest.mark.slow
def test_a_file_without_a_method_is_refused(tmp_path: Path):
    file = tmp_path / "nothing.py"
    file.write_text("import torch\n")
    found = contract(file)
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "nothing.py registers no method" in found.stderr
