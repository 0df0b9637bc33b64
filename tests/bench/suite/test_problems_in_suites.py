"""Check how a suite uses what problems declare: baselines, recipes, missing data, pictures, the hash of their data."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from rich.console import Console
from typer.testing import CliRunner

from bench.analysis import Roles, SuiteTables, baselines
from bench.catalogue import problem_list as listing
from bench.cli import app
from bench.execute import forecast, run_suite
from bench.execute.workforce import Workforce
from bench.report import report_page
from bench.run import pace, spec
from bench.suite import plan, suite_file
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

pytestmark = pytest.mark.xdist_group("processes")

MakeSuite = Callable[..., Suite]
PLUGINS = [Path(__file__).parents[1] / "plugins" / name for name in ("small.py", "unlike.py", "methods.py")]


def run(suite: Suite, folder: Path) -> str:
    told = io.StringIO()
    with Workforce.of(1) as workforce:
        run_suite.run(suite, folder, workforce, Console(file=told, width=200))
    return told.getvalue()


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / f"{name}.parquet")


@pytest.mark.slow
def test_each_task_is_trained_alone_beside_equal_weighting(make_suite: MakeSuite, tmp_path: Path) -> None:
    problems = [{"name": "small"}, {"name": "unforked"}]
    loaded = make_suite(
        plugins=PLUGINS, problems=problems, balancers=[{"name": "equal"}], learning_rates=[0.01, 0.1], baselines=True
    )
    run(loaded, tmp_path / "results")

    runs = table(tmp_path / "results", "runs")
    alone = runs[runs["phase"] == "baseline"]
    assert set(alone["problem"]) == {"small"}  # the other declares no such baseline
    assert sorted(zip(alone["balancer"], alone["seed"], strict=True)) == [(t, s) for t in "ab" for s in (1, 2, 3)]
    equal = runs[(runs["phase"] == "reported") & (runs["problem"] == "small")]
    assert set(alone["lr"]) == set(equal["lr"])  # the learning rate that was chosen for equal weighting

    scores = table(tmp_path / "results", "scores")
    last = scores[(scores["checkpoint"] == "last") & (scores["split"] == "test") & (scores["problem"] == "small")]
    found = table(tmp_path / "results", "baselines").set_index(["problem", "metric"])
    for task in "ab":
        metric = f"loss of {task}"
        of_task = last[last["metric"] == metric]
        row = found.loc[("small", metric)]
        assert row["single_task"] == pytest.approx(of_task.loc[of_task["balancer"] == task, "value"].mean())
        assert row["equal"] == pytest.approx(of_task.loc[of_task["balancer"] == "equal", "value"].mean())
        assert row["single_task"] < row["constant"]
        assert (row["seeds"], row["unit"]) == (3, "m")
    assert found.loc[("unforked", "loss of a"), ["constant", "single_task"]].isna().all()
    assert not set(alone["balancer"]) & set(table(tmp_path / "results", "curves")["balancer"])


def test_a_task_alone_is_trained_on_its_own_loss(make_suite: MakeSuite) -> None:
    loaded = make_suite(balancers=[{"name": "equal"}], learning_rates=None, baselines=True, reported=[1])
    alone = plan.baselines(loaded, plan.reported(loaded, None))
    assert [run.spec.method.options["weights"] for run in alone] == [[1.0, 0.0], [0.0, 1.0]]
    assert plan.baselines(make_suite(), []) == []


def test_baselines_are_means_over_seeds() -> None:
    random = np.random.default_rng(3)
    values = random.random((2, 4))  # of equal weighting and of the task alone, on four seeds
    about = {"problem": "p", "metric": "m", "task": "t", "checkpoint": "last", "split": "test"}
    rows = [
        {**about, "phase": phase, "balancer": label, "seed": seed, "value": values[i, seed]}
        for i, (phase, label) in enumerate((("reported", "even"), ("baseline", "t")))
        for seed in range(4)
    ]
    rows.append({**about, "phase": "baseline", "balancer": "another task", "seed": 0, "value": 1e9})
    rows.append({**about, "phase": "reported", "balancer": "even", "seed": 0, "value": 1e9, "split": "validation"})
    constants = pd.DataFrame({"problem": "p", "seed": [0, 1], "split": "test", "metric": "m", "value": [3.0, 5.0]})
    facts = {"problem": "p", "task": ["t", None], "metric": ["m", "whole"], "unit": "s", "higher_is_better": True}
    tables = SuiteTables(scores=pd.DataFrame(rows), constants=constants, metrics=pd.DataFrame(facts))
    (row,) = baselines(tables, Roles("even", None, None, None, {})).to_dict("records")
    assert (row["constant"], row["seeds"]) == (4.0, 4)
    assert (row["equal"], row["single_task"]) == pytest.approx(values.mean(1).tolist())
    assert (row["equal_sd"], row["single_task_sd"]) == pytest.approx(values.std(1, ddof=1).tolist())


@pytest.mark.slow
def test_problems_without_their_data_are_left_out(make_suite: MakeSuite, tmp_path: Path) -> None:
    problems = [{"name": "absent"}, {"name": "small"}]
    loaded = make_suite(plugins=PLUGINS, problems=problems, learning_rates=None)
    told = run(loaded, tmp_path / "results")
    assert told.startswith("absent is left out: absent needs a file that no one has\n")
    assert set(table(tmp_path / "results", "runs")["problem"]) == {"small"}
    with pytest.raises(SuiteError, match=r"mine.toml: no problem can be run: absent needs a file"):
        make_suite(plugins=PLUGINS, problems=[{"name": "absent"}])


def test_where_gradients_are_measured_unless_it_is_said(make_suite: MakeSuite) -> None:
    """Measure at the method's own place; if tasks share no features, at all shared parameters."""
    problems = [{"name": "small"}, {"name": "unforked"}]
    methods = [{"name": name} for name in ("equal", "gradnorm", "mgda")]
    loaded = make_suite(plugins=PLUGINS, problems=problems, balancers=methods)
    places = {entry.label: [entry.methods[name].wrt for name in ("small", "unforked")] for entry in loaded.balancers}
    assert places == {"equal": [None] * 2, "gradnorm": ["layer", "parameters"], "mgda": ["features", "parameters"]}
    with pytest.raises(SuiteError, match=r"balancers\[0\].wrt: wrt is 'layer', but the model of unforked has no fork"):
        make_suite(plugins=PLUGINS, problems=problems, balancers=[{"name": "gradnorm", "wrt": "layer"}])


