"""Make a training step that can be timed in parts: losses, balancer and backward pass, optimiser."""

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from balancers import LossBalancer
from balancers.engine import ResidualBalancer

from .step_clock import new_clock
from .subject import Subject, SubjectError

PARTS = ("forward", "backward", "optimizer")
"""The timed parts. ``backward`` is the balancer and the backward pass; ``optimizer`` is the optimiser's step, the
clearing of gradients and, for a method that reads the losses again after the step, that second forward pass."""
LR = 1e-3
"""Learning rate of `adam`."""


class TrainingStep:
    """Trains a subject's model with ``balancer``. Each call is one step, and returns when the device is idle."""

    def __init__(self, subject: Subject, balancer: LossBalancer, optimizer: Optimizer) -> None:
        self.subject = subject
        self.balancer = balancer.to(subject.device).train()
        self.optimizer = optimizer
        self.seconds: list[list[float]] = []
        """Seconds of each of `PARTS`, with a row for each step."""
        self._clock = new_clock(subject.device)
        if balancer.needs_second_batch:
            balancer.second_batch(subject.losses)
        if balancer.needs_optimizer:
            balancer.follow(optimizer)

    def __call__(self) -> None:
        clock = self._clock
        clock.start()
        if isinstance(self.balancer, ResidualBalancer) and self.balancer.needs_residuals:
            if self.subject.residuals is None:
                raise SubjectError(f"{self.balancer.name} reads residuals, which this model does not give")
            self.balancer.residuals(self.subject.residuals())
        losses = self.subject.losses()
        clock.lap()
        loss = self.balancer(losses)
        loss.backward()
        clock.lap()
        self.optimizer.step()
        if self.balancer.looks_again:
            with torch.no_grad():
                self.balancer.after_step(self.subject.losses())
        self.optimizer.zero_grad()
        clock.lap()
        self.seconds.append(clock.seconds())


def adam(model: nn.Module) -> Adam:
    """Return the optimiser of every comparison here: fused Adam with learning rate `LR`."""
    return Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=LR, fused=True)
