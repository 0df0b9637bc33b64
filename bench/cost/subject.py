"""What a step's cost is measured on: a model, the losses of a batch, and the last shared layer.

A subject comes from a function without arguments, as a user would write it::

    def make_step():
        model, x, y = Net(), torch.randn(16, 32), torch.randn(16, 2)
        return model, lambda: [mse_loss(out, target) for out, target in zip(model(x), y.unbind(1))], model.trunk[-1]

It is called anew, under the same seed, for every balancer, so that each trains a copy of its own.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from balancers import EqualWeighting, Fork, LinearHeads
from balancers.engine.loss_input import Losses
from tasks import Problem


class SubjectError(ValueError):
    """What was to be measured can't be."""


class Subject(NamedTuple):
    """What ``make_step`` returns.

    Attributes:
        model: in train mode.
        losses: computes the losses of this step's batch: a list, a ``{task: loss}`` dict or a tensor ``(T,)``.
        wrt: the last shared layer, or its parameters.
    """

    model: nn.Module
    losses: Callable[[], Losses]
    wrt: nn.Module | nn.Parameter | tuple[nn.Parameter, ...] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device

    @property
    def fork(self) -> Fork | None:
        """The model's `Fork`, where it has one.

        Raises:
            SubjectError: it has several.
        """
        forks = {name: module for name, module in self.model.named_modules() if isinstance(module, Fork)}
        if len(forks) > 1:
            names = ", ".join(forks)
            raise SubjectError(f"the model has {len(forks)} forks ({names}); expected one, where its heads begin")
        return next(iter(forks.values()), None)

    @property
    def layer(self) -> tuple[nn.Parameter, ...]:
        """The parameters that ``wrt`` names; none without it."""
        match self.wrt:
            case None:
                return ()
            case nn.Parameter():
                return (self.wrt,)
            case nn.Module():
                return tuple(parameter for parameter in self.wrt.parameters() if parameter.requires_grad)
        return self.wrt


MakeStep = Callable[[], tuple[Any, ...]]
"""Returns a new `Subject`, or a plain tuple of its two or three entries."""


def make(make_step: MakeStep, seed: int = 0) -> Subject:
    """The subject that ``make_step`` returns, torch's global generator seeded with ``seed``.

    Raises:
        SubjectError: what it returned is no subject.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make_step()
    expected = "expected (model, losses) or (model, losses, wrt)"
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        what = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
        raise SubjectError(f"make_step returned {what}; {expected}")
    subject = Subject(*made)
    if isinstance(subject.wrt, Iterable) and not isinstance(subject.wrt, nn.Module | nn.Parameter):
        subject = subject._replace(wrt=tuple(subject.wrt))  # an iterator can be read but once
    if not isinstance(subject.model, nn.Module):
        raise SubjectError(f"make_step's model is a {type(subject.model).__name__}, not a Module; {expected}")
    if not callable(subject.losses):
        kind = type(subject.losses).__name__
        raise SubjectError(f"make_step's losses is a {kind}; expected a function that computes them for a step's batch")
    if not subject.model.training:
        raise SubjectError("make_step's model is in eval mode; call model.train()")
    if not any(parameter.requires_grad for parameter in subject.model.parameters()):
        raise SubjectError("make_step's model has no parameter that requires grad")
    return subject


def on_device(make_step: MakeStep, device: torch.device) -> MakeStep:
    """The same, with ``device`` for torch's default while it is called."""

    def made() -> tuple[Any, ...]:
        with device:
            return make_step()

    return made


def of_problem(problem: Problem[Any], batches: Sequence[Any], device: torch.device) -> MakeStep:
    """Subjects of a problem's model, on ``batches`` over and over, so that no step has to read data."""

    def make_step() -> Subject:
        model = problem.model().to(device).train()
        ready = itertools.cycle(batches)
        return Subject(model, lambda: problem.losses(model, next(ready)), problem.shared(model).layer)

    return make_step


def task_names(losses: Losses) -> list[str]:
    """The tasks' names; where they have none, their places.

    Raises:
        SubjectError: these are not the losses of two or more tasks, each a scalar.
    """
    if isinstance(losses, Tensor) and losses.ndim == 0:
        raise SubjectError("losses() returned one scalar; expected the tasks' losses, each by itself: don't sum them")
    num_tasks = len(losses) if isinstance(losses, Sequence | Mapping | Tensor) else 1
    try:
        EqualWeighting(max(1, num_tasks))(losses)
    except (TypeError, ValueError) as error:
        raise SubjectError(f"losses() returned something else than losses: {error}") from error
    if num_tasks < 2:
        raise SubjectError("losses() returned the loss of one task; there is nothing to balance")
    return list(losses) if isinstance(losses, Mapping) else [f"task {i}" for i in range(num_tasks)]


def in_order(losses: Losses) -> list[Tensor]:
    """The losses as a list."""
    if isinstance(losses, Tensor):
        return list(losses.unbind())
    return list(losses.values() if isinstance(losses, Mapping) else losses)


def features(subject: Subject) -> tuple[list[Tensor], Losses]:
    """A forward pass: what it hands to the fork (nothing without one), and the losses."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.extend(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad)

    entrances = [module for module in subject.model.modules() if isinstance(module, Fork | LinearHeads)]
    hooks = [entrance.register_forward_pre_hook(see, with_kwargs=True) for entrance in entrances]
    try:
        losses = subject.losses()
    finally:
        for hook in hooks:
            hook.remove()
    return seen, losses
