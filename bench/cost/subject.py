"""Define a subject, on which the cost of a step is measured: a model, the losses of a batch, the last shared layer.

A subject is made by a function without arguments, as a user would write it::

    def make_step():
        model, x, y = Net(), torch.randn(16, 32), torch.randn(16, 2)
        return model, lambda: [mse_loss(out, target) for out, target in zip(model(x), y.unbind(1))], model.trunk[-1]

The function is called for every balancer, with the same seed, so that each balancer trains its own copy.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from balancers import EqualWeighting, Fork, LinearHeads, Losses
from tasks import Problem


class SubjectError(ValueError):
    """The subject can't be measured; the message says why."""


class Subject(NamedTuple):
    """A model and the losses of its batches; ``make_step`` returns one.

    Attributes:
        model: the model, in train mode.
        losses: computes the losses of this step's batch: a list, a ``{task: loss}`` dict or a tensor ``(T,)``.
        wrt: the last shared layer, or its parameters; None if it isn't named.
        residuals: computes the residuals of a batch, for methods that read them; None if the losses are no means of
            their squares.
    """

    model: nn.Module
    losses: Callable[[], Losses]
    wrt: nn.Module | nn.Parameter | tuple[nn.Parameter, ...] | None = None
    residuals: Callable[[], Sequence[Tensor]] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device

    @property
    def fork(self) -> Fork | None:
        """The model's `Fork`, or None.

        Raises:
            SubjectError: the model has several forks.
        """
        forks = {name: module for name, module in self.model.named_modules() if isinstance(module, Fork)}
        if len(forks) > 1:
            names = ", ".join(forks)
            raise SubjectError(f"the model has {len(forks)} forks ({names}); expected one, where its heads begin")
        return next(iter(forks.values()), None)

    @property
    def layer(self) -> tuple[nn.Parameter, ...]:
        """The parameters that ``wrt`` names; empty if it is None."""
        match self.wrt:
            case None:
                return ()
            case nn.Parameter():
                return (self.wrt,)
            case nn.Module():
                return tuple(parameter for parameter in self.wrt.parameters() if parameter.requires_grad)
        return self.wrt


MakeStep = Callable[[], tuple[Any, ...]]
"""Function that returns a new `Subject`, or a plain tuple of its two or three entries."""


def make(make_step: MakeStep, seed: int = 0) -> Subject:
    """Return the subject that ``make_step`` makes when torch's global generator is seeded with ``seed``.

    Raises:
        SubjectError: ``make_step`` returned something else than a subject.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make_step()
    name = getattr(make_step, "__name__", "make_step")
    expected = "expected (model, losses) or (model, losses, wrt)"
    if not isinstance(made, tuple) or len(made) not in (2, 3, 4):
        came = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
        raise SubjectError(f"{name} returned {came}; {expected}")
    subject = Subject(*made)
    if isinstance(subject.wrt, Iterable) and not isinstance(subject.wrt, nn.Module | nn.Parameter):
        subject = subject._replace(wrt=tuple(subject.wrt))  # an iterator can be read only once
    if not isinstance(subject.model, nn.Module):
        raise SubjectError(f"{name}'s model is a {type(subject.model).__name__}, not a Module; {expected}")
    if not callable(subject.losses):
        kind = type(subject.losses).__name__
        raise SubjectError(f"{name}'s losses is a {kind}; expected a function that computes a batch's losses")
    if not subject.model.training:
        raise SubjectError(f"{name}'s model is in eval mode; call model.train()")
    if not any(parameter.requires_grad for parameter in subject.model.parameters()):
        raise SubjectError(f"{name}'s model has no parameter that requires grad")
    return subject


def on_device(make_step: MakeStep, device: torch.device) -> MakeStep:
    """Return a ``make_step`` that calls this one with ``device`` as torch's default device."""

    @functools.wraps(make_step)
    def made() -> tuple[Any, ...]:
        with device:
            return make_step()

    return made


def of_problem(problem: Problem[Any], batches: Sequence[Any], device: torch.device) -> MakeStep:
    """Return a ``make_step`` for a problem's model, which repeats ``batches``, so that no step has to read data."""

    def make_step() -> Subject:
        model = problem.model().to(device).train()
        ready = itertools.cycle(batches)
        has_residuals = type(problem).residuals is not Problem.residuals
        return Subject(
            model,
            lambda: problem.losses(model, next(ready)),
            problem.shared(model).layer,
            (lambda: problem.residuals(model, batches[0]) or ()) if has_residuals else None,
        )

    return make_step


def task_names(losses: Losses) -> list[str]:
    """Return the tasks' names; if they have none, ``task 0``, ``task 1`` and so on.

    Raises:
        SubjectError: ``losses`` are not two or more scalars.
    """
    if isinstance(losses, Tensor) and losses.ndim == 0:
        raise SubjectError("losses() returned one scalar; expected one loss for each task: don't sum them")
    num_tasks = len(losses) if isinstance(losses, Sequence | Mapping | Tensor) else 1
    try:
        EqualWeighting(max(1, num_tasks))(losses)
    except (TypeError, ValueError) as error:
        raise SubjectError(f"losses() did not return losses: {error}") from error
    if num_tasks < 2:
        raise SubjectError("losses() returned the loss of one task; there is nothing to balance")
    return list(losses) if isinstance(losses, Mapping) else [f"task {i}" for i in range(num_tasks)]


def in_order(losses: Losses) -> list[Tensor]:
    """Return the losses as a list."""
    if isinstance(losses, Tensor):
        return list(losses.unbind())
    return list(losses.values() if isinstance(losses, Mapping) else losses)


def features(subject: Subject) -> tuple[list[Tensor], Losses]:
    """Make a forward pass, and return the tensors that go into the fork (none without a fork) and the losses."""
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
