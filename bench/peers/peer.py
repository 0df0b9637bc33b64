"""What every contender is: something that trains a network's copy, step by step, and has weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam

from tasks import Problem

Where = Literal["last shared layer", "its weight alone", "all shared parameters"]


class GradNormSetting(NamedTuple):
    """How a GradNorm is set, in the terms of ours."""

    wrt: Where = "last shared layer"
    alpha: float = 0.12
    lr: float = 0.025
    optimizer: Literal["adam", "sgd"] = "adam"

    def parameters(self, problem: Problem[Any], model: nn.Module) -> tuple[nn.Parameter, ...]:
        """What gradients are taken with respect to.

        Raises:
            ValueError: the model has no last shared layer, and that is what is asked for.
        """
        shared = problem.shared(model)
        if self.wrt == "all shared parameters":
            return shared.parameters
        if shared.layer is None:
            raise ValueError(f"wrt is {self.wrt!r}, but {problem.name} names no last shared layer")
        parameters = dict(shared.layer.named_parameters())
        return (parameters["weight"],) if self.wrt == "its weight alone" else tuple(parameters.values())


class Peer(ABC):
    """Trains ``model`` on ``problem`` with fused Adam, at the recipe's learning rate.

    Args:
        problem: whose losses come one by one, from separate heads.
        model: what ``problem.model()`` made; it is changed.
        setting: how the weights are learned; by default as the class has it.
        own: parameters besides the model's for the network's optimiser to train.
    """

    name: ClassVar[str]
    """What its row is called; a package's, as PyPI has it."""
    package: ClassVar[str | None] = None
    """What has to be installed, by its name in Python; None: nothing."""
    differs: ClassVar[str] = ""
    """How its step differs from ours, set alike; empty where it should not."""

    def __init__(
        self,
        problem: Problem[Any],
        model: nn.Module,
        setting: GradNormSetting | None = None,
        own: Iterable[nn.Parameter] = (),
    ) -> None:
        self.problem = problem
        self.model = model
        self.setting = setting or self.usual_setting(problem)
        self.optimizer = Adam([*model.parameters(), *own], lr=problem.recipe.lr, fused=True)

    @classmethod
    def usual_setting(cls, problem: Problem[Any]) -> GradNormSetting:
        """The setting by default."""
        return GradNormSetting()

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """``(T,)``: the weights that the next step will use."""

    @abstractmethod
    def backward(self, losses: list[Tensor]) -> None:
        """Fills the ``.grad`` of the model, where there is none yet, and updates the weights."""

    def step(self, batch: Any) -> None:
        """One training step; it leaves the gradients that the network was trained on."""
        self.optimizer.zero_grad()
        self.backward(list(self.problem.losses(self.model, batch)))
        self.optimizer.step()


def new_weights(problem: Problem[Any], model: nn.Module) -> Tensor:
    """``(T,)``: weights of 1, of the model's type, to differentiate with respect to."""
    return torch.ones(len(problem.tasks), dtype=next(model.parameters()).dtype, requires_grad=True)
