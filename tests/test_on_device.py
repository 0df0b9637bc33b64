"""`OnDevice` moves what a test makes, and draws the same random numbers on every device."""

import pytest
import torch
from torch import nn

from .on_device import OnDevice

META = OnDevice(torch.device("meta"))


def test_tensors_and_modules_that_name_no_device_are_moved():
    generator = torch.Generator().manual_seed(0)
    with META:
        made = [torch.zeros(2), torch.tensor([1.0]), torch.arange(3), torch.randn(2, generator=generator)]
        layer, leaf = nn.Linear(2, 3), torch.ones(2, requires_grad=True)
        named = torch.zeros(2, device="cpu")
    assert {tensor.device.type for tensor in (*made, *layer.parameters(), leaf)} == {"meta"}
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert named.device.type == "cpu"


@pytest.mark.parametrize("make", [lambda: torch.randn(3), lambda: nn.Linear(2, 3).weight.detach()])
def test_a_seed_gives_the_same_numbers(make):
    torch.manual_seed(1)
    expected = make()
    torch.manual_seed(1)
    with OnDevice(torch.device("cpu")):
        assert make().equal(expected)


def test_the_device_is_that_of_the_option(device: torch.device, request: pytest.FixtureRequest):
    assert device.type == request.config.getoption("device")
