"""Test the paper's claims: verdicts on made-up numbers, the runs of an experiment, and the whole at a small scale."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

from bench import cli
from bench.analysis import Comparison, Estimate, compare
from bench.execute.progress import Progress
from bench.execute.workforce import Workforce
from bench.paper import all_claims, claim_alpha, claim_growth, claim_overhead, claim_static, claim_toy, experiments
from bench.paper.all_claims import CLAIMS, Judged
from bench.paper.claim import Finding, Outcome
from bench.paper.claim_verdicts import (
    ClaimVerdict,
    above,
    below,
    every,
    imputed,
    of_comparison,
    peak,
    rank_correlation,
    share,
)
from bench.paper.experiments import Bench, Effort, Lab, average_weights, finals
from bench.paper.experiments import bench as make_bench
from bench.run import plugins, result_file
from bench.run.spec import Method, RunSpec
from bench.run.training import Evaluation, RunResult

pytestmark = pytest.mark.xdist_group("processes")

HERE = Path(__file__).parents[1]
DOCUMENT = HERE.parents[1] / "docs" / "paper-claims.md"
KEPT = HERE.parents[1] / "results" / "reference" / "paper" / "tables"
SCALE = Effort((1, 2, 3), (1, 2), (101,), (1e-3, 3e-3), (3e-3, 1e-2), draws=5, draws_grid=(3e-3, 1e-2), rounds=2)
EQUAL = Method("equal", None, {})


# Verdicts.


@pytest.mark.parametrize(
    ("ratio", "spread", "expected"),
    [(0.8, 0.01, "holds"), (1.3, 0.01, "does not hold"), (1.0, 0.001, "does not hold"), (0.95, 0.2, "not settled")],
)
def test_better_holds_and_a_tie_refutes(ratio: float, spread: float, expected: ClaimVerdict) -> None:
    noise = np.exp(spread * np.array([-1, 1, -1, 1]))
    comparison = compare(ratio * noise, np.ones(4), higher_is_better=False, scale="ratio")
    assert of_comparison(comparison) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected_above", "expected_below"),
    [
        (1.1, 1.4, "holds", "does not hold"),
        (0.6, 0.9, "does not hold", "holds"),
        (0.9, 1.1, "not settled", "not settled"),
        (float("nan"), float("nan"), "not settled", "not settled"),
    ],
)
def test_bounds(low: float, high: float, expected_above: ClaimVerdict, expected_below: ClaimVerdict) -> None:
    estimate = Estimate((low + high) / 2, low, high)
    assert above(estimate, 1) == expected_above
    assert below(estimate, 1) == expected_below


def test_a_claim_of_several_parts() -> None:
    assert every(["holds", "holds"]) == "holds"
    assert every(["holds", "not settled"]) == "not settled"
    assert every(["holds", "not settled", "does not hold"]) == "does not hold"
    assert every(["holds", "holds", "does not hold"], exceptions=1) == "holds"
    assert every(["holds", "not settled", "does not hold"], exceptions=1) == "not settled"
    assert every(["holds", "does not hold", "does not hold"], exceptions=1) == "does not hold"
    assert every([]) == "not settled"


def test_a_peak_is_the_best_within_against_the_best_of_the_others() -> None:
    noise = np.exp(0.01 * np.array([-1, 1, -1, 1]))
    levels = np.array([1.0, 0.8, 0.9, 1.1])
    comparison, verdict = peak(levels[:, None] * noise, (0.1, 1, 2, 3), (1, 2))
    assert comparison.mean == pytest.approx(0.8)
    assert verdict == "holds"
    assert peak(levels[::-1, None] * noise, (0.1, 1, 2, 3), (1, 2))[1] == "holds"
    assert peak((1 / levels)[:, None] * noise, (0.1, 1, 2, 3), (1, 2))[1] == "does not hold"
    assert peak(np.ones((4, 4)) * noise, (0.1, 1, 2, 3), (1, 2))[1] == "does not hold"  # all places score alike


@pytest.mark.slow
@pytest.mark.parametrize("pearson", [0.0, 0.5, -0.8])
def test_the_interval_of_a_rank_correlation_covers_it(pearson: float) -> None:
    truth = 6 / np.pi * np.arcsin(pearson / 2)  # true rank correlation of normal variables
    rng, covered, repeats = np.random.default_rng(1), 0, 2000
    for _ in range(repeats):
        x, y = rng.multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], size=100).T
        found = rank_correlation(x.tolist(), y.tolist())
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / repeats <= 0.97


def test_a_perfect_order_has_no_interval() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == Estimate(1, 1, 1)


def test_the_interval_of_a_share_is_that_of_its_definition() -> None:
    found = share(3, 40)
    assert found.mean == 3 / 40
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 3, 38))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 4, 37))
    assert stats.binom.sf(2, 40, found.low) == pytest.approx(0.025)
    assert share(0, 40).low == 0


@pytest.mark.parametrize("draws", [100, 300])
def test_the_interval_of_a_share_covers_it_near_the_bound_that_decides(draws: int) -> None:
    intervals = [share(count, draws) for count in range(draws + 1)]
    for truth in (0.1, 0.16, 0.3):
        chances = stats.binom.pmf(np.arange(draws + 1), draws, truth)
        inside = [found.low <= truth <= found.high for found in intervals]
        assert 0.93 <= chances[inside].sum() <= 0.97


def test_a_failed_run_scores_worst() -> None:
    nan = float("nan")
    assert imputed([1.0, nan, 3.0, np.inf], [2.0] * 4).tolist() == [1, 3, 3, 3]
    assert imputed([1.0, nan], [nan, 5.0]).tolist() == [1, 5]
    assert np.isnan(imputed([nan], [nan])).all()


def test_where_a_curve_is_lowest_is_found_over_windows() -> None:
    scores = np.array([[9.0, 5, 1, 5, 3, 3, 3, 9], [9.0, 5, 1, 5, 3, 3, 3, 9]])
    assert claim_growth.best_window(scores) == 1 + np.argmin([5 * 1 * 5, 1 * 5 * 3, 5 * 3 * 3, 3 * 3 * 3])


@pytest.mark.parametrize(
    ("last", "expected"), [(2.0, "holds"), (0.5, "does not hold"), (1.0, "does not hold"), (None, "not settled")]
)
def test_training_deteriorates_where_it_ends_above_its_lowest(last: float | None, expected: ClaimVerdict) -> None:
    rng = np.random.default_rng(3)
    on = make_bench("T=2", "regression", 10, 100, sigmas="T=2")
    results = []
    for _ in range(5):
        end = last or float(np.exp(rng.normal()))
        scores = [2.0, *[1.0] * 7, *[end] * 3]
        results.append(_ended(on, scores, weights=np.ones((100, 2))))
    assert claim_growth._deteriorates("tuned", on, results, best=0).verdict == expected


def test_a_run_that_failed_early_keeps_the_worst_it_had() -> None:
    on = make_bench("T=2", "regression", 4, 100, sigmas="T=2")
    assert claim_growth._scores(on, _ended(on, [2.0, 1.0, 5.0], np.ones((60, 2)))).tolist() == [1, 5, 5, 5]


def test_weights_that_grow_are_told_from_weights_that_stay() -> None:
    on = make_bench("T=2", "regression", 4, 100, sigmas="T=2")
    rising = np.linspace(1, 2, 100)[:, None] * np.ones(2)
    found = claim_growth._grows("tuned", on, [_ended(on, [1.0], rising * (1 + 0.01 * i)) for i in range(4)])
    assert found.verdict == "holds"
    assert found.estimate.mean == pytest.approx(2 / rising[49, 0])
    failed = _ended(on, [1.0], np.ones((0, 2)))
    assert claim_growth._grows("tuned", on, [failed] * 4).verdict == "not settled"
    still = claim_growth._grows("tuned", on, [_ended(on, [1.0], np.ones((100, 2)))] * 4)
    assert still.verdict == "does not hold"


def _ended(on: Bench, scores: list[float], weights: np.ndarray) -> RunResult:
    curves = [Evaluation(step, {on.problem.primary: score}) for step, score in enumerate(scores)]
    return RunResult(tasks=on.problem.tasks, curves=curves, weights=weights, losses=np.ones_like(weights))


# The runs that an experiment asks for.


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    plugins.load([HERE / "plugins" / "small.py", HERE / "plugins" / "methods.py"])
    with Progress(Console(quiet=True)) as progress:
        yield Lab(tmp_path, SCALE, Workforce.of(0), progress)


@pytest.fixture
def small(lab: Lab) -> Bench:
    return make_bench("small", "small", 4)


def test_a_run_is_done_once(lab: Lab, small: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [small.run(EQUAL, seed) for seed in (1, 2, 1)]
    first = lab.results("a stage", specs)

    def never(_, runs, *more):
        return iter(runs and pytest.fail("done again"))

    monkeypatch.setattr(Workforce, "do", never)
    again = lab.results("a stage", specs)
    assert [one.scores for one in again] == [one.scores for one in first]
    assert first[0].scores == first[2].scores != first[1].scores


def test_results_come_by_cell(lab: Lab, small: Bench) -> None:
    cells = {"a": [small.run(EQUAL, 1), small.run(EQUAL, 2)], "b": [small.run(EQUAL, 2, lr=0.5)]}
    found = lab.by_cell("a stage", cells)
    for cell, specs in cells.items():
        stored = [result_file.load(result_file.run_path(lab.folder, spec.key)).scores for spec in specs]
        assert [result.scores for result in found[cell]] == stored


def test_the_rate_is_the_best_on_validation_and_a_grid_grows_once(lab: Lab, small: Bench) -> None:
    asked: list[RunSpec] = []
    results = lab.results

    def listen(stage: str, specs: list[RunSpec]) -> list[RunResult]:
        asked.extend(specs)
        return results(stage, specs)

    lab.results = listen  # type: ignore[method-assign, assignment]
    methods = {"equal": lambda _: EQUAL, "one task": lambda _: claim_toy.fixed([2.0, 0.0])}
    chosen = lab.choose("rates", small, methods, (101, 102), (0.001, 0.01))
    tried = sorted({spec.lr for spec in asked})
    assert {spec.phase for spec in asked} == {"tuning"}
    assert len(tried) in (3, 4)  # the best of two values lies at an edge
    for label, make in methods.items():
        cells = {lr: results("again", [small.run(make(s), s, "tuning", lr) for s in (101, 102)]) for lr in tried}
        means = {lr: np.log(scores).mean() for lr, scores in finals(small, cells, "validation").items()}
        assert chosen[label] == min(means, key=means.__getitem__)


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param([[0.5, 0.5], [0.1, 1.0], [2.0, 2.0]], id="ratios: geometric means 0.5, 0.32, 2"),
        pytest.param([[0.5, 0.5], [0.4, 0.4], [0.0, 1.2]], id="differences, for one is 0: means 0.5, 0.4, 0.6"),
    ],
)
def test_rates_are_chosen_by_the_mean_of_the_comparisons(
    scores: list[list[float]], lab: Lab, small: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_rates = dict(zip((0.001, 0.01, 0.1), map(np.array, scores), strict=True))
    monkeypatch.setattr(experiments, "finals", lambda on, cells, split: {cell: of_rates[cell[1]] for cell in cells})
    assert lab.choose("rates", small, {"equal": lambda _: EQUAL}, (101, 102), tuple(of_rates)) == {"equal": 0.01}


def test_failed_runs_count_with_the_constant_or_the_worst(lab: Lab, small: Bench) -> None:
    cells = {
        "good": lab.results("a stage", [small.run(EQUAL, 1)]),
        "failed": lab.results("a stage", [small.run(Method("diverging", None, {}), 1)]),
    }
    assert cells["failed"][0].status == "failed"
    assert lab.failed == 1
    scores = finals(small, cells, "test")
    [constant] = [score for score in cells["good"][0].scores if (score.checkpoint, score.split) == ("constant", "test")]
    assert scores["failed"][0] == max(scores["good"][0], constant.metrics["error"])


def test_the_average_weights_of_a_run() -> None:
    weights = np.array([[1.0, 1.0], [1.5, 0.5]])
    assert average_weights(RunResult(tasks=("a", "b"), weights=weights)) == [1.25, 0.75]
    assert average_weights(RunResult(tasks=("a", "b"))) == [1, 1]


def test_random_weights_sum_to_the_number_of_tasks_and_reach_the_corners() -> None:
    drawn = claim_static.draws(1000, 3)
    np.testing.assert_allclose(drawn.sum(axis=1), 3, atol=3e-6)
    assert (drawn >= 0).all()
    assert (drawn.max(axis=0) > 2.4).all()
    assert (claim_static.draws(10, 3) == claim_static.draws(1000, 3)[:10]).all()


# Texts.


def test_a_number_is_told_with_its_interval_and_unit() -> None:
    def told(estimate: Estimate, unit: str) -> str:
        return Finding("", "", estimate, unit).measured

    assert told(Estimate(0.5, 0.4, 0.6), "×") == "0.50× [0.40, 0.60]"
    assert told(Estimate(0.05, 0.01, 0.12), "%") == "5 % [1, 12]"
    assert told(Estimate(-0.5, -0.6, -0.4), "") == "−0.50 [−0.60, −0.40]"
    assert told(Estimate(5, np.nan, np.nan), "of 6") == "5 of 6"


def test_what_stands_beside_a_claim_takes_no_part_in_its_verdict() -> None:
    worse = Comparison(2, 1.9, 2.1, "ratio", "worse")
    better = Comparison(0.5, 0.4, 0.6, "ratio", "better")
    findings = [Finding.of("tuned", "ours", better, of_comparison(better)), Finding.of("tuned", "static", worse)]
    outcome = Outcome(findings, lambda: pytest.fail("drawn"), "", pd.DataFrame())
    assert outcome.verdict("tuned") == "holds"
    assert outcome.verdict("one learning rate") is None


# What one call after another leaves.


def judged(number: int, verdict: ClaimVerdict) -> Judged:
    """Return a claim with a made-up outcome."""
    findings = [
        Finding("one learning rate", f"finding of {number}", Estimate(0.5, 0.4, 0.6), "×", verdict),
        Finding("tuned", f"finding of {number}", Estimate(0.7, np.nan, np.nan), "", verdict),
        Finding("tuned", "beside it", Estimate(5, np.nan, np.nan), "of 6"),
    ]
    return Judged(CLAIMS[number - 1], Outcome(findings, Figure, f"Caption {number}", pd.DataFrame({"x": [number]})))


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Return a function that calls the command on claims with made-up verdicts, and returns the page."""
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "environment.json").write_text("{}")

    def call(**verdicts: ClaimVerdict) -> str:
        found = [judged(int(name[-1]), verdict) for name, verdict in verdicts.items()]
        monkeypatch.setattr(all_claims, "judge", lambda *_: iter(found))
        only = [word for one in found for word in ("--only", str(one.claim.number))]
        done = CliRunner().invoke(cli.app, ["paper", *only, "--results", str(tmp_path), "--jobs", "1"])
        assert done.exit_code == 0, done.output
        return (tmp_path / "paper" / "report.html").read_text(encoding="utf-8")

    return call


