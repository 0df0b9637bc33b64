"""The problem ``apart``, a control: three unlike tasks that share nothing, although their model looks shared.

The trunk holds one block of units per task, and no weight leads from one block to another. It is one module behind one
`Fork`, so every method finds features, a last shared layer and shared parameters to measure. But a head reads its own
block alone. So a task's gradient is zero outside its block, and the gradients of two tasks are always orthogonal: no
task can help or harm another. Adam divides a gradient by its own root mean square, so a constant positive factor of a
gradient does not change Adam's step. It follows:

- Under equal weights every task takes, bit for bit, the path that it takes when it is trained alone.
- Under any constant, positive weights the path is the same up to rounding and Adam's epsilon.
- Methods that resolve conflicts find none.

The tasks differ in kind, and their losses in size by a factor of two hundred, so that a method's weights do move. A
method whose weights change over time may score differently from equal weights, and this is no error: growing weights
lengthen Adam's steps, and shrinking weights shorten them. That is all that such a method gains or loses here.

Measured on the test set with the default recipe and one seed: the relative losses are 5.11e-3, 0.155 and 0.0163 at
equal weights, and the same to the bit when each task is trained alone. At inverse-constant weights they differ from
these relatively by at most 2e-5.

``same-tasks`` is the other control. There all tasks share everything and agree; here they share nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from balancers import Fork

from .batch_order import batches
from .problem import Metric, Problem, Recipe, Shared, Split, evaluating
from .problem_registry import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("vector", "class", "rate")
INPUTS, HIDDEN, WIDTH = 10, 20, 64
"""Number of inputs, of hidden units of each task's true map, and of units in each layer of a block."""
OUTPUTS = (4, 5, 1)
"""Number of outputs of each task: entries of the vector, classes, and one number."""
SCALE = 10.0
"""Factor of the vector's entries, whose variance is about ``SCALE`` squared."""
TRAIN, HELD_OUT = 8_000, 2_000
"""Number of samples in the training set, and in each of the validation and test sets."""
SEED = 2022
"""Seed of the data."""


class Outputs(NamedTuple):
    """The predictions for N samples, or their true values.

    Attributes:
        vector: shape ``(N, 4)``.
        scores: a score per class, shape ``(N, 5)``: logits, if predicted; the true class has the highest score.
        log_rate: natural logarithm of the rate, shape ``(N,)``.
    """

    vector: Tensor
    scores: Tensor
    log_rate: Tensor


class Samples(NamedTuple):
    """N samples.

    Attributes:
        inputs: shape ``(N, 10)``.
        vector: shape ``(N, 4)``.
        labels: the classes, shape ``(N,)``, int64.
        rate: positive numbers, shape ``(N,)``.
    """

    inputs: Tensor
    vector: Tensor
    labels: Tensor
    rate: Tensor

    def to(self, device: torch.device | str) -> "Samples":
        return Samples(*(part.to(device) for part in self))


class TrueMaps(NamedTuple):
    """The three maps from inputs to targets, ``outer[i] @ tanh(inner[i] @ x)``.

    Attributes:
        inner: shape ``(3, 20, 10)``.
        outer: of the shapes ``(4, 20)``, ``(5, 20)`` and ``(1, 20)``.
    """

    inner: Tensor
    outer: tuple[Tensor, ...]

    def __call__(self, inputs: Tensor) -> Outputs:
        """Return the true values for ``inputs`` of shape ``(N, 10)``."""
        vector, scores, log_rate = (
            (inputs @ inner.T).tanh() @ outer.T for inner, outer in zip(self.inner, self.outer, strict=True)
        )
        return Outputs(SCALE * vector, scores, log_rate[:, 0])

    def to(self, device: torch.device | str) -> "TrueMaps":
        return TrueMaps(self.inner.to(device), tuple(outer.to(device) for outer in self.outer))


@dataclass(frozen=True)
class ApartData:
    """The true maps, and the splits."""

    maps: TrueMaps
    train: Samples
    validation: Samples
    test: Samples


class Blocks(nn.Module):
    """Linear layers side by side, one per block: ``(N, blocks, inputs)`` to ``(N, blocks, outputs)``.

    It is a linear layer whose weight matrix is block-diagonal. Each block starts as `torch.nn.Linear` does.
    """

    def __init__(self, num_blocks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(num_blocks, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_blocks, outputs).uniform_(-bound, bound))

    def forward(self, units: Tensor) -> Tensor:
        return torch.einsum("nbi,bio->nbo", units, self.weight) + self.bias


