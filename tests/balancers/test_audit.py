"""The first step checks that task i's loss reaches the trunk only through alias i, and names a task that doesn't."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, ForkError, GradientBalancer, GradNorm, PCGrad
from balancers.engine.classes import gradients

X = torch.linspace(-1, 1, 15).view(5, 3)
NAMES = ["depth", "normals", "edges"]


class Net(nn.Module):
    """Three equal heads on a trunk of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fork = Fork(3)
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.batched = nn.Parameter(torch.randn(3, 4, 2) / 2)

    def features(self) -> tuple[Tensor, ...]:
        return self.fork(self.trunk(X))

    def losses(self, x: Tensor = X) -> list[Tensor]:
        return [head(z).square().mean() for head, z in zip(self.heads, self.fork(self.trunk(x)), strict=True)]

    def batched_losses(self) -> Tensor:
        return torch.bmm(torch.stack(self.features()), self.batched).square().mean((1, 2))


Losses = Callable[[Net], Sequence[Tensor] | dict[str, Tensor] | Tensor]


def swapped(net: Net):
    first, second, third = net.losses()
    return [second, first, third]


def swapped_batched(net: Net):
    return net.batched_losses()[[1, 0, 2]]


def swapped_batched_list(net: Net):
    first, second, third = net.batched_losses().unbind()
    return [first, third, second]


def same_loss_twice(net: Net):
    first, _, third = net.losses()
    return [first, first, third]


def head_feeds_another(net: Net):
    outputs = [head(z) for head, z in zip(net.heads, net.features(), strict=True)]
    outputs[1] = outputs[1] + outputs[0]
    return [output.square().mean() for output in outputs]


def heads_feed_each_other(net: Net):
    first, second, third = (head(z) for head, z in zip(net.heads, net.features(), strict=True))
    return [output.square().mean() for output in (first + second.tanh(), second + first.tanh(), third)]


def consistency_term(net: Net):
    losses = net.losses()
    losses[2] = losses[2] + 0.1 * losses[0]
    return losses


def skip_around(net: Net):
    first = net.trunk[0](X)
    z = net.fork(net.trunk[2](first))
    outputs = [net.heads[0](z[0]), net.heads[1](z[1]) + first, net.heads[2](z[2])]
    return [output.square().mean() for output in outputs]


def trunk_weight_in_head(net: Net):
    z = net.features()
    outputs = [net.heads[0](z[0]), net.heads[1](z[1]), z[2] @ net.trunk[2].weight.T]
    return [output.square().mean() for output in outputs]


def shared_head_weight(net: Net):
    z = net.features()
    outputs = [net.heads[0](z[0]), net.heads[1](z[1]), net.heads[1](z[2])]
    return [output.square().mean() for output in outputs]


def penalty_on_trunk(net: Net):
    losses = net.losses()
    losses[0] = losses[0] + 1e-3 * net.trunk[0].weight.square().sum()
    return losses


def misses_its_alias(net: Net):
    losses = net.losses()
    losses[1] = net.heads[1](torch.ones(4)).square().mean()
    return losses


def own_trunk_pass(net: Net):
    losses = net.losses()
    losses[1] = net.heads[1](net.trunk(X)).square().mean()
    return losses


def no_fork(net: Net):
    return [head(net.trunk(X)).square().mean() for head in net.heads]


REFUSED: list[tuple[Losses, list[str]]] = [
    (swapped, ["'depth'", "'normals'", "in the order of the fork's aliases"]),
    (lambda net: torch.stack(swapped(net)), ["'depth'", "'normals'"]),
    (lambda net: dict(zip(NAMES, swapped(net), strict=True)), ["'depth'", "'normals'"]),
    (swapped_batched, ["'depth'", "'normals'"]),
    (swapped_batched_list, ["'normals'", "'edges'"]),
    (same_loss_twice, ["'normals'", "'depth'"]),
    (head_feeds_another, ["'normals'", "'depth'", "no head read another head's features"]),
    (heads_feed_each_other, ["'depth'", "'normals'", "no head read another head's features"]),
    (consistency_term, ["'edges'", "'depth'"]),
    (skip_around, ["'normals'", "around the fork", "skip", "through the fork"]),
    (trunk_weight_in_head, ["'edges'", "(4, 4)", "tied weights"]),
    (shared_head_weight, ["'normals'", "'edges'", "share", "after the fork"]),
    (penalty_on_trunk, ["'depth'", "(4, 3)", "penalty", "the loss that the balancer returns"]),
    (misses_its_alias, ["'normals'", "does not depend on the features"]),
    (own_trunk_pass, ["'normals'", "around the fork"]),
    (no_fork, ["no features of this step went through this balancer's fork"]),
]


