"""Test ``lossbench try``: a comparison on a user's own problem that fits a given time, and the answer at its end."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from typer.testing import CliRunner

import tasks
from bench.cli import app
from bench.execute.forecast import Forecast
from bench.execute.workforce import Workforce
from bench.report.answer import answer, caveat
from bench.report.results_folder import Results, load
from bench.run import plugins
from bench.run.seeds import generator
from bench.run.training import Training
from bench.style import numbers
from bench.suite import plan, suite_file, try_suite
from bench.suite.claimed_folder import BusyError
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

from ..report.made_up_results import BALANCERS, build

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


def labels(made: Suite) -> list[str]:
    return [entry.label for entry in made.balancers]


@pytest.mark.slow
def test_all_core_methods_a_control_and_ones_own_are_compared(file, tmp_path):
    made, _ = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=Forecast(Workforce.of(0)))
    assert labels(made)[:-1] == ["equal", "equal, 2 x steps", *try_suite.METHODS[1:]]
    assert labels(made)[-1].endswith("-ones")
    assert made.baselines
    assert made.cost_rounds > 0
    assert len(made.learning_rates) == 5
    assert len(made.tuning_seeds) == 3
    assert made.finer == 1.78
    assert len(made.reported_seeds) == 10


def test_what_it_aims_at_includes_a_grown_grid(file, tmp_path):
    made, said = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 120.0)
    runs = 12 * (3 * (5 + 1 + 2) + 10) + 2 * 10  # the grid, beyond its edge, around the best; both tasks alone
    assert said[-2] == (
        f"the comparison aims at 60 minutes: {runs} runs in about 2 minutes, if the grid of learning rates grows at "
        "one edge; other programs make it slower"
    )
    assert len(labels(made)) == 12


def test_declared_likelihoods_are_those_of_uncertainty_weighting(file, tmp_path):
    declared = '    likelihoods = {"a": "softmax", "b": "gaussian"}\n    primary ='
    file.write_text(file.read_text().replace("    primary =", declared, 1))
    made, _ = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)
    (problem,) = made.problems
    methods = {entry.label: entry.methods[problem.label].options for entry in made.balancers}
    assert methods["uncertainty"] == {"likelihoods": ["softmax", "gaussian"]}
    assert methods["gradnorm"] == {}


def test_problems_with_different_likelihoods_are_told(file, tmp_path):
    second = '\n\n@register\nclass Second(Small):\n    name = "other-likelihoods"\n'
    second += '    likelihoods = {"a": "softmax", "b": "gaussian"}\n'
    file.write_text(file.read_text() + second)
    made, said = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)
    assert "uncertainty has Gaussian likelihoods, because the problems in the file declare different ones" in said
    uncertainty = next(entry for entry in made.balancers if entry.label == "uncertainty")
    assert [method.options for method in uncertainty.methods.values()] == [{}, {}]


def test_an_unknown_likelihood_leaves_uncertainty_weighting_out(file, tmp_path):
    declared = '    likelihoods = {"a": "poisson", "b": "gaussian"}\n    primary ='
    file.write_text(file.read_text().replace("    primary =", declared, 1))
    made, said = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)
    assert "uncertainty" not in labels(made)
    assert any(
        sentence.startswith("uncertainty is left out: likelihoods ") and "'poisson'" in sentence for sentence in said
    )


@pytest.mark.slow
def test_the_comparison_shrinks_to_the_time_there_is(file, tmp_path):
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(Workforce.of(0)))
    assert len(made.learning_rates) == 3
    assert len(made.tuning_seeds) == 1
    assert len(made.reported_seeds) == 3
    assert "longer than 0 minutes" in said[0]


def test_the_same_command_goes_on_with_the_same_comparison_on_a_busier_computer(file, tmp_path):
    make = partial(try_suite.make, file, tmp_path / "results")
    made, _ = make(minutes=60, seconds_of=lambda *_: 120.0)
    again, said = make(minutes=60, seconds_of=lambda *_: 10_000.0)
    assert again.written.text == made.written.text == (tmp_path / "results" / "mine.toml").read_text()
    assert said[-2].startswith("this goes on with the comparison made for 60 minutes: 428 runs in about 167 minutes")
    fewer, said = make(minutes=30, seconds_of=lambda *_: 10_000.0)
    assert len(fewer.reported_seeds) < len(made.reported_seeds)
    assert not any("so it was kept" in sentence for sentence in said)


@pytest.mark.slow
def test_the_suite_is_kept_and_can_be_run_by_itself(file, tmp_path):
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(Workforce.of(0)))
    path = tmp_path / "results" / "mine.toml"
    command = f"lossbench run {path} --results {tmp_path}"
    assert said[-1] == f"the suite is in {path}; to go on from there, edit it and run: {command}"
    again = suite_file.load(tmp_path / "results" / "mine.toml")
    assert again.written == made.written
    assert labels(again) == labels(made)


def test_a_suite_that_the_user_edited_is_kept(file, tmp_path, monkeypatch):
    monkeypatch.setattr(try_suite, "METHODS", ("equal",))
    path = tmp_path / "results" / "mine.toml"
    make = partial(try_suite.make, file, path.parent, seconds_of=lambda *_: 120.0)
    make(minutes=0)
    _, said = make(minutes=60)  # another size of the same suite
    assert [each.name for each in path.parent.glob("mine*")] == ["mine.toml"]
    made = path.read_text()
    for number, edited in enumerate(["# mine\n" + made, "# mine, too\n" + made]):
        path.write_text(edited)
        _, said = make(minutes=60)
        before = path.with_name(["mine.toml.before", "mine.toml.before-2"][number])
        assert f"{path} is not as this command makes it, so it was kept: it is now {before.name}" in said
        assert before.read_text() == edited
        assert path.read_text() == made


def test_a_suite_that_is_running_is_left_alone(file, tmp_path):
    path = tmp_path / "results" / "mine.toml"
    path.parent.mkdir()
    path.write_text("edited")
    with FileLock(path.with_name(".lock")), pytest.raises(BusyError):
        try_suite.make(file, path.parent, minutes=60, seconds_of=lambda *_: 0.0)
    assert [each.read_text() for each in path.parent.glob("mine*")] == ["edited"]


def test_another_file_of_the_same_name_is_refused(file, tmp_path):
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)
    other.write_text(file.read_text().replace('name = "test', 'name = "another'))
    with pytest.raises(SuiteError, match=rf"results of {re.escape(str(file))}, and not of {re.escape(str(other))}"):
        try_suite.make(other, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)


def without_weights(file: Path) -> None:
    file.write_text(file.read_text().replace('static_weights = {"inverse": (1.8, 0.2)}', ""))


@pytest.mark.slow
def test_without_stated_weights_static_ones_are_one_over_the_first_losses(file, tmp_path):
    without_weights(file)
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(Workforce.of(0)))
    assert said[0].startswith("static 1/untrained loss has weights of one over an untrained model's losses")
    (problem,) = made.problems
    static = next(entry for entry in made.balancers if entry.label == try_suite.UNTRAINED)
    assert made.written.roles("mine").static == try_suite.UNTRAINED
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


@pytest.mark.slow
def test_what_cannot_be_made_is_left_out_with_the_reason(file, tmp_path, monkeypatch):
    without_weights(file)
    file.write_text(
        file.read_text().replace(
            "    def losses(",
            "    def losses(self, *given):\n        return [-loss for loss in self.unused(*given)]\n\n    def unused(",
        )
    )
    monkeypatch.setattr(try_suite, "METHODS", ("equal", "static"))
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(Workforce.of(0)))
    assert labels(made)[0] == "equal"
    assert "static" not in labels(made)
    assert said[0].startswith(
        "static is left out: the problem states no static_weights, and not all of its first losses"
    )


@pytest.mark.parametrize(("losses", "weights"), [((1.0, 1.15), None), ((1.0, 1.5), [1.2, 0.8])])
def test_weights_that_are_all_but_equal_are_no_row_of_their_own(file, losses, weights):
    without_weights(file)
    (name,) = plugins.registered(file).problems
    problem, notes = tasks.create(name), []
    first = {name: dict(zip(problem.tasks, losses, strict=True))}
    if weights is None:
        with pytest.raises(ValueError, match="its weights are within 10 % of 1"):
            try_suite._weights([problem], first, notes)
    else:
        assert try_suite._weights([problem], first, notes) == weights
    assert len(notes) == (weights is not None)


KEPT_BACK = """

