"""Balance the losses of a PINA problem: one for each of its conditions.

PINA asks a weighting to combine the conditions' losses into one. The weighting here lets a balancer do it. PINA trains
with Lightning, whose checkpoints include the balancer.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import LossBalancer, ResidualBalancer
from .physics_checks import check_fits

try:
    from pina.solver import BaseSolver
    from pina.weighting import BaseWeighting
except ImportError as error:
    raise ImportError("balancers.integrations.pina needs PINA 0.3 or later: pip install 'pina-mathlab>=0.3'") from error


class ResidualLoss(nn.MSELoss):
    """The mean squared error, which keeps the residuals of a step for methods that read them.

    Each call adds a residual, input minus target, to `residuals`.

    Example::

        weighting = BalancerWeighting(NTKWeighting(None, wrt=model, tasks=["boundary", "equation"]))
        solver = PhysicsInformedSingleModelSolver(problem, model, weighting=weighting, loss=weighting.loss)
        Trainer(solver, max_epochs=1000).train()
    """

    def __init__(self) -> None:
        super().__init__()
        self.residuals: list[Tensor] = []
        """The residuals of the calls so far, in their order."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the squared error of ``input``, of any shape, reduced as PINA asks for."""
        self.residuals.append((input - target).as_subclass(Tensor))
        return super().forward(input, target)


class BalancerWeighting(BaseWeighting):
    """Let a balancer combine the losses of a PINA problem's conditions.

    Example::

        balancer = GradNorm(None, wrt=model, tasks=["boundary", "equation"])
        solver = PhysicsInformedSingleModelSolver(problem, model, weighting=BalancerWeighting(balancer))
        Trainer(solver, max_epochs=1000).train()

    The tasks have the names of the conditions. The balancer becomes the solver's part ``balancer``, so that Lightning
    moves it to the device, saves it in checkpoints, and puts it in eval mode to validate and to test. PINA's
    ``update_every_n_epochs`` has no say: to measure less often, make the balancer with ``update_every``, which counts
    training steps.

    With L-BFGS the weights hold for one step of the optimiser, and the balancer learns from the first evaluation in it.

    A method that reads residuals, `NTKWeighting`, needs a loss that shows them: make the solver with
    ``weighting=weighting, loss=weighting.loss``.

    Args:
        balancer: made without a fork, for as many tasks as the problem has conditions.

    Raises:
        TypeError: the balancer needs a fork, a second batch, or a second look at the losses (FAMO). In training: the
            solver calls its optimisers itself, several times in a step (self-adaptive, competitive and ensemble
            solvers); or it uses L-BFGS, and the method has no weights to hold.
        ValueError: in training, the conditions are not the balancer's tasks, or the solver's loss does not show the
            residuals.
    """

    def __init__(self, balancer: LossBalancer) -> None:
        check_fits(balancer, "PINA")
        if balancer.looks_again:
            raise TypeError(
                f"{type(balancer).__name__} looks at the losses again after each step, and PINA computes them once: "
                f"take a method that reads the losses, their gradients or the residuals"
            )
        self.balancer = balancer
        self.loss = ResidualLoss()
        """A loss for the solver, if the method reads residuals."""
        self._trains: BaseSolver | None = None
        self._total: Tensor | None = None
        """The loss of the step, between PINA's calls of `update_weights` and of its aggregator."""
        self._held = ExitStack()
        """Open within a step of L-BFGS."""
        self._holds = False
        self._hooked: torch.optim.Optimizer | None = None
        """The optimiser of the last step. If it is L-BFGS, it ends the step."""
        super().__init__(update_every_n_epochs=1, aggregator=self._aggregate)

    # A solver assigns itself to `_solver` of its weighting when it is made. PINA has no public way to learn of it, and
    # a checkpoint may be loaded before the first step.

    @property
    def _solver(self) -> BaseSolver | None:
        return self._trains

    @_solver.setter
    def _solver(self, solver: BaseSolver | None) -> None:
        self._trains = solver
        if solver is not None:
            solver.add_module("balancer", self.balancer)

    def update_weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each condition's weight in this step, for its scalar loss. PINA calls this in each evaluation."""
        losses = {task: loss.as_subclass(Tensor) for task, loss in losses.items()}  # PINA's have labels
        residuals, self.loss.residuals = self.loss.residuals, []
        if self.balancer.training:
            self._check_solver()
            self._hold()
            if isinstance(self.balancer, ResidualBalancer) and self.balancer.needs_residuals:
                self.balancer.residuals(self._by_task(losses, residuals))
        self._total = self.balancer(losses)
        tasks = self.balancer.tasks
        assert tasks is not None  # the losses have named them
        weights = dict(zip(tasks, self.balancer.weights, strict=True))
        return {task: weights[task] for task in losses}

    def _aggregate(self, _: Tensor) -> Tensor:
        """Return the balancer's loss in place of an aggregate of the weighted losses."""
        total, self._total = self._total, None
        assert total is not None
        return total

    def _check_solver(self) -> None:
        if not self.solver.automatic_optimization:
            raise TypeError(
                f"{type(self.solver).__name__} makes the steps of several optimisers itself, and a balancer learns "
                f"from one backward pass in a step: use a solver with one, such as PhysicsInformedSingleModelSolver"
            )

    def _hold(self) -> None:
        """Hold the weights until the end of the step, if the optimiser evaluates the losses several times in it."""
        optimizer = self.solver.trainer.optimizers[0]
        if self._hooked is not optimizer:
            self._release()  # a step of another optimiser, which an exception ended
            self._hooked = optimizer
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.register_step_pre_hook(self._release)
                optimizer.register_step_post_hook(self._release)
        if not self._holds and isinstance(optimizer, torch.optim.LBFGS):
            self._held.enter_context(self.balancer.held())
            self._holds = True

    def _release(self, *_: Any) -> None:
        self._held.close()
        self._holds = False

    def _by_task(self, losses: Mapping[str, Tensor], residuals: list[Tensor]) -> dict[str, Tensor]:
        """Return the residuals by task.

        Raises:
            ValueError: the solver did not compute one for each loss.
        """
        method = type(self.balancer).__name__
        if self.solver.loss is not self.loss:
            raise ValueError(
                f"{method} reads residuals, which the solver's loss does not show: make the solver with "
                f"weighting=weighting, loss=weighting.loss"
            )
        if len(residuals) != len(losses):
            raise ValueError(
                f"{type(self.solver).__name__} computed {len(residuals)} residuals for the losses of "
                f"({', '.join(losses)}), and {method} reads one for each loss: use a solver that adds no penalty, such "
                f"as PhysicsInformedSingleModelSolver"
            )
        return dict(zip(losses, residuals, strict=True))
