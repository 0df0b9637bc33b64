"""The control of equal tasks: its data and metrics are right, and fixed weights train it as single-task training."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from balancers import Fork, GradNorm
from tasks.same_tasks import Network, SameTasks, SameTasksData

from ..slow_params import others_slow

STEPS = 800
"""Number of training steps; the default recipe has 2,000."""
AGREEMENT = 1e-3
"""Relative tolerance. Rounding and Adam's epsilon cause less than 1e-4, even after ten thousand steps."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def problem() -> SameTasks:
    return SameTasks()


@pytest.fixture(scope="module")
def data(problem) -> SameTasksData:
    return problem.data(seeded(1), "cpu")


def initial_model(problem: SameTasks, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return problem.model()


def trained(problem: SameTasks, data: SameTasksData, weights: tuple[float, ...], steps: int) -> Network:
    model = initial_model(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.recipe.lr)
    for batch in itertools.islice(problem.batches(data, seeded(2), problem.recipe.batch_size), steps):
        losses = problem.losses(model, batch)
        optimizer.zero_grad()
        sum(weight * loss for weight, loss in zip(weights, losses, strict=True)).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def equal(problem, data) -> Network:
    return trained(problem, data, (1.0, 1.0, 1.0), STEPS)


@pytest.fixture(scope="module")
def single(problem, data) -> list[Network]:
    """Train one model per task on that task's loss alone."""
    one_hot = [tuple(3.0 * (i == j) for j in range(3)) for i in range(3)]
    return [trained(problem, data, weights, STEPS) for weights in one_hot]


def errors_of(problem: SameTasks, data: SameTasksData, model: torch.nn.Module) -> list[float]:
    metrics = problem.evaluate(model, data, "test")
    return [metrics[metric.name] for metric in problem.metrics if metric.task is not None]


# The property that makes it a control


@pytest.mark.slow
def test_single_task_training_is_the_same_for_every_copy(problem, data, single):
    own = [errors_of(problem, data, model)[i] for i, model in enumerate(single)]
    np.testing.assert_allclose(own, own[0], rtol=AGREEMENT)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["equal", "inverse-scale", "lopsided"])
def test_fixed_weights_train_every_task_as_single_task_training_does(problem, data, single, equal, key):
    lopsided = (0.01, 2.0, 0.99)
    weights = {**problem.static_weights, "lopsided": lopsided}
    model = equal if key == "equal" else trained(problem, data, weights[key], STEPS)
    own = [errors_of(problem, data, model)[i] for i, model in enumerate(single)]
    np.testing.assert_allclose(errors_of(problem, data, model), own, rtol=AGREEMENT)


