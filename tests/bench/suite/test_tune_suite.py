"""Test suites that search: their trials, the results of these, and the command that makes such a suite."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from balancers import Range
from bench.analysis import SuiteTables, is_ranking
from bench.cli import app
from bench.execute import run_suite
from bench.execute.workforce import Workforce
from bench.report import results_folder
from bench.suite import plan, suite_file, trial_draws, tune_suite
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

pytestmark = pytest.mark.xdist_group("processes")

MakeSuite = Callable[..., Suite]
LOSSBENCH = CliRunner()
SMALL = Path(__file__).parents[1] / "plugins" / "small.py"
SEARCH = {"trials": 6, "rates": [0.003, 0.1]}
STATIC = {"name": "static", "options": {"weights": "search"}}
SEARCHING = {
    "learning_rates": None,
    "search": SEARCH,
    "balancers": [{"name": "equal"}, STATIC, {"name": "gradnorm", "options": {"alpha": 0.5}}],
}


def test_learning_rates_are_spread_evenly_by_their_logarithm() -> None:
    rates = trial_draws.learning_rates(16, 1e-4, 1e-1)
    assert len(set(rates)) == 16
    for part in (rates, rates[:8], rates[8:]):  # each half is spread evenly by itself
        strata = np.log(np.array(part) / 1e-4) / np.log(1e3) * len(part)
        assert sorted(strata.astype(int)) == list(range(len(part)))
    assert trial_draws.learning_rates(16, 1e-4, 1e-1) == rates
    assert trial_draws.learning_rates(12, 1e-4, 1e-1) == rates[:12]


def test_close_limits_still_give_different_rates() -> None:
    rates = trial_draws.learning_rates(200, 0.01, 0.0101)
    assert len(set(rates)) == 200
    assert min(rates) >= 0.01
    assert max(rates) <= 0.0101


RANGES = {"a": Range(1e-4, 1e-1, log=True), "b": Range(-1.0, 3.0)}


def test_options_are_left_alone_in_the_first_half_and_drawn_in_the_second() -> None:
    tried = trial_draws.options(RANGES, {"c": "x"}, 256)
    assert tried[:128] == [{"c": "x"}] * 128
    a, b = (np.array([one[name] for one in tried[128:]]) for name in "ab")
    assert all(one["c"] == "x" for one in tried)
    assert stats.kstest(np.log(a), stats.uniform(np.log(1e-4), np.log(1e3)).cdf).pvalue > 0.05
    assert stats.kstest(b, stats.uniform(-1, 4).cdf).pvalue > 0.05
    assert abs(np.corrcoef(np.log(a), b)[0, 1]) < 0.1


def test_an_option_that_is_set_stays_and_changes_no_other() -> None:
    tried = trial_draws.options(RANGES, {"a": 0.02}, 8)
    assert {one["a"] for one in tried} == {0.02}
    free = trial_draws.options(RANGES, {}, 8)
    assert [one.get("b") for one in tried] == [one.get("b") for one in free]


@pytest.mark.parametrize("num_tasks", [2, 3, 5, 40])
def test_weights_are_uniform_on_the_simplex(num_tasks: int) -> None:
    drawn = np.array(trial_draws.weights(None, num_tasks, 512))
    assert drawn.min() >= 0
    assert drawn.sum(axis=1) == pytest.approx(num_tasks, rel=1e-3)
    for i in range(num_tasks):  # the distribution of a coordinate on the simplex
        assert stats.kstest(drawn[:, i] / num_tasks, stats.beta(1, num_tasks - 1).cdf).pvalue > 0.01


def test_a_problems_own_weights_have_the_first_half() -> None:
    tried = trial_draws.weights((1.8, 0.2), 2, 7)
    assert tried[:4] == [[1.8, 0.2]] * 4
    assert tried[4:] == trial_draws.weights(None, 2, 7)[4:]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"learning_rates": [0.1, 0.2], "search": SEARCH}, "mine.toml: search: learning_rates is there too"),
        ({"learning_rates": None, "search": {**SEARCH, "trials": 3}}, "mine.toml: search.trials: expected a whole"),
        ({"learning_rates": None, "search": {**SEARCH, "rates": [0.1, 0.1]}}, "mine.toml: search.rates: expected two"),
        ({"learning_rates": None, "search": {**SEARCH, "rates": [0.1, 0.01]}}, "mine.toml: search.rates: expected two"),
        ({"learning_rates": None, "search": {**SEARCH, "rates": [1, 2, 3]}}, "mine.toml: search.rates: expected two"),
        ({"learning_rates": None, "search": {"trials": 4}}, "mine.toml: search.rates: missing"),
        ({"learning_rates": None, "search": {**SEARCH, "grid": 1}}, "mine.toml: search.grid: unknown key"),
        ({"learning_rates": None, "search": SEARCH, "tuning": []}, "mine.toml: seeds.tuning: expected"),
        (
            {"balancers": [STATIC], "learning_rates": None},
            'mine.toml: balancers[0].options.weights: "search" is for a suite that has a table',
        ),
        (
            {**SEARCHING, "balancers": [STATIC, {**STATIC, "label": "also"}]},
            "mine.toml: balancers[1].options.weights: balancers[0] searches for weights already",
        ),
    ],
)
def test_what_is_wrong_with_a_search_is_told(make_suite: MakeSuite, parts: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError) as raised:
        make_suite(**parts)
    assert str(raised.value).startswith(message)


def test_trials_are_paired_and_as_many_for_every_method(make_suite: MakeSuite) -> None:
    loaded = make_suite(**SEARCHING)
    runs = plan.tuning(loaded, plan.grids(loaded))
    rates = {
        label: [run.spec.lr for run in runs if run.balancer == label and run.spec.seed == 11]
        for label in ("equal", "static", "gradnorm")
    }
    assert rates["equal"] == rates["static"] == rates["gradnorm"] == list(loaded.learning_rates)
    assert len(rates["equal"]) == 6
    gradnorm = [run.spec.method.options for run in runs if run.balancer == "gradnorm" and run.spec.seed == 11]
    assert gradnorm[:3] == [{"alpha": 0.5}] * 3
    assert all(set(options) == {"alpha", "lr"} and options["alpha"] == 0.5 for options in gradnorm[3:])
    static = [run.spec.method.options["weights"] for run in runs if run.balancer == "static" and run.spec.seed == 11]
    assert static[:3] == [[1.8, 0.2]] * 3
    assert all(len(weights) == 2 and weights != [1.8, 0.2] for weights in static[3:])


def test_a_trial_with_options_as_they_are_is_the_run_of_a_grid(make_suite: MakeSuite) -> None:
    searching = make_suite(**SEARCHING)
    lr = searching.learning_rates[0]
    plain = make_suite(balancers=SEARCHING["balancers"][::2], learning_rates=[lr, 2 * lr])
    of_grid = {run.key for run in plan.tuning(plain, plan.grids(plain))}
    of_trial = {run.key for run in plan.tuning(searching, {"small": [lr]}) if run.balancer != "static"}
    assert len(of_trial) == 4
    assert of_trial < of_grid


@pytest.mark.slow
def test_what_was_chosen_is_reported_and_its_front_is_run_too(make_suite: MakeSuite, tmp_path: Path) -> None:
    loaded = make_suite(**SEARCHING)
    folder = tmp_path / "results"
    with Workforce.of(1) as workforce:
        first = run_suite.run(loaded, folder, workforce, Console(quiet=True))
    assert first.failed == []
    tables = {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}
    runs, selection, front = tables["runs"], tables["selection"], tables["front"]
    assert len(selection) == 3 * 6
    assert is_ranking(SuiteTables(runs=runs, selection=selection))

    reported = {run.key: run for run in plan.reported(loaded, selection)}
    assert set(runs.loc[runs["phase"] == "reported", "key"]) == set(reported)
    for _, row in selection[selection["chosen"]].iterrows():
        assert row["lr"] == loaded.learning_rates[row["trial"] - 1]
        used = [run.spec for run in reported.values() if run.balancer == row["balancer"]]
        assert {spec.lr for spec in used} == {row["lr"]}
        assert all(spec.method.options == json.loads(row["options"]) for spec in used)

    assert set(front["searched"]) == {"static"}
    of_front = runs[runs["phase"] == "front"]
    assert set(of_front["balancer"]) == set(front["balancer"])
    assert len(of_front) == 3 * front["balancer"].nunique()
    assert front.groupby("balancer")["trial"].first().to_dict() == {
        f"static, trial {trial}": trial for trial in front["trial"]
    }
    results = results_folder.load(folder)
    assert set(results.board["balancer"]) == {"equal", "static", "gradnorm"}
    assert results.ranking

    with Workforce.of(1) as workforce:
        again = run_suite.run(loaded, folder, workforce, Console(quiet=True))
    assert (again.computed, again.reused) == (0, first.computed)
    for path in (folder / "tables").glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(path), tables[path.stem])


def test_a_learning_rate_brings_its_trials_options(make_suite: MakeSuite) -> None:
    loaded = make_suite(**SEARCHING)
    rate = loaded.learning_rates[-1]
    runs = plan.reported_at(loaded, lambda problem, balancer: rate)
    (gradnorm, *_) = (run for run in runs if run.balancer == "gradnorm")
    assert gradnorm.spec.method == loaded.balancers[2].trials["small"][rate]
    untuned = plan.reported(loaded, None)
    assert {json.dumps(run.spec.method.options) for run in untuned if run.balancer == "gradnorm"} == {'{"alpha": 0.5}'}


@pytest.fixture
def base(tmp_path: Path, suite_text: Callable[..., str]) -> Path:
    path = tmp_path / "mine.toml"
    balancers = [
        {"name": "static", "label": "own", "options": {"weights": "problem:first"}},
        {"name": "static", "label": "even", "options": {"weights": "problem:ones"}},
        {"name": "gradnorm", "options": {"alpha": 0.5}},
        {"name": "uncertainty"},
    ]
    path.write_text(
        suite_text(balancers=balancers, reported=[1, 2], tuning=[11], evaluations=2, description="<b> \\ é")
    )
    return path


@pytest.mark.slow
def test_tune_ends_in_a_report_and_goes_on_where_it_was(base: Path, tmp_path: Path) -> None:
    command = ["tune", str(base), "--trials", "4", "--balancer", "gradnorm", "--balancer", "famo"]
    command += ["--results", str(tmp_path), "--jobs", "1"]
    done = LOSSBENCH.invoke(app, command)
    assert done.exit_code == 0, done.output
    estimate = done.output.index("core-seconds)")
    assert estimate < done.output.index("trials: 0 of")
    assert "beyond static weights by" in done.output
    assert "0 already stored, 0 failed" in done.output
    folder = tmp_path / "mine-tuned-famo-gradnorm"
    page = (folder / "report.html").read_text()
    assert "Compared with the front of static weights" in page
    assert "Trials that the search chose" in page
    assert (folder / "figures" / "front-1.svg").is_file()

    again = LOSSBENCH.invoke(app, command)
    assert "\n0 runs computed" in again.output

    made = suite_file.load(folder / "suite.toml")
    assert made.name == folder.name
    assert [entry.label for entry in made.balancers] == ["equal", "static", "gradnorm", "famo"]
    assert made.searches
    assert min(made.learning_rates) >= 0.003
    assert max(made.learning_rates) <= 0.01
    assert made.plugins == suite_file.load(base).plugins

    runs = pd.read_parquet(folder / "tables" / "runs.parquet")
    for _, of_phase in runs.groupby("phase"):
        once = LOSSBENCH.invoke(app, ["once", folder.name, of_phase["key"].iloc[-1], "--results", str(tmp_path)])
        assert once.exit_code == 0, once.output
        assert once.output.strip().endswith("the scores equal the stored ones")


def test_tune_keeps_the_methods_of_the_suite(base: Path, tmp_path: Path) -> None:
    made, notes = tune_suite.make(base, tmp_path, 5)
    assert made.name == "mine-tuned"
    assert notes == []
    assert not (tmp_path / "mine-tuned").exists()
    assert [entry.label for entry in made.balancers] == ["equal", "static", "even", "gradnorm", "uncertainty"]
    assert [entry.searches_weights for entry in made.balancers] == [False, True, False, False, False]
    assert made.balancers[2].methods["small"].options == {"weights": [1.0, 1.0]}
    assert made.description == "<b> \\ é"
    assert made.tuning_seeds == (11,)
    assert len(made.learning_rates) == 5
    path = tmp_path / "mine-tuned" / "suite.toml"
    path.parent.mkdir()
    path.write_text(made.written.text)
    other, _ = tune_suite.make(path, tmp_path, 8)  # from a suite that searches already
    assert len(other.learning_rates) == 8


def test_a_part_of_a_suite_is_tuned_in_a_folder_of_its_own(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path, long = tmp_path / "mine.toml", "x" * 200
    labels = {"gradnorm": "GradNorm, 0.5", "uncertainty": long}
    path.write_text(suite_text(balancers=[{"name": name, "label": label} for name, label in labels.items()]))

    def name(problems: list[str], methods: list[str]) -> str:
        return tune_suite.make(path, tmp_path, 4, problems, methods)[0].name

    assert name([], ["GradNorm, 0.5"]) == "mine-tuned-gradnorm-0-5"
    assert name(["small"], ["famo", "gradnorm"]) == "mine-tuned-small-famo-gradnorm"
    assert name(["small"], ["gradnorm", "famo", "famo"]) == "mine-tuned-small-famo-gradnorm"
    assert len({name([], [long]), name([], [long, "famo"])}) == 2
    assert len(name([], [long])) < 50


def test_a_suite_is_tuned_with_a_method_that_it_lacks(tmp_path: Path, suite_text: Callable[..., str]) -> None:
    path = tmp_path / "plain.toml"
    path.write_text(suite_text(reported=[1]))
    for methods in (["static"], ["static", "static"]):
        made, _ = tune_suite.make(path, tmp_path, 4, methods=methods)
        assert [entry.label for entry in made.balancers] == ["equal", "static"]
        assert made.balancers[1].searches_weights
    made, _ = tune_suite.make(path, tmp_path, 4, methods=["famo", "famo"])
    assert [entry.label for entry in made.balancers] == ["equal", "static", "famo"]


@pytest.fixture
def like_core(tmp_path: Path, suite_text: Callable[..., str]) -> Path:
    """Return the file of a small suite with the features of the suite ``core``."""
    path = tmp_path / "like-core.toml"
    text = suite_text(
        learning_rates=[0.001, 0.003, 0.01],
        baselines=True,
        balancers=[
            {"name": "equal"},
            {"name": "static", "options": {"weights": "problem:first"}},
            {"name": "static", "label": "static, searched", "options": {"weights": "search"}},
            {"name": "gradnorm", "label": "gradnorm, features", "wrt": "features", "needs_fork": True},
            {"name": "equal", "label": "equal, weight decay", "weight_decay": 0.01},
            {"name": "equal", "label": "equal, 2 x steps", "times_steps": 2, "rates_around": "equal"},
        ],
    )
    text = text.replace("[seeds]", "[seeds]\nretuning = [21, 22]\nrepeated = [4, 5]")
    path.write_text(text.replace("[learning_rates]", "[learning_rates]\ngrowths = 3\nfiner = 1.78"))
    return path


def test_what_only_a_grid_has_is_left_out_with_a_sentence(like_core: Path, tmp_path: Path) -> None:
    made, notes = tune_suite.make(like_core, tmp_path, 4)
    labels = [entry.label for entry in made.balancers]
    assert labels == ["equal", "static", "gradnorm, features", "equal, weight decay"]
    assert (made.repeated_seeds, made.retuning_seeds, made.baselines) == ((4, 5), (), True)
    assert (min(made.learning_rates) >= 0.001, max(made.learning_rates) <= 0.01) == (True, True)
    assert notes == [
        "equal, 2 x steps is left out: it tries learning rates around those of equal, and a search has trials instead",
        "seeds.retuning is left out: the repeated runs have the chosen trial's learning rate",
    ]


@pytest.mark.slow
def test_the_suite_of_the_evidence_can_be_tuned(like_core: Path, tmp_path: Path) -> None:
    made, _ = tune_suite.make(like_core, tmp_path, 4)
    folder = tmp_path / made.name
    with Workforce.of(0) as workforce:
        summary = run_suite.run(made, folder, workforce, Console(quiet=True), like_core)
    assert summary.failed == []
    results = results_folder.load(folder)
    assert list(results.balancers) == [entry.label for entry in made.balancers]
    assert len(results.tables["repeated"]) > 0
    assert suite_file.load(folder / "suite.toml").plugins == made.plugins
    made, _ = tune_suite.make(suite_file.find("core"), tmp_path, 4, ["regression"], ["uncertainty"])
    assert [entry.label for entry in made.balancers] == ["equal", "static", "uncertainty"]


def test_a_folder_in_use_keeps_its_suite(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine-tuned"
    folder.mkdir()
    (folder / "suite.toml").write_text("the whole suite")
    with FileLock(folder / ".lock"):
        done = LOSSBENCH.invoke(app, ["tune", str(base), "--trials", "4", "--results", str(tmp_path), "--jobs", "1"])
    assert done.exit_code == 2
    assert "another process is running a suite in" in done.output
    assert (folder / "suite.toml").read_text() == "the whole suite"


def test_tune_compares_no_more_on_a_reserved_problem_than_the_suite_may(
    tmp_path: Path, suite_text: Callable[..., str]
) -> None:
    path, unlike = tmp_path / "mine.toml", Path(__file__).parents[1] / "plugins" / "unlike.py"
    parts = {"plugins": [SMALL, unlike], "problems": [{"name": "kept-back"}], "balancers": [{"name": "equal"}]}
    path.write_text(suite_text(**parts))
    made, _ = tune_suite.make(path, tmp_path, 4)
    assert [entry.label for entry in made.balancers] == ["equal", "static"]
    with pytest.raises(
        SuiteError, match=r"^mine\.toml, as tune changes it: .*kept-back is reserved for .*, or gradnorm"
    ):
        tune_suite.make(path, tmp_path, 4, methods=["gradnorm"])
    path.write_text(suite_text(reserved=True, **parts))
    made, _ = tune_suite.make(path, tmp_path, 4, methods=["gradnorm"])
    assert [entry.label for entry in made.balancers] == ["equal", "static", "gradnorm"]


def test_a_suite_without_a_grid_is_searched_around_its_problems_rates(
    tmp_path: Path, suite_text: Callable[..., str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(suite_text(learning_rates=None, reported=[101, 102]).replace("tuning = [11, 12]", ""))
    made, _ = tune_suite.make(path, tmp_path, 4)
    assert tomllib.loads(made.written.text)["search"]["rates"] == [0.001, 0.1]
    assert made.tuning_seeds == (103,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--problem", "smal"], "error: no problem of the suite is called 'smal'; did you mean 'small'?"),
        (["--balancer", "gradnrm"], "error: no balancer of the suite is called 'gradnrm'; did you mean 'gradnorm'?"),
        (["--trials", "3"], "invalid value for '--trials'"),
    ],
)
def test_what_tune_is_asked_for_must_be_there(base: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = LOSSBENCH.invoke(app, ["tune", str(base), *options, "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.output
