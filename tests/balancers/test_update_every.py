"""With ``update_every=k`` the weights change at every k-th window only, and the windows between are not measured."""

import copy

import pytest
import torch
from torch import Tensor, nn

from balancers import EqualWeighting, GradNorm, LinearHeads, LossBalancer, create
from balancers.engine.measuring import vector_jacobian
from bench.cost.operation_count import count

from .integration import (
    SCALES,
    WRT,
    GradNormReference,
    Net,
    Training,
    assert_bit_equal,
    assert_same,
    in_parts,
    joint,
    make_batches,
    run_balancer,
    run_reference,
)

pytestmark = pytest.mark.on_device

EVERY_WRT = pytest.mark.parametrize("wrt", WRT)


class Every(GradNormReference):
    """Algorithm 1 by double backward, at every k-th step; the weights hold in between."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k, self.step = k, 0

    def update(self, losses: Tensor, measured: list[Tensor]) -> None:
        if self.step % self.k == 0:
            super().update(losses, measured)
        self.step += 1


def gradnorm(net: Net, wrt: str = "layer", **options: object) -> GradNorm:
    return GradNorm(**net.wrt(wrt) | options)


def is_plain(net: Net) -> bool:
    """Return whether the fork hands out the features themselves."""
    z = torch.zeros(1, requires_grad=True)
    return all(alias is z for alias in net.fork(z))


# Results


@EVERY_WRT
@pytest.mark.parametrize("k", [1, 2, 3])
def test_is_the_papers_at_every_kth_step(k: int, wrt: str):
    windows = in_parts(make_batches(12), 1)
    found = run_balancer(net := Net(), gradnorm(net, wrt, update_every=k), windows)
    assert_same(found, run_reference(Net(), Every(k), windows, wrt))
    changes = (found.weights[1:] != found.weights[:-1]).any(1).tolist()  # step t updates the weights of step t+1
    assert changes == [t % k == 0 for t in range(11)]


@pytest.mark.parametrize("wrt", ["layer", "parameters"])
def test_windows_of_two_passes(wrt: str):
    """Every third window is measured in both its passes."""
    windows = in_parts(make_batches(20), 2)
    found = run_balancer(net := Net(), gradnorm(net, wrt, update_every=3, accumulate=2), windows)
    assert_same(found, run_reference(Net(), Every(3), joint(windows), wrt))


@EVERY_WRT
def test_statistics_are_those_of_the_last_measured_step(wrt: str):
    net = Net()
    balancer = gradnorm(net, wrt, update_every=3)
    for t, batch in enumerate(make_batches(7)):
        before = dict(balancer.statistics)
        losses = net.losses(batch)
        balancer(losses).backward()
        assert_bit_equal(balancer.statistics["losses"], torch.stack(losses).detach())
        for key in ("gradient_norms", "loss_ratios", "targets"):
            if t % 3 == 0:
                assert t == 0 or not balancer.statistics[key].equal(before[key])
            else:
                assert_bit_equal(balancer.statistics[key], before[key])


# Cost


@pytest.mark.parametrize("wrt", ["layer", "features"])
def test_the_fork_is_plain_in_between(wrt: str):
    net = Net()
    balancer = gradnorm(net, wrt, update_every=3, accumulate=2)
    plain = []
    for batch in make_batches(14):
        plain.append(is_plain(net))
        balancer(net.losses(batch)).backward()
    assert plain == [window % 3 != 0 for window in range(7) for _ in range(2)]


@EVERY_WRT
def test_nothing_is_differentiated_in_between(wrt: str, monkeypatch: pytest.MonkeyPatch):
    net = Net("dropout")  # a layer without a closed form
    balancer = gradnorm(net, wrt, update_every=3)
    seen, grad = list[object](), vector_jacobian.gradients_at
    net.trunk[-1][0].weight.register_hook(seen.append)
    monkeypatch.setattr(vector_jacobian, "gradients_at", lambda *arguments: seen.append(arguments) or grad(*arguments))
    passes = []
    for batch in make_batches(7):
        seen.clear()
        balancer(net.losses(batch)).backward()
        passes.append(len(seen))
    measured = 1 if wrt == "features" else 1 + len(SCALES)
    assert passes == [measured if t % 3 == 0 else 1 for t in range(7)]


@pytest.mark.parametrize("wrt", ["layer", "features"])
def test_linear_heads_are_one_product_in_between(wrt: str):
    """A step between updates costs what equal weighting costs, and so does the first after an update."""
    heads = LinearHeads(10, 4, 2)
    layer = nn.Linear(5, 4)
    x = torch.randn(6, 5)

    def calls(balancer: LossBalancer) -> list[int]:
        """Count the calls of steps 8, 10 and 12: a count takes two steps."""

        def step() -> None:
            layer.zero_grad()
            heads.zero_grad()
            balancer(heads(layer(x)).square().mean((0, 2))).backward()

        for _ in range(7):
            step()
        return [count(step, torch.device("cpu")).operator_calls for _ in range(3)]

    between, after_update, measured = calls(
        GradNorm(heads.fork, wrt=None if wrt == "features" else layer, update_every=3)
    )
    equal, *_ = calls(EqualWeighting(10))
    assert between == after_update == equal
    assert measured > equal + 10


# Turns


def test_a_call_that_is_no_step_takes_no_turn():
    net = Net()
    balancer = gradnorm(net, update_every=2)
    batch = make_batches(1)[0]

    def turn() -> bool:
        return not is_plain(net)

    assert turn()
    balancer.close_window()  # nothing to close
    balancer(net.losses(batch))  # never differentiated
    with torch.no_grad():
        balancer(net.losses(batch))
    balancer.eval()(net.losses(batch)).backward()
    balancer.train()
    torch.autograd.grad(balancer(net.losses(batch)), list(net.parameters()), create_graph=True)
    assert turn()
    loss = balancer(net.losses(batch))
    loss.backward(retain_graph=True)
    assert not turn()
    loss.backward()
    assert not turn()
    balancer(net.losses(batch)).backward()
    assert turn()


def test_a_short_window_is_a_window():
    """It takes a turn, whether it is measured or not."""
    net = Net()
    balancer = gradnorm(net, accumulate=4, update_every=2)
    updates = []
    for batch in make_batches(5):
        for _ in range(2):
            balancer(net.losses(batch)).backward()
        before = balancer.next_weights.clone()
        balancer.close_window()
        updates.append(not balancer.next_weights.equal(before))
    assert updates == [True, False, True, False, True]


@EVERY_WRT
def test_a_step_that_is_not_finite_takes_its_turn(wrt: str):
    """The state is not updated before the next turn."""
    net = Net()
    balancer = gradnorm(net, wrt, update_every=2)
    updates = []
    for t, (x, y) in enumerate(make_batches(6)):
        balancer(net.losses((x * float("nan") if t in (1, 2) else x, y))).backward()
        updates.append(int(balancer.optimizer_steps))
    assert updates == [1, 1, 1, 1, 2, 2]
    assert balancer.next_weights.isfinite().all()


@pytest.mark.on_cpu  # another device's answer may come later
@EVERY_WRT
def test_freezes_after_a_number_of_updates(wrt: str):
    net, steps = Net(), make_batches(9)
    balancer = gradnorm(net, wrt, update_every=3, freeze_after=2)
    free = run_balancer(other := Net(), gradnorm(other, wrt, update_every=3), in_parts(steps, 1))
    weights, plain = [], []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for batch in steps:
        plain.append(is_plain(net))
        optimizer.zero_grad()
        balancer(net.losses(batch)).backward()
        optimizer.step()
        weights.append(balancer.weights)
    torch.testing.assert_close(torch.stack(weights[:7]), free.weights[:7], rtol=0, atol=1e-12)
    assert not weights[3].equal(weights[4])
    assert all(later.equal(weights[4]) for later in weights[5:])
    if wrt != "parameters":
        assert plain == [t not in (0, 3) for t in range(9)]
    averaged = balancer.average_weights().weights
    torch.testing.assert_close(averaged, (weights[0] + weights[3]) / 2, rtol=1e-12, atol=0, check_dtype=False)


# State


@pytest.mark.slow
def test_resumed_with_another_k():
    """A state saved in another cycle is measured again within k steps."""
    saved = Training.make("gradnorm", update_every=5)
    saved.run(make_batches(4))
    for k in (1, 2, 3):
        resumed = Training.make("gradnorm", update_every=k)
        resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
        before = int(resumed.balancer.optimizer_steps)
        resumed.run(make_batches(k))
        assert int(resumed.balancer.optimizer_steps) == before + 1


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_copy_is_at_the_same_place_in_its_cycle(steps: int):
    training = Training.make("gradnorm", update_every=3)
    training.run(make_batches(steps))
    other = copy.deepcopy(training)
    batches = make_batches(6)
    assert_bit_equal(torch.stack(other.run(batches)), torch.stack(training.run(batches)))


# Input


@pytest.mark.parametrize("update_every", [0, -1, 1.5, "3", None])
def test_refused(update_every: object):
    with pytest.raises(ValueError, match=f"update_every is {update_every!r}; expected a whole number, 1 or more"):
        gradnorm(Net(), update_every=update_every)


def test_by_name():
    net = Net()
    balancer = create("gradnorm", net.fork, wrt=net.trunk[-1], update_every=4)
    for batch in make_batches(5):
        balancer(net.losses(batch)).backward()
    assert balancer.update_every == 4
    assert balancer.optimizer_steps == 2
