"""The example that switches methods trains the same network with each, and shows the losses side by side."""

import math

import pytest

from balancers import Fork, GradientBalancer, get

from .programs import load


@pytest.mark.slow
def test_every_method_trains_the_same_network_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    program = load("switch_method")

    begun, found = program.main(steps=1), program.main(steps=80)

    assert list(found) == ["equal", "gradnorm", "uncertainty", "nash-mtl"]
    assert all(math.isfinite(number) for numbers in found.values() for number in numbers.values())
    for method, numbers in found.items():
        for task in program.TASKS:
            assert numbers[f"loss/{task}"] < begun[method][f"loss/{task}"]
            assert (numbers[f"weight/{task}"] == 1.0) == (method == "equal")
    assert len({numbers["loss/sum"] for numbers in found.values()}) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:]] == ["method", *found]
    assert lines[-1].split()[-1] == f"{found['nash-mtl']['loss/product']:.3f}"


@pytest.mark.parametrize("method", ["dwa", "pcgrad", "mgda", "imtl-l"])
def test_other_methods_are_made_by_their_names_at_the_place_of_their_paper(method: str) -> None:
    program = load("switch_method")
    net = program.Net()

    balancer = program.make(method, net)

    assert type(balancer) is get(method)
    if isinstance(balancer, GradientBalancer):
        assert isinstance(balancer.fork, Fork)
    balancer(net.losses(program.torch.randn(16, 8))).backward()
    assert {name.partition("/")[2] for name in balancer.scalars() if name.startswith("weight/")} == set(program.TASKS)
