"""The example of a loader per task: a task without a label keeps its weight, and all tasks learn."""

from .programs import check_that_it_trains, load


def test_tasks_whose_labels_are_missing_keep_their_weights_for_the_next_step() -> None:
    program = load("loader_per_task")
    history = program.main(steps=120)

    assert len(history) == 120
    check_that_it_trains(history, list(program.LENGTHS))
    given = [{task for task in program.LENGTHS if f"loss/{task}" in step} for step in history]
    assert any(len(tasks) == 3 for tasks in given)
    assert all(1 <= len(tasks) <= 3 for tasks in given)
    for task in program.LENGTHS:
        assert any(task in tasks for tasks in given)
    left_out = [i for i, tasks in enumerate(given[:-1]) if "product" not in tasks]
    assert left_out
    for i in left_out:  # a step shows the weights that it used: what it learnt shows in the next one
        assert history[i + 1]["weight/product"] == history[i]["weight/product"]


def test_missing_labels_and_ended_data_sets_yield_no_sample() -> None:
    program = load("loader_per_task")
    batches = program.draw({task: program.make_loader(task) for task in program.LENGTHS})
    epoch = [next(batches) for _ in range(30)]

    assert all(y.isfinite().all() and len(x) == len(y) > 0 for drawn in epoch for x, y in drawn.values())
    assert sum("product" in drawn for drawn in epoch) <= 10
