"""The example of L-BFGS: weights hold within each of the optimiser's steps, and move between them."""

import math
from itertools import pairwise

from .programs import load


def test_all_evaluations_of_a_step_have_the_same_weights_and_the_next_step_has_others() -> None:
    steps = load("lbfgs").main(steps=6)

    assert all(len(evaluations) > 1 for evaluations in steps)
    used = [{(each["weight/sine"], each["weight/product"]) for each in evaluations} for evaluations in steps]
    assert all(len(weights) == 1 for weights in used)
    assert used[0] == {(1.0, 1.0)}
    assert all(before != after for before, after in pairwise(used))


def test_the_value_is_the_weighted_sum_of_the_losses_which_fall() -> None:
    steps = load("lbfgs").main(steps=6)

    for each in (each for evaluations in steps for each in evaluations):
        total = sum(each[f"weight/{task}"] * each[f"loss/{task}"] for task in ("sine", "product"))
        assert math.isclose(each["total"], total, rel_tol=1e-5)
    first, last = steps[0][0], steps[-1][-1]
    assert last["loss/sine"] < first["loss/sine"]
    assert last["loss/product"] < first["loss/product"]
