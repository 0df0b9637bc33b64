"""A plain loop, and one that accumulates gradients over several passes, against double backward on the whole batch."""

import pytest
import torch

from balancers import GradNorm, UncertaintyWeighting

from ..slow_params import others_slow
from .integration import (
    SAMPLEWISE,
    SCALES,
    TASKS,
    WRT,
    GradNormReference,
    Net,
    UncertaintyReference,
    assert_bit_equal,
    assert_same,
    in_parts,
    joint,
    make_batches,
    run_balancer,
    run_reference,
    state_of,
)

OPTIONS = [{"optimizer": "adam", "lr": 0.025, "alpha": 1.5}, {"optimizer": "sgd", "lr": 0.1, "alpha": 0.12}]


@pytest.mark.parametrize("layer", others_slow(["linear", "attention", "batchnorm", "dropout"], "linear"))
@pytest.mark.parametrize("wrt", WRT)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=["adam", "sgd"])
def test_gradnorm(layer: str, wrt: str, parts: int, options: dict) -> None:
    windows = in_parts(make_batches(8 * parts), parts)
    net = Net(layer)
    found = run_balancer(net, GradNorm(**net.wrt(wrt), **options, accumulate=parts), windows)
    assert_same(found, run_reference(Net(layer), GradNormReference(**options), windows, wrt))


@pytest.mark.parametrize("layer", SAMPLEWISE)
@pytest.mark.parametrize("wrt", WRT)
def test_gradnorm_over_micro_batches_is_that_of_the_joint_batch(layer: str, wrt: str) -> None:
    windows = in_parts(make_batches(32), 4)
    net = Net(layer)
    found = run_balancer(net, GradNorm(**net.wrt(wrt), accumulate=4), windows)
    assert_same(found, run_reference(Net(layer), GradNormReference(), joint(windows), wrt))


def test_uncertainty_over_micro_batches_is_that_of_the_joint_batch() -> None:
    windows = in_parts(make_batches(32), 4)
    found = run_balancer(Net(), UncertaintyWeighting(len(SCALES), accumulate=4), windows)
    assert_same(found, run_reference(Net(), UncertaintyReference(), joint(windows)))


@pytest.mark.parametrize("wrt", WRT)
def test_close_window_ends_a_short_window(wrt: str) -> None:
    windows = in_parts(make_batches(11), 4)
    assert len(windows[-1]) == 3
    windows += in_parts(make_batches(8), 4)  # the next window starts from nothing
    net = Net()
    found = run_balancer(net, GradNorm(**net.wrt(wrt), accumulate=4), windows)
    assert_same(found, run_reference(Net(), GradNormReference(), joint(windows), wrt))


def test_close_window_without_a_pass_does_nothing() -> None:
    net = Net()
    balancer = GradNorm(**net.wrt("layer"), accumulate=2)
    run_balancer(net, balancer, in_parts(make_batches(2), 2))
    before = state_of(balancer)
    balancer.close_window()
    assert_bit_equal(state_of(balancer), before)


@pytest.mark.parametrize("wrt", WRT)
def test_losses_form_and_common_factor_do_not_matter(wrt: str) -> None:
    """The losses may be a list, a dict in any order or one tensor, and the scalar may be scaled before backward."""
    windows = in_parts(make_batches(6), 1)
    trajectories = []
    for form in ("list", "dict", "tensor"):
        net = Net()
        balancer = GradNorm(**net.wrt(wrt) | {"tasks": TASKS})
        plain = net.losses

        def losses(batch: tuple, form: str = form, plain: object = plain) -> object:
            given = plain(batch)
            named = dict(reversed(list(zip(TASKS, given, strict=True))))
            return {"list": given, "dict": named, "tensor": torch.stack(given)}[form]

        net.losses = losses
        trajectories.append(run_balancer(net, balancer, windows, lambda loss: (0.375 * loss).backward()))
    expected = run_reference(Net(), GradNormReference(), windows, wrt, gradient_factor=0.375)
    for found in trajectories:
        assert_same(found, expected)