def test_recipes_and_first_weights(make_suite: MakeSuite) -> None:
    problems = [{"name": "small", "recipe": recipe, "label": recipe} for recipe in ("default", "full")]
    first = {"name": "static", "options": {"weights": "problem:first"}}
    loaded = make_suite(problems=problems, balancers=[first])
    assert [entry.recipe.steps for entry in loaded.problems] == [12, 60]
    assert loaded.balancers[0].methods["full"].options["weights"] == [1.8, 0.2]
    for wrong, message in [
        ({"name": "small", "recipe": "fast"}, r'problems\[0\].recipe: expected "default" or "full"'),
        ({"name": "unforked", "recipe": "full"}, r"problems\[0\].recipe: unforked has no full recipe"),
        ({"name": "looks"}, r"problems\[0\].name: looks is an illustration.*`lossbench show looks`"),
    ]:
        with pytest.raises(SuiteError, match=message):
            make_suite(plugins=PLUGINS, problems=[wrong])


@pytest.mark.slow
def test_static_weights_on_tasks_that_share_nothing_score_as_each_task_alone(
    make_suite: MakeSuite, tmp_path: Path
) -> None:
    static = [{"name": "static", "options": {"weights": "problem:first"}}]
    problems = [{"name": "apart", "steps": 100}]
    loaded = make_suite(
        problems=problems, balancers=[{"name": "equal"}, *static], learning_rates=None, baselines=True, evaluations=1
    )
    run_suite.run(loaded, tmp_path / "results", Workforce.of(0), Console(file=io.StringIO()))
    (row,) = table(tmp_path / "results", "controls").to_dict("records")
    assert (row["control"], row["problem"], row["pairs"], row["holds"]) == ("same tasks", "apart", 3, True)
    assert row["relative"] == pytest.approx(1, abs=1e-3)


OPEN = [{"name": "equal"}, {"name": "static", "options": {"weights": "problem:first"}}]
"""Methods that may be compared on a reserved problem."""


def test_a_suite_that_compares_other_methods_on_a_reserved_problem_is_refused(make_suite: MakeSuite) -> None:
    parts = {"plugins": PLUGINS, "problems": [{"name": "small"}, {"name": "kept-back"}]}
    others = [{"name": "gradnorm"}, {"name": "uncertainty"}, {"name": "gradnorm", "label": "again"}]
    message = (
        r"mine.toml: problems\[1\].name: kept-back is reserved for the evidence, so that no method is chosen by its "
        r"scores: other methods than equal and static are compared on it by suites with reserved = true at the top. "
        r"Write that, or take out this problem, or gradnorm, uncertainty"
    )
    for said in ({}, {"reserved": False}):
        with pytest.raises(SuiteError, match=message):
            make_suite(balancers=[*OPEN, *others], **parts, **said)
    with pytest.raises(SuiteError, match=r"mine.toml: reserved: expected true or false, got 'yes'"):
        make_suite(balancers=OPEN, reserved="yes", **parts)
    evidence = make_suite(balancers=[*OPEN, *others], reserved=True, **parts)
    assert [entry.label for entry in evidence.problems] == ["small", "kept-back"]
    assert len(plan.reported(evidence, None)) == 2 * 5 * 3


