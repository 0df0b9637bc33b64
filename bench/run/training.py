"""Do one run: a pure function from a specification to a result.

A run trains a problem's model with a balancer for a fixed number of steps, on one CPU thread and with deterministic
operations, and records what the protocol asks for. This module knows nothing about suites, files or other runs.
"""

import copy
import math
import operator
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

import tasks
from balancers.engine import ResidualBalancer
from tasks import Split

from . import build
from .seeds import generator, stream_seed
from .spec import RunSpec
from .step_log import Record

Checkpoint = Literal["last", "best", "constant"]
Metrics = dict[str, float]


class DivergenceError(Exception):
    """A loss, the primary score or a norm is not a finite number."""


class BatchesEndedError(Exception):
    """A problem's ``batches`` ended before the training did."""


@dataclass(frozen=True)
class Score:
    """All metrics of one checkpoint on one split.

    The checkpoint ``"constant"`` is the constant predictor. The split ``"train"`` is a sample of the training set.
    """

    checkpoint: Checkpoint
    split: Split | Literal["train"]
    metrics: Metrics


@dataclass(frozen=True)
class Evaluation:
    """All metrics on the validation split after ``step`` optimiser steps."""

    step: int
    metrics: Metrics


@dataclass(frozen=True)
class Dynamics:
    """The sum of the weights at optimiser step ``step``, and the Euclidean norm of the step's change to the trunk."""

    step: int
    weight_sum: float
    trunk_update_norm: float


@dataclass
class RunResult:
    """The result of a run.

    The result of a failed run has what was recorded until the failure, the reason, and the scores of the constant
    predictor.
    """

    tasks: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of samples in each split, by the split's name."""
    status: Literal["ok", "failed"] = "ok"
    reason: str = ""
    """Why the run failed; empty if it did not."""
    limit: float | None = None
    """The time limit in seconds that a suite states and the run exceeded; None if it failed otherwise, or not."""
    processor: str = ""
    """Name of the processor that did the run."""
    scores: list[Score] = field(default_factory=list)
    curves: list[Evaluation] = field(default_factory=list)
    dynamics: list[Dynamics] = field(default_factory=list)
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    """Losses of each step, ``(steps, T)``, in the order of ``tasks``."""
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    """Weights used in each step, ``(steps, T)``."""


def run(spec: RunSpec) -> RunResult:
    """Train, then score the last checkpoint and the one with the best validation score after step 0.

    The test split is read at the very end, and not at all when tuning. The run fails if the problem or the balancer
    raises an error or calls ``sys.exit``, or if a loss, a primary score or the norm of an update that is recorded is
    not finite.
    """
    training = Training(spec)
    training.run()
    return training.result


