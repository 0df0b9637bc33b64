"""Prepare the page's tables as text: choose their rows and columns, and write each number."""

from base64 import b64encode
from typing import TypedDict

import pandas as pd

from bench.analysis import primary_rows
from bench.style.numbers import NOTHING, interval, number, quantity, rate, relative, span, step_ratio
from bench.style.short_label import short
from bench.style.small_file import small_picture

from . import evidence, step_ratios
from .results_folder import Facts, Results
from .task_tables import TaskTable, task_table
from .text_grid import TextGrid
from .verdict_wording import finding, seeds

TIMED = ("step", "forward", "backward", "optimizer")
OF_STEP = ("ratio_to_equal", "ratio_low", "ratio_high", "flops", "operator_calls", "peak_bytes")
SIZES = {6: "flops", 8: "peak_bytes"}
"""The columns of the costs of a step that are written with a metric prefix, by their places in the table."""


class Overview(TypedDict):
    """A table of all methods on several problems.

    Attributes:
        places: positions in the suite of the problems that have a column, in the order of these columns.
        first: number of columns before the first problem's.
    """

    caption: str
    header: list[str]
    places: list[int]
    first: int
    rows: list[list[str]]


class Sheet(TypedDict):
    """Everything that the page says about one problem.

    Attributes:
        place: position of the problem in the suite.
        picture: the problem's picture as a ``data:`` URI; empty if there is none.
        caption: caption of the picture.
        finding: sentence on what the leaderboard shows.
        seeds: number of seeds in words.
        cost_notes: sentences on how far the times of steps can be relied on.
        target_score: the score to reach, as text.
        runs: all runs with the commands that repeat them; None for the evidence, whose runs are in the folders of its
            parts.
    """

    place: int
    facts: Facts
    picture: str
    caption: str
    finding: str
    seeds: str
    board: list[dict[str, str]]
    tasks: TaskTable | None
    baselines: TextGrid | None
    target: TextGrid | None
    target_score: str
    costs: list[TextGrid]
    cost_notes: list[str]
    selection: list[TextGrid]
    runs: TextGrid | None


def sheets(results: Results) -> list[Sheet]:
    """Return one sheet per problem, in the suite's order."""
    return [_sheet(place, problem, results.only(problem)) for place, problem in enumerate(results.problems)]


def _sheet(place: int, problem: str, results: Results) -> Sheet:
    picture = results.picture(problem)
    return {
        "place": place,
        "facts": results.facts(problem),
        "picture": _data_uri(picture.png) if picture.png else "",
        "caption": picture.caption,
        "finding": finding(problem, results.board, results),
        "seeds": seeds(results.board) if len(results.board) else "",
        "board": [_board_row(row, results) for _, row in results.board.iterrows()],
        "tasks": task_table(results),
        "baselines": _baselines(results),
        "target": None if results.several_lengths else evidence.target_grid(results),
        "target_score": evidence.target_value(results),
        "costs": costs(results),
        "cost_notes": [text for text in (step_ratios.noise(results), step_ratios.warning(results)) if text],
        "selection": selection(results),
        "runs": None if results.has_claims else _runs(results),
    }


def _data_uri(png: bytes) -> str:
    kind, content = small_picture(png)
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def overviews(results: Results) -> list[Overview]:
    """Return tables of every method on every problem that is not a control.

    One table compares with equal weighting, one with static weights, one has the time-to-target; those without data are
    left out. The list is empty if there are fewer than two such problems or no equal weighting.
    """
    board = results.evidence
    problems = results.problems_in(board)
    if len(problems) < 2 or results.baseline is None:
        return []
    roles = results.roles.by_label
    claimed = "confirmatory" in roles.values()
    changes, _ = evidence.change(results)
    labels = results.balancers_in(board)
    tables: list[Overview] = []

    def add(caption: str, cells: dict[tuple[str, str], str], beside: dict[str, dict[str, str]]) -> None:
        with_roles = claimed and not tables  # the first table is enough
        head = ["Method", "Role"] if with_roles else ["Method"]
        rows = [
            [
                *([label, roles[label]] if with_roles else [label]),
                *(cells.get((label, problem), NOTHING) for problem in problems),
                *(column.get(label, NOTHING) for column in beside.values()),
            ]
            for label in labels
        ]
        places = [results.problems.index(problem) for problem in problems]
        header = [*head, *problems, *beside]
        tables.append({"caption": caption, "header": header, "places": places, "first": len(head), "rows": rows})

    for against, relative_column, verdict_column in (
        (results.baseline, "relative", "verdict"),
        (results.roles.static, "static_relative", "static_verdict"),
    ):
        compared = against is not None and board[relative_column].notna().any()
        if compared:
            cells = {
                (row["balancer"], row["problem"]): _against(row["scale"], row[relative_column], row[verdict_column])
                for _, row in board.iterrows()
            }
            beside = {} if tables else ({"Δm, %": changes} if changes else {}) | _step_times(board, labels)
            add(f"Compared with {against}", cells, beside)
    target = results.tables["target"]
    if len(target) and not results.several_lengths:
        timed = bool(target["of_seconds"].notna().any())
        column = "of_seconds" if timed else "of_steps"
        cells = {
            (row["balancer"], row["problem"]): evidence.part(
                *row[[column, f"{column}_low", f"{column}_high"]].astype(float)
            )
            for _, row in target.iterrows()
        }
        what = "Time" if timed else "Steps"
        equals = f"{results.baseline}'s"
        add(f"{what} to reach {equals} final score, as a fraction of {equals} whole training", cells, {})
    return tables


