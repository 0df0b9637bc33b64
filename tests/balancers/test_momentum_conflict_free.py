"""M-ConFIG: one task's gradient a step, and ConFIG of the averages of all."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, MomentumConFIG
from balancers.conflict_free import conflict_free

pytestmark = pytest.mark.on_device
TASKS = ("a", "b", "c")
BETA = 0.8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
        self.heads = nn.ModuleList(nn.Linear(5, 1).double() for _ in TASKS)
        self.fork = Fork(len(TASKS))
        self.backward_passes = 0
        """The number of gradients that came to the features."""

    def losses(self, seed: int, forked: bool) -> dict[str, Tensor]:
        x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        z = self.trunk(x)
        aliases = self.fork(z) if forked else [z] * len(TASKS)
        return {
            task: (head(alias) - i).square().mean()
            for i, (task, head, alias) in enumerate(zip(TASKS, self.heads, aliases, strict=True))
        }

    def make(self, forked: bool, **options: object) -> MomentumConFIG:
        return MomentumConFIG(self.fork if forked else None, self.trunk, tasks=TASKS, beta=BETA, **options)

    def gradient(self) -> Tensor:
        return torch.cat(
            [parameter.grad.flatten() for parameter in self.trunk.parameters() if parameter.grad is not None]
        )


class Reference:
    """The averages and their combination, written out."""

    def __init__(self) -> None:
        self.averages: dict[str, Tensor] = {}
        self.counts = dict.fromkeys(TASKS, 0)

    def step(self, gradients: Mapping[str, Tensor]) -> Tensor:
        for task, gradient in gradients.items():
            before = self.averages.get(task, torch.zeros_like(gradient))
            self.averages[task] = BETA * before + (1 - BETA) * gradient
            self.counts[task] += 1
        if min(self.counts.values()) == 0:
            return torch.zeros_like(next(iter(self.averages.values())))
        rows = torch.stack([self.averages[task] / (1 - BETA ** self.counts[task]) for task in TASKS])
        units = rows / rows.norm(dim=1, keepdim=True)
        direction = torch.linalg.pinv(units) @ torch.ones(len(rows), dtype=rows.dtype)
        unit = direction / direction.norm()
        return (rows @ unit).sum() * unit


def gradients_of(net: Net, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        task: torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(net.trunk.parameters()), retain_graph=True)]
        )
        for task, loss in losses.items()
    }


@pytest.mark.parametrize("forked", [False, True], ids=["no fork", "whole trunk"])
def test_tasks_take_turns(forked: bool):
    net, reference = Net(), Reference()
    balancer = net.make(forked)
    for step in range(20):
        losses, turn = net.losses(step, forked), TASKS[step % len(TASKS)]
        expected = reference.step(gradients_of(net, {turn: losses[turn]}))
        net.zero_grad()
        balancer(losses).backward()
        torch.testing.assert_close(net.gradient(), expected, rtol=1e-9, atol=1e-12)
        trained = [task for task, head in zip(TASKS, net.heads, strict=True) if head.weight.grad is not None]
        assert trained == [turn]


@pytest.mark.parametrize("listed", [False, True], ids=["module", "parameters"])
def test_a_parameter_that_the_turn_s_loss_does_not_depend_on_is_trained_too(listed: bool, recwarn):
    """As the bias of an output layer, on which a residual with derivatives alone does not depend."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1).double()
    parameters = list(net.parameters())
    balancer = MomentumConFIG(None, wrt=parameters if listed else net, tasks=["residual", "boundary"], beta=BETA)
    averages, counts = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in range(6):
        turn = step % 2
        boundary = (net(torch.randn(5, 3, dtype=torch.float64)) - 1).square().mean()
        losses = {"residual": (net.weight - 2).square().sum(), "boundary": boundary}
        row = torch.zeros(4, dtype=torch.float64)
        found = torch.autograd.grad(losses[balancer.tasks[turn]], parameters, retain_graph=True, allow_unused=True)
        row[:3], row[3] = found[0].flatten(), 0.0 if found[1] is None else found[1].item()
        averages[turn] = BETA * averages[turn] + (1 - BETA) * row
        counts[turn] += 1
        net.zero_grad()
        balancer(losses).backward()
        assert net.bias.grad is not None
        if step:
            corrected = averages / (1 - BETA**counts).unsqueeze(1)
            weights = conflict_free(corrected @ corrected.mT)
            expected = weights @ corrected
            torch.testing.assert_close(net.weight.grad.flatten(), expected[:3])
            torch.testing.assert_close(net.bias.grad, expected[3:])
    assert not [each for each in recwarn if "depends any more" in str(each.message)]