class Training:
    """A run in progress.

    Attributes:
        result: everything recorded so far.
        problem: the problem, made by `prepare`.
        data: the problem's data, made by `prepare`.
        model: the network, made by `prepare` and trained by `train`.
        balancer: the balancer, made by `prepare`.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.result = RunResult()
        self.device = torch.device(spec.device)
        self.starts: dict[Split, Metrics] = {}
        """Metrics of the initial model on each split read so far."""

    def run(self) -> None:
        """Do the whole run; see the function `run`."""
        with reproducible(self.spec.device):
            try:
                self.prepare()
                self.train()
                self.score()
            except (Exception, SystemExit) as error:
                self.fail(error)

    def prepare(self) -> None:
        """Make data, model and balancer, each from its own random stream, and validate the initial model."""
        spec = self.spec
        self.problem = tasks.create(spec.problem, **spec.problem_options)
        self.result.tasks = self.problem.tasks
        self.data = self.problem.data(generator(spec.seed, "data"), self.device)
        self.result.sizes = sample_sizes(self.problem, self.data)
        torch.manual_seed(stream_seed(spec.seed, "initial values"))
        self.model = self.problem.model().to(self.device).train()
        self.initial = self.best = copy.deepcopy(self.model.state_dict())
        # This seeds the balancer, and torch's global generators, from which the model (dropout) draws from here on.
        torch.manual_seed(stream_seed(spec.seed, "balancer"))
        self.balancer = build.balancer(spec.method, self.problem, self.model).to(self.device).train()
        self.record = Record(spec.recipe.steps, self.problem.tasks, self.device)
        self.starts["validation"] = self.evaluate(self.model, "validation", None)
        self.result.curves.append(Evaluation(0, self.starts["validation"]))

    def train(self) -> None:
        """Make all training steps, and validate after every ``steps / evaluations`` of them."""
        steps, evaluations = self.spec.recipe.steps, self.spec.evaluations
        shared = self.problem.shared(self.model).parameters
        validations = {round(i * steps / evaluations) for i in range(1, evaluations + 1)}
        before: list[Tensor] = []

        def remember() -> None:
            before[:] = [parameter.detach().clone() for parameter in shared]

        make_step = self.stepper()
        for step in range(1, steps + 1):
            make_step(remember if step in validations else None)
            if step in validations:
                self.fetch()
                weight_sum = float(self.result.weights[-1].sum())
                self.result.dynamics.append(Dynamics(step, weight_sum, norm := _distance(shared, before)))
                if not math.isfinite(norm):
                    raise DivergenceError(f"the norm of the shared parameters' update is {norm} at step {step}")
                self.validate(step)

    def stepper(self) -> Callable[[Callable[[], None] | None], None]:
        """Return a function that makes one training step; its argument, if any, is called just before the update."""
        spec, problem = self.spec, self.problem
        optimizer = build.optimizer(self.model, spec.recipe)
        schedule = build.schedule(optimizer, spec.recipe)
        data = self.second_batches(optimizer) if self.balancer.needs_second_batch else self.data
        batches = endless(problem, data, generator(spec.seed, "batches"), spec.recipe.batch_size)

        def make_step(before_update: Callable[[], None] | None) -> None:
            batch = next(batches)
            if isinstance(self.balancer, ResidualBalancer) and self.balancer.needs_residuals:
                self.balancer.residuals(problem.residuals(self.model, batch) or ())
            losses = problem.losses(self.model, batch)
            loss = self.balancer(losses)
            optimizer.zero_grad()
            loss.backward()
            if before_update is not None:
                before_update()
            optimizer.step()
            if self.balancer.looks_again:
                with torch.no_grad():
                    self.balancer.after_step(problem.losses(self.model, batch))
            if schedule is not None:
                schedule.step()
            self.record.note(losses, self.balancer.weights)

        return make_step

    def second_batches(self, optimizer: Optimizer) -> Any:
        """Give the balancer batches of held-out training data, and return the rest of the data."""
        problem, size, order = self.problem, self.spec.recipe.batch_size, generator(self.spec.seed, "second batches")
        rest, held = problem.split(self.data, order, size)
        batches = endless(problem, held, order, size)
        self.balancer.second_batch(lambda: problem.losses(self.model, next(batches)))
        if self.balancer.needs_optimizer:
            self.balancer.follow(optimizer)
        return rest

    def validate(self, step: int) -> None:
        """Evaluate the model on the validation split, and keep a copy of it if it is the best so far."""
        metrics = self.evaluate(self.model, "validation", self.starts["validation"])
        self.result.curves.append(Evaluation(step, metrics))
        self.require_finite(metrics, f"validation score after step {step}")
        if self.best_evaluation().step == step:
            self.best = copy.deepcopy(self.model.state_dict())

    def best_evaluation(self) -> Evaluation:
        """Return the evaluation with the best primary score after step 0; the first one if several are equal."""
        primary = next(metric for metric in self.problem.metrics if metric.name == self.problem.primary)
        best = max if primary.higher_is_better else min
        return best(self.result.curves[1:], key=lambda evaluation: evaluation.metrics[primary.name])

    def score(self) -> None:
        """Score the last and the best checkpoint on the validation split; unless tuning, also on the test split.

        Unless tuning, the last checkpoint is scored on training samples too, and the constant predictor is scored.
        These scores decide nothing, so a run whose problem can't compute them lacks them and has not failed.
        """
        scores = [
            Score("last", "validation", self.result.curves[-1].metrics),
            Score("best", "validation", self.best_evaluation().metrics),
        ]
        if self.spec.phase != "tuning":
            last = copy.deepcopy(self.model.state_dict())
            start = self.start_on("test")
            states: tuple[tuple[Checkpoint, Mapping[str, Any]], ...] = (("best", self.best), ("last", last))
            for checkpoint, state in states:
                self.model.load_state_dict(state)
                scores.append(Score(checkpoint, "test", self.evaluate(self.model, "test", start)))
        for score in scores:
            self.require_finite(score.metrics, f"{score.split} score of the {score.checkpoint} checkpoint")
        self.result.scores = scores
        if self.spec.phase != "tuning":
            with self.without("score on training samples"):
                self.score_seen()
            with self.without("score of the constant predictor"):
                self.score_constant()

    @contextmanager
    def without(self, what: str) -> Iterator[None]:
        """Turn an error of the problem into a warning that the run lacks ``what``."""
        try:
            yield
        except (Exception, SystemExit) as error:
            warnings.warn(f"a run on {self.problem.name} lacks the {what}: {reason(error)}", stacklevel=2)

    def score_seen(self) -> None:
        """Score the model, which is at the last checkpoint, on training samples, if the data have such splits."""
        if (seen := self.problem.seen(self.data)) is not None:
            metrics = self.evaluate(self.model, "validation", self.start_on_seen(seen), seen)
            self.require_finite(metrics, "train score of the last checkpoint")
            self.result.scores.append(Score("last", "train", metrics))

    def start_on(self, split: Split) -> Metrics:
        """Return the metrics of the initial model on ``split``; on first use, load that model and evaluate it."""
        if split not in self.starts:
            self.model.load_state_dict(self.initial)
            self.starts[split] = self.evaluate(self.model, split, None)
        return self.starts[split]

    def start_on_seen(self, seen: Any) -> Metrics:
        """Return the metrics of the initial model on training samples."""
        last = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.initial)
        try:
            return self.evaluate(self.model, "validation", None, seen)
        finally:
            self.model.load_state_dict(last)

    def evaluate(self, model: nn.Module, split: Split, start: Metrics | None, data: Any = None) -> Metrics:
        """Return all metrics that the problem declares.

        Args:
            model: the network or predictor to evaluate.
            split: the split to evaluate on.
            start: metrics of the initial model on this split, for metrics that are relative to them.
            data: the data that the split is of; None stands for those that the model trains on.

        Raises:
            ValueError: the problem's ``evaluate`` leaves out a metric that it declares.
        """
        metrics = self.problem.evaluate(model, self.data if data is None else data, split, start)
        if missing := [metric.name for metric in self.problem.metrics if metric.name not in metrics]:
            raise ValueError(
                f"{self.problem.name}.evaluate did not return {', '.join(missing)}, "
                f"which {self.problem.name}.metrics lists"
            )
        return {metric.name: float(metrics[metric.name]) for metric in self.problem.metrics}

    def fetch(self) -> None:
        """Copy the logged losses and weights to the result.

        Raises:
            DivergenceError: a loss was not finite; the result then ends with that step.
        """
        self.record.fetch()
        bad = np.argwhere(~np.isfinite(self.record.losses))
        steps = bad[0, 0] + 1 if len(bad) else len(self.record.losses)
        self.result.losses, self.result.weights = self.record.losses[:steps], self.record.weights[:steps]
        if len(bad):
            step, task = bad[0]
            loss = self.record.losses[step, task]
            raise DivergenceError(f"the loss of {self.problem.tasks[task]} is {loss} at step {steps}")

    def require_finite(self, metrics: Metrics, what: str) -> None:
        """Raise `DivergenceError` if the primary metric is not finite."""
        value = metrics[self.problem.primary]
        if not math.isfinite(value):
            raise DivergenceError(f"the {what} is {value} ({self.problem.primary})")

    def fail(self, error: BaseException) -> None:
        """Mark the run as failed, and save what was recorded and the scores of the constant predictor if possible."""
        try:
            self.fetch()
        except DivergenceError as divergence:
            error = divergence  # the divergence came before the error that was raised
        except Exception:  # the device is lost, or nothing was recorded yet
            pass
        self.result.status, self.result.reason = "failed", reason(error)
        with suppress(Exception, SystemExit):
            self.score_constant()

    def score_constant(self) -> None:
        """Score the problem's constant predictor, if it has one."""
        constant = self.problem.constant(self.data)
        splits: tuple[Split, ...] = ("validation",) if self.spec.phase == "tuning" else ("validation", "test")
        if constant is None:
            return
        for split in splits:
            metrics = self.evaluate(constant, split, self.start_on(split))
            self.result.scores.append(Score("constant", split, metrics))


