"""Measure how large the tasks' gradients are while equal weighting trains, and whether they agree."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from .subject import Subject, SubjectError, features, in_order, task_names
from .training_step import adam

FEWEST = 5
"""Minimum number of steps, however long they take."""


@dataclass(frozen=True)
class Gradients:
    """The tasks' gradients over steps of equal weighting.

    Attributes:
        wrt: name of the tensors that they are taken with respect to.
        tasks: names of the T tasks.
        losses: ``(steps, T)``.
        gramians: inner products of the tasks' gradients with each other, ``(steps, T, T)``.
    """

    wrt: str
    tasks: list[str]
    losses: NDArray[np.float64]
    gramians: NDArray[np.float64]

    @property
    def norms(self) -> NDArray[np.float64]:
        """Norms of the gradients, ``(steps, T)``."""
        norms: NDArray[np.float64] = np.sqrt(np.diagonal(self.gramians, axis1=1, axis2=2))
        return norms

    @property
    def cosines(self) -> NDArray[np.float64]:
        """Cosines between the gradients, ``(steps, T, T)``; nan where a gradient is zero."""
        norms: NDArray[np.float64] = np.where(self.norms > 0, self.norms, np.nan)
        return self.gramians / (norms[:, :, None] * norms[:, None, :])

    @property
    def median_cosines(self) -> pd.DataFrame:
        """Median cosines over steps, ``(T, T)``. Steps with nan are left out; if all have nan, the median is nan."""
        steps, num_tasks = self.losses.shape
        medians = pd.DataFrame(self.cosines.reshape(steps, -1)).median().to_numpy()
        return pd.DataFrame(medians.reshape(num_tasks, num_tasks), self.tasks, self.tasks)


def follow(subject: Subject, most_steps: int, seconds: float) -> Gradients:
    """Train ``subject`` under equal weighting with fused Adam, and return the tasks' gradients at each step.

    The gradients are taken with respect to the features at the fork. Without a fork, they are taken with respect to
    ``wrt``, and without that to all parameters that every loss reaches.

    Args:
        subject: it is trained, and thus changed.
        most_steps: maximum number of steps.
        seconds: time after which no further step begins, but for the first `FEWEST`.

    Raises:
        SubjectError: there is neither fork nor ``wrt``, and no parameter is reached by every loss.
    """
    optimizer = adam(subject.model)
    wrt = "the last shared layer"
    shared: Sequence[Tensor] = subject.layer
    values: list[Tensor] = []
    gramians: list[Tensor] = []
    end = time.perf_counter() + seconds
    while len(values) < most_steps and (len(values) < FEWEST or time.perf_counter() < end):
        z, given = features(subject)
        losses = in_order(given)
        if z:
            wrt = "the features at the fork"
        elif not shared:
            wrt, shared = "all shared parameters", _reached_by_all(losses, subject)
        values.append(torch.stack([loss.detach() for loss in losses]))
        gramians.append(gramian(losses, z or shared))
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    arrays = (torch.stack(part).double().cpu().numpy() for part in (values, gramians))
    return Gradients(wrt, task_names(given), *arrays)


def gramian(losses: Sequence[Tensor], variables: Sequence[Tensor]) -> Tensor:
    """Return the inner products ``(T, T)`` of T losses' gradients with respect to all ``variables`` together."""
    of_tasks = [_gradients(loss, variables) for loss in losses]
    total = torch.zeros(len(losses), len(losses), device=losses[0].device)
    for variable, of_task in zip(variables, zip(*of_tasks, strict=True), strict=True):
        rows = [torch.zeros_like(variable) if gradient is None else gradient for gradient in of_task]
        matrix = torch.stack(rows).flatten(1).float()
        total += matrix @ matrix.T
    return total


def _gradients(loss: Tensor, variables: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, variables, retain_graph=True, allow_unused=True)


def _reached_by_all(losses: Sequence[Tensor], subject: Subject) -> Sequence[Tensor]:
    parameters = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    of_tasks = zip(*(_gradients(loss, parameters) for loss in losses), strict=True)
    shared = [
        parameter
        for parameter, of_task in zip(parameters, of_tasks, strict=True)
        if all(gradient is not None for gradient in of_task)
    ]
    if not shared:
        raise SubjectError("no parameter of the model is reached by all losses: the tasks share nothing")
    return shared
