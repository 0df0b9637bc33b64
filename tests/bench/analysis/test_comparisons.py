"""Check selection, imputation, intervals, comparisons and the leaderboard against independent computations."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis import (
    Roles,
    SuiteTables,
    at_common_steps,
    band,
    choose_learning_rates,
    compare,
    compare_unpaired,
    comparison_scale,
    impute_failures,
    is_ranking,
    leaderboard,
    summarise,
    t_interval,
)

from ...slow_params import others_slow

# Student's own example of paired differences (Biometrika 1908, table I): hours of sleep gained with two drugs.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

PROBLEMS = pd.DataFrame(
    [
        {"problem": "loss", "primary": "error", "higher_is_better": False},
        {"problem": "gain", "primary": "accuracy", "higher_is_better": True},
    ]
)
NO_CONSTANTS = pd.DataFrame({"problem": [], "seed": [], "split": [], "value": []})


def score(value, balancer="equal", seed=1, lr=0.1, problem="loss", **other):
    """Return a row of the scores table; by default the last checkpoint of a tuning run on validation."""
    place = {"phase": "tuning", "checkpoint": "last", "split": "validation", "task": None, "imputed": False} | other
    metric = dict(zip(PROBLEMS["problem"], PROBLEMS["primary"], strict=True))[problem]
    key = f"{problem}/{balancer}/{place['phase']}/{lr}/{seed}"
    run = {"key": key, "problem": problem, "balancer": balancer, "seed": seed, "lr": lr}
    return {**run, "metric": metric, "value": value, **place}


def runs_of(scores, failed=()):
    """Return the runs table of these scores; ``failed`` names the balancers whose runs failed."""
    runs = scores.drop_duplicates(["key", "balancer"])[["key", "problem", "balancer", "phase", "lr", "seed"]]
    return runs.assign(status=np.where(runs["balancer"].isin(failed), "failed", "ok"), reason="", steps=10)


class TestIntervals:
    def test_paired_difference_is_that_of_the_published_example(self):
        found = compare(DRUG_2, DRUG_1, higher_is_better=True, scale="difference")
        assert (found.mean, found.low, found.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-7)
        assert found.verdict == "better"
        assert compare(DRUG_2, DRUG_1, higher_is_better=False, scale="difference").verdict == "worse"

    @pytest.mark.parametrize("count", [2, 5, 30])
    def test_agrees_with_scipys_paired_test(self, count):
        random = np.random.default_rng(count)
        ours, theirs = random.lognormal(size=(2, count))
        difference = compare(ours, theirs, higher_is_better=False, scale="difference")
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
        ratio = compare(ours, theirs, higher_is_better=False, scale="ratio")
        logs = stats.ttest_rel(np.log(ours), np.log(theirs))
        assert (np.log(ratio.low), np.log(ratio.high)) == pytest.approx(tuple(logs.confidence_interval(0.95)))
        assert (ratio.verdict == "not settled") == (logs.pvalue > 0.05)

    def test_worked_by_hand(self):
        # 1, 2, 3: mean 2, standard error 1/sqrt(3), t of 0.975 with 2 degrees of freedom 4.3027
        found = t_interval([1, 2, 3])
        assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), 1e-4)

    @pytest.mark.parametrize("seeds", others_slow([3, 5, 10], 5))
    @pytest.mark.parametrize("scale", ["ratio", "difference"])
    def test_covers_the_true_comparison_as_often_as_it_says(self, scale, seeds):
        """Draw pairs that share the difficulty of a seed, with the numbers of seeds that suites have."""
        random = np.random.default_rng(seeds)
        hardness, ours, theirs = random.normal(size=(3, 2000, seeds)) * np.array([[[0.5]], [[0.1]], [[0.2]]])
        pairs = zip(0.05 + hardness + ours, hardness + theirs, strict=True)
        transform = np.exp if scale == "ratio" else np.asarray
        truth = float(transform(0.05))
        found = [compare(transform(one), transform(other), False, scale) for one, other in pairs]
        assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97

    def test_ratio_does_not_depend_on_how_hard_a_seed_is(self):
        ours, theirs, hardness = np.random.default_rng(0).lognormal(size=(3, 6))
        plain = compare(ours, theirs, higher_is_better=False, scale="ratio")
        scaled = compare(ours * hardness, theirs * hardness, higher_is_better=False, scale="ratio")
        assert (scaled.mean, scaled.low, scaled.high) == pytest.approx((plain.mean, plain.low, plain.high))
        swapped = compare(theirs, ours, higher_is_better=False, scale="ratio")
        assert (1 / swapped.mean, 1 / swapped.high, 1 / swapped.low) == pytest.approx(
            (plain.mean, plain.low, plain.high)
        )

    def test_ratio_is_that_of_the_summaries(self):
        ours, theirs = np.random.default_rng(1).lognormal(size=(2, 6))
        ratio = compare(ours, theirs, higher_is_better=False, scale="ratio").mean
        assert ratio == pytest.approx(summarise(ours, "ratio").mean / summarise(theirs, "ratio").mean)

    def test_identical_runs_are_a_tie(self):
        for scale in ("ratio", "difference"):
            assert compare([1.0, 2.0], [1.0, 2.0], higher_is_better=False, scale=scale).verdict == "tie"

    @pytest.mark.parametrize(
        ("factors", "verdict"),
        [
            ((0.995, 1.0, 1.005), "tie"),
            ((0.990, 0.991, 0.992), "tie"),  # the interval excludes no difference, but is within 2 % of it
            ((0.94, 0.95, 0.96), "better"),
            ((1.04, 1.05, 1.06), "worse"),
            ((0.9, 1.0, 1.1), "not settled"),
            ((0.97, 1.0, 1.005), "not settled"),
        ],
    )
    def test_a_tie_is_an_interval_within_two_percent(self, factors, verdict):
        theirs = np.array([1.0, 2.0, 4.0])
        assert compare(theirs * factors, theirs, higher_is_better=False, scale="ratio").verdict == verdict
        tens = np.full(3, 10.0)
        differences = compare(tens * factors, tens, higher_is_better=False, scale="difference")
        assert differences.verdict == verdict
        opposite = {"better": "worse", "worse": "better"}
        assert compare(tens * factors, tens, True, "difference").verdict == opposite.get(verdict, verdict)

    @pytest.mark.parametrize(
        ("ours", "theirs", "mean"), [([1e-320, 1, 1], [1e300, 1, 1], 0), ([1e60, 1e-60], [1, 1], 1)]
    )
    def test_a_ratio_beyond_what_a_number_can_hold_is_not_settled(self, ours, theirs, mean):
        for pair in ((ours, theirs), (theirs, ours)):
            for comparison in (compare, compare_unpaired):
                assert comparison(*pair, higher_is_better=False, scale="ratio").verdict == "not settled"
        found = compare(ours, theirs, higher_is_better=False, scale="ratio")
        assert found.mean == pytest.approx(mean, abs=1e-200)

    def test_one_seed_has_no_interval_and_no_verdict(self):
        found = compare([1.0], [2.0], higher_is_better=False, scale="ratio")
        assert found.mean == pytest.approx(0.5)
        assert np.isnan(found.low)
        assert found.verdict == ""

    def test_scale_is_ratio_only_for_positive_losses(self):
        assert comparison_scale([0.1, 2.0], higher_is_better=False) == "ratio"
        assert comparison_scale([0.1, 0.0], higher_is_better=False) == "difference"
        assert comparison_scale([0.1, 2.0], higher_is_better=True) == "difference"

    def test_refuses_what_it_cannot_compare(self):
        with pytest.raises(ValueError, match="2 and 1"):
            compare([1.0, 2.0], [1.0], higher_is_better=False, scale="ratio")
        with pytest.raises(ValueError, match="positive"):
            compare([1.0, -2.0], [1.0, -1.0], higher_is_better=False, scale="ratio")


class TestSelection:
    @staticmethod
    def chosen(rows):
        table = choose_learning_rates(pd.DataFrame(rows), PROBLEMS)
        return table[table["chosen"]].set_index(["problem", "balancer"])["lr"].to_dict()

    def test_best_mean_over_seeds_wins_in_the_scores_direction(self):
        rows = [
            score(value, lr=lr, seed=seed, problem=problem)
            for problem in ("loss", "gain")
            for lr, values in ((0.1, (2, 9)), (0.2, (4, 4)), (0.3, (6, 6)))
            for seed, value in enumerate(values)
        ]
        assert self.chosen(rows) == {("loss", "equal"): 0.2, ("gain", "equal"): 0.3}

    def test_only_last_validation_primary_scores_of_tuning_runs_count(self):
        rows = [score(1.0, lr=0.1), score(2.0, lr=0.2)]
        for poison in ({"phase": "reported"}, {"checkpoint": "best"}, {"split": "test"}, {"metric": "other"}):
            rows += [score(0.0, lr=0.2, **poison)]
        assert self.chosen(rows) == {("loss", "equal"): 0.1}

    def test_of_equal_rates_the_smaller(self):
        for order in (1, -1):
            rows = [score(1.0, lr=lr, problem="gain") for lr in (0.3, 0.1, 0.2)][::order]
            assert self.chosen(rows) == {("gain", "equal"): 0.1}

    def test_a_rate_without_a_score_loses(self):
        assert self.chosen([score(np.nan, lr=0.1), score(9.0, lr=0.2)]) == {("loss", "equal"): 0.2}
        assert self.chosen([score(np.nan, lr=0.2), score(np.nan, lr=0.1)]) == {("loss", "equal"): 0.1}

    @pytest.mark.parametrize(
        ("problem", "values", "scale"),
        [("loss", (1.0, 4.0, 0.5), "ratio"), ("loss", (-1.0, 4.0, 0.5), "difference"), ("gain", (1, 4), "difference")],
    )
    def test_scores_are_averaged_as_they_are_compared(self, problem, values, scale):
        rows = [score(value, seed=seed, problem=problem) for seed, value in enumerate(values)]
        row = choose_learning_rates(pd.DataFrame(rows), PROBLEMS).iloc[0]
        assert row["scale"] == scale
        assert row["mean_validation_score"] == pytest.approx(
            stats.gmean(values) if scale == "ratio" else sum(values) / len(values)
        )

    def test_one_bad_seed_among_losses_counts_by_its_factor(self):
        rows = [score(value, lr=0.1, seed=seed) for seed, value in enumerate((0.1, 0.1, 1.0))]
        rows += [score(0.3, lr=0.2, seed=seed) for seed in range(3)]
        assert self.chosen(rows) == {("loss", "equal"): 0.1}
        # One score of the problem that is no positive loss, and all of its rates are averaged plainly.
        assert self.chosen([*rows, *(score(0.0, "other", seed=seed) for seed in range(3))])["loss", "equal"] == 0.2

    @pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("problem", ["loss", "gain"])
    def test_a_score_that_is_not_finite_takes_the_rate_out(self, problem, lost):
        rows = [score(value, lr=0.1, seed=seed, problem=problem) for seed, value in enumerate((lost, 1.0))]
        rows += [score(2.0, lr=0.2, seed=seed, problem=problem) for seed in range(2)]
        assert self.chosen(rows) == {(problem, "equal"): 0.2}

    def test_marks_the_edges_of_the_rates_that_each_method_tried(self):
        rows = [score(lr, lr=lr, balancer=balancer) for lr in (0.1, 0.2, 0.3) for balancer in "ab"]
        rows += [score(0.4, "b", lr=0.4), score(0.4, lr=0.4, balancer="a", problem="gain")]
        table = choose_learning_rates(pd.DataFrame(rows), PROBLEMS)
        assert table.groupby(["problem", "balancer"])["grid_edge"].agg(list).to_dict() == {
            ("gain", "a"): [False],  # of one rate alone, none is known to be better
            ("loss", "a"): [True, False, True],
            ("loss", "b"): [True, False, False, True],
        }

    def test_refuses_rates_tried_with_other_seeds(self):
        rows = [score(1.0, lr=0.1, seed=1), score(1.0, lr=0.1, seed=2), score(1.0, lr=0.2, seed=1)]
        with pytest.raises(ValueError, match=r"equal at learning rate 0.2 has scores for the seeds \[1\]"):
            choose_learning_rates(pd.DataFrame(rows), PROBLEMS)


class TestImputation:
    def impute(self, rows, failed, constants=NO_CONSTANTS):
        scores = pd.DataFrame(rows)
        return impute_failures(scores, runs_of(scores, failed), PROBLEMS, constants)

    @pytest.mark.parametrize(
        ("problem", "reached", "constant", "expected"),
        [
            ("loss", (1.0, 3.0), 2.0, 3.0),
            ("loss", (1.0, 3.0), 4.0, 4.0),
            ("gain", (1.0, 3.0), 2.0, 1.0),
            ("gain", (1.0, 3.0), 0.5, 0.5),
            ("loss", (1.0, 3.0), None, 3.0),
            ("loss", (), 2.0, 2.0),
            ("loss", (), None, np.nan),
        ],
    )
    def test_the_worse_of_constant_and_worst_reached(self, problem, reached, constant, expected):
        rows = [score(value, f"method {i}", problem=problem) for i, value in enumerate(reached)]
        rows.append(score(np.nan, "failing", problem=problem))
        constants = NO_CONSTANTS
        if constant is not None:
            constants = pd.DataFrame([{"problem": problem, "seed": 1, "split": "validation", "value": constant}])
        result = self.impute(rows, ["failing"], constants)
        assert result["value"].tolist() == pytest.approx([*reached, expected], nan_ok=True)
        assert result["imputed"].tolist() == [False] * len(reached) + [True]

    def test_a_failed_runs_own_values_are_not_trusted(self):
        rows = [score(1.0), score(0.1, "failing"), score(99.0, "failing", seed=2)]
        assert self.impute(rows, ["failing"])["value"].tolist() == [1.0, 1.0, 1.0]

    def test_worst_is_of_the_same_problem_phase_and_split(self):
        rows = [score(1.0), score(np.nan, "failing")]
        for elsewhere in ({"phase": "reported"}, {"split": "test"}, {"problem": "gain"}, {"checkpoint": "best"}):
            rows.append(score(50.0, "other", **elsewhere))
        assert self.impute(rows, ["failing"])["value"].tolist()[1] == 1.0

    def test_best_checkpoint_gets_the_worst_last_one(self):
        rows = [score(2.0), score(7.0, checkpoint="best"), score(np.nan, "failing", checkpoint="best")]
        assert self.impute([*rows, score(np.nan, "failing")], ["failing"])["value"].tolist() == [2.0, 7.0, 2.0, 2.0]

    def test_other_metrics_and_the_input_stay_as_they_are(self):
        scores = pd.DataFrame([score(1.0), score(np.nan, "failing"), score(np.nan, "failing", metric="other")])
        before = scores.copy()
        result = impute_failures(scores, runs_of(scores, ["failing"]), PROBLEMS, NO_CONSTANTS)
        assert np.isnan(result["value"].iloc[2])
        assert not result["imputed"].iloc[2]
        pd.testing.assert_frame_equal(scores, before)

    def test_a_score_that_is_not_finite_counts_as_failed(self):
        result = self.impute([score(1.0), score(np.inf, "diverged")], [])
        assert result["value"].tolist() == [1.0, 1.0]
        assert result["imputed"].tolist() == [False, True]

    def test_a_failed_run_without_rows_would_be_dropped(self):
        scores = pd.DataFrame([score(1.0), score(np.nan, "failing")])
        with pytest.raises(ValueError, match=r"loss/failing/tuning/0\.1/1"):
            impute_failures(scores[:1], runs_of(scores, ["failing"]), PROBLEMS, NO_CONSTANTS)


class TestLeaderboard:
    VALUES = {"equal": (1.0, 2.0, 4.0), "half": (0.5, 1.1, 1.9), "noisy": (0.5, 3.0, 4.0)}

    def make(
        self,
        tuned=True,
        values=VALUES,
        lr=0.1,
        failed=(),
        baseline="equal",
        static=None,
        phase="reported",
        made="reported",
    ):
        shift = {"last": 1, "best": 0.9, "test": 1, "validation": 5}
        rows = [
            score(value * shift[checkpoint] * shift[split], balancer, seed, lr, split=split, checkpoint=checkpoint,
                  phase=made)
            for balancer, seeds in values.items()
            for seed, value in enumerate(seeds)
            for checkpoint in ("last", "best")
            for split in ("validation", "test")
        ]  # fmt: skip
        tried = [score(1.0 + abs(rate - 0.1), balancer, lr=rate) for balancer in values for rate in (0.1, 0.2)]
        scores = pd.DataFrame(rows + tried)
        runs = runs_of(scores, failed)
        tables = SuiteTables(problems=PROBLEMS, runs=runs, scores=scores)
        if tuned:
            tables = replace(tables, selection=choose_learning_rates(scores, PROBLEMS))
        roles = Roles(baseline, static, None, None, dict.fromkeys(values, "exploratory"))
        board = leaderboard(tables, roles, phase)
        assert (board["ranking"] == is_ranking(tables, phase)).all()
        return board.set_index("balancer"), is_ranking(tables)

    def test_a_tuned_suite_is_ranked_with_verdicts(self):
        board, ranking = self.make()
        assert ranking
        assert list(board.index) == ["half", "noisy", "equal"]
        assert board["verdict"].to_dict() == {"half": "better", "noisy": "not settled", "equal": ""}
        expected = stats.ttest_rel(np.log([0.5, 1.1, 1.9]), np.log([1.0, 2.0, 4.0])).confidence_interval(0.95)
        row = board.loc["half"]
        assert (row["relative_low"], row["relative_high"]) == pytest.approx(tuple(np.exp(expected)))
        assert row["score"] == pytest.approx((0.5 * 1.1 * 1.9) ** (1 / 3))
        assert row["best_score"] == pytest.approx(0.9 * row["score"])
        assert row["seeds"] == 3
        assert row["grid_edge"]

    def test_own_rates_beside_a_common_grid_are_ranked_and_repeated_runs_have_a_choice_of_their_own(self):
        rows = [
            ("regression", label, lr, 1.0, lr == best, False, origin)
            for label, best in (("one", 0.05), ("other", 0.1))
            for lr, origin in ((0.1, "grid"), (0.2, "grid"), (0.05 if label == "one" else 0.3, "finer"))
        ]
        rows.append(("regression", "longer", 0.07, 1.0, True, False, "around"))
        columns = ["problem", "balancer", "lr", "mean_validation_score", "chosen", "grid_edge", "origin"]
        selection = pd.DataFrame(rows, columns=columns)
        chosen = selection[selection["chosen"]]
        runs = chosen[["problem", "balancer", "lr"]].assign(phase="reported")
        again = runs.assign(phase="repeated", lr=runs["lr"] * 2)
        tables = SuiteTables(runs=pd.concat([runs, again]), selection=selection)
        assert is_ranking(tables)
        assert not is_ranking(tables, "repeated")
        retuned = again[["problem", "balancer", "lr"]].assign(chosen=True)
        assert is_ranking(replace(tables, retuning=retuned), "repeated")
        unlike = selection.assign(lr=selection["lr"].where(selection["lr"] != 0.2, [0.2, 0.25] * 3 + [0.07]))
        assert not is_ranking(replace(tables, selection=unlike))
        assert not is_ranking(replace(tables, selection=selection.drop(columns="origin")))

    def test_without_a_grid_nothing_is_ranked(self):
        board, ranking = self.make(tuned=False)
        assert not ranking
        assert list(board.index) == list(self.VALUES)
        assert (board["verdict"] == "").all()

    def test_every_method_is_compared_with_static_weights_too(self):
        board, _ = self.make(static="half")
        assert board["static_verdict"].to_dict() == {"half": "", "noisy": "not settled", "equal": "worse"}
        assert board["static_relative"]["equal"] == pytest.approx(1 / board["relative"]["half"])
        assert np.isnan(board["static_relative"]["half"])
        plain, _ = self.make()
        assert plain["static_relative"].isna().all()
        assert (plain["static_verdict"] == "").all()
        pd.testing.assert_series_equal(plain["relative"], board["relative"])

    def test_runs_of_another_phase_are_another_leaderboard(self):
        board, _ = self.make(phase="repeated")
        assert board.empty
        again, _ = self.make(phase="repeated", made="repeated")
        pd.testing.assert_frame_equal(again, self.make()[0])

    def test_other_rates_than_the_chosen_ones_are_no_ranking(self):
        assert not self.make(lr=0.2)[1]

    def test_one_seed_is_in_the_suites_order(self):
        board, _ = self.make(values={"equal": (2.0,), "half": (1.0,)})
        assert list(board.index) == ["equal", "half"]
        assert (board["verdict"] == "").all()

    def test_counts_failed_runs(self):
        assert self.make(failed=["noisy"])[0]["failed"].to_dict() == {"half": 0, "noisy": 3, "equal": 0}

    def test_without_equal_weighting_nothing_is_compared(self):
        board, _ = self.make(values={"half": (1.0, 2.0), "noisy": (1.0, 3.0)}, baseline=None)
        assert board["relative"].isna().all()


class TestBand:
    FRAME = pd.DataFrame({"step": [0, 0, 0, 1, 1], "seed": [1, 2, 3, 1, 2], "value": [1.0, 10.0, 100.0, 4.0, np.nan]})

    def test_mean_and_range_over_seeds(self):
        table = band(self.FRAME, ["step"], "value", log=False)
        assert table.iloc[0].to_dict() == {"step": 0, "centre": 37.0, "low": 1.0, "high": 100.0, "seeds": 3}

    def test_geometric_mean_on_a_logarithmic_axis(self):
        assert band(self.FRAME, ["step"], "value", log=True)["centre"].tolist() == pytest.approx([10.0, 4.0])

    def test_failed_seeds_leave_the_others(self):
        assert band(self.FRAME, ["step"], "value", log=False)["seeds"].tolist() == [3, 1]

    def test_a_run_that_ended_early_adds_no_steps_of_its_own(self):
        steps = {"whole": range(0, 100, 10), "longest too": range(0, 100, 10), "failed": range(0, 40, 4)}
        frame = pd.DataFrame([{"key": key, "step": step} for key, of_run in steps.items() for step in of_run])
        kept = at_common_steps(frame, most=5)
        assert sorted(kept["step"].unique()) == [0, 20, 40, 60, 80]
        assert kept.loc[kept["key"] == "failed", "step"].tolist() == [0, 20]