@register
class KeptBack(Small):
    name = "{name}-kept-back"
    reserved = True
"""


@pytest.mark.slow
def test_reserved_problems_are_left_out(file, tmp_path):
    file.write_text(file.read_text() + KEPT_BACK.format(name="beside"))
    made, said = try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(Workforce.of(0)))
    assert [entry.name for entry in made.problems] == ["test_reserved_problems_are_left_out"]
    assert said[0] == "beside-kept-back is left out: it is reserved, so methods may not be compared on it yet"


def test_a_file_of_reserved_problems_alone_is_refused(file, tmp_path):
    text = file.read_text()
    file.write_text(text.replace("    summary = ", "    reserved = True\n    summary = ", 1))
    with pytest.raises(SuiteError, match=r"mine\.py registers only reserved problems, on which"):
        try_suite.make(file, tmp_path / "results", minutes=0, seconds_of=Forecast(Workforce.of(0)))


def test_a_problem_without_metrics_of_single_tasks_is_told_what_the_report_lacks(file, tmp_path):
    _, said = try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)
    assert "declares no metric of a single task" not in " ".join(said)
    text = file.read_text().replace(', task="a"', "").replace(', task="b"', "")
    other = tmp_path / "other.py"
    other.write_text(text.replace('name = "test', 'name = "untold'))
    _, said = try_suite.make(other, tmp_path / "others", minutes=60, seconds_of=lambda *_: 0.0)
    assert "declares no metric of a single task, so the report can't show which task a method helps" in said[0]


def test_a_model_that_cannot_be_made_is_the_problems_fault(file, tmp_path):
    file.write_text(file.read_text().replace("return Net(len(self.tasks))", "return Net()"))
    with pytest.raises(SuiteError, match=r"mine\.py: the model of \S+ can't be used: TypeError: .*num_tasks"):
        try_suite.make(file, tmp_path / "results", minutes=60, seconds_of=lambda *_: 0.0)


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
        try_suite.make(path, tmp_path / "results", minutes=0, seconds_of=Forecast(Workforce.of(0)))


@pytest.mark.slow
def test_the_command_ends_with_an_answer(file, tmp_path, monkeypatch):
    monkeypatch.setattr(try_suite, "METHODS", ("equal", "static", "uncertainty"))
    done = CliRunner().invoke(app, ["try", str(file), "--minutes", "0", "--results", str(tmp_path), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "mine" / "report.html").is_file()
    assert re.search(r"^test_\S+: (try \S+, |stay with equal\.|undecided on 3 seeds\.)", done.output, re.MULTILINE)
    assert ("4 methods were compared on 1 problem" in done.output) == (": try " in done.output)
    assert "Task by task, means over seeds" in done.output
    assert "suite core" not in done.output


BREAKS = {
    "no score": ('return {"error": sum(relative), **metrics}', "return metrics"),
    "nothing": ('return {"error": sum(relative), **metrics}', "print(relative)"),
    "losses": (
        "return [nn.functional.mse_loss",
        "raise RuntimeError('no such layer')\n        return [nn.functional.mse_loss",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ("no score", r"evaluate of test_\S+ gives no 'error', which its metrics declare"),
        ("nothing", r"evaluate of test_\S+ returns nothing; expected a dict of its metrics"),
        ("losses", r"RuntimeError: no such layer \(mine\.py, line \d+\)"),
    ],
)
def test_a_problem_that_cannot_work_ends_the_command_before_any_run(file, tmp_path, broken, cause):
    text, wrong = BREAKS[broken]
    assert text in file.read_text()
    file.write_text(file.read_text().replace(text, wrong))
    done = CliRunner().invoke(app, ["try", str(file), "--minutes", "60", "--results", str(tmp_path), "--jobs", "1"])
    assert done.exit_code == 2, done.output
    assert re.search(
        rf"^error: nothing was run\.\ntest_\S+: every method fails in its first steps\. {cause}", done.output
    )
    assert "Traceback" not in done.output
    assert not (tmp_path / "mine" / "runs").exists()


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


def failing(results: Results, **failed: int) -> Results:
    """Return the results with as many failed runs of these methods, of which each has five."""
    return replace(
        results, board=results.board.assign(failed=results.board["balancer"].map(failed).fillna(0).astype(int))
    )


def test_a_method_with_failed_runs_is_not_recommended(results):
    (said,) = answer(failing(results, **{"static 1/sigma²": 2}))
    assert "try GradNorm" in said
    assert said.endswith("Not recommended, because runs failed: static 1/sigma² (2 of 5).")


def test_failed_runs_are_no_tie_and_lead_nowhere(results):
    found = compared(results, (0.57, 0.26, 1.21))  # GradNorm leads, but is not settled
    assert answer(failing(found, **{"static 1/sigma²": 5, "GradNorm": 1, "uncertainty": 1})) == [
        "regression, 2 tasks: stay with equal. No method is better beyond noise (1 worse, 2 with failed runs). Not "
        "recommended, because runs failed: static 1/sigma² (5 of 5), GradNorm (1 of 5) and uncertainty (1 of 5). A "
        "step of the other methods takes 1.01 to 1.20 times as long."
    ]


def test_what_is_imputed_to_equal_weighting_is_told(results):
    (said,) = answer(failing(results, equal=2))
    told = "2 of 5 runs of equal failed, and count with an imputed score, which is in every ratio here."
    assert "try static 1/sigma²" in said
    assert told in said
    (said,) = answer(failing(compared(results, (0.99, 0.91, 1.08)), equal=2))
    assert told in said


def test_without_a_run_of_equal_weighting_there_is_no_ratio(results):
    (said,) = answer(failing(results, equal=5, uncertainty=1))
    assert re.fullmatch(
        r"regression, 2 tasks: try static 1/sigma², whose runs did not fail, at 1\.0\d× the time of a step; all 5 "
        r"runs of equal did\. No run of GradNorm failed either; the first has the best mean\.",
        said,
    )
    everyone = dict.fromkeys(results.board["balancer"], 5)
    assert answer(failing(results, **everyone)) == [
        "regression, 2 tasks: nothing can be compared: all 5 runs of equal failed, and runs of every other method."
    ]


def test_without_a_score_that_is_said(results):
    """No run was left, and no constant predictor whose score could be imputed, so that there are no verdicts."""
    failed = failing(results, **dict.fromkeys(results.board["balancer"], 5))
    (said,) = answer(replace(failed, board=failed.board.assign(verdict="")))
    assert "nothing can be compared" in said


def test_a_cheaper_one_that_is_better_too_is_named(results):
    board = results.board.copy()
    board.loc[board["balancer"] == "static 1/sigma²", "step_ratio"] = 3.0
    (said,) = answer(replace(results, board=board))
    assert "try static 1/sigma²" in said
    assert "at 3.00× the time of a step. The cheapest better method: GradNorm" in said


@pytest.mark.parametrize(
    ("steps", "words"),
    [(2, r"0\.\d+× \[.*\] with twice the steps\."), (3, r".* with 3 times the steps\."), (0.5, None)],
)
def test_what_longer_training_gives_is_told_beside_the_answer(results, steps, words):
    """As a yardstick it is never recommended, even if it scores best."""
    label, longer = (
        "equal, longer",
        f'\n[[balancers]]\nname = "equal"\nlabel = "equal, longer"\ntimes_steps = {steps}\n',
    )
    best = results.board[results.board["balancer"] == "static 1/sigma²"].assign(balancer=label, relative=0.1)
    board = pd.concat([best, results.board])
    (results.path / "suite.toml").write_text(results.suite_toml + longer)
    (said,) = answer(replace(load(results.path), board=board))
    assert "try static 1/sigma²" in said
    told = re.search(f"Longer training at equal weights gives {words}", said)
    assert (told is not None) == (words is not None)
    assert label not in said


VERDICTS = {"equal": "", "static 1/sigma²": "tie", "uncertainty": "worse", "GradNorm": "not settled"}


def compared(results: Results, gradnorm: tuple[float, float, float], scale: str = "ratio") -> Results:
    """Return the results with these `VERDICTS`, and with this estimate of GradNorm compared with equal weighting."""
    board = results.board.assign(verdict=results.board["balancer"].map(VERDICTS), scale=scale)
    board.loc[board["balancer"] == "GradNorm", ["relative", "relative_low", "relative_high"]] = gradnorm
    return replace(results, board=board)


def test_where_nothing_is_better_the_answer_is_to_stay(results):
    """A mean that is better by less than the margin of a tie is no reason to go on."""
    for estimate in ((0.99, 0.91, 1.08), (1.2, 0.9, 1.5)):
        found = compared(results, estimate)
        assert answer(found) == [
            "regression, 2 tasks: stay with equal. No method is better beyond noise (1 worse, 1 tie, 1 not settled). A "
            "step of the other methods takes 1.01 to 1.20 times as long."
        ]
        assert caveat(found) == ""


UNSETTLED = {"equal": "", "static 1/sigma²": "not settled", "uncertainty": "worse", "GradNorm": "not settled"}


@pytest.mark.parametrize("tried", [True, False])
def test_few_seeds_and_many_open_verdicts_call_for_more(results, tried):
    if tried:
        (results.path / "made-up.toml").touch()
        results = replace(results, suite_toml=f'plugins = ["/somewhere/waves.py"]\n{results.suite_toml}')
    more = "give `lossbench try waves.py` more --minutes" if tried else "add seeds under [seeds] reported in the suite"
    board = results.board.assign(verdict=results.board["balancer"].map(UNSETTLED), relative=1.1)
    (said,) = answer(replace(results, board=board))
    assert said.endswith(f"2 of 3 verdicts are not settled on 5 seeds: {more}; finished runs are kept.")
    (said,) = answer(replace(results, board=board.assign(seeds=10)))
    assert "not settled on" not in said


@pytest.mark.parametrize(
    ("tried", "rate", "remedy"),
    [
        (False, 3e-4, ""),
        (True, 3e-4, "lower the lr of the recipe, or "),
        (True, 0.003, "raise the lr of the recipe, or "),
    ],
)
def test_a_rate_at_the_edge_comes_with_a_remedy(results, tried, rate, remedy):
    if tried:
        (results.path / "made-up.toml").touch()
        results = replace(results, suite_toml=f'plugins = ["/somewhere/waves.py"]\n{results.suite_toml}')
    board = results.board.assign(grid_edge=results.board["balancer"] == "static 1/sigma²", lr=rate)
    (said,) = answer(replace(results, board=board))
    growths = "state a larger growths under [learning_rates] in the suite."
    assert said.endswith(f"lie: static 1/sigma² ({numbers.rate(rate)}*). To look there, {remedy}{growths}")
    line = 'In your loop: balancers.create("static", None, tasks=tasks'
    assert (line in said) == tried  # other suites need not say where methods measure


def test_a_time_from_a_busy_computer_and_a_wide_interval_are_told(results):
    costs = results.tables["costs"].assign(busy_cores=2.04)
    board = results.board.assign(step_ratio=7.97, step_ratio_low=2.54, step_ratio_high=11.42)
    (said,) = answer(replace(results, board=board, tables=results.tables | {"costs": costs}))
    assert ", at 7.97× [2.54, 11.42] the time of a step (timed while other programs used 2.0 cores)." in said


def test_a_lead_within_the_noise_is_undecided(results):
    assert answer(compared(results, (0.57, 0.26, 1.21))) == [
        "regression, 2 tasks: undecided on 5 seeds. Of the unsettled ones, the best mean is that of "
        "GradNorm, 0.57× [0.26, 1.21] of equal's "
        "score, at 1.20× the time of a step. Add seeds under [seeds] reported in the suite; finished runs are kept."
    ]


@pytest.mark.parametrize(
    ("higher", "gain", "said"), [(True, 0.4, "undecided"), (True, -0.4, "stay"), (False, -0.4, "undecided")]
)
def test_a_lead_is_one_in_the_direction_of_the_score(results, higher, gain, said):
    problems = results.tables["problems"].assign(higher_is_better=higher)
    results = replace(results, tables=results.tables | {"problems": problems})
    (text,) = answer(compared(results, (gain, gain - 1, gain + 1), scale="difference"))
    assert text.startswith(f"regression, 2 tasks: {said}")


def test_a_rate_at_the_edge_of_the_grid_is_told(results):
    board = results.board.copy()
    board.loc[board["balancer"] == "static 1/sigma²", "grid_edge"] = True
    (said,) = answer(replace(results, board=board))
    assert (
        "At the edge of the grid of learning rates, beyond which a better one may lie: static 1/sigma² (0.001*)" in said
    )
    board["grid_edge"] = board["balancer"] == "uncertainty"  # no method of the answer
    (said,) = answer(replace(results, board=board))
    assert "edge" not in said


def test_a_control_is_never_recommended(tmp_path):
    made = {"equal": BALANCERS["equal"], "random": ("random", 0.2, 1.0, 0), "GradNorm": BALANCERS["GradNorm"]}
    results = load(build(tmp_path / "made-up", num_tasks=(2,), failing="", balancers=made))
    assert results.board["balancer"].iloc[0] == "random"
    (said,) = answer(results)
    assert said.startswith("regression, 2 tasks: try GradNorm")


def test_defaults_and_single_seeds_get_no_answer(results):
    assert answer(replace(results, ranking=False)) == []
    assert answer(replace(results, board=results.board.assign(verdict=""))) == []
