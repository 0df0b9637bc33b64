"""The control of tasks that share nothing: its data and metrics are right, and no task reaches another's block."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import log_loss, mean_poisson_deviance, mean_squared_error

import balancers
from balancers import Fork, GradNorm, PCGrad
from tasks.apart import Apart, ApartData, Network, Samples

from ..slow_params import others_slow

PROBLEM = Apart()
SPLITS = ("train", "validation", "test")
STEPS = 150
WEIGHTS = {"equal": (1.0, 1.0, 1.0), **PROBLEM.static_weights, "lopsided": (2.9, 0.05, 0.05)}
"""Fixed weights. They sum to 3."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data() -> ApartData:
    return PROBLEM.data(seeded(1), "cpu")


@pytest.fixture(scope="module")
def batch(data) -> Samples:
    return next(PROBLEM.batches(data, seeded(2), 50))


def initial_model(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return PROBLEM.model()


def trained(data: ApartData, weights: tuple[float, ...], steps: int = STEPS) -> Network:
    model = initial_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=PROBLEM.recipe.lr)
    for batch in itertools.islice(PROBLEM.batches(data, seeded(2), PROBLEM.recipe.batch_size), steps):
        losses = PROBLEM.losses(model, batch)
        optimizer.zero_grad()
        sum(weight * loss for weight, loss in zip(weights, losses, strict=True)).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def equal(data) -> Network:
    return trained(data, WEIGHTS["equal"])


@pytest.fixture(scope="module")
def alone(data) -> list[Network]:
    """Train one model per task on that task's loss alone."""
    return [trained(data, tuple(float(i == j) for j in range(3))) for i in range(3)]


def own_losses(data: ApartData, models: list[Network]) -> list[float]:
    """Return each task's relative loss under the model of its place."""
    return [list(PROBLEM.evaluate(model, data, "test").values())[1 + i] for i, model in enumerate(models)]


# The property that makes it a control


def test_a_tasks_gradient_is_zero_outside_its_block(batch):
    model = initial_model()
    for i, loss in enumerate(PROBLEM.losses(model, batch)):
        for gradient in torch.autograd.grad(loss, list(model.trunk.parameters()), retain_graph=True):
            assert [bool(block.any()) for block in gradient] == [block == i for block in range(3)]
        heads = [head.weight for head in model.heads]
        found = torch.autograd.grad(loss, heads, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert [bool(gradient.any()) for gradient in found] == [head == i for head in range(3)]


@pytest.mark.slow
def test_equal_weights_train_every_task_bit_for_bit_as_it_is_trained_alone(equal, alone):
    for i, model in enumerate(alone):
        for ours, theirs in zip(equal.trunk.parameters(), model.trunk.parameters(), strict=True):
            assert torch.equal(ours[i], theirs[i])
        assert torch.equal(equal.heads[i].weight, model.heads[i].weight)


def test_a_task_that_is_not_trained_stays_where_it_began(alone):
    start = initial_model()
    for i, model in enumerate(alone):
        for before, after in zip(start.trunk.parameters(), model.trunk.parameters(), strict=True):
            assert [torch.equal(before[block], after[block]) for block in range(3)] == [
                block != i for block in range(3)
            ]


@pytest.mark.parametrize("key", WEIGHTS)
def test_fixed_weights_train_every_task_as_it_is_trained_alone(data, alone, key):
    model = trained(data, WEIGHTS[key])
    np.testing.assert_allclose(own_losses(data, [model] * 3), own_losses(data, alone), rtol=1e-3)


def test_there_is_no_conflict_for_a_method_to_resolve(batch):
    model = initial_model()
    shared = PROBLEM.shared(model)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(sum(PROBLEM.losses(model, batch)), parameters)
    for wrt in (None, shared.layer, shared.parameters):
        PCGrad(shared.fork, wrt=wrt, tasks=PROBLEM.tasks)(PROBLEM.losses(model, batch)).backward()
        torch.testing.assert_close([parameter.grad for parameter in parameters], list(expected))
        model.zero_grad()


def test_a_balancer_measures_each_task_at_the_shared_layer(batch):
    model = initial_model()
    shared = PROBLEM.shared(model)
    assert isinstance(shared.fork, Fork)
    own = {id(p) for p in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=PROBLEM.tasks)
    balancer(PROBLEM.losses(model, batch)).backward()
    layer = list(shared.layer.parameters())
    for loss, norm in zip(PROBLEM.losses(model, batch), balancer.statistics["gradient_norms"], strict=True):
        gradients = torch.autograd.grad(loss, layer, retain_graph=True)
        assert norm.item() == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-4)
    with pytest.raises(TypeError, match=r"expected a model that Apart\.model made, got Linear"):
        PROBLEM.shared(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["uncertainty", "mgda", "nash-mtl", "graddrop"])
def test_methods_of_every_kind_find_what_they_read(name, batch):
    model = initial_model()
    shared = PROBLEM.shared(model)
    arguments = (shared.fork,) if issubclass(balancers.get(name), balancers.GradientBalancer) else (PROBLEM.tasks,)
    balancer = balancers.create(name, *arguments)
    balancer(PROBLEM.losses(model, batch)).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in shared.parameters)


# The data