@pytest.mark.parametrize("method", [GradNorm, PCGrad])
def test_a_balancer_that_was_made_after_the_forward_pass(method: type[GradientBalancer]):
    """The true cause alone is told; a model without its fork, run afterwards, is another matter."""
    net = Net()
    losses = net.losses()
    balancer = method(net.fork)
    for late in (losses, [loss * 2 for loss in losses]):
        with pytest.raises(ForkError, match="made after the forward pass") as caught:
            balancer(late)
        assert "copied" not in str(caught.value)
    with pytest.raises(ForkError, match="no features of this step"):
        balancer(no_fork(net))
    balancer(net.losses()).backward()


def test_heads_that_all_work_in_place_are_the_one_cause_that_is_told():
    net = Net()
    balancer = GradNorm(net.fork)
    losses = [head(z.relu_()).square().mean() for head, z in zip(net.heads, net.fork(net.trunk(X)), strict=True)]
    with pytest.raises(ForkError, match=r"in place.*returns a new tensor$"):
        balancer(losses)


@pytest.mark.parametrize("features", [False, True], ids=["layer", "features"])
@pytest.mark.parametrize("case", range(len(REFUSED)), ids=lambda i: REFUSED[i][0].__name__)
def test_refused(case: int, features: bool):
    losses, words = REFUSED[case]
    net = Net()
    balancer = GradNorm(net.fork, wrt=None if features else net.trunk[2], tasks=NAMES)
    with pytest.raises(ForkError) as caught:
        balancer(losses(net))
    for word in words:
        assert word in str(caught.value)


def test_refused_without_names():
    net = Net()
    with pytest.raises(ForkError, match=r"the loss of task 0 .* task 1"):
        GradNorm(net.fork)(swapped(net))


def test_refused_step_leaves_the_state():
    net = Net()
    balancer = GradNorm(net.fork)
    before = {key: value.clone() for key, value in balancer.named_buffers()}
    for _ in range(2):  # a refused step does not count: the next one is audited too
        with pytest.raises(ForkError):
            balancer(swapped(net))
    assert all(value.equal(before[key]) for key, value in balancer.named_buffers())
    balancer(net.losses()).backward()


def wrt_head(net: Net):
    return net.heads[1]


def wrt_partly_head(net: Net):
    return [net.trunk[2].weight, net.heads[0].weight]


def wrt_other_model(net: Net):
    return nn.Linear(7, 2)


def wrt_everything(net: Net):
    return net


@pytest.mark.parametrize("wrt", [wrt_head, wrt_partly_head, wrt_other_model, wrt_everything])
def test_wrt_not_upstream(wrt: Callable[[Net], nn.Module | list[nn.Parameter]]):
    net = Net()
    with pytest.raises(ForkError, match=r"wrt holds a parameter of shape \(.*upstream of the fork"):
        GradNorm(net.fork, wrt=wrt(net))(net.losses())


def frozen_trunk_part(net: Net):
    net.trunk[0].requires_grad_(False)
    return net.losses()


def frozen_head(net: Net):
    net.heads[1].requires_grad_(False)
    return net.losses()


def eval_model(net: Net):
    """Set the model to eval mode, in which a fork is read as in training."""
    net.eval()
    return net.losses()


def same_input_in_head(net: Net):
    """Let all heads read an input that does not pass the trunk."""
    z = net.features()
    return [head(torch.tanh(each) + X[:, :1]).square().mean() for head, each in zip(net.heads, z, strict=True)]


def partly_batched(net: Net):
    """Compute two heads as one product, and the third separately."""
    z = net.features()
    pair = torch.bmm(torch.stack(z[:2]), net.batched[:2]).square().mean((1, 2))
    return [*pair.unbind(), net.heads[2](z[2]).square().mean()]


def flat_batched_loss(net: Net):
    """Give one task a gradient that is zero in this step."""
    return net.batched_losses() * torch.tensor([1.0, 0.0, 1.0])


def detached_alias(net: Net):
    """Let all heads read another head's features, but without a gradient."""
    z = net.features()
    return [head(each + z[0].detach()).square().mean() for head, each in zip(net.heads, z, strict=True)]


PASSING: list[Losses] = [
    lambda net: net.losses(),
    lambda net: torch.stack(net.losses()),
    lambda net: torch.stack(net.losses()) * torch.tensor([1.0, 2.0, 3.0]),
    lambda net: torch.cat([loss.view(1) for loss in net.losses()]),
    lambda net: dict(zip(NAMES[::-1], net.losses()[::-1], strict=True)),
    lambda net: dict(zip(NAMES[:2], net.losses()[:2], strict=True)),
    lambda net: net.batched_losses(),
    lambda net: list(net.batched_losses().unbind()),
    lambda net: [net.batched_losses()[i] for i in range(3)],
    lambda net: dict(zip(NAMES[1:], net.batched_losses()[1:], strict=True)),
    frozen_trunk_part,
    frozen_head,
    eval_model,
    same_input_in_head,
    partly_batched,
    flat_batched_loss,
    detached_alias,
]


