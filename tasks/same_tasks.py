"""A control: T copies of one task that differ in nothing but the scale of their loss.

All tasks have the same inputs, the same targets and heads with the same initial values; task i's loss is ``scale_i``
times the mean squared error. So all gradients of the features point the same way, and Adam, which divides a gradient by
its own root mean square, takes the same step whatever positive number that gradient is multiplied by. It follows, up to
rounding and Adam's epsilon, that

- under *any* positive weights that stay as they are (equal ones, one over the scale, any search's result) the heads
  stay equal to each other, and the trunk and every head go the way that they go in single-task training;
- under one-hot weights, which are single-task training, the other heads get no gradient and keep their initial values:
  only the trained task's metrics say anything, and a mean over tasks says nothing.

A static method that scores unlike single-task training therefore shows an error of the harness: other data, initial
values or batches than it was compared with, a balancer's state in the network's gradients, a head that another task
trains. What the control can't show is an error that multiplies a whole gradient by a constant, to which Adam is blind.

A method whose weights change in time may differ, and rightly: Adam divides by a mean over the past, so growing weights
lengthen its steps and shrinking ones shorten them. There is no conflict to resolve here, so that is all that such a
method gains or loses, and its distance to equal weighting is how large the effect gets.

Measured on the test set with the default recipe, one seed: each task's relative error is 9.376e-4 at equal, at
inverse-scale and at its own one-hot weights, the three within 2e-6 of each other, relatively, and within 6e-5 after
10,000 steps. Uncertainty weighting's is 4.5e-4, that of GradNorm 2.8e-3.
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
TRAIN, HELD_OUT = 8_000, 2_000
"""Samples in the training set; in the validation set, and in the test set."""
SEED = 2021


class Samples(NamedTuple):
    """``inputs`` of shape ``(N, 10)``, and ``targets``, ``(N, 4)``, that are every task's."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class SameTasksData:
    """The splits, and the matrices of the map onto targets: ``inner``, ``(20, 10)``, and ``outer``, ``(4, 20)``."""

    inner: Tensor
    outer: Tensor
    train: Samples
    validation: Samples
    test: Samples

    def targets(self, inputs: Tensor) -> Tensor:
        """The targets ``(..., 4)`` of ``inputs``, ``(..., 10)``."""
        return (inputs @ self.inner.T).tanh() @ self.outer.T


class Network(nn.Module):
    """Two layers of 64 shared by all tasks, then one linear head a task: ``(N, 10)`` to T of ``(N, 4)``.

    All heads have the initial values of one. Without a kink, so that rounding errors grow slowly.
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
    """Predicts ``values``, of shape ``(4,)``, for every task, whatever the inputs: T of ``(N, 4)``."""

    def __init__(self, num_tasks: int, values: Tensor) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.register_buffer("values", values)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return [self.get_buffer("values").expand(len(inputs), -1)] * self.num_tasks


@register
class SameTasks(Problem[SameTasksData]):
    """T times the same regression: onto ``A tanh(B x)`` of ten normal inputs, without noise.

    The entries of ``A`` and ``B`` are normal, with variances 1/10 and 1/5, and like the samples drawn from one constant
    seed.

    Args:
        scales: what each task's mean squared error is multiplied by to give its loss.

    Raises:
        ValueError: ``scales`` is empty, or one of them isn't a positive, finite number.
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
            raise ValueError(f"scales is {scales!r}; expected one number a task, at least one")
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
        self.static_weights = {"inverse-scale": tuple(len(inverse) * one / sum(inverse) for one in inverse)}

    def data(self, generator: Generator, device: torch.device | str) -> SameTasksData:
        """The same for every seed: ``generator`` is not used."""
        data = _data()
        splits = (data.train, data.validation, data.test)
        moved = (Samples(split.inputs.to(device), split.targets.to(device)) for split in splits)
        return SameTasksData(data.inner.to(device), data.outer.to(device), *moved)

    def batches(self, data: SameTasksData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """An epoch is one permutation of the training set; what is left after its last full batch is dropped."""
        every = batches(TRAIN, batch_size, generator, data.inner.device)
        return (Samples(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network(len(self.scales))

    def shared(self, model: nn.Module) -> Shared:
        """The last shared layer is the trunk's second linear one, with its tanh between it and the fork."""
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that SameTasks.model made, got {type(model).__name__}")
        return Shared(model.fork, model.trunk[-2], tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor]:
        """Each task's scale times its mean squared error."""
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
        """The mean of the training set's targets."""
        return Constant(len(self.scales), data.train.targets.mean(0))

    def sizes(self, data: SameTasksData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).inputs) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: SameTasksData, model: nn.Module | None = None) -> str:
        """Targets over the plane of two inputs; with a ``model``, the first target and what three copies make of it."""
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
            return "The four targets over the plane of the first two inputs, all others 0: the same for every task."
        return (
            "The first target over the plane of the first two inputs, all others 0, and what the trained copies make "
            "of it: the same, if their weights stayed as they were."
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
