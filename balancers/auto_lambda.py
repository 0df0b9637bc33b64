"""Auto-Lambda: learn the weights from how a step with them changes the losses of a second batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .engine import LearnedState, Range, Read, Result, SecondBatchBalancer, State, option, register, state
from .engine.classes.second_batch import moved
from .engine.loss_input import Entries, stack
from .engine.measuring.task_gradients import dense, flat, real_as, weighted_sum
from .engine.own_precision import own_precision
from .engine.steps.before_step import second_losses
from .engine.torch_internals import foreach_norm, without_hooks
from .engine.user_warnings import warn


@register
class AutoLambda(SecondBatchBalancer, LearnedState):
    r"""Learn the weights that lower the primary tasks' losses of a second batch after the network's step.

    .. math:: \lambda \leftarrow \operatorname{Adam}\big(\lambda, \nabla_\lambda \textstyle\sum_{j \in P}
        L'_j(\theta')\big), \quad \theta' = \theta - a \sum_i \lambda_i \nabla L_i(\theta)

    with the learning rate :math:`a`, the momentum and the weight decay of the network's optimiser, which the balancer
    must `follow`. The derivative is :math:`-a \langle \nabla L_i(\theta), \nabla \sum_j L'_j(\theta') \rangle`. The
    step is then made with the new weights. A task whose gradient opposes the primary ones' loses weight, which may fall
    below zero. The cost is T+1 more backward passes and one forward pass a step.

    Args:
        primary: the tasks that matter, or the only one, by name or by number from 0; None for all.
        initial: :math:`\lambda_i` at first.
        lr: learning rate of :math:`\lambda`; 1e-4 in the paper, 3e-5 for Cityscapes.
        optimizer: optimiser of :math:`\lambda`, ``"adam"`` or ``"sgd"``.
        fork, wrt, options: see `GradientBalancer`; ``fork`` is None. Give the second batch's
            losses with `second_batch`, of all primary tasks in every step. ``wrt`` is what moves to
            :math:`\theta'`; in the paper, all parameters, those of the heads too.

    Raises:
        ValueError: ``primary`` names no task of these, or ``lr``, ``initial`` or ``optimizer`` is out of range.
        RuntimeError: `second_batch` or `follow` was not called, or FSDP shards the parameters.

    Example::

        balancer = AutoLambda(None, wrt=net, tasks=["class", "box"], primary=["class"])
        balancer.follow(optimizer)
        balancer.second_batch(lambda: losses_of(net, next(validation)))
        balancer(losses).backward()

    Source: Liu, James, Davison and Johns, "Auto-Lambda: Disentangling Dynamic Task Relationships", TMLR 2022, eqs. 3 to
    5. The paper takes finite differences of :math:`L_i` along the second batch's gradient, which this derivative is the
    limit of. The official code draws the second batch from the training data. Of the optimiser's state, it and
    this class know the momentum of SGD alone: with Adam, :math:`\theta'` is a step of plain SGD.
    """

    name = "auto-lambda"
    summary = "Learn the weights that lower the primary tasks' losses of another batch after the step."
    use_when = "When some tasks only exist to help others, and it is not known how much."
    compares_tasks = False
    may_ascend = True
    needs_optimizer = True
    primary: Sequence[str | int] | str | int | None = option(None, free=True)
    initial: float = option(0.1, fixed=True)
    lr: float = option(1e-4, above=0, tune=Range(1e-5, 1e-3, log=True))
    learns = "lambdas"
    lambdas: Tensor = state(lambda balancer: balancer.initial)
    r""":math:`\lambda_i`, ``(T,)``."""
    last_weights: Tensor = state(lambda balancer: balancer.initial)

    _told_of_fixed = False
    """Whether a warning has named the parameters of ``wrt`` that the optimiser does not train."""

    def prepare(self) -> None:
        names = self.tasks or ()
        chosen = range(self.num_tasks) if self.primary is None else self.primary
        chosen = [chosen] if isinstance(chosen, str | int) else chosen
        known = isinstance(chosen, Sequence) and len(chosen) > 0
        if not known or any(each not in names and each not in range(self.num_tasks) for each in chosen):
            raise ValueError(f"primary is {self.primary!r}; expected tasks of this balancer: {self.made_for()}")
        places = {names.index(each) if each in names else int(each) for each in chosen}
        self.counts = tuple(i in places for i in range(self.num_tasks))
        """For each task whether it is primary."""

    def look(self, read: Read, losses: Entries, given: tuple[bool, ...] | None) -> None:
        if self.is_sharded():
            raise RuntimeError("AutoLambda moves the parameters of wrt, which it can't where FSDP shards them")
        self._audit(losses)
        rows, parameters = self.gradients(losses, given), self.measured_parameters() or ()
        scale = self.pass_scale
        with own_precision(read.losses):
            step = [weighted_sum(self.lambdas / scale, row) for row in rows]
        values, rates = self._foreseen(parameters, step)
        with moved(parameters, values):
            total = stack(second_losses(self, self.counts, learning=True)).sum()
            with without_hooks(parameters):
                found = torch.autograd.grad(total, parameters, scale.to(total.dtype), allow_unused=True)
        products = torch.zeros_like(read.losses)
        for parameter, rate, row, slope in zip(parameters, rates, rows, found, strict=True):
            slope = dense(torch.zeros_like(parameter) if slope is None else slope)
            slope = self._ranks.mean(slope) if self._ranks.size > 1 else slope
            with own_precision(products):
                products = products + rate * (flat(row).to(products.dtype) @ slope.flatten().to(products.dtype))
        read.products = products / scale / scale

    def _foreseen(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[float | Tensor]]:
        """Return the values of the parameters after the optimiser's step, and their learning rates.

        A step that is not finite is not made: the model's running statistics would not recover from it.
        """
        optimizer = None if self._network_optimizer is None else self._network_optimizer()
        groups = {each: group for group in (optimizer.param_groups if optimizer else ()) for each in group["params"]}
        if optimizer is None or not any(parameter in groups for parameter in parameters):
            raise RuntimeError(
                "AutoLambda looks at the model after the optimiser's step: before the first step, call "
                "balancer.follow(optimizer) with the optimiser of the parameters that wrt names"
            )
        missing = sum(parameter not in groups for parameter in parameters)
        if missing and not self._told_of_fixed:
            self._told_of_fixed = True
            warn(
                f"the optimiser that AutoLambda follows does not train {missing} of the {len(parameters)} parameters "
                f"of wrt, which count as fixed: if another optimiser trains them, leave them out of wrt"
            )
        finite = torch.stack(foreach_norm(gradients)).amax() < torch.inf
        values, rates = list[Tensor](), list[float | Tensor]()
        for parameter, step in zip(parameters, gradients, strict=True):
            group, before = groups.get(parameter, {"lr": 0.0}), dense(parameter.detach())
            buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if group.get("weight_decay"):
                step = step + group["weight_decay"] * before
            if buffer is not None:
                step = step + group["momentum"] * dense(buffer)
            after = torch.where(finite, before - group["lr"] * step.view_as(before), before)
            values.append(real_as(after, parameter))
            rates.append(group["lr"])
        return values, rates

    def update(self, read: Read) -> Result:
        return Result(gradient=-read.products)

    def weigh(self, state: State) -> Tensor:
        r"""Return :math:`\lambda_i`, ``(T,)``."""
        return state["lambdas"]