@pytest.mark.parametrize("features", [False, True], ids=["layer", "features"])
@pytest.mark.parametrize("case", range(len(PASSING)), ids=lambda i: PASSING[i].__name__)
def test_passes(case: int, features: bool):
    net = Net()
    balancer = GradNorm(net.fork, wrt=None if features else net.trunk[2], tasks=NAMES)
    balancer(PASSING[case](net)).backward()
    assert not balancer.next_weights.equal(torch.ones(3))


@pytest.mark.parametrize("form", [lambda losses: losses, lambda losses: list(losses.unbind())], ids=["tensor", "list"])
def test_batched_heads_are_measured_like_single_ones(form):
    net = Net().double()
    x = X.double()
    one, other = (GradNorm(net.fork, wrt=net.trunk[2]) for _ in range(2))
    heads = net.batched.detach().unbind()
    one([(z @ head).square().mean() for head, z in zip(heads, net.fork(net.trunk(x)), strict=True)]).backward()
    batched = torch.bmm(torch.stack(net.fork(net.trunk(x))), net.batched).square().mean((1, 2))
    other(form(batched)).backward()
    torch.testing.assert_close(other.statistics["gradient_norms"], one.statistics["gradient_norms"])


def test_losses_that_share_nothing():
    """Without a fork there is nothing to check: here each parameter in wrt belongs to one task."""
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    balancer = GradNorm(None, wrt=[*first.parameters(), *second.parameters()], tasks=2)
    x = torch.ones(3, 2)
    balancer([first(x).square().mean() + 1, second(x).square().mean() + 1]).backward()
    assert balancer.next_weights.isfinite().all()
    assert balancer.statistics["gradient_norms"].gt(0).all()


def test_audit_on_demand():
    """The first step is audited automatically; a later one if `audit` is called."""
    net = Net()
    balancer = GradNorm(net.fork, tasks=NAMES)
    balancer(net.losses()).backward()
    balancer.audit(net.losses())
    with pytest.raises(ForkError, match="'depth'"):
        balancer.audit(swapped(net))


def test_a_later_step_that_misses_the_fork():
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.trunk[2])
    balancer(net.losses()).backward()
    before = {key: value.clone() for key, value in balancer.named_buffers() if key != "last_weights"}
    with pytest.raises(ForkError, match="no features of this step went through this balancer's fork"):
        balancer(no_fork(net)).backward()
    assert all(balancer.get_buffer(key).equal(value) for key, value in before.items())
    balancer(net.losses()).backward()


def test_a_task_is_checked_when_it_first_comes():
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.trunk[2], tasks=NAMES)
    balancer(dict(zip(NAMES[1:], net.losses()[1:], strict=True))).backward()
    with pytest.raises(ForkError, match=r"'depth'.*around the fork"):
        balancer(dict(zip(NAMES, penalty_on_trunk(net), strict=True)))


class Skip(Net):
    """Heads that also read what the first layer returns, around the fork."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def losses(self, x: Tensor = X) -> list[Tensor]:
        hidden = self.trunk[1](self.trunk[0](x))
        aliases = self.fork(self.trunk[2](hidden))
        rows = [torch.cat([z, hidden], 1) for z in aliases]
        return [head(row).square().mean() for head, row in zip(self.heads, rows, strict=True)]


@pytest.mark.parametrize("method", [GradNorm, PCGrad])
def test_a_layer_is_checked_when_it_is_first_trained(method: type[GradientBalancer]):
    net = Skip()
    net.trunk[0].requires_grad_(False)
    balancer = method(net.fork, wrt=net.trunk)
    balancer(net.losses()).backward()
    net.trunk[0].requires_grad_(True)
    with pytest.raises(ForkError, match="around the fork"):
        balancer(net.losses())
    net.trunk[0].requires_grad_(False)
    balancer(net.losses()).backward()


def test_a_layer_that_is_trained_by_turns_is_checked_once(monkeypatch: pytest.MonkeyPatch):
    checked = []
    monkeypatch.setattr(gradients, "audit", lambda *arguments: checked.append(arguments))
    net = Net()
    balancer = GradNorm(net.fork, wrt=net.trunk)
    for step in range(6):
        net.trunk[0].requires_grad_(step % 2 == 1)
        balancer(net.losses()).backward()
    assert len(checked) == 2
