"""Methods that divide by this step's gradient norms, against their formulas in NumPy."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from balancers import Fork, ForkError, UnitNorm
from balancers.adaptive_adversarial import AdaptiveAdversarialWeight
from balancers.encodec import EnCodecBalancer
from balancers.inverse_norm import InverseGradientNorm

from .nets import build, inputs, losses_of
from .planted import Planted, draw, matrix, state
from .ranks import Ranks

# EnCodec

SHAPE = (4, 3, 2)


class Forked:
    """Features of given shapes, and losses with given gradients with respect to them, and 1 for each task's head."""

    def __init__(self, num_tasks: int, shapes: Sequence[tuple[int, ...]] = (SHAPE,)) -> None:
        self.fork = Fork(num_tasks)
        self.sources = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
        self.heads = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(num_tasks)]

    def step(
        self, balancer: EnCodecBalancer, gradients: Sequence[Tensor], tasks: str = "", scale: float = 1.0
    ) -> list[Tensor]:
        """Return the gradient of each tensor of features; only ``tasks`` have a loss, if given."""
        for parameter in (*self.sources, *self.heads):
            parameter.grad = None
        aliases = self.fork([source * 1 for source in self.sources])
        losses = [
            head + sum((z * gradient[i]).sum() for z, gradient in zip(features, gradients, strict=True))
            for i, (features, head) in enumerate(zip(aliases, self.heads, strict=True))
        ]
        named = {name: loss for name, loss in zip("abcdef", losses, strict=False) if name in tasks}
        (scale * balancer(named or losses)).backward()
        return [torch.zeros_like(source) if source.grad is None else source.grad for source in self.sources]


def drawn(num_tasks: int, generator: torch.Generator, shapes: Sequence[tuple[int, ...]] = (SHAPE,)) -> list[Tensor]:
    """Draw gradients of each tensor of features, ``(T, *shape)``, of very different lengths."""
    scales = torch.exp(2 * torch.randn(num_tasks, dtype=torch.float64, generator=generator))
    return [
        torch.randn(num_tasks, *shape, dtype=torch.float64, generator=generator) * scales.view(-1, *[1] * len(shape))
        for shape in shapes
    ]


def norms_of(gradients: Sequence[Tensor], per_batch_item: bool) -> np.ndarray:
    """Return each task's mean norm by sample, or the norm of all samples together, ``(T,)``."""
    found = []
    for i in range(len(gradients[0])):
        samples = [np.concatenate([g[i, b].numpy().ravel() for g in gradients]) for b in range(gradients[0].shape[1])]
        if per_batch_item:
            found.append(np.mean([np.linalg.norm(sample) for sample in samples]))
        else:
            found.append(np.linalg.norm(np.concatenate(samples)))
    return np.array(found)


def averaged(history: Sequence[np.ndarray], beta: float) -> np.ndarray:
    """Return the mean of norms, oldest first, in which each counts beta times less than the next."""
    ages = beta ** np.arange(len(history) - 1, -1, -1.0)
    return ages @ np.stack(history) / ages.sum()


@pytest.mark.parametrize("per_batch_item", [True, False])
@pytest.mark.parametrize("shapes", [(SHAPE,), ((4,), (4, 5), (4, 2, 2))], ids=["one tensor", "three"])
@pytest.mark.parametrize(
    ("shares", "beta", "total_norm"),
    [([1.0], 0.999, 1.0), ([1.0, 3.0, 0.5], 0.9, 2.5), ([0.0, 2.0], 1.0, 1.0), ([1.0, 1.0, 4.0, 2.0], 0.0, 0.1)],
)
def test_encodec_is_its_formula(shares, beta: float, total_norm: float, shapes, per_batch_item: bool):
    num_tasks = len(shares)
    forked = Forked(num_tasks, shapes)
    balancer = EnCodecBalancer(
        forked.fork, shares=shares, beta=beta, total_norm=total_norm, per_batch_item=per_batch_item
    )
    generator, history = torch.Generator().manual_seed(1), []
    for _ in range(50):
        gradients = drawn(num_tasks, generator, shapes)
        found = forked.step(balancer, gradients)
        history.append(norms_of(gradients, per_batch_item))
        weights = total_norm * np.array(shares) / sum(shares) / (averaged(history, beta) + 1e-12)
        np.testing.assert_allclose(balancer.weights, weights, rtol=1e-10)
        for one, gradient in zip(found, gradients, strict=True):
            np.testing.assert_allclose(one, np.einsum("t,t...->...", weights, gradient), rtol=1e-8, atol=1e-12)
        assert [head.grad.item() for head in forked.heads] == [1.0] * num_tasks


