r"""Profile the beginning of a problem's training at equal weights: losses, and the gradients of the tasks.

The profile is the first 5 % of the problem's own run: the same data, initial values, batches, optimiser and schedule as
in a run of equal weighting with this seed, on one CPU thread. It only trains. Nothing is evaluated, and neither the
validation nor the test split is read.

At each step, the gradient of each task's loss is taken with respect to all shared parameters, beside the ordinary
backward pass. Let :math:`g_s` be the gradient of one task at step s of S.

- Its norm is the mean of :math:`\lVert g_s \rVert`.
- The cosine of two tasks is the mean over those steps in which both gradients are not zero.
- Its noise is the share of its mean square that the steps do not have in common. Let
  :math:`g_s = \mu + \varepsilon_s`, where the :math:`\varepsilon_s` are independent, with mean zero and
  :math:`E \lVert \varepsilon_s \rVert^2 = \sigma^2`. Let :math:`\bar g` be the mean over the steps, and
  :math:`m = \frac1S \sum_s \lVert g_s \rVert^2`. Then

  .. math:: E m = \lVert \mu \rVert^2 + \sigma^2, \quad
      E \lVert \bar g \rVert^2 = \lVert \mu \rVert^2 + \sigma^2 / S,

  so that :math:`m - \lVert \bar g \rVert^2` has the mean :math:`\sigma^2 (1 - 1/S)`. The estimate of
  :math:`\sigma^2 / (\lVert \mu \rVert^2 + \sigma^2)` corrected for this is

  .. math:: \frac{S}{S - 1} \Big(1 - \frac{\lVert \bar g \rVert^2}{m}\Big),

  and at most 1. Zero means that all steps agree, one that they have nothing in common. Gradients also change because
  the network learns, and that counts as noise too.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tasks
from bench.run import build
from bench.run.seeds import generator, stream_seed
from bench.run.spec import Method
from bench.run.task_order import Losses, in_task_order
from bench.run.training import endless, reason, reproducible
from tasks import MissingDataError, Problem, Recipe

SEED = 1
"""Default seed."""
LEAST_STEPS, MOST_STEPS = 20, 200
"""Minimum and maximum number of steps; a shorter run is profiled whole."""
ONE_IN = 20
"""A profile takes one in this many of a run's steps: 5 %."""
FIRST = 20
"""Number of steps over which the first losses and norms are averaged, like `balancers.InverseInitialLoss`."""

Floats = NDArray[np.float64]


class ProfileError(Exception):
    """The problem can't be made or trained; the message says why in one sentence."""


@dataclass(frozen=True, eq=False)
class GradientProfile:
    """The beginning of a training at equal weights, for T tasks over S steps.

    Attributes:
        problem: name of the problem.
        tasks: names of the tasks.
        seed: seed of the run.
        total_steps: number of steps of the whole run.
        loss_curve: losses of each step, ``(S, T)``.
        norm_curve: norms of the gradients of each step, ``(S, T)``.
        cosines: mean cosines between the tasks' gradients, ``(T, T)``; not-a-number if one of them was zero throughout.
        noise: the share of each gradient that is noise, from 0 to 1, ``(T,)``; not-a-number if the gradient was zero
            throughout, or there was one step.
        fork: whether the model has a fork.
        parameters: number of the model's trainable parameters.
        shared_parameters: number of those that the tasks share.
        batch_size: samples per batch.
        seconds_per_step: mean time of a step, with its T additional backward passes.
    """

    problem: str
    tasks: tuple[str, ...]
    seed: int
    total_steps: int
    loss_curve: Floats
    norm_curve: Floats
    cosines: Floats
    noise: Floats
    fork: bool
    parameters: int
    shared_parameters: int
    batch_size: int
    seconds_per_step: float

    @property
    def steps(self) -> int:
        """Number of steps of the profile."""
        return len(self.loss_curve)

    @property
    def losses(self) -> Floats:
        """Mean losses, ``(T,)``."""
        return _means(self.loss_curve)

    @property
    def norms(self) -> Floats:
        """Mean norms of the gradients, ``(T,)``."""
        return _means(self.norm_curve)

    @property
    def first_losses(self) -> Floats:
        """Mean losses over the first `FIRST` steps, ``(T,)``."""
        return _means(self.loss_curve[:FIRST])

    @property
    def first_norms(self) -> Floats:
        """Mean norms of the gradients over the first `FIRST` steps, ``(T,)``."""
        return _means(self.norm_curve[:FIRST])


