"""What a balancer tells a logger."""

import pytest
import torch
from torch import Tensor, nn

from balancers import FAMO, MGDA, EqualWeighting, Fork, GradNorm, LossBalancer, UncertaintyWeighting

TASKS = ("depth", "normals", "edges")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.fork = nn.Linear(4, 5), Fork(len(TASKS))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in TASKS)

    def losses(self) -> dict[str, Tensor]:
        aliases = self.fork(self.trunk(torch.ones(2, 4)))
        return {
            task: (head(z) - i).square().mean()
            for i, (task, head, z) in enumerate(zip(TASKS, self.heads, aliases, strict=True))
        }


def names_of(found: dict[str, float]) -> set[str]:
    assert all(type(value) is float for value in found.values())
    return set(found)


def test_of_a_method_that_reads_losses():
    balancer, losses = EqualWeighting(TASKS), Net().losses()
    balancer(losses).backward()
    found = balancer.scalars()
    assert names_of(found) == {f"{kind}/{task}" for kind in ("weight", "loss") for task in TASKS}
    assert found["weight/depth"] == 1.0
    assert found["loss/edges"] == pytest.approx(losses["edges"].item())


def test_of_a_method_that_reads_norms():
    net = Net()
    balancer = GradNorm(net.fork, net.trunk, tasks=TASKS)
    losses = net.losses()
    gradients = torch.autograd.grad(losses["normals"], list(net.trunk.parameters()), retain_graph=True)
    balancer(losses).backward()
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert balancer.scalars()["gradient_norm/normals"] == pytest.approx(expected, rel=1e-5)
    assert {f"loss_ratios/{task}" for task in TASKS} <= names_of(balancer.scalars())


def test_of_a_method_that_reads_inner_products():
    net = Net()
    balancer = MGDA(net.fork, net.trunk, tasks=TASKS)
    losses = net.losses()
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.trunk.parameters()), retain_graph=True)])
        for loss in losses.values()
    ]
    balancer(losses).backward()
    found = balancer.scalars()
    assert {f"cosine/{a}/{b}" for a, b in (("depth", "normals"), ("depth", "edges"), ("normals", "edges"))} <= set(
        found
    )
    assert found["cosine/depth/edges"] == pytest.approx(
        torch.nn.functional.cosine_similarity(rows[0], rows[2], dim=0).item(), rel=1e-4
    )
    assert found["gradient_norm/edges"] == pytest.approx(rows[2].norm().item(), rel=1e-5)


def test_of_a_step_without_a_task():
    net = Net()
    balancer = MGDA(net.fork, tasks=TASKS)
    balancer(net.losses()).backward()
    losses = net.losses()
    del losses["normals"]
    balancer(losses).backward()
    found = names_of(balancer.scalars())
    assert "weight/normals" in found  # it keeps its weight
    assert not any("normals" in name for name in found - {"weight/normals"})
    assert "cosine/depth/edges" in found


def test_tasks_without_names_are_numbered():
    balancer = UncertaintyWeighting(2)
    balancer([torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)]).backward()
    assert {"weight/0", "weight/1", "loss/0", "loss/1"} <= names_of(balancer.scalars())


def test_before_the_first_step():
    assert EqualWeighting(["a"]).scalars() == {"weight/a": 1.0}


def test_the_cosine_with_a_zero_gradient_is_zero():
    net = Net()
    balancer = MGDA(net.fork, tasks=TASKS)
    losses = net.losses()
    losses["edges"] = losses["edges"] * 0.0
    balancer(losses).backward()
    assert balancer.scalars()["cosine/depth/edges"] == 0
    assert balancer.scalars()["cosine/depth/normals"] != 0


def test_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch):
    net, waits = Net(), []
    balancer = MGDA(net.fork, tasks=TASKS)
    balancer(net.losses()).backward()
    for name in ("tolist", "item", "__float__", "__bool__", "cpu", "numpy"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *a, _o=original, _n=name, **k: (waits.append(_n), _o(self, *a, **k))[1]
        )
    balancer.scalars()
    assert waits == ["tolist"]


def test_of_a_method_that_looks_again():
    balancer: LossBalancer = FAMO(TASKS)
    net = Net()
    balancer(net.losses()).backward()
    assert {f"weight/{task}" for task in TASKS} <= names_of(balancer.scalars())


def test_of_a_window_whose_passes_have_one_task_each():
    net = Net()
    balancer = GradNorm(net.fork, tasks=TASKS, accumulate=3)
    for task in TASKS:
        losses = net.losses()
        balancer({task: losses[task]}).backward()
        found = balancer.scalars()
        assert [name for name in found if name.startswith("loss/")] == [f"loss/{task}"]
        assert found[f"loss/{task}"] == pytest.approx(losses[task].item())
    assert {f"gradient_norm/{task}" for task in TASKS} <= names_of(found)
