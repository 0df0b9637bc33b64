"""Test ``lossbench try``: a comparison on a user's own problem that fits a given time, and the answer at its end."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.execute.forecast import Forecast
from bench.report.answer import answer
from bench.report.results_folder import Results, load
from bench.run.seeds import generator
from bench.run.training import Training
from bench.suite import plan, suite_file, try_suite
from bench.suite.toml_table import SuiteError

from ..report.made_up_results import build

pytestmark = pytest.mark.xdist_group("processes")

SMALL = (Path(__file__).parents[1] / "plugins" / "small.py").read_text()
OWN = """
from torch import Tensor, ones_like
from balancers import LossBalancer, register as register_method

@register_method
class Ones(LossBalancer):
    name = "{name}-ones"
    summary = "A weight of one each."
    reads = "losses"

    def weigh(self, losses: Tensor) -> Tensor:
        return ones_like(losses)
"""


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a file that registers a problem and a method under names that only this test has."""
    name = re.sub(r"\W", "-", request.node.name)
    path = tmp_path / "mine.py"
    path.write_text(SMALL.replace('name = "small"', f'name = "{name}"') + OWN.format(name=name))
    return path


def labels(made: suite_file.Suite) -> list[str]:
    return [entry.label for entry in made.balancers]


def test_all_core_methods_a_control_and_ones_own_are_compared(file, tmp_path):
    made, _ = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=Forecast(jobs=1))
    assert labels(made)[:-1] == list(try_suite.METHODS)
    assert labels(made)[-1].endswith("-ones")
    assert made.baselines
    assert made.cost_rounds > 0
    assert len(made.learning_rates) == 5
    assert len(made.tuning_seeds) == 2
    assert len(made.reported_seeds) == 10


def test_the_comparison_shrinks_to_the_time_there_is(file, tmp_path):
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(jobs=1))
    assert len(made.learning_rates) == 3
    assert len(made.tuning_seeds) == 1
    assert len(made.reported_seeds) == 3
    assert "longer than 0 minutes" in said[0]


def test_the_suite_is_kept_and_can_be_run_by_itself(file, tmp_path):
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(jobs=1))
    assert said[-1].startswith(f"the suite is in {tmp_path / 'results' / 'mine.toml'}")
    again = suite_file.load(tmp_path / "results" / "mine.toml")
    assert again.written == made.written
    assert labels(again) == labels(made)


def without_weights(file: Path) -> None:
    file.write_text(file.read_text().replace('static_weights = {"inverse": (1.8, 0.2)}', ""))


def test_without_stated_weights_static_ones_are_one_over_the_first_losses(file, tmp_path):
    without_weights(file)
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(jobs=1))
    assert said[0].startswith("static has weights of one over an untrained model's losses")
    (problem,) = made.problems
    static = next(entry for entry in made.balancers if entry.label == "static")
    weights = static.methods[problem.label].options["weights"]
    training = Training(replace(plan.reported(made, None)[0].spec, seed=try_suite.TUNING))
    training.prepare()
    batches = training.problem.batches(
        training.data, generator(try_suite.TUNING, "batches"), training.spec.recipe.batch_size
    )
    batch = next(batches)
    losses = [float(loss.detach()) for loss in training.problem.losses(training.model, batch)]
    assert weights[0] / weights[1] == pytest.approx(losses[1] / losses[0], rel=1e-3)
    assert sum(weights) == pytest.approx(2, abs=1e-3)


def test_what_cannot_be_made_is_left_out_with_the_reason(file, tmp_path, monkeypatch):
    without_weights(file)
    file.write_text(
        file.read_text().replace(
            "    def losses(", "    def losses(self, *_):\n        return -torch.ones(2)\n\n    def unused("
        )
    )
    monkeypatch.setattr(try_suite, "METHODS", ("equal", "static"))
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(jobs=1))
    assert labels(made)[0] == "equal"
    assert "static" not in labels(made)
    assert said[0].startswith(
        "static is left out: the problem states no static_weights, and not all of its first losses"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("import nothing_of_this_name", "can't be loaded: ModuleNotFoundError"),
        ("x = 1", "registers no problem"),
    ],
)
def test_what_is_no_problem_is_refused_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "wrong.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SuiteError, match=message):
        try_suite.make(path, tmp_path / "results", minutes=0, seconds_of=Forecast(jobs=1))


@pytest.mark.slow
def test_the_command_ends_with_an_answer(file, tmp_path, monkeypatch):
    monkeypatch.setattr(try_suite, "METHODS", ("equal", "static", "uncertainty"))
    done = CliRunner().invoke(app, ["try", str(file), "--minutes", "0", "--results", str(tmp_path), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "mine" / "report.html").is_file()
    assert re.search(r"^test_\S+: (try \S+, |stay with equal\.)", done.output, re.MULTILINE)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Return made-up results of one problem: static scores best and costs least, and GradNorm is better than equal."""
    return load(build(tmp_path / "made-up", num_tasks=(2,), failing=""))


def test_the_answer_names_the_best_and_its_price(results):
    (said,) = answer(results)
    assert re.fullmatch(
        r"regression, 2 tasks: try static 1/sigma², 0\.\d+× \[.*\] of equal's score, at 1\.0\d× the time of a step\.",
        said,
    )


def test_a_cheaper_one_that_is_better_too_is_named(results):
    board = results.board.copy()
    board.loc[board["balancer"] == "static 1/sigma²", "step_ratio"] = 3.0
    (said,) = answer(replace(results, board=board))
    assert "try static 1/sigma²" in said
    assert "at 3.00× the time of a step. The cheapest better method: GradNorm" in said


def test_where_nothing_is_better_the_answer_is_to_stay(results):
    verdicts = {"equal": "", "static 1/sigma²": "tie", "uncertainty": "worse", "GradNorm": "not settled"}
    board = results.board.assign(verdict=results.board["balancer"].map(verdicts))
    assert answer(replace(results, board=board)) == [
        "regression, 2 tasks: stay with equal. No method is better beyond noise (1 worse, 1 tie, 1 not settled)."
    ]


def test_defaults_and_single_seeds_get_no_answer(results):
    assert answer(replace(results, ranking=False)) == []
    assert answer(replace(results, board=results.board.assign(verdict=""))) == []
