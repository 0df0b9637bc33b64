"""MetaBalance beside torch-rechub's: ``torch_rechub.MetaBalance(parameters, relax_factor, beta).step(losses)``.

The call runs a backward pass for each loss and leaves the combined gradients in ``.grad``; it makes no step. The first
loss is the target, and every parameter tensor p has weights of its own:

    m_ip <- beta m_ip + (1 - beta) |g_ip|, from 0;    gradient of p: sum_i (r m_1p / (m_ip + 1e-5) + 1 - r) g_ip

- The 1e-5 is not in the paper. It makes the target's own weight less than 1. Gradients that are much longer than that,
  such as those of losses times 1e8, show the formula without it.
- Gradients from before the call are added to the first loss's: clear them first.
- In a group, what a loss doesn't reach stops the loop: at the first parameter whose gradient is None, the rest of the
  group is left out for this loss. ``zero_grad(set_to_none=False)`` makes such gradients zero, from the second step on.
- The norms are an attribute ``norms`` of the parameter, not part of the optimiser's saved state.
"""

from types import ModuleType

import pytest
import torch

from balancers.metabalance import MetaBalance

from ..balancers.nets import Net, build, inputs, losses_of
from ..balancers.planted import Planted, flat, matrix
from .cases import COUNT, steps

RELAX, BETA = 0.7, 0.9
LARGE = 1e8
"""Factor of losses that makes 1e-5 negligible beside their gradients."""


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_torch_rechub_gives_each_tensor_weights_of_its_own(torch_rechub: ModuleType, num_tasks: int) -> None:
    planted = Planted(num_tasks)
    peer = torch_rechub.MetaBalance(planted.shared, relax_factor=RELAX, beta=BETA)
    averages = [torch.zeros(num_tasks, dtype=torch.float64) for _ in planted.shared]
    for case in steps(num_tasks, 10):
        peer.zero_grad(set_to_none=False)
        peer.step(planted.losses(case.gradients, case.losses))
        for i, (parameter, gradients) in enumerate(zip(planted.shared, case.gradients, strict=True)):
            averages[i] = BETA * averages[i] + (1 - BETA) * matrix([gradients]).norm(dim=1)
            weights = RELAX * averages[i][0] / (averages[i] + 1e-5) + 1 - RELAX
            torch.testing.assert_close(parameter.grad, torch.einsum("t,t...->...", weights, gradients))


class Training:
    """A network of three tasks, trained by plain gradient descent on losses times `LARGE`."""

    def __init__(self, name: str) -> None:
        self.net: Net = build(name, 3)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05 / LARGE)

    def losses(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.optimizer.zero_grad(set_to_none=False)
        return [LARGE * loss for loss in losses_of(self.net(x), x)]

    def gradient(self) -> torch.Tensor:
        """Return the gradient of all parameters as one vector."""
        return flat([p.grad for p in self.net.parameters() if p.grad is not None])


@pytest.mark.parametrize(("relax", "beta"), [(0.7, 0.9), (0.3, 0.5), (0.0, 0.9)])
@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_metabalance_trains_as_torch_rechubs(torch_rechub: ModuleType, name: str, relax: float, beta: float) -> None:
    theirs, ours = Training(name), Training(name)
    peer = torch_rechub.MetaBalance(theirs.net.trunk.parameters(), relax_factor=relax, beta=beta)
    balancer = MetaBalance(ours.net.fork, wrt=ours.net.trunk, relax=relax, beta=beta)
    start = flat([p.detach().clone() for p in ours.net.parameters()])
    batches = inputs(name, 10)
    for step in range(COUNT):
        x = batches[step % len(batches)]
        peer.step(theirs.losses(x))
        balancer(ours.losses(x)).backward()
        expected, got = theirs.gradient(), ours.gradient()
        torch.testing.assert_close(got / expected.norm(), expected / expected.norm(), rtol=0, atol=1e-9)
        theirs.optimizer.step()
        ours.optimizer.step()
    end = flat([p.detach() for p in ours.net.parameters()])
    torch.testing.assert_close(end, flat([p.detach() for p in theirs.net.parameters()]), rtol=0, atol=1e-9)
    assert (end - start).norm() > 0.1
    assert ((balancer.weights - 1).abs().max() > 0.05) == (relax > 0)


def test_torch_rechub_alone_shrinks_a_short_gradient_of_the_target(torch_rechub: ModuleType) -> None:
    planted = Planted(1)
    [case] = steps(1, 1)
    gradients = [1e-5 * gradient / gradient.norm() for gradient in case.gradients]
    peer = torch_rechub.MetaBalance(planted.shared, relax_factor=RELAX, beta=0.0)
    peer.step(planted.losses(gradients, case.losses))
    theirs = flat([p.grad for p in planted.shared])
    ours = planted.step(MetaBalance(None, wrt=planted.shared, tasks=1, relax=RELAX, beta=0.0), gradients, case.losses)
    torch.testing.assert_close(theirs, (1 - RELAX / 2) * matrix(gradients)[0])
    torch.testing.assert_close(ours, matrix(gradients)[0])
