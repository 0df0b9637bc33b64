"""Read a results folder: its tables, its suite, and the facts about the machine that it was run on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from bench.analysis import Roles, SuiteTables, failed_gates, leaderboard, suite_tables
from bench.analysis.balancing_claims import COLUMNS as CLAIMS
from bench.analysis.balancing_claims import DETECTABLE
from bench.analysis.baselines import COLUMNS as BASELINES
from bench.analysis.controls import COLUMNS as CONTROLS
from bench.analysis.equivalent_steps import DOUBLING
from bench.analysis.free_choice import COLUMNS as FREE
from bench.analysis.gates import COLUMNS as GATES
from bench.analysis.leaderboard import COLUMNS as LEADERBOARD
from bench.analysis.paying_methods import COLUMNS as PAYS
from bench.analysis.pooled_comparisons import COLUMNS as COMPARISONS
from bench.analysis.repeated_seeds import COLUMNS as REPEATED
from bench.analysis.step_length import COLUMNS as STEP_LENGTH
from bench.analysis.target_time import COLUMNS as TARGET
from bench.analysis.training_scores import COLUMNS as TRAINING
from bench.run import result_picture, suite_origin, suite_text
from bench.run.atomic_file import BadFileError
from bench.run.result_picture import Picture
from bench.run.suite_text import SuiteText

from .stored_table import read_json, read_table, require_same_runs

EVIDENCE = "core"
"""The suite that a folder with the evidence's tables is of, whatever the folder's name."""
BASE = ("problems", "metrics", "runs", "scores", "curves", "selection", "retuning", "costs")
"""Names of the tables that derived tables are made from."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    **{name: suite_tables.COLUMNS[name] for name in BASE},
    "trajectory": ("key", "problem", "balancer", "phase", "lr", "seed", "step", "task", "loss", "weight"),
    "dynamics": ("key", "problem", "balancer", "phase", "lr", "seed", "step", "weight_sum", "trunk_update_norm"),
    "micro": ("num_tasks", "what", "cpu_ms"),
    "front": ("problem", "balancer", "lr", "task", "metric", "higher_is_better", "validation", "searched"),
    "target": tuple(TARGET),
    "repeated": tuple(REPEATED),
    "controls": tuple(CONTROLS),
    "delta_m": ("problem", "balancer", "seed", "delta_m"),
    "baselines": tuple(BASELINES),
    # Only the evidence has these; `bench.evidence` makes them.
    "rows": ("balancer", "kind", "family"),
    "parts": ("table", "problem", "there"),
    "comparisons": ("table", *COMPARISONS),
    "claims": tuple(CLAIMS),
    "detectable": tuple(DETECTABLE),
    "gates": tuple(GATES),
    "doubling": tuple(DOUBLING),
    "pays": tuple(PAYS),
    "practice": ("column", *PAYS),
    "step_length": tuple(STEP_LENGTH),
    "free": tuple(FREE),
    "training_scores": tuple(TRAINING),
}
"""The columns that each table has at least. A table that is not in the folder is read as an empty one with these."""


@dataclass(frozen=True)
class Facts:
    """The facts about a problem in a suite.

    ``score`` is the name of its primary metric with its unit, and ``description`` says what it is; results stored by
    earlier versions lack it.
    """

    problem: str
    summary: str
    tasks: str
    samples: str
    num_tasks: int
    steps: int
    batch_size: int
    higher_is_better: bool
    score: str
    description: str

    @property
    def direction(self) -> str:
        """The direction in which the score improves, in words."""
        return "higher is better" if self.higher_is_better else "lower is better"


