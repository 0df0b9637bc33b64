"""The problem ``same-tasks``, a control: T copies of one task that differ only in the scale of their loss.

All tasks have the same inputs, the same targets, and heads with the same initial values. The loss of task i is
``scale_i`` times the mean squared error. So all gradients of the features have the same direction. Adam divides a
gradient by its own root mean square, so a constant positive factor of the gradient does not change Adam's step. It
follows, up to rounding and Adam's epsilon:

- Under *any* constant, positive weights (equal weights, one over the scale, the result of any search) the heads stay
  equal to each other, and the trunk and every head take the same path as in single-task training.
- Under one-hot weights, which are single-task training, the other heads get no gradient and keep their initial values.
  Then only the trained task's metrics are meaningful, and a mean over tasks is not.

So if a static method does not score like single-task training, the benchmark has an error. For example, the two were
compared on different data, initial values or batches; a balancer's state entered the network's gradients; or a task
trained another task's head. The control cannot find an error that multiplies a whole gradient by a constant, because
Adam does not notice it.

A method whose weights change over time may differ, and this is no error: Adam divides by a mean over the past, so
growing weights lengthen its steps and shrinking weights shorten them. There is no conflict to resolve here. So this
effect is all that such a method gains or loses, and its difference from equal weighting measures the effect.

Measured on the test set with the default recipe and one seed: each task's relative error is 9.376e-4 at equal weights,
at inverse-scale weights, and at its own one-hot weights. The three differ relatively by at most 2e-6, and by at most
6e-5 after 10,000 steps. The relative error of uncertainty weighting is 4.5e-4, that of GradNorm 2.8e-3.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

from balancers import Fork

from .batch_order import batches
from .problem import Metric, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS, HIDDEN, OUTPUTS, WIDTH = 10, 20, 4, 64
"""Number of inputs, of hidden units of the true map, of outputs, and of units in each of the network's layers."""
TRAIN, HELD_OUT = 8_000, 2_000
"""Number of samples in the training set, and in each of the validation and test sets."""
SEED = 2021
"""Seed of the data."""


class Samples(NamedTuple):
    """``inputs`` of shape ``(N, 10)``, and ``targets`` of shape ``(N, 4)``, the same for every task."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class SameTasksData:
    """The splits, and the map from inputs to targets, ``outer @ tanh(inner @ x)``.

    Attributes:
        inner: shape ``(20, 10)``.
        outer: shape ``(4, 20)``.
        train: the training set.
        validation: the validation set.
        test: the test set.
    """

    inner: Tensor
    outer: Tensor
    train: Samples
    validation: Samples
    test: Samples

    def targets(self, inputs: Tensor) -> Tensor:
        """Return the targets, shape ``(..., 4)``, of ``inputs``, shape ``(..., 10)``."""
        return (inputs @ self.inner.T).tanh() @ self.outer.T


class Network(nn.Module):
    """A trunk of two tanh layers of 64, and one linear head per task: ``(N, 10)`` to T tensors of shape ``(N, 4)``.

    All heads start from the same initial values. The activation is tanh and not ReLU, because rounding errors grow more
    slowly without a kink.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.fork = Fork(num_tasks)
        head = nn.Linear(WIDTH, OUTPUTS)
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(num_tasks))

    def forward(self, inputs: Tensor) -> list[Tensor]:
        aliases = self.fork(self.trunk(inputs))
        return [head(features) for head, features in zip(self.heads, aliases, strict=True)]


class Constant(nn.Module):
    """A model that predicts ``values``, shape ``(4,)``, for every task and input: T tensors of shape ``(N, 4)``."""

    def __init__(self, num_tasks: int, values: Tensor) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.register_buffer("values", values)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return [self.get_buffer("values").expand(len(inputs), -1)] * self.num_tasks


