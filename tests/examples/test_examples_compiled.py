"""The example of `torch.compile`: a compiled model with a compiled balancer trains as in eager mode."""

import shutil

import pytest
import torch

from .programs import check_that_it_trains, load

pytestmark = [
    pytest.mark.skipif(not any(map(shutil.which, ["c++", "g++", "clang++"])), reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
]


def test_trains_as_in_eager_mode(capsys: pytest.CaptureFixture[str]) -> None:
    torch.compiler.reset()

    eager, compiled = load("compiled").main(steps=60)

    assert len(eager) == 60
    check_that_it_trains(eager, ["sine", "product"])
    for one, two in zip(eager, compiled, strict=True):
        assert two == pytest.approx(one, rel=0.01, abs=0.001)
    out = capsys.readouterr().out
    assert "eager: first step" in out
    assert "compiled: first step" in out
