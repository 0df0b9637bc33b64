"""All physics-informed problems: derivatives, points, losses and scores agree with independent computations."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import balancers
from tasks import burgers, helmholtz, poisson_l_shape, reaction_diffusion
from tasks.burgers import Burgers
from tasks.helmholtz import Helmholtz
from tasks.physics import EDGES, INSIDE, Domain, Field, Jet, PhysicsProblem, TanhNetwork
from tasks.poisson_l_shape import PoissonLShape
from tasks.reaction_diffusion import ReactionDiffusion

BOXES = [Helmholtz(), Burgers(), ReactionDiffusion()]
"""Problems whose domain is the whole box."""
PROBLEMS = pytest.mark.parametrize("problem", [*BOXES, PoissonLShape()], ids=lambda problem: problem.name)
RESIDUALS = {
    "helmholtz": helmholtz.residual,
    "burgers": burgers.residual,
    "reaction-diffusion": reaction_diffusion.residual,
    "poisson-l-shape": poisson_l_shape.residual,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_model(problem: PhysicsProblem, seed: int = 0) -> TanhNetwork:
    torch.manual_seed(seed)
    model = problem.model()
    for parameter in model.parameters():  # biases too: they start at zero
        nn.init.normal_(parameter, std=0.3)
    return model


def within(problem: PhysicsProblem, count: int, seed: int = 3) -> Tensor:
    """Return random points in the box's interior, in float64."""
    low, high = torch.tensor(problem.box, dtype=torch.float64).T
    return low + (high - low) * (0.02 + 0.96 * torch.rand(count, 2, generator=seeded(seed), dtype=torch.float64))


