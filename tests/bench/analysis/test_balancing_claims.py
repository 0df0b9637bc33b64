"""Check p-values, Holm's rule, detectable effects and claims, against scipy, brute force and simulation."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from bench.analysis import (
    balancing_claims,
    best_static,
    compare,
    detectable_difference,
    detectable_effects,
    holm,
    paired_p_value,
    pooled_scores,
)

from .pooled_tables import correlated, pooled_tables

STATICS = ("stated", "searched")


class TestTests:
    @pytest.mark.parametrize("count", [2, 10, 20])
    def test_p_value_is_scipys(self, count):
        random = np.random.default_rng(count)
        ours, theirs = random.normal(size=(2, count))
        assert paired_p_value(ours - theirs) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)

    def test_p_value_of_runs_that_are_the_same(self):
        assert paired_p_value(np.zeros(5)) == 1
        assert paired_p_value(np.full(5, 0.1)) == 0
        assert np.isnan(paired_p_value([0.3]))

    def test_holm_by_hand(self):
        # 4 x 0.01; 3 x 0.011 is smaller than that; 2 x 0.02 is as large; 1 x 0.9
        assert holm([0.02, 0.01, 0.9, 0.011]) == pytest.approx([0.04, 0.04, 0.9, 0.04])
        assert holm([]).shape == (0,)
        assert holm([np.nan, 0.02]) == pytest.approx([1.0, 0.04])

    @pytest.mark.parametrize("seed", range(20))
    def test_holm_is_the_closed_test_of_bonferroni(self, seed):
        """Reject a hypothesis if Bonferroni rejects every set of hypotheses that it belongs to."""
        values = np.random.default_rng(seed).uniform(size=6) ** 3
        sets = [each for size in range(1, 7) for each in combinations(range(6), size)]
        closed = [max(min(1, len(each) * values[list(each)].min()) for each in sets if i in each) for i in range(6)]
        assert holm(values) == pytest.approx(closed)

    @pytest.mark.parametrize(("count", "tests"), [(10, 1), (20, 1), (20, 60)])
    def test_the_detectable_difference_is_detected_in_four_of_five_experiments(self, count, tests):
        difference = detectable_difference(0.3, count, tests)
        samples = np.random.default_rng(1).normal(difference, 0.3, size=(40_000, count))
        rejected = stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05 / tests
        assert rejected.mean() == pytest.approx(0.8, abs=0.01)

    def test_the_detectable_difference_of_the_textbook(self):
        # Cohen, Statistical Power Analysis, 1988: 33.4 pairs for d = 0.5 with 80 % power at the two-sided level 5 %.
        assert detectable_difference(1.0, 34, 1) < 0.5 < detectable_difference(1.0, 33, 1)
        assert detectable_difference(2.0, 20, 5) == pytest.approx(2 * detectable_difference(1.0, 20, 5))
        assert np.isinf(detectable_difference(1.0, 1, 1))


def losses(seed=0, deviation=0.05, **factors):
    """Return 20 losses of each balancer: these factors, and noise that half belongs to the seed."""
    noise = np.exp(correlated(np.random.default_rng(seed), deviation, len(factors), 20))
    return {label: factor * noise[place] for place, (label, factor) in enumerate(factors.items())}


FACTORS = {
    **{"equal": 1.0, "stated": 0.9, "searched": 0.8, "random": 1.3},
    **{"best": 0.6, "middle": 0.85, "worst": 1.2, "close": 0.79},
}
METHODS = ("best", "middle", "worst", "close")


def claims(
    problems, methods=METHODS, gate_passed=METHODS, only_static=(), tests=None, statics=STATICS, constants=None, **facts
):
    tables = pooled_tables(problems, **facts)
    roles = dict.fromkeys(methods, "confirmatory")
    planned = len(problems) * len(methods) if tests is None else tests
    return balancing_claims(tables, "equal", statics, roles, gate_passed, planned, only_static, constants)


class TestClaims:
    def test_a_claim_needs_to_beat_equal_and_the_best_static_weights(self):
        table = claims({"p": losses(**FACTORS)}).set_index("balancer")
        assert table["why_not"].to_dict() == {
            "best": "",
            "middle": "not better than static",
            "worst": "not better than equal",
            "close": "not settled",
        }
        assert table["claimed"].to_dict() == {"best": True, "middle": False, "worst": False, "close": False}
        assert set(table["static"]) == {"searched"}
        assert set(table["role"]) == {"confirmatory"}

    @pytest.mark.parametrize("only_static", [(), ("p",)])
    def test_the_largest_p_value_over_equal_and_all_static_rows_counts(self, only_static):
        """Against a noisy static row the p-value is largest, though another row is the best."""
        values = losses(**FACTORS)
        values["stated"] = 0.9 * np.exp(np.tile([-0.8, 0.8], 10))
        row = claims({"p": values}, only_static=only_static).set_index("balancer").loc["best"]
        p_values = {
            other: stats.ttest_rel(np.log(values["best"]), np.log(values[other])).pvalue
            for other in ("equal", "stated", "searched")
        }
        assert row["static"] == "searched"
        assert row["static_p"] == pytest.approx(p_values["searched"])
        assert row["p"] == pytest.approx(p_values["stated"])
        assert p_values["stated"] > max(p_values["equal"], p_values["searched"])

    def test_a_mean_that_is_worse_than_one_static_row_is_not_better_than_static(self):
        """The row with the best mean over the seeds of all rows need not be the one that beats the method."""
        values = losses(**FACTORS)
        values["stated"] = values["best"] * 0.95
        table = claims({"p": values}, statics=("searched", "stated", "absent")).set_index("balancer")
        assert table.loc["best", "why_not"] == "not better than static"

    def test_a_tie_is_not_claimed_however_small_its_p_value(self):
        values = losses(deviation=0.001, **FACTORS | {"best": 0.99 * 0.8})
        table = claims({"p": values}).set_index("balancer")
        row = table.loc["best"]
        assert compare(values["best"], values["searched"], higher_is_better=False, scale="ratio").verdict == "tie"
        assert row["holm_p"] < 1e-6
        assert (row["claimed"], row["why_not"]) == (False, "a tie")

    def test_a_tie_with_equal_weighting_counts_only_where_equal_weighting_does(self):
        values = losses(deviation=0.001, **FACTORS | {"equal": 0.6 / 0.99})
        assert claims({"p": values}).set_index("balancer").loc["best", "why_not"] == "a tie"
        assert claims({"p": values}, only_static=["p"]).set_index("balancer").loc["best", "claimed"]

    @pytest.mark.parametrize("seed", range(10))
    def test_whatever_is_claimed_is_better_by_rule_14_in_every_comparison(self, seed):
        random = np.random.default_rng(seed)
        factors = {label: float(np.exp(random.normal(0, 0.03))) for label in FACTORS}
        values = losses(seed, float(10 ** random.uniform(-3, -1)), **factors | {"best": 0.9 * min(factors.values())})
        table = claims({"p": values}).set_index("balancer")
        for method in table.index[table["claimed"]]:
            for other in ("equal", *STATICS):
                found = compare(values[method], values[other], higher_is_better=False, scale="ratio")
                assert found.high < 1
            for other in ("equal", table.loc[method, "static"]):
                assert compare(values[method], values[other], higher_is_better=False, scale="ratio").verdict == "better"

    def test_methods_are_compared_with_a_constant_predictor_where_its_score_is_known(self):
        values = losses(**FACTORS)
        table = claims({"p": values, "q": losses(1, **FACTORS)}, constants={"p": 0.5})
        row = table[(table["problem"] == "p") & (table["balancer"] == "best")].iloc[0]
        found = compare(values["best"], np.full(20, 0.5), higher_is_better=False, scale="ratio")
        columns = ["constant_relative", "constant_low", "constant_high", "constant_verdict"]
        assert row["claimed"]  # no claim depends on it; the page says so
        assert row["constant_verdict"] == "worse"
        assert tuple(row[columns][:3]) == pytest.approx((found.mean, found.low, found.high))
        assert set(table.loc[table["problem"] == "q", "constant_verdict"]) == {"unknown"}

    def test_a_constant_predictor_without_an_error_gives_no_ratio(self):
        row = claims({"p": losses(**FACTORS)}, constants={"p": 0.0}).set_index("balancer").loc["best"]
        assert row["constant_verdict"] == "unknown"
        assert np.isnan(row["constant_relative"])
        assert row["claimed"]

    def test_a_method_that_is_worse_helps_no_other_one_through_holms_steps(self):
        values = losses(**FACTORS) | {"lost": 5 * losses(1, m=1.0)["m"]}
        without = claims({"p": values}, methods=("best",), tests=30).set_index("balancer")
        beside = claims({"p": values}, methods=("best", "lost"), tests=30).set_index("balancer")
        assert paired_p_value(np.log(values["lost"] / values["equal"])) < without.loc["best", "p"]
        assert beside.loc["lost", "p"] == 1
        assert beside.loc["best", "holm_p"] == without.loc["best", "holm_p"] == 30 * without.loc["best", "p"]

    def test_numbers_are_those_of_paired_comparisons_over_all_seeds(self):
        values = losses(**FACTORS)
        row = claims({"p": values}).set_index("balancer").loc["middle"]
        for other, columns in (
            ("equal", ["relative", "relative_low", "relative_high", "relative_p"]),
            ("searched", ["static_relative", "static_low", "static_high", "static_p"]),
        ):
            found = compare(values["middle"], values[other], higher_is_better=False, scale="ratio")
            p = stats.ttest_rel(np.log(values["middle"]), np.log(values[other])).pvalue
            assert tuple(row[columns]) == pytest.approx((found.mean, found.low, found.high, p))
        assert row["seeds"] == 20

    def test_holm_counts_all_planned_tests_whether_they_were_run_or_not(self):
        problems = {"p": losses(0, **FACTORS), "q": losses(1, **FACTORS), "control": losses(2, **FACTORS)}
        table = claims(problems, controls=["control"], tests=70)
        assert list(table["problem"]) == ["p"] * 4 + ["q"] * 4
        assert list(table["holm_p"]) == pytest.approx(list(holm([*table["p"], *[1.0] * 62])[:8]))
        assert set(table["tests"]) == {70}
        del problems["q"]["close"]
        again = claims(problems, controls=["control"], tests=70)
        assert len(again) == 7
        # The smallest p-value is multiplied by 70, before and after.
        assert again["holm_p"].min() == pytest.approx(table["holm_p"].min()) == pytest.approx(70 * table["p"].min())
        with pytest.raises(ValueError, match="8 tests were run, but 7 were planned"):
            claims({name: losses(0, **FACTORS) for name in "pq"}, tests=7)

    def test_a_failed_gate_comes_first(self):
        table = claims({"p": losses(**FACTORS)}, gate_passed=["middle"]).set_index("balancer")
        assert table["why_not"].to_dict() == {
            "best": "gate",
            "middle": "not better than static",
            "worst": "gate",
            "close": "gate",
        }
        assert not table["claimed"].any()

    def test_before_the_gates_nothing_is_claimed_and_no_gate_has_failed(self):
        table = claims({"p": losses(**FACTORS)}, gate_passed=None)
        assert set(table["why_not"]) == {"not gated yet"}
        assert not table[["gate", "claimed"]].any(axis=None)

    @pytest.mark.parametrize("factor", [1.005, 0.997])
    def test_each_set_of_seeds_alone_must_show_it(self, factor):
        """On the second set of seeds the method is worse, or better by less than its noise."""
        values = losses(**FACTORS)
        values["best"] = values["best"].copy()
        values["best"][10:] = factor * values["searched"][10:] * np.exp(np.tile([-0.01, 0.01], 5))
        row = claims({"p": values}).set_index("balancer").loc["best"]
        expected = [
            max(
                stats.ttest_rel(np.log(values["best"][part]), np.log(values[other][part])).pvalue
                for other in ("equal", *STATICS)
            )
            for part in (slice(10), slice(10, None))
        ]
        assert row["holm_p"] <= 0.05
        assert [row["reported_p"], row["repeated_p"]] == pytest.approx(expected)
        assert (row["claimed"], row["why_not"]) == (False, "not in both sets")

    def test_a_set_of_seeds_that_clearly_shows_the_opposite_is_no_support(self):
        values = losses(deviation=0.01, **FACTORS | {"best": 0.3})
        values["best"] = np.concatenate([values["best"][:10] * 0.1, 1.05 * values["searched"][10:]])
        row = claims({"p": values}).set_index("balancer").loc["best"]
        assert row["repeated_p"] <= 0.05
        assert (row["claimed"], row["why_not"]) == (False, "not in both sets")

    def test_one_set_of_seeds_claims_nothing(self):
        row = claims({"p": losses(**FACTORS)}, sets=["reported"]).set_index("balancer").loc["best"]
        assert (row["claimed"], row["why_not"]) == (False, "not repeated")

    def test_where_equal_weighting_says_nothing_static_weights_decide_alone(self):
        values = losses(**FACTORS | {"equal": 0.3})
        assert claims({"p": values}).set_index("balancer").loc["best", "why_not"] == "not better than equal"
        row = claims({"p": values}, only_static=["p"]).set_index("balancer").loc["best"]
        assert row["claimed"]
        expected = [stats.ttest_rel(np.log(values["best"]), np.log(values[other])).pvalue for other in STATICS]
        assert row["p"] == pytest.approx(max(expected))
        assert row["relative"] == pytest.approx(2, rel=0.1)
        del values["equal"]
        assert claims({"p": values}, only_static=["p"]).set_index("balancer").loc["best", "claimed"]

    def test_an_accuracy_is_compared_by_differences(self):
        values = {label: 1 - 0.3 * each for label, each in losses(**FACTORS).items()}
        row = claims({"p": values}, higher=["p"]).set_index("balancer").loc["best"]
        assert row["claimed"]
        assert (row["scale"], row["static"]) == ("difference", "searched")
        assert row["relative"] == pytest.approx(np.mean(values["best"] - values["equal"]))

    def test_the_best_static_row_has_the_best_mean_on_the_scale_of_comparisons(self):
        noise = np.linspace(0.99, 1.01, 20)
        spread = np.tile([0.1, 6.0], 10)  # arithmetic mean 3.05, geometric mean 0.77
        (scores,) = pooled_scores("p", pooled_tables({"p": {"stated": spread, "searched": noise}}))
        assert best_static(scores, STATICS) == "stated"
        assert best_static(scores, ("searched", "absent")) == "searched"
        with pytest.raises(ValueError, match="none of the static rows absent"):
            best_static(scores, ["absent"])

    def test_refuses_a_test_of_a_baseline_and_a_problem_without_baselines(self):
        with pytest.raises(ValueError, match="searched is a baseline"):
            claims({"p": losses(**FACTORS)}, methods=["searched"])
        with pytest.raises(ValueError, match="p: none of the static rows"):
            claims({"p": losses(equal=1.0, best=0.5)})
        with pytest.raises(ValueError, match="p: equal has no test scores"):
            claims({"p": losses(stated=1.0, best=0.5)})


class TestDetectable:
    def test_is_made_from_the_noisier_of_both_comparisons(self):
        values = losses(**FACTORS)
        tables = pooled_tables({"p": values, "q": losses(1, **FACTORS)})
        row = detectable_effects(tables, "equal", STATICS, METHODS, 70).iloc[0]
        logs = {label: np.log(each) for label, each in values.items()}
        deviations = [
            np.median([np.std(logs[method] - logs[other], ddof=1) for method in METHODS])
            for other in ("equal", "searched")
        ]
        assert row["deviation"] == pytest.approx(max(deviations))
        assert (row["seeds"], row["tests"], row["scale"]) == (20, 70, "ratio")
        assert row["detectable"] == pytest.approx(np.exp(-detectable_difference(max(deviations), 20, 70)))

    def test_one_method_with_failed_runs_hardly_moves_it(self):
        values = losses(**FACTORS)
        before = detectable_effects(pooled_tables({"p": values}), "equal", STATICS, METHODS, 4).iloc[0]
        values["worst"] = np.where(np.arange(20) < 5, 30.0, values["worst"])
        after = detectable_effects(pooled_tables({"p": values}), "equal", STATICS, METHODS, 4).iloc[0]
        assert after["deviation"] < 1.2 * before["deviation"]

    def test_an_effect_on_an_accuracy_is_a_rise(self):
        values = {label: 1 - 0.3 * each for label, each in losses(**FACTORS).items()}
        tables = pooled_tables({"p": values}, higher=["p"])
        row = detectable_effects(tables, "equal", STATICS, METHODS, 4, only_static=["p"]).iloc[0]
        deviations = [np.std(values[method] - values["searched"], ddof=1) for method in METHODS]
        assert row["detectable"] == pytest.approx(detectable_difference(np.median(deviations), 20, 4))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [10, 20])
def test_holm_keeps_the_family_wise_error_of_correlated_tests(seeds):
    """Test 60 true hypotheses at once; all methods on a problem share their baseline, which relates their tests."""
    random = np.random.default_rng(seeds)
    families = []
    for _ in range(2000):
        noise = np.stack([correlated(random, 0.1, 11, seeds) for _ in range(6)])
        gains = (noise[:, 1:] - noise[:, :1]).reshape(60, seeds)
        families.append(holm(stats.ttest_1samp(gains, 0, axis=1).pvalue).min() <= 0.05)
    assert np.mean(families) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.slow
@pytest.mark.parametrize("equal", [1.0, 1.5])
def test_a_claim_is_rarely_false(equal):
    """Three problems, five methods that are as good as static weights, and equal weighting as good, or much worse."""
    random = np.random.default_rng(0)
    methods = [f"m{i}" for i in range(5)]
    truth = {"equal": equal, "stated": 1.0, "searched": 1.0, **dict.fromkeys(methods, 1.0)}
    false = []
    for _ in range(100):
        problems = {name: losses(int(random.integers(2**31)), 0.1, **truth) for name in "abc"}
        false.append(claims(problems, methods, methods)["claimed"].any())
    assert np.mean(false) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("worse", "noisy", "tight"), [(0.01, 0.05, 0.005), (0.03, 0.2, 0.01), (0.02, 0.02, 0.02)])
def test_static_rows_of_unlike_variance_make_false_claims_no_more_frequent(worse, noisy, tight):
    """A method is as good as the best static row, which is noisy; another is truly worse, but paired tightly with it.

    The row with the best mean is often the latter. A test against it alone rejects in up to a quarter of all cases.
    """
    random = np.random.default_rng(0)
    false = []
    for _ in range(150):
        seeds = random.normal(0, 0.05, 20)
        method = seeds + random.normal(0, 0.003, 20)
        rows = seeds + random.normal(0, noisy, 20), seeds + worse + random.normal(0, tight, 20)
        values = {"equal": seeds + 1, "stated": rows[0], "searched": rows[1], "m": method}
        table = claims({"p": {label: np.exp(each) for label, each in values.items()}}, ["m"], ["m"])
        row = table.iloc[0]
        false.append(row["p"] <= 0.05 and row["static_relative"] < 1 and row["why_not"] != "not better than static")
    assert np.mean(false) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 150)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [10, 20])
@pytest.mark.parametrize("deviation", [0.03, 0.2])
def test_the_comparison_covers_the_true_ratio(deviation, seeds):
    random = np.random.default_rng(seeds)
    hits = []
    for _ in range(2000):
        ours, theirs = np.exp(correlated(random, deviation, 2, seeds))
        found = compare(0.9 * ours, theirs, higher_is_better=False, scale="ratio")
        hits.append(found.low <= 0.9 <= found.high)
    assert 0.935 <= np.mean(hits) <= 0.965


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "sets", "expected"),
    [(0.0, 2, 0.95), (0.1, 2, 0.94), (0.3, 2, 0.86), (0.1, 1, 0.93), (0.3, 1, 0.77)],
)
def test_a_shift_that_seeds_share_costs_coverage(shift, sets, expected):
    """A set of seeds has one learning rate, which may suit it by luck; ``docs/step-length.md`` states these numbers."""
    random = np.random.default_rng(5)
    hits = []
    for _ in range(4000):
        differences = random.normal(size=(sets, 20 // sets)) + shift * random.normal(size=(sets, 1))
        found = compare(np.exp(differences.flatten()), np.ones(20), higher_is_better=False, scale="ratio")
        hits.append(found.low <= 1 <= found.high)
    assert np.mean(hits) == pytest.approx(expected, abs=0.02)
