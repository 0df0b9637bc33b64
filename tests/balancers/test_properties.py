"""What holds for every balancer, over random tasks: generated from the registry, so that a new method is tested too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from balancers import Fork, GradientBalancer, LossBalancer, create, get, names

settings.register_profile("balancers", max_examples=12, deadline=None, derandomize=True)
settings.load_profile("balancers")

OURS = [name for name in names() if get(name).__module__.startswith("balancers.")]
# A method that reads gradients is tested with each meaning of wrt.
KINDS = [(name, wrt) for name in OURS for wrt in (WRT if get(name).reads == "gradients" else [""])] if (
    WRT := ["features", "layer", "parameters"]
) else []
GRADNORM = [kind for kind in KINDS if kind[0] == "gradnorm"]
kinds = pytest.mark.parametrize("kind", KINDS, ids="-".join)
gradnorm = pytest.mark.parametrize("kind", GRADNORM, ids="-".join)

scales = st.floats(1e-2, 1e2)


def many(elements, minimum: int = 1):
    return st.lists(elements, min_size=minimum, max_size=5)


class Tasks(nn.Module):
    """Tasks on one linear layer: L_i = c_i mean((a_i z)^2)."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.fork = Fork(num_tasks)
        self.layer = nn.Linear(3, 4).double()
        self.heads = torch.randn(6, 4, 2, generator=generator, dtype=torch.float64)[:num_tasks]
        self.x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, t: int) -> list[Tensor]:
        return [(z @ head).square().mean() for head, z in zip(self.heads, self.fork(self.layer(self.x[t])), strict=True)]


def make(kind: tuple[str, str], tasks: Tasks, options: dict | None = None, **common) -> LossBalancer:
    """The method with as many tasks; ``options`` are its own, by its name."""
    name, wrt = kind
    own = (options or {}).get(name, {})
    if wrt == "parameters":
        count = common.pop("tasks", tasks.fork.num_tasks)
        return create(name, None, wrt=tasks.layer.parameters(), tasks=count, **own, **common)
    if wrt:
        return create(name, tasks.fork, wrt=tasks.layer if wrt == "layer" else None, **own, **common)
    if name == "static":
        weights = own.get("weights", [1.0 / (1 + i) for i in range(tasks.fork.num_tasks)])
        return create(name, weights, **common)
    return create(name, common.pop("tasks", tasks.fork.num_tasks), **own, **common)


def train(balancer: LossBalancer, tasks: Tasks, scales, steps: int = 4, form=list) -> Tensor:
    """The weights of each step, ``(steps, T)``, in a training that leaves the network as it is."""
    weights = []
    for t in range(steps):
        loss = balancer(form([c * loss for c, loss in zip(scales, tasks(t), strict=True)]))
        loss.backward()
        weights.append(balancer.weights.clone())
    return torch.stack(weights)


@kinds
@given(data=st.data())
def test_permuting_the_tasks_permutes_the_weights(kind, data):
    c = data.draw(many(scales, 2))
    order = data.draw(st.permutations(range(len(c))))
    likelihoods = data.draw(st.lists(st.sampled_from(["gaussian", "softmax"]), min_size=len(c), max_size=len(c)))
    own = [1.0 / (1 + i) for i in range(len(c))]
    tasks, permuted = Tasks(len(c)), Tasks(len(c))
    permuted.heads = permuted.heads[order]
    plain = make(kind, tasks, {"static": {"weights": own}, "uncertainty": {"likelihoods": likelihoods}})
    other = make(
        kind,
        permuted,
        {
            "static": {"weights": [own[i] for i in order]},
            "uncertainty": {"likelihoods": [likelihoods[i] for i in order]},
        },
    )
    weights = train(plain, tasks, c)
    torch.testing.assert_close(train(other, permuted, [c[i] for i in order]), weights[:, order], rtol=1e-9, atol=1e-12)


@kinds
@given(c=scales)
def test_one_task(kind, c):
    tasks = Tasks(1)
    balancer = make(kind, tasks)
    weights = train(balancer, tasks, [c], steps=3)
    assert weights.isfinite().all()
    if kind[0] != "uncertainty":
        torch.testing.assert_close(weights, torch.ones_like(weights))
    tasks.zero_grad()
    (expected,) = torch.autograd.grad(tasks(0)[0] * c, tasks.layer.weight)
    balancer([tasks(0)[0] * c]).backward()
    torch.testing.assert_close(tasks.layer.weight.grad, balancer.weights * expected, rtol=1e-12, atol=0)


@kinds
@given(c=many(scales, 2), data=st.data())
def test_zero_losses_and_gradients_give_finite_weights(kind, c, data):
    """A task may be done (loss and gradient are 0), or stuck (only its gradient is), from the first step or later."""
    tasks = Tasks(len(c))
    balancer = make(kind, tasks)
    for t in range(5):
        losses = [scale * loss for scale, loss in zip(c, tasks(t), strict=True)]
        for i in data.draw(st.sets(st.integers(0, len(c) - 1)), label=f"stuck at {t}"):
            losses[i] = data.draw(st.sampled_from([0.0, 1.0])) + 0 * losses[i]
        tasks.zero_grad()
        balancer(losses).backward()
        assert balancer.weights.isfinite().all()
        assert all(state.isfinite().all() for state in balancer.buffers())
        assert tasks.layer.weight.grad.isfinite().all()


