"""The example of mixed precision trains in bfloat16 and in float16, and a skipped step teaches the balancer nothing."""

from itertools import pairwise

import torch

from .programs import check_that_it_trains, load

TASKS = ["price", "kind"]


def test_in_bfloat16_no_step_is_skipped() -> None:
    history = load("mixed_precision").main(steps=60, dtype=torch.bfloat16)

    assert not any(step["skipped"] for step in history)
    check_that_it_trains(history, TASKS)


def test_in_float16_the_weights_stay_in_a_skipped_step_and_move_in_the_others() -> None:
    history = load("mixed_precision").main(steps=60, dtype=torch.float16)

    assert history[0]["skipped"]
    assert not history[-1]["skipped"]
    check_that_it_trains(history, TASKS)
    for step, after in pairwise(history):  # a step shows the weights that it used: what it learnt shows in the next one
        for task in TASKS:
            assert (after[f"weight/{task}"] == step[f"weight/{task}"]) == step["skipped"]


def test_the_norms_are_those_without_a_scale() -> None:
    program = load("mixed_precision")
    scaled, exact = (program.main(steps=10, dtype=dtype) for dtype in (torch.float16, torch.bfloat16))

    made = next(step for step in scaled if not step["skipped"])  # the network is still the one that training began with
    for task in TASKS:
        ratio = made[f"gradient_norm/{task}"] / exact[0][f"gradient_norm/{task}"]
        assert 0.5 < ratio < 2  # batches differ; a scale would make it a million