def _step_times(board: pd.DataFrame, labels: list[str]) -> dict[str, dict[str, str]]:
    spans = {}
    for label in labels:
        steps = board.loc[board["balancer"] == label, "step_ratio"].astype(float).dropna()
        spans[label] = span(steps) + "×" if len(steps) else NOTHING
    return {"Time of a step": spans}


def _against(scale: str, mean: float, verdict: str) -> str:
    """Write a comparison with its verdict in the place of the interval: ``0.62× [better]``."""
    if not pd.notna(mean):
        return NOTHING
    bare = relative(scale, mean, float("nan"), float("nan"))
    return f"{bare} [{verdict}]" if verdict else bare


def _board_row(row: pd.Series, results: Results) -> dict[str, str]:
    return {
        "balancer": row["balancer"],
        "lr": rate(row["lr"]),
        "edge": "edge" if row["grid_edge"] else "",
        "score": interval(row["score"], row["score_low"], row["score_high"]),
        "best_score": interval(row["best_score"], row["best_score_low"], row["best_score_high"]),
        "relative": relative(row["scale"], row["relative"], row["relative_low"], row["relative_high"]),
        "verdict": row["verdict"],
        "static": relative(row["scale"], row["static_relative"], row["static_low"], row["static_high"]),
        "static_verdict": row["static_verdict"],
        "step_ratio": step_ratios.full(row, results),
        "failed": f"{row['failed']} of {row['seeds']}" if row["failed"] else "",
    }


def _baselines(results: Results) -> TextGrid | None:
    """Return a table of each task's metrics under a constant predictor, equal weighting and single-task training.

    None if fewer than two of these were measured.
    """
    rows = results.tables["baselines"]
    columns = {"constant": "Constant", "equal": short(results.baseline or "equal"), "single_task": "Task alone"}
    columns = {name: head for name, head in columns.items() if rows[name].notna().any()}
    if len(columns) < 2:
        return None
    return {
        "title": "",
        "header": ["Metric on the test split", "Direction", *columns.values()],
        "rows": [
            [
                f"{row['metric']}{f' ({unit})' if (unit := row['unit']) else ''}",
                "higher is better" if row["higher_is_better"] else "lower is better",
                *(_with_deviation(row[name], row.get(f"{name}_sd", float("nan"))) for name in columns),
            ]
            for _, row in rows.iterrows()
        ],
        "marked": set(),
    }


def _with_deviation(mean: float, deviation: float) -> str:
    """Write ``0.412 [± 0.003]``; the page puts the bracket below the mean."""
    return number(mean) + (f" [± {number(deviation, 2)}]" if deviation > 0 else "")


def _runs(results: Results) -> TextGrid:
    """Return a table of every run, with its scores and the command that repeats it."""
    scores = primary_rows(results.tables["scores"], results.tables["problems"])
    last = scores[scores["checkpoint"] == "last"].set_index(["key", "split"])["value"].astype(float)
    last = last[~last.index.duplicated()]
    rows = []
    for _, run in results.tables["runs"].iterrows():
        values = [last.get((run["key"], split), float("nan")) for split in ("validation", "test")]
        rows.append(
            [
                *(run["balancer"], run["phase"], rate(run["lr"]), str(run["seed"]), run["status"]),
                *(number(float(value), digits=4) for value in values),
                f"lossbench once {results.name} {run['key']}",
            ]
        )
    header = ["Method", "Phase", "Learning rate", "Seed", "Status", "Validation", "Test", "Command to repeat it"]
    return {"title": "", "header": header, "rows": rows, "marked": set()}