@pytest.mark.slow
def test_equal_and_static_weights_may_be_compared_on_a_reserved_problem(make_suite: MakeSuite, tmp_path: Path) -> None:
    loaded = make_suite(
        plugins=PLUGINS,
        problems=[{"name": "kept-back"}],
        balancers=OPEN,
        learning_rates=None,
        reported=[1],
        baselines=True,
    )
    run_suite.run(loaded, tmp_path / "results", Workforce.of(0), Console(file=io.StringIO()))
    runs = table(tmp_path / "results", "runs")
    assert (runs["status"] == "ok").all()
    assert set(runs["balancer"]) == {"equal", "static", "a", "b"}


@pytest.mark.slow
def test_no_suite_but_the_evidence_compares_methods_on_a_reserved_problem() -> None:
    """The protocol names the one that does, and there is no other."""
    saying = [name for name in suite_file.names() if "\nreserved = true\n" in suite_file.find(name).read_text()]
    assert saying == ["core-reserved"]
    for name in suite_file.names():
        loaded = suite_file.load(suite_file.find(name))
        if name == "core-reserved":
            assert all(entry.problem.reserved for entry in loaded.problems)
            continue
        methods = {entry.name for entry in loaded.balancers}
        reserved = [entry.label for entry in loaded.problems if entry.problem.reserved]
        assert methods <= {"equal", "static"} or not reserved, (name, reserved)


def test_reserved_problems_are_marked_in_lists_and_can_be_shown(make_suite: MakeSuite, tmp_path: Path) -> None:
    make_suite(plugins=PLUGINS)  # registers them
    assert listing.line("kept-back") == "Kept for the evidence. Reserved for the evidence."
    assert listing.line("small") == "Linear maps of different scales."
    path = tmp_path / "kept-back.png"
    result = CliRunner().invoke(app, ["show", "kept-back", "--train", "--out", str(path)])
    assert result.exit_code == 0, result.output
    assert imread(path).std() > 0.05


def test_other_data_are_another_run(make_suite: MakeSuite, tmp_path: Path) -> None:
    def keys(version: str) -> set[str]:
        problems = [{"name": "versioned", "options": {"version": version}}]
        loaded = make_suite(plugins=PLUGINS, problems=problems)
        return {run.key for run in plan.reported(loaded, None)}

    assert keys("1") == keys("1")
    assert not keys("1") & keys("2")
    assert spec.fingerprint("versioned", {"version": "2"}) == "version 2"


