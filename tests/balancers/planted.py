"""Losses whose values and gradients are chosen: what a method makes of them can then be computed by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from balancers import CombiningBalancer

SHAPES = ((3, 2), (4,))


class Planted:
    """T tasks that share parameters of `SHAPES`, with one more parameter each as a head."""

    def __init__(self, num_tasks: int, dtype: torch.dtype = torch.float64) -> None:
        self.shared = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
        self.heads = [nn.Parameter(torch.zeros((), dtype=dtype)) for _ in range(num_tasks)]

    def losses(self, gradients: Sequence[Tensor], values: Tensor) -> list[Tensor]:
        """One loss a task, of the given values ``(T,)``, gradients ``(T, *shape)``, and 1 for its head."""
        losses = []
        for i, head in enumerate(self.heads):
            linear = head + sum((p * gradient[i]).sum() for p, gradient in zip(self.shared, gradients, strict=True))
            losses.append(linear - linear.detach() + values[i])
        return losses

    def step(self, balancer: CombiningBalancer, gradients: Sequence[Tensor], values: Tensor | None = None) -> Tensor:
        """The shared parameters' gradient after a backward pass, ``(n,)``."""
        return self.backward(
            balancer, self.losses(gradients, torch.ones(len(self.heads)) if values is None else values)
        )

    def backward(self, balancer: CombiningBalancer, losses: Sequence[Tensor] | dict[str, Tensor]) -> Tensor:
        for parameter in (*self.shared, *self.heads):
            parameter.grad = None
        balancer(losses).backward()
        return flat([p.grad for p in self.shared])


def flat(parts: Sequence[Tensor]) -> Tensor:
    """``(n,)``."""
    return torch.cat([part.flatten() for part in parts])


def matrix(gradients: Sequence[Tensor]) -> Tensor:
    """``(T, n)``."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


def draw(num_tasks: int, generator: torch.Generator, spread: float = 1.0) -> list[Tensor]:
    """Random gradients, ``(T, *shape)`` of each parameter, some orders of magnitude apart."""
    scales = torch.exp(spread * torch.randn(num_tasks, dtype=torch.float64, generator=generator))
    return [
        torch.randn(num_tasks, *shape, dtype=torch.float64, generator=generator) * scales.view(-1, *[1] * len(shape))
        for shape in SHAPES
    ]


def state(balancer: nn.Module) -> dict[str, Tensor]:
    """A copy of all state that is a tensor."""
    return {key: value.clone() for key, value in balancer.state_dict().items() if isinstance(value, Tensor)}


def random_losses(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Positive, ``(T,)``."""
    return torch.exp(torch.randn(num_tasks, dtype=torch.float64, generator=generator))


def resumed(make: Callable[[list[nn.Parameter]], CombiningBalancer]) -> None:
    """Asserts that a balancer of 3 tasks which loads another's state in mid-sequence goes on as that one does."""
    generator = torch.Generator().manual_seed(1)
    steps = [(draw(3, generator), random_losses(3, generator)) for _ in range(6)]
    tasks = Planted(3)
    whole, first, second = (make(tasks.shared) for _ in range(3))
    expected = [tasks.step(whole, *step) for step in steps]
    for step in steps[:3]:
        tasks.step(first, *step)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(tasks.step(second, *step), e) for step, e in zip(steps[3:], expected[3:], strict=True))
    torch.testing.assert_close(state(second), state(whole), rtol=0, atol=0)
