"""Losses with given values and gradients, so that a method's result can be computed by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from balancers import GradientBalancer

SHAPES = ((3, 2), (4,))


class Planted:
    """T tasks that share parameters of `SHAPES`, and have one more parameter each as a head."""

    def __init__(self, num_tasks: int, dtype: torch.dtype = torch.float64) -> None:
        self.shared = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
        self.heads = [nn.Parameter(torch.zeros((), dtype=dtype)) for _ in range(num_tasks)]

    def losses(self, gradients: Sequence[Tensor], values: Tensor) -> list[Tensor]:
        """Return one loss for each task, with values ``(T,)``, gradients ``(T, *shape)``, and 1 for its head."""
        losses = []
        for i, head in enumerate(self.heads):
            linear = head + sum((p * gradient[i]).sum() for p, gradient in zip(self.shared, gradients, strict=True))
            losses.append(linear - linear.detach() + values[i])
        return losses

    def step(self, balancer: GradientBalancer, gradients: Sequence[Tensor], values: Tensor | None = None) -> Tensor:
        """Return the shared parameters' gradient after a backward pass, ``(n,)``."""
        return self.backward(
            balancer, self.losses(gradients, torch.ones(len(self.heads)) if values is None else values)
        )

    def backward(self, balancer: GradientBalancer, losses: Sequence[Tensor] | dict[str, Tensor]) -> Tensor:
        for parameter in (*self.shared, *self.heads):
            parameter.grad = None
        balancer(losses).backward()
        return flat([p.grad for p in self.shared])


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Return all entries as one vector ``(n,)``."""
    return torch.cat([part.flatten() for part in parts])


def matrix(gradients: Sequence[Tensor]) -> Tensor:
    """Return each task's gradient as a row, ``(T, n)``."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


def draw(num_tasks: int, generator: torch.Generator, spread: float = 1.0) -> list[Tensor]:
    """Draw gradients of each parameter, ``(T, *shape)``, whose lengths are some orders of magnitude apart."""
    scales = torch.exp(spread * torch.randn(num_tasks, dtype=torch.float64, generator=generator))
    return [
        torch.randn(num_tasks, *shape, dtype=torch.float64, generator=generator) * scales.view(-1, *[1] * len(shape))
        for shape in SHAPES
    ]


def state(balancer: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all tensors in the saved state."""
    return {key: value.clone() for key, value in balancer.state_dict().items() if isinstance(value, Tensor)}


def random_losses(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Draw positive losses, ``(T,)``."""
    return torch.exp(torch.randn(num_tasks, dtype=torch.float64, generator=generator))
