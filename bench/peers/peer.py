"""Define a peer, which trains its copy of a network with task weights, and the settings of its GradNorm."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from torch.optim import Adam

from bench.run.task_order import in_task_order
from tasks import Problem

Where = Literal["last shared layer", "its weight alone", "all shared parameters"]


class GradNormSetting(NamedTuple):
    """The settings of a GradNorm, in the terms of our own.

    Attributes:
        wrt: the parameters at which gradient norms are measured.
        alpha: strength of the restoring force.
        lr: learning rate of the weights.
        optimizer: optimiser of the weights.
    """

    wrt: Where = "last shared layer"
    alpha: float = 0.12
    lr: float = 0.025
    optimizer: Literal["adam", "sgd"] = "adam"

    def parameters(self, problem: Problem[Any], model: nn.Module) -> tuple[nn.Parameter, ...]:
        """Return the parameters that ``wrt`` names.

        Raises:
            ValueError: ``wrt`` names the last shared layer, and the model has none.
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
        problem: a problem with separate heads, whose losses come one by one.
        model: a model that ``problem.model()`` made; it is changed.
        setting: how the weights are learned; None stands for the class's `usual_setting`.
        own: additional parameters for the network's optimiser to train.
    """

    name: ClassVar[str]
    """Name of its row; for a package, the name on PyPI."""
    package: ClassVar[str | None] = None
    """Import name of the package that has to be installed; None if there is none."""
    differs: ClassVar[str] = ""
    """How its step differs from ours with the same settings; empty if it should not differ."""

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
        """Return the setting that is used if none is given."""
        return GradNormSetting()

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Weights that the next step will use, ``(T,)``."""

    @abstractmethod
    def backward(self, losses: list[Tensor]) -> None:
        """Write the gradients into the model's ``.grad``, which is None before, and update the weights."""

    def step(self, batch: Any) -> None:
        """Make one training step; ``.grad`` holds the gradients of this step afterwards."""
        self.optimizer.zero_grad()
        self.backward(in_task_order(self.problem.losses(self.model, batch), self.problem.tasks))
        self.optimizer.step()
