"""A detector of transformers trains with a fork that is attached to its heads, whose results stay as they were."""

import pytest
import torch

from balancers import Fork, GradNorm

from .programs import check_that_it_trains, load

pytest.importorskip("transformers")


@pytest.mark.slow
def test_trains() -> None:
    check_that_it_trains(load("attached_fork").main(), ["class", "box"])


def test_attaching_changes_no_gradient_of_the_models_own_loss() -> None:
    module = load("attached_fork")
    torch.manual_seed(0)
    model = module.make()
    images, labels = module.batch(4)
    model(images, labels=labels).loss.backward()
    expected = {name: each.grad for name, each in model.named_parameters()}
    model.zero_grad()

    fork = Fork.attach([model.class_labels_classifier, model.bbox_predictor])
    balancer = GradNorm(fork, tasks=["class", "box"])
    balancer(module.losses_of(model, images, labels)).backward()  # the first step's weights are 1
    found = {name: each.grad for name, each in model.named_parameters()}
    torch.testing.assert_close(found, expected)
    assert balancer.statistics["gradient_norms"].min() > 0
