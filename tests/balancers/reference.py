"""GradNorm as in the paper, by differentiating its objective, and training runs to compare with the balancer's.

The reference uses nothing of `balancers`: its networks run without their fork.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from balancers import GradNorm

from .nets import Net, build, inputs, losses_of

STEPS = 50


class Reference:
    """Algorithm 1 by double backward. After each update, weights are raised to 1e-4 and renormalised."""

    def __init__(self, num_tasks: int, alpha: float, lr: float, optimizer: str) -> None:
        self.alpha = alpha
        self.weights = torch.ones(num_tasks, dtype=torch.float64, requires_grad=True)
        self.optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([self.weights], lr=lr)
        self.initial: Tensor | None = None

    def backward(self, losses: Sequence[Tensor], shared: Sequence[Tensor]) -> None:
        """Fill the network's gradients with those of sum_i w_i L_i, then update the w_i."""
        values = torch.stack(list(losses)).detach()
        if self.initial is None:
            self.initial = values
        norms = torch.stack([self._norm(w * loss, shared) for w, loss in zip(self.weights, losses, strict=True)])
        ratios = values / self.initial
        targets = (norms.mean() * (ratios / ratios.mean()) ** self.alpha).detach()
        objective = (norms - targets).abs().sum()
        (gradient,) = torch.autograd.grad(objective, self.weights, retain_graph=True)

        sum(w * loss for w, loss in zip(self.weights.detach().clone(), losses, strict=True)).backward()

        self.weights.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.weights.clamp_(min=1e-4)
            self.weights.mul_(len(losses) / self.weights.sum())

    def _norm(self, loss: Tensor, shared: Sequence[Tensor]) -> Tensor:
        gradients = torch.autograd.grad(loss, shared, create_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients]).norm()


@dataclass(frozen=True)
class Case:
    """A network to train with GradNorm."""

    net: str
    num_tasks: int = 2
    alpha: float = 1.5
    optimizer: str = "adam"
    features: bool = False
    """True to measure at the features of the fork; false for the last shared layer."""
    lr: float = 0.025
    """Learning rate of the weights."""
    steps: int = STEPS


@dataclass(frozen=True)
class Run:
    """The weights used and the network's gradients at each step, and the state of both at the end."""

    weights: Tensor
    gradients: Tensor
    state: Tensor
    random_state: Tensor


Step = Callable[[Net, Tensor], Tensor]
"""A function that fills the network's gradients for one batch and returns the weights that it used."""


@lru_cache(maxsize=64)
def reference_run(case: Case) -> Run:
    reference = Reference(case.num_tasks, case.alpha, case.lr, case.optimizer)

    def step(net: Net, x: Tensor) -> Tensor:
        # One leaf of the features may be computed from another: the heads read clones, variables of their own.
        features = pytree.tree_map(torch.clone, net.features(x))
        losses = losses_of(net.outputs([(z,) * case.num_tasks for z in features]), x)
        used = reference.weights.detach().clone()
        reference.backward(losses, pytree.tree_leaves(features) if case.features else list(net.layer.parameters()))
        return used

    return _train(case, build(case.net, case.num_tasks), step)


def balancer_run(case: Case, balancer: GradNorm, net: Net) -> Run:
    def step(net: Net, x: Tensor) -> Tensor:
        loss = balancer(losses_of(net(x), x))
        loss.backward()
        return balancer.weights.clone()

    return _train(case, net, step)


def compare(run: Run, reference: Run) -> None:
    """Raise AssertionError unless both runs trained the network and weighed its losses alike."""
    torch.testing.assert_close(run.weights, reference.weights, rtol=0, atol=1e-9)
    scale = reference.gradients.norm(dim=1, keepdim=True)
    torch.testing.assert_close(run.gradients / scale, reference.gradients / scale, rtol=0, atol=1e-12)
    torch.testing.assert_close(run.state, reference.state, rtol=1e-9, atol=1e-9)
    assert run.random_state.equal(reference.random_state), "random numbers were drawn besides the network's own"


def _train(case: Case, net: Net, step: Step) -> Run:
    batches = inputs(case.net, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    weights, gradients = [], []
    torch.manual_seed(3)
    for t in range(case.steps):
        optimizer.zero_grad()
        weights.append(step(net, batches[t % len(batches)]))
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        optimizer.step()
    state = torch.cat([value.flatten().double() for value in net.state_dict().values()])
    return Run(torch.stack(weights), torch.stack(gradients), state, torch.get_rng_state())
