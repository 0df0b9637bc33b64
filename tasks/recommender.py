"""The problem ``recommender``: predicts clicks, purchases and viewing times of items shown to users.

The model is a multi-gate mixture of experts (MMoE; Ma, Zhao, Yi, Chen, Hong and Chi, "Modeling Task Relationships in
Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018): all tasks share the experts, and each task mixes
their outputs by a gate of its own. The data follow the form of a shop's log, in which an impression may lead to a
click, and a click to a purchase. As in Ma, Zhao, Huang, Wang, Hu, Zhu and Gai, "Entire Space Multi-Task Model" (SIGIR
2018), purchases are predicted for all impressions and not only for clicked ones. That paper's network multiplies two of
its outputs to do so. Here each task has an output of its own, because a head may not read another head's output.

The interactions are generated. Users and items have hidden traits; their profiles are noisy pictures of these. All
probabilities are known, so that the score of the true probabilities, the best that any model can expect, can be stated
(`Recommender.ceiling`). An item's appeal at first sight raises clicks, and lowers purchases and viewing times. Few
impressions are positive: one in eighteen is clicked, and one in two hundred leads to a purchase.

The table shows test scores after the default recipe (means of three seeds), of the true probabilities, and of the best
constants:

                        equal    inverse-constant    single-task    truth    constant
    AUC, click          0.745    0.748               0.757          0.786    0.500
    AUC, purchase       0.689    0.729               0.720          0.815    0.500
    R2, viewing time    0.490    0.484               0.496          0.575   -0.001

No method's score on this problem has been looked at, apart from these: it is reserved.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from balancers import Fork

from .batch_order import batches
from .package_files import require_package
from .problem import Metric, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register
from .relative_error import relative_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USERS, ITEMS = 2_000, 500
"""Number of users and of items."""
TRAITS = 6
"""Number of hidden traits of a user and of an item; a trait is a standard normal number."""
PROFILE, PROFILE_NOISE = 8, 0.3
"""Entries of a profile, and the standard deviation of the noise in each."""
POSITIONS = 10
"""Number of places in the list in which items are shown; the first is the most visible."""
TRAIN, VALIDATION, TEST = 300_000, 50_000, 100_000
"""Number of impressions in each split."""
SEED = 2018
"""Seed of the data."""
VIEWING_NOISE = 0.5
"""Standard deviation of the logarithm of the viewing time, given user, item and context."""
CENTRE, SCALE = 3.36, 0.78
"""Approximate mean and standard deviation of the logarithm of the training set's viewing times, in seconds."""

NUMBERS = 2 * PROFILE + 3
"""Number of inputs apart from the codes: two profiles, sine and cosine of the hour, and the position."""
EMBEDDED = 8
"""Dimensions of a user's embedding and of an item's."""
EXPERTS, WIDTH, TOWER = 4, 32, 16
"""Number of experts, outputs of each, and width of the hidden layer of each task's tower."""
CHUNK = 25_000
"""Number of impressions that are evaluated at a time."""

TRUTH, MODEL = "#0173b2", "#de8f05"
"""Colours of what happened and of the model's predictions in pictures."""
GROUPS = 8
"""Number of groups of test impressions in pictures."""


class Samples(NamedTuple):
    """Inputs and targets of N impressions.

    Attributes:
        numbers: profile of the user and of the item, sine and cosine of the hour of the day, and the position from -1
            (first) to 1 (last), shape ``(N, 19)``.
        codes: the numbers of user and item, shape ``(N, 2)``, int64.
        targets: shape ``(N, 3)``: 1 if the item was clicked, else 0; 1 if it was clicked and bought, else 0; natural
            logarithm of the viewing time in seconds, NaN if it was not clicked.
    """

    numbers: Tensor
    codes: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> "Samples":
        return Samples(*(part.to(device) for part in self))


class Outputs(NamedTuple):
    """Predictions for N impressions, each ``(N,)``.

    Attributes:
        click: logit of a click.
        purchase: logit of a click with a purchase.
        viewing: natural logarithm of the viewing time in seconds, if there is a click.
    """

    click: Tensor
    purchase: Tensor
    viewing: Tensor

    def to(self, device: torch.device | str) -> "Outputs":
        return Outputs(*(part.to(device) for part in self))


@dataclass(frozen=True)
class RecommenderData:
    """The splits, and the truth about the two that are held out.

    Attributes:
        train: the training set.
        validation: the validation set.
        test: the test set.
        truths: the true logits and mean logarithms of the validation set's impressions and of the test set's.
    """

    train: Samples
    validation: Samples
    test: Samples
    truths: tuple[Outputs, Outputs]