class Network(nn.Module):
    """A trunk of three blocks, each of two tanh layers of 64, and one linear head per task, which reads one block."""

    def __init__(self) -> None:
        super().__init__()
        num_tasks = len(TASKS)
        self.trunk = nn.Sequential(
            Blocks(num_tasks, INPUTS, WIDTH), nn.Tanh(), Blocks(num_tasks, WIDTH, WIDTH), nn.Tanh()
        )
        self.fork = Fork(num_tasks)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, outputs) for outputs in OUTPUTS)

    def forward(self, inputs: Tensor) -> Outputs:
        aliases = self.fork(self.trunk(inputs[:, None].expand(-1, len(TASKS), -1)))
        vector, scores, log_rate = (
            head(features[:, block]) for block, (head, features) in enumerate(zip(self.heads, aliases, strict=True))
        )
        return Outputs(SCALE * vector, scores, log_rate[:, 0])


class Constant(nn.Module):
    """A model with one prediction for all inputs: ``vector`` ``(4,)``, ``scores`` ``(5,)``, ``log_rate`` ``()``."""

    def __init__(self, vector: Tensor, scores: Tensor, log_rate: Tensor) -> None:
        super().__init__()
        self.register_buffer("vector", vector)
        self.register_buffer("scores", scores)
        self.register_buffer("log_rate", log_rate)

    def forward(self, inputs: Tensor) -> Outputs:
        size = len(inputs)
        vector, scores, log_rate = (self.get_buffer(name) for name in ("vector", "scores", "log_rate"))
        return Outputs(vector.expand(size, -1), scores.expand(size, -1), log_rate.expand(size))


