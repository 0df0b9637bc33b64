"""The example of a CUDA graph: without CUDA it says so, and with it the captured step trains as the step itself."""

import runpy

import pytest
import torch

from .programs import EXAMPLES, check_that_it_trains, load

CUDA = torch.cuda.is_available()


@pytest.mark.skipif(CUDA, reason="this machine has CUDA")
def test_without_cuda_it_says_so_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "cuda_graph.py"), run_name="__main__")

    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "needs a GPU with CUDA" in said
    assert load("cuda_graph").main(steps=10) == []


@pytest.mark.skipif(not CUDA, reason="no CUDA")
def test_the_captured_step_trains_as_the_step_itself() -> None:
    plain, captured = load("cuda_graph").main(steps=300)

    check_that_it_trains(captured, ["sine", "product"])
    for one, two in zip(plain, captured, strict=True):
        assert two == pytest.approx(one, rel=0.01, abs=0.001)


def test_the_step_that_is_captured_trains_on_a_cpu() -> None:
    program = load("cuda_graph")
    plain, wrapped = (program.train(120, "cpu", capture=capture) for capture in (False, True))

    assert len(wrapped) == 12
    assert wrapped == plain
    check_that_it_trains(wrapped, ["sine", "product"])
