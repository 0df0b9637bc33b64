"""The problem ``regression``: the GradNorm paper's toy tasks, regressions with similar maps and different scales.

Task i is to learn ``f_i(x) = sigma_i * tanh((B + eps_i) x)``, a function of 250 inputs with 100 outputs. The network
has a trunk of four ReLU layers of 100 and one affine head per task. The entries of ``B`` and of every ``eps_i`` are
independent, from N(0, 10) and N(0, 3.5).

Source: Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm", ICML 2018, section 4.

The paper does not give the distribution of x, which determines how much can be learned. Here the entries of x are
normal. Their scale is set by the standard deviation of the pre-activations ``(B + eps_i) x``, and the network's input
is x divided by its own standard deviation. The default is the first row of the table. The table shows the share of the
targets' variance that the network learned, on the validation set, under weights 1/sigma^2 and under equal weights. It
was measured with the default recipe (Adam, 2,000 steps at 3e-3, batch 100; mean of three seeds). For T=10 it shows the
mean over tasks, and the value for the task of the smallest sigma.

    pre-activations,                   T=2, 1/sigma^2   T=2, equal     T=10, 1/sigma^2   T=10, equal
    network input                      f1     f2        f1     f2      mean   sigma=3    mean   sigma=3
    std 1, x / its std                 0.65   0.63      0.02   0.44    0.52   0.50       0.41   0.33
    std 2, x / its std                 0.56   0.55      0.04   0.37    0.44   0.42       0.34   0.27
    std 10.6, x / its std              0.43   0.42      0.02   0.27    0.33   0.31       0.26   0.19
    std 168, x ~ N(0, 1)               0.39   0.39     -0.02   0.25    0.31   0.29       0.24   0.18
    std 1, x                           0.21   0.20      0.00   0.10    0.12   0.12       0.07   0.06
    std 10.6, x (variance 1/250)       0.30   0.28      0.00   0.13    0.19   0.18       0.13   0.10
    x ~ U(0, 1), as in public code     0.22   0.09     -0.03   0.00    0.07   0.08       0.00  -0.01

The more tanh saturates, and the smaller the network's inputs are, the less is learned in that time. In the first row,
most is learned, and the task of the smallest sigma suffers under equal weights, as in the paper. Training for longer
still helps: after 10,000 steps, the values for T=2 are 0.72 and 0.73 under weights 1/sigma^2, and 0.19 and 0.65 under
equal weights. A stream of new samples instead of 10,000 fixed ones changes little (T=2: 0.64 and 0.63; equal weights:
0.08 and 0.42).

Much of the gap for T=2 comes from the constant learning rate, which the recipe has because public code has it. With the
best of the learning rates 1e-3, 3e-3 and 1e-2, the normalized loss is 0.71 under 1/sigma^2 and 1.53 under equal
weights; with a cosine schedule it is 0.84 and 1.08.
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
"""Number of inputs, of each task's outputs, of units in a layer of the trunk, and of those layers."""
HELD_OUT = 2_000
"""Number of samples in each of the validation and test sets."""

PRESETS: Mapping[str, Sequence[float]] = {
    "T=2": (1, 100),
    "T=10": (48, 3, 54, 16, 9, 30, 52, 26, 47, 81),
    "T=40": tuple(round(100 ** (i / 39), 2) for i in range(40)),
}
"""Lists of sigmas, by name.

"T=2" is the paper's. "T=10" is from public code, because the paper does not give its ten values. "T=40" has forty
values that are evenly spaced on a log scale from 1 to 100, rounded to two decimals.
"""

Spread = Literal["deviation", "variance"]
Distribution = Literal["normal", "uniform"]
Heads = Literal["batched", "separate"]