@register
class Apart(Problem[ApartData]):
    """Two regressions and a classification that share nothing. A control, see above.

    Data: 8,000 training, 2,000 validation and 2,000 test samples of ten normal inputs ``x``. Each task has a map of its
    own, ``A tanh(B x)``, without noise. The entries of ``A`` and ``B`` are normal with variances 1/10 and 1/5.
    Everything is drawn from one constant seed.

    Tasks: "vector", the squared error of four numbers, which are ten times the map's; "class", the cross-entropy of the
    class that has the highest of five scores; "rate", half the Poisson deviance of a positive number, which is the
    exponential of the map's output.

    Model: three small tanh networks in one module, from ``batch_size x 10`` inputs. They share no parameter.

    Metrics: each task's loss relative to that of the best constant predictor, and the mean over tasks, which is the
    primary metric.

    Example::

        problem = tasks.create("apart")
        data = problem.data(torch.Generator().manual_seed(1), "cpu")
        scores = problem.evaluate(problem.constant(data), data, "test")
        scores["relative loss"]  # 1: the best constant predictor is what losses are relative to
    """

    name = "apart"
    summary = "A control: three unlike tasks on a trunk in which they share no weight, so there is nothing to balance."
    control = True
    tasks = TASKS
    primary = "relative loss"
    metrics = (
        Metric(primary, "mean over the tasks", "", False),
        Metric("relative loss of vector", "squared error relative to that of the mean", "", False, "vector"),
        Metric("relative loss of class", "cross-entropy relative to that of the class frequencies", "", False, "class"),
        Metric("relative loss of rate", "Poisson deviance relative to that of the mean", "", False, "rate"),
    )
    recipe = Recipe("adam", lr=3e-3, schedule="cosine", batch_size=100, steps=1_000)
    full = replace(recipe, steps=10_000)
    baselines = frozenset({"constant", "single-task"})
    static_weights = {"inverse-constant": (0.0097, 0.6393, 2.3510)}
    """Inverse training losses of the best constants: 105.57, 1.6036 nats and 0.4361."""

    def data(self, generator: Generator, device: torch.device | str) -> ApartData:
        """Return the data, which are the same for every seed: ``generator`` is not used."""
        data = _data()
        splits = (split.to(device) for split in (data.train, data.validation, data.test))
        return ApartData(data.maps.to(device), *splits)

    def batches(self, data: ApartData, generator: Generator, batch_size: int) -> Iterator[Samples]:
        """Return training batches. An epoch is one permutation of the samples; an incomplete last batch is dropped."""
        every = batches(len(data.train.inputs), batch_size, generator, data.train.inputs.device)
        return (Samples(*(part.index_select(0, chosen) for part in data.train)) for chosen in every)

    def model(self) -> Network:
        return Network()

    def shared(self, model: nn.Module) -> Shared:
        """Return the trunk as the shared part, although no task uses all of it. A tanh follows its last layer.

        Raises:
            TypeError: If `model` did not make the model.
        """
        if not isinstance(model, Network):
            raise TypeError(f"expected a model that Apart.model made, got {type(model).__name__}")
        return Shared(model.fork, model.trunk[-2], tuple(model.trunk.parameters()))

    def losses(self, model: nn.Module, batch: Samples) -> list[Tensor]:
        """Return the mean squared error, the cross-entropy in nats, and half the mean Poisson deviance."""
        outputs = model(batch.inputs)
        deviances = outputs.log_rate.exp() - batch.rate * (1 + outputs.log_rate - batch.rate.log())
        return [
            F.mse_loss(outputs.vector, batch.vector),
            F.cross_entropy(outputs.scores, batch.labels),
            deviances.mean(),
        ]

    def evaluate(
        self, model: nn.Module, data: ApartData, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        samples = {"validation": data.validation, "test": data.test}[split]
        with evaluating(model):
            losses, of_constant = (self.losses(each, samples) for each in (model, self.constant(data)))
        relative = [float(loss / constant) for loss, constant in zip(losses, of_constant, strict=True)]
        names = (metric.name for metric in self.metrics)
        return dict(zip(names, [sum(relative) / len(relative), *relative], strict=True))

    def constant(self, data: ApartData) -> Constant:
        """Return a model that predicts the mean vector, the class frequencies and the mean rate of the training set."""
        frequencies = data.train.labels.bincount(minlength=OUTPUTS[1]) / len(data.train.labels)
        return Constant(data.train.vector.mean(0), frequencies.log(), data.train.rate.mean().log())

    def sizes(self, data: ApartData) -> Mapping[str, int]:
        return {name: len(getattr(data, name).inputs) for name in ("train", "validation", "test")}

    def draw(self, figure: "Figure", data: ApartData, model: nn.Module | None = None) -> str:
        """Draw the targets over two inputs and, with a ``model``, its predictions below them."""
        ticks = torch.linspace(-3, 3, 81, device=data.train.inputs.device)
        plane = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1)  # (row: input 2, column: input 1, 2)
        inputs = torch.cat([plane, plane.new_zeros(*plane.shape[:2], INPUTS - 2)], -1).flatten(0, 1)
        rows = {"": data.maps(inputs)}
        relative: list[float] = []
        if model is not None:
            relative = list(self.evaluate(model, data, "test").values())[1:]
            with evaluating(model):
                rows["model's "] = model(inputs)
        figure.set_size_inches(9, 2.9 * len(rows))
        panels = figure.subplots(len(rows), len(TASKS), sharex=True, sharey=True, squeeze=False)
        for row, (whose, outputs) in zip(panels, rows.items(), strict=True):
            titles = [f"{whose}vector, first entry", f"{whose}class", f"{whose}rate, logarithm"]
            if whose:
                titles = [f"{title}\nrelative loss {loss:.2g}" for title, loss in zip(titles, relative, strict=True)]
            maps = [outputs.vector[:, 0], outputs.scores.argmax(1), outputs.log_rate]
            truth = [rows[""].vector[:, 0], None, rows[""].log_rate]
            for axes, title, values, true in zip(row, titles, maps, truth, strict=True):
                limit = 0.0 if true is None else float(true.abs().max())
                cmap, low, high = ("Set2", -0.5, 7.5) if true is None else ("PuOr", -limit, limit)
                grid = values.view(plane.shape[:2]).cpu().numpy()
                image = axes.imshow(grid, extent=(-3, 3, -3, 3), origin="lower", cmap=cmap, vmin=low, vmax=high)
                axes.set_title(title, fontsize=10)
                axes.grid(False)
                if true is not None:
                    figure.colorbar(image, ax=axes, shrink=0.8)
            row[0].set_ylabel("input 2")
        for axes in panels[-1]:
            axes.set_xlabel("input 1")
        targets = "The three tasks' targets as functions of the first two inputs, the others being 0."
        return targets if model is None else f"{targets} Below them: the predictions of the trained blocks."


@cache
def _data() -> ApartData:
    generator = torch.Generator().manual_seed(SEED)
    inner = torch.randn(len(TASKS), HIDDEN, INPUTS, generator=generator) * math.sqrt(1 / 5)
    outer = tuple(torch.randn(outputs, HIDDEN, generator=generator) * math.sqrt(1 / 10) for outputs in OUTPUTS)
    maps = TrueMaps(inner, outer)
    splits = []
    for num_samples in (TRAIN, HELD_OUT, HELD_OUT):
        inputs = torch.randn(num_samples, INPUTS, generator=generator)
        true = maps(inputs)
        splits.append(Samples(inputs, true.vector, true.scores.argmax(1), true.log_rate.exp()))
    return ApartData(maps, *splits)