@dataclass(frozen=True)
class Results:
    """A results folder in memory.

    Attributes:
        path: The folder.
        description: The suite's description; empty if it has none.
        suite_toml: The text of the suite's file.
        environment: The facts about machine and software that the runs were made with.
        balancers: The labels of the balancers, in the suite's order.
        baseline: The label of equal weighting; None if the suite does not have it.
        roles: The roles of the balancers.
        tables: The tables by name, except the leaderboard. A table that the folder lacks is empty.
        board: The leaderboard.
        ranking: Whether the leaderboard may be read as a ranking.
    """

    path: Path
    description: str
    suite_toml: str
    environment: dict[str, object]
    balancers: tuple[str, ...]
    baseline: str | None
    roles: Roles
    tables: dict[str, pd.DataFrame] = field(repr=False)
    board: pd.DataFrame = field(repr=False)
    ranking: bool

    @property
    def name(self) -> str:
        """The suite's name."""
        return self.path.name

    @property
    def problems(self) -> list[str]:
        """The problems' labels, in the suite's order."""
        return list(self.tables["problems"]["problem"])

    @property
    def has_claims(self) -> bool:
        """Whether the folder has the tables that only the evidence has."""
        return bool(len(self.tables["rows"]))

    @property
    def failed_gates(self) -> set[str]:
        """The balancers that fail the gate of a control, or were not run on one that others were run on."""
        return failed_gates(self.tables["gates"])

    @property
    def several_lengths(self) -> bool:
        """Whether the suite trains equal weighting for several numbers of steps; then time-to-target is not shown."""
        entries = suite_text.parse(self.suite_toml).values["balancers"]
        return any(entry.get("times_steps", 1) != 1 for entry in entries)

    @property
    def evidence(self) -> pd.DataFrame:
        """The rows of the leaderboard about problems that are not controls."""
        table = self.tables["problems"]
        return self.board[~self.board["problem"].isin(table.loc[table["control"].astype(bool), "problem"])]

    def only(self, problem: str) -> "Results":
        """Return the same results, restricted to one problem."""
        tables = {
            name: table[table["problem"] == problem] if "problem" in table else table
            for name, table in self.tables.items()
        }
        return replace(self, tables=tables, board=self.board[self.board["problem"] == problem])

    def problems_in(self, frame: pd.DataFrame) -> list[str]:
        """Return the problems that have a row in ``frame``, in the suite's order."""
        present = set(frame["problem"])
        return [problem for problem in self.problems if problem in present]

    def balancers_in(self, frame: pd.DataFrame) -> list[str]:
        """Return the balancers that have a row in ``frame``, in the suite's order."""
        present = set(frame["balancer"])
        return [balancer for balancer in self.balancers if balancer in present]

    def facts(self, problem: str) -> Facts:
        """Return the facts about the problem with the label ``problem``."""
        table = self.tables["problems"]
        row = table[table["problem"] == problem].iloc[0]
        unit = f" ({row['unit']})" if row["unit"] else ""
        description = row.get("description")
        return Facts(
            problem=problem,
            summary=str(row["summary"]),
            tasks=str(row["tasks"]),
            samples=str(row["samples"]),
            num_tasks=int(row["num_tasks"]),
            steps=int(row["steps"]),
            batch_size=int(row["batch_size"]),
            higher_is_better=bool(row["higher_is_better"]),
            score=f"{row['primary']}{unit}",
            description=description if isinstance(description, str) else "",
        )

    def picture(self, problem: str) -> Picture:
        """Return the picture of the problem's data and of a model's output after training with equal weighting.

        If the folder has none, return an empty picture.
        """
        runs = self.reported("runs")
        of_equal = runs[(runs["problem"] == problem) & (runs["balancer"] == self.baseline)]
        pictures = (result_picture.load(result_picture.path(self.path, key)) for key in of_equal["key"])
        return next((picture for picture in pictures if picture.png), Picture(b"", ""))

    @property
    def timed_on(self) -> str | None:
        """The device whose step times are in ``board``: the first that was measured. None if none was."""
        devices = self.tables["costs"]["device"]
        return None if devices.empty else str(devices.iloc[0])

    def machine(self, device: str) -> str:
        """Return ``device`` with its model: ``CPU (AMD EPYC)``."""
        model = self.environment.get({"cpu": "processor", "cuda": "gpu"}.get(device, ""))
        return f"{device.upper()} ({model})" if model else device.upper()

    def reported(self, table: str) -> pd.DataFrame:
        """Return the rows of a table that belong to reported runs."""
        return self.tables[table][self.tables[table]["phase"] == "reported"]