@kinds
@given(c=many(scales))
def test_forms_of_losses_agree(kind, c):
    tasks = Tasks(len(c))

    def as_dict(losses):
        return {f"task {i}": loss for i, loss in reversed(list(enumerate(losses)))}

    listed, stacked, named, late = (make(kind, tasks) for _ in range(4))
    own = make(kind, tasks, tasks=[f"task {i}" for i in range(len(c))])
    weights = train(listed, tasks, c)
    for balancer, form in [(listed, list), (stacked, torch.stack), (own, as_dict), (late, tuple)]:
        other = balancer if balancer is not listed else named
        torch.testing.assert_close(train(other, tasks, c, form=form), weights, rtol=1e-12, atol=0)


@kinds
@given(c=many(scales, 2), data=st.data())
def test_a_task_left_out_keeps_its_weight(kind, c, data):
    labels = [f"task {i}" for i in range(len(c))]
    out = data.draw(st.sets(st.sampled_from(range(len(c))), min_size=1, max_size=len(c) - 1))
    tasks = Tasks(len(c))
    balancer = make(kind, tasks, tasks=labels)

    def weights_after(t: int) -> Tensor:
        return balancer.eval()(tasks(t)) is not None and balancer.train().weights.clone()

    for t in range(data.draw(st.integers(0, 2), label="steps before")):
        balancer([scale * loss for scale, loss in zip(c, tasks(t), strict=True)]).backward()
    before = weights_after(0)
    losses = {labels[i]: c[i] * loss for i, loss in enumerate(tasks(3)) if i not in out}
    total = balancer(losses)
    used = balancer.weights.clone()
    torch.testing.assert_close(total, sum(used[labels.index(task)] * loss for task, loss in losses.items()))
    total.backward()
    after = weights_after(0)
    kept = sorted(out)
    assert after[kept].equal(before[kept])
    if kind[0] == "gradnorm":
        torch.testing.assert_close(after.sum().item(), float(len(c)))
        if len(losses) > 1:
            assert not after.equal(before)


@pytest.mark.parametrize("name", ["equal", "static"])
@given(c=many(scales), k=scales)
def test_scaling_a_loss_changes_no_fixed_weight(name, c, k):
    tasks = Tasks(len(c))
    weights = train(make((name, ""), tasks), tasks, c)
    assert train(make((name, ""), tasks), tasks, [k * c[0], *c[1:]]).equal(weights)


@given(c=many(scales, 2), k=scales, likelihood=st.sampled_from(["gaussian", "softmax"]))
def test_scaling_a_loss_under_uncertainty(c, k, likelihood):
    r"""The gradient of s_i is 1/2 - share e^{-s_i} L_i: only its own loss counts, linearly."""
    tasks, lr, share = Tasks(len(c)), 1e-3, {"gaussian": 0.5, "softmax": 1.0}[likelihood]
    options = {"uncertainty": {"likelihoods": likelihood, "lr": lr, "optimizer": "sgd"}}
    plain, scaled = (make(("uncertainty", ""), tasks, options) for _ in range(2))
    for t in range(2):
        losses = [scale * loss for scale, loss in zip(c, tasks(t), strict=True)]
        before = scaled.log_variances.clone()
        plain(losses).backward()
        scaled([k * losses[0], *tasks_again(tasks, c, t)[1:]]).backward()
        value = losses[0].detach()
        torch.testing.assert_close(scaled.log_variances[1:], plain.log_variances[1:], rtol=1e-9, atol=1e-12)
        moved = scaled.log_variances - before.to(scaled.log_variances.dtype)
        expected = -lr * (0.5 - share * torch.exp(-before[0].double()) * k * value)
        torch.testing.assert_close(moved[0], expected, rtol=1e-9, atol=1e-12)


def tasks_again(tasks: Tasks, c, t: int) -> list[Tensor]:
    return [scale * loss for scale, loss in zip(c, tasks(t), strict=True)]


@gradnorm
@given(c=many(scales, 2), k=scales)
def test_scaling_a_loss_under_gradnorm(kind, c, k):
    """Its gradient norm scales; how fast it learns doesn't."""
    tasks = Tasks(len(c))
    plain, scaled = make(kind, tasks), make(kind, tasks)
    factors = torch.tensor([k] + [1.0] * (len(c) - 1), dtype=torch.float64)
    for t in range(3):
        plain(tasks_again(tasks, c, t)).backward()
        scaled(tasks_again(tasks, [k * c[0], *c[1:]], t)).backward()
        norms, scaled_norms = (b.statistics["gradient_norms"] / b.weights for b in (plain, scaled))
        torch.testing.assert_close(scaled_norms, factors * norms, rtol=1e-9, atol=0)
        ratios, scaled_ratios = (b.statistics["loss_ratios"] for b in (plain, scaled))
        torch.testing.assert_close(scaled_ratios, ratios, rtol=1e-9, atol=0)


@gradnorm
@given(
    c=many(st.floats(1e-3, 1e3)),
    alpha=st.floats(0, 3),
    lr=st.floats(1e-4, 0.3),
    optimizer=st.sampled_from(["sgd", "adam"]),
)
def test_gradnorm_weights_stay_positive_with_sum_t(kind, c, alpha, lr, optimizer):
    tasks = Tasks(len(c))
    options = {"gradnorm": {"alpha": alpha, "lr": lr, "optimizer": optimizer}}
    weights = train(make(kind, tasks, options), tasks, c, steps=5)
    torch.testing.assert_close(weights.sum(1), torch.full((5,), float(len(c)), dtype=torch.float64))
    assert (weights > 0).all()
    if optimizer == "adam":  # whose steps are about lr at most, so that renormalising can't take much of the bound
        assert (weights > 0.5e-4).all()


def test_every_method_is_here():
    assert {"equal", "static", "uncertainty", "gradnorm"} <= set(OURS)
    assert all(issubclass(get(name), GradientBalancer) == (get(name).reads == "gradients") for name in OURS)
