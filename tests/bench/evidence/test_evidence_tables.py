"""The tables of the evidence follow from its parts: rows, claims, gates, what pays, advice, and what is missing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import tasks
from bench.analysis import SuiteTables, pooled_comparisons, pooled_scores, training_scores
from bench.diagnose import kept_evidence
from bench.evidence import __main__ as command
from bench.evidence import evidence_folder, evidence_tables, tested_advice
from bench.evidence.evidence_rows import RELATIVE, EvidenceRows, evidence_rows
from bench.report.results_folder import load
from bench.run import suite_text
from bench.suite import suite_file

from . import made_up_parts

FEW = ("scenes", "burgers", "same-tasks", "apart", "recommender")
Tables = dict[str, pd.DataFrame]


def rows(suite: str = "core") -> EvidenceRows:
    return evidence_rows(suite, suite_text.read(suite_file.find(suite)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    factors = {("burgers", "famo"): 0.5, ("burgers", "equal, 4 x steps"): 0.7}
    return made_up_parts.keep(tmp_path_factory.mktemp("kept"), problems=FEW, factors=factors)


@pytest.fixture(scope="module")
def tables(kept: Path) -> Tables:
    return evidence_tables.make(kept)


def cell(table: pd.DataFrame, problem: str, balancer: str) -> pd.Series:
    found = table[(table["problem"] == problem) & (table["balancer"] == balancer)]
    assert len(found) == 1
    return found.iloc[0]


class TestRows:
    def test_every_row_has_its_kind(self) -> None:
        found = rows()
        assert found.equal == "equal"
        assert found.of_kind("static") == [
            *("static", "one over the initial loss", "one over the initial gradient norm", "static, searched")
        ]
        assert found.of_kind("method") == [
            *("uncertainty", "dwa", "famo", "gradnorm", "pcgrad", "nash-mtl", "nash-mtl, features"),
            *("pcgrad, features", "mgda, parameters", "mgda, features"),
        ]
        assert found.of_kind("yardstick") == [
            *("equal, weight decay 0.01", "equal, 0.5 x steps", "equal, 2 x steps", "equal, 4 x steps")
        ]
        assert found.of_kind("control") == ["random", "equal, under a second name"]

    def test_lengths_and_families_are_those_of_the_file(self) -> None:
        found = rows()
        lengths = {0.5: "equal, 0.5 x steps", 1.0: "equal", 2.0: "equal, 2 x steps", 4.0: "equal, 4 x steps"}
        assert found.equal_by_factor == lengths
        families = found.table.set_index("balancer")["family"]
        assert families["gradnorm"] == "learned"
        assert families["nash-mtl"] == families["mgda, parameters"] == "Gramian at the parameters"
        assert families["nash-mtl, features"] == "Gramian at the features"
        assert families["static"] == families["random"] == ""

    def test_nash_mtl_is_advised_at_the_features_where_there_are_any(self) -> None:
        candidates = rows().candidates
        assert candidates["nash-mtl"] == ("nash-mtl, features", "nash-mtl")
        assert candidates["equal"] == ("equal",)
        assert candidates["inverse-norm"] == ("one over the initial gradient norm",)

    def test_a_suite_without_equal_weighting_is_refused(self) -> None:
        with pytest.raises(ValueError, match="mine has no equal weighting"):
            evidence_rows("mine", suite_text.parse('[[balancers]]\nname = "famo"'))


class TestTables:
    @pytest.mark.slow
    def test_a_claim_needs_the_gate_and_both_comparisons(self, tables: Tables) -> None:
        claims = tables["claims"]
        assert cell(claims, "scenes", "uncertainty")["claimed"]
        assert cell(claims, "scenes", "mgda, parameters")["why_not"] == "gate"
        assert cell(claims, "scenes", "gradnorm")["why_not"] == "not better than static"
        assert set(claims["balancer"]) == set(rows().of_kind("method"))
        assert set(claims["problem"]) == {"scenes", "burgers", "recommender"}

    @pytest.mark.slow
    def test_reserved_problems_are_a_family_of_their_own(self, tables: Tables) -> None:
        """Ten methods on seven problems, and on four reserved ones, are planned; most of them have not been run."""
        for name in ("claims", "detectable"):
            tests = tables[name].groupby("problem")["tests"].unique().explode()
            assert tests.to_dict() == {"scenes": 70, "burgers": 70, "recommender": 40}
        claims = tables["claims"]
        for family, planned in ((["scenes", "burgers"], 70), (["recommender"], 40)):
            smallest = claims[claims["problem"].isin(family)].nsmallest(1, "p").iloc[0]
            assert smallest["holm_p"] == pytest.approx(min(1.0, planned * smallest["p"]))
        reserved = tables["problems"].set_index("problem")["reserved"]
        assert list(reserved[reserved].index) == ["recommender"]

    def test_claims_have_the_roles_of_the_protocol(self, tables: Tables) -> None:
        roles = tables["claims"].drop_duplicates("balancer").set_index("balancer")["role"]
        confirmatory = {"uncertainty", "dwa", "famo", "gradnorm", "pcgrad", "nash-mtl"}
        assert set(roles.index[roles == "confirmatory"]) == confirmatory
        assert set(roles.index[roles == "exploratory"]) == set(rows().of_kind("method")) - confirmatory

    def test_the_detectable_effect_is_that_of_methods_that_pass_the_gate(self, tables: Tables) -> None:
        """The standard deviation is the median over methods, for the noisier of both baselines."""
        (scores,) = pooled_scores("scenes", SuiteTables(problems=tables["problems"], scores=tables["scores"]))
        passing = [label for label in rows().of_kind("method") if label != "mgda, parameters"]
        static = cell(tables["claims"], "scenes", "famo")["static"]
        deviations = [
            np.median([scores.gains(label, other).std(ddof=1) for label in passing]) for other in ("equal", static)
        ]
        found = tables["detectable"].set_index("problem").loc["scenes", "deviation"]
        assert found == pytest.approx(max(deviations))

    def test_equal_weighting_is_compared_with_a_constant_predictor(self, tables: Tables) -> None:
        """The made-up score is an error relative to that of a constant predictor, which scores 1."""
        facts = tables["problems"].set_index("problem").loc["scenes"]
        scores = tables["scores"]
        scores = scores[(scores["problem"] == "scenes") & (scores["balancer"] == "equal") & (scores["split"] == "test")]
        final = scores[(scores["checkpoint"] == "last") & scores["phase"].isin(["reported", "repeated"])]
        assert (facts["constant"], facts["constant_scale"], facts["equal_is_worse"]) == (1.0, "ratio", False)
        assert facts["equal_to_constant"] == pytest.approx(np.exp(np.log(final["value"]).mean()))
        assert set(tables["claims"]["constant_verdict"]) == {"better"}

    def test_gates_are_those_of_table_a(self, tables: Tables) -> None:
        failed = tables["gates"].groupby("balancer")["passes"].all()
        assert set(failed.index[~failed]) == {"mgda, parameters", "random"}
        assert "equal, 2 x steps" not in failed

    def test_step_length_is_found_where_memory_changes_the_score(self, tables: Tables) -> None:
        table = tables["step_length"]
        assert cell(table, "scenes", "gradnorm")["step_length"]
        assert cell(table, "scenes", "gradnorm")["change"] == pytest.approx(1.4, rel=0.1)
        assert not cell(table, "scenes", "nash-mtl")["step_length"]
        assert set(table["problem"]) == {"scenes", "burgers", "same-tasks", "apart"}

    def test_q_beyond_the_curve_keeps_its_flag(self, tables: Tables) -> None:
        row = cell(tables["pays"], "burgers", "famo")
        assert (row["q"], row["beyond"], row["q_high_beyond"]) == (4.0, "above", "above")

    def test_the_practitioners_table_chooses_on_validation(self, tables: Tables) -> None:
        practice = tables["practice"].set_index(["problem", "column"])
        chosen = tables["selection"][tables["selection"]["chosen"]].set_index(["problem", "balancer"])
        learned = ["uncertainty", "dwa", "famo", "gradnorm"]
        for problem in ("scenes", "burgers", "recommender"):
            best = chosen.loc[[(problem, label) for label in learned], "mean_validation_score"].idxmin()[1]
            assert practice.loc[(problem, "best learned weighting"), "balancer"] == best
        assert ("burgers", "Gramian at the features") not in practice.index
        assert practice.loc[("scenes", "Gramian at the parameters"), "verdict"] == "train longer"

    def test_counts_leave_controls_out(self, tables: Tables) -> None:
        counts = tables["counts"].set_index(["table", "balancer"])
        assert counts.loc[("A", "uncertainty"), "problems"] == 2
        assert counts.loc[("A", "uncertainty"), "claimed"] == 2
        assert counts.loc[("reserved", "uncertainty"), "problems"] == 1
        verdicts = counts[["better", "worse", "tie", "not_settled"]].sum(axis=1)
        assert (verdicts == counts["problems"]).all()

    def test_counts_name_roles_and_gates_with_confirmatory_methods_first(self, tables: Tables) -> None:
        counts = tables["counts"][tables["counts"]["table"] == "A"]
        first = list(counts["role"] == "confirmatory")
        assert first == sorted(first, reverse=True)
        gates = counts.set_index("balancer")["gate"]
        assert gates["mgda, parameters"] == "fails"
        assert gates["uncertainty"] == "passes"

    def test_time_to_target_is_not_made(self, tables: Tables) -> None:
        assert "target" not in tables

    def test_training_and_test_scores_stand_side_by_side(self, tables: Tables) -> None:
        row = cell(tables["training_scores"], "scenes", "famo")
        assert row["seeds"] == 20
        assert row["train"] == pytest.approx(0.9 * row["test"])
        assert row["train_relative"] == pytest.approx(row["test_relative"])
        assert np.isfinite(cell(tables["training_scores"], "scenes", "equal, 2 x steps")["train"])


class TestMissingParts:
    @pytest.mark.slow
    def test_they_are_named_and_nothing_is_claimed_before_both_controls(self, tmp_path: Path) -> None:
        made = evidence_tables.make(made_up_parts.keep(tmp_path, ("A",), ("scenes", "same-tasks"), seeds=3))
        absent = made["parts"][~made["parts"]["there"]]
        assert ("A", "burgers") in set(zip(absent["table"], absent["problem"], strict=True))
        assert ("A", "scenes") not in set(zip(absent["table"], absent["problem"], strict=True))
        assert not made["claims"]["claimed"].any()
        assert set(made["claims"]["why_not"]) == {"not gated yet"}
        assert set(made["counts"]["gate"]) == {"not gated yet"}
        assert "step_length" not in made

    @pytest.mark.slow
    def test_a_claim_does_not_depend_on_how_many_parts_are_there(self, tmp_path: Path) -> None:
        """The smallest p-value is corrected for all planned tests, with one problem as with two."""
        parts = [("scenes", *made_up_parts.CONTROLS), ("scenes", "burgers", *made_up_parts.CONTROLS)]
        found = []
        for place, problems in enumerate(parts):
            made = evidence_tables.make(made_up_parts.keep(tmp_path / str(place), ("A",), problems))
            found.append(cell(made["claims"], "scenes", "uncertainty"))
        smallest = found[0]["p"]
        assert found[0]["holm_p"] >= 60 * smallest
        assert found[0]["p"] == found[1]["p"]
        assert found[0]["holm_p"] == pytest.approx(found[1]["holm_p"], rel=0.05)

    @pytest.mark.slow
    def test_costs_may_follow_later(self, tmp_path: Path) -> None:
        made = evidence_tables.make(
            made_up_parts.keep(tmp_path, ("A",), ("scenes", *made_up_parts.CONTROLS), seeds=3, timed=False)
        )
        assert (made["pays"]["verdict"] == "").all()
        assert made["pays"]["q"].notna().all()

    def test_without_any_part_of_a_there_is_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no part of table A"):
            evidence_tables.make(made_up_parts.keep(tmp_path, ("B",), ("scenes",)))


class TestFolder:
    def test_it_is_a_results_folder(self, tables: Tables, kept: Path, tmp_path: Path) -> None:
        out = tmp_path / "core"
        (out / "tables").mkdir(parents=True)
        for name in ("target", "scores", "of_another_command"):
            (out / "tables" / f"{name}.csv").write_text("of an earlier protocol")
        evidence_folder.write(tables, kept, out)
        assert not (out / "tables" / "target.csv").exists()
        assert not (out / "tables" / "scores.csv").exists()  # it is a Parquet file now
        assert (out / "tables" / "of_another_command.csv").exists()
        results = load(out)
        assert results.ranking
        assert results.failed_gates == {"mgda, parameters", "random"}
        assert list(results.board["problem"].unique()) == ["scenes", "burgers", "same-tasks", "apart", "recommender"]
        written = results.tables["pays"].set_index(["problem", "balancer"])
        assert written.loc[("burgers", "famo"), "beyond"] == "above"
        assert written.loc[("scenes", "famo"), "beyond"] == ""
        assert results.environment["commit"] == "0f3c2a9d1b"

    def test_earlier_tables_stay_until_the_new_ones_are_there(
        self, tables: Tables, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError("no space left")

        earlier = tmp_path / "tables" / "target.csv"
        earlier.parent.mkdir()
        earlier.touch()
        monkeypatch.setattr(evidence_folder.atomic_file, "write_parquet", fail)
        with pytest.raises(OSError, match="no space left"):
            evidence_folder.write(tables, kept, tmp_path)
        assert earlier.exists()

    def test_facts_that_differ_between_parts_are_all_kept(self, tables: Tables, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        for place, commit in (("A/one", "1"), ("A/two", "2")):
            (kept / place).mkdir(parents=True)
            text = f'{{"commit": "{commit}", "cores": 2, "versions": {{"torch": "{commit}", "numpy": "2"}}}}'
            (kept / place / "environment.json").write_text(text)
            (kept / place / "timed-on.json").write_text(f'{{"commit": "{commit}{commit}", "jobs": 1}}')
        evidence_folder.write(tables, kept, tmp_path / "core")
        found = load(tmp_path / "core").environment
        assert found.pop("steps_timed_on") == {"commit": ["11", "22"], "jobs": 1}
        assert found == {"commit": ["1", "2"], "cores": 2, "versions": {"torch": ["1", "2"], "numpy": "2"}}

    @pytest.mark.slow
    def test_the_command_writes_tables_advice_and_page(self, kept: Path, tmp_path: Path) -> None:
        done = CliRunner().invoke(command.app, ["tables", "--kept", str(kept), "--out", str(tmp_path / "core")])
        assert done.exit_code == 0, done.output
        assert "missing: A/regression-10-tasks" in done.output
        assert "missing: A/scenes" not in done.output
        ranges = pd.read_csv(tmp_path / "core" / "advice" / "ranges.csv").set_index("candidate")
        assert list(ranges.columns) == ["q_low", "q_high", "cost_low", "cost_high"]
        assert ranges.loc["equal", "q_low"] == ranges.loc["equal", "q_high"] == 1.0
        assert ranges.loc["nash-mtl", "cost_low"] == 1.0  # at the features, on scenes
        assert ranges.loc["nash-mtl", "cost_high"] == 2.4  # at the parameters, on burgers
        assert ranges.loc["famo", "q_high"] == 4.0
        assert (tmp_path / "core" / "report.html").is_file()

    def test_the_committed_folder_is_written_once_all_of_table_a_is_there(
        self, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command, "KEPT", tmp_path / "core")
        done = CliRunner().invoke(command.app, ["tables", "--kept", str(kept)])
        assert done.exit_code == 2
        assert "lacks A/regression-10-tasks, " in done.output
        assert "A/scenes" not in done.output
        assert not (tmp_path / "core").exists()

    def test_an_empty_folder_is_told(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(command.app, ["tables", "--kept", str(tmp_path), "--out", str(tmp_path / "core")])
        assert done.exit_code == 2
        assert "no part of table A" in done.output


class TestAdvice:
    def test_its_regret_is_compared_with_the_opponents(self, tables: Tables) -> None:
        facts = pd.DataFrame(
            [("scenes", "uncertainty", 3.0, 0.1), ("burgers", "famo", 2.0, 0.1), ("recommender", "equal", 1.2, 0.2)],
            columns=tested_advice.FACTS,
        )
        base = SuiteTables(problems=tables["problems"], scores=tables["scores"])
        missing = ["flights", "digit-pairs", "helmholtz", "multi-token"]
        planned = {**dict.fromkeys(["scenes", "burgers", *missing], False), "recommender": True}
        judgement = tested_advice.judge(base, facts, rows(), planned)
        table = judgement.regrets.set_index("problem")
        assert table.loc["burgers", "lower"] == "advice"  # the opponent learns from scenes, where another is best
        assert table.loc["burgers", "opponent"] == "uncertainty"
        assert table.loc["recommender", "lower"] == "opponent"
        assert list(table["reserved"]) == [False] * 6 + [True]
        assert list(table["there"]) == [True, True, *[False] * 4, True]
        assert set(table["verdict"]) == {"fails"}  # whatever the missing ones bring: it lost the reserved one
        assert f"{', '.join(missing[:-1])} and {missing[-1]} are missing, and can't change that)." in judgement.sentence
        decided_later = tested_advice.judge(base, facts[:2], rows(), planned)
        assert set(decided_later.regrets["verdict"]) == {"not decided"}
        assert "of 2 problems of the evidence and on 0 of 1 reserved ones" in judgement.sentence
        assert set(judgement.always["worst"]) <= {"scenes", "burgers", "recommender"}
        assert judgement.always["regret"].is_monotonic_increasing
        with pytest.raises(ValueError, match="the advice is not judged on burgers"):
            tested_advice.judge(base, facts, rows(), {"scenes": False})

    def test_it_is_judged_on_seven_problems_and_four_reserved_ones(self) -> None:
        planned = tested_advice.planned_problems()
        assert len(planned) == 7 + 4
        assert {problem for problem, reserved in planned.items() if reserved} == {
            *("image-codec", "recommender", "reaction-diffusion", "poisson-l-shape")
        }
        assert not set(made_up_parts.CONTROLS) & set(planned)

    def test_the_committed_result_follows_from_the_committed_scores(self) -> None:
        """From the scores of the evidence and what the rule advised, its test is judged again."""
        core = Path(__file__).parents[3] / "results" / "reference" / "core" / "tables"
        base = SuiteTables(problems=pd.read_csv(core / "problems.csv"), scores=pd.read_parquet(core / "scores.parquet"))
        regrets, candidates = kept_evidence.regrets(), kept_evidence.candidates()
        assert regrets is not None
        assert candidates is not None
        facts = regrets.loc[regrets["there"], tested_advice.FACTS]
        again = tested_advice.judge(base, facts, rows(), tested_advice.planned_problems())
        pd.testing.assert_frame_equal(again.regrets, regrets, check_dtype=False)
        pd.testing.assert_frame_equal(again.always, candidates)


class TestConstants:
    """What a constant predictor scores follows from the primary score's definition, or from the tasks' baselines."""

    @pytest.mark.parametrize("name", ["same-tasks", "apart"])
    def test_it_scores_one_where_errors_are_relative(self, name: str) -> None:
        problem = tasks.get(name)()
        data = problem.data(torch.Generator().manual_seed(0), "cpu")
        model = problem.constant(data)
        assert problem.primary in RELATIVE
        assert problem.evaluate(model, data, "test")[problem.primary] == pytest.approx(1.0)

    def test_zero_scores_one_on_helmholtz(self) -> None:
        class Zero(torch.nn.Module):
            def forward(self, points: torch.Tensor) -> torch.Tensor:
                return points.new_zeros(len(points))

        problem = tasks.get("helmholtz")()
        data = problem.data(torch.Generator().manual_seed(0), "cpu")
        assert problem.primary in RELATIVE
        assert problem.evaluate(Zero(), data, "test")[problem.primary] == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("primary", "expected"),
        [
            ("mean", 3.0),
            pytest.param("sum", np.nan, marks=pytest.mark.slow),
            pytest.param("relative error", 1.0, marks=pytest.mark.slow),
        ],
    )
    def test_a_mean_over_tasks_has_the_mean_of_their_constants(
        self, primary: str, expected: float, tmp_path: Path
    ) -> None:
        folder = made_up_parts.keep(tmp_path, ("A",), ("scenes",), seeds=2, num_metrics=2) / "A" / "scenes"
        for name, column in (("problems", "primary"), ("scores", "metric"), ("metrics", "metric")):
            table = pd.read_parquet(folder / f"{name}.parquet").replace({column: {made_up_parts.METRIC: primary}})
            if name == "scores":
                table.loc[table["metric"] == "sum", "value"] *= 2
            table.to_parquet(folder / f"{name}.parquet", index=False)
        scores = pd.read_parquet(folder / "scores.parquet")
        final = scores[(scores["balancer"] == "equal") & (scores["phase"] == "reported") & (scores["split"] == "test")]
        means = final[final["checkpoint"] == "last"].groupby("metric")["value"].mean()
        metrics = ["error of task 0", "error of task 1"]
        baselines = pd.DataFrame({"problem": "scenes", "metric": metrics, "constant": [2.0, 4.0]})
        baselines.assign(equal=means[metrics].to_numpy()).to_parquet(folder / "baselines.parquet", index=False)
        facts = evidence_tables.make(tmp_path)["problems"].iloc[0]
        assert facts["constant"] == pytest.approx(expected, nan_ok=True)
        assert pd.notna(facts["equal_to_constant"]) == np.isfinite(expected)


class TestStatistics:
    def test_an_effect_is_negative_where_the_method_is_better(self) -> None:
        problems = [
            {"problem": "error", "primary": "score", "higher_is_better": False},
            {"problem": "accuracy", "primary": "score", "higher_is_better": True},
        ]
        scores = [
            {"problem": problem, "balancer": balancer, "phase": "reported", "seed": seed, "value": value + seed / 100}
            for problem, values in (("error", (1.0, 0.5)), ("accuracy", (0.5, 0.6)))
            for balancer, value in zip(("equal", "famo"), values, strict=True)
            for seed in (1, 2, 3)
        ]
        frame = pd.DataFrame(scores).assign(metric="score", split="test", checkpoint="last")
        found = pooled_comparisons(
            SuiteTables(problems=pd.DataFrame(problems), scores=frame), "equal", ["equal", "famo"]
        )
        assert list(found["balancer"]) == ["famo", "famo"]
        ratios = np.log((0.5 + np.array([0.01, 0.02, 0.03])) / (1 + np.array([0.01, 0.02, 0.03])))
        assert found["effect"].tolist() == pytest.approx([ratios.mean(), -0.1 / 0.52])
        assert found["verdict"].tolist() == ["better", "better"]

    def test_training_scores_are_paired_with_test_scores_of_the_same_runs(self) -> None:
        problems = pd.DataFrame([{"problem": "p", "primary": "score", "higher_is_better": False}])
        values = {("train", 1): 1.0, ("test", 1): 4.0, ("train", 2): np.nan, ("test", 2): 9.0, ("test", 3): 16.0}
        scores = [
            {"problem": "p", "balancer": "famo", "split": split, "seed": seed, "value": value, "metric": "score"}
            for (split, seed), value in values.items()
        ]
        frame = pd.DataFrame(scores).assign(phase="reported", checkpoint="last")
        (row,) = training_scores(SuiteTables(problems=problems, scores=frame), "equal", ["famo"]).to_dict("records")
        assert (row["seeds"], row["train"], row["test"]) == (1, 1.0, pytest.approx(4.0))
        assert np.isnan(row["test_relative"])
