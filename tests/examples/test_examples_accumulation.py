"""The example of accumulation makes one update a step of the optimiser, also in windows that lack passes or a task."""

import math

import pytest

from .programs import check_that_it_trains, load


def test_each_window_is_one_update_and_both_tasks_learn(capsys: pytest.CaptureFixture[str]) -> None:
    history = load("accumulation").main(steps=40)

    assert [step["passes"] for step in history[:10]] == [4, 4, 4, 4, 2] * 2
    assert sum(step["passes"] for step in history) == 144
    assert "40 updates out of 144 backward passes" in capsys.readouterr().out
    check_that_it_trains(history, ["depth", "normal"])


def test_the_balancer_sees_a_task_s_mean_over_the_passes_that_have_it() -> None:
    """The first window's losses are those that the balancer takes for the initial ones."""
    program = load("accumulation")
    made = []
    method = program.GradNorm
    program.GradNorm = lambda *arguments, **options: made.append(method(*arguments, **options)) or made[-1]

    [first] = program.main(steps=1)

    for task, initial in zip(("depth", "normal"), made[0].initial_losses.tolist(), strict=True):
        assert math.isclose(initial, first[f"loss/{task}"], rel_tol=1e-5)
