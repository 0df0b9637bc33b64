"""Test that a run is a pure function of its specification, paired by seed, and records what the protocol asks for."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tasks
from bench.execute import run_job
from bench.execute.job import CannotRunError
from bench.execute.run_job import FailedStart, PortableRun
from bench.run import build, code_hash, result_file, training
from bench.run.seeds import STREAMS, generator, stream_seed
from bench.run.spec import Method, RunSpec, run_code
from bench.run.training import RunResult
from bench.suite import plan
from bench.suite.plan import Planned
from bench.suite.suite_entries import Suite
from tasks import Metric

from ...slow_params import others_slow

MakeSuite = Callable[..., Suite]
MakeSpec = Callable[..., RunSpec]


@pytest.fixture
def make_spec(make_suite: MakeSuite) -> MakeSpec:
    """Return a function that makes the specification of a reported run with seed 1."""

    def make(balancer: str = "equal", options: dict[str, Any] | None = None, **problem: Any) -> RunSpec:
        loaded = make_suite(
            problems=[{"name": "small", "options": problem}],
            balancers=[{"name": balancer, "options": options or {}}],
        )
        return plan.reported(loaded, None)[0].spec

    return make


def evaluated() -> list[str]:
    """Return the splits evaluated so far, as recorded by plugins/small.py."""
    (module,) = (module for name, module in sys.modules.items() if name.startswith("lossbench_plugin_small_"))
    splits: list[str] = module.EVALUATED
    return splits


def same(one: RunResult, other: RunResult) -> bool:
    return (
        one.scores == other.scores
        and one.curves == other.curves
        and one.dynamics == other.dynamics
        and np.array_equal(one.losses, other.losses)
        and np.array_equal(one.weights, other.weights)
    )


def test_streams_are_different_and_reproducible() -> None:
    seeds = [stream_seed(seed, stream) for seed in range(50) for stream in STREAMS]
    assert len(set(seeds)) == len(seeds)
    assert torch.equal(torch.rand(5, generator=generator(3, "data")), torch.rand(5, generator=generator(3, "data")))


@pytest.mark.parametrize("balancer", ["gradnorm", "uncertainty", "random-weights"])
def test_a_run_is_a_pure_function(make_spec: MakeSpec, balancer: str) -> None:
    spec = make_spec(balancer)
    torch.manual_seed(1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = training.run(spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(2)
    torch.set_num_threads(2)
    try:
        assert same(first, training.run(spec))
    finally:
        torch.set_num_threads(threads)
    assert not same(first, training.run(replace(spec, seed=2)))


def test_balancers_of_a_seed_are_given_the_same(make_spec: MakeSpec) -> None:
    """A method that draws random numbers changes neither the data nor the initial values nor the batches."""
    assert same(training.run(make_spec("equal")), training.run(make_spec("noisy")))
    first_losses = [training.run(make_spec(name)).losses[0] for name in ("equal", "gradnorm", "random-weights")]
    assert np.array_equal(first_losses[0], first_losses[1])
    assert np.array_equal(first_losses[0], first_losses[2])


def test_a_second_name_for_equal_weighting_gives_the_same_run(make_spec: MakeSpec) -> None:
    assert same(training.run(make_spec("equal")), training.run(make_spec("also-equal")))


def test_every_step_and_evenly_spaced_evaluations_are_kept(make_spec: MakeSpec) -> None:
    result = training.run(make_spec("gradnorm", steps=10))
    assert result.losses.shape == result.weights.shape == (10, 2)
    assert [evaluation.step for evaluation in result.curves] == [0, 2, 5, 8, 10]
    assert [dynamics.step for dynamics in result.dynamics] == [2, 5, 8, 10]
    assert np.array_equal(result.weights[0], [1, 1])
    assert all(dynamics.weight_sum == pytest.approx(2) for dynamics in result.dynamics)


def test_the_update_of_the_trunk_is_that_of_the_step(make_spec: MakeSpec) -> None:
    """With plain gradient descent it is the learning rate times the norm of the trunk's gradient."""
    spec = make_spec("equal", optimizer="sgd", steps=1)
    result = training.run(spec)
    problem = tasks.create("small", **spec.problem_options)
    torch.manual_seed(stream_seed(1, "initial values"))
    model = problem.model()
    batch = next(problem.batches(problem.data(generator(1, "data"), "cpu"), generator(1, "batches"), 16))
    sum(problem.losses(model, batch)).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in problem.shared(model).parameters]).norm()
    assert result.dynamics[0].trunk_update_norm == pytest.approx(spec.lr * float(norm), rel=1e-5)


