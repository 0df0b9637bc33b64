"""Balance the losses of a DeepXDE model: the residuals of its equations, and its boundary and initial conditions.

DeepXDE sums the losses and trains on the sum. The callback puts a balancer in the place of that sum, and leaves the
rest of the step to DeepXDE. It needs DeepXDE's PyTorch backend.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..engine import LossBalancer, ResidualBalancer
from .physics_checks import check_fits

try:
    from deepxde.backend import backend_name
    from deepxde.callbacks import Callback
except ImportError as error:
    raise ImportError(
        "balancers.integrations.deepxde needs DeepXDE with its PyTorch backend: pip install deepxde, and set "
        "DDE_BACKEND=pytorch in the environment"
    ) from error

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""A loss of DeepXDE: a scalar for target and prediction."""


class BalanceLosses(Callback):
    """Train a DeepXDE model on its losses as a balancer weighs them.

    Give it to ``train``, after ``compile`` without ``loss_weights``.

    Example::

        balancer = GradNorm(None, wrt=net, tasks=["equation", "boundary"])
        model.compile("adam", lr=1e-3)
        model.train(iterations=5000, callbacks=[BalanceLosses(balancer)])

    The tasks are the residuals of the equations first, and then the conditions, in DeepXDE's order. DeepXDE's table and
    ``LossHistory`` show the losses as they are. An L1 penalty of the network (``regularization``) is no task: it is
    added to the balanced losses.

    With L-BFGS, the weights hold for one call of the optimiser (1,000 iterations, unless you change
    ``dde.optimizers.config.LBFGS_options``), and the balancer learns from the first evaluation in it. FAMO's second
    look costs one more evaluation in each step. `NTKWeighting` gets the residuals, prediction minus target, where it
    needs them. It is made for losses that are their mean squares: ``loss="MSE"``, which is DeepXDE's default.

    DeepXDE saves the state of the network. Make the balancer a part of it, ``net.balancer = balancer``, and
    ``model.save`` and ``model.restore`` include the balancer.

    Args:
        balancer: made without a fork, for as many tasks as the model has losses.
        period: number of steps between two entries of `history`, each of which is printed; at least 1.

    Raises:
        TypeError: the balancer needs a fork or a second batch.
        ValueError: ``period`` is less than 1.
        RuntimeError: DeepXDE runs with another backend than PyTorch.

    ``model.train`` raises:
        ValueError: the model has another number of losses, or was compiled with ``loss_weights``.
        TypeError: the optimiser is NNCG; or it is L-BFGS, and the method has no weights to hold.
    """

    def __init__(self, balancer: LossBalancer, period: int = 1000) -> None:
        super().__init__()
        check_fits(balancer, "DeepXDE")
        if backend_name != "pytorch":
            raise RuntimeError(
                f"DeepXDE runs with its backend {backend_name}, and balancers are for PyTorch: set DDE_BACKEND=pytorch "
                f"in the environment before Python starts"
            )
        if period < 1:
            raise ValueError(f"period is {period}; expected a number of steps, at least 1")
        self.balancer = balancer
        self.period = period
        self.history: list[tuple[int, dict[str, float]]] = []
        """The model's step and each task's weight: at the first step that is a ``period`` after the entry before, and
        at the end of training."""
        self._plain_step: Callable[..., None] | None = None
        """DeepXDE's own training step; None outside of training."""

    def on_train_begin(self) -> None:
        """Take the place of the model's training step, which DeepXDE makes in ``compile``."""
        self._check_model()
        if self.model.train_step != self._step:  # it is if an interrupt ended the training before
            self._plain_step, self.model.train_step = self.model.train_step, self._step

    def on_epoch_end(self) -> None:
        """Record the weights, if a period has passed."""
        before = self.history[-1][0] if self.history else 0
        if self.model.train_state.step - before >= self.period:
            self._record()

    def on_train_end(self) -> None:
        """Give the model its own training step back."""
        if not self.history or self.history[-1][0] != self.model.train_state.step:
            self._record()
        self._restore_step()

    def _restore_step(self) -> None:
        self.model.train_step, self._plain_step = self._plain_step, None

    def _check_model(self) -> None:
        model = self.model
        if model.loss_weights is not None:
            raise ValueError("the model was compiled with loss_weights, but the balancer chooses them: leave them out")
        if model.opt_name == "NNCG":
            raise TypeError(
                "NNCG differentiates the gradient of the loss, and a balancer learns from an ordinary backward pass: "
                'train with "adam" or "L-BFGS"'
            )
        if isinstance(model.opt, torch.optim.LBFGS):
            with self.balancer.held():
                pass  # raises if the method has no weights to hold
        kind = (model.net.regularizer or ("none",))[0]
        count = len(model.train_state.loss_train) - (kind == "l1")
        if count != self.balancer.num_tasks:
            raise ValueError(
                f"the model has {count} {'loss' if count == 1 else 'losses'}, one for each residual and then one for "
                f"each condition, but {self.balancer.made_for()}"
            )

    def _step(self, inputs: Any, targets: Any, auxiliary_vars: Any) -> None:
        """Make DeepXDE's training step, with the balancer in place of the sum of the losses."""
        model, step = self.model, self._plain_step
        assert step is not None
        if self not in model.callbacks.callbacks:  # an error or an interrupt ended the training that had this callback
            self._restore_step()
            step(inputs, targets, auxiliary_vars)
            return
        holds = isinstance(model.opt, torch.optim.LBFGS)
        with self.balancer.held() if holds else nullcontext(), self._balanced(model.data):
            step(inputs, targets, auxiliary_vars)
        if self.balancer.looks_again:
            losses = model.outputs_losses_train(inputs, targets, auxiliary_vars)[1]
            self.balancer.after_step(losses[: self.balancer.num_tasks].detach())  # without an L1 penalty

    @contextmanager
    def _balanced(self, data: Any) -> Iterator[None]:
        """Let ``data`` return one training loss within this context: the balancer's.

        DeepXDE's step calls ``data.losses_train`` and sums what it returns.
        """
        own = "losses_train" in vars(data)
        losses_train = data.losses_train

        def total(targets: Any, outputs: Any, loss_fn: Any, inputs: Any, model: Any, aux: Any = None) -> list[Tensor]:
            residuals: list[Tensor] = []
            if isinstance(self.balancer, ResidualBalancer) and self.balancer.needs_residuals:
                loss_fn = _recording(loss_fn, residuals)
            losses = losses_train(targets, outputs, loss_fn, inputs, model, aux=aux)
            if isinstance(self.balancer, ResidualBalancer):
                self.balancer.residuals(residuals)
            return [self.balancer(losses if isinstance(losses, list) else [losses])]

        data.losses_train = total
        try:
            yield
        finally:
            if own:
                data.losses_train = losses_train
            else:
                del data.losses_train

    def _record(self) -> None:
        tasks = self.balancer.tasks or [str(i) for i in range(self.balancer.num_tasks)]
        weights = dict(zip(tasks, self.balancer.weights.tolist(), strict=True))
        step = self.model.train_state.step
        self.history.append((step, weights))
        print(f"Weights at step {step}: {', '.join(f'{task} {weight:.3g}' for task, weight in weights.items())}")


def _recording(
    loss_fn: LossFunction | Sequence[LossFunction], residuals: list[Tensor]
) -> LossFunction | list[LossFunction]:
    """Return the loss function, or a list of them, that adds each residual to ``residuals`` when it is called."""
    if not callable(loss_fn):
        return [_recording_one(each, residuals) for each in loss_fn]
    return _recording_one(loss_fn, residuals)


def _recording_one(loss_fn: LossFunction, residuals: list[Tensor]) -> LossFunction:
    def record(target: Tensor, prediction: Tensor) -> Tensor:
        residuals.append(prediction - target)
        return loss_fn(target, prediction)

    return record
