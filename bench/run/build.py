"""Build what a run trains from its specification: the balancer on a problem's model, the optimiser and the schedule."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import balancers
from balancers import GradientBalancer, LossBalancer
from balancers.engine import ResidualBalancer
from balancers.engine.method.declared_method import Wrt
from tasks import Problem, Recipe, Shared

from .spec import Method


def balancer(method: Method, problem: Problem[Any], model: nn.Module) -> LossBalancer:
    """Return the balancer of ``method`` for ``model``, which measures gradients where ``method.wrt`` says.

    Raises:
        ValueError: the problem's model has no such location, the problem has no residuals for a method that reads them,
            or the method refuses its options.
        TypeError: the method refuses its options.
    """
    cls = balancers.get(method.name)
    options = {"tasks": problem.tasks, **method.options}
    if cls.random:  # torch's seed is that of the run
        options.setdefault("seed", torch.initial_seed() % 2**63)
    if not issubclass(cls, GradientBalancer):
        return cls(**options)
    shared = problem.shared(model)
    if issubclass(cls, ResidualBalancer) and type(problem).residuals is Problem.residuals:
        raise ValueError(f"{method.name} reads residuals, which {problem.name} does not define")
    if (before := options.get("weighting")) is not None:
        options["weighting"] = balancer(_weighting(before, method), problem, model)
    if method.wrt == "parameters":
        # A method that replaces gradients leaves the heads' as they are: with a fork, they are not measured.
        moved = cls.needs_optimizer  # all that the optimiser's step moves, which such a method foresees
        wrt = tuple(model.parameters()) if moved else shared.parameters
        return cls(shared.fork if cls.replaces_gradients else None, wrt=wrt, **options)
    if shared.fork is None:
        raise ValueError(f"wrt is {method.wrt!r}, but the model of {problem.name} has no fork; use wrt = 'parameters'")
    if method.wrt == "layer" and shared.layer is None:
        raise ValueError(f"wrt is 'layer', but {problem.name} names no last shared layer; use wrt = 'features'")
    return cls(shared.fork, wrt=shared.layer if method.wrt == "layer" else None, **options)


def _weighting(given: Any, method: Method) -> Method:
    """Return the method that a suite's option ``weighting`` names, which measures where the combining method does.

    Raises:
        ValueError: the option is neither a name nor a table with one.
    """
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise ValueError(
            f"weighting is {given!r}; expected a method's name, or a table with a name and the method's options"
        )
    cls = balancers.get(table["name"])
    options = {name: value for name, value in table.items() if name != "name"}
    wrt = method.wrt
    if not issubclass(cls, GradientBalancer):
        wrt = None
    elif wrt in cls.undefined_for:  # it measures nothing itself, so another place does as well
        wrt = cls.default_wrt
    return Method(cls.name, wrt, options)


def default_wrt(cls: type[LossBalancer], shared: Shared) -> Wrt | None:
    """Return where a method's gradients are measured if the suite does not say; None for a method that reads none.

    It is the location that the method's paper uses. If the model has no such location, because its tasks share
    parameters but no features, it is all shared parameters.
    """
    if not issubclass(cls, GradientBalancer):
        return None
    there = {"features": shared.fork is not None, "layer": shared.fork is not None and shared.layer is not None}
    return cls.default_wrt if there.get(cls.default_wrt, True) else "parameters"


def optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the network's optimiser: fused, and over the model's parameters alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adam":
        decay = recipe.weight_decay
        return Adam(parameters, lr=recipe.lr, betas=recipe.betas, weight_decay=decay, fused=True)
    return SGD(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def schedule(optimizer: Optimizer, recipe: Recipe) -> LRScheduler | None:
    """Return the schedule of the learning rate over ``recipe.steps`` steps; None if the rate is constant."""
    return CosineAnnealingLR(optimizer, T_max=recipe.steps) if recipe.schedule == "cosine" else None
