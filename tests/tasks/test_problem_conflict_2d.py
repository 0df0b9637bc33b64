"""The two-objective landscape agrees with the papers' formulas, and its Pareto front with a search."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tasks.conflict_2d import STARTS, Conflict2D, draw_trajectories, landscape, pareto_front


def by_hand(x: float, y: float) -> tuple[float, float]:
    """Return CAGrad's two losses at a point, by the paper's formulas."""
    f1 = math.log(max(abs(0.5 * (-x - 7) - math.tanh(-y)), 0.000005)) + 6
    f2 = math.log(max(abs(0.5 * (-x + 3) + math.tanh(-y) + 2), 0.000005)) + 6
    g1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    g2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    c1 = max(math.tanh(0.5 * y), 0)
    c2 = max(math.tanh(-0.5 * y), 0)
    return f1 * c1 + g1 * c2, f2 * c1 + g2 * c2


def end_of(problem: Conflict2D, weights: tuple[float, float], steps: int | None = None) -> torch.Tensor:
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.recipe.lr)
    for _ in range(steps or problem.recipe.steps):
        optimizer.zero_grad()
        (torch.tensor(weights) * problem.losses(model, None)).sum().backward()
        optimizer.step()
    return model.theta.detach()


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_landscape_is_the_papers(scale):
    points = torch.randn(4, 25, 2, dtype=torch.float64) * 6
    losses = landscape(points, scale)
    assert losses.shape == points.shape
    for point, (first, second) in zip(points.flatten(0, 1).tolist(), losses.flatten(0, 1).tolist(), strict=True):
        expected = by_hand(*point)
        assert first == pytest.approx(scale * expected[0], rel=1e-12)
        assert second == pytest.approx(expected[1], rel=1e-12)


def test_the_bottoms_of_the_valleys_are_flat_and_finite():
    theta = torch.tensor([[2 * math.tanh(3.0) - 7, 3.0], [7 - 2 * math.tanh(3.0), 3.0]], dtype=torch.float64)
    theta.requires_grad_()
    losses = landscape(theta, scale=1)
    floor = math.tanh(1.5) * (math.log(0.000005) + 6)
    assert losses.diagonal().tolist() == pytest.approx([floor, floor])
    losses.sum().backward()
    assert theta.grad.isfinite().all()


def test_there_is_a_way_down_from_the_start_on_the_edge():
    theta = torch.zeros(2, requires_grad=True)
    losses = landscape(theta)
    assert losses.tolist() == [0, 0]
    for loss in losses:
        [gradient] = torch.autograd.grad(loss, theta, retain_graph=True)
        assert gradient[1] > 1


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("x", [0.0, -2.0, 3.0])
def test_the_gradient_on_the_edge_is_the_sum_of_both_sides(x, scale):
    """On the edge, y = 0, each maximum takes its argument's derivative, though it is constant on one side of the edge.

    The start (0, 0) lies on the edge. The expected slopes are one-sided, second-order differences of `by_hand`.
    """
    h = 1e-5
    at, above, further, below, lower = (np.array(by_hand(x, y)) for y in (0, h, 2 * h, -h, -2 * h))
    from_above = (4 * above - further - 3 * at) / (2 * h)
    from_below = (3 * at - 4 * below + lower) / (2 * h)
    expected = (from_above + from_below) * (scale, 1)

    theta = torch.tensor([x, 0.0], dtype=torch.float64, requires_grad=True)
    for loss, slope in zip(landscape(theta, scale), expected, strict=True):
        [gradient] = torch.autograd.grad(loss, theta, retain_graph=True)
        assert abs(slope) > 0.5
        assert gradient.tolist() == pytest.approx([0, slope], rel=1e-7)


def test_the_start_on_the_edge_has_the_papers_gradient():
    """The slope is (f - g) / 2, as tanh(y / 2) has slope 1/2 at 0; f = log(3.5) + 6 and g = -14.46 for both losses."""
    model = Conflict2D(start=2, scale=1).model()
    slope = (math.log(3.5) + 6 + 14.46) / 2
    for loss in landscape(model(), scale=1):
        [gradient] = torch.autograd.grad(loss, model.theta, retain_graph=True)
        assert gradient.tolist() == pytest.approx([0, slope], rel=1e-6)


# The Pareto front


@pytest.mark.slow
def test_no_point_of_a_fine_grid_beats_the_front():
    front = landscape(pareto_front(101), scale=1).numpy()
    ticks = torch.linspace(-15, 15, 1201, dtype=torch.float64)
    grid = landscape(torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1), scale=1).flatten(0, 1).numpy()
    for first, second in front:
        assert not ((grid[:, 0] < first - 1e-9) & (grid[:, 1] < second - 1e-9)).any()


@pytest.mark.slow
def test_the_grids_own_undominated_points_lie_on_the_front():
    """A search of the whole landscape, without weighted sums, finds the same front."""
    ticks = torch.linspace(-15, 15, 1201, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1).flatten(0, 1)
    losses = landscape(points, scale=1).numpy()
    order = np.lexsort((losses[:, 1], losses[:, 0]))
    best = np.minimum.accumulate(losses[order, 1])
    undominated = order[np.r_[True, best[1:] < best[:-1]]]
    assert len(undominated) > 500
    ours = landscape(pareto_front(2001), scale=1)
    assert torch.cdist(torch.from_numpy(losses[undominated]), ours).min(1).values.max() < 0.02
    found = points[undominated]  # half a unit in y changes the losses less than a grid step in x
    assert torch.cdist(found, pareto_front(2001)).min(1).values.max() < 0.5
    assert found[:, 0].min() == pytest.approx(-7, abs=0.03)
    assert found[:, 0].max() == pytest.approx(7, abs=0.03)


def test_the_fronts_points_are_minima_of_weighted_sums():
    theta = pareto_front(11).requires_grad_()
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    losses = landscape(theta, scale=1)
    (p * losses[:, 0] + (1 - p) * losses[:, 1]).sum().backward()
    assert theta.grad.abs().max() < 1e-9
    assert theta[5].tolist() == pytest.approx([0, -8.3552], abs=2e-4)  # the point in the papers' public code


# The problem


def test_the_starts_are_nash_mtls():
    assert STARTS == ((-8.5, 7.5), (0, 0), (9, 9), (-7.5, -0.5), (9, -1))
    for number, start in enumerate(STARTS, 1):
        problem = Conflict2D(start=number)
        problem.check()
        model = problem.model()
        assert tuple(model().tolist()) == start
        assert problem.losses(model, None).tolist() == pytest.approx(landscape(torch.tensor(start)).tolist())


def test_it_is_an_illustration_without_data_or_fork():
    problem = Conflict2D()
    assert problem.illustration
    assert problem.data(torch.Generator(), "cpu") is None
    assert list(itertools.islice(problem.batches(None, torch.Generator(), 1), 2)) == [None, None]
    model = problem.model()
    shared = problem.shared(model)
    assert (shared.fork, shared.layer, shared.parameters) == (None, None, (model.theta,))
    assert model.theta.shape == (2,)
    assert problem.sizes(None) == {}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_gives_the_losses_and_their_mean(split):
    problem = Conflict2D(start=4, scale=0.5)
    first, second = by_hand(-7.5, -0.5)
    metrics = problem.evaluate(problem.model(), None, split)
    assert list(metrics) == [metric.name for metric in problem.metrics]
    assert list(metrics.values()) == pytest.approx([(0.5 * first + second) / 2, 0.5 * first, second], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", [2, 4, 5])
def test_equal_weights_go_to_the_minimum_of_the_sum(start):
    theta = end_of(Conflict2D(start=start), (1, 1))
    assert theta[0] == pytest.approx(7 * (2 * 0.1 / 1.1 - 1), abs=0.1)
    assert theta[1] < -6


@pytest.mark.slow
def test_equal_weights_stay_in_the_valley_that_catches_them():
    theta = end_of(Conflict2D(start=3), (1, 1))
    assert theta[0] == pytest.approx(5, abs=0.2)
    assert theta[1] > 1


@pytest.mark.slow
def test_inverse_scale_weights_go_to_the_middle_of_the_front():
    problem = Conflict2D(start=4)
    weights = problem.static_weights["inverse-scale"]
    assert weights == pytest.approx((2 / 1.1, 0.2 / 1.1))
    assert abs(end_of(problem, weights)[0]) < 0.01


def test_the_same_run_gives_the_same_bits():
    ends = [end_of(Conflict2D(start=1), (1, 1), steps=100) for _ in range(2)]
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0}, "start is 0; expected a whole number, 1 to 5"),
        ({"start": 6}, "start is 6; expected"),
        ({"start": 2.0}, r"start is 2\.0; expected"),
        ({"start": True}, "start is True; expected"),
        ({"scale": 0}, "scale is 0; expected a positive, finite number"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": "1"}, "scale is '1'"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Conflict2D(**options)


@pytest.mark.parametrize("with_model", [False, True])
def test_draw(with_model):
    problem = Conflict2D()
    figure = Figure((9, 5), layout="constrained")
    assert "Pareto front" in problem.draw(figure, None, problem.model() if with_model else None)
    assert len(figure.axes) == 2
    figure.draw_without_rendering()


@pytest.mark.parametrize("num_methods", [1, 4, 6])
def test_trajectories_have_a_panel_a_method(num_methods):
    paths = {f"method {i}": [torch.randn(20, 2), torch.randn(20, 2, requires_grad=True)] for i in range(num_methods)}
    figure = Figure((9, 5), layout="constrained")
    assert "Pareto front" in draw_trajectories(figure, paths)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == list(paths)
    figure.draw_without_rendering()
