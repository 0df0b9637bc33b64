"""The GradNorm paper's toy family: regression tasks that share most of their map and differ in scale.

Task i is to learn ``f_i(x) = sigma_i * tanh((B + eps_i) x)`` of 250 inputs and 100 outputs, with a trunk of four ReLU
layers of 100 and an affine head a task. The entries of ``B`` and of every ``eps_i`` are independent, from N(0, 10) and
N(0, 3.5). Source: Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm", ICML 2018, section 4.

The paper does not say what x is drawn from, which decides what can be learned. Here its entries are normal, their scale
set by the standard deviation that it gives ``(B + eps_i) x``, and the network gets x divided by its own deviation. That
default is the first row of this table, measured with the default recipe (Adam, 2,000 steps at 3e-3, batch 100; mean of
three seeds): the share of the targets' variance that was learned, on the validation set, under weights 1/sigma^2 and
under equal weights. For T=10 it is the tasks' mean, and that of the smallest sigma.

    pre-activations, and what          T=2, 1/sigma^2   T=2, equal     T=10, 1/sigma^2   T=10, equal
    the network gets                   f1     f2        f1     f2      mean   sigma=3    mean   sigma=3
    std 1, x / its std                 0.65   0.63      0.02   0.44    0.52   0.50       0.41   0.33
    std 2, x / its std                 0.56   0.55      0.04   0.37    0.44   0.42       0.34   0.27
    std 10.6, x / its std              0.43   0.42      0.02   0.27    0.33   0.31       0.26   0.19
    std 168, x ~ N(0, 1)               0.39   0.39     -0.02   0.25    0.31   0.29       0.24   0.18
    std 1, x                           0.21   0.20      0.00   0.10    0.12   0.12       0.07   0.06
    std 10.6, x (variance 1/250)       0.30   0.28      0.00   0.13    0.19   0.18       0.13   0.10
    x ~ U(0, 1), as in public code     0.22   0.09     -0.03   0.00    0.07   0.08       0.00  -0.01

The further tanh saturates, and the smaller the numbers that the network starts from, the less is learned in that time.
In the first row most is, the task of the smallest sigma suffers under equal weights, as in the paper, and learning goes
on: 0.72 and 0.73 for T=2 after 10,000 steps, under equal weights 0.19 and 0.65. A stream instead of 10,000 samples
changes little (T=2: 0.64 and 0.63, equal 0.08 and 0.42).

Much of the gap for T=2 is owed to the constant learning rate, which the recipe has because public code has. With the
best of 1e-3, 3e-3 and 1e-2 the normalized loss is 0.71 under 1/sigma^2 and 1.53 under equal weights; with a cosine
schedule, 0.84 and 1.08.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from balancers import Fork, LinearHeads

from .batch_order import epochs
from .problem import Metric, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS, OUTPUTS, WIDTH, LAYERS = 250, 100, 100, 4
HELD_OUT = 2_000
"""Samples in the validation set, and in the test set."""

PRESETS: Mapping[str, Sequence[float]] = {
    "T=2": (1, 100),
    "T=10": (48, 3, 54, 16, 9, 30, 52, 26, 47, 81),
    "T=40": tuple(round(100 ** (i / 39), 2) for i in range(40)),
}
"""Sigmas by name: the paper's for two tasks; for ten those of public code, as the paper gives none; for forty, evenly
spaced on a log scale from 1 to 100, to two decimals."""

Spread = Literal["deviation", "variance"]
Distribution = Literal["normal", "uniform"]
Heads = Literal["batched", "separate"]


class Samples(NamedTuple):
    """``inputs`` of shape ``(N, 250)`` as the network gets them, ``targets`` of shape ``(N, T, 100)``."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class RegressionData:
    """The splits, and ``maps`` of shape ``(T, 100, 250)``: task i's takes inputs, as the network gets them, to
    ``(B + eps_i) x``.
    """

    maps: Tensor
    train: Samples
    validation: Samples
    test: Samples