def test_heads_stay_equal_under_fixed_weights(equal):
    first, *others = equal.heads
    for other in others:
        torch.testing.assert_close(other.weight, first.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_untrained_copy_keeps_its_head_and_stays_bad(problem, data, single):
    start = initial_model(problem)
    for i, model in enumerate(single):
        errors = errors_of(problem, data, model)
        for j in range(3):
            kept = torch.equal(model.heads[j].weight, start.heads[j].weight)
            assert kept == (j != i)
            assert (errors[j] > 10 * errors[i]) == (j != i)


@pytest.mark.slow
def test_weights_that_change_in_time_are_seen(problem, data, equal):
    """Weights that change during training change the score, so the control would reveal them."""
    model = initial_model(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.recipe.lr)
    for step, batch in enumerate(itertools.islice(problem.batches(data, seeded(2), problem.recipe.batch_size), STEPS)):
        optimizer.zero_grad()
        (0.99**step * sum(problem.losses(model, batch))).backward()
        optimizer.step()
    assert errors_of(problem, data, model)[0] > 1.1 * errors_of(problem, data, equal)[0]


# The data


def test_targets_are_the_formula(data):
    for split, size in (("train", 8000), ("validation", 2000), ("test", 2000)):
        inputs, targets = (part.double().numpy() for part in getattr(data, split))
        assert inputs.shape == (size, 10)
        expected = np.tanh(inputs @ data.inner.double().numpy().T) @ data.outer.double().numpy().T
        np.testing.assert_allclose(targets, expected, atol=1e-5)
        assert inputs.std() == pytest.approx(1, abs=0.02)


def test_no_sample_is_in_two_splits(data):
    inputs = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert len({row.numpy().tobytes() for row in inputs}) == len(inputs)


def test_the_data_are_the_same_for_every_seed(problem, data):
    before = torch.get_rng_state()
    again = problem.data(seeded(7), "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.train.inputs, data.train.inputs)
    assert torch.equal(again.test.targets, data.test.targets)
    assert problem.sizes(data) == {"train": 8000, "validation": 2000, "test": 2000}


def test_a_batch_keeps_inputs_and_targets_together(problem, data):
    target_of = dict(zip((row.numpy().tobytes() for row in data.train.inputs), data.train.targets, strict=True))
    for inputs, targets in itertools.islice(problem.batches(data, seeded(2), 10), 3):
        for row, target in zip(inputs, targets, strict=True):
            assert torch.equal(target_of[row.numpy().tobytes()], target)


# The model, losses and metrics


def test_all_heads_begin_with_the_values_of_one(problem):
    first, *others = initial_model(problem).heads
    for other in others:
        assert torch.equal(other.weight, first.weight)
        assert torch.equal(other.bias, first.bias)
        assert other.weight is not first.weight
    assert not torch.equal(initial_model(problem, 1).heads[0].weight, first.weight)


def test_the_same_seeds_give_the_same_bits(problem, data):
    first, second = (trained(problem, data, (1.0, 1.0, 1.0), 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_balancer_finds_each_loss_behind_its_own_alias(problem, data):
    model = initial_model(problem)
    batch = next(problem.batches(data, seeded(2), 10))
    shared = problem.shared(model)
    assert isinstance(shared.fork, Fork)
    own = {id(p) for p in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    for i, loss in enumerate(problem.losses(model, batch)):
        weights = [head.weight for head in model.heads]
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert [bool(gradient.any()) for gradient in found] == [j == i for j in range(3)]

    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=problem.tasks)
    balancer(problem.losses(model, batch)).backward()
    norms = balancer.statistics["gradient_norms"]
    np.testing.assert_allclose((norms / norms[0]).numpy(), [1, 10, 100], rtol=1e-5)
    with pytest.raises(TypeError, match=r"expected a model that SameTasks\.model made, got Linear"):
        problem.shared(torch.nn.Linear(2, 2))


def test_losses_are_scaled_mean_squared_errors(problem, data):
    model = initial_model(problem)
    inputs, targets = next(problem.batches(data, seeded(2), 10))
    outputs = model.heads[0](model.trunk(inputs)).detach().double().numpy()
    error = np.square(outputs - targets.double().numpy()).mean()
    losses = [loss.item() for loss in problem.losses(model, type(data.train)(inputs, targets))]
    np.testing.assert_allclose(losses, error * np.array([1, 10, 100]), rtol=1e-5)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_against_an_independent_computation(problem, data, split):
    model = initial_model(problem)
    with torch.no_grad():
        for i, head in enumerate(model.heads):
            head.weight.mul_(1 + i)
    inputs, targets = getattr(data, split)
    truth = targets.double().numpy()
    of_mean = np.square(truth - data.train.targets.double().numpy().mean(0)).mean()
    expected = [np.square(out.detach().double().numpy() - truth).mean() / of_mean for out in model(inputs)]
    metrics = problem.evaluate(model, data, split)
    assert list(metrics) == [metric.name for metric in problem.metrics]
    np.testing.assert_allclose(list(metrics.values()), [np.mean(expected), *expected], rtol=1e-5)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_scores_one(problem, data, split):
    metrics = problem.evaluate(problem.constant(data), data, split)
    np.testing.assert_allclose(list(metrics.values()), 1, rtol=1e-6)


def test_the_recipe_learns_every_copy(problem, data, equal):
    assert max(errors_of(problem, data, equal)) < 0.02


def test_inverse_scale_weights_make_the_losses_alike():
    problem = SameTasks(scales=[2, 0.5])
    np.testing.assert_allclose(problem.static_weights["inverse-scale"], [0.4, 1.6])
    problem.check()
    SameTasks(scales=(3, 3)).check()


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([], r"scales is \[\]; expected one number per task"),
        ("abc", "scales is 'abc'; expected one number per task"),
        (3, "scales is 3; expected one number per task"),
        ((1, 0), r"scales\[1\] is 0; expected a positive, finite number"),
        ((1, float("inf")), r"scales\[1\] is inf"),
        ((1, "2"), r"scales\[1\] is '2'"),
    ],
)
def test_a_bad_option_is_refused_by_name(scales, message):
    with pytest.raises(ValueError, match=message):
        SameTasks(scales=scales)


@pytest.mark.parametrize("with_model", others_slow([False, True], True))
def test_draw(problem, data, equal, with_model):
    figure = Figure((9, 5), layout="constrained")
    caption = problem.draw(figure, data, equal if with_model else None)
    assert "target" in caption
    assert len(figure.axes) == 5
    figure.draw_without_rendering()