class GatedHead(nn.Module):
    """A task's gate over the experts, and its tower: ``(N, features)`` to ``(N,)``.

    The features are the outputs of all experts, followed by the inputs of the gate.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, EXPERTS)
        self.tower = nn.Sequential(nn.Linear(WIDTH, TOWER), nn.ReLU(), nn.Linear(TOWER, 1))

    def forward(self, features: Tensor) -> Tensor:
        experts, inputs = features.tensor_split([EXPERTS * WIDTH], dim=1)
        shares = self.gate(inputs).softmax(1)
        mixed = (shares[:, :, None] * experts.unflatten(1, (EXPERTS, WIDTH))).sum(1)
        output: Tensor = self.tower(mixed)[:, 0]
        return output


class Network(nn.Module):
    """Embeddings of user and item, four experts of 32 ReLU units, which are one layer, and a gated head per task."""

    def __init__(self) -> None:
        super().__init__()
        inputs = NUMBERS + 2 * EMBEDDED
        self.users = nn.Embedding(USERS, EMBEDDED)
        self.items = nn.Embedding(ITEMS, EMBEDDED)
        for embedding in (self.users, self.items):  # small, so that the profiles count first
            nn.init.normal_(embedding.weight, std=0.05)
        self.experts = nn.Linear(inputs, EXPERTS * WIDTH)
        self.fork = Fork(3)
        self.heads = nn.ModuleList(GatedHead(inputs) for _ in range(3))

    def forward(self, numbers: Tensor, codes: Tensor) -> Outputs:
        inputs = torch.cat([numbers, self.users(codes[:, 0]), self.items(codes[:, 1])], 1)
        aliases = self.fork(torch.cat([self.experts(inputs).relu(), inputs], 1))
        click, purchase, viewing = (head(features) for head, features in zip(self.heads, aliases, strict=True))
        return Outputs(click, purchase, CENTRE + SCALE * viewing)


class Constant(nn.Module):
    """A model that predicts ``values``, shape ``(3,)``, for every impression: two logits and a logarithm."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, numbers: Tensor, codes: Tensor) -> Outputs:
        return Outputs(*self.get_buffer("values")[:, None].expand(-1, len(numbers)).unbind())


