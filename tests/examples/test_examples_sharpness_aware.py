"""The example of SAM: both gradients of a step have the same weights, and the minimum is flatter than a plain one."""

from itertools import pairwise

import pytest

from .programs import check_that_it_trains, load


def test_both_evaluations_of_a_step_have_the_same_weights_and_the_next_step_has_others() -> None:
    history, _ = load("sharpness_aware").main(steps=60)

    used = [[(each["weight/sine"], each["weight/product"]) for each in step] for step in history]
    assert all(first == second for first, second in used)
    assert used[0][0] == (1.0, 1.0)
    assert all(before != after for before, after in pairwise(used))
    check_that_it_trains([first for first, _ in history], ["sine", "product"])


@pytest.mark.slow
def test_it_climbs_before_the_second_and_ends_flatter() -> None:
    program = load("sharpness_aware")
    history, rise = program.main(steps=300)
    plain_history, plain_rise = program.main(steps=300, rho=0.0)

    for first, second in history:
        totals = [
            sum(each[f"weight/{task}"] * each[f"loss/{task}"] for task in ("sine", "product"))
            for each in (first, second)
        ]
        assert totals[1] > totals[0]
    assert all(first == second for first, second in plain_history)
    assert 0 < rise < plain_rise
