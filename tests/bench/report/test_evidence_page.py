"""The page of the evidence: its answers, its tables, its picture, and what it leaves out."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure

from bench.evidence import evidence_folder, evidence_tables
from bench.report import (
    effect_picture,
    evidence,
    evidence_answer,
    evidence_sections,
    page_tables,
    report_page,
    verdict_wording,
)
from bench.report.evidence_answer import ProblemAnswer
from bench.report.results_folder import Results, load
from bench.style.figure_style import theme

from ..evidence import made_up_parts
from .test_report_page import CHROMIUM, in_browser

pytestmark = pytest.mark.slow

PROBLEMS = ("scenes", "flights", "multi-token", "helmholtz", "burgers", *made_up_parts.CONTROLS, "recommender")
FACTORS = {
    ("burgers", "famo"): 0.5,
    ("multi-token", "gradnorm"): 0.6,
    ("same-tasks", "gradnorm"): 0.8,
    ("apart", "gradnorm"): 0.8,
    **{("flights", label): 1.1 for label in made_up_parts.FACTORS if not label.endswith("steps")},
}


def folder(where: Path, **options: object) -> Path:
    """Write made-up parts, and their tables as a results folder, which is returned."""
    kept = made_up_parts.keep(where / "kept", **options)
    evidence_folder.write(evidence_tables.make(kept), kept, where / "core")
    return where / "core"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load(folder(tmp_path_factory.mktemp("evidence"), problems=PROBLEMS, factors=FACTORS, seeds=6))


@pytest.fixture(scope="module")
def page(results: Results) -> str:
    return report_page.write(results.path).read_text(encoding="utf-8")


def changed(results: Results, **tables: pd.DataFrame) -> Results:
    return replace(results, tables=results.tables | tables)


def answer(results: Results, problem: str) -> ProblemAnswer:
    (found,) = [each for each in evidence_answer.answers(results) if each.problem == problem]
    return found


class TestAnswers:
    def test_a_claim_is_told_with_both_comparisons_and_its_price(self, results: Results) -> None:
        found = answer(results, "scenes")
        assert re.match(
            r"Balancing helps: uncertainty scores 0\.\d+× \[.+\] of equal weighting's score and 0\.\d+× \[.+\] of that "
            r"of the best static weights \(.+\)\.",
            found.text,
        )
        assert re.match(
            r"To match uncertainty, equal weighting must train for \d\.\d\d \[\d.+\] times the steps; a step of "
            r"uncertainty costs 1\.05 times as much, so it pays \(q/c \d",
            found.beside,
        )
        assert re.search(
            r"Plain training for twice as long scores 0\.8\d+× \[.+\] of equal weighting's score", found.beside
        )

    def test_a_method_that_fails_its_gate_is_not_claimed_however_good(self, results: Results) -> None:
        claims, compared = results.tables["claims"], results.tables["comparisons"]
        only = claims[(claims["problem"] == "multi-token") & (claims["balancer"] == "gradnorm")]
        no_static = compared.assign(verdict="tie")
        assert "gradnorm" not in answer(changed(results, claims=only, comparisons=no_static), "multi-token").beside
        found = answer(changed(results, claims=only), "multi-token").text
        assert found.startswith("No balancing is claimed. The best mean: gradnorm scores 0.5")
        assert "but gradnorm fails the gate, so that step length may be the cause." in found
        assert re.search(
            r"Static weights help: .* It is the best of 4 static rows, each at 95 % and uncorrected: by chance alone, "
            r"one of them would be better in up to 10 % of cases\.",
            found,
        )

    def test_before_the_gates_it_is_not_said_that_a_method_fails_one(self, results: Results) -> None:
        claims = results.tables["claims"].assign(claimed=False, gate=False, why_not="not gated yet")
        found = answer(changed(results, claims=claims), "scenes").text
        assert "but a control has not been run, so no method is gated yet." in found
        assert "fails the gate" not in found

    def test_an_exploratory_method_is_named_so_wherever_it_is_claimed(self, results: Results) -> None:
        claims = results.tables["claims"]
        named = claims["balancer"].isin(["uncertainty", "nash-mtl, features"])
        both = changed(results, claims=claims.assign(claimed=named, why_not=np.where(named, "", "not settled")))
        found = answer(both, "scenes").text
        assert found.startswith("Balancing helps: uncertainty scores ")  # a confirmatory claim comes first
        assert "Claimed too: nash-mtl, features (exploratory)." in found
        alone = changed(results, claims=both.tables["claims"][claims["balancer"] != "uncertainty"])
        assert answer(alone, "scenes").text.startswith("Balancing helps: nash-mtl, features (exploratory) scores ")
        (line, *_) = evidence_answer.headlines(both)
        problems = 5  # helmholtz and burgers have no row at the features
        assert line.endswith(
            f"{problems} confirmatory (uncertainty on 5) and 3 exploratory (nash-mtl, features (exploratory) on 3)."
        )
        assert "(4 of them exploratory)" in effect_picture.caption(both)
        cells = [row["cells"] for row in evidence_sections.claims(both)["rows"] if row["head"] == "nash-mtl, features"]
        assert {each[1]["text"] for each in cells} == {"exploratory"}
        assert {each[-1]["text"] for each in cells} == {"claimed (exploratory)"}

    def test_a_claim_on_a_method_that_is_worse_than_a_constant_says_so(self, results: Results) -> None:
        claims = results.tables["claims"]
        worse = claims["balancer"] == "uncertainty"
        claims = claims.assign(
            constant_relative=np.where(worse, 1.31, 0.2), constant_verdict=np.where(worse, "worse", "better")
        )
        found = answer(changed(results, claims=claims), "scenes").text
        assert "Worse than a constant predictor: uncertainty (1.31×)." in found
        open_end = claims.assign(constant_relative=0.99, constant_verdict=np.where(worse, "not settled", "better"))
        found = answer(changed(results, claims=open_end), "scenes").text
        assert "Not shown to be better than a constant predictor: uncertainty (0.990×)." in found
        assert "constant predictor" not in answer(results, "scenes").text
        table = evidence_sections.claims(changed(results, claims=claims))
        row = next(row for row in table["rows"] if row["head"] == "uncertainty" and row["cells"][0]["text"] == "scenes")
        assert row["cells"][-1]["below"] == ["worse than a constant predictor"]

    def test_where_nothing_is_better_it_says_so(self, results: Results) -> None:
        found = answer(results, "flights").text
        assert found.startswith("No balancing is claimed.")
        assert found.endswith("No static weights are better than equal weighting either.")

    def test_why_only_static_weights_count_follows_from_the_scores(self, results: Results) -> None:
        """The made-up equal weighting has a fifth of the error of a constant predictor."""
        found = answer(results, "helmholtz").text
        assert re.match(
            r"Only static weights count here\. The protocol's reason for that, that equal weighting is worse than a "
            r"constant predictor, does not hold \(0\.[12]\d+× \[.+\]\)\.",
            found,
        )
        assert "of equal weighting's score" not in found
        assert "does not hold" in effect_picture.caption(results)

    def test_where_equal_weighting_is_worse_than_a_constant_it_is_told(self, results: Results) -> None:
        worse = {"equal_to_constant": 1.2, "equal_to_constant_low": 1.1, "equal_to_constant_high": 1.3}
        fails = changed(results, problems=results.tables["problems"].assign(equal_is_worse=True, **worse))
        start = "Equal weighting is worse than a constant predictor here (1.20× [1.10, 1.30]), so "
        assert answer(fails, "helmholtz").text.startswith(f"{start}only static weights count.")
        assert answer(fails, "scenes").text.startswith(f"{start}that a gain over it says little.")
        assert f" helmholtz: {start}only static weights count." in effect_picture.caption(fails)
        unknown = changed(results, problems=results.tables["problems"].assign(equal_to_constant=np.nan))
        assert "is not known." in answer(unknown, "helmholtz").text
        assert "constant predictor" not in answer(unknown, "scenes").text

    def test_q_beyond_the_curve_is_told_as_such(self, results: Results) -> None:
        found = answer(results, "burgers").beside
        assert "equal weighting must train for more than 4 times the steps" in found
        assert "(q/c >4.00)" in found

    def test_an_interval_that_begins_within_the_curve_is_not_left_out(self, results: Results) -> None:
        inside = results.tables["pays"].assign(
            q=4.0, beyond="above", q_low=3.32, q_low_beyond="", q_high=4.0, q_high_beyond="above"
        )
        found = answer(changed(results, pays=inside), "burgers").beside
        assert "must train for >4.00 [3.32, >4.00] times the steps" in found
        below = inside.assign(q=0.5, beyond="below", q_low=0.5, q_low_beyond="below", q_high=0.8, q_high_beyond="")
        assert (
            "must train for <0.50 [<0.50, 0.80] times the steps"
            in answer(changed(results, pays=below), "burgers").beside
        )

    @pytest.mark.parametrize(
        ("why_not", "words"),
        [
            ("not better than equal", "which is not better than equal weighting"),
            ("not better than static", "which is not better than all static weights"),
            ("a tie", "which counts as a tie"),
            ("not settled", "which is not settled after correction (p = 0.3"),
            ("not repeated", "but only one set of seeds was run"),
            ("not in both sets", "but one of the two sets of seeds alone does not show it"),
        ],
    )
    def test_each_reason_has_its_words(self, results: Results, why_not: str, words: str) -> None:
        claims = results.tables["claims"].assign(claimed=False, why_not=why_not, holm_p=0.31)
        assert words in answer(changed(results, claims=claims), "scenes").text

    def test_step_length_is_named_with_both_tables(self, results: Results) -> None:
        """GradNorm fails its gate here, so that it is named only if it passes."""
        assert "gradnorm" not in answer(results, "scenes").beside
        gates = results.tables["gates"]
        passing = changed(results, gates=gates.assign(passes=gates["passes"] | (gates["balancer"] == "gradnorm")))
        found = answer(passing, "scenes").beside
        assert re.search(r"Step length changes the standing of gradnorm \(0\.\d+× in A, 1\.\d+× in B\)", found)
        assert re.search(r"each at 95 % and uncorrected; by chance fewer than 1 of \d would be named\.", found)
        still = passing.tables["step_length"].assign(own_changes=False)
        told = answer(changed(passing, step_length=still), "scenes").beside
        assert re.search(r"gradnorm \(0\.\d+× in A, 1\.\d+× in B; its own score is not shown to change\)", told)
        none = results.tables["step_length"].assign(step_length=False)
        quiet = answer(changed(results, step_length=none), "scenes").beside
        assert "No method's standing is shown to depend on the length of steps." in quiet

    def test_a_problem_without_costs_has_q_alone(self, results: Results) -> None:
        pays = results.tables["pays"].assign(cost=np.nan, verdict="")
        assert "a step of" not in answer(changed(results, pays=pays), "scenes").beside

    @pytest.mark.parametrize(
        ("scale", "low", "high", "end"),
        [
            ("ratio", 1.01, 1.05, "longer training does not help."),
            ("ratio", 0.98, 1.05, "it has converged."),
            ("difference", 0.01, 0.05, "longer training does not help."),  # of a loss
        ],
    )
    def test_where_longer_training_makes_it_worse_that_is_said(
        self, results: Results, scale: str, low: float, high: float, end: str
    ) -> None:
        table = results.tables["doubling"].assign(scale=scale, doubling=high, low=low, high=high, converged=True)
        assert f"equal weighting's score: {end}" in answer(changed(results, doubling=table), "scenes").beside

    def test_a_reserved_problem_is_called_so(self, results: Results) -> None:
        told = [
            each.problem for each in evidence_answer.answers(results) if each.beside.startswith("A reserved problem")
        ]
        assert told == ["recommender"]

    def test_across_problems_there_are_counts(self, results: Results) -> None:
        lines = evidence_answer.headlines(results)
        claims = results.tables["claims"]
        evidence = claims[claims["problem"] != "recommender"]
        first = f"That balancing helps is claimed in {evidence['claimed'].sum()} of {len(evidence)} tests on 5 problems"
        assert lines[0].startswith(f"{first}, corrected for the 70 that were planned: ")
        assert "8 of 10 methods pass the gate on both controls; gradnorm and mgda, parameters fail" in lines[1]
        assert any("1 reserved problem" in line for line in lines)
        assert any(line.startswith("Training equal weighting for twice as long") for line in lines)
        assert any("uncertainty weighting on 4 of 5" in line for line in lines)

    def test_methods_that_fail_a_gate_are_not_counted(self, results: Results) -> None:
        """MGDA at the parameters and GradNorm fail; GradNorm is the best learned weighting on multi-token."""
        practice = results.tables["practice"].set_index(["problem", "column"])
        assert practice.loc[("multi-token", "best learned weighting"), "balancer"] == "gradnorm"
        assert practice.loc[("multi-token", "best learned weighting"), "verdict"] == "pays"
        (line,) = [line for line in evidence_answer.headlines(results) if line.startswith("Choices that pay")]
        assert re.search(r"best learned weighting on \d of 4 \(1 more is of a method that fails a gate\)", line)
        judged = results.tables["practice"]
        facts = results.tables["problems"].set_index("problem")
        judged = judged[~judged["problem"].map(facts["reserved"]) & ~judged["balancer"].isin(results.failed_gates)]
        expected = len(judged) * 0.025
        told = f"about {expected:.0f}" if expected >= 1 else "fewer than 1"
        assert f"so by chance {told} would pay if all gave just as much." in line
        (line,) = [line for line in evidence_answer.headlines(results) if line.startswith("The length of steps")]
        assert "gradnorm" not in line
        assert line.endswith(" Methods that fail a gate are not counted.")
        table = results.tables["step_length"]
        methods = [
            label
            for label in results.tables["rows"].query("kind == 'method'")["balancer"]
            if label not in results.failed_gates
        ]
        table = table[table["balancer"].isin(methods) & ~table["problem"].isin(made_up_parts.CONTROLS)]
        assert f"of {len(table)} comparisons of table A with B" in line
        assert f"so about {len(table) * 0.05:.0f} are to be expected by chance." in line

    def test_flips_of_exploratory_verdicts_are_named_after_confirmatory_ones(self, results: Results) -> None:
        table = results.tables["repeated"]
        flips = (table["problem"] == "scenes") & table["balancer"].isin(["nash-mtl, features", "famo"])
        flipped = changed(results, repeated=table.assign(flipped=flips & (table["against"] == "equal")))
        text = evidence.repeated(flipped)
        assert (
            "2 flipped between better and worse (famo on scenes and nash-mtl, features (exploratory) on scenes)" in text
        )

    def test_there_is_no_mean_over_problems(self, results: Results) -> None:
        changes = pd.DataFrame(
            [
                {"problem": problem, "balancer": label, "seed": seed, "delta_m": 1.0 + seed}
                for problem in ("scenes", "flights")
                for label in results.balancers
                for seed in range(6)
            ]
        )
        with_changes = changed(results, delta_m=changes)
        assert evidence.change(with_changes) == ({}, [])
        assert all("Δm, %" not in table["header"] for table in page_tables.overviews(with_changes))

    def test_parts_that_are_not_there_are_named(self, results: Results) -> None:
        line = evidence_answer.headlines(results)[-1]
        assert line.startswith("Not run yet, of table A: regression, 10 tasks, digit-pairs; of table B: ")
        everything = results.tables["parts"].assign(there=True)
        assert evidence_answer.missing(changed(results, parts=everything)) == ""


class TestTables:
    def test_what_pays_is_emphasised_and_flags_are_kept(self, results: Results) -> None:
        table = evidence_sections.practice(results)
        column = table["header"].index("Uncertainty weighting") - 1
        rows = {row["head"]: row["cells"] for row in table["rows"]}
        assert rows["scenes"][column]["looks"] == "pays"
        learned = rows["burgers"][column + 1]
        assert learned["text"] == ">4.00"
        assert "famo" in learned["below"]
        assert rows["scenes"][-1]["looks"] == "longer"
        assert rows["burgers"][table["header"].index("Gramian at the features") - 1]["text"] == "–"

    def test_what_interpolation_costs_stands_below_q(self, results: Results) -> None:
        note = evidence_sections.practice(results)["note"]
        excess = 100 * (results.tables["problems"]["chord"] - 1)
        assert f"by at most {excess.min():.0f} to {excess.max():.0f} %, depending on the problem" in note
        none = results.tables["problems"].assign(chord=np.nan)
        assert evidence_sections.practice(changed(results, problems=none))["note"] == ""

    def test_a_verdict_is_in_words_wherever_it_shows_by_its_looks(self, results: Results) -> None:
        words = {"pays": "pays", "longer": "train longer"}
        for row in evidence_sections.practice(results)["rows"]:
            for each in row["cells"]:
                assert not each["looks"] or words[each["looks"]] in each["below"]
        found = [each for row in evidence_sections.step_length(results)["rows"] for each in row["cells"]]
        assert all(("step length matters" in each["below"]) == (each["looks"] == "pays") for each in found)
        found = [each for row in evidence_sections.gates(results)["rows"] for each in row["cells"][:-1]]
        assert all(("fails" in each["below"]) == bool(each["looks"]) for each in found)
        assert all(all(table["header"]) for table in evidence_sections.sections(results).values() if table)

    def test_numbers_are_not_rounded_onto_the_bound_that_decides(self, results: Results) -> None:
        gates = results.tables["gates"].assign(
            q=0.95, low=0.8967, high=1.0496, beyond="", low_beyond="", high_beyond="", passes=False
        )
        (first, *_) = evidence_sections.gates(changed(results, gates=gates))["rows"]
        assert first["cells"][0]["below"][0] == "[0.897, 1.050]"
        pays = results.tables["practice"].assign(
            q_per_cost=0.95, beyond="", low=0.9, q_low_beyond="", high=0.997, q_high_beyond=""
        )
        assert evidence_answer.quotient(pays.iloc[0]) == "0.950 [0.900, 0.997]"

    def test_p_values_are_left_out_where_a_method_is_worse(self, results: Results) -> None:
        claims = results.tables["claims"].set_index(["problem", "balancer"])
        counts = {True: 0, False: 0}
        for row in evidence_sections.claims(results)["rows"]:
            problem = row["cells"][0]["text"]
            test = claims.loc[(problem, row["head"])]
            worse = problem != "helmholtz" and test["relative"] > 1  # on helmholtz, only static weights count
            if test["claimed"] or worse or test["why_not"].startswith("not better"):
                assert [each["text"] != "–" for each in row["cells"][4:8]] == [bool(test["claimed"])] * 4
                counts[bool(test["claimed"])] += 1
        assert min(counts.values()) > 3

    def test_gates_tell_who_fails(self, results: Results) -> None:
        rows = {row["head"]: row["cells"][-1]["text"] for row in evidence_sections.gates(results)["rows"]}
        assert rows["uncertainty"] == "passes"
        assert {label for label, text in rows.items() if text == "FAILS"} == {"gradnorm", "mgda, parameters", "random"}

    def test_table_a_stands_beside_table_b(self, results: Results) -> None:
        table = evidence_sections.step_length(results)
        row = next(row for row in table["rows"] if row["head"] == "gradnorm")
        found = row["cells"][table["header"].index("scenes") - 1]
        assert re.match(r"0\.\d+× → 1\.\d+×$", found["text"])
        assert found["looks"] == "pays"
        assert table["columns"][table["header"].index("scenes")] == results.problems.index("scenes")

    def test_a_table_without_rows_is_left_out(self, results: Results) -> None:
        empty = changed(results, step_length=results.tables["step_length"].iloc[:0])
        assert evidence_sections.sections(empty)["step_length"] is None
        assert evidence_sections.sections(results)["step_length"] is not None


@pytest.fixture(scope="module")
def figure(results: Results) -> Figure:
    with theme():
        found = effect_picture.effect_picture(results)
    assert found is not None
    return found


def test_one_problem_is_neither_enumerated_nor_drawn_too_narrow(tmp_path: Path) -> None:
    results = load(folder(tmp_path, problems=("scenes", *made_up_parts.CONTROLS), seeds=3))
    assert "beyond noise" not in verdict_wording.reading(results)
    with theme():
        figure = effect_picture.effect_picture(results)
        assert figure is not None
        figure.draw_without_rendering()
    texts = [*figure.legends[0].get_texts(), *(axes.title for axes in figure.axes)]
    for text in texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1, text.get_text()


class TestPicture:
    def test_marks_and_effects_are_those_of_the_tables(self, results: Results) -> None:
        cells = effect_picture.cells(results).set_index(["panel", "problem", "balancer"])
        assert cells.loc[("A", "scenes", "uncertainty"), "mark"] == "claimed"
        assert cells.loc[("B", "scenes", "uncertainty"), "mark"] == "better"  # nothing is claimed from B
        assert cells.loc[("A", "scenes", "mgda, parameters"), "mark"] == "worse"
        assert cells.loc[("A", "scenes", "uncertainty"), "effect"] == pytest.approx(np.log(0.8), abs=0.06)
        assert ("A", "recommender", "uncertainty") in cells.index
        failed = set(cells[cells["failed"]].index.get_level_values("balancer"))
        assert failed == {"gradnorm", "mgda, parameters", "random"}
        assert cells.loc[("B", "scenes", "gradnorm"), "failed"]

    def test_methods_that_fail_a_gate_are_hatched_in_both_panels(self, figure: Figure, results: Results) -> None:
        place = f"method-{results.balancers.index('gradnorm')}"
        for axes in figure.axes[:2]:
            hatched = {each.get_gid() for each in axes.collections if each.get_hatch()}
            assert place in hatched
            assert f"method-{results.balancers.index('uncertainty')}" not in hatched
            assert isinstance(axes.collections[0], PatchCollection)

    def test_groups_of_columns_are_named_below_them(self, figure: Figure) -> None:
        for axes, groups in zip(figure.axes[:2], (["reserved", "controls"], ["controls"]), strict=True):
            columns = dict(zip((label.get_text() for label in axes.get_xticklabels()), axes.get_xticks(), strict=True))
            named = {text.get_text(): text.get_position()[0] for text in axes.texts if text.get_text()}
            middles = {
                "reserved": columns.get("recommender"),
                "controls": (columns["same-tasks"] + columns["apart"]) / 2,
            }
            assert named == {group: middles[group] for group in groups}

    def test_panels_have_their_problems_with_controls_at_the_right(self, figure: Figure) -> None:
        short, published = ([label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes[:2])
        assert short == [
            "flights",
            "scenes",
            "multi-token",
            "helmholtz",
            "burgers",
            "recommender",
            "same-tasks",
            "apart",
        ]
        assert published == ["flights", "scenes", "multi-token", "helmholtz", "burgers", "same-tasks", "apart"]

    def test_ticks_have_their_numbers(self, figure: Figure) -> None:
        figure.draw_without_rendering()
        texts = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
        assert "1.25×" in texts

    def test_its_text_names_counts_and_failures(self, results: Results) -> None:
        text = effect_picture.caption(results)
        cells = effect_picture.cells(results)
        claimed = (cells["mark"] == "claimed").sum()
        assert f"{claimed} claimed" in text
        assert "Hatched and not counted, because they fail a gate: gradnorm, mgda, parameters, random." in text
        methods = results.tables["rows"].query("kind == 'method'")["balancer"]
        counted = cells[(cells["panel"] == "A") & cells["balancer"].isin(methods) & ~cells["failed"]]
        worse = (counted[~counted["problem"].isin(made_up_parts.CONTROLS)]["mark"] == "worse").sum()
        assert f"{worse} worse" in text

    def test_without_table_b_there_is_one_panel(self, results: Results) -> None:
        compared = results.tables["comparisons"]
        found = effect_picture.effect_picture(changed(results, comparisons=compared[compared["table"] != "B"]))
        assert found is not None
        titles = [axes.get_title(loc="left") or axes.get_title() for axes in found.axes]
        assert "A: short memory" in titles
        assert "B: as published" not in titles

    def test_without_comparisons_there_is_none(self, results: Results) -> None:
        assert (
            effect_picture.effect_picture(changed(results, comparisons=results.tables["comparisons"].iloc[:0])) is None
        )


class TestPage:
    def test_the_answer_comes_first(self, page: str) -> None:
        order = [
            *("That balancing helps is claimed in", "Balancing helps: uncertainty", 'id="practice"', 'id="effects"'),
            *('id="gates"', 'id="doubling"', 'id="step-length"', 'id="claims"', 'id="free"', 'id="training"'),
            *('id="overview"', 'id="problem-0"'),
        ]
        places = [page.index(each) for each in order]
        assert places == sorted(places)

    def test_counts_stand_in_place_of_the_enumeration(self, page: str, results: Results) -> None:
        assert "beyond noise" not in verdict_wording.reading(results)
        assert "Counted over" not in page

    def test_what_is_uncorrected_says_so(self, page: str, results: Results) -> None:
        def section(name: str) -> str:
            return " ".join(page[page.index(f'<section id="{name}">') :].partition("</section>")[0].split())

        assert "The intervals are at 95 % each and not corrected for their number." in section("practice")
        assert evidence_sections.chord_note(results) in section("practice")
        assert "by chance, one in twenty is bold where nothing changes" in section("step-length")
        assert "80 % power in one comparison" in section("doubling")
        assert "between rounds of timing on one machine, not between machines" in section("words")
        assert "wider than a 95 % interval" not in page
        assert "Δm" not in page

    def test_time_to_target_and_single_runs_are_left_out(self, page: str) -> None:
        assert "final score" not in page
        assert "lossbench once" not in page

    def test_methods_that_fail_are_marked_wherever_they_are_named(self, page: str) -> None:
        names = re.findall(r"gradnorm(?: <abbr[^>]*>†</abbr>)?\s*\n?\s*</(?:th|button)>", page)
        assert len(names) > 5
        assert all("†" in name for name in names)

    def test_the_picture_has_a_text_and_needs_no_other_file(self, page: str, results: Results) -> None:
        assert f'aria-label="{effect_picture.caption(results)[:40]}' in page
        assert "http" not in page
        targets = set(re.findall(r"url\(#([^)]+)\)", page))
        assert any("summary-" in target for target in targets)
        assert targets <= set(re.findall(r'\bid="([^"]+)"', page))

    def test_cells_are_written_for_sorting_and_hiding(self, page: str, results: Results) -> None:
        place = results.problems.index("scenes")
        assert f'data-problem="{place}"' in page
        assert re.search(r'<td class="pays" data-sort="[\d.]+">', page)


def test_the_whole_page_stays_small(tmp_path: Path) -> None:
    """Nine problems with ten tasks each, and four reserved ones."""
    page = report_page.write(folder(tmp_path, num_metrics=10))
    assert page.stat().st_size < 1_500_000


@pytest.mark.xdist_group("processes")
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
def test_rows_are_sorted_hidden_and_highlighted_without_an_error(page: str, results: Results) -> None:
    assert page
    found = in_browser(
        results.path,
        """
        const table = one("#practice table");
        table.tHead.rows[0].cells[3].click();
        const sorted = [...table.tBodies[0].rows].map((row) => Number(row.cells[3].dataset.sort));
        const row = one('#gates tr[data-method="2"]'), other = one('#gates tr[data-method="5"]');
        one('[data-follow="2"]').click();
        one("[data-only]").click();
        over(document.body);
        const only = [row, other].map((each) => getComputedStyle(each).display);
        const faded = shade(5);
        one('[data-follow="2"]').click();
        const all_again = getComputedStyle(other).display;
        one('[data-show="0"]').click();
        const hidden = all('#practice [data-problem="0"]').map((each) => each.hidden);
        return {sorted, only, faded, all_again, hidden, scripts: all("script").length};
        """,
    )
    assert found["errors"] == []
    assert found["sorted"] == sorted(found["sorted"])
    assert found["only"] == ["table-row", "none"]
    assert found["faded"] == 0.25
    assert found["all_again"] == "table-row"
    assert found["hidden"] == [True]
    assert found["scripts"] == 2
