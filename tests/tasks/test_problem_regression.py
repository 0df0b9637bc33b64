"""The regression problem's data, model, losses and metrics agree with independent computations."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import tasks
from balancers import Fork, GradNorm
from tasks.regression import PRESETS, Network, Regression, SeparateNetwork

from ..slow_params import others_slow

HEADS = pytest.mark.parametrize("heads", ["batched", "separate"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**options: object) -> Regression:
    return Regression(**{"train_samples": 60, **options})


def initial_model(problem: Regression, seed: int = 0) -> Network | SeparateNetwork:
    torch.manual_seed(seed)
    return problem.model()


def take(problem: Regression, count: int, batch_size: int = 10, seed: int = 2) -> list[tuple[Tensor, Tensor]]:
    batches = problem.batches(problem.data(seeded(1), "cpu"), seeded(seed), batch_size)
    return list(itertools.islice(batches, count))


def head_weights(model: Network | SeparateNetwork) -> list[Tensor]:
    heads = model.heads
    return [head.weight for head in heads] if isinstance(model, SeparateNetwork) else list(heads.weight.unbind())


def predictions_of(model: torch.nn.Module, inputs: Tensor) -> np.ndarray:
    """Return the predictions, ``(N, T, 100)``, in float64."""
    predictions = model(inputs)
    joined = predictions if isinstance(predictions, Tensor) else torch.stack(predictions, 1)
    return joined.detach().double().numpy()


def rows(samples: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in samples}


# The data


@pytest.mark.parametrize("sigmas", [(7,), (1, 100), (0.5, 3, 20)])
@pytest.mark.parametrize(("spread", "b", "eps"), [("deviation", 10, 3.5), ("variance", 10**0.5, 3.5**0.5)])
def test_targets_are_the_papers_formula(sigmas, spread, b, eps):
    data = small(sigmas=sigmas, spread=spread, preactivation_std=2.0).data(seeded(5), "cpu")

    again = seeded(5)
    B = b * torch.randn(100, 250, generator=again).double().numpy()
    epsilons = eps * torch.randn(len(sigmas), 100, 250, generator=again).double().numpy()
    input_std = 2.0 / np.sqrt(250 * (b**2 + eps**2))
    for split, size in (("validation", 2000), ("test", 2000), ("train", 60)):
        samples = getattr(data, split)
        drawn = torch.randn(size, 250, generator=again)
        assert torch.equal(samples.inputs, drawn)
        x = input_std * drawn.double().numpy()
        for i, sigma in enumerate(sigmas):
            expected = sigma * np.tanh(x @ (B + epsilons[i]).T)
            np.testing.assert_allclose(samples.targets[:, i].numpy(), expected, atol=1e-4 * sigma)


def test_uniform_inputs_are_those_of_public_code():
    data = small(inputs="uniform").data(seeded(5), "cpu")

    again = seeded(5)
    B = 10 * torch.randn(100, 250, generator=again).double().numpy()
    epsilons = 3.5 * torch.randn(2, 100, 250, generator=again).double().numpy()
    x = data.test.inputs.double().numpy()
    assert 0 <= x.min() < 0.001
    assert 0.999 < x.max() < 1
    assert x.mean() == pytest.approx(0.5, abs=0.01)
    expected = 100 * np.tanh(x @ (B + epsilons[1]).T)
    np.testing.assert_allclose(data.test.targets[:, 1].numpy(), expected, atol=0.05)


@pytest.mark.parametrize("std", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("spread", ["deviation", "variance"])
def test_preactivations_spread_as_asked(std, spread):
    data = small(preactivation_std=std, spread=spread).data(seeded(3), "cpu")
    assert (data.test.inputs @ data.maps.flatten(0, 1).T).std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(("spread", "correlation"), [("deviation", 100 / 112.25), ("variance", 10 / 13.5)])
def test_tasks_maps_are_correlated_through_their_common_part(spread, correlation):
    maps = small(spread=spread).data(seeded(3), "cpu").maps
    assert np.corrcoef(maps.flatten(1).numpy())[0, 1] == pytest.approx(correlation, abs=0.02)


def test_the_same_seed_gives_the_same_bits():
    first, second = small(stream=True), small(stream=True)
    data, again = first.data(seeded(1), "cpu"), second.data(seeded(1), "cpu")
    assert torch.equal(data.maps, again.maps)
    for split in ("train", "validation", "test"):
        for ours, theirs in zip(getattr(data, split), getattr(again, split), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(take(first, 15), take(second, 15), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_seeds_are_independent():
    problem = small()
    one, other = problem.data(seeded(1), "cpu"), problem.data(seeded(2), "cpu")
    assert not torch.equal(one.maps, other.maps)
    samples = [split.inputs for split in (one.train, one.validation, one.test, other.test)]
    assert len(rows(torch.cat(samples))) == sum(map(len, samples))
    assert not torch.equal(take(problem, 1, seed=2)[0][0], take(problem, 1, seed=3)[0][0])


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    take(small(stream=True), 15)
    assert torch.equal(torch.get_rng_state(), before)


def test_stream_and_training_set_size_leave_the_held_out_sets_alone():
    kinds = [small(), small(stream=True), small(train_samples=70)]
    first, *others = [kind.data(seeded(1), "cpu") for kind in kinds]
    for other in others:
        assert torch.equal(first.validation.targets, other.validation.targets)
        assert torch.equal(first.test.targets, other.test.targets)


# The batches


def test_an_epoch_is_the_training_set_in_a_new_order():
    problem = small()
    batches = [inputs for inputs, _ in take(problem, 12)]
    first, second = torch.cat(batches[:6]), torch.cat(batches[6:])
    assert rows(first) == rows(second) == rows(problem.data(seeded(1), "cpu").train.inputs)
    assert not torch.equal(first, second)


def test_a_batch_keeps_inputs_and_targets_together():
    train = small().data(seeded(1), "cpu").train
    target_of = dict(zip((row.numpy().tobytes() for row in train.inputs), train.targets, strict=True))
    for inputs, targets in take(small(), 6):
        for row, target in zip(inputs, targets, strict=True):
            assert torch.equal(target_of[row.numpy().tobytes()], target)


def test_an_epochs_last_incomplete_batch_is_dropped():
    batches = [inputs for inputs, _ in take(small(), 6, batch_size=25)]
    assert [len(inputs) for inputs in batches] == [25] * 6
    for epoch in (batches[0:2], batches[2:4], batches[4:6]):
        assert len(rows(torch.cat(epoch))) == 50


def test_a_stream_never_repeats():
    batches = take(small(stream=True), 30)
    inputs = torch.cat([inputs for inputs, _ in batches])
    assert len(rows(inputs)) == len(inputs) == 300


def test_a_stream_goes_on_with_the_same_function():
    problem = small(stream=True, sigmas=(3, 20))
    maps = problem.data(seeded(1), "cpu").maps.double().numpy()
    for inputs, targets in take(problem, 30)[-3:]:
        for i, sigma in enumerate((3, 20)):
            expected = sigma * np.tanh(inputs.double().numpy() @ maps[i].T)
            np.testing.assert_allclose(targets[:, i].numpy(), expected, atol=1e-4 * sigma)


@pytest.mark.parametrize("batch_size", [0, 61])
def test_a_batch_size_out_of_range_is_refused_at_once(batch_size):
    problem = small()
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; expected 1 to 60"):
        problem.batches(problem.data(seeded(1), "cpu"), seeded(2), batch_size)


# The model


@HEADS
def test_model_is_the_papers(heads):
    problem = small(sigmas=(1, 2, 3), heads=heads)
    model = initial_model(problem)
    linear = [tuple(m.weight.shape) for m in model.trunk if isinstance(m, torch.nn.Linear)]
    assert linear == [(100, 250), (100, 100), (100, 100), (100, 100)]
    assert [type(m).__name__ for m in model.trunk] == ["Linear", "ReLU"] * 4
    assert [tuple(weight.shape) for weight in head_weights(model)] == [(100, 100)] * 3
    biases = [head.bias for head in model.heads] if heads == "separate" else model.heads.bias

    inputs = torch.randn(5, 250)
    features = model.trunk(inputs).detach()
    for i, (weight, bias) in enumerate(zip(head_weights(model), biases, strict=True)):
        expected = (features @ weight.T + bias).detach().numpy()
        np.testing.assert_allclose(predictions_of(model, inputs)[:, i], expected, rtol=1e-4, atol=1e-5)


def test_batched_and_separate_heads_are_the_same_network():
    """Their initial values are equal to the bit, and the same training keeps them equal."""
    batches = take(small(), 5)
    values, gradients, losses, norms = [], [], [], []
    for heads in ("batched", "separate"):
        problem = small(heads=heads)
        model = initial_model(problem)
        values.append([value.detach().clone() for value in (*model.trunk.parameters(), *head_weights(model))])
        shared = problem.shared(model)
        balancer = GradNorm(shared.fork, wrt=shared.layer, alpha=0.12)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        for batch in batches:
            loss = balancer(problem.losses(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gradients.append([p.grad for p in model.trunk.parameters()])
        losses.append(balancer.statistics["losses"])
        norms.append(balancer.statistics["gradient_norms"])
    torch.testing.assert_close(*values, rtol=0, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(*norms, rtol=1e-4, atol=0)


@HEADS
def test_shared_names_the_fork_the_last_layer_and_the_trunk(heads):
    problem = small(heads=heads)
    model = initial_model(problem)
    shared = problem.shared(model)
    assert isinstance(shared.fork, Fork)
    assert shared.fork.num_tasks == 2
    assert shared.layer is [m for m in model.trunk if isinstance(m, torch.nn.Linear)][-1]
    own = {id(p) for p in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    with pytest.raises(TypeError, match=r"expected a model that Regression\.model made, got Linear"):
        problem.shared(torch.nn.Linear(2, 2))


@HEADS
def test_a_balancer_measures_gradients_at_the_fork_and_the_last_layer(heads):
    problem = small(sigmas=(1, 100, 7), heads=heads)
    model = initial_model(problem)
    (batch,) = take(problem, 1)
    shared = problem.shared(model)
    losses = problem.losses(model, batch)
    gradients = [torch.autograd.grad(loss, list(shared.layer.parameters()), retain_graph=True) for loss in losses]
    expected = [torch.cat([part.flatten() for part in gradient]).norm().item() for gradient in gradients]

    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=problem.tasks)
    balancer(problem.losses(model, batch)).backward()
    np.testing.assert_allclose(balancer.statistics["gradient_norms"].numpy(), expected, rtol=1e-4)


@HEADS
def test_initial_values_come_from_the_global_generator(heads):
    problem = small(heads=heads)
    first, second, other = (initial_model(problem, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


# The losses and metrics


@HEADS
def test_losses_are_mean_squared_errors(heads):
    problem = small(sigmas=(1, 100, 7), heads=heads)
    model = initial_model(problem)
    (batch,) = take(problem, 1)
    losses = problem.losses(model, batch)
    assert len(losses) == 3
    expected = np.square(predictions_of(model, batch[0]) - batch[1].double().numpy()).mean((0, 2))
    for i, loss in enumerate(losses):
        assert loss.shape == ()
        assert loss.item() == pytest.approx(expected[i], rel=1e-5)


@HEADS
def test_a_loss_reaches_no_other_tasks_head(heads):
    problem = small(heads=heads)
    model = initial_model(problem)
    (batch,) = take(problem, 1)
    first, _ = problem.losses(model, batch)
    parameters = list(model.heads.parameters())
    found = torch.autograd.grad(first, parameters, allow_unused=True, materialize_grads=True)
    # Separate heads: weight, bias, weight, bias. Batched heads: one weight and one bias for both tasks.
    own, other = (found[:2], found[2:]) if heads == "separate" else zip(*found, strict=True)
    assert all(gradient.any() for gradient in own)
    assert not any(gradient.any() for gradient in other)


@HEADS
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_against_an_independent_computation(split, heads):
    problem = small(sigmas=(1, 100, 7), heads=heads)
    data = problem.data(seeded(1), "cpu")
    samples = getattr(data, split)
    models = initial_model(problem, 0), initial_model(problem, 1)
    squares = []
    for model in models:
        errors = predictions_of(model, samples.inputs) - samples.targets.double().numpy()
        squares.append(np.square(errors).mean(axis=(0, 2)))

    start = problem.evaluate(models[0], data, split)
    metrics = problem.evaluate(models[1], data, split, start)

    assert list(metrics) == [metric.name for metric in problem.metrics]
    assert metrics[problem.primary] == pytest.approx((squares[1] / squares[0]).sum(), rel=1e-5)
    relative = [metrics[metric.name] for metric in problem.metrics if metric.task is not None]
    np.testing.assert_allclose(relative, squares[1] / np.square([1.0, 100.0, 7.0]), rtol=1e-5)
    assert [metric.task for metric in problem.metrics] == [None, *problem.tasks]


def test_the_initial_models_normalized_loss_is_the_number_of_tasks():
    problem = small(sigmas="T=10")
    data = problem.data(seeded(1), "cpu")
    model = initial_model(problem)
    start = problem.evaluate(model, data, "test")
    assert start[problem.primary] == 10
    assert problem.evaluate(model, data, "test", start) == start


@pytest.mark.parametrize("inputs", ["normal", "uniform"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_constant_predictor_leaves_the_targets_variance(inputs, stream):
    problem = Regression(sigmas=(1, 100), inputs=inputs, stream=stream, train_samples=2000)
    data = problem.data(seeded(1), "cpu")
    start = problem.evaluate(initial_model(problem), data, "test")
    metrics = problem.evaluate(problem.constant(data), data, "test", start)
    variances = data.test.targets.double().var(0).mean(1).numpy() / np.square([1.0, 100.0])
    relative = [metrics[metric.name] for metric in problem.metrics if metric.task is not None]
    np.testing.assert_allclose(relative, variances, rtol=0.01)


@pytest.mark.slow
def test_static_inverse_variance_weights_learn_every_task():
    problem = Regression()
    data = problem.data(seeded(1), "cpu")
    model = initial_model(problem)
    start = problem.evaluate(model, data, "validation")
    constant = problem.evaluate(problem.constant(data), data, "validation", start)
    weights = torch.tensor(problem.static_weights["inverse-variance"])
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.recipe.lr)
    for batch in itertools.islice(problem.batches(data, seeded(2), problem.recipe.batch_size), 600):
        loss = weights @ problem.losses(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    end = problem.evaluate(model, data, "validation", start)
    for metric in problem.metrics:
        assert end[metric.name] < 0.85 * constant[metric.name], metric.name


# The options


def test_presets():
    assert Regression().sigmas == Regression(sigmas="T=2").sigmas == (1, 100)
    assert Regression(sigmas="T=10").sigmas == (48, 3, 54, 16, 9, 30, 52, 26, 47, 81)
    forty = Regression(sigmas="T=40").sigmas
    assert len(forty) == len(Regression(sigmas="T=40").tasks) == 40
    np.testing.assert_allclose(forty, np.geomspace(1, 100, 40), atol=0.005)
    for name in PRESETS:
        tasks.create("regression", sigmas=name)


def test_inverse_variance_weights_equalize_the_scales():
    problem = Regression(sigmas=(1, 10, 2))
    weights = np.array(problem.static_weights["inverse-variance"])
    assert weights.sum() == pytest.approx(3)
    np.testing.assert_allclose(weights * np.square([1, 10, 2]), weights[0])


def test_equal_sigmas_still_give_each_task_a_name():
    assert len(set(tasks.create("regression", sigmas=[2, 2, 2]).tasks)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": []}, r"sigmas is \[\]; expected one number per task"),
        ({"sigmas": 3}, "sigmas is 3; expected one number per task"),
        ({"sigmas": (1, -2)}, r"sigmas\[1\] is -2; expected a positive, finite number"),
        ({"sigmas": (0, 1)}, r"sigmas\[0\] is 0; expected a positive"),
        ({"sigmas": (1, float("nan"))}, r"sigmas\[1\] is nan"),
        ({"sigmas": (1, "2")}, r"sigmas\[1\] is '2'"),
        ({"sigmas": "T=3"}, "sigmas is 'T=3'; expected a list of numbers, or one of 'T=2', 'T=10', 'T=40'"),
        ({"preactivation_std": 0}, "preactivation_std is 0; expected a positive, finite number"),
        ({"preactivation_std": float("inf")}, "preactivation_std is inf"),
        ({"preactivation_std": 2.0, "inputs": "uniform"}, "preactivation_std scales normal inputs"),
        ({"inputs": "cauchy"}, "inputs is 'cauchy'; expected one of 'normal', 'uniform'"),
        ({"spread": "precision"}, "spread is 'precision'; expected one of 'deviation', 'variance'"),
        ({"heads": "shared"}, "heads is 'shared'; expected one of 'batched', 'separate'"),
        ({"train_samples": 0}, "train_samples is 0; expected a whole number, 1 or more"),
        ({"train_samples": 2.5}, "train_samples is 2.5; expected a whole number"),
        ({"stream": "yes"}, "stream is 'yes'; expected true or false"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Regression(**options)


# What is shown of the problem


def test_sizes_count_samples():
    problem = small()
    assert problem.sizes(problem.data(seeded(1), "cpu")) == {"train": 60, "validation": 2000, "test": 2000}


@HEADS
@pytest.mark.parametrize("sigmas", others_slow([(3,), (1, 100), "T=10"], (3,)))
def test_draw_shows_at_most_four_tasks(sigmas, heads):
    problem = small(sigmas=sigmas, heads=heads)
    data = problem.data(seeded(1), "cpu")
    shown = problem.tasks[:4]
    for model, rows in ((None, 2), (initial_model(problem), 1)):
        figure = Figure((9, 5), layout="constrained")
        assert "sigma" in problem.draw(figure, data, model)
        assert len(figure.axes) == rows * len(shown)
        assert [axes.get_title().split("\n")[0] for axes in figure.axes[: len(shown)]] == list(shown)
        figure.draw_without_rendering()


def test_draw_tells_each_tasks_test_loss():
    problem = small(sigmas=(1, 100))
    data = problem.data(seeded(1), "cpu")
    model = initial_model(problem)
    figure = Figure((9, 5), layout="constrained")
    problem.draw(figure, data, model)
    metrics = problem.evaluate(model, data, "test")
    for axes, metric in zip(figure.axes, problem.metrics[1:], strict=True):
        assert axes.get_title() == f"{metric.task}\nloss/sigma^2 {metrics[metric.name]:.3f}"
