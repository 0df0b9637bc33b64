"""What a multi-task problem is: a data set, a model and T tasks, with the facts a benchmark needs to know of them.

A problem knows nothing of balancers, apart from the `Fork` that marks where its model splits into heads, and nothing of
who runs it. A new one is a subclass of `Problem` that states its facts as attributes and says how to draw its data, how
to make its model and what its losses are: ``regression.py`` is a complete example.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args

import torch
from torch import Generator, Tensor, nn

from balancers import Fork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = TypeVar("Data")
Split = Literal["validation", "test"]
Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine"]
Baseline = Literal["constant", "single-task"]


class MissingDataError(Exception):
    """A problem's data aren't there; the message says which, and how to get them."""


@dataclass(frozen=True)
class Metric:
    """A number that `Problem.evaluate` gives under ``name``.

    ``unit`` is empty for a pure number; ``task`` is None for a metric of the whole problem.
    """

    name: str
    description: str
    unit: str
    higher_is_better: bool
    task: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How a problem's model is trained unless someone says otherwise.

    Raises:
        ValueError: an unknown optimiser or schedule, or a number that isn't positive.
    """

    optimizer: Optimizer
    lr: float
    schedule: Schedule
    batch_size: int
    steps: int

    def __post_init__(self) -> None:
        for name, value, known in (("optimizer", self.optimizer, Optimizer), ("schedule", self.schedule, Schedule)):
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(get_args(known))}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr is {self.lr}; expected a positive, finite number")
        for name, count in (("batch_size", self.batch_size), ("steps", self.steps)):
            if count < 1:
                raise ValueError(f"{name} is {count}; expected 1 or more")


@dataclass(frozen=True)
class Shared:
    """What the tasks of a model share.

    Args:
        fork: where the trunk splits into heads; None where tasks share parameters but no features.
        layer: the last shared layer, just upstream of the fork; None where there is no such thing.
        parameters: all shared parameters.
    """

    fork: Fork | None
    layer: nn.Module | None
    parameters: tuple[nn.Parameter, ...]


class Problem(ABC, Generic[Data]):
    """A data set, a model and T tasks, made with options as keyword arguments. ``Data`` is what `data` returns.

    Attributes:
        name: what the registry knows it by.
        summary: one sentence for a list of problems.
        tasks: the tasks' names, in the order of `losses`.
        metrics: what `evaluate` gives.
        primary: the name of the metric that methods are compared by.
        recipe: how the model is trained by default, in seconds.
        full: the same at greater length; None where there is no such recipe.
        baselines: what a score can be held against. "constant": the best constant predictor, see `constant`.
            "single-task": the model trained on one task's loss alone.
        illustration: whether it is there to be looked at (``lossbench show``), and no measure of a method.
        control: whether its result is known beforehand, so that it tests the benchmark and not the methods.
        static_weights: fixed weightings that anyone could work out beforehand, by name, the one to try first first;
            each sums to T.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    illustration: ClassVar[bool] = False
    control: ClassVar[bool] = False
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    primary: str
    recipe: Recipe
    full: Recipe | None = None
    baselines: frozenset[Baseline] = frozenset({"single-task"})
    static_weights: Mapping[str, tuple[float, ...]] = MappingProxyType({})

    def require(self) -> None:
        """Checks, without reading them, that all data from outside the tree are there.

        Raises:
            MissingDataError: they aren't.
        """

    def fingerprint(self) -> str:
        """A hash of what the data come from; empty where nothing is read from outside the tree.

        It is part of what a run's result is kept under: with other data, it is another run.

        Raises:
            MissingDataError: there is nothing to hash.
        """
        return ""

    @abstractmethod
    def data(self, generator: Generator, device: torch.device | str) -> Data:
        """All splits, on ``device``. Whatever is random comes from ``generator``, which is on the CPU."""

    @abstractmethod
    def batches(self, data: Data, generator: Generator, batch_size: int) -> Iterator[Any]:
        """Training batches without end, on the data's device, in an order drawn from ``generator`` (on the CPU).

        A batch is whatever `losses` takes. Handing one out copies nothing from the host.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model on the CPU, its initial values drawn from torch's global generator, which the caller seeds."""

    @abstractmethod
    def shared(self, model: nn.Module) -> Shared:
        """What the tasks of a ``model`` made by `model` share."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> Sequence[Tensor] | Tensor:
        """The T losses of a batch, in the order of ``tasks``: scalars, or ``(T,)`` where the heads are one product."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, data: Data, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """All metrics of ``model`` on a split, by name, in eval mode (see `evaluating`).

        ``start`` is what this gave for the initial model on the same split, so that a loss can be told relative to its
        initial value. None: ``model`` is the initial model.
        """

    def constant(self, data: Data) -> nn.Module | None:
        """The best constant predictor on the training set, for `evaluate`; None unless it is one of ``baselines``."""
        return None

    def sizes(self, data: Data) -> Mapping[str, int]:
        """The number of samples in each split, by its name; empty where there are none to count."""
        return {}

    def draw(self, figure: "Figure", data: Data, model: nn.Module | None = None) -> str:
        """Draws into an empty ``figure`` what the data are like, and what ``model``, a trained one, makes of them.

        Returns:
            What is to be seen, in a sentence or two; empty if nothing was drawn.
        """
        return ""

    def check(self) -> None:
        """Checks that the facts are all stated and agree with one another.

        Raises:
            TypeError: one isn't stated.
            ValueError: two contradict each other.
        """
        who = type(self).__name__
        for fact in ("name", "summary", "tasks", "metrics", "primary", "recipe"):
            if not hasattr(self, fact):
                raise TypeError(f"{who} states no {fact!r}")
        metrics = [metric.name for metric in self.metrics]
        for fact, names in (("tasks", self.tasks), ("metrics", metrics)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{who}.{fact} is {list(names)}; expected at least one, each with a name of its own")
        for metric in self.metrics:
            if metric.task is not None and metric.task not in self.tasks:
                raise ValueError(f"{who}: metric {metric.name!r} is of task {metric.task!r}; tasks: {list(self.tasks)}")
        if self.primary not in metrics:
            raise ValueError(f"{who}.primary is {self.primary!r}, which is none of its metrics: {metrics}")
        if ("constant" in self.baselines) != (type(self).constant is not Problem.constant):
            raise ValueError(f"{who}.baselines has 'constant' if, and only if, {who} has a method constant")
        for key, weights in self.static_weights.items():
            if len(weights) != len(self.tasks) or not math.isclose(sum(weights), len(self.tasks), rel_tol=1e-6):
                raise ValueError(
                    f"{who}.static_weights[{key!r}] has {len(weights)} weights that sum to {sum(weights)}; "
                    f"expected {len(self.tasks)}, one a task, with that sum"
                )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