@pytest.mark.parametrize("per_batch_item", [True, False])
def test_encodec_gives_each_loss_its_share_of_the_norm_at_once(per_batch_item: bool):
    forked = Forked(3)
    options: dict[str, Any] = {"shares": {"a": 1.0, "c": 6.0, "b": 1.0}, "tasks": list("abc")}
    balancer = EnCodecBalancer(forked.fork, total_norm=4.0, per_batch_item=per_batch_item, **options)
    gradients = drawn(3, torch.Generator().manual_seed(2))
    forked.step(balancer, gradients)
    weighted = balancer.weights.numpy() * norms_of(gradients, per_batch_item)
    np.testing.assert_allclose(weighted, [0.5, 0.5, 3.0], rtol=1e-10)


def test_a_losss_scale_cancels_out_of_encodec():
    generator, scales = torch.Generator().manual_seed(3), torch.tensor([1e-5, 1.0, 1e4], dtype=torch.float64)
    one, other = Forked(3), Forked(3)
    plain, scaled = EnCodecBalancer(one.fork), EnCodecBalancer(other.fork)
    for _ in range(5):
        [gradient] = drawn(3, generator)
        [expected] = one.step(plain, [gradient])
        [found] = other.step(scaled, [gradient * scales.view(-1, 1, 1, 1)])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_scale_of_the_pass_does_not_change_encodecs_weights():
    gradients = drawn(2, torch.Generator().manual_seed(4))
    one, other = Forked(2), Forked(2)
    plain, scaled = EnCodecBalancer(one.fork), EnCodecBalancer(other.fork)
    [expected], [found] = one.step(plain, gradients), other.step(scaled, gradients, scale=1024.0)
    torch.testing.assert_close(found, 1024 * expected)
    torch.testing.assert_close(scaled.weights, plain.weights)


def test_encodec_leaves_out_a_task_and_averages_each_over_its_own_steps():
    """Unlike audiocraft, where each loss that was seen must come again."""
    forked = Forked(3)
    shares, beta = np.array([1.0, 2.0, 3.0]), 0.8
    balancer = EnCodecBalancer(forked.fork, tasks=["a", "b", "c"], shares=shares.tolist(), beta=beta)
    generator, histories = torch.Generator().manual_seed(5), [[], [], []]
    for tasks in ("ab", "ab", "abc", "bc", "c", "abc"):
        present, before = ["abc".index(task) for task in tasks], balancer.weights.double()
        gradients = drawn(3, generator)
        [found] = forked.step(balancer, gradients, tasks)
        norms, expected = norms_of(gradients, True), before.numpy()
        for i in present:
            histories[i].append(norms[i : i + 1])
            expected[i] = shares[i] / shares[present].sum() / averaged(histories[i], beta)[0]
        np.testing.assert_allclose(balancer.weights, expected, rtol=1e-10)
        rows = gradients[0][present]
        np.testing.assert_allclose(found, np.einsum("t,t...->...", expected[present], rows), rtol=1e-8, atol=1e-12)


def test_encodec_with_a_gradient_of_zero():
    forked = Forked(2)
    balancer = EnCodecBalancer(forked.fork, beta=1.0)
    generator = torch.Generator().manual_seed(6)
    [gradient] = drawn(2, generator)
    gradient[1] = 0
    [found] = forked.step(balancer, [gradient])
    assert balancer.weights[1] == 0
    torch.testing.assert_close(found, balancer.weights[0] * gradient[0])
    [later] = drawn(2, generator)
    forked.step(balancer, [later])  # the average has the zero too
    expected = 0.5 / (norms_of([later], True)[1] / 2)
    np.testing.assert_allclose(balancer.weights[1], expected, rtol=1e-10)
    assert not forked.step(EnCodecBalancer(forked.fork), [torch.zeros_like(gradient)])[0].any()