def sample_sizes(problem: tasks.Problem[Any], data: Any) -> dict[str, int]:
    """Return the number of samples in each split as integers of Python, which a result's file can hold.

    Raises:
        TypeError: the problem's ``sizes`` returns no mapping, or a value that is no whole number.
    """
    sizes: Any = problem.sizes(data)
    if not isinstance(sizes, Mapping):
        raise TypeError(f"sizes of {problem.name} returns {sizes!r}; expected a dict from each split to a whole number")
    counts = {}
    for split, size in sizes.items():
        try:
            counts[str(split)] = operator.index(size)  # also an integer of NumPy or of PyTorch
        except TypeError:
            raise TypeError(f"sizes of {problem.name} gives {size!r} for {split!r}; expected a whole number") from None
    return counts


def endless(problem: tasks.Problem[Any], data: Any, order: torch.Generator, batch_size: int) -> Iterator[Any]:
    """Yield the batches of ``problem``, which must not end.

    Raises:
        BatchesEndedError: they ended.
    """
    count = 0
    for batch in problem.batches(data, order, batch_size):
        yield batch
        count += 1
    raise BatchesEndedError(
        f"{problem.name}.batches ended after {count} batches, but each step of training draws one: it must not end, so "
        f"put what it does in a loop `while True:`"
    )


def _distance(parameters: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of the change of ``parameters``."""
    changes = [(new.detach() - old).flatten() for new, old in zip(parameters, before, strict=True)]
    return float(torch.linalg.vector_norm(torch.cat(changes)))


def reason(error: BaseException) -> str:
    """Describe the error in a line, with the file and line outside PyTorch where it was raised."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, DivergenceError | BatchesEndedError):
        return text
    theirs = str(Path(torch.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(theirs)]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


@contextmanager
def reproducible(device: str) -> Iterator[None]:
    """Use one CPU thread and deterministic operations where PyTorch has them, and restore all settings afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not deterministic
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else []):
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