def profile_steps(total: int) -> int:
    """Return the number of steps to profile of a run of ``total`` steps."""
    return min(total, max(LEAST_STEPS, min(MOST_STEPS, total // ONE_IN)))


def measure(
    name: str, options: Mapping[str, Any] | None = None, seed: int = SEED, recipe: Recipe | None = None
) -> GradientProfile:
    """Profile a registered problem.

    Args:
        name: the registered name of the problem.
        options: options of the problem.
        seed: seed of the data, the initial values and the batches.
        recipe: settings of the training; None for the problem's own.

    Raises:
        ProfileError: the problem can't be made, its data are missing, it raises an exception, its tasks share no
            trainable parameter, or a loss or a gradient is not finite.
    """
    try:
        problem = tasks.create(name, **(options or {}))
        problem.require()
    except (ValueError, TypeError, MissingDataError) as error:
        raise ProfileError(str(error)) from error
    except (Exception, SystemExit) as error:
        raise ProfileError(f"{name} can't be made: {reason(error)}") from error
    with reproducible("cpu"):
        try:
            return _profile(problem, problem.recipe if recipe is None else recipe, seed)
        except (Exception, SystemExit) as error:
            why = str(error) if isinstance(error, ProfileError) else reason(error)
            raise ProfileError(f"{name} can't be profiled: {why}") from error


def _profile(problem: Problem[Any], recipe: Recipe, seed: int) -> GradientProfile:
    data = problem.data(generator(seed, "data"), torch.device("cpu"))
    torch.manual_seed(stream_seed(seed, "initial values"))
    model = problem.model().train()
    # The streams are those of `bench.run.training`: from here on, dropout draws from the global generator.
    torch.manual_seed(stream_seed(seed, "balancer"))
    equal = build.balancer(Method("equal", None, {}), problem, model).train()
    optimizer = build.optimizer(model, recipe)
    schedule = build.schedule(optimizer, recipe)
    batches = endless(problem, data, generator(seed, "batches"), recipe.batch_size)
    places = problem.shared(model)
    shared = [parameter for parameter in places.parameters if parameter.requires_grad]
    if not shared:
        raise ProfileError("its `shared` names no trainable parameter, so the tasks have no gradients to compare")
    record = _Record(problem.tasks, sum(map(torch.numel, shared)))
    begin = time.perf_counter()
    for _ in range(profile_steps(recipe.steps)):
        losses = problem.losses(model, next(batches))
        loss = equal(losses)
        record.note(losses, shared)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    seconds = time.perf_counter() - begin
    loss_curve, norm_curve = record.curves()
    return GradientProfile(
        problem=problem.name,
        tasks=problem.tasks,
        seed=seed,
        total_steps=recipe.steps,
        loss_curve=loss_curve,
        norm_curve=norm_curve,
        cosines=record.mean_cosines(),
        noise=record.noise(),
        fork=places.fork is not None,
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        shared_parameters=sum(map(torch.numel, shared)),
        batch_size=recipe.batch_size,
        seconds_per_step=seconds / len(loss_curve),
    )


class _Record:
    """Losses and gradients of the steps so far; of gradients, only their norms, cosines and sum are kept."""

    def __init__(self, names: Sequence[str], size: int) -> None:
        self._names = names
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._sum = torch.zeros(len(names), size)
        self._cosines, self._compared = torch.zeros(2, len(names), len(names), dtype=torch.float64)

    def note(self, losses: Losses, shared: Sequence[nn.Parameter]) -> None:
        """Measure a step, whose graph is kept."""
        each = in_task_order(losses, self._names)
        self._losses.append(self._finite("loss", torch.stack([loss.detach().double() for loss in each])))
        gradients = torch.stack([_gradient(loss, shared) for loss in each])
        norms = self._finite("gradient", torch.linalg.vector_norm(gradients, dim=1))
        self._norms.append(norms.double())
        self._sum += gradients
        units = gradients.div_(norms.where(norms > 0, 1.0)[:, None])
        compared = (norms > 0)[:, None] & (norms > 0)
        self._cosines += torch.where(compared, (units @ units.T).double().clamp(-1, 1), 0.0)
        self._compared += compared

    def _finite(self, what: str, values: Tensor) -> Tensor:
        """Return ``values`` ``(T,)`` if they are finite, else raise an error that names the first task with another."""
        for name, value in zip(self._names, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise ProfileError(f"the {what} of {name} is {value} at step {len(self._norms) + 1}")
        return values

    def curves(self) -> tuple[Floats, Floats]:
        """Return losses and norms, ``(S, T)`` each."""
        return torch.stack(self._losses).numpy(), torch.stack(self._norms).numpy()

    def mean_cosines(self) -> Floats:
        """Return the mean cosines, ``(T, T)``; not-a-number where there was none."""
        means: Floats = (self._cosines / self._compared).numpy()
        return means

    def noise(self) -> Floats:
        """Return the share of each gradient that is noise, ``(T,)``; see the module's formula."""
        steps = len(self._norms)
        if steps == 1:
            return np.full(len(self._names), math.nan)
        mean_square = torch.stack(self._norms).square().mean(0)
        common = (torch.linalg.vector_norm(self._sum, dim=1).double() / steps).square()
        shares: Floats = (steps / (steps - 1) * (1 - common / mean_square)).clamp(0, 1).numpy()
        return shares


def _gradient(loss: Tensor, shared: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of ``loss`` as one vector, with zeros for parameters that the loss does not reach."""
    parts = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
    pairs = zip(parts, shared, strict=True)
    return torch.cat([(torch.zeros_like(where) if part is None else part).flatten().float() for part, where in pairs])


def _means(curve: Floats) -> Floats:
    means: Floats = curve.mean(0)
    return means
