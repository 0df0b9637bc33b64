"""The example of a detector: three losses of one head are balanced without a fork."""

from .programs import check_that_it_trains, load


def test_the_weights_move_and_each_loss_falls() -> None:
    history = load("shared_head").main(steps=80)

    check_that_it_trains(history, ["class", "box", "objectness"])
    assert all(step[f"gradient_norm/{task}"] > 0 for step in history for task in ("class", "box", "objectness"))