def test_the_data_alone_make_the_difference(make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    (planned, *_) = plan.reported(make_suite(plugins=PLUGINS, problems=[{"name": "versioned"}]), None)
    before = planned.spec.key
    monkeypatch.setattr(spec, "fingerprint", lambda problem, options: "another text")
    assert planned.spec.key != before


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results folder of a suite with a problem that draws a picture and one whose picture fails."""
    folder = tmp_path_factory.mktemp("pictured")
    text = "evaluations = 2\nbaselines = true\nplugins = " + json.dumps([str(path) for path in PLUGINS])
    text += "\n[seeds]\nreported = [1, 2]\n"
    for kind, name in (
        ("problems", "small"),
        ("problems", "undrawable"),
        ("balancers", "random"),
        ("balancers", "equal"),
    ):
        text += f'[[{kind}]]\nname = "{name}"\n'
    (folder / "drawn.toml").write_text(text)
    result = CliRunner().invoke(app, ["run", str(folder / "drawn.toml"), "--results", str(folder), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    return folder / "drawn"


@pytest.mark.slow
def test_one_run_of_equal_weighting_is_pictured(pictured: Path) -> None:
    runs = table(pictured, "runs")
    first = runs[(runs["balancer"] == "equal") & (runs["seed"] == 1) & (runs["problem"] == "small")]
    (png,) = (pictured / "pictures").glob("*.png")
    assert png.stem == first["key"].item()
    assert imread(png).std() > 0.05
    told = {json.loads(path.read_text())["caption"] for path in (pictured / "pictures").glob("*.json")}
    assert told == {"The targets of a, and what the model makes of them.", "No picture: RuntimeError: no ink"}


@pytest.mark.slow
def test_a_lost_picture_is_drawn_again(pictured: Path) -> None:
    lost = next(iter((pictured / "pictures").glob("*.png")))
    for path in (lost, lost.with_suffix(".json")):
        path.unlink()
    arguments = ["run", str(pictured.parent / "drawn.toml"), "--results", str(pictured.parent), "--jobs", "1"]
    assert "1 runs computed" in CliRunner().invoke(app, arguments).output
    assert lost.is_file()


@pytest.mark.slow
def test_the_report_has_a_sheet_for_each_problem(pictured: Path) -> None:
    source = report_page.write(pictured).read_text()
    assert source.count("data:image/webp;base64,") == 1
    assert "The targets of a, and what the model makes of them." in source
    assert "train 64, validation 64, test 64" in source
    assert "Task alone" in source
    row = table(pictured, "baselines").set_index(["problem", "metric"]).loc[("small", "loss of b")]
    assert f"{row['constant']:.3g}"[:4] in source


def test_what_a_problem_looks_like(tmp_path: Path, make_suite: MakeSuite) -> None:
    make_suite(plugins=PLUGINS)  # registers them
    for options, caption in [([], "The targets of a."), (["--train"], "The targets of a, and what the model")]:
        path = tmp_path / "small.png"
        result = CliRunner().invoke(app, ["show", "small", "--out", str(path), "--option", "steps=3", *options])
        assert result.exit_code == 0, result.output
        assert result.output.startswith(caption)
        assert imread(path).std() > 0.05
    for arguments, message in [
        (["smal"], "error: no problem is named 'smal' (did you mean 'small'"),
        (["small", "--option", "scales=[1,"], "error: --option takes KEY=VALUE as in a suite"),
        (["small", "--option", "scale=1"], "error: small has no option 'scale'"),
        (["absent"], "error: absent needs a file that no one has"),
    ]:
        result = CliRunner().invoke(app, ["show", *arguments])
        assert result.exit_code == 2
        assert result.output.startswith(message)


def test_how_long_it_will_take_grows_with_what_there_is_to_do(make_suite: MakeSuite, tmp_path: Path) -> None:
    loaded = make_suite(learning_rates=[0.01, 0.1, 1.0], tuning=[11], reported=[1])
    tuning = plan.tuning(loaded, plan.grids(loaded))
    found = pace.pace(tuning[0].spec)
    assert all(value >= 0 for value in vars(found).values())
    assert found.step > 0
    steady = pace.Pace(load=30.0, prepare=5.0, step=1.0, evaluation=2.0)
    paces: dict[Any, Any] = dict.fromkeys(forecast.to_try(tuning), steady)
    # Six runs take 5 + 12 * 1 + 4 * 2 seconds each, two at a time; the data are loaded once. Two more rates add 4/6.
    seconds = 30 + 6 * 25 / 2
    most = seconds + 75 * 2 / 3
    assert forecast.sentence(loaded, tuning, [], 2, paces).startswith(
        f"6 runs (10 if the grid of learning rates grows at both edges): about {round(seconds / 60)} to "
        f"{math.floor(most / 60 + 0.5)} minutes"
    )
    assert "edges): about 1 second," in forecast.sentence(loaded, tuning, [], 2, dict.fromkeys(paces))


def test_problems_are_listed_with_all_that_is_known_of_them(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_suite(plugins=PLUGINS)  # registers them
    monkeypatch.setattr("tasks.names", lambda: ["absent", "kept-back", "looks", "nyuv2", "small"])
    listed = {entry.name: entry for entry in listing.entries()}
    small = listed["small"]
    assert (small.tasks, small.score) == ("a, b", "error ↓")
    assert small.metrics == "loss of a (m) ↓, loss of b (m) ↓"
    assert small.sizes == "train 64, validation 64, test 64"
    assert small.run.startswith("12 steps, about 1 second")
    assert listed["absent"].run == "absent needs a file that no one has"
    assert listed["looks"].run == "drawn only: lossbench show looks"
    assert listed["nyuv2"].run.startswith("nyuv2 needs the option root")
    assert listed["kept-back"].reserved.startswith("for the evidence; only a suite with reserved = true")
    assert listed["small"].reserved == ""
    shown = " ".join(CliRunner().invoke(app, ["list", "problems"]).output.split())
    for part in (
        small.name,
        small.summary,
        "one run 12 steps of 16 samples",
        "score error ↓",
        "reserved for the evidence",
    ):
        assert part in shown
