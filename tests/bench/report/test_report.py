"""Test the report of a made-up results folder: what the page shows and leaves out, its figures, and the terminal."""

import html
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import balancers
from bench.analysis import Estimate
from bench.report import (
    cost_panels,
    curve_panels,
    front_report,
    leaderboard_terminal,
    report_figures,
    report_page,
    step_ratios,
    summary_figure,
    verdict_wording,
    weight_panels,
)
from bench.report.answer import answer, caveat, mixed
from bench.report.evidence import controls, repeated
from bench.report.results_folder import load
from bench.run import suite_text
from bench.style import numbers
from bench.style.figure_style import NUM_COLOURS, spread, styles
from bench.style.short_label import short
from bench.suite import suite_file

from .made_up_results import BALANCERS, CORE, HOSTILE, OPTIONS, SECOND, STEPS, build, core


def labels_of(suite: str) -> list[str]:
    """Return the labels of the methods of a suite that comes with the benchmark."""
    entries = suite_text.read(suite_file.find(suite)).values["balancers"]
    return [entry.get("label", entry["name"]) for entry in entries]


def linear(colour: str) -> np.ndarray:
    """Return the linear red, green and blue of a colour in sRGB (IEC 61966-2-1)."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, from which WCAG 2 computes contrast."""
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def lab(colour: str) -> np.ndarray:
    """Return the place of a colour in CIELAB, where equal distances look about equal."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear(colour) / [0.9505, 1.0, 1.089])  # of no colour here is a part below 0.0089
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, and its text outside the figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "svg" not in self.open:
            self.text += f" {data}"

    def headings(self, level="h2"):
        return re.findall(rf"<{level}>(.*?)</{level}>", self.source)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Return the folder of a tuned and timed suite with a failed run, with its report."""
    folder = build(tmp_path_factory.mktemp("results") / "whole")
    assert report_page.write(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Return the folder of a suite that was neither tuned nor timed and has no failed run, with its report.

    Before the report, it had a figure of an earlier report and a picture of somebody else.
    """
    folder = build(tmp_path_factory.mktemp("results") / "bare", num_tasks=(2,), grid=(), timed=False, failing=None)
    (folder / "figures").mkdir()
    for name in ("scores-9.svg", "micro.png", "scores-of-mine.png"):
        (folder / "figures" / name).touch()
    report_page.write(folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Return the folder of a suite measured on CUDA too, whose labels contain markup and formulas or are very long."""
    balancers = {"equal": BALANCERS["equal"], **dict.fromkeys(HOSTILE, ("other", 0.9, 1.1, 1))}
    folder = tmp_path_factory.mktemp("results") / "hostile"
    problem = "</h3><b>{} tasks</b>" + "y" * 180
    build(folder, num_tasks=(2,), balancers=balancers, problem_label=problem, cuda=True, failing="x" * 200)
    report_page.write(folder)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Return the folder of a suite of five problems, with its report."""
    folder = build(tmp_path_factory.mktemp("results") / "many", num_tasks=(2, 3, 4, 10, 40), seeds=(1, 2, 3))
    report_page.write(folder)
    return folder


class TestPage:
    @pytest.mark.slow
    @pytest.mark.parametrize("folder", ["whole", "bare", "hostile"])
    def test_needs_no_network_and_no_other_file(self, folder, request):
        parsed = Page(request.getfixturevalue(folder) / "report.html")
        assert "http" not in parsed.source
        assert "@import" not in parsed.source
        tags = [tag for tag, _ in parsed.tags]
        assert not {"link", "iframe", "image", "object", "base"} & set(tags)
        assert tags.count("script") == 1
        for _, attributes in parsed.tags:
            assert attributes.get("src", "data:").startswith("data:")
            for name in ("href", "xlink:href"):
                assert attributes.get(name, "#").startswith("#")
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", parsed.source))

    @pytest.mark.slow
    @pytest.mark.parametrize("folder", ["whole", "bare", "hostile"])
    def test_ids_are_unique_and_references_lead_somewhere(self, folder, request):
        parsed = Page(request.getfixturevalue(folder) / "report.html")
        ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        targets = re.findall(r'href="#([^"]+)"', parsed.source) + re.findall(r"url\(#([^)]+)\)", parsed.source)
        assert targets
        assert set(targets) <= set(ids)

    def test_shows_every_section_there_is_data_for(self, whole):
        parsed = Page(whole / "report.html")
        assert parsed.headings() == [
            *("Leaderboard", "regression, 2 tasks", "regression, 10 tasks", "Micro-benchmark", "Failed runs"),
            *("Glossary", "Machine and versions"),
        ]
        of_problem = [
            "Leaderboard",
            "Time to reach equal's final score",
            "Learning curves",
            "Weights",
            "Cost of a step",
            "Learning rates",
            "Size of the steps",
        ]
        assert parsed.headings("h3") == [*of_problem, *of_problem, "The suite's file"]

    @pytest.mark.slow
    def test_many_problems_are_counted_not_recounted(self, many):
        results = load(many)
        board = results.board
        better = board[board["verdict"] == "better"]["balancer"].value_counts()
        text = verdict_wording.reading(results)
        assert text.startswith(
            "No method is better than static 1/sigma² beyond noise on any of 5 problems; these are worse: "
        )
        count = better["static 1/sigma²"]
        start = "Counted over 5 problems, these methods are better than equal beyond noise: static 1/sigma²"
        assert f"{start} on {count}" in text
        assert f"GradNorm on {better['GradNorm']}" in text
        parsed = Page(many / "report.html")
        for problem in results.problems:
            finding = verdict_wording.finding(problem, results.only(problem).board, results)
            assert finding in " ".join(parsed.text.split())

    @pytest.mark.slow
    def test_leaves_out_sections_without_data(self, bare):
        parsed = Page(bare / "report.html")
        assert parsed.headings() == ["regression, 2 tasks", "Glossary", "Machine and versions"]
        assert parsed.headings("h3") == [
            *(verdict_wording.DEFAULTS_TITLE, "Learning curves", "Weights", "Size of the steps", "The suite's file")
        ]

    @pytest.mark.slow
    def test_without_a_grid_nothing_is_ranked(self, bare):
        text = Page(bare / "report.html").text
        assert "Defaults, not a ranking" in text
        assert "rank nothing" in text
        for word in ("Leaderboard", "Verdict", "better than", "worse than", "tie"):
            assert not re.search(rf"\b{word}\b", text), word

    @pytest.mark.slow
    def test_hostile_labels_are_text(self, hostile):
        parsed = Page(hostile / "report.html")
        for label in HOSTILE:
            assert label in parsed.text
        assert "</h3><b>2 tasks</b>" in parsed.text
        assert "b" not in {tag for tag, _ in parsed.tags}

    def test_says_what_was_found_and_on_what(self, whole):
        text = " ".join(Page(whole / "report.html").text.split())
        assert re.search(r"static 1/sigma² \(0\.\d\d×\) and GradNorm \(0\.\d\d×\) score better than equal", text)
        assert "1 of 40 reported runs failed" in text
        assert "not finite at step 941 [nan, 1.0]" in text
        assert "0f3c2a9d1b" in text
        assert "on CPU (a processor)" in text
        assert "ab12" * 16 in text
        assert 'description = "GradNorm and its baselines"' in text

    def test_every_score_has_its_interval(self, whole):
        board = load(whole).board
        source = Page(whole / "report.html").source
        for row in board.itertuples():
            for mean, low, high in ((row.score, row.score_low, row.score_high), (row.best_score, *row[11:13])):
                _, _, bounds = numbers.interval(mean, low, high).partition(" ")
                assert f'<span class="bounds">{bounds}</span>' in source

    @pytest.mark.slow
    def test_columns_of_a_device_that_was_not_measured_are_absent(self, whole, hostile):
        assert "CUDA" not in Page(whole / "report.html").text
        assert "CPU time / CUDA time" in Page(hostile / "report.html").text

    @pytest.mark.slow
    def test_a_suite_in_which_everything_failed_is_reported(self, tmp_path):
        folder = build(tmp_path / "failed", num_tasks=(2,), grid=(), timed=False)
        for name in ("scores", "curves"):
            table = pd.read_parquet(folder / "tables" / f"{name}.parquet")
            table.assign(value=np.nan).to_parquet(folder / "tables" / f"{name}.parquet")
        runs = pd.read_parquet(folder / "tables" / "runs.parquet")
        runs.assign(status="failed", reason="no luck").to_parquet(folder / "tables" / "runs.parquet")
        text = Page(report_page.write(folder)).text
        assert "20 of 20 reported runs failed" in text
        assert text.count("no luck") == 20

    @pytest.mark.slow
    def test_an_interrupted_suite_has_nothing_to_compare_yet(self, tmp_path):
        folder = build(tmp_path / "tuning", num_tasks=(2,), timed=False)
        for name in ("runs", "scores", "curves", "trajectory", "dynamics"):
            table = pd.read_parquet(folder / "tables" / f"{name}.parquet")
            table[table["phase"] == "tuning"].to_parquet(folder / "tables" / f"{name}.parquet")
        parsed = Page(report_page.write(folder))
        assert "nothing to compare" in parsed.text
        assert parsed.headings("h3") == ["Learning rates", "The suite's file"]

    def test_refuses_another_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"not the results folder of a suite: it has no suite\.toml"):
            report_page.write(tmp_path)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Path:
    """Return the folder of the suite ``core`` with few seeds, four problems and a control, with its report."""
    folder = tmp_path_factory.mktemp("results") / "core"
    core(folder, num_tasks=(2, 3, 4, 10, 5), seeds=range(11, 14), repeated=range(21, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_figures, "OF_PROBLEM", {})  # the summary is enough
        report_page.write(folder)
    return folder


class TestEvidence:
    @pytest.mark.slow
    def test_the_page_has_what_stands_behind_the_verdicts(self, evidence):
        parsed = Page(evidence / "report.html")
        assert parsed.headings()[:3] == ["Leaderboard", "Controls", "Repeated on other seeds"]
        text = " ".join(parsed.text.split())
        assert "gradnorm, pcgrad and nash-mtl are confirmatory" in text
        assert "bit-identical" in text
        assert "FAILED" not in text
        assert "Δm covers the problems problem of 2; problem of 3; problem of 4; problem of 10." in text
        for caption in ("Compared with equal", "Compared with static", "Time to reach equal&#39;s final score"):
            assert f"<caption>{caption}" in parsed.source

    @pytest.mark.slow
    def test_controls_are_counted_neither_as_problems_nor_as_methods(self, evidence):
        results = load(evidence)
        text = verdict_wording.reading(results)
        assert "of 4 problems" in text
        assert "random" not in text
        assert SECOND not in text
        (summary,) = (evidence / "figures").glob("summary.svg")
        drawn = summary.read_text()
        assert "problem of 10" in drawn
        assert "problem of 5" not in drawn
        assert "second name" not in drawn
        assert "random" in drawn

    @pytest.mark.slow
    def test_a_control_that_fails_is_told_first(self, evidence, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(report_page, "draw", lambda results: [])
        folder = tmp_path / "core"
        shutil.copytree(evidence, folder)
        path = folder / "tables" / "controls.parquet"
        table = pd.read_parquet(path)
        second = table["control"] == "second name"
        table.assign(different=table["different"].mask(second, 3), holds=~second).to_parquet(path)
        parsed = Page(report_page.write(folder))
        assert 'class="alarm">A control FAILED: equal weighting under a second name.' in parsed.source
        assert parsed.source.index("A control FAILED") < parsed.source.index('class="reading"')
        assert "NOT bit-identical" in parsed.text
        leaderboard_terminal.print_leaderboard(folder)
        assert "Control FAILED: equal, under a second name: NOT bit-identical." in capsys.readouterr().out

    def test_random_weights_that_are_not_settled_are_not_said_to_be_no_better(self, whole):
        row = {"control": "random", "balancer": "random", "problem": "regression, 2 tasks", "holds": True}
        for verdict, words in (("tie", "random is not better"), ("not settled", "random is not shown to be better")):
            results = load(whole)
            results.tables["controls"] = pd.DataFrame([{**row, "verdict": verdict}])
            (found,) = controls(results)
            assert found["text"] == f"{words} than equal on regression, 2 tasks."

    @pytest.mark.slow
    def test_a_verdict_that_flips_is_named(self, evidence):
        results = load(evidence)
        table = results.tables["repeated"].copy()
        place = table.index[(table["balancer"] == "pcgrad") & (table["problem"] == "problem of 3")][0]
        table.loc[place, ["verdict", "again_verdict", "flipped", "changed"]] = ["better", "worse", True, False]
        flipped = replace(results, tables=results.tables | {"repeated": table})
        assert "1 flipped between better and worse (pcgrad on problem of 3)" in repeated(flipped)
        assert "none flipped" in repeated(results)

    def test_another_suite_is_not_told_about_the_suite_core(self, whole, capsys):
        leaderboard_terminal.print_leaderboard(whole)
        for text in (Page(whole / "report.html").text, capsys.readouterr().out):
            assert "suite core" not in text
            assert "confirmatory" not in text


class TestAnswer:
    def test_it_heads_the_page(self, whole):
        source = Page(whole / "report.html").source
        said = answer(load(whole))
        assert len(said) == 2
        shown = re.findall(r'<p class="answer">(.*?)</p>', source)
        assert [html.unescape(text) for text in shown] == said
        assert source.index(shown[0]) < source.index('class="reading"')

    @pytest.mark.slow
    def test_the_best_of_several_is_to_be_confirmed(self, whole, capsys):
        said = caveat(load(whole))
        assert said.startswith(
            "4 methods were compared on 2 problems. Even if none were better, one would be named in up to"
        )
        assert said in " ".join(Page(whole / "report.html").text.split())
        leaderboard_terminal.print_leaderboard(whole)
        assert said in " ".join(capsys.readouterr().out.split())

    def test_several_kinds_of_processors_are_named(self, whole):
        results = load(whole)
        assert mixed(results) == ""  # these results do not say what did them
        results.tables["runs"]["processor"] = ["one", "other"] * (len(results.tables["runs"]) // 2)
        assert mixed(results).startswith("The runs were done by 2 kinds of processors (one, other): scores are")
        results.tables["runs"]["processor"] = "one"
        assert mixed(results) == ""
        results.tables["runs"]["processor"] = [None, "one"] * (len(results.tables["runs"]) // 2)
        assert mixed(results) == ""

    def test_only_exploratory_recommendations_need_a_caveat(self, whole):
        results = load(whole)
        roles = dict.fromkeys(results.balancers, "confirmatory")
        confirmatory = replace(results, roles=replace(results.roles, by_label=roles))
        assert caveat(confirmatory) == ""
        best = results.evidence.iloc[0]["balancer"]
        exploratory = replace(results, roles=replace(results.roles, by_label={**roles, best: "exploratory"}))
        assert "luck" in caveat(exploratory)

    @pytest.mark.slow
    def test_defaults_and_repeated_runs_need_no_such_caveat(self, bare, evidence):
        for folder in (bare, evidence):
            assert caveat(load(folder)) == ""
        assert "answer" not in {attributes.get("class") for _, attributes in Page(bare / "report.html").tags}


@pytest.fixture(scope="module")
def busy(tmp_path_factory) -> Path:
    """Return the folder of a suite that was timed on a busy computer, whose ratios have wide intervals."""
    folder = build(tmp_path_factory.mktemp("results") / "busy", num_tasks=(2,), failing=None)
    path = folder / "tables" / "costs.parquet"
    costs = pd.read_parquet(path).assign(busy_cores=2.04)
    costs.assign(ratio_to_equal=1.04, ratio_low=0.54, ratio_high=11.42).to_parquet(path)
    return folder


class TestStepRatios:
    @pytest.mark.slow
    def test_a_busy_computer_is_told_with_a_remedy(self, busy, whole, capsys):
        leaderboard_terminal.print_leaderboard(busy)
        told = " ".join(capsys.readouterr().out.split())
        warning = step_ratios.warning(load(busy))
        assert warning.startswith("Steps were timed while other programs used 2.0 cores, so the times may be too long.")
        assert "delete the folder `costs`" in warning
        assert warning in told
        assert step_ratios.warning(load(whole)) == ""  # it is not known

    @pytest.mark.slow
    def test_a_wide_interval_is_in_the_terminal_and_equal_weighting_is_one(self, busy, whole, capsys):
        leaderboard_terminal.print_leaderboard(busy)
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 100
        assert out.count("[0.54, 11.42]") == 3
        assert out.count("1.04×") == 3
        assert "1.00×" in next(line for line in out.splitlines() if line.strip().startswith("equal"))
        rows = load(whole).board
        assert [step_ratios.brief(row, load(whole)) for _, row in rows[rows["balancer"] == "GradNorm"].iterrows()] == [
            "1.20×",
            "1.20×",
        ]

    @pytest.mark.parametrize(
        ("cores", "said"),
        [(None, "processor). Each"), (0.0, "processor), which was quiet otherwise. Each"), (2.04, "used 2.0 cores.")],
    )
    def test_the_caption_says_what_else_ran(self, whole, cores, said):
        results = load(whole)
        costs = results.tables["costs"].assign(**({} if cores is None else {"busy_cores": cores}))
        _, caption = cost_panels.step_cost(replace(results, tables=results.tables | {"costs": costs}))
        assert said in caption

    @pytest.mark.slow
    def test_the_page_has_the_warning_and_the_noise(self, busy, monkeypatch):
        monkeypatch.setattr(report_page, "draw", lambda results: [])
        text = " ".join(Page(report_page.write(busy)).text.split())
        assert text.count(step_ratios.warning(load(busy))) == 2
        assert "A step of equal was timed next to another step of equal" in text


class TestFigures:
    @pytest.mark.slow
    def test_all_are_written_and_not_blank(self, whole):
        kinds = ("scores", "curves", "cost", "learning-rates", "dynamics", "weights")
        names = {"micro", "summary", *(f"{kind}-{number}" for kind in kinds for number in (1, 2))}
        folder = whole / "figures"
        assert {path.name for path in folder.iterdir()} == {
            f"{name}{end}" for name in names for end in (".svg", ".png")
        }
        for name in names:
            picture = imread(folder / f"{name}.png")[..., :3]
            inked = np.any(picture < 0.95, axis=-1)
            assert 0.01 < inked.mean() < 0.5, name
            assert len(np.unique((picture[inked] * 8).astype(int), axis=0)) > 5, name

    def test_those_of_an_earlier_report_go_and_pictures_of_somebody_else_stay(self, bare):
        names = {path.name for path in (bare / "figures").iterdir()}
        assert "scores-of-mine.png" in names
        assert not {"scores-9.svg", "micro.png"} & names

    def test_summary_is_as_wide_as_a_readme(self, whole):
        assert imread(whole / "figures" / "summary.png").shape[:2] == (500, 1200)

    @pytest.mark.slow
    def test_of_many_problems_the_summary_compares_methods(self, many):
        height, width = imread(many / "figures" / "summary.png").shape[:2]
        assert width == 1200
        assert height > 400
        svg = (many / "figures" / "summary.svg").read_text()
        for title in ("regression, 2 tasks", "regression, 40 tasks", "one dot per problem"):
            assert title in svg

    def test_a_longer_training_is_drawn_to_its_end(self, whole):
        results = load(whole).only("regression, 2 tasks")
        longer = {
            name: table.assign(step=table["step"].mask(table["balancer"] == "GradNorm", 2 * table["step"]))
            for name, table in results.tables.items()
            if name in ("curves", "trajectory", "dynamics")
        }
        results = replace(results, tables=results.tables | longer)
        for draw in (curve_panels.learning_curves, curve_panels.dynamics, weight_panels.weight_trajectories):
            figure, _ = draw(results)
            assert {axes.get_xlim()[1] for axes in figure.axes if axes.get_xlabel()} == {2 * STEPS}

    def test_a_score_that_starts_at_zero_or_below_is_not_cut_off(self, whole):
        results = load(whole).only("regression, 2 tasks")
        rows = curve_panels.validation_scores(results)
        shifted = rows.assign(value=rows["value"].astype(float) - rows["value"].max() - 1)
        panel = Figure().add_subplot()
        curve_panels.score_panel(panel, results, shifted)
        assert panel.get_ylim()[1] >= shifted["value"].max()

    def test_where_every_run_failed_nothing_is_drawn(self, whole):
        panel = Figure().add_subplot()
        front_report._axis(panel, "x", "loss", False, {"famo": Estimate(np.nan, np.nan, np.nan)})
        assert panel.get_xlabel() == "loss, lower is better"
        board = pd.DataFrame(
            {"scale": "ratio", "relative": np.nan, "relative_low": np.nan, "relative_high": np.nan}, index=["GradNorm"]
        )
        summary_figure._scores(panel, load(whole), board, ["GradNorm"])
        assert not panel.texts

    def test_labels_of_a_figure_lie_apart_and_in_order(self):
        heights = np.array([0.5, 0.51, 0.1, 0.5, 0.99, 1.0])
        places = spread(heights, 0.08)
        assert np.diff(np.sort(places)).min() >= 0.08 - 1e-12
        assert (np.diff(places[np.argsort(heights, kind="stable")]) > 0).all()
        assert places.max() <= 1
        assert places[2] == pytest.approx(0.1)

    @pytest.mark.parametrize("labels", [*map(labels_of, suite_file.names()), balancers.names(), range(96)])
    def test_no_two_methods_look_alike(self, labels):
        """Neither in figures of lines, which have dashes, nor in figures and tables with marks."""
        looks = list(styles([str(label) for label in labels]).values())
        assert len(looks) == len(labels) > 1
        assert len({(look.colour, look.dashes) for look in looks}) == len(looks)
        assert len({(look.colour, look.marker) for look in looks}) == len(looks)
        assert len({(look.colour, look.glyph) for look in looks}) == len(looks)
        assert len({look.colour for look in looks}) == min(len(looks), NUM_COLOURS)

    def test_colours_are_far_apart_and_seen_on_light_and_dark_pages(self):
        colours = [look.colour for look in styles([str(i) for i in range(NUM_COLOURS)]).values()]
        assert len(colours) == 16
        for colour in colours:
            for background in ("#ffffff", "#17191c"):
                light = sorted((luminance(colour), luminance(background)))
                assert (light[1] + 0.05) / (light[0] + 0.05) > 2.2
        places = np.array([lab(colour) for colour in colours])
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
        assert distances[~np.eye(len(colours), dtype=bool)].min() > 25

    def test_a_method_has_its_mark_beside_its_name(self, whole):
        source = Page(whole / "report.html").source
        for look in styles(load(whole).balancers).values():
            assert f'style="color:{look.colour}" data-glyph="{look.glyph}"' in source

    @pytest.mark.slow
    def test_many_tasks_and_equal_files_for_equal_results(self, tmp_path):
        folders = [build(tmp_path / name, num_tasks=(40,), seeds=(1, 2), grid=(), timed=False) for name in "ab"]
        for folder in folders:
            report_figures.draw(load(folder))
        for path in (folders[0] / "figures").iterdir():
            assert path.read_bytes() == (folders[1] / "figures" / path.name).read_bytes(), path.name


class TestTerminal:
    def test_fits_100_columns_and_names_every_method(self, whole, capsys):
        leaderboard_terminal.print_leaderboard(whole)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("Leaderboard: whole")
        assert max(map(len, lines)) <= 100
        for label in BALANCERS:
            assert sum(line.strip().startswith(label.split()[0]) for line in lines) == 2

    @pytest.mark.slow
    def test_wide_numbers_are_whole(self, whole, tmp_path, capsys):
        """Ten methods whose differences have four decimals: no number is cut."""
        folder = build(
            tmp_path / "core", num_tasks=(2,), balancers=CORE, options=OPTIONS, timed=True, failing=None, noise=0.3
        )
        problems = pd.read_parquet(folder / "tables" / "problems.parquet").assign(higher_is_better=True)
        problems.to_parquet(folder / "tables" / "problems.parquet")
        leaderboard_terminal.print_leaderboard(folder)
        out = capsys.readouterr().out
        assert "…" not in out
        assert max(map(len, out.splitlines())) <= 100
        for word in ("confirmatory", "against", "step"):
            assert word in out
        for ratio in load(folder).board["step_ratio"]:
            assert f" {numbers.step_ratio(ratio, np.nan, np.nan)}" in out

    @pytest.mark.parametrize("score", ["0.1994 [0.1985, 0.2004]", "0.000604 [0.000519, 0.000702]"])
    @pytest.mark.parametrize("verdict", ["better", "not settled"])
    @pytest.mark.parametrize("method", ["equal", "equal, under a second name", "x" * 200])
    def test_columns_are_narrowed_until_they_fit_and_numbers_are_never_cut(self, score, verdict, method):
        numbers = {"lr": "0.00713*", leaderboard_terminal.SCORE: score, "against equal": "1.000× [1.000, 1.000]"}
        last = {"verdict": verdict, "against\nstatic": verdict, "step\ntime": "12.34×"}
        columns = {head: [cell] for head, cell in {"method": method, **numbers, **last}.items()}
        widths = leaderboard_terminal._fit(columns, 100)
        assert sum(widths.values()) + 2 * len(widths) <= 100
        for head in (*numbers, "step\ntime"):
            assert widths[head] >= max(map(len, columns[head][0].split("\n")))
        assert widths["verdict"] >= len("verdict")
        assert ("\n" in columns[leaderboard_terminal.SCORE][0]) == ("0.000604" in score and widths["method"] == 12)

    def test_in_80_columns_words_and_numbers_stay_whole(self):
        numbers = {"lr": "0.0333*", leaderboard_terminal.SCORE: "0.2044 [0.1971, 0.2119]"}
        numbers |= {"against equal": "0.983× [0.949, 1.017]"}
        last = {"verdict": "not settled", "against\nstatic": "not settled", "step\ntime": "2.31×"}
        columns = {head: [cell] for head, cell in {"method": "uncertainty", **numbers, **last}.items()}
        widths = leaderboard_terminal._fit(columns, 80)
        assert sum(widths.values()) + len(widths) + 1 <= 80
        for head, (cell,) in columns.items():
            assert widths[head] >= max(map(len, cell.split())), head
        assert columns["against equal"] == ["0.983×\n[0.949, 1.017]"]

    @pytest.mark.slow
    def test_without_a_grid_nothing_is_ranked(self, bare, capsys):
        leaderboard_terminal.print_leaderboard(bare)
        out = capsys.readouterr().out
        assert out.startswith("Defaults, not a ranking")
        assert "better" not in out.replace("lower is better", "")

    @pytest.mark.slow
    def test_labels_are_not_markup(self, hostile, capsys):
        leaderboard_terminal.print_leaderboard(hostile)
        assert "[red]" in capsys.readouterr().out


class TestVerdictWording:
    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ((0.51234, 0.48021, 0.54447), "0.512 [0.480, 0.544]"),
            ((12.3456, 10.1, 14.5), "12.3 [10.1, 14.5]"),
            ((7.2, 1.9, 29.3), "7.2 [1.9, 29.3]"),
            ((1234.5, 1200.0, 1269.0), "1234 [1200, 1269]"),
            ((0.000012, 0.00001, 0.000014), "1.20e-5 [1.00e-5, 1.40e-5]"),
            ((0.25, float("nan"), float("nan")), "0.250"),
            ((1.0, 1.0, 1.0), "1.000 [1.000, 1.000]"),
        ],
    )
    def test_an_interval_has_the_digits_it_supports(self, values, text):
        assert numbers.interval(*values) == text

    def test_comparisons(self):
        assert numbers.relative("ratio", 0.6213, 0.5801, 0.6654) == "0.621× [0.580, 0.665]"
        assert numbers.relative("difference", 1.3, 0.91, 1.69) == "+1.30 [+0.91, +1.69]"
        assert numbers.relative("difference", -1.3, -1.69, 0.2) == "−1.30 [−1.69, +0.20]"
        assert numbers.relative("ratio", float("nan"), float("nan"), float("nan")) == numbers.NOTHING

    def test_no_end_is_rounded_onto_the_bound_that_decides(self):
        assert numbers.relative("ratio", 0.9702, 0.9412, 0.9996) == "0.9702× [0.9412, 0.9996]"
        assert numbers.relative("ratio", 1.031, 1.0004, 1.062) == "1.0310× [1.0004, 1.0620]"
        assert numbers.relative("ratio", 1.0, 1.0, 1.0) == "1.000× [1.000, 1.000]"
        assert numbers.relative("ratio", 1.0, 1 - 1e-12, 1 + 1e-12) == "1.000× [1.000, 1.000]"
        assert numbers.relative("difference", 1.3, 0.0004, 2.6) == "+1.3000 [+0.0004, +2.6000]"
        assert numbers.percent(0.02, 0.0004, 0.04) == "+2.00 % [+0.04, +4.00]"

    def test_a_p_value_falls_on_its_side_of_the_level(self):
        values = (0.31, 0.0504, 0.0496, 0.05, 0.0123, 0.0009, 1.0, float("nan"))
        texts = ["0.31", "0.0504", "0.0496", "0.050", "0.012", "<0.001", "1.0", numbers.NOTHING]
        assert [numbers.p_value(value) for value in values] == texts

    def test_learning_rates_as_typed(self):
        assert [numbers.rate(lr) for lr in (0.001, 3e-5, 0.0003, 1.0)] == ["0.001", "3e-5", "0.0003", "1"]

    def test_long_labels_keep_both_ends(self):
        assert short("a" * 50 + "z" * 50, 11) == "aaaaa…zzzzz"
        assert short("short", 11) == "short"

    def test_one_seed_is_told_apart_from_nothing(self, tmp_path):
        results = load(build(tmp_path / "one", num_tasks=(2,), seeds=(1,), timed=False, failing=None))
        assert verdict_wording.title(results) == "One seed, not a ranking"
        assert "too few seeds" in verdict_wording.reading(results)
