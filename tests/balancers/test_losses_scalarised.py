"""PBI and COSMOS, against autograd on their objectives and against TorchJD.

Differences from TorchJD: on the ray PBI has no penalty, where TorchJD adds 1e-12 to a squared distance; COSMOS has the
preferences as its weights where all losses are zero; ``ideal`` may be one number for all tasks, or a dict by name.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from balancers import COSMOS, PBI, LossBalancer

both = pytest.mark.parametrize("cls", [PBI, COSMOS])


def draw(num_tasks: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw losses that are some orders of magnitude apart, preferences, and an ideal point."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(num_tasks, dtype=torch.float64, generator=generator).exp()
    preferences, ideal = torch.rand(2, num_tasks, dtype=torch.float64, generator=generator)
    return losses, preferences, ideal - 0.5


def differentiated(objective: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    return torch.autograd.grad(objective(leaf := losses.clone().requires_grad_()), leaf)[0]


def weights_of(balancer: LossBalancer, losses: Tensor | Sequence[float]) -> Tensor:
    leaf = torch.as_tensor(losses, dtype=torch.float64).clone().requires_grad_()
    balancer(leaf).backward()
    assert torch.equal(leaf.grad, balancer.weights)
    return balancer.weights


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_pbi_has_the_gradient_of_its_distances() -> None:
    for seed in range(100):
        losses, preferences, ideal = draw(2 + seed % 5, seed)
        theta = [0.0, 0.1, 1.0, 5.0][seed % 4]

        def objective(x: Tensor, r: Tensor = preferences, z: Tensor = ideal, theta: float = theta) -> Tensor:
            ray = r / r.square().sum().sqrt()
            along = torch.dot(x - z, ray)
            return along + theta * torch.dist(x - z, along * ray)

        balancer = PBI(len(losses), preferences=preferences.tolist(), ideal=ideal.tolist(), theta=theta)
        torch.testing.assert_close(weights_of(balancer, losses), differentiated(objective, losses))


def test_cosmos_has_the_gradient_of_a_sum_and_a_cosine() -> None:
    for seed in range(100):
        losses, preferences, _ = draw(2 + seed % 5, seed)
        penalty = [0.0, 0.01, 2.0, 8.0][seed % 4]

        def objective(x: Tensor, r: Tensor = preferences, penalty: float = penalty) -> Tensor:
            return torch.dot(r, x) - penalty * torch.dot(r, x) / (torch.dot(r, r) * torch.dot(x, x)).sqrt()

        balancer = COSMOS(len(losses), preferences=preferences.tolist(), penalty=penalty)
        torch.testing.assert_close(weights_of(balancer, losses), differentiated(objective, losses))


def test_pbi_like_torchjd() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(250):
        losses, preferences, ideal = draw(1 + seed % 7, seed)
        theta = [0.1, 1.0, 5.0, 10.0][seed % 4]
        reference, options = (ideal, {"ideal": ideal.tolist()}) if seed % 3 else (None, {})
        theirs = scalarization.PBI(theta, weights=preferences, reference=reference)
        ours = PBI(len(losses), theta=theta, preferences=preferences.tolist(), **options)
        torch.testing.assert_close(weights_of(ours, losses), differentiated(theirs, losses), rtol=1e-4, atol=1e-8)


def test_cosmos_like_torchjd() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    for seed in range(250):
        losses, preferences, _ = draw(1 + seed % 7, seed)
        penalty = [0.01, 0.5, 2.0, 8.0][seed % 4]
        theirs = scalarization.COSMOS(penalty, weights=preferences)
        ours = COSMOS(len(losses), penalty=penalty, preferences=preferences.tolist())
        torch.testing.assert_close(weights_of(ours, losses), differentiated(theirs, losses), rtol=1e-4, atol=1e-8)


def test_the_distance_from_the_ray_is_what_pbi_adds_to_it() -> None:
    """The penalty is at a right angle to the ray, and has the length theta."""
    for seed in range(50):
        losses, preferences, ideal = draw(2 + seed % 5, seed)
        ray = preferences / preferences.norm()
        balancer = PBI(len(losses), preferences=preferences.tolist(), ideal=ideal.tolist(), theta=3.0)
        added = weights_of(balancer, losses) - ray
        torch.testing.assert_close(added.norm(), doubles(3.0)[0])
        torch.testing.assert_close(torch.dot(added, ray), doubles(0.0)[0])


@both
def test_a_task_far_ahead_is_ascended(cls: type[LossBalancer]) -> None:
    """Its weight is below zero, and it is not without a penalty."""
    ahead, behind = weights_of(cls(2), [0.1, 1.0]).tolist()
    assert ahead < 0 < behind
    none = "theta" if cls is PBI else "penalty"
    assert weights_of(cls(2, **{none: 0.0}), [0.1, 1.0]).min() > 0
    assert cls.may_ascend


@pytest.mark.slow
@both
def test_training_brings_the_losses_into_the_proportions_of_the_preferences(cls: type[LossBalancer]) -> None:
    """A task with a larger preference ends with the larger loss, on a front where losses trade off as on a circle."""
    balancer = PBI(2, preferences=[0.25, 0.75]) if cls is PBI else COSMOS(2, preferences=[0.25, 0.75], penalty=8.0)
    angle = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([angle], lr=0.01)
    for _ in range(2000):
        optimizer.zero_grad()
        balancer([2 - angle.cos(), 2 - angle.sin()]).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.997
    first, second = 2 - angle.detach().cos(), 2 - angle.detach().sin()
    assert second > 1.5 * first


@pytest.mark.parametrize("preferences", [[1.0], [0.3], [7.0]])
@both
def test_one_task_has_no_penalty(cls: type[LossBalancer], preferences: list[float]) -> None:
    for loss in (1e-6, 0.1, 1 / 3, 123.4):
        expected = 1.0 if cls is PBI else preferences[0]
        torch.testing.assert_close(weights_of(cls(1, preferences=preferences), [loss]), doubles(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_tasks", [2, 3, 7, 40, 300])
def test_on_the_ray_pbi_has_no_penalty(num_tasks: int, dtype: torch.dtype) -> None:
    """Rounding has no direction: equal losses have equal weights, and so do multiples of the preferences."""
    generator = torch.Generator().manual_seed(num_tasks)
    for case in range(20):
        preferences = torch.rand(num_tasks, generator=generator, dtype=dtype) + 0.1 if case else torch.ones(num_tasks)
        losses = (preferences.to(dtype) * (0.3 + case)).requires_grad_()
        balancer = PBI(num_tasks, preferences=preferences.tolist())
        balancer(losses).backward()
        torch.testing.assert_close(balancer.weights, (preferences / preferences.norm()).to(dtype))


def test_close_to_the_ray_pbi_has_its_whole_penalty() -> None:
    for distance in (1e-3, 1e-6, 1e-9):
        weights = weights_of(PBI(2, theta=1.0), [1.0 + distance, 1.0 - distance])
        torch.testing.assert_close(weights, doubles(2**0.5, 0.0), rtol=1e-5, atol=1e-5)


def test_cosmos_on_its_ray_has_the_preferences_as_weights() -> None:
    for scale in (0.01, 1.0, 30.0):
        weights = weights_of(COSMOS(3, preferences=[0.5, 0.2, 0.3]), [0.5 * scale, 0.2 * scale, 0.3 * scale])
        torch.testing.assert_close(weights, doubles(0.5, 0.2, 0.3), rtol=1e-10, atol=1e-10)


def test_losses_of_zero() -> None:
    torch.testing.assert_close(weights_of(PBI(2, preferences=[3.0, 4.0]), [0.0, 0.0]), doubles(0.6, 0.8))
    assert weights_of(COSMOS(2, preferences=[3.0, 4.0]), [0.0, 0.0]).tolist() == [3, 4]
    for cls in (PBI, COSMOS):
        assert weights_of(cls(3), [0.0, 1.0, 0.0]).isfinite().all()


def test_the_ideal_point_shifts_the_losses() -> None:
    shifted = weights_of(PBI(2, ideal=[0.5, -1.0]), [1.5, 1.0])
    torch.testing.assert_close(shifted, weights_of(PBI(2), [1.0, 2.0]))
    assert weights_of(PBI(2, ideal=0.5), [1.5, 1.0]).equal(weights_of(PBI(2), [1.0, 0.5]))


def test_the_scale_of_the_preferences_counts_for_cosmos_alone() -> None:
    one, other = (weights_of(PBI(2, preferences=[1.0 * k, 2.0 * k]), [1.0, 0.7]) for k in (1, 10))
    torch.testing.assert_close(other, one)
    one, other = (weights_of(COSMOS(2, preferences=[1.0 * k, 2.0 * k]), [1.0, 0.7]) for k in (1, 10))
    torch.testing.assert_close(other - one, doubles(9.0, 18.0))


@both
def test_tasks_that_are_left_out(cls: type[LossBalancer]) -> None:
    """The others are weighed as if they were alone; the task left out keeps its weight."""
    balancer = cls(["a", "b", "c"], preferences=[0.5, 0.3, 0.2])
    before = weights_of(balancer, [1.0, 2.0, 3.0])
    losses = {"a": doubles(1.0)[0].requires_grad_(), "c": doubles(0.4)[0].requires_grad_()}
    balancer(losses).backward()
    alone = weights_of(cls(["a", "c"], preferences=[0.5, 0.2]), [1.0, 0.4])
    torch.testing.assert_close(balancer.weights[[0, 2]], alone)
    assert balancer.weights[1] == before[1]


@both
def test_without_a_preference_for_any_task_of_the_step_the_weights_stay(cls: type[LossBalancer]) -> None:
    balancer = cls(["a", "b", "c"], preferences=[0.0, 1.0, 0.0])
    before = weights_of(balancer, [1.0, 2.0, 3.0])
    balancer({"a": doubles(1.0)[0].requires_grad_(), "c": doubles(2.0)[0].requires_grad_()}).backward()
    assert balancer.weights.equal(before)


@both
def test_many_rows_at_once(cls: type[LossBalancer]) -> None:
    losses = torch.rand(5, 2, 3)
    balancer = cls(3)
    state = balancer.state()
    expected = torch.stack([torch.stack([balancer.weigh(row, state) for row in rows]) for rows in losses])
    torch.testing.assert_close(balancer.weigh(losses, state), expected)


@both
def test_the_state_is_the_last_weights_alone(cls: type[LossBalancer]) -> None:
    assert set(cls(["a", "b"]).state_dict()) == {"last_weights", "_extra_state"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preferences": [1.0]}, "preferences has 1 entry"),
        ({"preferences": [0.0, 0.0]}, "preferences is"),
        ({"preferences": [-1.0, 2.0]}, "preferences is"),
        ({"preferences": {"a": 1.0}}, "preferences names"),
    ],
)
@both
def test_wrong_preferences(cls: type[LossBalancer], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(["a", "b"], **options)


@pytest.mark.parametrize("ideal", [math.nan, math.inf, [1.0, 2.0, 3.0], {"b": 1.0}])
def test_a_wrong_ideal_point(ideal: object) -> None:
    with pytest.raises(ValueError, match="ideal"):
        PBI(["a", "b"], ideal=ideal)


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize(("cls", "name"), [(PBI, "theta"), (COSMOS, "penalty")])
def test_a_wrong_penalty(cls: type[LossBalancer], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        cls(2, **{name: value})


def test_by_name() -> None:
    balancer = PBI(["a", "b"], preferences={"b": 1.0, "a": 3.0}, ideal={"a": 0.5, "b": 0.25})
    assert balancer.state()["preferences"].tolist() == [3, 1]
    assert balancer.state()["ideal"].tolist() == [0.5, 0.25]
    assert COSMOS(["a", "b"], preferences={"b": 1.0, "a": 3.0}).state()["preferences"].tolist() == [3, 1]