def load(path: Path) -> Results:
    """Read ``results/<suite>``.

    The tables are read from Parquet or CSV, see `read_table`; a table that the folder lacks is empty. Two tables are
    made again if the folder lacks them: the leaderboard from the other tables, and ``metrics`` from the table of
    baselines.

    Raises:
        FileNotFoundError: The folder was not written by a suite, or lacks the tables of runs, problems or scores.
        BadFileError: A file is damaged, a table lacks a column, or the tables are of another suite than the folder's.
    """
    path = path.resolve()
    for file in (suite_text.KEPT, "environment.json"):
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path} is not the results folder of a suite: it has no {file}")
    try:
        suite = suite_text.read(path / suite_text.KEPT)
    except ValueError as error:
        raise BadFileError(f"{path / suite_text.KEPT} can't be read: {error}") from error
    _require_entries(path, suite)
    is_users = suite_origin.is_users(path) or bool(suite.values.get("plugins"))
    name = EVIDENCE if (path / "tables" / "gates.csv").is_file() else path.name  # it may be written anywhere
    roles = suite.roles("" if is_users else name)
    stored = {name: read_table(path, name) for name in COLUMNS}
    for name in ("runs", "problems", "scores"):
        if stored[name] is None:
            raise FileNotFoundError(f"{path} is not the results folder of a suite: it has no tables/{name}")
    tables = {name: _checked(path, name, stored[name], columns) for name, columns in COLUMNS.items()}
    require_same_runs(path, tables["runs"], tables["scores"], tables["problems"])
    _require_balancers(path, tables["runs"], roles)
    if stored["metrics"] is None:  # the table of baselines names all metrics that belong to a task
        tables["metrics"] = tables["baselines"][list(COLUMNS["metrics"])]
    board = read_table(path, "leaderboard")
    if board is None:
        board = leaderboard(SuiteTables(**{name: tables[name] for name in BASE}), roles)
    return Results(
        path=path,
        description=suite.description,
        suite_toml=suite.text,
        environment=read_json(path / "environment.json"),
        balancers=tuple(roles.by_label),
        baseline=roles.equal,
        roles=roles,
        tables=tables,
        board=_checked(path, "leaderboard", board, tuple(LEADERBOARD)),
        ranking=not board.empty and bool(board["ranking"].all()),
    )


def _require_entries(folder: Path, suite: SuiteText) -> None:
    """Raise a `BadFileError` if the suite that the folder keeps has no problems or no balancers, each with a name."""
    for kind in ("problems", "balancers"):
        entries = suite.values.get(kind)
        if not isinstance(entries, list) or not all(isinstance(each, dict) and "name" in each for each in entries):
            raise BadFileError(f"{folder / suite_text.KEPT} is no suite: it has no [[{kind}]] with names")


def _require_balancers(folder: Path, runs: pd.DataFrame, roles: Roles) -> None:
    """Raise a `BadFileError` if the tables have a balancer that the folder's suite lacks: a report would leave it out.

    Baselines and points of the front of static weights are no balancers of the suite.
    """
    reported = dict.fromkeys(runs.loc[runs["phase"] == "reported", "balancer"])
    if others := [label for label in reported if label not in roles.by_label]:
        raise BadFileError(
            f"the tables in {folder} have results of {', '.join(others)}, which {suite_text.KEPT} there lacks: the two "
            "are of different suites; the command that made the tables makes both again from the runs that are kept"
        )


def _checked(folder: Path, name: str, table: pd.DataFrame | None, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return ``table``, or an empty one if it is None; raise if it lacks one of the ``columns``."""
    if table is None:
        return pd.DataFrame(columns=list(columns))
    missing = [column for column in columns if column not in table]
    if missing:
        raise BadFileError(f"the table {name} in {folder} has no column {', '.join(missing)}")
    return table