def test_the_test_split_is_read_at_the_end_of_reported_runs_only(make_spec: MakeSpec) -> None:
    spec = make_spec()
    evaluated().clear()
    result = training.run(spec)
    validations = ["validation"] * 5
    ended = ["test"] * 3  # initial, best and last model
    ended += ["validation"] * 2  # last and initial model on training samples
    ended += ["validation", "test"]  # the constant predictor
    assert evaluated() == [*validations, *ended]
    assert {(score.checkpoint, score.split) for score in result.scores} == {
        ("last", "train"),
        *((checkpoint, split) for checkpoint in ("last", "best", "constant") for split in ("validation", "test")),
    }
    evaluated().clear()
    training.run(replace(spec, phase="tuning"))
    assert evaluated() == validations
    evaluated().clear()
    training.run(replace(spec, phase="tuning", method=Method("failing", None, {})))
    assert "test" not in evaluated()


def test_the_best_checkpoint_is_the_best_validation(make_spec: MakeSpec) -> None:
    """If the error rises again, the best checkpoint is an earlier model, with that model's test score."""
    result = training.run(make_spec("worsening", {"after": 20}, optimizer="sgd", steps=40))
    scores = {(score.checkpoint, score.split): score.metrics["error"] for score in result.scores}
    curve = [evaluation.metrics["error"] for evaluation in result.curves]
    best = int(np.argmin(curve))
    assert best == 2
    assert scores["best", "validation"] == curve[best]
    assert scores["last", "validation"] == curve[-1]
    assert scores["best", "test"] == pytest.approx(curve[best], rel=0.5)
    assert scores["best", "test"] != scores["last", "test"]


def test_a_method_that_raises_has_failed_with_what_it_did(make_spec: MakeSpec) -> None:
    result = training.run(make_spec("failing", {"after": 5}))
    assert result.status == "failed"
    assert result.reason.startswith("RuntimeError: this method gave up (methods.py, line ")
    assert result.losses.shape == (5, 2)
    assert [evaluation.step for evaluation in result.curves] == [0, 3]
    assert {(score.checkpoint, score.split) for score in result.scores} == {
        ("constant", "validation"),
        ("constant", "test"),
    }


def test_a_loss_that_is_not_finite_is_a_failure_at_its_step(make_spec: MakeSpec) -> None:
    result = training.run(make_spec("diverging", {"after": 4}))
    assert (result.status, result.reason) == ("failed", "DivergenceError: the loss of a is nan at step 6")
    assert len(result.losses) == 6
    assert np.array_equal(result.losses[:5], training.run(make_spec("equal")).losses[:5])


def test_the_constant_predictor_is_measured_like_a_model(make_spec: MakeSpec) -> None:
    """Its score is relative to the same initial model's: the variance of the targets over the initial loss."""
    spec = make_spec("failing", {"after": 0})
    (constant,) = [s for s in training.run(spec).scores if s.split == "test"]
    problem = tasks.create("small")
    data = problem.data(generator(1, "data"), "cpu")
    start = training.run(make_spec("equal")).curves[0].metrics
    expected = [
        float(((target - train_target.mean(0)) ** 2).mean())
        for target, train_target in zip(data["test"].targets, data["train"].targets, strict=True)
    ]
    assert [constant.metrics["loss of a"], constant.metrics["loss of b"]] == pytest.approx(expected)
    assert constant.metrics["error"] == pytest.approx(2, rel=0.5)
    assert start["error"] == 2
    assert not training.run(make_spec("failing", constant=False)).scores