@register
class SameTasks(Problem[SameTasksData]):
    """The same regression T times, with losses of different scale. A control, see above.

    Data: 8,000 training, 2,000 validation and 2,000 test samples of ten normal inputs ``x``, with the targets
    ``A tanh(B x)``, without noise. The entries of ``A`` and ``B`` are normal with variances 1/10 and 1/5. Everything is
    drawn from one constant seed.

    Tasks: T copies of the regression onto the four targets. The loss of task i is ``scales[i]`` times its mean squared
    error.

    Model: a small tanh network from ``batch_size x 10`` inputs to T times ``batch_size x 4`` outputs.

    Metrics: each task's mean squared error relative to that of the mean target, and the mean over tasks, which is the
    primary metric.

    Args:
        scales: factor of each task's loss.

    Raises:
        ValueError: If ``scales`` is empty, or a scale is not a positive, finite number.

    Example::

        problem = tasks.create("same-tasks", scales=(1, 100))
        data = problem.data(torch.Generator().manual_seed(1), "cpu")
        batch = next(problem.batches(data, torch.Generator().manual_seed(2), batch_size=100))
        first, second = problem.losses(problem.model(), batch)  # the second is 100 times the first
    """

    name = "same-tasks"
    summary = "A control: T copies of one task at different loss scales, which fixed weights can't tell apart."
    control = True
    primary = "relative error"
    recipe = Recipe("adam", lr=3e-3, schedule="constant", batch_size=100, steps=2_000)
    full = replace(recipe, steps=10_000)
    baselines = frozenset({"constant", "single-task"})

    def __init__(self, *, scales: Sequence[float] = (1, 10, 100)) -> None:
        if isinstance(scales, str) or not isinstance(scales, Sequence) or not scales:
            raise ValueError(f"scales is {scales!r}; expected one number per task, at least one")
        for i, scale in enumerate(scales):
            if not (isinstance(scale, int | float) and 0 < scale < math.inf):
                raise ValueError(f"scales[{i}] is {scale!r}; expected a positive, finite number")
        self.scales = tuple(map(float, scales))
        self.tasks = tuple(f"copy {i} (scale {scale:g})" for i, scale in enumerate(self.scales, 1))
        self._errors = tuple(f"relative error of {task}" for task in self.tasks)
        self.metrics = (
            Metric(self.primary, "mean over the tasks", "", False),
            *(
                Metric(name, "mean squared error relative to that of the training targets' mean", "", False, task)
                for name, task in zip(self._errors, self.tasks, strict=True)
            ),
        )
        inverse = [1 / scale for scale in self.scales]
        self.static_weights = {"inverse-scale": tuple(len(inverse) * part / sum(inverse) for part in inverse)}

    def data(self, generator: Generator, device: torch.device | str) -> SameTasksData:
        """Return the data, which are the same for every seed: ``generator`` is not used."""
        data = _data()
        splits = (data.train, data.validation, data.test)
        moved = (Samples(split.inputs.to(device), split.targets.to(device)) for split in splits)
        return SameTasksData(data.inner.to(device), data.outer.to(device), *moved)

    def batches(self, data: SameTasksData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """Return training batches. An epoch is one permutation of the samples; an incomplete last batch is dropped."""
        every = batches(len(data.train.inputs), batch_size, generator, data.inner.device)
        return (Samples(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network(len(self.scales))

    def shared(self, model: nn.Module) -> Shared:
        """Return the trunk as the shared part. Its second linear layer is the last shared layer; a tanh follows it.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that SameTasks.model made, got {type(model).__name__}")
        return Shared(model.fork, model.trunk[-2], tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor]:
        """Return each task's mean squared error times its scale."""
        errors = (mse_loss(outputs, batch.targets) for outputs in model(batch.inputs))
        return [scale * error for scale, error in zip(self.scales, errors, strict=True)]

    def evaluate(
        self, model: nn.Module, data: SameTasksData, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        samples = {"validation": data.validation, "test": data.test}[split]
        mean = data.train.targets.mean(0).expand_as(samples.targets)
        with evaluating(model):
            of_mean = float(mse_loss(mean, samples.targets))
            errors = [float(mse_loss(outputs, samples.targets)) / of_mean for outputs in model(samples.inputs)]
        return {self.primary: sum(errors) / len(errors), **dict(zip(self._errors, errors, strict=True))}

    def constant(self, data: SameTasksData) -> Constant:
        """Return a model that predicts the mean target of the training set."""
        return Constant(len(self.scales), data.train.targets.mean(0))

    def sizes(self, data: SameTasksData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).inputs) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: SameTasksData, model: nn.Module | None = None) -> str:
        """Draw the targets over two inputs; with a ``model``, the first target and three tasks' predictions of it."""
        ticks = torch.linspace(-3, 3, 81, device=data.inner.device)
        plane = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)  # (row: input 2, column: input 1, 2)
        inputs = torch.cat([plane, plane.new_zeros(*plane.shape[:2], INPUTS - 2)], -1)
        maps = {f"target {i}": target for i, target in enumerate(data.targets(inputs).unbind(-1), 1)}
        if model is not None:
            scores = self.evaluate(model, data, "test")
            with evaluating(model):
                outputs = [output.unflatten(0, plane.shape[:2]) for output in model(inputs.flatten(0, 1))]
            maps = {"target 1": maps["target 1"]}
            for task, name, output in list(zip(self.tasks, self._errors, outputs, strict=True))[:3]:
                maps[f"{task}\nrelative error {scores[name]:.2g}"] = output[..., 0]
        limit = max(float(values.abs().max()) for values in maps.values())
        row = figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(row, maps.items(), strict=True):
            image = axes.imshow(
                values.cpu().numpy(), extent=(-3, 3, -3, 3), origin="lower", cmap="PuOr", vmin=-limit, vmax=limit
            )
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("input 1")
        row[0].set_ylabel("input 2")
        figure.colorbar(image, ax=row, label="value", shrink=0.6)
        figure.set_size_inches(9, 3)
        if model is None:
            return "The four targets as functions of the first two inputs, the others being 0; the same for every task."
        return (
            "The first target as a function of the first two inputs, the others being 0, and the predictions of the "
            "trained copies, which are the same if the weights were constant."
        )


@cache
def _data() -> SameTasksData:
    generator = torch.Generator().manual_seed(SEED)
    inner = torch.randn(HIDDEN, INPUTS, generator=generator) * math.sqrt(1 / 5)
    outer = torch.randn(OUTPUTS, HIDDEN, generator=generator) * math.sqrt(1 / 10)
    splits = []
    for num_samples in (TRAIN, HELD_OUT, HELD_OUT):
        inputs = torch.randn(num_samples, INPUTS, generator=generator)
        splits.append(Samples(inputs, (inputs @ inner.T).tanh() @ outer.T))
    return SameTasksData(inner, outer, *splits)