@register
class Recommender(Problem[RecommenderData]):
    """Impressions of items: whether they are clicked, whether they are bought, and how long they are viewed.

    Data: 300,000 training, 50,000 validation and 100,000 test impressions, generated from a stated model (``generate``)
    with 2,000 users and 500 items. All splits have the same users and items, as they would on another day. An
    impression's inputs are two noisy profiles, the hour, the position in the list, and the numbers of user and item.
    Everything is drawn from one constant seed.

    Tasks: "click", a binary classification; "purchase", a binary classification of all impressions, whose positives are
    clicked and bought; "viewing time", a regression of its logarithm, whose loss is a mean over clicked impressions.
    The squared error is in units of about the target's variance.

    Model: an MMoE with four experts, from ``batch_size x 19`` numbers and ``batch_size x 2`` codes to three predictions
    of length ``batch_size``. The features are the experts' outputs together with the inputs, which the gates read.

    Metrics: AUC and log loss of click and of purchase, R2 and mean absolute error of the viewing time. The primary
    metric is the geometric mean of the three tasks' errors, each relative to the best constant predictor.

    Sources: Ma et al., KDD 2018 (the model); Ma et al., SIGIR 2018 (the form of the data).

    Example::

        problem = tasks.create("recommender")
        data = problem.data(torch.Generator().manual_seed(1), "cpu")
        problem.ceiling(data)  # the metrics of the true probabilities
    """

    name = "recommender"
    summary = "Shown items: clicks, rare purchases and viewing times, by gated experts (MMoE); a generated log."
    reserved = True
    tasks = ("click", "purchase", "viewing time")
    primary = "relative error"
    metrics = (
        Metric(
            primary,
            "geometric mean of 1 - AUC of click, 1 - AUC of purchase and 1 - R2 of viewing time, each divided by that "
            "of the best constant predictor on the training set",
            "",
            False,
        ),
        Metric("AUC of click", "area under the receiver operating characteristic", "", True, "click"),
        Metric("log loss of click", "mean cross-entropy", "nat", False, "click"),
        Metric(
            "AUC of purchase",
            "area under the receiver operating characteristic, over all impressions",
            "",
            True,
            "purchase",
        ),
        Metric("log loss of purchase", "mean cross-entropy, over all impressions", "nat", False, "purchase"),
        Metric(
            "R2 of viewing time",
            "share of the variance of the logarithm that the model explains, over clicked impressions",
            "",
            True,
            "viewing time",
        ),
        Metric(
            "absolute error of viewing time",
            "mean absolute error of the natural logarithm, over clicked impressions",
            "",
            False,
            "viewing time",
        ),
    )
    recipe = Recipe("adam", lr=1e-2, schedule="cosine", batch_size=1_024, steps=500)
    full = replace(recipe, steps=1_000)
    """Twice the steps. Training for longer memorises who bought what, and makes the viewing time worse."""
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse-constant": (0.3639, 2.5576, 0.0785)}
    """Inverse training losses of the best constants: 0.2143 and 0.0305 nats, 0.994 (units of ``SCALE`` squared)."""

    def require(self) -> None:
        """Check that the package for the metrics is installed.

        Raises:
            MissingDataError: If it isn't.
        """
        require_package("sklearn", self.name)

    def data(self, generator: Generator, device: torch.device | str) -> RecommenderData:
        """Return the splits, which are the same for every seed: ``generator`` is not used."""
        data = generate()
        train, validation, test = (split.to(device) for split in (data.train, data.validation, data.test))
        of_validation, of_test = (truth.to(device) for truth in data.truths)
        return RecommenderData(train, validation, test, (of_validation, of_test))

    def batches(self, data: RecommenderData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """Return training batches. An epoch is one permutation of the impressions; an incomplete batch is dropped."""
        every = batches(len(data.train.targets), batch_size, generator, data.train.targets.device)
        return (Samples(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network()

    def shared(self, model: nn.Module) -> Shared:
        """Return embeddings and experts as the shared part. The experts are the last shared layer; a ReLU follows it.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that Recommender.model made, got {type(model).__name__}")
        modules = (model.users, model.items, model.experts)
        return Shared(model.fork, model.experts, tuple(p for module in modules for p in module.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor]:
        """Return two cross-entropies in nats, and the squared error of the logarithm divided by ``SCALE`` squared.

        The first two are means over the batch, the third over its clicked impressions; it is 0 if none was clicked.
        """
        outputs = model(batch.numbers, batch.codes)
        click, purchase, viewing = batch.targets.unbind(1)
        errors = torch.where(click > 0, outputs.viewing - viewing.nan_to_num(), 0) / SCALE
        return [
            F.binary_cross_entropy_with_logits(outputs.click, click),
            F.binary_cross_entropy_with_logits(outputs.purchase, purchase),
            errors.square().sum() / click.sum().clamp(min=1),
        ]

    def evaluate(
        self, model: nn.Module, data: RecommenderData, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        return self._scored(_predict(model, _held_out(data, split)), data, split)

    def ceiling(self, data: RecommenderData, split: Split = "test") -> dict[str, float]:
        """Return all metrics of the true probabilities and means, which no model can be expected to surpass."""
        return self._scored(data.truths[0 if split == "validation" else 1], data, split)

    def _scored(self, outputs: Outputs, data: RecommenderData, split: Split) -> dict[str, float]:
        samples = _held_out(data, split)
        scores = _scores(outputs, samples.targets)
        viewing, mean = samples.targets[:, 2], data.train.targets[:, 2].nanmean()
        variance = viewing[~viewing.isnan()].double().var(correction=0)
        of_constant = [0.5, 0.5, float((viewing - mean).double().square().nanmean() / variance)]  # it ranks nothing
        names = (metric.name for metric in self.metrics)
        return dict(zip(names, [relative_error(_errors(scores), of_constant), *scores], strict=True))

    def constant(self, data: RecommenderData) -> Constant:
        """Return a model that predicts the shares of clicks and of purchases, and the mean logarithm."""
        click, purchase, viewing = data.train.targets.nanmean(0)
        return Constant(torch.stack([click.logit(), purchase.logit(), viewing]))

    def sizes(self, data: RecommenderData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).targets) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: RecommenderData, model: nn.Module | None = None) -> str:
        """Draw how often test impressions are clicked and bought and how long they are viewed, by what is true of them.

        With a ``model``, its mean predictions stand beside the means of what happened.
        """
        figure.set_size_inches(9, 3.4)
        true = _means(data.truths[1])
        predicted: Sequence[Tensor | None] = [None] * 3 if model is None else _means(_predict(model, data.test))
        click, purchase, viewing = data.test.targets.cpu().unbind(1)
        happened = (100 * click, 100 * purchase, viewing)
        panels = figure.subplots(1, 3)
        for axes, task, by, actual, said in zip(panels, self.tasks, true, happened, predicted, strict=True):
            there = ~actual.isnan()
            _draw_means(axes, by[there], actual[there], None if said is None else said[there])
            axes.set(title=task, xlabel="true probability (%)", ylabel="share of impressions (%)")
        for axes in panels[:2]:
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
        panels[2].set(xlabel="true log(seconds)", ylabel="log(seconds)")
        panels[0].legend(frameon=False, loc="lower right")
        groups = f"Impressions of the test set in {GROUPS} groups of increasing true probability or viewing time"
        if model is None:
            return f"{groups}: the share that was clicked, the share that was bought, and the mean viewing time."
        return f"{groups}: what happened on average in each, and what a trained model predicts on average."


def _held_out(data: RecommenderData, split: Split) -> Samples:
    return {"validation": data.validation, "test": data.test}[split]


def _predict(model: nn.Module, samples: Samples) -> Outputs:
    parts = zip(samples.numbers.split(CHUNK), samples.codes.split(CHUNK), strict=True)
    with evaluating(model):
        chunks = [model(numbers, codes) for numbers, codes in parts]
    return Outputs(*(torch.cat(part) for part in zip(*chunks, strict=True)))


def _scores(outputs: Outputs, targets: Tensor) -> list[float]:
    """Return all metrics except the primary one, in their order; NaN where an output that they need is not finite."""
    from sklearn.metrics import roc_auc_score

    *logits, logarithms = (output.cpu().double() for output in outputs)
    *labels, truth = targets.cpu().double().unbind(1)
    scores: list[float] = []
    for logit, label in zip(logits, labels, strict=True):
        scores.append(float(roc_auc_score(label, logit)) if logit.isfinite().all() else math.nan)
        scores.append(float(F.binary_cross_entropy_with_logits(logit, label)))
    clicked = labels[0] > 0
    errors, truth = (logarithms - truth)[clicked], truth[clicked]
    scores.append(float(1 - errors.square().sum() / (truth - truth.mean()).square().sum()))
    scores.append(float(errors.abs().mean()))
    return scores


def _errors(scores: Sequence[float]) -> list[float]:
    """Return 1 - AUC of click, 1 - AUC of purchase and 1 - R2 of viewing time."""
    of_click, _, of_purchase, _, of_viewing, _ = scores
    return [1 - of_click, 1 - of_purchase, 1 - of_viewing]


def _means(outputs: Outputs) -> list[Tensor]:
    """Return the two probabilities in percent and the mean logarithm, on the CPU."""
    click, purchase, viewing = outputs.to("cpu")
    return [100 * click.sigmoid(), 100 * purchase.sigmoid(), viewing]


def _draw_means(axes: "Axes", order: Tensor, happened: Tensor, predicted: Tensor | None) -> None:
    """Draw means of groups of samples, which have equal sizes and increase in ``order``."""
    groups = order.argsort(stable=True).tensor_split(GROUPS)
    at = [float(order[group].mean()) for group in groups]
    means = [float(happened[group].mean()) for group in groups]
    axes.plot(at, means, "o-", color=TRUTH, markersize=4, label="happened")
    if predicted is not None:
        axes.plot(at, [float(predicted[g].mean()) for g in groups], "s--", color=MODEL, markersize=4, label="predicted")


# The generated log


@dataclass(frozen=True)
class Population:
    """The hidden traits, and what is known of them.

    Attributes:
        users: the users' traits, shape ``(USERS, 6)``.
        items: the items' traits, shape ``(ITEMS, 6)``. The last is an item's appeal at first sight.
        user_profiles: shape ``(USERS, 8)``.
        item_profiles: shape ``(ITEMS, 8)``.
    """

    users: Tensor
    items: Tensor
    user_profiles: Tensor
    item_profiles: Tensor


def draw_population(generator: Generator) -> Population:
    """Draw users and items. A profile is a random linear picture of the traits, with noise."""
    traits, profiles = [], []
    for count in (USERS, ITEMS):
        traits.append(torch.randn(count, TRAITS, generator=generator))
        mixing = torch.randn(TRAITS, PROFILE, generator=generator) / math.sqrt(TRAITS)
        noise = PROFILE_NOISE * torch.randn(count, PROFILE, generator=generator)
        profiles.append(traits[-1] @ mixing + noise)
    return Population(traits[0], traits[1], profiles[0], profiles[1])


def true_outputs(users: Tensor, items: Tensor, hours: Tensor, positions: Tensor) -> tuple[Outputs, Tensor]:
    """Return the truth about N impressions, and the logit of a purchase once there is a click, ``(N,)``.

    With the user's traits ``u``, the item's ``v`` and its appeal ``a = v_5``, position ``p`` and hour ``h``,

    - the logit of a click is ``-3 + 0.8 a + 0.5 u_0 + 0.7 (u_0 v_0 + u_1 v_1 + u_2 v_2) / sqrt(3) - 0.12 p
      + 0.3 cos(2 pi (h - 20) / 24)``;
    - the logit of a purchase after a click is ``-2.6 - 0.5 a + 0.8 u_4 + 0.7 (u_2 v_2 + u_3 v_3 + u_4 v_4) / sqrt(3)
      - 0.5 v_4``;
    - the mean logarithm of the viewing time is ``3.6 - 0.3 a + 0.3 v_3 + 0.4 (u_1 v_1 + u_3 v_3 - u_2 v_2) / sqrt(3)
      + 0.1 cos(2 pi (h - 20) / 24)``.

    The probability of a click with a purchase is the product of the two probabilities.

    Args:
        users: the users' traits, shape ``(N, 6)``.
        items: the items' traits, shape ``(N, 6)``.
        hours: the hour of the day, shape ``(N,)``.
        positions: 0 for the first position, up to 9, shape ``(N,)``.
    """
    products = (users * items)[:, :5] / math.sqrt(3)
    appeal, evening = items[:, 5], torch.cos(2 * math.pi * (hours - 20) / 24)
    click = -3 + 0.8 * appeal + 0.5 * users[:, 0] + 0.7 * products[:, :3].sum(1) - 0.12 * positions + 0.3 * evening
    after = -2.6 - 0.5 * appeal + 0.8 * users[:, 4] + 0.7 * products[:, 2:].sum(1) - 0.5 * items[:, 4]
    viewing = 3.6 - 0.3 * appeal + 0.3 * items[:, 3] + 0.1 * evening
    viewing = viewing + 0.4 * (products[:, 1] + products[:, 3] - products[:, 2])
    purchase = (click.sigmoid() * after.sigmoid()).logit()
    return Outputs(click, purchase, viewing), after


@cache
def generate() -> RecommenderData:
    """Draw users, items and impressions, and what follows each impression, from ``SEED``.

    An active user gets many impressions and a popular item is shown often: the probabilities of both are log-normal.
    User, item, hour and position are independent of each other.
    """
    generator = torch.Generator().manual_seed(SEED)
    population = draw_population(generator)
    weights = [torch.randn(count, generator=generator).exp() for count in (USERS, ITEMS)]
    train, validation, test = (_draw(population, weights, size, generator) for size in (TRAIN, VALIDATION, TEST))
    return RecommenderData(train[0], validation[0], test[0], (validation[1], test[1]))


def _draw(
    population: Population, weights: Sequence[Tensor], size: int, generator: Generator
) -> tuple[Samples, Outputs]:
    """Draw ``size`` impressions; return them and the truth about them."""
    user, item = (torch.multinomial(each, size, replacement=True, generator=generator) for each in weights)
    hours = 24 * torch.rand(size, generator=generator)
    positions = torch.randint(POSITIONS, (size,), generator=generator)
    truth, after = true_outputs(population.users[user], population.items[item], hours, positions)
    chances = torch.rand(2, size, generator=generator)
    click = (chances[0] < truth.click.sigmoid()).float()
    purchase = click * (chances[1] < after.sigmoid())
    viewing = truth.viewing + VIEWING_NOISE * torch.randn(size, generator=generator)
    angle = 2 * math.pi * hours / 24
    numbers = [
        *(population.user_profiles[user], population.item_profiles[item]),
        torch.stack([angle.sin(), angle.cos(), 2 * positions / (POSITIONS - 1) - 1], 1),
    ]
    targets = torch.stack([click, purchase, torch.where(click > 0, viewing, math.nan)], 1)
    return Samples(torch.cat(numbers, 1), torch.stack([user, item], 1), targets), truth