def test_encodec_where_no_task_has_a_share():
    forked = Forked(2)
    balancer = EnCodecBalancer(forked.fork, tasks=["a", "b"], shares=[0.0, 1.0])
    gradients = drawn(2, torch.Generator().manual_seed(7))
    [found] = forked.step(balancer, gradients, tasks="a")
    assert not found.any()
    assert balancer.weights[0] == 0
    [found] = forked.step(balancer, gradients)
    torch.testing.assert_close(found, balancer.weights[1] * gradients[0][1])


def test_features_with_different_numbers_of_samples():
    shapes = ((4, 3), (2, 3))
    forked, gradients = Forked(2, shapes), drawn(2, torch.Generator().manual_seed(8), shapes)
    with pytest.raises(ValueError, match="they have 2, 4: pass per_batch_item=False"):
        forked.step(EnCodecBalancer(forked.fork), gradients)
    forked = Forked(2, shapes)
    balancer = EnCodecBalancer(forked.fork, per_batch_item=False)
    forked.step(balancer, gradients)
    rows = np.concatenate([gradient.flatten(1) for gradient in gradients], 1)
    np.testing.assert_allclose(balancer.weights, 0.5 / np.linalg.norm(rows, axis=1), rtol=1e-10)


# VQGAN


def adversarial(norms: np.ndarray, factor: float = 1.0, reference: int = 0, place: int = -1) -> np.ndarray:
    weights = np.ones(len(norms))
    weights[place] = factor * min(norms[reference] / (norms[place] + 1e-4), 1e4)
    return weights


def weigher(num_tasks: int, **options: Any) -> tuple[Planted, AdaptiveAdversarialWeight]:
    planted = Planted(num_tasks)
    return planted, AdaptiveAdversarialWeight(None, wrt=planted.shared, **({"tasks": num_tasks} | options))


@pytest.mark.parametrize(
    ("num_tasks", "reference", "place"), [(2, None, None), (4, None, None), (2, 1, 0), (3, 2, 1), (3, "b", "a")]
)
def test_vqgan_is_its_formula(num_tasks: int, reference, place):
    options = {} if reference is None else {"reference": reference, "adversarial": place}
    planted, balancer = weigher(num_tasks, tasks=list("abcd"[:num_tasks]), factor=0.8, **options)
    roles = ["abcd".index(role) if isinstance(role, str) else role for role in (reference, place)]
    first, last = (0, num_tasks - 1) if reference is None else roles
    generator, clamped = torch.Generator().manual_seed(1), 0
    for _ in range(60):
        gradients = draw(num_tasks, generator, spread=5.0)
        rows = matrix(gradients).numpy()
        weights = adversarial(np.linalg.norm(rows, axis=1), 0.8, first, last)
        clamped += weights[last] == 8000
        direction = planted.step(balancer, gradients)
        np.testing.assert_allclose(balancer.weights, weights, rtol=1e-10)
        np.testing.assert_allclose(direction, weights @ rows, rtol=1e-8, atol=1e-10)
    assert 0 < clamped < 40


def test_vqgan_at_the_last_layer():
    net = build("linear", 2)
    balancer = AdaptiveAdversarialWeight(net.fork, wrt=[net.layer.weight])
    for x in inputs("linear", 4):
        losses = losses_of(net.outputs([[z] * 2 for z in net.features(x)]), x)
        norms = [torch.autograd.grad(loss, net.layer.weight, retain_graph=True)[0].norm().item() for loss in losses]
        balancer(losses_of(net(x), x)).backward()
        np.testing.assert_allclose(balancer.weights, adversarial(np.array(norms)), rtol=1e-10)