def test_a_claim_that_is_judged_alone_leaves_the_others(judges: Callable[..., str], tmp_path: Path) -> None:
    tables = tmp_path / "paper" / "tables"
    judges(claim_2="holds", claim_4="not settled")
    whole = pd.read_csv(tables / "findings.csv")
    page = judges(claim_4="does not hold")
    claims = pd.read_csv(tables / "claims.csv").set_index("claim")
    assert claims["tuned"].to_dict() == {2: "holds", 4: "does not hold"}
    findings = pd.read_csv(tables / "findings.csv")
    pd.testing.assert_frame_equal(findings[findings["claim"] == 2], whole[whole["claim"] == 2])
    assert page.count("<svg") == 2
    for words in ("Caption 2", "Caption 4", "finding of 2", "0.50×", "Of 2 claims", "5 of 6"):
        assert words in page, words
    judges(claim_1="holds")
    assert pd.read_csv(tables / "claims.csv")["claim"].tolist() == [1, 2, 4]


@pytest.mark.parametrize(("table", "rows"), [("claims", 1), ("findings", 1), ("findings", 0)])
def test_damaged_tables_are_told_before_anything_is_judged(
    judges: Callable[..., str], tmp_path: Path, table: str, rows: int
) -> None:
    judges(claim_2="holds", claim_4="holds")
    path = tmp_path / "paper" / "tables" / f"{table}.csv"
    path.write_text("claim,short\n2,x\n" if table == "claims" else path.read_text()[: 200 * rows])
    done = CliRunner().invoke(cli.app, ["paper", "--only", "1", "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert re.match(r"error: .*(claims|findings)\.csv", done.output)


# The whole command, at a small scale.


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(on: Bench, steps: int) -> Bench:
        return replace(on, recipe=replace(on.recipe, steps=steps), evaluations=min(on.evaluations, steps))

    toy_problems = tuple(shorter(on, 12) for on in claim_toy.PROBLEMS)
    monkeypatch.setattr(claim_toy, "PROBLEMS", toy_problems)
    monkeypatch.setattr(claim_growth, "PROBLEMS", tuple(shorter(on, 20) for on in claim_growth.PROBLEMS))
    monkeypatch.setattr(claim_alpha, "PROBLEMS", toy_problems)
    monkeypatch.setattr(claim_static, "ON", replace(toy_problems[0], label="scenes"))
    monkeypatch.setattr(experiments, "QUICK", SCALE)


@pytest.mark.slow
def test_claims_are_judged_told_and_drawn_and_what_was_computed_is_used_again(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = [argument for number in (1, 2, 3, 4, 5) for argument in ("--only", str(number))]
    command = ["paper", *only, "--results", str(tmp_path), "--jobs", "1"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.output

    folder = tmp_path / "paper"
    claims, findings = (pd.read_csv(folder / "tables" / f"{name}.csv") for name in ("claims", "findings"))
    assert claims["claim"].tolist() == [1, 2, 3, 4, 5]
    assert set(claims[["one learning rate", "tuned"]].to_numpy().flat) <= {"holds", "does not hold", "not settled"}
    for setting in ("one learning rate", "tuned"):
        for claim, verdict in zip(claims["claim"], claims[setting], strict=True):
            of_claim = findings[(findings["claim"] == claim) & (findings["setting"] == setting)]
            assert every(of_claim["verdict"].dropna().tolist()) == verdict
    twelve = findings[(findings["claim"] == 1) & (findings["setting"] == "tuned")]
    assert twelve["finding"].str.contains("static 1/σ² over that of equal").sum() == 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    for number in (1, 2, 3, 4, 5):
        assert (folder / "figures" / f"claim-{number}.png").stat().st_size > 10_000
        assert CLAIMS[number - 1].short in " ".join(done.output.split()) or CLAIMS[number - 1].short in page

    def refuse(_: Workforce, runs: list[object], *more: object) -> Iterator[bool]:
        assert not runs
        return iter(())

    monkeypatch.setattr(Workforce, "do", refuse)
    again = CliRunner().invoke(cli.app, command)
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(pd.read_csv(folder / "tables" / "findings.csv"), findings)


@pytest.mark.slow
def test_gradnorm_static_has_the_time_average_of_gradnorm_on_its_seed(tiny: None, lab: Lab) -> None:
    on = claim_toy.PROBLEMS[0]
    runs = claim_toy.runs(lab, on, "one learning rate")
    for ours, held in zip(runs["gradnorm"], runs[claim_toy.TWIN], strict=True):
        np.testing.assert_allclose(held.weights, np.tile(average_weights(ours), (12, 1)), rtol=1e-6)
    assert runs[claim_toy.TWIN][0].weights[0].tolist() != runs[claim_toy.TWIN][1].weights[0].tolist()


def test_two_at_work_in_one_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    with filelock.FileLock(tmp_path / "paper" / ".lock"):
        done = CliRunner().invoke(cli.app, ["paper", "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert "another process is at work" in done.output


@pytest.mark.slow
def test_the_time_of_a_step_is_measured_on_three_models_and_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = claim_overhead.overhead(lab)
    table = outcome.table
    assert set(table["method"]) == {"equal", "equal, again", "gradnorm layer", "double backward"}
    assert (table.groupby("model")["ratio"].count() == 4).all()
    assert table["model"].nunique() == 3
    assert (table["ratio"] > 0).all()
    assert outcome.figure().axes
    monkeypatch.setattr(claim_overhead, "_measure", lambda rounds: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(claim_overhead.overhead(lab).table, table)


def test_the_documentation_shows_the_verdicts_that_were_measured() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.partition("<!-- lossbench paper -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == all_claims.markdown(pd.read_csv(KEPT / "claims.csv"))
