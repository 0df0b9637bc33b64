"""The loop of one's own trains, moves the weights, and goes on from its checkpoint to the bit."""

from .programs import check_that_it_trains, load


def test_trains_and_goes_on_from_a_checkpoint() -> None:
    history, resumed = load("plain_loop").main()
    assert len(history) == 200
    assert resumed == history[100:]
    check_that_it_trains(history, ["price", "kind"])
    for task in ("price", "kind"):
        assert 0.5 < history[0][f"loss/{task}"] < 2  # the losses were brought to one scale