class Samples(NamedTuple):
    """The network's ``inputs``, shape ``(N, 250)``, and the ``targets``, shape ``(N, T, 100)``."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class RegressionData:
    """The splits, and the tasks' linear maps.

    Attributes:
        maps: shape ``(T, 100, 250)``. The map of task i takes the network's inputs to ``(B + eps_i) x``.
        train: the training set.
        validation: the validation set.
        test: the test set.
    """

    maps: Tensor
    train: Samples
    validation: Samples
    test: Samples


class Network(nn.Module):
    """A trunk of four ReLU layers of 100, and one affine head per task: ``(N, 250)`` to ``(N, T, 100)``."""

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
    """The same network with one module per head: ``(N, 250)`` to T tensors of shape ``(N, 100)``.

    With the same seed, it has the same initial values.
    """

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
    """A model that predicts ``values``, shape ``(T, 100)``, for every input. Its outputs are ``(N, T, 100)``."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.get_buffer("values").expand(len(inputs), -1, -1)


@register
class Regression(Problem[RegressionData]):
    """T regression tasks that share most of their map and differ in scale: the toy tasks of the GradNorm paper.

    Data: inputs ``x`` of 250 numbers, and for each task the 100 targets ``sigma_i * tanh((B + eps_i) x)``. There are
    10,000 training, 2,000 validation and 2,000 test samples, drawn anew for every seed, and so are the maps. The table
    at the top of this file shows why the inputs have their scale.

    Tasks: one regression per sigma, named "f1 (sigma=1)", "f2 (sigma=100)" and so on. Its loss is the mean squared
    error.

    Model: a fully connected network from ``batch_size x 250`` inputs to ``batch_size x T x 100`` outputs.

    Metrics: each task's loss divided by sigma squared. The primary metric is the sum over tasks of the loss divided by
    its initial value.

    Source: Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm", ICML 2018, section 4.

    Args:
        sigmas: the scale of each task, or the name of a preset: "T=2" (1 and 100), "T=10" or "T=40".
        inputs: the distribution of the entries of x. "normal" is N(0, s^2), and the network's input is x divided by s.
            "uniform" is U(0, 1), and the network's input is x itself; with T=10, these are the toy data of public
            GradNorm code.
        preactivation_std: standard deviation of the entries of ``(B + eps_i) x``, which determines s. Must be left at 1
            for uniform inputs.
        spread: the meaning of 10 and 3.5 in N(0, 10) and N(0, 3.5): "deviation", as in public code, or "variance". The
            paper does not say which.
        heads: "batched" computes all heads as one product. "separate" has one module per head: the same network,
            slower.
        train_samples: number of training samples. The validation and test sets have 2,000 each in any case.
        stream: whether every epoch has a new training set, so that no sample occurs twice.

    Raises:
        ValueError: If an option has another value.

    Example::

        problem = tasks.create("regression", sigmas="T=10")
        shared = problem.shared(problem.model())
        balancer = GradNorm(shared.fork, wrt=shared.layer, tasks=problem.tasks)
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
            raise ValueError("preactivation_std scales normal inputs only; uniform inputs are always from 0 to 1")
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
        self.static_weights = {"inverse-variance": tuple(len(inverse) * part / sum(inverse) for part in inverse)}

    def data(self, generator: Generator, device: torch.device | str) -> RegressionData:
        """Draw the data in this order: B, eps_1 to eps_T, and the inputs of the validation, test and training sets."""
        b, eps = self.spreads
        common = b * torch.randn(OUTPUTS, INPUTS, generator=generator)
        own = eps * torch.randn(len(self.sigmas), OUTPUTS, INPUTS, generator=generator)
        maps = (self.input_std * (common + own)).to(device)
        validation, test, train = (self._draw(maps, n, generator) for n in (HELD_OUT, HELD_OUT, self.train_samples))
        return RegressionData(maps, train, validation, test)

    def batches(self, data: RegressionData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """Return training batches. An epoch is one permutation of the samples; an incomplete last batch is dropped.

        In a stream, each epoch after the first has a new training set, drawn from ``generator``. Once per epoch, the
        permutation and a stream's new inputs are copied from the host to the device.

        Raises:
            ValueError: If ``batch_size`` is less than 1 or more than the number of training samples.
        """
        every = epochs(len(data.train.inputs), batch_size, generator, data.maps.device)
        return self._batches(data, generator, every)

    def _batches(
        self, data: RegressionData, generator: Generator, every: Iterator[tuple[Tensor, ...]]
    ) -> Iterator[Samples]:
        train, number = data.train, len(data.train.inputs)
        for epoch in every:
            for chosen in epoch:
                yield Samples(*(part.index_select(0, chosen) for part in train))
            if self.stream:
                train = self._draw(data.maps, number, generator)

    def _draw(self, maps: Tensor, num_samples: int, generator: Generator) -> Samples:
        draw = torch.randn if self.inputs == "normal" else torch.rand
        inputs = draw(num_samples, INPUTS, generator=generator).to(maps.device)
        sigmas = torch.tensor(self.sigmas, device=maps.device)
        preactivations = inputs @ maps.flatten(0, 1).T
        return Samples(inputs, preactivations.tanh_().view(num_samples, *maps.shape[:2]).mul_(sigmas[:, None]))

    def model(self) -> Network | SeparateNetwork:
        return (Network if self.heads == "batched" else SeparateNetwork)(len(self.sigmas))

    def shared(self, model: nn.Module) -> Shared:
        """Return the trunk as the shared part. Its last linear layer is the last shared layer; a ReLU follows it.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, Network | SeparateNetwork):
            raise TypeError(f"expected a model that Regression.model made, got {type(model).__name__}")
        return Shared(model.fork, model.trunk[-2], tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor] | Tensor:
        """Return each task's mean squared error over the batch and the 100 outputs.

        With batched heads, the losses are one tensor of shape ``(T,)``.
        """
        predictions = model(batch.inputs)
        if isinstance(predictions, Tensor):
            return mse_loss(predictions, batch.targets, reduction="none").mean((0, 2))
        return [mse_loss(ours, theirs) for ours, theirs in zip(predictions, batch.targets.unbind(1), strict=True)]

    def residuals(self, model: nn.Module, batch: Samples) -> list[Tensor]:
        """Return each task's errors, shape ``(N, 100)``."""
        predictions = model(batch.inputs)
        each = predictions.unbind(1) if isinstance(predictions, Tensor) else predictions
        return [ours - theirs for ours, theirs in zip(each, batch.targets.unbind(1), strict=True)]

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
        """Return a model that predicts the mean target of the training set."""
        return Constant(data.train.targets.mean(0))

    def sizes(self, data: RegressionData) -> Mapping[str, int]:
        """Return the number of samples in each split; for a stream, the training samples of one epoch."""
        return {name: len(getattr(data, name).inputs) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: RegressionData, model: nn.Module | None = None) -> str:
        """Draw up to four tasks: the test targets' distribution or, with a ``model``, its predictions of one target."""
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
                "Top: the distribution of each task's test targets, in units of its sigma. Bottom: the first of its "
                "100 targets over the argument of tanh."
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
        return "The first of each task's 100 outputs on the test set: predictions over targets, in units of sigma."


def _sigmas(sigmas: Sequence[float] | str) -> tuple[float, ...]:
    if isinstance(sigmas, str):
        if sigmas not in PRESETS:
            known = ", ".join(map(repr, PRESETS))
            raise ValueError(f"sigmas is {sigmas!r}; expected a list of numbers, or one of {known}")
        sigmas = PRESETS[sigmas]
    if not isinstance(sigmas, Sequence) or not sigmas:
        raise ValueError(f"sigmas is {sigmas!r}; expected one number per task, at least one")
    return tuple(_positive(f"sigmas[{i}]", sigma) for i, sigma in enumerate(sigmas))


def _positive(option: str, value: object) -> float:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{option} is {value!r}; expected a positive, finite number")
    return float(value)
