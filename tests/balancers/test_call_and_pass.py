"""What may come between a call of a balancer and its backward pass: other calls, a loaded state, a changed tensor."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from balancers import FAMO, MGDA, GradNorm, LossBalancer, Read, Result, State, UncertaintyWeighting
from balancers.engine import state
from balancers.engine.classes.base import DROPPED
from balancers.engine.loss_input import Entries

from .nets import Net, build, inputs, losses_of


class Ahead(LossBalancer):
    """Counts its updates, each before a step."""

    name, summary, when = "count-ahead", "Count updates.", "forward"
    count: Tensor = state(shape="")

    def look(self, read: Read, losses: Entries, given: tuple[bool, ...] | None) -> None:
        """Read nothing but the losses."""

    def weigh(self) -> Tensor:
        return torch.ones(2)

    def update(self, state: State) -> Result:
        return Result(state={"count": state["count"] + 1})


class Means(LossBalancer):
    """Shows the mean losses of a window."""

    name, summary = "mean-losses", "Show mean losses."

    def weigh(self) -> Tensor:
        return torch.ones(2)

    def update(self, read: Read) -> Result:
        return Result(statistics={"means": read.losses})


def two() -> list[Tensor]:
    return [torch.ones((), requires_grad=True) for _ in range(2)]


def called(net: Net, balancer: LossBalancer, t: int) -> Tensor:
    x = inputs("linear", 12)[t]
    return balancer(losses_of(net(x), x))


def test_two_calls_before_their_passes_learn_every_second_window() -> None:
    """The pass of a call that measured nothing is not learnt from, and measuring goes on."""
    net = build("linear")
    balancer = GradNorm(net.fork, update_every=2)
    called(net, balancer, 0).backward()
    assert balancer.optimizer_steps == 1
    for t in (1, 3, 5, 7, 9):
        first, second = called(net, balancer, t), called(net, balancer, t + 1)
        first.backward()
        second.backward()
    assert balancer.optimizer_steps > 2
    balancer.state_dict()
    balancer.close_window()


def test_windows_with_measured_and_other_passes_are_not_learnt_from() -> None:
    net = build("linear")
    balancer = GradNorm(net.fork, update_every=2, accumulate=2)
    totals = [called(net, balancer, 0)]
    for t in range(1, 12):  # each pass comes after the next call
        totals.append(called(net, balancer, t))
        totals.pop(0).backward()
    assert balancer.next_weights.isfinite().all()
    assert balancer.optimizer_steps >= 1


@pytest.mark.parametrize("change", ["load", "reset"])
def test_an_update_before_a_step_does_not_outlive_a_loaded_state(change: str) -> None:
    balancer = Ahead(2)
    saved = copy.deepcopy(balancer.state_dict())
    saved["count"].fill_(100)
    total = balancer(two())
    if change == "load":
        balancer.load_state_dict(saved)
    else:
        balancer.reset_parameters()
    total.backward()
    assert balancer.count == (100 if change == "load" else 0)
    balancer(two()).backward()
    assert balancer.count == (101 if change == "load" else 1)


@pytest.mark.parametrize("update_every", [1, 2])
@pytest.mark.parametrize("method", [GradNorm, MGDA])
def test_a_pass_of_a_call_before_a_state_was_loaded_changes_nothing(method: type, update_every: int) -> None:
    net = build("linear")
    balancer = method(net.fork, update_every=update_every)
    saved = copy.deepcopy(balancer.state_dict())
    called(net, balancer, 0).backward()
    total = called(net, balancer, 1)
    balancer.load_state_dict(saved)
    total.backward()
    assert all(torch.equal(value, saved[name]) for name, value in balancer.state_dict().items())
    called(net, balancer, 2).backward()
    assert not torch.equal(balancer.last_weights, saved["last_weights"]) or balancer.optimizer_steps == 1


@pytest.mark.parametrize("form", ["list", "tensor"])
def test_losses_that_the_caller_changes_later_were_read_before(form: str) -> None:
    balancer, parameter = Means(2, accumulate=2), nn.Parameter(torch.ones(2))
    running = torch.zeros(2)
    for number in (1.0, 2.0):
        losses = parameter * number
        running = losses.detach() if number == 1 else running.add_(losses.detach())
        balancer(losses if form == "tensor" else list(losses)).backward()
    assert balancer.statistics["means"].tolist() == [1.5, 1.5]
    assert balancer.statistics["losses"].tolist() == [2.0, 2.0]


def test_a_copy_made_in_a_held_block_holds_nothing() -> None:
    balancer = UncertaintyWeighting(2, lr=0.5)
    with balancer.held():
        balancer([3 * loss for loss in two()]).backward()
        other = copy.deepcopy(balancer)
    before = other.weights
    for _ in range(2):
        other([3 * loss for loss in two()]).backward()
    assert not torch.equal(other.weights, before)
    with other.held():
        pass


def test_a_warning_names_the_line_of_the_caller() -> None:
    """Whether it is given in a call or, as the second one, in a backward pass."""
    looks_again, followed = FAMO(2), UncertaintyWeighting(2)
    followed.follow(torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(DROPPED + 2):
            looks_again(two()).backward()
            followed(two()).backward()
    found = {str(each.message).split(" ")[0].rstrip(":"): each.filename for each in caught}
    assert found == {"famo": __file__, "uncertainty": __file__}