def costs(results: Results) -> list[TextGrid]:
    """Return the cost of a step, one table per problem and device."""
    grids: list[TextGrid] = []
    for (_, device), rows in results.tables["costs"].groupby(["problem", "device"], sort=False):
        labels = results.balancers_in(rows)
        steps = rows[rows["part"] == "step"].set_index("balancer")[["flops", "peak_bytes"]].astype(float)
        sizes = [(i, column, size) for column, of in SIZES.items() for i, size in enumerate(steps[of].reindex(labels))]
        grids.append(
            {
                "title": f"{results.machine(str(device))}, {_threads(int(rows['threads'].iloc[0]))}",
                "header": [
                    *("Method", "Step, ms", "Forward", "Backward with balancing", "Optimiser"),
                    *("Step relative to equal", "Floating-point operations", "Operator calls", "Peak memory"),
                ],
                "rows": [_cost_row(label, rows[rows["balancer"] == label].set_index("part")) for label in labels],
                "marked": set(),
                "sort": {(i, column): float(size) for i, column, size in sizes if pd.notna(size)},
            }
        )
    return grids


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _cost_row(label: str, parts: pd.DataFrame) -> list[str]:
    times = [
        interval(median, low, high, digits=3)
        for median, low, high in parts.loc[[*TIMED], ["median_ms", "q25_ms", "q75_ms"]].astype(float).to_numpy()
    ]
    ratio, low, high, flops, calls, peak = parts.loc[["step"], [*OF_STEP]].astype(float).to_numpy()[0]
    return [
        label,
        *times,
        step_ratio(ratio, low, high),
        quantity(flops, "FLOP"),
        number(calls, digits=6).partition(".")[0],
        quantity(peak, "B"),
    ]


def micro(results: Results) -> list[TextGrid]:
    """Return the micro-benchmark as one table, with columns for CUDA only if CUDA was measured."""
    table = results.tables["micro"]
    if table.empty:
        return []
    cuda = "cuda_ms" in table and bool(table["cuda_ms"].notna().any())
    rows = []
    for _, row in table.sort_values(["what", "num_tasks"]).iterrows():
        cells = [row["what"], str(row["num_tasks"]), number(row["cpu_ms"])]
        rows.append([*cells, number(row["cuda_ms"]), number(row["cpu_ms"] / row["cuda_ms"])] if cuda else cells)
    header = ["Timed part of GradNorm", "Tasks", "CPU, ms", *(["CUDA, ms", "CPU time / CUDA time"] if cuda else [])]
    return [{"title": "", "header": header, "rows": rows, "marked": set()}]


def selection(results: Results) -> list[TextGrid]:
    """Return the mean validation scores at each learning rate, one table per problem, with the chosen rates marked."""
    grids: list[TextGrid] = []
    table = results.tables["selection"]
    for problem in results.problems_in(table):
        rows = table[table["problem"] == problem]
        rates = sorted(rows["lr"].unique())
        labels = results.balancers_in(rows)
        cells, marked = [], set()
        for place, label in enumerate(labels):
            of_method = rows[rows["balancer"] == label].set_index("lr")
            scores = of_method["mean_validation_score"].astype(float).reindex(rates)
            cells.append([label, *(number(score) for score in scores)])
            marked |= {(place, 1 + rates.index(lr)) for lr in of_method.index[of_method["chosen"].astype(bool)]}
        header = ["Method", *(rate(lr) for lr in rates)]
        grids.append({"title": "", "header": header, "rows": cells, "marked": marked})
    return grids


def failures(results: Results) -> list[TextGrid]:
    """Return a table of every failed run with the reason; empty if none failed."""
    runs = results.tables["runs"]
    failed = runs[runs["status"] == "failed"]
    if failed.empty:
        return []
    rows = [
        [row["balancer"], row["problem"], row["phase"], rate(row["lr"]), str(row["seed"]), row["reason"]]
        for _, row in failed.iterrows()
    ]
    header = ["Method", "Problem", "Phase", "Learning rate", "Seed", "Reason"]
    return [{"title": "", "header": header, "rows": rows, "marked": set()}]


def flat(settings: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to pairs such as ``("versions, torch", "2.13.0")``; empty values are left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            pairs += flat(value, f"{name}, ")
        elif isinstance(value, bool):
            pairs.append((name, "yes" if value else "no"))
        elif value not in (None, "", []):
            pairs.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return pairs