@pytest.mark.parametrize("forked", [False, True], ids=["no fork", "whole trunk"])
def test_a_dict_says_whose_turn_it_is(forked: bool):
    net, reference = Net(), Reference()
    balancer = net.make(forked)
    for step, given in enumerate(("a", "bc", "b", "ac", "c", "a", "ab")):
        losses = {task: loss for task, loss in net.losses(step, forked).items() if task in given}
        expected = reference.step(gradients_of(net, losses))
        net.zero_grad()
        balancer(losses).backward()
        torch.testing.assert_close(net.gradient(), expected, rtol=1e-9, atol=1e-12)
    assert balancer.turn == 0


def test_without_turns_all_averages_are_renewed():
    net, reference = Net(), Reference()
    balancer = net.make(False, takes_turns=False)
    for step in range(6):
        losses = net.losses(step, False)
        expected = reference.step(gradients_of(net, losses))
        net.zero_grad()
        balancer(losses).backward()
        torch.testing.assert_close(net.gradient(), expected, rtol=1e-9, atol=1e-12)


def test_turns_are_saved():
    one, other = Net(), Net()
    balancer = one.make(False)
    for step in range(4):
        balancer(one.losses(step, False)).backward()
    resumed = other.make(False)
    resumed.load_state_dict(balancer.state_dict())
    assert resumed.turn == 1
    for step in range(4, 9):
        for net, each in ((one, balancer), (other, resumed)):
            net.zero_grad()
            each(net.losses(step, False)).backward()
        assert torch.equal(one.gradient(), other.gradient())


def test_a_step_that_is_not_finite_takes_a_turn_and_changes_no_average():
    net = Net()
    balancer = net.make(False)
    for step in range(3):
        balancer(net.losses(step, False)).backward()
    before = {name: buffer.clone() for name, buffer in balancer.named_buffers() if name != "last_weights"}
    balancer({task: loss * float("nan") for task, loss in net.losses(3, False).items()}).backward()
    after = dict(balancer.named_buffers())
    assert all(after[name].equal(value) for name, value in before.items())
    assert balancer.turn == 1


def test_only_one_loss_is_differentiated():
    net, calls = Net(), []
    balancer = net.make(False)
    losses = net.losses(0, False)
    for task, loss in losses.items():
        loss.grad_fn.register_hook(lambda *_, task=task: calls.append(task))  # type: ignore[union-attr]
    balancer(losses).backward()
    assert set(calls) == {"a"}


def test_losses_as_one_tensor_take_turns_too():
    net = Net()
    balancer = net.make(False)
    for step in range(4):
        net.zero_grad()
        balancer(torch.stack(list(net.losses(step, False).values()))).backward()
    trained = [head.weight.grad is not None and bool(head.weight.grad.any()) for head in net.heads]
    assert trained == [True, False, False]


def test_one_task_is_adams_first_moment():
    net = Net()
    balancer = MomentumConFIG(None, net.trunk, tasks=["a"], beta=BETA)
    average = 0.0
    for step in range(4):
        loss = net.losses(step, False)["a"]
        average = BETA * average + (1 - BETA) * gradients_of(net, {"a": loss})["a"]
        net.zero_grad()
        balancer({"a": loss}).backward()
        torch.testing.assert_close(net.gradient(), average / (1 - BETA ** (step + 1)))


def test_weights_are_configs_of_the_corrected_averages():
    net, reference = Net(), Reference()
    balancer = net.make(False)
    for step in range(7):
        losses = net.losses(step, False)
        reference.step(gradients_of(net, {(t := TASKS[step % 3]): losses[t]}))
        balancer(losses).backward()
    rows = torch.stack([reference.averages[task] for task in TASKS])
    corrections = torch.tensor([1 / (1 - BETA ** reference.counts[task]) for task in TASKS], dtype=rows.dtype)
    corrected = rows * corrections[:, None]
    torch.testing.assert_close(balancer.weights, corrections * conflict_free(corrected @ corrected.T))


def test_a_call_without_a_backward_pass_takes_no_turn():
    net = Net()
    balancer = net.make(False)
    balancer(net.losses(0, False))  # its backward pass never comes
    losses = net.losses(1, False)
    balancer({"b": losses["b"]}).backward()
    assert balancer.turn == 0