def differentiated(function: Callable[[Tensor], Tensor], points: Tensor, along: Sequence[int]) -> Jet:
    """Compute the jet by differentiating twice."""
    points = points.clone().requires_grad_()
    values = function(points)
    (gradients,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    second = sum(torch.autograd.grad(gradients[:, i].sum(), points, create_graph=True)[0][:, i] for i in along)
    return Jet(values, gradients.T, second)


class Exact(Field):
    """The problem's solution as a model."""

    def __init__(self, problem: PhysicsProblem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, points: Tensor) -> Tensor:
        return self.problem.solution(points.double())

    def jet(self, points: Tensor, along: Sequence[int]) -> Jet:
        return differentiated(self, points, along)


def in_numpy(model: TanhNetwork) -> Callable[[np.ndarray], np.ndarray]:
    """Return the network as a plain NumPy function, in float64."""
    weights = [parameter.detach().double().numpy() for parameter in model.parameters()]
    centre, scale = model.centre.double().numpy(), model.scale.double().numpy()

    def network(points: np.ndarray) -> np.ndarray:
        x = (points - centre) * scale
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = np.tanh(x @ weight.T + bias)
        return (x @ weights[-2].T + weights[-1])[:, 0]

    return network


def differences(u: Callable[[np.ndarray], np.ndarray], points: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and second derivative along an axis, by central differences of fourth order."""
    h = 2e-3
    step = h * np.eye(2)[axis]
    m2, m1, at, p1, p2 = (u(points + k * step) for k in (-2, -1, 0, 1, 2))
    return (m2 - 8 * m1 + 8 * p1 - p2) / (12 * h), (-m2 + 16 * m1 - 30 * at + 16 * p1 - p2) / (12 * h**2)


# The derivatives


@pytest.mark.parametrize("along", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("width", "depth"), [(7, 1), (9, 2), (20, 4)])
def test_a_jet_is_what_differentiating_twice_gives(along, width, depth):
    torch.manual_seed(1)
    model = TanhNetwork(width, depth, ((0.0, 1.0), (-3.0, 1.0)), scale=(2.0, 0.7)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    points = torch.rand(31, 2, generator=seeded(2), dtype=torch.float64)
    ours, theirs = model.jet(points, along), differentiated(model, points, along)
    for name in Jet._fields:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-10, atol=1e-10)


@PROBLEMS
def test_the_residuals_gradient_is_that_of_differentiating_twice(problem):
    model = initial_model(problem).double()
    points = within(problem, 40)

    class Twice(Field):
        def __init__(self) -> None:
            super().__init__()
            self.forward = model.forward

        def jet(self, points: Tensor, along: Sequence[int]) -> Jet:
            return differentiated(model, points, along)

    residual = RESIDUALS[problem.name]
    parameters = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(residual(field, points).square().mean(), parameters, materialize_grads=True)
        for field in (model, Twice())
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@PROBLEMS
def test_the_solution_solves_the_equation(problem):
    points = within(problem, 200)
    exact = Exact(problem)
    residual = RESIDUALS[problem.name](exact, points).detach()
    terms = exact.jet(points, (0, 1))
    assert residual.abs().max() < 1e-9 * (1 + terms.second.abs().max())
    edges = {task: pool[:300].double() for task, pool in problem.pools(seeded(1)).items() if task != "residual"}
    losses = problem.losses(exact, {"residual": points, **edges})
    for task, loss in list(zip(problem.tasks, losses, strict=True))[1:]:
        assert loss < 1e-12, task


# The model


@PROBLEMS
def test_initial_values_are_glorots_from_the_global_generator(problem):
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append(problem.model())
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key, value in first.items():
        if key.endswith("bias"):
            assert not value.any()
        else:
            assert not torch.equal(value, other[key])
            if value.numel() > 300:
                assert value.std().item() == pytest.approx((2 / sum(value.shape)) ** 0.5, rel=0.15)


@PROBLEMS
def test_the_network_against_numpy(problem):
    model = initial_model(problem)
    points = within(problem, 50)
    np.testing.assert_allclose(
        model(points.float()).detach().numpy(), in_numpy(model)(points.numpy()), rtol=1e-4, atol=1e-5
    )


@PROBLEMS
def test_all_parameters_are_shared_and_nothing_else(problem):
    model = problem.model()
    shared = problem.shared(model)
    assert shared.fork is None
    assert shared.layer is None
    assert list(map(id, shared.parameters)) == list(map(id, model.parameters()))


# The data


@PROBLEMS
def test_data_depend_on_the_generator_alone(problem):
    state = torch.get_rng_state()
    first, again, other = (problem.data(seeded(seed), "cpu") for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    for task in problem.tasks:
        assert torch.equal(first.pools[task], again.pools[task])
        assert not torch.equal(first.pools[task], other.pools[task])
    for split in ("validation", "test"):
        assert torch.equal(getattr(first, split).points, getattr(other, split).points)
        assert torch.equal(getattr(first, split).solution, getattr(other, split).solution)


@PROBLEMS
def test_every_task_has_points_of_its_own_in_the_box(problem):
    pools = problem.data(seeded(1), "cpu").pools
    assert tuple(pools) == problem.tasks
    low, high = torch.tensor(problem.box).T
    for task, pool in pools.items():
        assert pool.dtype == torch.float32
        assert pool.shape == (INSIDE if task == "residual" else EDGES, 2)
        assert (pool >= low).all()
        assert (pool <= high).all()
        assert len(pool.unique(dim=0)) > 0.99 * len(pool)


@pytest.mark.parametrize("problem", BOXES, ids=lambda problem: problem.name)
def test_the_splits_are_disjoint_grids_over_the_box(problem):
    data = problem.data(seeded(1), "cpu")
    rows = [set(map(tuple, split.points.tolist())) for split in (data.validation, data.test)]
    assert [len(row) for row in rows] == [10_000, 10_000]
    assert not rows[0] & rows[1]
    for split, offset in ((data.validation, 0.25), (data.test, 0.75)):
        grid = split.points.view(100, 100, 2).double().numpy()
        for axis, (low, high) in enumerate(problem.box):
            expected = low + (high - low) * (np.arange(100) + offset) / 100
            np.testing.assert_allclose(np.moveaxis(grid[..., axis], axis, -1), np.tile(expected, (100, 1)), atol=1e-6)
    assert problem.sizes(data) == {
        "train": sum(len(pool) for pool in data.pools.values()),
        "validation": 10_000,
        "test": 10_000,
    }


@PROBLEMS
def test_batches_are_epochs_of_each_tasks_points(problem):
    data = problem.data(seeded(1), "cpu")
    batches, again, other = (list(itertools.islice(problem.batches(data, seeded(seed), 500), 20)) for seed in (2, 2, 3))
    for task, pool in data.pools.items():
        per_epoch = len(pool) // 500
        epoch = torch.cat([batch[task] for batch in batches[:per_epoch]])
        assert torch.equal(epoch.unique(dim=0), pool.unique(dim=0))
        assert not torch.equal(epoch, pool)
        assert all(torch.equal(one[task], two[task]) for one, two in zip(batches, again, strict=True))
        assert not torch.equal(batches[0][task], other[0][task])
    with pytest.raises(ValueError, match="batch_size is 1001; expected 1 to 1000"):
        problem.batches(data, seeded(2), EDGES + 1)


# The losses and the score


@PROBLEMS
def test_losses_against_finite_differences(problem):
    model = initial_model(problem)
    batch = next(problem.batches(problem.data(seeded(1), "cpu"), seeded(2), 100))
    losses = problem.losses(model, batch)
    assert all(loss.shape == () for loss in losses)

    u = in_numpy(model)
    points = {task: values.double().numpy() for task, values in batch.items()}
    inner = points["residual"]
    first, second = zip(*(differences(u, inner, axis) for axis in (0, 1)), strict=True)
    if problem.name == "helmholtz":
        x, y = inner.T
        source = (1 - 17 * np.pi**2) * np.sin(np.pi * x) * np.sin(4 * np.pi * y)
        expected = [second[0] + second[1] + u(inner) - source, u(points["boundary"])]
    elif problem.name == "poisson-l-shape":
        x, y = inner.T
        source = 4 * np.pi**2 * np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y)
        x, y = outer = points["outer"].T
        given = np.hypot(x, y) ** (2 / 3) * np.sin(2 / 3 * (np.arctan2(y, x) % (2 * np.pi)))
        expected = [second[0] + second[1] + source, u(points["corner"]), u(outer.T) - given]
    elif problem.name == "reaction-diffusion":
        values = u(inner)
        given = [problem.solution(torch.from_numpy(points[task])).numpy() for task in ("initial", "boundary")]
        expected = [
            first[0] - 0.008 * second[1] - 6 * values + 6 * values**3,
            u(points["initial"]) - given[0],
            u(points["boundary"]) - given[1],
        ]
    else:
        start = points["initial"]
        expected = [
            first[0] + u(inner) * first[1] - 0.01 / np.pi * second[1],
            u(start) + np.sin(np.pi * start[:, 1]),
            u(points["boundary"]),
        ]
    for loss, errors in zip(losses, expected, strict=True):
        assert loss.item() == pytest.approx(np.square(errors).mean(), rel=1e-4)


@PROBLEMS
def test_losses_refuse_a_model_without_derivatives(problem):
    batch = next(problem.batches(problem.data(seeded(1), "cpu"), seeded(2), 10))
    with pytest.raises(TypeError, match=r"expected a tasks\.physics\.Field, .*; got Linear"):
        problem.losses(nn.Linear(2, 1), batch)


@PROBLEMS
@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_score_against_numpy(problem, split):
    data = problem.data(seeded(1), "cpu")
    grid = getattr(data, split)
    model = initial_model(problem)
    solution = problem.solution(grid.points.double()).numpy()
    np.testing.assert_allclose(grid.solution.numpy(), solution, atol=2e-4 if problem.name == "burgers" else 1e-5)
    expected = np.linalg.norm(in_numpy(model)(grid.points.double().numpy()) - solution) / np.linalg.norm(solution)
    model.train()
    assert problem.evaluate(model, data, split) == {"relative L2 error": pytest.approx(expected, rel=1e-4)}
    assert model.training
    assert problem.evaluate(Exact(problem), data, split)["relative L2 error"] < 2e-5


# With balancers


@PROBLEMS
def test_gradient_balancers_measure_every_losses_gradient_of_all_parameters(problem):
    model = initial_model(problem)
    batch = next(problem.batches(problem.data(seeded(1), "cpu"), seeded(2), 64))
    parameters = problem.shared(model).parameters
    gradients = []
    for loss in problem.losses(model, batch):
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    expected = torch.stack(gradients)

    gradnorm = balancers.GradNorm(None, wrt=parameters, tasks=problem.tasks)
    gradnorm(problem.losses(model, batch)).backward()
    measured = gradnorm.statistics["gradient_norms"].double()
    torch.testing.assert_close(measured, expected.norm(dim=1), rtol=1e-4, atol=0)

    for cls in (balancers.GradNorm, balancers.MGDA):
        balancer = cls(None, wrt=parameters, tasks=problem.tasks)
        model.zero_grad()
        balancer(problem.losses(model, batch)).backward()
        combined = torch.cat([parameter.grad.flatten() for parameter in parameters]).double()
        weighted = balancer.weights.double() @ expected
        torch.testing.assert_close(combined, weighted, rtol=1e-3, atol=1e-4 * weighted.norm().item())


def train(problem: PhysicsProblem, data: Domain, weights: tuple[float, ...], steps: int) -> nn.Module:
    """Return a model that was trained with the recipe's optimiser at a constant learning rate."""
    torch.manual_seed(1)
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.recipe.lr, fused=True)
    for batch in itertools.islice(problem.batches(data, seeded(2), problem.recipe.batch_size), steps):
        loss = torch.tensor(weights) @ torch.stack(problem.losses(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@PROBLEMS
def test_a_training_repeats_to_the_bit(problem):
    data = problem.data(seeded(1), "cpu")
    weights = problem.static_weights["by-hand"]
    first, again = (train(problem, data, weights, 20).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "steps", "highest"),
    [
        (Helmholtz(), 1_200, 0.6),
        (Burgers(), 1_200, 0.6),
        (ReactionDiffusion(), 2_000, 0.3),
        (PoissonLShape(), 1_500, 0.15),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_short_training_under_hand_made_weights_learns(problem, steps, highest):
    data = problem.data(seeded(1), "cpu")
    model = train(problem, data, problem.static_weights["by-hand"], steps)
    assert problem.evaluate(model, data, "test")["relative L2 error"] < highest


@pytest.mark.slow
def test_a_short_training_under_equal_weights_learns_the_l_shape():
    problem = PoissonLShape()
    data = problem.data(seeded(1), "cpu")
    model = train(problem, data, (1.0, 1.0, 1.0), problem.recipe.steps)
    assert problem.evaluate(model, data, "test")["relative L2 error"] < 0.4


# The facts and the picture


@PROBLEMS
def test_the_facts_agree(problem):
    problem.check()
    assert problem.baselines == frozenset()
    assert problem.constant(problem.data(seeded(1), "cpu")) is None
    assert problem.fingerprint() == ""


@PROBLEMS
@pytest.mark.parametrize("trained", [False, True])
def test_the_picture(problem, trained):
    figure = Figure(figsize=(9, 5), layout="constrained")
    caption = problem.draw(figure, problem.data(seeded(1), "cpu"), initial_model(problem) if trained else None)
    figure.canvas.draw()
    assert caption.endswith(".")
    assert len([axes for axes in figure.axes if axes.images]) == (3 if trained else 1)
    labels = {text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()}
    assert labels >= (set(problem.tasks) if not trained else set())
