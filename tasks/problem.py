"""The base class of all multi-task problems. A problem is a data set, a model and T tasks, with facts about them.

A problem knows nothing about balancers, apart from the `Fork` that marks where its model splits into heads, and nothing
about the code that runs it. To add a problem, write a subclass of `Problem`: state its facts as class attributes, and
define how to draw its data, how to make its model and how to compute its losses. ``regression.py`` is a complete
example.
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

from .held_out import seen_data, split_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = TypeVar("Data")
Split = Literal["validation", "test"]
"""A part of the data on which a model is evaluated."""
Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine"]
Baseline = Literal["constant", "single-task"]
"""A reference that a score can be compared with; see ``baselines`` of `Problem`."""


class MissingDataError(Exception):
    """A problem's data are missing or unusable. The message says which data, and how to get them.

    Example::

        problem = tasks.create("nyuv2")
        try:
            problem.require()
        except MissingDataError as error:
            print(error)
    """


@dataclass(frozen=True)
class Metric:
    """A number that `Problem.evaluate` returns under ``name``.

    Attributes:
        name: the metric's name, unique within its problem.
        description: a short definition of the metric.
        unit: the unit, empty for a pure number.
        higher_is_better: whether a higher number is better.
        task: the name of the task that the metric measures; None for a metric of the whole problem.

    Example::

        metric = Metric("error of depth", "mean absolute error", unit="m", higher_is_better=False, task="depth")
    """

    name: str
    description: str
    unit: str
    higher_is_better: bool
    task: str | None = None


@dataclass(frozen=True)
class Recipe:
    """The default training settings of a problem's model.

    Attributes:
        optimizer: "adam" or "sgd".
        lr: the learning rate.
        schedule: the schedule of the learning rate, "constant" or "cosine".
        batch_size: samples per batch.
        steps: number of training steps.
        betas: how much of itself Adam's averages of the gradient and of its square keep in a step.
        weight_decay: how much of each parameter is added to its gradient, as by the ``weight_decay`` of PyTorch's Adam
            and SGD.

    Raises:
        ValueError: If the optimiser or schedule is unknown, or a number is out of range.

    Example::

        recipe = Recipe("adam", lr=3e-3, schedule="cosine", batch_size=100, steps=1000)
        full = replace(recipe, steps=10_000)
    """

    optimizer: Optimizer
    lr: float
    schedule: Schedule
    batch_size: int
    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("optimizer", self.optimizer, Optimizer), ("schedule", self.schedule, Schedule)):
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(get_args(known))}")
        if not (_is_number(self.lr) and 0 < self.lr < math.inf):
            raise ValueError(f"lr is {self.lr!r}; expected a positive, finite number")
        for name, count in (("batch_size", self.batch_size), ("steps", self.steps)):
            if not (isinstance(count, int) and not isinstance(count, bool) and count >= 1):
                raise ValueError(f"{name} is {count!r}; expected a whole number, 1 or more")
        betas = self.betas
        if not (isinstance(betas, Sequence) and len(betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in betas)):
            raise ValueError(f"betas is {betas!r}; expected two numbers of at least 0 and below 1")
        if not (_is_number(self.weight_decay) and 0 <= self.weight_decay < math.inf):
            raise ValueError(f"weight_decay is {self.weight_decay!r}; expected a finite number, 0 or more")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Shared:
    """The parts of a model that its tasks share.

    Args:
        fork: the place where the trunk splits into heads; None if tasks share parameters but no features.
        layer: the last shared layer, just upstream of the fork; None if there is no such layer.
        parameters: all shared parameters.

    Example::

        def shared(self, model: nn.Module) -> Shared:
            return Shared(model.fork, model.trunk[-1], tuple(model.trunk.parameters()))
    """

    fork: Fork | None
    layer: nn.Module | None
    parameters: tuple[nn.Parameter, ...]


class Problem(ABC, Generic[Data]):
    """A data set, a model and T tasks. Base class of all problems.

    Options of a problem are keyword arguments of its class. The type parameter ``Data`` is the type that `data`
    returns.

    Attributes:
        name: the problem's name in the registry.
        summary: one sentence about the problem, for lists of problems.
        tasks: the tasks' names, in the order of `losses`.
        metrics: the metrics that `evaluate` returns.
        primary: the name of the metric by which methods are compared.
        recipe: the default training settings, with which training takes seconds.
        full: settings for a longer training; None if there are none.
        baselines: the references that a score can be compared with. "constant": the best constant predictor, see
            `constant`. "single-task": the model trained on one task's loss alone.
        illustration: True for a problem that is only there to be looked at (``lossbench show``). Its scores say nothing
            about methods.
        control: True for a problem whose result is known in advance. It tests the benchmark, not the methods.
        reserved: True for a problem that is kept for the evidence, so that no method is chosen by its scores. Only a
            suite with ``reserved = true`` compares other methods on it than equal and static weights.
        static_weights: fixed weightings that are known before any training, by name. The first is the one to try first.
            The weights of each sum to T.
        likelihoods: the likelihood that each task's loss comes from, by the task's name: "gaussian" for a squared
            error, "softmax" for a cross-entropy. ``lossbench try`` and ``lossbench diagnose`` give them to uncertainty
            weighting. If empty, it takes all for Gaussian. The problems that come with the benchmark state none,
            because the evidence is run with the defaults.

    Example::

        problem = tasks.create("same-tasks")
        data = problem.data(torch.Generator().manual_seed(1), "cpu")
        scores = problem.evaluate(problem.model(), data, "test")
        scores[problem.primary]
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    illustration: ClassVar[bool] = False
    control: ClassVar[bool] = False
    reserved: ClassVar[bool] = False
    tasks: tuple[str, ...]
    metrics: tuple[Metric, ...]
    primary: str
    recipe: Recipe
    full: Recipe | None = None
    baselines: frozenset[Baseline] = frozenset({"single-task"})
    static_weights: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    likelihoods: Mapping[str, str] = MappingProxyType({})

    def require(self) -> None:
        """Check that all data from outside the source tree are there, without reading them.

        Raises:
            MissingDataError: If they aren't.
        """

    def fingerprint(self) -> str:
        """Return a hash of the data's source; empty if nothing is read from outside the source tree.

        The hash is part of the key under which a run's result is stored, so runs with different data are different
        runs.

        Raises:
            MissingDataError: If the data are missing.
        """
        return ""

    @abstractmethod
    def data(self, generator: Generator, device: torch.device | str) -> Data:
        """Return all splits, on ``device``. All random numbers come from ``generator``, which is on the CPU."""

    @abstractmethod
    def batches(self, data: Data, generator: Generator, batch_size: int) -> Iterator[Any]:
        """Return an endless iterator over training batches, in an order drawn from ``generator`` (on the CPU).

        A batch is what `losses` takes as its argument, on the data's device. Making one should copy nothing from the
        host, except at the beginning of an epoch.
        """

    def split(self, data: Data, generator: Generator, batch_size: int) -> tuple[Data, Data]:
        """Split the training set, for methods that learn from a second batch; the other splits stay as they are.

        One sample in ten is held out, chosen by ``generator`` (on the CPU), or as many as a batch needs. If samples
        resemble each other, override this with a split by groups of them: else what is held out is much like what is
        trained on. The problems here don't, so in ``multi-token`` (windows overlap), ``flights`` (of one day) and
        ``digit-pairs`` (an image is in several pairs) held-out samples are nearly training samples.

        Returns:
            The data without these samples, and the data with these alone, as their training set.

        Raises:
            TypeError: If the data have no training set by the name ``train``: the problem then defines its own `split`.
            ValueError: If a batch needs more than half of the training set.
        """
        return split_data(data, generator, batch_size)

    def seen(self, data: Data) -> Data | None:
        """Return data whose validation split is samples of the training set, as many as there are for validation.

        A model's score on it, beside that on the test split, tells how much better a model does where it has trained.
        Return None if the data have no splits by the names ``train`` and ``validation``.
        """
        return seen_data(data)

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a new model on the CPU. Its initial values come from torch's global generator; the caller seeds it."""

    @abstractmethod
    def shared(self, model: nn.Module) -> Shared:
        """Return the shared parts of ``model``, which `model` has made."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any) -> Sequence[Tensor] | Mapping[str, Tensor] | Tensor:
        """Return the T losses of a batch: T scalars in the order of ``tasks``, or a dict of them by task.

        A model that computes all heads as one product returns one tensor of shape ``(T,)``.
        """

    def residuals(self, model: nn.Module, batch: Any) -> Sequence[Tensor] | None:
        """Return the residuals of each task in the order of ``tasks``, whose mean square is the task's loss.

        Return None if the losses are no mean squares. Some methods for physics-informed networks need them.
        """
        return None

    @abstractmethod
    def evaluate(
        self, model: nn.Module, data: Data, split: Split, start: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Return all metrics of ``model`` on a split, by name. The model runs in eval mode (see `evaluating`).

        Args:
            model: the model to evaluate.
            data: the value that `data` returned.
            split: the split to evaluate on.
            start: the result of this method for the initial model on the same split, for metrics that are relative to
                an initial value. None means that ``model`` is the initial model.
        """

    def constant(self, data: Data) -> nn.Module | None:
        """Return the best constant predictor on the training set, a model that `evaluate` accepts.

        Return None if "constant" is not one of ``baselines``.
        """
        return None

    def sizes(self, data: Data) -> Mapping[str, int]:
        """Return the number of samples in each split, by the split's name; empty if there are no samples."""
        return {}

    def draw(self, figure: "Figure", data: Data, model: nn.Module | None = None) -> str:
        """Draw examples of the data into an empty ``figure`` and, with a trained ``model``, its predictions for them.

        Returns:
            A caption of one or two sentences; empty if nothing was drawn.
        """
        return ""

    def check(self) -> None:
        """Check that all facts are stated and that they agree with each other.

        Raises:
            TypeError: If a fact is missing.
            ValueError: If two facts contradict each other.
        """
        who = type(self).__name__
        for fact in ("name", "summary", "tasks", "metrics", "primary", "recipe"):
            if not hasattr(self, fact):
                raise TypeError(f"{who} states no {fact!r}")
        metrics = [metric.name for metric in self.metrics]
        for fact, names in (("tasks", self.tasks), ("metrics", metrics)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{who}.{fact} is {list(names)}; expected at least one, all with different names")
        for metric in self.metrics:
            if metric.task is not None and metric.task not in self.tasks:
                raise ValueError(
                    f"{who}: metric {metric.name!r} has task {metric.task!r}; expected one of {list(self.tasks)}"
                )
        if self.primary not in metrics:
            raise ValueError(f"{who}.primary is {self.primary!r}; expected the name of one of its metrics: {metrics}")
        if ("constant" in self.baselines) != (type(self).constant is not Problem.constant):
            raise ValueError(
                f"{who}.baselines must contain 'constant' if, and only if, {who} defines a method constant"
            )
        if self.likelihoods and set(self.likelihoods) != set(self.tasks):
            named = list(self.likelihoods)
            raise ValueError(f"{who}.likelihoods names {named}; expected all tasks: {list(self.tasks)}")
        for key, weights in self.static_weights.items():
            if len(weights) != len(self.tasks) or not math.isclose(sum(weights), len(self.tasks), rel_tol=1e-6):
                raise ValueError(
                    f"{who}.static_weights[{key!r}] has {len(weights)} weights that sum to {sum(weights)}; "
                    f"expected {len(self.tasks)} weights, one per task, that sum to {len(self.tasks)}"
                )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode and switch gradients off; restore each module's mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