def test_targets_are_the_formula(data):
    for split, size in zip(SPLITS, (8000, 2000, 2000), strict=True):
        inputs, vector, labels, rate = (part.double().numpy() for part in getattr(data, split))
        assert inputs.shape == (size, 10)
        assert inputs.std() == pytest.approx(1, abs=0.02)
        true = [
            np.tanh(inputs @ inner.double().numpy().T) @ outer.double().numpy().T
            for inner, outer in zip(data.maps.inner, data.maps.outer, strict=True)
        ]
        np.testing.assert_allclose(vector, 10 * true[0], atol=1e-4)
        np.testing.assert_allclose(rate, np.exp(true[2][:, 0]), rtol=1e-4)
        assert (labels == true[1].argmax(1)).mean() > 0.999  # rounding may decide between two equal scores
        assert set(labels) == set(range(5))


def test_no_sample_is_in_two_splits(data):
    inputs = torch.cat([getattr(data, split).inputs for split in SPLITS])
    assert len({row.numpy().tobytes() for row in inputs}) == len(inputs) == 12000
    assert PROBLEM.sizes(data) == {"train": 8000, "validation": 2000, "test": 2000}


def test_the_data_are_the_same_for_every_seed(data):
    before = torch.get_rng_state()
    again = PROBLEM.data(seeded(7), "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    for split in SPLITS:
        for ours, theirs in zip(getattr(data, split), getattr(again, split), strict=True):
            assert torch.equal(ours, theirs)


def test_a_batch_keeps_inputs_and_targets_together(data):
    train = {row.numpy().tobytes(): i for i, row in enumerate(data.train.inputs)}
    for samples in itertools.islice(PROBLEM.batches(data, seeded(2), 10), 3):
        chosen = torch.tensor([train[row.numpy().tobytes()] for row in samples.inputs])
        for part, whole in zip(samples, data.train, strict=True):
            assert torch.equal(part, whole[chosen])


# The model, losses and metrics


def test_the_trunk_is_a_block_diagonal_matrix(data):
    """The trunk's output equals that of ordinary layers with zeros off the diagonal blocks."""
    model, inputs = initial_model(), data.test.inputs[:7]
    units = torch.cat([inputs] * 3, 1)
    for layer in model.trunk[::2]:
        units = (units @ torch.block_diag(*layer.weight) + layer.bias.flatten()).tanh()
    features = model.trunk(inputs[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(features.flatten(1), units)


def test_the_same_seeds_give_the_same_bits(data):
    first, second = (trained(data, WEIGHTS["equal"], 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = initial_model(1).state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_losses_and_metrics_against_an_independent_computation(data, equal, split):
    samples = getattr(data, split)
    inputs, vector, labels, rate = (part.double().numpy() for part in samples)
    outputs = [part.detach().double() for part in equal(samples.inputs)]
    train = [part.double().numpy() for part in data.train]
    frequencies = np.bincount(train[2].astype(int), minlength=5) / len(train[2])
    losses = [
        mean_squared_error(vector, outputs[0].numpy()),
        log_loss(labels, outputs[1].softmax(1).numpy()),
        mean_poisson_deviance(rate, outputs[2].exp().numpy()) / 2,
    ]
    constants = [
        np.square(vector - train[1].mean(0)).mean(),
        log_loss(labels, np.tile(frequencies, (len(inputs), 1))),
        mean_poisson_deviance(rate, np.full_like(rate, train[3].mean())) / 2,
    ]
    np.testing.assert_allclose([loss.item() for loss in PROBLEM.losses(equal, samples)], losses, rtol=1e-4)
    relative = np.divide(losses, constants)
    metrics = PROBLEM.evaluate(equal, data, split)
    assert list(metrics) == [metric.name for metric in PROBLEM.metrics]
    np.testing.assert_allclose(list(metrics.values()), [relative.mean(), *relative], rtol=1e-3)
    assert equal.training


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_scores_one(data, split):
    metrics = PROBLEM.evaluate(PROBLEM.constant(data), data, split)
    np.testing.assert_allclose(list(metrics.values()), 1, rtol=1e-6)


def test_no_other_constant_is_better_on_the_training_set(data):
    best = [loss.item() for loss in PROBLEM.losses(PROBLEM.constant(data), data.train)]
    for i, name in enumerate(("vector", "scores", "log_rate")):
        for by in (-0.3, 0.3):
            other = PROBLEM.constant(data)
            values = other.get_buffer(name)
            values.view(-1)[0] += by
            assert PROBLEM.losses(other, data.train)[i].item() > best[i]


def test_static_weights_are_those_of_the_training_set(data):
    losses = np.array([loss.item() for loss in PROBLEM.losses(PROBLEM.constant(data), data.train)])
    assert losses.max() / losses.min() > 50
    np.testing.assert_allclose(PROBLEM.static_weights["inverse-constant"], 3 / losses / (1 / losses).sum(), atol=1e-4)
    PROBLEM.check()


def test_a_part_of_the_recipe_already_learns_every_task(data, equal):
    assert max(PROBLEM.evaluate(equal, data, "validation").values()) < 0.8


@pytest.mark.parametrize("with_model", others_slow([False, True], True))
def test_draw_shows_each_task(data, equal, with_model):
    figure = Figure((9, 5), layout="constrained")
    caption = PROBLEM.draw(figure, data, equal if with_model else None)
    assert "targets" in caption
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == (6 if with_model else 3)
    for task, title in zip(PROBLEM.tasks, titles, strict=False):
        assert title.startswith(task)
    figure.draw_without_rendering()