def test_the_weighted_adversarial_gradient_is_as_long_as_the_references():
    planted, balancer = weigher(2, factor=0.5)
    gradients = draw(2, torch.Generator().manual_seed(2))
    planted.step(balancer, gradients)
    norms = matrix(gradients).norm(dim=1)
    torch.testing.assert_close(balancer.weights[1] * norms[1], 0.5 * norms[0], rtol=1e-3, atol=0)


def test_the_adversarial_loss_starts_later():
    planted, balancer = weigher(3, start=3)
    generator = torch.Generator().manual_seed(3)
    assert balancer.weights.tolist() == [1, 1, 0]
    for k in range(6):
        gradients = draw(3, generator)
        if k == 1:  # a step that is not finite does not count
            bad = [gradient.clone() for gradient in gradients]
            bad[0][2] = math.nan
            planted.step(balancer, bad)
            assert balancer.weights.tolist() == [1, 1, 0]
        planted.step(balancer, gradients)
        expected = adversarial(matrix(gradients).norm(dim=1).numpy()) if k >= 3 else [1, 1, 0]
        np.testing.assert_allclose(balancer.weights, expected, rtol=1e-10)


def test_vqgan_is_finite_where_the_ratio_is_not_defined():
    for start in (0, 5):
        planted, balancer = weigher(2, start=start)
        gradients = [torch.zeros_like(gradient) for gradient in draw(2, torch.Generator().manual_seed(4))]
        assert not planted.step(balancer, gradients).any()
        assert balancer.weights.tolist() == [1, 0]
        gradients = draw(2, torch.Generator().manual_seed(4))
        for gradient in gradients:
            gradient[0], gradient[1] = gradient[0] * 1e6, 0
        direction = planted.step(balancer, gradients)
        torch.testing.assert_close(direction, matrix(gradients)[0])
        assert balancer.weights.tolist() == [1, 0 if start else 1e4]


def test_vqgan_without_the_reference_or_the_adversarial_task():
    planted, balancer = weigher(3, tasks=["reconstruction", "codes", "adversarial"], start=2)
    generator, names = torch.Generator().manual_seed(5), ("reconstruction", "codes", "adversarial")

    def step(out: str) -> Tensor:
        gradients = draw(3, generator)
        losses = dict(zip(names, planted.losses(gradients, torch.ones(3)), strict=True))
        del losses[out]
        direction = planted.backward(balancer, losses)
        present = [names.index(name) for name in losses]
        torch.testing.assert_close(direction, balancer.weights[present] @ matrix(gradients)[present])
        return balancer.weights

    assert step("adversarial").tolist() == [1, 1, 0]
    assert step("reconstruction").tolist() == [1, 1, 0]
    gradients = draw(3, generator)
    planted.step(balancer, gradients)  # the third step: those before it counted
    ratio = balancer.weights[2]
    np.testing.assert_allclose(balancer.weights, adversarial(matrix(gradients).norm(dim=1).numpy()), rtol=1e-10)
    assert step("adversarial").tolist() == [1, 1, ratio]
    assert step("reconstruction").tolist() == [1, 1, 0]
    assert step("codes")[2] > 0


def test_a_single_task_is_the_reference():
    planted, balancer = weigher(1)
    gradients = draw(1, torch.Generator().manual_seed(6))
    torch.testing.assert_close(planted.step(balancer, gradients), matrix(gradients)[0])
    assert balancer.weights.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": 3}, "reference is 3"),
        ({"adversarial": -1}, "adversarial is -1"),
        ({"reference": "residual"}, "reference is 'residual'"),
        ({"reference": 2}, "reference and adversarial are both task"),
    ],
)
def test_wrong_roles(options, message: str):
    with pytest.raises(ValueError, match=message):
        weigher(3, **options)


# Inverse gradient norms