class Network(nn.Module):
    """Four ReLU layers of 100 shared by all tasks, then one affine head a task: ``(N, 250)`` to ``(N, T, 100)``."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.heads = LinearHeads(num_tasks, WIDTH, OUTPUTS)

    @property
    def fork(self) -> Fork:
        return self.heads.fork

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.heads(self.trunk(inputs))
        return outputs


class SeparateNetwork(nn.Module):
    """The same network, its initial values included, with a module for each head: ``(N, 250)`` to T of ``(N, 100)``."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.fork = Fork(num_tasks)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, OUTPUTS) for _ in range(num_tasks))

    def forward(self, inputs: Tensor) -> list[Tensor]:
        aliases = self.fork(self.trunk(inputs))
        return [head(features) for head, features in zip(self.heads, aliases, strict=True)]


def _trunk() -> nn.Sequential:
    layers: list[nn.Module] = []
    for sizes in pairwise([INPUTS] + [WIDTH] * LAYERS):
        layers += [nn.Linear(*sizes), nn.ReLU()]
    return nn.Sequential(*layers)


class Constant(nn.Module):
    """Predicts ``values``, of shape ``(T, 100)``, whatever the inputs: ``(N, T, 100)``."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.get_buffer("values").expand(len(inputs), -1, -1)


@register
class Regression(Problem[RegressionData]):
    """T regression tasks, named after their sigma; the table above says why x is what it is.

    Args:
        sigmas: one a task, or the name of a preset: "T=2" (1 and 100), "T=10" or "T=40".
        inputs: what the entries of x are drawn from. "normal": N(0, s^2), handed to the network divided by s.
            "uniform": U(0, 1), handed over as they are; with T=10 this is the toy data of public GradNorm code.
        preactivation_std: the deviation of the entries of ``(B + eps_i) x``, which sets s. Not for uniform inputs.
        spread: whether the 10 and 3.5 of N(0, 10) and N(0, 3.5) are each a "deviation", as in public code, or a
            "variance": the paper doesn't say.
        heads: "batched", all as one product, or "separate", one module each: the same network, slower.
        train_samples: in the training set; 2,000 more each are for validation and test.
        stream: whether every epoch has a training set of its own, so that no sample comes twice.

    Raises:
        ValueError: an option isn't one of these values.
    """

    name = "regression"
    summary = "The GradNorm paper's toy family: T regressions onto sigma_i tanh((B + eps_i) x), unlike in scale."
    primary = "normalized loss"
    baselines = frozenset({"constant", "single-task"})

    def __init__(
        self,
        *,
        sigmas: Sequence[float] | str = "T=2",
        inputs: Distribution = "normal",
        preactivation_std: float = 1.0,
        spread: Spread = "deviation",
        heads: Heads = "batched",
        train_samples: int = 10_000,
        stream: bool = False,
    ) -> None:
        literals = {"inputs": (inputs, Distribution), "spread": (spread, Spread), "heads": (heads, Heads)}
        for option, (value, known) in literals.items():
            if value not in get_args(known):
                raise ValueError(f"{option} is {value!r}; expected one of {', '.join(map(repr, get_args(known)))}")
        if inputs == "uniform" and preactivation_std != 1:
            raise ValueError("preactivation_std scales normal inputs; uniform ones are taken as they are, from 0 to 1")
        if type(train_samples) is not int or train_samples < 1:
            raise ValueError(f"train_samples is {train_samples!r}; expected a whole number, 1 or more")
        if not isinstance(stream, bool):
            raise ValueError(f"stream is {stream!r}; expected true or false")
        self.sigmas = _sigmas(sigmas)
        self.spreads = (10.0, 3.5) if spread == "deviation" else (math.sqrt(10), math.sqrt(3.5))
        self.inputs = inputs
        normal_std = _positive("preactivation_std", preactivation_std) / (math.sqrt(INPUTS) * math.hypot(*self.spreads))
        self.input_std = normal_std if inputs == "normal" else 1.0
        self.heads = heads
        self.train_samples = train_samples
        self.stream = stream

        self.tasks = tuple(f"f{i} (sigma={sigma:g})" for i, sigma in enumerate(self.sigmas, 1))
        self._relative = tuple(f"loss/sigma^2 of {task}" for task in self.tasks)
        self.metrics = (
            Metric(self.primary, "sum over the tasks of the loss relative to its initial value", "", False),
            *(
                Metric(name, "mean squared error relative to sigma^2", "", False, task)
                for name, task in zip(self._relative, self.tasks, strict=True)
            ),
        )
        self.recipe = Recipe("adam", lr=3e-3, schedule="constant", batch_size=100, steps=2_000)
        self.full = replace(self.recipe, steps=10_000)
        inverse = [sigma**-2 for sigma in self.sigmas]
        self.static_weights = {"inverse-variance": tuple(len(inverse) * one / sum(inverse) for one in inverse)}

    def data(self, generator: Generator, device: torch.device | str) -> RegressionData:
        """Drawn in this order: B, eps_1 to eps_T, then the inputs of the validation, test and training sets."""
        b, eps = self.spreads
        common = b * torch.randn(OUTPUTS, INPUTS, generator=generator)
        own = eps * torch.randn(len(self.sigmas), OUTPUTS, INPUTS, generator=generator)
        maps = (self.input_std * (common + own)).to(device)
        validation, test, train = (self._draw(maps, n, generator) for n in (HELD_OUT, HELD_OUT, self.train_samples))
        return RegressionData(maps, train, validation, test)

    def batches(self, data: RegressionData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """An epoch is one permutation of the training set; what is left after its last full batch is dropped.

        In a stream, each epoch after the first has a new training set, from ``generator``. Permutations, and a stream's
        inputs, come from the host once an epoch.

        Raises:
            ValueError: ``batch_size`` is less than 1 or more than ``train_samples``.
        """
        every = epochs(self.train_samples, batch_size, generator, data.maps.device)
        return self._batches(data, generator, every)

    def _batches(
        self, data: RegressionData, generator: Generator, every: Iterator[tuple[Tensor, ...]]
    ) -> Iterator[Samples]:
        train = data.train
        for epoch in every:
            for chosen in epoch:
                yield Samples(*(part.index_select(0, chosen) for part in train))
            if self.stream:
                train = self._draw(data.maps, self.train_samples, generator)

    def _draw(self, maps: Tensor, num_samples: int, generator: Generator) -> Samples:
        draw = torch.randn if self.inputs == "normal" else torch.rand
        inputs = draw(num_samples, INPUTS, generator=generator).to(maps.device)
        sigmas = torch.tensor(self.sigmas, device=maps.device)
        preactivations = inputs @ maps.flatten(0, 1).T
        return Samples(inputs, preactivations.tanh_().view(num_samples, *maps.shape[:2]).mul_(sigmas[:, None]))

    def model(self) -> Network | SeparateNetwork:
        return (Network if self.heads == "batched" else SeparateNetwork)(len(self.sigmas))

    def shared(self, model: nn.Module) -> Shared:
        """The last shared layer is the trunk's last linear one, with its ReLU between it and the fork."""
        if not isinstance(model, Network | SeparateNetwork):
            raise TypeError(f"expected a model that Regression.model made, got {type(model).__name__}")
        return Shared(model.fork, model.trunk[-2], tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor] | Tensor:
        """Each task's squared error, its mean over the batch and the 100 outputs; ``(T,)`` where heads are batched."""
        predictions = model(batch.inputs)
        if isinstance(predictions, Tensor):
            return mse_loss(predictions, batch.targets, reduction="none").mean((0, 2))
        return [mse_loss(ours, theirs) for ours, theirs in zip(predictions, batch.targets.unbind(1), strict=True)]

    def evaluate(
        self, model: nn.Module, data: RegressionData, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        samples = {"validation": data.validation, "test": data.test}[split]
        with evaluating(model):
            losses = [float(loss) for loss in self.losses(model, samples)]
        relative = {
            name: loss / sigma**2 for name, loss, sigma in zip(self._relative, losses, self.sigmas, strict=True)
        }
        initial = relative if start is None else start
        return {self.primary: sum(relative[name] / initial[name] for name in self._relative), **relative}

    def constant(self, data: RegressionData) -> Constant:
        """The mean of the training set's targets."""
        return Constant(data.train.targets.mean(0))

    def sizes(self, data: RegressionData) -> Mapping[str, int]:
        """In a stream, the training set is that of one epoch."""
        return {name: len(getattr(data, name).inputs) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: RegressionData, model: nn.Module | None = None) -> str:
        """Of at most four tasks, the test targets' distribution; with a ``model``, its predictions of one target."""
        shown = range(min(4, len(self.tasks)))
        rows = 2 if model is None else 1
        columns = figure.subplots(rows, len(shown), sharex="row", sharey="row", squeeze=False).T
        columns[0, 0].set_xticks((-1, 0, 1))
        inputs, targets = data.test
        if model is None:
            for i, (above, below) in zip(shown, columns, strict=True):
                of_task = (targets[:, i] / self.sigmas[i]).cpu()  # (N, 100)
                above.hist(of_task.flatten().numpy(), bins=40, range=(-1, 1), density=True, color="#0173b2")
                above.set_title(self.tasks[i])
                above.set_xlabel("target / sigma")
                preactivations = (inputs @ data.maps[i, 0]).cpu()
                below.scatter(preactivations.numpy(), of_task[:, 0].numpy(), s=3, color="#0173b2")
                below.set_xlabel("(B + eps) x, first output")
            columns[0, 0].set_ylabel("density, all outputs")
            columns[0, 1].set_ylabel("target / sigma")
            return (
                "How the test targets of each task are distributed, in units of its sigma, and the first of its 100 "
                "outputs over the number that tanh is taken of."
            )
        with evaluating(model):
            outputs = model(inputs)
            losses = [float(loss) for loss in self.losses(model, data.test)]
        predictions = outputs.unbind(1) if isinstance(outputs, Tensor) else outputs
        for i, [axes] in zip(shown, columns, strict=True):
            truth, ours = ((part[:, 0] / self.sigmas[i]).cpu().numpy() for part in (targets[:, i], predictions[i]))
            axes.plot((-1, 1), (-1, 1), color="#de8f05")
            axes.scatter(truth, ours, s=3, color="#0173b2")
            axes.set_title(f"{self.tasks[i]}\nloss/sigma^2 {losses[i] / self.sigmas[i] ** 2:.3f}")
            axes.set_xlabel("target / sigma")
        columns[0, 0].set_ylabel("prediction / sigma")
        return "The first of each task's 100 outputs, predicted and true, in units of sigma, on the test set."


def _sigmas(sigmas: Sequence[float] | str) -> tuple[float, ...]:
    if isinstance(sigmas, str):
        if sigmas not in PRESETS:
            known = ", ".join(map(repr, PRESETS))
            raise ValueError(f"sigmas is {sigmas!r}; expected a list of numbers, or one of {known}")
        sigmas = PRESETS[sigmas]
    if not isinstance(sigmas, Sequence) or not sigmas:
        raise ValueError(f"sigmas is {sigmas!r}; expected one number a task, at least one")
    return tuple(_positive(f"sigmas[{i}]", sigma) for i, sigma in enumerate(sigmas))


def _positive(option: str, value: object) -> float:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{option} is {value!r}; expected a positive, finite number")
    return float(value)
