"""What a method's `weigh` and `update` may be: without arguments, and with weights of zero."""

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, GradientBalancer, LossBalancer, Read, Result


class Weighted(GradientBalancer):
    """Adds the gradients of losses that it has multiplied by given numbers."""

    name, summary, reads = "weighted-sum", "Add weighted gradients.", "gramian"
    numbers = (1.0, 1.0)

    def weigh(self) -> Tensor:
        return torch.tensor(self.numbers, dtype=torch.float64)

    def update(self, read: Read) -> Result:
        return Result(torch.ones_like(read.losses))


class WeightedByLosses(Weighted):
    name = "weighted-by-losses"

    def weigh(self, losses: Tensor) -> Tensor:
        return losses.new_tensor(self.numbers)


class Counting(LossBalancer):
    """Has an update without arguments."""

    name, summary, reads = "counting", "Count updates.", "nothing"
    updates = 0

    def weigh(self) -> Tensor:
        return torch.ones(2)

    def update(self) -> Result:
        self.updates += 1
        return Result()


@pytest.mark.parametrize("numbers", [(3.0, 5.0), (0.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("cls", [Weighted, WeightedByLosses])
@pytest.mark.parametrize("has_fork", [True, False], ids=["fork", "no fork"])
def test_losses_are_multiplied_whatever_weigh_takes(
    has_fork: bool, cls: type[Weighted], numbers: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    trunk, fork = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).double(), Fork(2)
    heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(2)).double()
    x = torch.randn(8, 4, dtype=torch.float64)

    def losses(aliases: tuple[Tensor, ...]) -> list[Tensor]:
        return [head(z).square().mean() for head, z in zip(heads, aliases, strict=True)]

    balancer = cls(fork) if has_fork else cls(None, wrt=trunk, tasks=2)
    balancer.numbers = numbers
    assert balancer.weighs
    parameters = [*trunk.parameters(), *heads.parameters()]
    plain = losses((trunk(x),) * 2)
    expected = sum(number * loss for number, loss in zip(numbers, plain, strict=True))
    rows = torch.autograd.grad(expected, parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = None
        total = balancer(losses(fork(trunk(x)) if has_fork else (trunk(x),) * 2))
        torch.testing.assert_close(total.detach(), expected.detach())
        total.backward()
        for parameter, row in zip(parameters, rows, strict=True):
            torch.testing.assert_close(parameter.grad, row)
    torch.testing.assert_close(balancer.weights, torch.tensor(numbers, dtype=torch.float64))


def test_an_update_without_arguments_is_called() -> None:
    balancer = Counting(2)
    for _ in range(3):
        balancer([torch.ones((), requires_grad=True) for _ in range(2)]).backward()
    assert balancer.updates == 3
