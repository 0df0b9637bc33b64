"""Time training steps that are captured in a CUDA graph, next to equal weighting's. On the CPU they run as they are."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim import Adam

from balancers import CapturedStep
from bench.cost.step_clock import interleave
from bench.cost.step_comparison import WARM_UP, time_row
from bench.cost.subject import MakeStep, Subject, make
from bench.cost.timed_methods import EQUAL, TimedMethod
from bench.cost.training_step import LR

from .part_measurement import NotMeasurableError


def captured(subject: Subject, method: TimedMethod, num_tasks: int) -> Callable[[], None]:
    """Return a function that makes one training step, captured from its twelfth call on, and waits for the device.

    Raises:
        NotMeasurableError: the method's steps are not all alike, so that they can't be captured.
    """
    device = subject.device
    balancer = method.balancer(subject, num_tasks).to(device).train()
    if reason := balancer.not_capturable():
        raise NotMeasurableError(f"it can't be captured in a CUDA graph: {reason}")
    parameters = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    optimizer = Adam(parameters, lr=LR, fused=True, capturable=device.type == "cuda")

    def step(_: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = balancer(subject.losses())
        loss.backward()
        optimizer.step()
        return loss.detach()

    graph = CapturedStep(step, [balancer])
    # The batch stays where it is. A step is captured only if it is called with a tensor of the device.
    token = torch.zeros((), device=device)

    def call() -> None:
        graph(token)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call


def compare(make_step: MakeStep, method: TimedMethod, num_tasks: int, rounds: int) -> pd.DataFrame:
    """Return a row with ``method`` and the columns of `time_row`: its captured step next to equal weighting's.

    Raises:
        NotMeasurableError: the method can't be captured.
    """
    calls = [captured(make(make_step), each, num_tasks) for each in (EQUAL, method)]
    for call in calls:
        for _ in range(WARM_UP):
            call()
    of_equal, own = np.asarray(interleave(calls, rounds))
    return pd.DataFrame([{"method": method.name, **time_row(own, of_equal, method.cycle)}])