def inverse(num_tasks: int, **options: Any) -> tuple[Planted, InverseGradientNorm]:
    planted = Planted(num_tasks)
    return planted, InverseGradientNorm(None, wrt=planted.shared, **({"tasks": num_tasks} | options))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_inverse_norm_is_its_formula(num_tasks: int, alpha: float):
    planted, balancer = inverse(num_tasks, alpha=alpha)
    generator, weights = torch.Generator().manual_seed(1), np.ones(num_tasks)
    for _ in range(50):
        gradients = draw(num_tasks, generator, spread=2.0)
        rows = matrix(gradients).numpy()
        norms = np.linalg.norm(rows, axis=1)
        weights = alpha * weights + (1 - alpha) * norms.mean() / norms
        direction = planted.step(balancer, gradients)
        np.testing.assert_allclose(balancer.weights, weights, rtol=1e-10)
        np.testing.assert_allclose(direction, weights @ rows, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose([head.grad for head in planted.heads], weights, rtol=1e-10)


def test_without_memory_all_weighted_gradients_are_as_long_as_the_mean():
    """The paper's sum in place of the mean makes the weights T times as large."""
    planted, balancer = inverse(3, alpha=0.0)
    for seed in range(20):
        gradients = draw(3, torch.Generator().manual_seed(seed))
        planted.step(balancer, gradients)
        norms = matrix(gradients).norm(dim=1)
        torch.testing.assert_close(balancer.weights * norms, norms.mean().expand(3))
        torch.testing.assert_close(3 * balancer.weights, norms.sum() / norms)


@pytest.mark.parametrize("options", [{}, {"first_steps": 3}], ids=str)
def test_a_task_whose_gradient_is_zero_keeps_its_weight_and_does_not_count(options):
    planted, balancer = inverse(3, alpha=0.0, **options)
    generator = torch.Generator().manual_seed(2)
    if not options:
        planted.step(balancer, draw(3, generator))
    before, gradients = balancer.weights, draw(3, generator)
    for gradient in gradients:
        gradient[1] = 0
    planted.step(balancer, gradients)
    norms = matrix(gradients).norm(dim=1)
    assert balancer.weights[1] == before[1]
    torch.testing.assert_close(balancer.weights[[0, 2]], norms.sum() / 2 / norms[[0, 2]])
    before = balancer.weights
    if not options:
        assert not planted.step(balancer, [torch.zeros_like(gradient) for gradient in gradients]).any()
        assert balancer.weights.equal(before)


def test_inverse_norm_at_every_third_step():
    planted, balancer = inverse(2, update_every=3)
    other, always = inverse(2)
    generator = torch.Generator().manual_seed(3)
    for t in range(9):
        gradients = draw(2, generator)
        direction = planted.step(balancer, gradients)
        if t % 3 == 0:
            other.step(always, gradients)
        assert balancer.weights.equal(always.weights)
        torch.testing.assert_close(direction, balancer.weights @ matrix(gradients))


@pytest.mark.parametrize("first_steps", [1, 4])
def test_static_weights_are_those_of_the_mean_norms_of_the_first_steps(first_steps: int):
    planted, balancer = inverse(3, first_steps=first_steps)
    generator, history = torch.Generator().manual_seed(4), []
    for t in range(first_steps + 4):
        gradients = draw(3, generator)
        if t < first_steps:
            history.append(matrix(gradients).norm(dim=1).numpy())
        direction = planted.step(balancer, gradients)
        means = np.mean(history, 0)
        np.testing.assert_allclose(balancer.weights, means.mean() / means, rtol=1e-10)
        torch.testing.assert_close(direction, balancer.weights @ matrix(gradients))
        assert ("gramian" in balancer.statistics) == (t < first_steps)
        balancer.statistics.clear()


def test_each_task_has_its_own_first_steps():
    planted, balancer = inverse(3, tasks=["a", "b", "c"], first_steps=2)
    generator, norms = torch.Generator().manual_seed(5), []

    def step(tasks: str) -> Tensor:
        gradients = draw(3, generator)
        losses = dict(zip("abc", planted.losses(gradients, torch.ones(3)), strict=True))
        planted.backward(balancer, {task: losses[task] for task in tasks})
        norms.append(matrix(gradients).norm(dim=1))
        return balancer.weights

    step("ab")
    fixed = step("ab")
    means = (norms[0] + norms[1])[:2] / 2
    torch.testing.assert_close(fixed, torch.tensor([*(means.mean() / means), 1.0], dtype=torch.float64))
    late = step("bc")
    torch.testing.assert_close(late[2], torch.stack([means[1], norms[2][2]]).mean() / norms[2][2])
    assert late[:2].equal(fixed[:2])
    last = step("abc")
    of_late = (norms[2] + norms[3])[2] / 2
    torch.testing.assert_close(last[2], torch.stack([*means, of_late]).mean() / of_late)
    assert last[:2].equal(fixed[:2])
    assert step("abc").equal(last)


def test_static_weights_under_an_average_and_after_a_weighting():
    """Where another method's weights, or an average of these, still change, steps are measured to the end."""
    generator = torch.Generator().manual_seed(6)
    steps = [draw(2, generator) for _ in range(6)]
    planted, balancer = inverse(2, first_steps=2, averaging=0.5)
    other, plain = inverse(2, first_steps=2)
    average = None
    for gradients in steps:
        planted.step(balancer, gradients)
        other.step(plain, gradients)
        average = plain.weights if average is None else (average + plain.weights) / 2
        torch.testing.assert_close(balancer.weights, average)
    planted = Planted(2)
    unit = UnitNorm(None, wrt=planted.shared, tasks=2)
    balancer = InverseGradientNorm(None, wrt=planted.shared, tasks=2, first_steps=2, weighting=unit)
    for gradients in steps:  # gradients of length one have the weight 1
        rows = matrix(gradients)
        torch.testing.assert_close(planted.step(balancer, gradients), (rows / rows.norm(dim=1, keepdim=True)).sum(0))


def test_static_weights_in_an_invalid_step():
    planted, balancer = inverse(2, first_steps=2)
    generator = torch.Generator().manual_seed(7)
    planted.step(balancer, draw(2, generator))
    before, gradients = state(balancer), draw(2, generator)
    gradients[0][0, 0, 0] = math.inf
    planted.step(balancer, gradients)
    assert all(value.equal(before[key]) for key, value in state(balancer).items())


def test_steps_of_static_weights_are_not_captured():
    assert "first_steps" in (inverse(2, first_steps=2)[1].not_capturable() or "")
    assert inverse(2)[1].not_capturable() is None


# All three


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    ("name", "place", "options"),
    [
        ("encodec", "features", {"per_batch_item": False}),
        ("inverse-norm", "parameters", {"first_steps": 2}),
        ("vqgan", "layer", {"start": 2}),
    ],
)
def test_two_ranks_are_one_process_with_both_batches(ranks: Ranks, name: str, place: str, options):
    from .test_ranks import ALL, agree

    records = agree(ranks, name, place, {"steps": [ALL] * 25, "ddp": {}, "options": options})
    weights = torch.stack(records[0]["weights"])
    assert weights.isfinite().all()
    assert weights[0].ne(weights[1]).any() or weights[2].ne(weights[1]).any()


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (EnCodecBalancer, {"shares": -1.0}),
        (EnCodecBalancer, {"shares": [1.0, 2.0]}),
        (EnCodecBalancer, {"total_norm": 0.0}),
        (EnCodecBalancer, {"beta": 1.1}),
        (EnCodecBalancer, {"per_batch_item": 2}),
        (AdaptiveAdversarialWeight, {"factor": 0.0}),
        (AdaptiveAdversarialWeight, {"start": -1}),
        (InverseGradientNorm, {"alpha": 1.0}),
        (InverseGradientNorm, {"alpha": -0.1}),
        (InverseGradientNorm, {"first_steps": 0}),
        (InverseGradientNorm, {"first_steps": 1.5}),
    ],
)
def test_wrong_input(cls, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} (is|has)"):
        cls(Fork(3), **options)


@pytest.mark.parametrize("cls", [AdaptiveAdversarialWeight, InverseGradientNorm])
def test_nothing_to_measure(cls):
    planted, x = Planted(2), nn.Parameter(torch.zeros(()))
    balancer = cls(None, wrt=planted.shared, tasks=2)
    with pytest.raises(ForkError):
        balancer([x * 1.0, x * 2.0]).backward()