def test_a_metric_that_is_declared_but_not_given_is_a_failure(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    monkeypatch.setattr(tasks.get("small"), "metrics", (*tasks.get("small").metrics, Metric("f1", "", "", True)))
    assert training.run(spec).reason.startswith(
        "ValueError: small.evaluate did not return f1, which small.metrics lists"
    )


@pytest.mark.parametrize("kind", ["raises", "is not finite"])
def test_a_finished_run_does_not_fail_by_a_score_that_decides_nothing(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Those are the score on training samples and that of the constant predictor."""
    small = tasks.get("small")
    evaluate = small.evaluate

    def odd(self: Any, model: Any, data: Any, split: Any, start: Any = None) -> dict[str, float]:
        metrics = evaluate(self, model, data, split, start)
        if data.get("seen") is None and not hasattr(model, "values"):
            return metrics
        if kind == "raises":
            raise ZeroDivisionError("no samples of one class")
        return metrics | {"error": float("nan")}

    spec = make_spec()
    whole = training.run(spec)
    monkeypatch.setattr(small, "seen", lambda self, data: {**data, "validation": data["train"], "seen": True})
    monkeypatch.setattr(small, "evaluate", odd)
    with pytest.warns(UserWarning, match="a run on small lacks the score") as told:
        result = training.run(spec)
    assert (result.status, result.reason) == ("ok", "")
    assert result.scores[:4] == whole.scores[:4]
    assert "train" not in [score.split for score in result.scores]
    lacks = [str(one.message).partition("lacks the ")[2] for one in told]
    assert lacks[0].startswith("score on training samples: ")
    if kind == "raises":
        assert lacks[1].startswith("score of the constant predictor: ZeroDivisionError: no samples of one class (")


@pytest.mark.parametrize("balancer", ["gradnorm", "famo"])
def test_losses_by_task_are_logged_in_the_order_of_tasks(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, balancer: str
) -> None:
    spec, small = make_spec(balancer), tasks.get("small")
    listed, losses = training.run(spec), small.losses

    def by_task(self: Any, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        first, second = losses(self, model, batch)
        return {"b": second, "a": first}

    evaluate = small.evaluate

    def with_a_list(self: Any, *given: Any) -> dict[str, float]:
        with monkeypatch.context() as patch:
            patch.setattr(small, "losses", losses)
            return evaluate(self, *given)

    monkeypatch.setattr(small, "losses", by_task)
    monkeypatch.setattr(small, "evaluate", with_a_list)
    assert same(training.run(spec), listed)


@pytest.mark.parametrize("method", ["data", "losses", "evaluate"])
def test_a_problem_that_exits_has_failed(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def leave(*_: object) -> None:
        sys.exit("no data here")

    spec = make_spec()
    monkeypatch.setattr(tasks.get("small"), method, leave)
    result = training.run(spec)
    assert result.status == "failed"
    assert result.reason.startswith("SystemExit: no data here (test_training.py, line ")
    start = run_job.first_steps(PortableRun.of(Planned("small", "equal", spec), ()))
    assert isinstance(start, FailedStart)
    assert start.reason == result.reason


def test_a_problem_that_exits_outside_of_its_run_ends_no_process(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: object) -> None:
        sys.exit("no data here")

    job = PortableRun.of(Planned("small", "equal", make_spec(), pictured=True), ())
    monkeypatch.setattr(tasks.get("small"), "draw", leave)
    drawn = run_job.do(job).picture
    assert drawn is not None
    assert drawn.caption == "No picture: SystemExit: no data here"
    monkeypatch.setattr(tasks.get("small"), "require", leave)
    with pytest.raises(CannotRunError, match=r"^SystemExit: no data here$"):
        run_job.do(job)


def test_a_process_that_may_run_old_code_does_no_run(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    job = PortableRun.of(Planned("small", "equal", make_spec()), ())
    monkeypatch.setattr(code_hash, "STARTED", 0.0)  # every file has changed since
    for cached in (run_code, code_hash._file_hash):
        cached.cache_clear()
    with pytest.raises(CannotRunError, match=r"^\S+\.py has changed since this process started"):
        run_job.do(job)


def test_sizes_are_kept_as_integers_of_python(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": np.int64(64), "validation": torch.tensor(64), "test": 64}
    monkeypatch.setattr(tasks.get("small"), "sizes", lambda *_: sizes)
    spec = make_spec()
    result = training.run(spec)
    assert (result.status, result.reason) == ("ok", "")
    back = result_file.decode(result_file.encode(spec, result), spec.key)
    assert back.sizes == {"train": 64, "validation": 64, "test": 64}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": "many"}, "sizes of small gives 'many' for 'train'; expected a whole number"),
        ({"train": 0.5}, "sizes of small gives 0.5 for 'train'; expected a whole number"),
        (None, "sizes of small returns None; expected a dict from each split to a whole number"),
    ],
)
def test_sizes_that_are_no_whole_numbers_are_a_failure(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, sizes: object, message: str
) -> None:
    spec = make_spec()
    monkeypatch.setattr(tasks.get("small"), "sizes", lambda *_: sizes)
    assert training.run(spec).reason.startswith(f"TypeError: {message} (training.py, line ")
    start = run_job.first_steps(PortableRun.of(Planned("small", "equal", spec), ()))
    assert isinstance(start, FailedStart)
    assert start.reason.startswith(f"TypeError: {message}")


@pytest.mark.parametrize("balancer", ["equal", "coba"])
def test_batches_that_end_are_a_failure_that_says_so(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, balancer: str
) -> None:
    spec = make_spec(balancer, {"warm_up": 2, "window": 3} if balancer == "coba" else {})
    whole, drawn = tasks.get("small").batches, 5

    def one_epoch(self: Any, data: Any, generator: torch.Generator, batch_size: int) -> Any:
        return itertools.islice(whole(self, data, generator, batch_size), drawn)

    monkeypatch.setattr(tasks.get("small"), "batches", one_epoch)
    result = training.run(spec)
    assert result.status == "failed"
    assert result.reason == (
        "BatchesEndedError: small.batches ended after 5 batches, but each step of training draws one: it must not end, "
        "so put what it does in a loop `while True:`"
    )
    assert len(result.losses) <= drawn


def test_an_update_whose_norm_is_not_finite_is_a_failure(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_distance", lambda shared, before: float("inf"))
    result = training.run(make_spec())
    assert result.status == "failed"
    assert result.reason == "DivergenceError: the norm of the shared parameters' update is inf at step 3"


def test_the_last_checkpoint_is_scored_where_it_trained(make_spec: MakeSpec) -> None:
    spec = make_spec()
    made = training.Training(spec)
    made.run()
    scores = {(score.checkpoint, score.split): score.metrics for score in made.result.scores}
    samples = made.problem.data(generator(spec.seed, "data"), "cpu")["train"]
    losses = [loss.item() for loss in made.problem.losses(made.model, samples)]
    assert [scores["last", "train"][f"loss of {task}"] for task in "ab"] == pytest.approx(losses)
    start = made.start_on_seen(made.problem.seen(made.data))
    relative = sum(loss / start[f"loss of {task}"] for task, loss in zip("ab", losses, strict=True))
    assert scores["last", "train"]["error"] == pytest.approx(relative)
    tuned = training.run(replace(spec, phase="tuning"))
    assert {score.split for score in tuned.scores} == {"validation"}


def test_ctrl_c_is_no_failure(make_spec: MakeSpec) -> None:
    with pytest.raises(KeyboardInterrupt):
        training.run(make_spec("failing", {"interrupt": True}))


def test_the_optimiser_has_the_networks_parameters_alone(make_spec: MakeSpec) -> None:
    spec = make_spec("uncertainty")
    problem = tasks.create("small")
    model = problem.model()
    build.balancer(spec.method, problem, model)
    optimizer = build.optimizer(model, spec.recipe)
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in model.parameters()}
    assert all((group["weight_decay"], group["betas"]) == (0, (0.9, 0.999)) for group in optimizer.param_groups)
    changed = build.optimizer(model, replace(spec.recipe, betas=(0.9, 0.95), weight_decay=0.01))
    assert all((group["weight_decay"], group["betas"]) == (0.01, (0.9, 0.95)) for group in changed.param_groups)


def test_the_key_changes_with_the_specification_and_nothing_else(make_suite: MakeSuite) -> None:
    def keys(**parts: Any) -> list[str]:
        return [run.key for run in plan.reported(make_suite(**parts), None)]

    base = keys()
    assert len(set(base)) == len(base) == 6
    relabelled = [{"name": "equal", "label": "x"}, {"name": "gradnorm", "wrt": "layer"}]
    assert keys(balancers=relabelled, rounds=9, tuning=[7, 8], learning_rates=[1, 2]) == base
    changed = keys(balancers=[{"name": "equal"}, {"name": "gradnorm", "options": {"alpha": 0.5}}])
    assert changed[:3] == base[:3]
    assert not set(changed[3:]) & set(base)
    assert not set(keys(evaluations=5)) & set(base)
    assert not set(keys(problems=[{"name": "small", "steps": 13}])) & set(base)


@pytest.mark.parametrize(
    ("balancer", "options"), [("modo", {}), ("sdmgrad", {}), ("auto-lambda", {}), ("coba", {"warm_up": 2, "window": 3})]
)
def test_a_second_batch_comes_from_held_out_training_data(
    make_spec: MakeSpec, balancer: str, options: dict[str, Any]
) -> None:
    one, other = training.Training(make_spec(balancer, options)), training.Training(make_spec("equal"))
    one.run()
    other.run()
    assert (one.result.status, one.result.reason) == ("ok", "")
    assert one.result.weights[-1, 0] != one.result.weights[-1, 1]
    assert one.result.sizes == other.result.sizes
    assert not np.array_equal(one.result.losses[0], other.result.losses[0])  # of batches of another training set
    assert same(one.result, training.run(make_spec(balancer, options)))


@pytest.mark.parametrize(
    "weighting",
    others_slow(
        ["uncertainty", {"name": "gradnorm", "alpha": 0.5}, {"name": "dwa", "period": 2}, "unit-norm"], "uncertainty"
    ),
)
def test_a_suite_may_put_a_weighting_before_a_method(make_spec: MakeSpec, weighting: Any) -> None:
    spec = make_spec("pcgrad", {"weighting": weighting})
    one, alone = training.run(spec), training.run(make_spec("pcgrad"))
    assert (one.status, one.reason) == ("ok", "")
    assert not np.array_equal(one.weights, alone.weights)
    name = weighting if isinstance(weighting, str) else weighting["name"]
    assert spec.method.names == ("pcgrad", name)
    assert len({spec.key, make_spec("pcgrad").key, make_spec("pcgrad", {"weighting": "relobralo"}).key}) == 3


@pytest.mark.slow
def test_the_code_of_a_weighting_is_part_of_the_key() -> None:
    assert run_code("regression", "pcgrad", "uncertainty") != run_code("regression", "pcgrad")


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        ({"alpha": 1.0}, "weighting is {'alpha': 1.0}; expected a method's name, or a table"),
        ("imtl", "IMTL weighs the losses before it combines"),
        ("unknown", "unknown"),
    ],
)
def test_a_suite_is_told_what_is_wrong_with_a_weighting(make_spec: MakeSpec, weighting: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        make_spec("pcgrad", {"weighting": weighting})
