"""The recommender's data follow the stated model, and its network, losses and metrics agree with other computations."""

import importlib.util
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import log_loss, mean_absolute_error, r2_score, roc_auc_score

from balancers import Fork, GradNorm
from tasks import MissingDataError, recommender
from tasks.recommender import (
    CENTRE,
    EXPERTS,
    SCALE,
    TRAITS,
    WIDTH,
    Network,
    Outputs,
    Recommender,
    RecommenderData,
    Samples,
    draw_population,
    true_outputs,
)

PROBLEM = Recommender()
SPLITS = ("train", "validation", "test")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_model(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return PROBLEM.model()


def trained(data: RecommenderData, steps: int, batch_size: int = 1024) -> Network:
    model = initial_model()
    optimizer = torch.optim.Adam(model.parameters(), PROBLEM.recipe.lr)
    for batch in itertools.islice(PROBLEM.batches(data, seeded(2), batch_size), steps):
        loss = sum(PROBLEM.losses(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def data() -> RecommenderData:
    return PROBLEM.data(seeded(1), "cpu")


@pytest.fixture(scope="module")
def small(data) -> RecommenderData:
    """Return the first 3,000 impressions of each split."""
    train, validation, test = (Samples(*(part[:3000] for part in getattr(data, name))) for name in SPLITS)
    of_validation, of_test = (Outputs(*(part[:3000] for part in truth)) for truth in data.truths)
    return RecommenderData(train, validation, test, (of_validation, of_test))


def test_the_stated_facts_agree():
    PROBLEM.check()
    assert PROBLEM.reserved


# The data


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_truth_is_the_stated_formula():
    rng = np.random.default_rng(5)
    u, v = rng.normal(size=(2, 40, TRAITS))
    hours, positions = rng.uniform(0, 24, 40), rng.integers(0, 10, 40)
    evening = np.cos(2 * np.pi * (hours - 20) / 24)
    click, after, viewing = [], [], []
    for i in range(40):
        products = [u[i, k] * v[i, k] / 3**0.5 for k in range(5)]
        click.append(
            -3 + 0.8 * v[i, 5] + 0.5 * u[i, 0] + 0.7 * sum(products[:3]) - 0.12 * positions[i] + 0.3 * evening[i]
        )
        after.append(-2.6 - 0.5 * v[i, 5] + 0.8 * u[i, 4] + 0.7 * sum(products[2:]) - 0.5 * v[i, 4])
        taste = products[1] + products[3] - products[2]
        viewing.append(3.6 - 0.3 * v[i, 5] + 0.3 * v[i, 3] + 0.4 * taste + 0.1 * evening[i])
    truth, logits = true_outputs(*(torch.from_numpy(part) for part in (u, v, hours, positions)))
    np.testing.assert_allclose(truth.click, click)
    np.testing.assert_allclose(logits, after)
    np.testing.assert_allclose(truth.viewing, viewing)
    np.testing.assert_allclose(sigmoid(truth.purchase.numpy()), sigmoid(np.array(click)) * sigmoid(np.array(after)))


@pytest.mark.parametrize("index", [0, 1])
def test_what_happened_was_drawn_from_the_truth(index, data):
    """Counts in groups of like probability, and residuals of the viewing times, lie within four standard errors."""
    targets, truth = getattr(data, SPLITS[1 + index]).targets.double(), data.truths[index]
    for happened, logits in zip(targets.T[:2], truth[:2], strict=True):
        p = logits.double().sigmoid()
        for group in p.argsort().tensor_split(4):
            spread = (p[group] * (1 - p[group])).sum().sqrt()
            assert abs(happened[group].sum() - p[group].sum()) < 4 * spread
    clicked = targets[:, 0] > 0
    residuals = (targets[:, 2] - truth.viewing)[clicked]
    assert abs(residuals.mean()) < 4 * 0.5 / clicked.sum().sqrt()
    assert residuals.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("split", SPLITS)
def test_purchases_and_viewing_times_follow_clicks_and_are_rare(split, data):
    click, purchase, viewing = getattr(data, split).targets.T
    assert set(click.tolist()) == set(purchase.tolist()) == {0, 1}
    assert not (purchase > click).any()
    assert torch.equal(viewing.isnan(), click == 0)
    assert 0.045 < click.mean() < 0.065
    assert 0.004 < purchase.mean() < 0.006


def test_profiles_belong_to_users_and_items_and_tell_of_their_traits(data):
    population = draw_population(seeded(2018))
    for split in SPLITS:
        numbers, codes, _ = getattr(data, split)
        assert torch.equal(numbers[:, :8], population.user_profiles[codes[:, 0]])
        assert torch.equal(numbers[:, 8:16], population.item_profiles[codes[:, 1]])
    for traits, profiles in (
        (population.users, population.user_profiles),
        (population.items, population.item_profiles),
    ):
        guess = profiles @ torch.linalg.lstsq(profiles, traits).solution
        explained = 1 - (traits - guess).var(0) / traits.var(0)
        assert (explained > 0.3).all()
        assert explained.mean() < 0.99


def test_inputs_are_finite_and_of_the_stated_range(data):
    for split in SPLITS:
        numbers, codes, _ = getattr(data, split)
        assert numbers.shape[1] == 19
        assert numbers.isfinite().all()
        torch.testing.assert_close(numbers[:, 16:18].square().sum(1), torch.ones(len(numbers)))
        assert len(numbers[:, 18].unique()) == 10
        assert (numbers[:, 18].min(), numbers[:, 18].max()) == (-1, 1)
        assert codes.min() == 0
        assert codes[:, 0].max() < 2000
        assert codes[:, 1].max() < 500
    assert PROBLEM.sizes(data) == {"train": 300_000, "validation": 50_000, "test": 100_000}


def test_no_impression_is_in_two_splits(data):
    """The hour of an impression is a continuous number, so equal inputs would be the same impression."""
    seen = set()
    for split in SPLITS:
        numbers, codes, _ = getattr(data, split)
        seen.update(zip(numbers[:, 16].tolist(), *codes.T.tolist(), strict=True))
    assert len(seen) == sum(PROBLEM.sizes(data).values())


def test_data_are_the_same_for_every_seed_and_draw_from_no_generator(data):
    generator, before = seeded(7), torch.get_rng_state()
    state = generator.get_state()
    recommender.generate.cache_clear()
    again = PROBLEM.data(generator, "cpu")
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)
    for split in SPLITS:
        for ours, theirs in zip(getattr(data, split), getattr(again, split), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_batches_keep_inputs_and_targets_together(small):
    train = small.train._replace(targets=torch.arange(3000.0)[:, None].expand(-1, 3))
    batches = list(itertools.islice(PROBLEM.batches(replace(small, train=train), seeded(2), 1000), 6))
    for batch in batches:
        order = batch.targets[:, 0].long()
        assert torch.equal(batch.numbers, train.numbers[order])
        assert torch.equal(batch.codes, train.codes[order])
    orders = [torch.cat([batch.targets[:, 0] for batch in epoch]).long() for epoch in (batches[:3], batches[3:])]
    assert all(order.sort().values.tolist() == list(range(3000)) for order in orders)
    assert not torch.equal(*orders)


def test_without_scikit_learn_the_problem_says_so(monkeypatch):
    PROBLEM.require()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="recommender needs the package sklearn"):
        PROBLEM.require()


# The model


def test_a_head_mixes_the_experts_by_its_gate(small):
    """The outputs equal those of an MMoE that is written out expert by expert, in NumPy."""
    model, (numbers, codes, _) = initial_model(), Samples(*(part[:20] for part in small.train))
    weights = {name: part.detach().double().numpy() for name, part in model.state_dict().items()}
    x = np.concatenate(
        [numbers.double().numpy(), weights["users.weight"][codes[:, 0]], weights["items.weight"][codes[:, 1]]], 1
    )
    experts = [
        np.maximum(0, x @ weights["experts.weight"][rows].T + weights["experts.bias"][rows])
        for rows in np.split(np.arange(EXPERTS * WIDTH), EXPERTS)
    ]
    for task, output in enumerate(model(numbers, codes)):
        own = {name.removeprefix(f"heads.{task}."): part for name, part in weights.items() if f"heads.{task}." in name}
        gate = np.exp(x @ own["gate.weight"].T + own["gate.bias"])
        gate /= gate.sum(1, keepdims=True)
        mixed = sum(gate[:, [i]] * expert for i, expert in enumerate(experts))
        hidden = np.maximum(0, mixed @ own["tower.0.weight"].T + own["tower.0.bias"])
        expected = (hidden @ own["tower.2.weight"].T + own["tower.2.bias"])[:, 0]
        if task == 2:
            expected = CENTRE + SCALE * expected
        np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_shared_names_the_fork_the_experts_and_the_embeddings():
    model = initial_model()
    shared = PROBLEM.shared(model)
    assert isinstance(shared.fork, Fork)
    assert shared.fork.num_tasks == 3
    assert shared.layer is model.experts
    own = {id(parameter) for parameter in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    with pytest.raises(TypeError, match=r"expected a model that Recommender\.model made, got Linear"):
        PROBLEM.shared(torch.nn.Linear(2, 2))


def test_a_loss_reaches_its_own_gate_and_tower_and_the_experts(small):
    """A balancer measures the gradients that autograd finds, although the gates read the inputs past the experts."""
    model, batch = initial_model(), small.train
    shared = PROBLEM.shared(model)
    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=PROBLEM.tasks)
    balancer(PROBLEM.losses(model, batch)).backward()
    for task, loss in enumerate(PROBLEM.losses(model, batch)):
        layer = torch.autograd.grad(loss, list(model.experts.parameters()), retain_graph=True)
        norm = torch.cat([gradient.flatten() for gradient in layer]).norm().item()
        assert balancer.statistics["gradient_norms"][task].item() == pytest.approx(norm, rel=1e-3)
        for head, module in enumerate(model.heads):
            gradients = torch.autograd.grad(
                loss, list(module.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            assert all(bool(gradient.any()) == (head == task) for gradient in gradients)


def test_training_is_reproducible_to_the_bit(small):
    first, second = (trained(small, 10).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = initial_model(1).state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in first)


# The losses and metrics


def outputs_of(model: torch.nn.Module, samples: Samples) -> list[np.ndarray]:
    with torch.no_grad():
        return [output.double().numpy() for output in model(samples.numbers, samples.codes)]


def test_losses_against_an_independent_computation(small):
    model, batch = initial_model(), small.train
    click, purchase, viewing = outputs_of(model, batch)
    clicked, bought, viewed = batch.targets.double().numpy().T
    expected = [
        log_loss(clicked, sigmoid(click)),
        log_loss(bought, sigmoid(purchase)),
        np.nanmean(((viewing - viewed) / SCALE) ** 2),
    ]
    losses = PROBLEM.losses(model, batch)
    assert all(loss.shape == () for loss in losses)
    np.testing.assert_allclose([loss.item() for loss in losses], expected, rtol=1e-5)


def test_a_batch_without_a_click_gives_a_loss_of_zero_that_can_be_differentiated(small):
    chosen = (small.train.targets[:, 0] == 0).nonzero().flatten()[:50]
    model = initial_model()
    losses = PROBLEM.losses(model, Samples(*(part[chosen] for part in small.train)))
    assert losses[2].item() == 0
    sum(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.heads[2].parameters())


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.slow
def test_metrics_against_an_independent_computation(split, data):
    model = trained(data, 5)
    samples = getattr(data, split)
    click, purchase, viewing = outputs_of(model, samples)
    clicked, bought, viewed = samples.targets.double().numpy().T
    valid = clicked == 1
    aucs = [roc_auc_score(clicked, click), roc_auc_score(bought, purchase)]
    r2 = r2_score(viewed[valid], viewing[valid])
    mean = np.full(valid.sum(), np.nanmean(data.train.targets[:, 2].double().numpy()))
    expected = [
        *(aucs[0], log_loss(clicked, sigmoid(click)), aucs[1], log_loss(bought, sigmoid(purchase))),
        *(r2, mean_absolute_error(viewed[valid], viewing[valid])),
    ]
    metrics = PROBLEM.evaluate(model, data, split)
    assert list(metrics) == [metric.name for metric in PROBLEM.metrics]
    np.testing.assert_allclose(list(metrics.values())[1:], expected, rtol=1e-4, atol=1e-6)
    ratios = [(1 - aucs[0]) / 0.5, (1 - aucs[1]) / 0.5, (1 - r2) / (1 - r2_score(viewed[valid], mean))]
    assert metrics["relative error"] == pytest.approx(np.prod(ratios) ** (1 / 3), rel=1e-4)
    assert model.training


def test_a_model_whose_outputs_are_no_numbers_scores_no_number(small):
    model = initial_model()
    with torch.no_grad():
        model.experts.bias.fill_(math.nan)
    assert all(math.isnan(value) for value in PROBLEM.evaluate(model, small, "test").values())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_is_the_measure(split, data):
    metrics = PROBLEM.evaluate(PROBLEM.constant(data), data, split)
    assert metrics["relative error"] == pytest.approx(1)
    assert metrics["AUC of click"] == metrics["AUC of purchase"] == 0.5
    assert -0.002 < metrics["R2 of viewing time"] <= 0


def test_no_other_constant_is_better_on_the_training_set(data):
    constant = PROBLEM.constant(data)
    best = [loss.item() for loss in PROBLEM.losses(constant, data.train)]
    for i, by in itertools.product(range(3), (-0.2, 0.2)):
        values = constant.get_buffer("values").clone()
        values[i] += by
        assert PROBLEM.losses(recommender.Constant(values), data.train)[i].item() > best[i]


def test_static_weights_and_scales_are_those_of_the_training_set(data):
    losses = np.array([loss.item() for loss in PROBLEM.losses(PROBLEM.constant(data), data.train)])
    np.testing.assert_allclose(PROBLEM.static_weights["inverse-constant"], 3 / losses / (1 / losses).sum(), atol=1e-4)
    viewing = data.train.targets[:, 2].numpy()
    assert np.nanmean(viewing) == pytest.approx(CENTRE, abs=0.05)
    assert np.nanstd(viewing) == pytest.approx(SCALE, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_truth_scores_better_than_a_trained_model_in_every_metric(split, data):
    model, ceiling = PROBLEM.evaluate(trained(data, 100), data, split), PROBLEM.ceiling(data, split)
    for metric in PROBLEM.metrics:
        better = ceiling[metric.name] - model[metric.name]
        assert (better > 0) == metric.higher_is_better, metric.name
    assert 0.2 < ceiling["relative error"] < 0.6


@pytest.mark.slow
def test_a_part_of_the_recipe_already_learns_every_task(data):
    metrics = PROBLEM.evaluate(trained(data, 150), data, "validation")
    assert metrics["AUC of click"] > 0.65
    assert metrics["AUC of purchase"] > 0.55
    assert metrics["R2 of viewing time"] > 0.1
    assert metrics["relative error"] < 0.8


# The picture


@pytest.mark.parametrize("with_model", [False, True])
def test_draw_shows_each_task(with_model, data):
    figure = Figure(figsize=(9, 5), layout="constrained")
    caption = PROBLEM.draw(figure, data, trained(data, 1) if with_model else None)
    assert "test set" in caption
    assert [axes.get_title() for axes in figure.axes] == list(PROBLEM.tasks)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert all(len(axes.lines) == 1 + with_model for axes in figure.axes)
    figure.canvas.draw()


def test_the_drawn_means_are_those_of_groups(data):
    figure = Figure()
    axes = figure.subplots()
    click, p = data.test.targets[:, 0], data.truths[1].click.sigmoid()
    recommender._draw_means(axes, p, click, None)
    at, means = (np.array(part) for part in axes.lines[0].get_data())
    assert (np.diff(at) > 0).all()
    assert means.mean() == pytest.approx(click.mean().item(), rel=1e-3)
