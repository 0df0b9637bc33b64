"""Test suites whose problem cannot work: they end at the first steps, with the cause, and whatever ran is reported."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bench.execute import forecast, run_suite
from bench.execute.run_job import FailedStart
from bench.execute.workforce import Workforce
from bench.report import report_page
from bench.run import result_file, result_picture
from bench.run.pace import Pace
from bench.run.training import RunResult
from bench.suite import plan
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

pytestmark = pytest.mark.xdist_group("processes")

MakeSuite = Callable[..., Suite]
PLUGINS = Path(__file__).parents[1] / "plugins"
RETURNED = 'return {"error": sum(relative), **metrics}'


@pytest.fixture
def broken(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str, str], tuple[str, Path]]:
    """Return a function that replaces text of the small problem; it returns the new problem's name and its file."""

    def write(text: str, other: str) -> tuple[str, Path]:
        source = (PLUGINS / "small.py").read_text()
        assert source.count(text) == 1
        name = re.sub(r"\W", "-", request.node.name)
        path = tmp_path / "broken.py"
        path.write_text(source.replace(text, other).replace('name = "small"', f'name = "{name}"'))
        return name, path

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "other", "cause"),
    [
        (RETURNED, "pass", "evaluate of NAME returns nothing; expected a dict of its metrics: 'error', "),
        (RETURNED, "return metrics", "evaluate of NAME gives no 'error', which its metrics declare"),
        (RETURNED, 'return {"error": 1, "eror": 1, **metrics}', "gives 'eror', which its metrics do not declare"),
        (RETURNED, 'return {**metrics, "error": "low"}', "evaluate of NAME gives 'low' for 'error'; expected a number"),
        (RETURNED, 'return {**metrics, "error": float("nan")}', "gives nan for 'error' before training, and nan after"),
        (RETURNED, "return 1 / 0", r"ZeroDivisionError: division by zero \(broken.py, line \d+\)"),
        (
            "return [nn.functional.mse_loss",
            "return [1 / 0 * nn.functional.mse_loss",
            r"ZeroDivisionError: .* \(broken.py, line \d+\)",
        ),
        ('x, targets = data["train"]', 'x = data["training"]', r"KeyError: 'training' \(broken.py, line \d+\)"),
    ],
)
def test_a_suite_ends_when_every_method_fails_in_its_first_steps(
    broken: Callable[[str, str], tuple[str, Path]],
    make_suite: MakeSuite,
    tmp_path: Path,
    text: str,
    other: str,
    cause: str,
) -> None:
    name, path = broken(text, other)
    loaded = make_suite(plugins=[path], problems=[{"name": name, "label": "mine"}])
    with pytest.raises(SuiteError) as ended:
        run_suite.run(loaded, tmp_path / "results", Workforce.of(0), Console(quiet=True))
    said = str(ended.value)
    assert said.startswith("nothing was run.\nmine: every method fails in its first steps. ")
    assert re.search(cause.replace("NAME", re.escape(name)), said)
    assert not (tmp_path / "results" / "runs").exists()


@pytest.mark.slow
def test_a_broken_problem_among_others_is_named_and_the_others_are_run(
    broken: Callable[[str, str], tuple[str, Path]], make_suite: MakeSuite, tmp_path: Path
) -> None:
    name, path = broken(RETURNED, "return metrics")
    loaded = make_suite(
        plugins=[PLUGINS / "small.py", path], problems=[{"name": "small"}, {"name": name}], learning_rates=None
    )
    output = io.StringIO()
    summary = run_suite.run(loaded, tmp_path / "results", Workforce.of(0), Console(file=output, width=300))
    first = output.getvalue().splitlines()[0]
    assert first == (
        f"{name}: every method fails in its first steps. evaluate of {name} gives no 'error', which its metrics declare"
    )
    assert {run.planned.problem for run in summary.failed} == {name}
    assert summary.computed == 12
    assert len(summary.failed) == 6


def test_causes_are_told_with_their_methods_and_what_was_not_timed_counts_for_no_failure(make_suite: MakeSuite) -> None:
    loaded = make_suite()
    failed = {("small", "equal"): FailedStart("no luck"), ("small", "gradnorm"): FailedStart("no layer")}
    with pytest.raises(SuiteError, match=r"first steps\. equal: no luck; gradnorm: no layer$"):
        forecast.require_a_start(loaded, failed)
    same = {place: FailedStart("no luck") for place in failed}
    with pytest.raises(SuiteError, match=r"first steps\. no luck$"):
        forecast.require_a_start(loaded, same)
    for other in (None, Pace(0.0, 0.0, 1.0, 0.0)):
        forecast.require_a_start(loaded, {**failed, ("small", "equal"): other})
    forecast.require_a_start(loaded, {("small", "equal"): FailedStart("no luck")})


def test_a_problem_without_methods_is_not_one_on_which_all_fail(make_suite: MakeSuite) -> None:
    """Its model has no fork, and all rows of the suite need one."""
    loaded = make_suite(
        plugins=[PLUGINS / "small.py", PLUGINS / "unlike.py"],
        problems=[{"name": "small"}, {"name": "unforked"}],
        balancers=[{"name": "equal", "needs_fork": True}],
    )
    assert not loaded.balancers_on("unforked")
    assert forecast.broken_problems(loaded, {}) == {}


@pytest.mark.parametrize("rates", [None, (0.003, 0.01)])
@pytest.mark.slow
def test_a_suite_whose_every_stored_run_failed_at_once_is_reported(
    make_suite: MakeSuite, tmp_path: Path, rates: tuple[float, ...] | None
) -> None:
    """No run got as far as an evaluation, so that some tables have no rows."""
    folder = tmp_path / "results"
    loaded = make_suite(learning_rates=rates, baselines=True)
    planned = plan.tuning(loaded, plan.grids(loaded))
    for lr in rates or (None,):
        reported = plan.reported_at(loaded, lambda problem, balancer, lr=lr: lr)
        planned += [*reported, *plan.baselines(loaded, reported)]
    for run in planned:
        failed = RunResult(tasks=("a", "b"), status="failed", reason="no luck")
        result_file.save(result_file.run_path(folder, run.key), run.spec, failed)
        if run.pictured:
            result_picture.save(result_picture.path(folder, run.key), result_picture.Picture(b"", "No picture"))
    summary = run_suite.run(loaded, folder, Workforce.of(0), Console(quiet=True))
    assert summary.computed == 0
    assert {run.result.reason for run in summary.failed} == {"no luck"}
    assert "no luck" in report_page.write(folder).read_text()
