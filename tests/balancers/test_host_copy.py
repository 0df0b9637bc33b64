"""`HostCopy` brings a GPU boolean to the CPU without waiting, and no step's result depends on when it arrives."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from balancers import GradNorm, LinearHeads
from balancers.engine.host_copy import HostCopy

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
COPIES = pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"]
)


class Net(nn.Module):
    """A trunk and three heads, with losses of different scales."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 4)
        self.heads = LinearHeads(3, 4, 2)

    def losses(self, seed: int = 0, factor: float = 1.0) -> list[Tensor]:
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
        outputs = self.heads(self.trunk(x)).unbind(-2)
        return [factor * (i + 1) * (own - 1).square().mean() for i, own in enumerate(outputs)]


@pytest.mark.parametrize("value", [True, False])
def test_from_the_cpu_at_once(value: bool):
    assert HostCopy(torch.tensor(value)).is_true() is value


def test_what_it_was_then():
    """The value is that of the time it was read, even if its buffer is reused later."""
    values = torch.tensor([False, True])
    later = HostCopy(values.any())
    values.zero_()
    assert later.is_true()


@pytest.mark.parametrize("value", [True, False])
@COPIES
def test_a_copy_knows_it_too(value: bool, copied: Callable[[HostCopy], HostCopy]):
    assert copied(HostCopy(torch.tensor(value))).is_true() is value


def test_from_other_devices_never():
    assert HostCopy(torch.empty((), dtype=torch.bool, device="meta")).is_true() is False


@CUDA
@pytest.mark.parametrize("value", [True, False])
def test_from_cuda_after_a_while(value: bool):
    """Polling does not wait; the answer is known once the device has computed it."""
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)  # keeps the device busy for tens of milliseconds before the value
    later = HostCopy(torch.full((), value, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert later.is_true() is False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert later.is_true() is value


@CUDA
@COPIES
def test_a_copy_from_cuda(copied: Callable[[HostCopy], HostCopy]):
    assert copied(HostCopy(torch.ones((), dtype=torch.bool, device="cuda"))).is_true()


# With `freeze_after`, GradNorm uses `HostCopy` to learn that its weights are fixed, so that it need not measure on.


class Never(HostCopy):
    """A value on a device whose answers never arrive."""

    def is_true(self) -> bool:
        return False


def named(losses: list[Tensor], *tasks: str) -> dict[str, Tensor]:
    return {task: loss for task, loss in zip("abc", losses, strict=True) if task in tasks}


def run(later: type[HostCopy], monkeypatch: pytest.MonkeyPatch, finite: bool) -> tuple[GradNorm, list[bool]]:
    """Return the balancer after steps in which a task starts late, and whether each step was measured.

    If not ``finite``, the first loss of the late task is infinite.
    """
    monkeypatch.setattr("balancers.engine.classes.gradients.HostCopy", later)
    net = Net()
    balancer = GradNorm(net.heads.fork, wrt=net.trunk, tasks=list("abc"), freeze_after=4)
    measured = []
    for t, tasks in enumerate(["ab", "ab", "abc", "bc", "abc", "abc", "abc"]):
        losses = net.losses(t, 1.0 if finite or t != 2 else float("inf"))
        measured.append(net.heads.fork.reading.recording)
        balancer(named(losses, *tasks)).backward()
    return balancer, measured


@pytest.mark.parametrize("finite", [True, False])
def test_gradnorm_does_the_same_whenever_it_hears(monkeypatch: pytest.MonkeyPatch, finite: bool):
    told, measured = run(HostCopy, monkeypatch, finite)
    never, always = run(Never, monkeypatch, finite)
    for (key, value), found in zip(told.named_buffers(), never.buffers(), strict=True):
        assert found.equal(value), key
    assert told.next_weights.ne(1).all()
    assert told.optimizer_steps == 4
    assert measured == [t < (4 if finite else 5) for t in range(7)]
    assert all(always)


def test_initial_losses_are_each_tasks_first():
    """A step that is not finite does not count, and a task's initial loss never changes."""
    net = Net()
    balancer = GradNorm(net.heads.fork, wrt=net.trunk, tasks=list("abc"))
    first: dict[str, Tensor] = {}
    for t, (tasks, factor) in enumerate([("ab", float("nan")), ("ab", 1.0), ("a", 2.0), ("abc", 3.0), ("abc", 4.0)]):
        losses = named(net.losses(t, factor), *tasks)
        balancer(losses).backward()
        for task, loss in losses.items():
            if t > 0:
                first.setdefault(task, loss.detach())
        expected = [first.get(task, torch.zeros(())) for task in "abc"]
        torch.testing.assert_close(balancer.initial_losses, torch.stack(expected), rtol=0, atol=0)


@COPIES
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_copied_network_with_its_balancer(steps: int, copied: Callable[[nn.ModuleList], nn.ModuleList]):
    """A copy continues as the original does, also right after a step, when an answer may still be on its way."""
    net = Net()
    balancer = GradNorm(net.heads.fork, wrt=net.trunk, tasks=3)
    for t in range(steps):
        balancer(net.losses(t)).backward()
    other_net, other = copied(nn.ModuleList([net, balancer]))
    for t in range(steps, steps + 3):
        for model, its in ((net, balancer), (other_net, other)):
            its(model.losses(t)).backward()
    for (key, value), found in zip(balancer.named_buffers(), other.buffers(), strict=True):
        assert found.equal(value), key


@CUDA
def test_a_step_never_waits_for_the_device():
    net = Net().cuda()
    balancer = GradNorm(net.heads.fork, wrt=net.trunk)
    x = [torch.randn(6, 5, device="cuda") for _ in range(6)]
    balancer((net.heads(net.trunk(x[0])) - 1).square().mean((0, 2))).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in x[1:]:
            balancer((net.heads(net.trunk(each)) - 1).square().mean((0, 2))).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert balancer.initial_losses.gt(0).all()
