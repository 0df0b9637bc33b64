"""The dense-prediction network computes the right outputs, shares the right layers and refuses unsuitable images."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from balancers import Fork
from tasks.dense.network import SegNet

SIZES = ((4, 6, 8), (1, 2, 1), (5, 1, 3))


def made(seed: int = 0) -> SegNet:
    torch.manual_seed(seed)
    return SegNet(*SIZES)


def with_indices(net: SegNet, x: Tensor) -> list[Tensor]:
    """Run the network as in the SegNet paper: with the indices of the maxima, and unpooling."""
    indices = []
    for stage in net.encoder:
        x, where = F.max_pool2d(stage(x), 2, return_indices=True)
        indices.append(where)
    for stage, where in zip(reversed(net.decoder), reversed(indices), strict=True):
        x = stage(F.max_unpool2d(x, where, 2))
    return [head(x) for head in net.heads]


@pytest.mark.parametrize("training", [True, False])
def test_features_go_back_to_where_their_maximum_was(training):
    net = made().double().train(training)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 6)  # keeps all ReLUs above 0, so that no pixels tie
    images = torch.rand(3, 3, 16, 24, dtype=torch.float64)
    ours, theirs = net(images), with_indices(net, images)
    assert [tuple(prediction.shape) for prediction in ours] == [(3, 5, 16, 24), (3, 1, 16, 24), (3, 3, 16, 24)]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)

    parameters = list(net.parameters())
    found, expected = (
        torch.autograd.grad(sum(p.square().sum() for p in predict()), parameters)
        for predict in (lambda: net(images), lambda: with_indices(net, images))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_all_pixels_that_tie_for_the_maximum_are_its_place():
    net = SegNet((2,), (1,), (2,)).eval()
    with torch.no_grad():
        net.encoder[0][0].weight.zero_()  # makes every feature 0
        net.decoder[0][0].weight.zero_()
        net.decoder[0][0].weight[:, :, 1, 1] = 1
    seen = []
    net.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.encoder[0].register_forward_hook(lambda *_: torch.ones(1, 2, 4, 4))
    net(torch.rand(1, 3, 4, 4))
    assert torch.equal(seen[0], torch.ones(1, 2, 4, 4))


def test_stages_have_the_convolutions_asked_for():
    def channels(stage):
        return [(m.in_channels, m.out_channels) for m in stage if isinstance(m, torch.nn.Conv2d)]

    net = made()
    assert [channels(stage) for stage in net.encoder] == [[(3, 4)], [(4, 6), (6, 6)], [(6, 8)]]
    assert [channels(stage) for stage in net.decoder] == [[(4, 4)], [(6, 6), (6, 4)], [(8, 6)]]
    assert [(head.in_channels, head.out_channels, head.kernel_size) for head in net.heads] == [
        (4, 5, (1, 1)),
        (4, 1, (1, 1)),
        (4, 3, (1, 1)),
    ]


def test_tasks_share_all_but_their_last_layer():
    net = made()
    assert isinstance(net.fork, Fork)
    heads = [set(head.parameters()) for head in net.heads]
    for i, prediction in enumerate(net(torch.rand(2, 3, 8, 8))):
        parameters = list(net.parameters())
        gradients = torch.autograd.grad(prediction.sum(), parameters, retain_graph=True, allow_unused=True)
        reached = {p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        assert reached == set(parameters) - set().union(*(own for j, own in enumerate(heads) if j != i))
    assert net.last_shared is net.decoder[0][0]


def test_the_same_seed_gives_the_same_network():
    images = torch.rand(2, 3, 8, 8)
    for one, other in zip(made(1)(images), made(1)(images), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(made(1)(images)[0], made(2)(images)[0])


@pytest.mark.parametrize("size", [(20, 24), (24, 20), (4, 8)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels; with 3 stages, expected multiples of 8"):
        made()(torch.rand(1, 3, *size))


@pytest.mark.parametrize(("widths", "convolutions"), [((4, 8), (1,)), ((), ()), ((4, 0), (1, 1)), ((4, 8), (1, 0))])
def test_impossible_stages_are_refused(widths, convolutions):
    with pytest.raises(ValueError, match="expected one of each per stage, all 1 or more"):
        SegNet(widths, convolutions, (1,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_is_deterministic_on_cuda():
    torch.use_deterministic_algorithms(True)
    try:
        images = torch.rand(2, 3, 16, 16, device="cuda")
        results = []
        for _ in range(2):
            net = made().cuda()
            sum(prediction.square().mean() for prediction in net(images)).backward()
            results.append([p.grad for p in net.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
