"""Check the documents as a reader would: run the programs of README.md and of docs, follow links, compare tables.

Each unnamed program runs on its own; those named in their first line become files in a folder of their own. Pages that
the build of the documentation generates are not looked at here: `test_documentation.py` builds them.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr, ttest_ind
from scipy.stats import t as student
from sybil import Document
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import balancers
from bench.analysis import SuiteTables, pooled_scores
from bench.catalogue import method_list
from bench.cost import cost_markdown
from bench.diagnose import kept_evidence
from bench.evidence import evidence_tables, markdown_tables
from bench.peers import peer_markdown
from bench.peers.gradient_check import CLEAN

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PEERS = ROOT / "results" / "reference" / "peers"
COSTS = ROOT / "results" / "reference" / "cost"
BESIDE = DOCS / "beside-other-libraries.md"
GENERATED = ("api", "gallery", "methods", "problems", "repository")
"""Folders of docs that the build writes."""
HOME = DOCS / "index.md"
"""The site's first page; on GitHub that is docs/README.md."""
DOCUMENTS = [
    README,
    *(
        path
        for path in sorted(DOCS.rglob("*.md"))
        if path != HOME and path.relative_to(DOCS).parts[0] not in (*GENERATED, "_build")
    ),
]
LINKED_DOCUMENTS = [
    *DOCUMENTS,
    *(ROOT / path for path in ("CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "bench/PROTOCOL.md")),
    ROOT / "examples" / "README.md",
]
LONGEST_README = 150
PROGRAMS_OF = (CodeBlockParser("python"), CodeBlockParser("toml"))
FENCED_BLOCKS = RawFencedCodeBlockLexer(re.compile("[^\n]*\n"))
METHODS_MARKER = "<!-- lossbench list balancers --markdown -->"
RESERVED_SCORES_MARKER = "<!-- python -m bench.evidence markdown reserved-scores -->"
RESERVED_PRACTICE_MARKER = "<!-- python -m bench.evidence markdown reserved-practice -->"
SCORES_MARKER = "<!-- python -m bench.evidence markdown scores -->"
PRACTICE_MARKER = "<!-- python -m bench.evidence markdown practice -->"
MEMORY_MARKER = "<!-- python -m bench.evidence markdown memory -->"
REGRETS_MARKER = "<!-- python -m bench.evidence markdown regrets -->"
CANDIDATES_MARKER = "<!-- python -m bench.evidence markdown candidates -->"


class Program(NamedTuple):
    """A block of Python or TOML in a document."""

    document: str
    name: str
    """The file name in its first line; empty where it has none."""
    code: str


def programs_in(document: Path) -> list[Program]:
    """Return the Python and TOML blocks of ``document``, in their order."""
    blocks = [str(example.parsed) for example in Document.parse(str(document), *PROGRAMS_OF)]
    names = [re.match(r"# (\S+\.(?:py|toml))\n", code) for code in blocks]
    return [
        Program(str(document.relative_to(ROOT)), name[1] if name else "", code)
        for name, code in zip(names, blocks, strict=True)
    ]


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def without_blocks(document: Path) -> str:
    """Return the text of ``document`` without its fenced blocks."""
    text = text_of(document)
    for region in reversed(list(FENCED_BLOCKS(Document(text, str(document))))):
        text = text[: region.start] + text[region.end :]
    return text


def prose_of(document: Path) -> str:
    """Return the text of ``document`` without its blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^    .*$", "", without_blocks(document), flags=re.MULTILINE))


def anchors_of(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of ``document``."""
    headings = re.findall(r"^#+ +(.*?) *$", without_blocks(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_in(document: Path) -> list[str]:
    """Return the targets of the links and pictures in ``document`` that lead to files or headings of the repository."""
    targets = re.findall(r"\]\(([^()\s]+)\)", prose_of(document))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


PROGRAMS = [program for document in DOCUMENTS for program in programs_in(document)]
FILES = {program.name: program.code for program in PROGRAMS if program.name}
LINKS = [(str(document.relative_to(ROOT)), target) for document in LINKED_DOCUMENTS for target in links_in(document)]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` in ``folder``, where the packages of the repository can be imported."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


# Programs.


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine, small operations on two take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_named_program_has_one_place_and_a_test_that_runs_it() -> None:
    names = [program.name for program in PROGRAMS if program.name]
    assert sorted(names) == ["from_gradnorm.py", "mine.toml", "my_method.py", "my_model.py", "my_problem.py"]


def test_the_first_example_trains_a_network(tmp_path: Path) -> None:
    [example] = [program for program in PROGRAMS if program.document == "README.md"]
    assert "class Net" in example.code
    (tmp_path / "example.py").write_text(example.code)

    done = run("example.py", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    weights, norms = re.findall(r"tensor\(\[(.*?)\]", done.stdout)
    assert sum(map(float, weights.split(","))) == pytest.approx(2, abs=1e-3)
    assert all(float(norm) > 0 for norm in norms.split(","))


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=program.document)
        for program in PROGRAMS
        if not program.name and program.document != "README.md"
    ],
)
def test_every_other_unnamed_program_runs_on_its_own(program: Program) -> None:
    variables: dict[str, object] = {}
    exec(program.code, variables)
    balancer = variables["balancer"]
    assert isinstance(balancer, balancers.LossBalancer)
    assert balancer.weights.isfinite().all()
    if "\nassert " not in program.code:  # others check what they show by themselves
        assert not balancer.weights.allclose(balancer.weights.new_ones(()))


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_ones_own_method_and_problem_run_beside_ours_from_a_folder_with_its_own_tasks(tmp_path: Path) -> None:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    for name in ("tasks.py", "balancers.py"):
        (tmp_path / name).write_text("raise RuntimeError('the wrong file was imported')\n")

    done = run("-m", "bench", "run", "mine.toml", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    scores = pd.read_parquet(tmp_path / "results" / "mine" / "tables" / "scores.parquet")
    assert set(scores["balancer"]) == {"equal", "gradnorm", "geometric-mean"}
    assert set(scores["problem"]) == {"waves"}
    assert (tmp_path / "results" / "mine" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_cost_of_ones_own_model(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(FILES["my_model.py"])

    done = run("-m", "bench", "cost", "my_model.py:make_step", folder=tmp_path)

    assert done.returncode == 0, done.stderr
    assert all(method in done.stdout for method in ("uncertainty", "gradnorm layer", "gradnorm every 10"))
    assert (tmp_path / "results" / "cost" / "my_model" / "cost.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_ten_task_recipe_of_public_gradnorm_orders_the_weights_against_sigma() -> None:
    logs: dict[str, np.ndarray] = {}
    exec(FILES["from_gradnorm.py"], logs)

    weights, ratios = logs["log_weights"], logs["log_loss"]
    assert weights.shape == ratios.shape == (1000, 10)
    assert (weights[0] == 1).all()
    assert (ratios[0] == 1).all()
    np.testing.assert_allclose(weights.sum(1), 10, rtol=1e-5)
    sigmas = (48, 3, 54, 16, 9, 30, 52, 26, 47, 81)
    assert spearmanr(sigmas, weights[-100:].mean(0)).statistic < -0.95


# Tables, length and links. `tests/bench/paper` compares the table of the paper's claims.


def test_the_table_of_methods_is_what_they_declare() -> None:
    table = table_after(DOCS / "methods.md", METHODS_MARKER)
    ours = [entry for entry in method_list.entries() if balancers.get(entry.name).__module__.startswith("balancers.")]
    assert table == method_list.markdown(ours)


def table_after(page: Path, marker: str) -> str:
    """Return the table that a command printed, which stands between ``marker`` and the mark of its end."""
    return text_of(page).partition(f"{marker}\n")[2].partition("\n<!-- end -->")[0]


@pytest.mark.slow
def test_the_tables_of_the_evidence_follow_from_what_is_kept() -> None:
    made = evidence_tables.make_so_far(ROOT / "results" / "reference" / "core")
    assert table_after(DOCS / "scores.md", SCORES_MARKER) == markdown_tables.score_table(made)
    assert table_after(DOCS / "reserved.md", RESERVED_SCORES_MARKER) == markdown_tables.score_table(made, "reserved")
    assert table_after(DOCS / "reserved.md", RESERVED_PRACTICE_MARKER) == markdown_tables.practice_table(made, True)
    assert table_after(DOCS / "results.md", PRACTICE_MARKER) == markdown_tables.practice_table(made)
    assert table_after(DOCS / "adams-memory.md", MEMORY_MARKER) == markdown_tables.memory_table(made)


def test_the_tables_of_the_advice_are_those_that_come_with_the_package() -> None:
    regrets, candidates = kept_evidence.regrets(), kept_evidence.candidates()
    assert regrets is not None
    assert candidates is not None
    assert table_after(DOCS / "advice.md", REGRETS_MARKER) == markdown_tables.regret_table(regrets)
    assert table_after(DOCS / "advice.md", CANDIDATES_MARKER) == markdown_tables.candidate_table(regrets, candidates)


def test_the_two_sets_of_seeds_differ_as_the_page_says() -> None:
    """Without a shift of each set, the mean of t² is 18/16 with two sets of ten; a shift adds ten times its square."""
    core = ROOT / "results" / "reference" / "core" / "tables"
    tables = SuiteTables(problems=pd.read_csv(core / "problems.csv"), scores=pd.read_parquet(core / "scores.parquet"))
    kinds = pd.read_csv(core / "rows.csv").set_index("balancer")["kind"]
    squares = []
    for problem in tables.problems.loc[~(tables.problems["control"] | tables.problems["reserved"]), "problem"]:
        (scores,) = pooled_scores(problem, tables)
        for label in scores.values.columns.intersection(kinds.index[kinds.isin(["method", "static"])]):
            gains = scores.gains(label, "equal")
            sets = (gains.xs(phase, level="phase") for phase in ("reported", "repeated"))
            squares.append((problem, ttest_ind(*sets).statistic ** 2))
    table = pd.DataFrame(squares, columns=["problem", "square"]).dropna()  # not every method is on every problem
    of_problem = table.groupby("problem")["square"].mean()
    shift = np.sqrt((table["square"].mean() * 16 / 18 - 1) / 10)
    assert round(4 * shift) == 1  # a quarter of a standard deviation
    assert set(of_problem.nlargest(3).index) == {"flights", "helmholtz", "multi-token"}
    assert of_problem[["burgers", "scenes"]].max() < 18 / 16
    claims = pd.read_csv(core / "claims.csv").query("claimed")
    statistic, needed = (student.isf(p / 2, 19) for p in (claims["p"], 0.05 * claims["p"] / claims["holm_p"]))
    shared = np.sqrt(((statistic / needed) ** 2 - 1) / 20)
    assert sorted(claims["problem"]) == ["burgers", "scenes"]
    assert round(1 / shared.min()) == 9
    assert round(1 / (2**0.5 * shared.min())) == 6


def test_the_changes_to_single_task_training_are_those_of_the_table() -> None:
    changes = pd.read_csv(ROOT / "results" / "reference" / "core" / "tables" / "delta_m.csv")
    means = changes.groupby(["balancer", "problem"])["delta_m"].mean()
    rows = {"equal weights": "equal", "uncertainty weighting": "uncertainty", "Nash-MTL": "nash-mtl"}
    for row, label in {**rows, "one over the initial loss": "one over the initial loss"}.items():
        assert cells_of(DOCS / "more-results.md", f"{row} |") == changes_of(means, label)


@pytest.mark.parametrize("label", ["equal", "uncertainty", "gradnorm", "nash-mtl"])
def test_scores_over_searched_weights_are_those_of_the_table(label: str) -> None:
    board = pd.read_csv(ROOT / "results" / "reference" / "tuned" / "tables" / "leaderboard.csv")
    rows = board[board["balancer"] == label].set_index("problem")
    marks = {"better": "**{}×**", "worse": "*{}×*", "tie": "{}× tie", "not settled": "{}× ?"}
    cells = [
        marks[rows.loc[problem, "static_verdict"]].format(f"{rows.loc[problem, 'static_relative']:.2f}")
        for problem in ("regression, 2 tasks", "digit-pairs", "flights", "same-tasks")
    ]
    assert cells_of(DOCS / "more-results.md", f"{label} |") == cells


@pytest.mark.parametrize(
    "page", sorted((ROOT / "results" / "reference").glob("*/report.html")), ids=lambda p: p.parent.name
)
def test_a_kept_report_is_smaller_than_1_5_megabytes(page: Path) -> None:
    assert page.stat().st_size < 1.5e6


def changes_of(means: pd.Series, label: str) -> list[str]:
    """Return the mean changes of a row on the problems of the page, as it writes them."""
    problems = ("regression, 10 tasks", "digit-pairs", "flights", "scenes", "multi-token")
    return [f"{means[label, problem]:.1f}".replace("-", "−") for problem in problems]


def cells_of(document: Path, row: str) -> list[str]:
    """Return the cells of the table's row whose first cell begins with ``row``."""
    [line] = [line for line in text_of(document).splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("page", "command", "write", "kept"),
    [
        ("cost.md", "cost.cost_markdown limits", cost_markdown.limits, COSTS),
        ("cost.md", "cost.cost_markdown methods", cost_markdown.methods, COSTS),
        ("how-it-works/norms.md", "cost.cost_markdown floor", cost_markdown.floor, COSTS),
        ("beside-other-libraries.md", "peers.peer_markdown by-hand", peer_markdown.beside_hand, PEERS),
        ("beside-other-libraries.md", "peers.peer_markdown solvers", peer_markdown.solvers, PEERS),
        ("beside-other-libraries.md", "peers.peer_markdown steps", peer_markdown.steps, PEERS),
        ("beside-other-libraries.md", "peers.peer_markdown counts", peer_markdown.counts, PEERS),
        ("beside-other-libraries.md", "peers.peer_markdown slower", peer_markdown.slower, PEERS),
        ("beside-other-libraries.md", "peers.peer_markdown gradnorm", peer_markdown.gradnorm, PEERS),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_the_tables_of_costs_are_those_of_the_files(
    page: str, command: str, write: Callable[[Path], str], kept: Path
) -> None:
    assert table_after(DOCS / page, f"<!-- python -m bench.{command} -->") == write(kept)


def test_the_table_of_costs_in_readme_is_that_of_the_files() -> None:
    assert f"\n\n{cost_markdown.groups(COSTS)}\n\n" in text_of(README)
    limits = pd.read_csv(COSTS / "limits.csv").set_index(["problem", "method"])["ratio"]
    resnet, transformer = (float(limits[problem, "gradnorm layer"]) for problem in ("ResNet-18", "transformer"))
    assert f"{resnet:.2f} on ResNet-18, {transformer:.2f} on a transformer" in " ".join(text_of(README).split())


def test_the_page_on_the_backward_pass_quotes_the_table_of_other_gradnorms() -> None:
    text = " ".join(text_of(DOCS / "how-it-works" / "one-backward-pass.md").split())
    rows = ("double backward, losses stacked", "double backward, losses kept apart", "ours |")
    stacked, apart, ours = (cells_of(BESIDE, row)[0].rpartition(" / ")[2] for row in rows)
    assert f"takes [{stacked} times an equal-weighting step]" in text
    assert f"the one that keeps losses apart {apart}. Ours takes {ours}." in text


def test_the_page_on_methods_to_choose_quotes_the_table_of_costs() -> None:
    def span(row: str) -> str:
        numbers = re.findall(r"[\d.]+", " ".join(cells_of(README, row)))
        return "{} to {}".format(*(pick(numbers, key=float) for pick in (min, max)))

    page = " ".join(text_of(DOCS / "start" / "which-method.md").split())
    assert f"methods that read losses take {span('18 methods that read only losses')} times" in page
    assert f"with a second forward pass, {span('`famo`')} times" in page
    assert f"at the last shared layer take {span('22 methods that read gradients')} times" in page
    steps = pd.read_csv(PEERS / "steps.csv", keep_default_na=False, na_values={"ratio": ""})
    is_ours = (steps["contender"] == "ours") & (steps["place"] == "parameters") & (steps["method"] != "excess-mtl")
    few, many = (steps["ratio"][is_ours & chosen] for chosen in (steps["num_tasks"] <= 10, steps["num_tasks"] == 40))
    assert f"for each task: {few.min():.1f} to {few.max():.1f} times the step with 2 to 10 tasks" in page
    assert f", and {many.min():.0f} to {many.max():.0f} times with 40;" in page


def test_pages_quote_the_tables_beside_other_libraries() -> None:
    def words(page: str) -> str:
        return " ".join(text_of(DOCS / page).split())

    features, layer, everywhere = (
        cells_of(BESIDE, f"{place} |") for place in ("features", "last shared layer", "all shared parameters")
    )
    of_torchjd = (
        f"takes {everywhere[4]} times as long as TorchJD's fastest way at all shared parameters, {layer[4]} times at a "
        f"layer and {features[4]} times at the features. At all shared parameters its peak memory is {everywhere[5]} "
    )
    assert of_torchjd in words("coming-from/torchjd.md")
    toy, mlp = ([cell.split(" / ") for cell in cells_of(BESIDE, f"`pcgrad`, {name}")] for name in ("toy", "MLP"))
    page = words("coming-from/libmtl.md")
    assert f"takes {toy[1][0]} times as long as one of equal weighting" in page
    assert f"{mlp[1][0]} times on an MLP of 4 × 512. LibMTL's takes {toy[1][2]} and {mlp[1][2]} times." in page
    page = words("how-it-works/all-shared-parameters.md")
    for side, verb in enumerate(("a whole step of PCGrad takes", "TorchJD 0.18's takes")):
        assert "{} {}, {} and {} times".format(verb, *(cell[side] for cell in mlp)) in page


def test_the_page_on_where_to_measure_quotes_both_tables() -> None:
    page = DOCS / "guides" / "where-to-measure.md"
    costs, steps = DOCS / "cost.md", [cells_of(BESIDE, f"`pcgrad`, {name}") for name in ("toy problem", "MLP")]
    toy = [cells_of(costs, f"toy problem, {num_tasks} tasks, batch 100 |") for num_tasks in (2, 10)]
    for row, (_, layer, _, features, _) in {
        "GradNorm, ResNet-18, 2 tasks": cells_of(costs, "ResNet-18"),
        "GradNorm, transformer": cells_of(costs, "transformer"),
        "GradNorm, toy problem": [" / ".join(cells) for cells in zip(*toy, strict=True)],
    }.items():
        assert cells_of(page, row) == [features, layer, ""]
    for row, (two, ten, _) in zip(("PCGrad, toy problem", "PCGrad, MLP"), steps, strict=True):
        assert cells_of(page, row) == ["", "", " / ".join(cell.split(" / ")[0] for cell in (two, ten))]


def test_readme_quotes_steps_at_all_shared_parameters() -> None:
    def span(num_tasks: int) -> str:
        cells = [
            cell
            for line in text_of(BESIDE).splitlines()
            if line.startswith(("| `pcgrad`, ", "| `nash-mtl`, "))
            and (cell := line.split(" | ")[{2: 1, 10: 2}[num_tasks]])
        ]
        ours = [cell.split(" / ")[0].strip(" |") for cell in cells]
        return "{} to {}".format(*(pick(filter(None, ours), key=float) for pick in (min, max)))

    page = " ".join(text_of(README).split())
    assert f"take {span(2)} times as long with two tasks, and {span(10)} times with ten." in page


def test_pages_quote_the_table_of_other_gradnorms() -> None:
    rows = ("ours |", "double backward, losses kept apart", "double backward, losses stacked", "`gradnorm-pytorch`")
    ours, apart, stacked, theirs = (
        "{}, {} and {} times".format(*cells_of(BESIDE, row)[0].split(" / ")) for row in rows
    )
    page = " ".join(text_of(DOCS / "coming-from" / "gradnorm-pytorch.md").split())
    assert f"takes {ours} as long" in page
    assert f"takes {theirs}." in page
    page = " ".join(text_of(DOCS / "coming-from" / "gradnorm.md").split())
    assert f"takes {ours} as long" in page
    assert f"takes {stacked}, and one over separate losses {apart} " in page


def test_the_page_on_other_libraries_names_all_methods_whose_gradients_differ() -> None:
    steps = pd.read_csv(PEERS / "steps.csv")
    largest = steps[steps["gradient_deviation"] >= CLEAN].groupby(["contender", "method"])["gradient_deviation"].max()
    quoted = {
        ("TorchJD", "upgrad"): "UPGrad (by up to 17 %)",
        ("TorchJD", "dual-proj"): "DualProj (14 %)",
        ("TorchJD", "mgda"): "MGDA (243 %)",
        ("TorchJD", "nash-mtl"): "Nash-MTL in three cells (85 to 99.5 %",
        ("TorchJD", "config"): "ConFIG on ResNet-18 at all shared parameters (100 %)",
        ("LibMTL", "mgda"): "LibMTL's MGDA (54 %)",
    }
    assert set(largest.index) == set(quoted)
    text = " ".join(text_of(BESIDE).split())
    for method, words in quoted.items():
        assert words in text
        assert float(re.findall(r"[\d.]+(?= %)", words)[-1]) == pytest.approx(100 * largest[method], abs=0.5)


@pytest.mark.parametrize(
    "marker",
    [
        *(METHODS_MARKER, SCORES_MARKER, PRACTICE_MARKER, REGRETS_MARKER, CANDIDATES_MARKER),
        "<!-- lossbench paper -->",
    ],
)
def test_a_generated_table_has_one_place(marker: str) -> None:
    assert sum(text_of(document).count(f"{marker}\n") for document in DOCUMENTS) == 1


def test_readme_is_a_page() -> None:
    assert len(text_of(README).splitlines()) <= LONGEST_README


@pytest.mark.parametrize(("document", "target"), LINKS)
def test_a_link_leads_to_a_file_and_to_a_heading_in_it(document: str, target: str) -> None:
    path, _, anchor = unquote(target).partition("#")
    file = (ROOT / document).parent / path if path else ROOT / document
    if file.name == "report.html" and not (ROOT / ".git").exists():
        pytest.skip("the source distribution leaves out the reports, which are large")
    assert file.exists(), f"{document} links to {path}, which does not exist"
    assert file.resolve().is_relative_to(ROOT), f"{document} links to {path}, which is not in the repository"
    if anchor:
        assert anchor in anchors_of(file), f"{document} links to #{anchor}, which {file.name} does not have"


def test_the_index_of_the_documentation_names_every_page() -> None:
    index = DOCS / "README.md"
    pages = {str(document.relative_to(DOCS)) for document in DOCUMENTS if document not in (README, index)}
    assert {link for link in links_in(index) if link.endswith(".md") and not link.startswith("../")} == pages


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_a_program_stands_on_one_page(program: Path) -> None:
    included = re.compile(rf"^```{{literalinclude}} ../../examples/{program.name}$", re.MULTILINE)
    pages = [document.name for document in DOCUMENTS if included.search(text_of(document))]
    assert len(pages) == 1


def test_every_page_of_the_documentation_can_be_reached_from_readme() -> None:
    reached, to_visit = set(), [README]
    while to_visit:
        document = to_visit.pop()
        reached.add(document)
        targets = [(document.parent / link.partition("#")[0]).resolve() for link in links_in(document)]
        to_visit += [target for target in targets if target in DOCUMENTS and target not in reached]
    assert reached == set(DOCUMENTS)
