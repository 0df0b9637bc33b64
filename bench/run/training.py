"""One run: a pure function from a specification to a result.

It trains a problem's model with a balancer for a fixed number of steps, on one CPU thread and with deterministic
operations, and records what the protocol asks for. It knows nothing of suites, files or other runs.
"""

import copy
import math
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tasks
from tasks import Split

from . import build
from .seeds import generator, stream_seed
from .spec import RunSpec
from .step_log import Record

Checkpoint = Literal["last", "best", "constant"]
Metrics = dict[str, float]


class DivergenceError(Exception):
    """A loss or the primary score is not a finite number."""


@dataclass(frozen=True)
class Score:
    """All metrics of one checkpoint on one split; ``"constant"`` is the constant predictor."""

    checkpoint: Checkpoint
    split: Split
    metrics: Metrics


@dataclass(frozen=True)
class Evaluation:
    """All metrics on the validation split after ``step`` optimiser steps."""

    step: int
    metrics: Metrics


@dataclass(frozen=True)
class Dynamics:
    """What optimiser step ``step`` did: the sum of its weights, the Euclidean norm of the shared parameters' change."""

    step: int
    weight_sum: float
    trunk_update_norm: float


@dataclass
class Result:
    """What a run gave. A failed one: what it gave until then, why it failed, and what a constant predictor scores."""

    tasks: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The number of samples in each split, by its name."""
    status: Literal["ok", "failed"] = "ok"
    reason: str = ""
    scores: list[Score] = field(default_factory=list)
    curves: list[Evaluation] = field(default_factory=list)
    dynamics: list[Dynamics] = field(default_factory=list)
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    """``(steps, T)``: the losses of each step made, in the order of ``tasks``."""
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    """``(steps, T)``: the weights that each step was made with."""


def run(spec: RunSpec) -> Result:
    """Trains, then scores the last checkpoint and the one whose validation was best after step 0.

    The test split is read at the very end, and not at all when tuning. Whatever the problem or the balancer raises
    makes it a failed run; so does a loss or a primary score that is not finite.
    """
    training = Training(spec)
    training.run()
    return training.result


class Training:
    """A run under way. What it finds out is in ``result`` as soon as it is known.

    Attributes:
        problem, data, model, balancer: what `prepare` made; ``model`` is the trained one after `train`.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.result = Result()
        self.device = torch.device(spec.device)
        self.starts: dict[Split, Metrics] = {}
        """What the initial model scores on each split that was read."""

    def run(self) -> None:
        """All of it; see the function `run`."""
        with reproducible(self.spec.device):
            try:
                self.prepare()
                self.train()
                self.score()
            except Exception as error:
                self.fail(error)

    def prepare(self) -> None:
        """Makes data, model and balancer, each from its own random stream, and validates the initial model."""
        spec = self.spec
        self.problem = tasks.create(spec.problem, **spec.problem_options)
        self.result.tasks = self.problem.tasks
        self.data = self.problem.data(generator(spec.seed, "data"), self.device)
        self.result.sizes = dict(self.problem.sizes(self.data))
        torch.manual_seed(stream_seed(spec.seed, "initial values"))
        self.model = self.problem.model().to(self.device).train()
        self.initial = self.best = copy.deepcopy(self.model.state_dict())
        # From here on, torch's global generators are the balancer's, and the model's own (dropout).
        torch.manual_seed(stream_seed(spec.seed, "balancer"))
        self.balancer = build.balancer(spec.method, self.problem, self.model).to(self.device).train()
        self.record = Record(spec.recipe.steps, len(self.problem.tasks), self.device)
        self.starts["validation"] = self.evaluate(self.model, "validation", None)
        self.result.curves.append(Evaluation(0, self.starts["validation"]))

    def train(self) -> None:
        """All steps, with a validation after every ``steps / evaluations`` of them."""
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
                self.result.dynamics.append(Dynamics(step, weight_sum, _distance(shared, before)))
                self.validate(step)

    def stepper(self) -> Callable[[Callable[[], None] | None], None]:
        """What makes one training step each time it is called; its argument is called just before the update."""
        spec, problem = self.spec, self.problem
        optimizer = build.optimizer(self.model, spec.recipe)
        schedule = build.schedule(optimizer, spec.recipe)
        batches = problem.batches(self.data, generator(spec.seed, "batches"), spec.recipe.batch_size)

        def make_step(before_update: Callable[[], None] | None) -> None:
            batch = next(batches)
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

    def validate(self, step: int) -> None:
        """Evaluates, and keeps the model if it is the best so far."""
        metrics = self.evaluate(self.model, "validation", self.starts["validation"])
        self.result.curves.append(Evaluation(step, metrics))
        self.require_finite(metrics, f"validation score after step {step}")
        if self.best_evaluation().step == step:
            self.best = copy.deepcopy(self.model.state_dict())

    def best_evaluation(self) -> Evaluation:
        """The first of those that scored best after step 0."""
        primary = next(metric for metric in self.problem.metrics if metric.name == self.problem.primary)
        best = max if primary.higher_is_better else min
        return best(self.result.curves[1:], key=lambda evaluation: evaluation.metrics[primary.name])

    def score(self) -> None:
        """Scores the last and the best checkpoint, unless tuning on the test split too, and the constant predictor."""
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
            self.score_constant()

    def start_on(self, split: Split) -> Metrics:
        """What the initial model scores; it is loaded for that."""
        if split not in self.starts:
            self.model.load_state_dict(self.initial)
            self.starts[split] = self.evaluate(self.model, split, None)
        return self.starts[split]

    def evaluate(self, model: nn.Module, split: Split, start: Metrics | None) -> Metrics:
        """All metrics that the problem declares, relative where they are so to ``start``, the initial model's."""
        metrics = self.problem.evaluate(model, self.data, split, start)
        if missing := [metric.name for metric in self.problem.metrics if metric.name not in metrics]:
            raise ValueError(
                f"evaluate of {self.problem.name} gives no {', '.join(missing)}, which its metrics declare"
            )
        return {metric.name: float(metrics[metric.name]) for metric in self.problem.metrics}

    def fetch(self) -> None:
        """Brings the record of losses and weights up to date.

        Raises:
            DivergenceError: a loss was not finite; the record ends with that step.
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
        """Raises `DivergenceError` where the primary metric is not finite."""
        value = metrics[self.problem.primary]
        if not math.isfinite(value):
            raise DivergenceError(f"the {what} is {value} ({self.problem.primary})")

    def fail(self, error: Exception) -> None:
        """Notes why, saves what was recorded, and scores the constant predictor, as far as things still work."""
        try:
            self.fetch()
        except DivergenceError as divergence:
            error = divergence  # it came before whatever was raised
        except Exception:  # the device is lost, or nothing was recorded yet
            pass
        self.result.status, self.result.reason = "failed", _reason(error)
        with suppress(Exception):
            self.score_constant()

    def score_constant(self) -> None:
        """Scores the problem's constant predictor, where it has one."""
        constant = self.problem.constant(self.data)
        splits: tuple[Split, ...] = ("validation",) if self.spec.phase == "tuning" else ("validation", "test")
        if constant is None:
            return
        for split in splits:
            metrics = self.evaluate(constant, split, self.start_on(split))
            self.result.scores.append(Score("constant", split, metrics))


def _distance(parameters: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """The Euclidean norm of the change of ``parameters``."""
    changes = [(new.detach() - old).flatten() for new, old in zip(parameters, before, strict=True)]
    return float(torch.linalg.vector_norm(torch.cat(changes)))


def _reason(error: Exception) -> str:
    """The error, and where outside PyTorch it was raised."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, DivergenceError):
        return reason
    theirs = str(Path(torch.__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(theirs)]
    return f"{reason} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


@contextmanager
def reproducible(device: str) -> Iterator[None]:
    """One CPU thread, deterministic operations where PyTorch has them, and everything put back as it was."""
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
