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
from bench.report import effect_picture, evidence_answer, evidence_sections, report_page, verdict_wording
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
            r"To match uncertainty, equal weighting must train for \d\.\d\d \[\d.+\] times the steps; its step costs "
            r"1\.05 times as much, so it pays \(q/c \d",
            found.beside,
        )
        assert "Plain training for twice as long scores 0.8" in found.beside

    def test_a_method_that_fails_its_gate_is_not_claimed_however_good(self, results: Results) -> None:
        claims = results.tables["claims"]
        only = claims[(claims["problem"] == "multi-token") & (claims["balancer"] == "gradnorm")]
        found = answer(changed(results, claims=only), "multi-token").text
        assert found.startswith("No balancing is claimed. The best mean: gradnorm scores 0.5")
        assert "but gradnorm fails the gate, so that step length may be the cause." in found
        assert "Static weights help: " in found

    def test_where_nothing_is_better_it_says_so(self, results: Results) -> None:
        found = answer(results, "flights").text
        assert found.startswith("No balancing is claimed.")
        assert found.endswith("No static weights are better than equal weighting either.")

    def test_only_static_weights_count_where_equal_weighting_fails(self, results: Results) -> None:
        found = answer(results, "helmholtz").text
        assert found.startswith("Equal weighting is worse than predicting zero here, so only static weights count.")
        assert "of equal weighting's score" not in found

    def test_q_beyond_the_curve_is_told_as_such(self, results: Results) -> None:
        found = answer(results, "burgers").beside
        assert "equal weighting must train for more than 4 times the steps" in found
        assert "(q/c >4.00)" in found

    @pytest.mark.parametrize(
        ("why_not", "words"),
        [
            ("not better than equal", "which is not better than equal weighting"),
            ("not better than static", "which is not better than these"),
            ("not settled", "which is not settled after correction (p = 0.3"),
            ("not repeated", "but only one set of seeds was run"),
            ("sign differs", "but the sign differs between the two sets of seeds"),
        ],
    )
    def test_each_reason_has_its_words(self, results: Results, why_not: str, words: str) -> None:
        claims = results.tables["claims"].assign(claimed=False, why_not=why_not, holm_p=0.31)
        assert words in answer(changed(results, claims=claims), "scenes").text

    def test_step_length_is_named_with_both_tables(self, results: Results) -> None:
        found = answer(results, "scenes").beside
        assert re.search(r"Step length changes the standing of gradnorm \(0\.\d+× in A, 1\.\d+× in B\)", found)
        none = results.tables["step_length"].assign(step_length=False)
        quiet = answer(changed(results, step_length=none), "scenes").beside
        assert "No method's standing is shown to depend on the length of steps." in quiet

    def test_a_problem_without_costs_has_q_alone(self, results: Results) -> None:
        pays = results.tables["pays"].assign(cost=np.nan, verdict="")
        assert "its step costs" not in answer(changed(results, pays=pays), "scenes").beside

    def test_across_problems_there_are_counts(self, results: Results) -> None:
        lines = evidence_answer.headlines(results)
        claims = results.tables["claims"]
        evidence = claims[claims["problem"] != "recommender"]
        first = f"That balancing helps is claimed in {evidence['claimed'].sum()} of {len(evidence)} tests on 5 problems"
        assert lines[0].startswith(first)
        assert "8 of 10 methods pass the gate on both controls; gradnorm and mgda, parameters fail" in lines[1]
        assert any("1 untouched problem" in line for line in lines)
        assert any(line.startswith("Training equal weighting for twice as long") for line in lines)
        assert any("uncertainty weighting on 4 of 5" in line for line in lines)

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

    def test_its_text_names_counts_and_failures(self, results: Results) -> None:
        text = effect_picture.caption(results)
        cells = effect_picture.cells(results)
        claimed = (cells["mark"] == "claimed").sum()
        assert f"{claimed} claimed" in text
        assert "Hatched, because they fail a gate: gradnorm, mgda, parameters, random." in text

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
