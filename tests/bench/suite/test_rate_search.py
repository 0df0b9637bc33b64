"""Learning rates are tried in stages: the grid, beyond its edges, between its values, around another method's."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from bench.suite import plan, rate_search, suite_file
from bench.suite.rate_search import Stage
from bench.suite.suite_entries import Suite
from bench.suite.toml_table import SuiteError

MakeSuite = Callable[..., Suite]
LONGER = {"name": "equal", "label": "longer", "times_steps": 2, "rates_around": "equal"}
FEATURES = {"name": "mgda", "wrt": "features", "needs_fork": True}
SEARCHED = {"name": "static", "label": "searched", "options": {"weights": "search"}}


@pytest.fixture
def finer_suite(suite_text: Callable[..., str], tmp_path: Path) -> MakeSuite:
    """Return a function that makes a suite whose grid may grow and is refined."""

    def make(grows: int = 3, retuning: str = "", **parts: object) -> Suite:
        text = suite_text(learning_rates=(0.001, 0.01, 0.1), **parts)
        text = text.replace("[cost]", f"growths = {grows}\nfiner = 2\n[cost]")
        if retuning:
            text = text.replace("tuning = [11, 12]", f"tuning = [11, 12]\n{retuning}")
        path = tmp_path / "finer.toml"
        path.write_text(text)
        return suite_file.load(path)

    return make


def chosen(suite: Suite, stage: Stage, best: Mapping[str, float | None]) -> pd.DataFrame:
    """Return the selection in which each method does best at the tried rate that is closest to its ``best``.

    A method whose best is None fails at all rates; the smallest is chosen for it.
    """
    runs = stage.runs(suite)
    rates = {(run.problem, run.balancer): set() for run in runs}
    for run in runs:
        rates[run.problem, run.balancer].add(run.spec.lr)
    rows = []
    for (problem, label), tried in rates.items():
        wanted = best[label]
        scores = {lr: 7.0 if wanted is None else abs(lr - wanted) for lr in sorted(tried)}
        first = min(scores, key=lambda lr: scores[lr])
        rows += [(problem, label, lr, score, lr == first) for lr, score in scores.items()]
    return pd.DataFrame(rows, columns=["problem", "balancer", "lr", "mean_validation_score", "chosen"])


def tried(suite: Suite, stage: Stage) -> dict[str, list[float]]:
    found: dict[str, set[float]] = {}
    for run in stage.runs(suite):
        found.setdefault(run.balancer, set()).add(run.spec.lr)
    return {label: sorted(rates) for label, rates in found.items()}


def all_stages(suite: Suite, best: Mapping[str, float | None]) -> list[Stage]:
    search = rate_search.stages(suite)
    found = [next(search)]
    while True:
        try:
            found.append(search.send(chosen(suite, found[-1], best)))
        except StopIteration:
            return found


def test_each_method_tries_two_rates_around_its_best_and_longer_training_those_around_equal_s(
    finer_suite: MakeSuite,
) -> None:
    suite = finer_suite(balancers=[{"name": "equal"}, {"name": "gradnorm"}, LONGER])
    best = {"equal": 0.01, "gradnorm": 0.02, "longer": 0.001}
    first, finer, *around, last = all_stages(suite, best)
    assert tried(suite, first) == {"equal": [0.001, 0.01, 0.1], "gradnorm": [0.001, 0.01, 0.1]}
    assert tried(suite, finer)["equal"] == [0.001, 0.005, 0.01, 0.02, 0.1]
    assert tried(suite, around[0])["longer"] == [0.005, 0.01, 0.02]
    assert tried(suite, last)["longer"] == [0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02]
    assert {run.spec.recipe.steps for run in last.runs(suite) if run.balancer == "longer"} == {24}


def test_the_grid_grows_for_all_until_the_best_is_within_or_it_may_grow_no_more(finer_suite: MakeSuite) -> None:
    best = {"equal": 10.0, "gradnorm": 0.01}
    for grows, expected in ((0, [0.001, 0.01, 0.1]), (2, [0.001, 0.01, 0.1, 1.0, 10.0])):
        suite = finer_suite(grows)
        *_, grown, finer = all_stages(suite, best)
        assert tried(suite, grown)["gradnorm"] == expected
        assert tried(suite, finer)["equal"] == sorted({*expected, expected[-1] / 2, expected[-1] * 2})
    suite = finer_suite(3)
    *_, grown, _ = all_stages(suite, best)
    assert tried(suite, grown)["gradnorm"] == [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]


def test_nothing_is_tried_near_the_rates_of_a_method_that_fails_at_all_of_them(finer_suite: MakeSuite) -> None:
    suite = finer_suite(balancers=[{"name": "equal"}, {"name": "gradnorm"}, LONGER])
    grid = [0.001, 0.01, 0.1]
    last = all_stages(suite, {"equal": 0.01, "gradnorm": None, "longer": None})[-1]
    assert tried(suite, last) == {
        "equal": [0.001, 0.005, 0.01, 0.02, 0.1],
        "gradnorm": grid,
        "longer": grid_around(0.01),
    }
    last = all_stages(suite, {"equal": None, "gradnorm": 0.01, "longer": 0.001})[-1]
    assert tried(suite, last)["equal"] == grid
    assert tried(suite, last)["longer"] == grid_around(0.001)  # it has to be trained at some rate


def grid_around(lr: float) -> list[float]:
    return [lr / 2, lr, 2 * lr]


def test_searched_weights_have_as_many_trials_as_a_method_can_have_rates(finer_suite: MakeSuite) -> None:
    suite = finer_suite(balancers=[{"name": "equal"}, SEARCHED])
    stages = all_stages(suite, {"equal": 100.0, "searched": 0.01})
    assert tried(suite, stages[0])["searched"] == tried(suite, stages[-1])["searched"]
    assert len(tried(suite, stages[-1])["searched"]) == 3 + 3 + 2
    runs = [run for run in stages[-1].runs(suite) if run.balancer == "searched"]
    assert len({str(run.spec.method.options["weights"]) for run in runs}) > 3


def test_repeated_runs_choose_their_rates_anew_among_neighbours(finer_suite: MakeSuite) -> None:
    suite = finer_suite(retuning="repeated = [21, 22]\nretuning = [31]")
    reported = plan.reported_at(suite, lambda problem, balancer: 0.01)
    again = plan.retuning(suite, reported)
    assert {run.spec.lr for run in again} == {0.005, 0.01, 0.02}
    assert {(run.spec.seed, run.spec.phase) for run in again} == {(31, "tuning")}
    selection = pd.DataFrame(
        [("small", "equal", 0.02, True), ("small", "equal", 0.01, False), ("small", "gradnorm", 0.005, True)],
        columns=["problem", "balancer", "lr", "chosen"],
    )
    repeated = plan.repeated(suite, reported, selection)
    assert {(run.balancer, run.spec.lr) for run in repeated} == {("equal", 0.02), ("gradnorm", 0.005)}
    assert {run.spec.lr for run in plan.repeated(suite, reported)} == {0.01}


def test_a_method_that_needs_a_fork_is_left_out_where_there_is_none(make_suite: MakeSuite) -> None:
    suite = make_suite(
        problems=[{"name": "small"}, {"name": "helmholtz"}], balancers=[{"name": "equal"}, FEATURES], rounds=1
    )
    for runs in (plan.tuning(suite, plan.grids(suite)), plan.reported(suite, None), plan.costs(suite)):
        assert {(run.problem, run.balancer) for run in runs} == {
            ("small", "equal"),
            ("small", "mgda"),
            ("helmholtz", "equal"),
        }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"balancers": [{"name": "equal"}, {**LONGER, "rates_around": "eqal"}]},
            "balancers[1].rates_around: no balancer",
        ),
        (
            {
                "problems": [{"name": "small"}, {"name": "helmholtz"}],
                "balancers": [{**FEATURES, "label": "around"}, {"name": "equal", "rates_around": "around"}],
            },
            "balancers[1].rates_around: around has no learning rate on helmholtz, whose model has no fork",
        ),
        ({"balancers": [{"name": "equal", "times_steps": 0}]}, "balancers[0].times_steps: expected a positive number"),
        ({"balancers": [{"name": "equal", "weight_decay": -1}]}, "balancers[0].weight_decay: expected a number, 0 or"),
        ({"problems": [{"name": "small", "betas": [0.9, 1.0]}]}, "problems[0].betas: expected a list of two numbers"),
        (
            {"problems": [{"name": "small", "schedule": "step"}]},
            'problems[0].schedule: expected "constant" or "cosine"',
        ),
        ({"retuning": "repeated = [21]\nretuning = [11]"}, "seeds.retuning: [11] are other seeds of the suite too"),
        ({"retuning": "retuning = [31]"}, "seeds.retuning: is for a suite with repeated seeds"),
    ],
)
def test_mistakes_are_told(finer_suite: MakeSuite, parts: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError) as raised:
        finer_suite(**parts)
    assert message in str(raised.value)


def test_a_recipe_s_changes_are_those_of_the_suite_the_problem_and_the_balancer(
    suite_text: Callable[..., str], tmp_path: Path
) -> None:
    text = suite_text(
        problems=[{"name": "small"}, {"name": "small", "label": "other", "betas": [0.8, 0.9]}],
        balancers=[{"name": "equal", "weight_decay": 0.01, "times_steps": 0.5}],
    )
    path = tmp_path / "recipes.toml"
    path.write_text(text.replace("[cost]", '[recipe]\nschedule = "constant"\nbetas = [0.9, 0.95]\n[cost]'))
    runs = plan.reported(suite_file.load(path), None)
    recipes = {run.problem: run.spec.recipe for run in runs}
    assert recipes["small"].betas == (0.9, 0.95)
    assert recipes["other"].betas == (0.8, 0.9)
    assert {(r.schedule, r.weight_decay, r.steps) for r in recipes.values()} == {("constant", 0.01, 6)}


def test_the_picture_and_the_baselines_belong_to_the_row_that_is_compared_with(make_suite: MakeSuite) -> None:
    longer = {"name": "equal", "label": "longer", "times_steps": 2}
    suite = make_suite(balancers=[longer, {"name": "equal"}], baselines=True)
    reported = plan.reported_at(suite, lambda problem, balancer: {"longer": 0.003, "equal": 0.01}[balancer])
    assert [(run.balancer, run.spec.seed) for run in reported if run.pictured] == [("equal", 1)]
    assert {run.spec.lr for run in plan.baselines(suite, reported)} == {0.01}
