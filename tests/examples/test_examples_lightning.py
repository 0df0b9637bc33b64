"""Lightning's automatic and manual optimisation train the two tasks, log the weights and resume exactly."""

import math

import pytest

from .programs import load

pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*num_workers.*")
STEPS = 10

Rows = list[dict[str, str]]


@pytest.fixture(params=["lightning_automatic", "lightning_manual"], scope="module")
def runs(request: pytest.FixtureRequest) -> tuple[str, list[Rows]]:
    """Return a program's name, and the rows that its three runs logged."""
    return request.param, load(request.param).main(steps=STEPS)


def of_task(rows: Rows, kind: str, task: str) -> list[float]:
    """Return the numbers of a column, whose name may have the balancer's before it."""
    columns = [name for name in rows[0] if name.endswith(f"{kind}/{task}")]
    assert len(columns) == 1
    return [float(row[columns[0]]) for row in rows]


@pytest.mark.slow
def test_the_weights_move_and_the_losses_fall(runs: tuple[str, list[Rows]]) -> None:
    _, (whole, _, _) = runs
    weights = [of_task(whole, "weight", task) for task in ("size", "kind")]
    assert all(math.isclose(a + b, 2, rel_tol=1e-5) for a, b in zip(*weights, strict=True))
    assert abs(weights[0][-1] - 1) > 0.05
    for task in ("size", "kind"):
        losses = of_task(whole, "loss", task)
        assert all(map(math.isfinite, losses))
        assert losses[-1] < losses[0]


@pytest.mark.slow
def test_resuming_logs_what_the_uninterrupted_run_does(runs: tuple[str, list[Rows]]) -> None:
    name, (whole, first, second) = runs
    passes = 4 * STEPS - 2  # in each epoch
    assert len(whole) == {"lightning_automatic": 2 * STEPS // 5, "lightning_manual": 2 * passes}[name]
    assert len(first) == len(second) == len(whole) // 2
    assert same_in_all(first) == same_in_all(whole[: len(first)])
    assert same_in_all(second) == same_in_all(whole[len(first) :])


def same_in_all(rows: Rows) -> Rows:
    """Return the columns that do not need a measurement, which the first passes after resuming have not made yet."""
    return [{name: row[name] for name in row if name == "step" or "weight/" in name or "loss/" in name} for row in rows]
