"""Define a contender, which trains a network of its own, one step a call; equal weighting and our methods are two."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

import balancers
from balancers import EqualWeighting, GradientBalancer
from balancers.engine.method.declared_method import Wrt
from bench.cost.subject import MakeStep, in_order, make
from bench.cost.training_step import adam


class Contender(ABC):
    """Trains a network with fused Adam; all contenders start from the same initial values.

    Args:
        make_step: makes the network and its losses. The model's ``trunk`` is what the tasks share, and ends at its
            ``fork``; ``wrt`` is the last shared layer.
    """

    name: ClassVar[str]
    """Name in tables."""

    def __init__(self, make_step: MakeStep) -> None:
        self.subject = make(make_step)
        self.trunk = self.subject.model.get_submodule("trunk")
        self._optimizer = adam(self.subject.model)

    @property
    def layer(self) -> nn.Module:
        """The last shared layer."""
        assert isinstance(self.subject.wrt, nn.Module)
        return self.subject.wrt

    @abstractmethod
    def backward(self, losses: list[Tensor]) -> None:
        """Write the gradients into the model's ``.grad``, which is None before."""

    def __call__(self) -> None:
        """Make one training step; ``.grad`` holds the gradients of this step afterwards."""
        self._optimizer.zero_grad()
        self.backward(in_order(self.subject.losses()))
        self._optimizer.step()

    def first_gradient(self, seed: int = 0) -> Tensor:
        """Make the first step, and return its gradient with respect to the trunk, ``(n,)``.

        ``seed`` sets the random numbers of dropout, which then drops the same units for every contender.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self()
        gradients = [parameter.grad for parameter in self.trunk.parameters() if parameter.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients])


class EqualStep(Contender):
    """Minimises the sum of the losses."""

    name = "equal weighting"

    def __init__(self, make_step: MakeStep, num_tasks: int) -> None:
        super().__init__(make_step)
        self._balancer = EqualWeighting(num_tasks)

    def backward(self, losses: list[Tensor]) -> None:
        self._balancer(losses).backward()


class OurStep(Contender):
    """Combines gradients with our ``method``, used as its documentation says, with its default options."""

    name = "ours"

    def __init__(self, make_step: MakeStep, method: str, place: Wrt) -> None:
        super().__init__(make_step)
        cls = balancers.get(method)
        assert issubclass(cls, GradientBalancer)
        wrt = {"features": None, "layer": self.layer, "parameters": self.trunk}[place]
        self._balancer = cls(self.subject.fork, wrt=wrt)

    def backward(self, losses: list[Tensor]) -> None:
        self._balancer(losses).backward()


class Features(nn.Module):
    """Takes the fork's place for a peer: remembers the features, and hands every head the same tensor.

    Args:
        num_tasks: T.
        cut: whether the trunk's graph ends here, so that a backward pass from the losses ends at ``leaf``.
    """

    def __init__(self, num_tasks: int, cut: bool = False) -> None:
        super().__init__()
        self._num_tasks = num_tasks
        self._cut = cut
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Sequence[Tensor]:
        leaf = features.detach().requires_grad_() if self._cut else features
        handed = leaf.view_as(leaf) if self._cut else features
        self._seen = features, leaf, handed
        return [handed] * self._num_tasks

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the trunk's output, the leaf where the heads' graph begins, and what the heads got; forget them.

        Without ``cut``, these are one tensor.
        """
        assert self._seen is not None
        seen, self._seen = self._seen, None
        return seen


class PeerContender(Contender):
    """A contender from another package, in whose model `Features` takes the place of our fork."""

    def __init__(self, make_step: MakeStep, num_tasks: int, cut: bool = False) -> None:
        super().__init__(make_step)
        self.features = Features(num_tasks, cut)
        self.subject.model.add_module("fork", self.features)
