"""Read a results folder: its tables, its suite and what it was run on."""

import json
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from bench.analysis import Cast, cast, is_ranking, leaderboard
from bench.analysis.controls import COLUMNS as CONTROLS
from bench.analysis.repeated_seeds import COLUMNS as REPEATED
from bench.analysis.target_time import COLUMNS as TARGET
from bench.run import result_picture
from bench.run.result_picture import Picture

# What a table has at least, so that one that wasn't written (no timing, no grid) reads as an empty one.
COLUMNS = {
    "runs": ("key", "problem", "balancer", "phase", "lr", "seed", "status", "reason", "steps"),
    "scores": (
        *("key", "problem", "balancer", "phase", "lr", "seed"),
        *("checkpoint", "split", "metric", "task", "value", "imputed"),
    ),
    "curves": ("key", "problem", "balancer", "phase", "lr", "seed", "step", "metric", "task", "value"),
    "trajectory": ("key", "problem", "balancer", "phase", "lr", "seed", "step", "task", "loss", "weight"),
    "dynamics": ("key", "problem", "balancer", "phase", "lr", "seed", "step", "weight_sum", "trunk_update_norm"),
    "costs": (
        *("problem", "balancer", "device", "threads", "part", "median_ms", "q25_ms", "q75_ms"),
        *("ratio_to_equal", "ratio_low", "ratio_high", "flops", "operator_calls", "peak_bytes"),
    ),
    "micro": ("num_tasks", "what", "cpu_ms"),
    "selection": ("problem", "balancer", "lr", "mean_validation_score", "chosen", "grid_edge"),
    "metrics": ("problem", "metric", "task", "unit", "higher_is_better"),
    "front": ("problem", "balancer", "lr", "task", "metric", "higher_is_better", "validation", "searched"),
    "problems": (
        *("problem", "name", "summary", "num_tasks", "tasks", "samples"),
        *("primary", "higher_is_better", "unit", "steps", "batch_size", "control"),
    ),
    "target": tuple(TARGET),
    "repeated": tuple(REPEATED),
    "controls": tuple(CONTROLS),
    "delta_m": ("problem", "balancer", "seed", "delta_m"),
    "baselines": (
        *("problem", "task", "metric", "unit", "higher_is_better", "seeds"),
        *("constant", "equal", "equal_sd", "single_task", "single_task_sd"),
    ),
}


@dataclass(frozen=True)
class Facts:
    """What a suite says of a problem. ``score`` is its primary metric's name with its unit."""

    problem: str
    summary: str
    tasks: str
    samples: str
    num_tasks: int
    steps: int
    batch_size: int
    higher_is_better: bool
    score: str

    @property
    def direction(self) -> str:
        """Which way the score improves."""
        return "higher is better" if self.higher_is_better else "lower is better"


@dataclass(frozen=True)
class Results:
    """A results folder in memory.

    ``balancers`` are the labels in the suite's order, ``parts`` says which of them is what, and ``baseline`` is that of
    equal weighting (None where it isn't in the suite); ``board`` is the leaderboard and ``ranking`` whether it may be
    read as one.
    """

    path: Path
    description: str
    suite_toml: str
    environment: dict[str, object]
    balancers: tuple[str, ...]
    baseline: str | None
    parts: Cast
    tables: dict[str, pd.DataFrame] = field(repr=False)
    board: pd.DataFrame = field(repr=False)
    ranking: bool

    @property
    def name(self) -> str:
        """The suite's name."""
        return self.path.name

    @property
    def problems(self) -> list[str]:
        """The problems' labels in the suite's order."""
        return list(self.tables["problems"]["problem"])

    @property
    def evidence(self) -> pd.DataFrame:
        """The leaderboard of the problems that are no controls."""
        table = self.tables["problems"]
        return self.board[~self.board["problem"].isin(table.loc[table["control"].astype(bool), "problem"])]

    def only(self, problem: str) -> "Results":
        """The same with nothing but what concerns one problem."""
        tables = {
            name: table[table["problem"] == problem] if "problem" in table else table
            for name, table in self.tables.items()
        }
        return replace(self, tables=tables, board=self.board[self.board["problem"] == problem])

    def problems_in(self, frame: pd.DataFrame) -> list[str]:
        """The problems that a table has rows of, in the suite's order."""
        found = set(frame["problem"])
        return [problem for problem in self.problems if problem in found]

    def balancers_in(self, frame: pd.DataFrame) -> list[str]:
        """The balancers that a table has rows of, in the suite's order."""
        found = set(frame["balancer"])
        return [balancer for balancer in self.balancers if balancer in found]

    def facts(self, problem: str) -> Facts:
        """The row of the problems table with the label ``problem``."""
        table = self.tables["problems"]
        row = table[table["problem"] == problem].iloc[0]
        unit = f" ({row['unit']})" if row["unit"] else ""
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
        )

    def picture(self, problem: str) -> Picture:
        """What the problem's data look like, and what a model trained with equal weighting makes of them."""
        runs = self.reported("runs")
        ours = runs[(runs["problem"] == problem) & (runs["balancer"] == self.baseline)]
        found = (result_picture.load(result_picture.path(self.path, key)) for key in ours["key"])
        return next((picture for picture in found if picture.png), Picture(b"", ""))

    @property
    def timed_on(self) -> str | None:
        """The device whose step times are in ``board``: the first that was measured."""
        devices = self.tables["costs"]["device"]
        return None if devices.empty else str(devices.iloc[0])

    def machine(self, device: str) -> str:
        """``device`` and what it was: ``CPU (AMD EPYC)``."""
        model = self.environment.get({"cpu": "processor", "cuda": "gpu"}.get(device, ""))
        return f"{device.upper()} ({model})" if model else device.upper()

    def reported(self, table: str) -> pd.DataFrame:
        """The rows of a table that are of reported runs."""
        return self.tables[table][self.tables[table]["phase"] == "reported"]


def load(path: Path) -> Results:
    """Read ``results/<suite>``.

    Raises:
        FileNotFoundError: The folder isn't one that a suite wrote.
        ValueError: A table lacks a column.
    """
    path = path.resolve()
    for needed in ("suite.toml", "environment.json", "tables/runs.parquet", "tables/problems.parquet"):
        if not (path / needed).is_file():
            raise FileNotFoundError(f"{path} is not the results folder of a suite: it has no {needed}")
    suite_toml = (path / "suite.toml").read_text(encoding="utf-8")
    suite = tomllib.loads(suite_toml)
    parts = cast(path.name, suite["balancers"])
    labels = tuple(parts.roles)
    tables = {name: _read(path / "tables" / f"{name}.parquet", columns) for name, columns in COLUMNS.items()}
    costs = tables["costs"]
    return Results(
        path=path,
        description=suite.get("description", ""),
        suite_toml=suite_toml,
        environment=json.loads((path / "environment.json").read_text(encoding="utf-8")),
        balancers=labels,
        baseline=parts.equal,
        parts=parts,
        tables=tables,
        board=leaderboard(
            tables["runs"],
            tables["scores"],
            tables["problems"],
            tables["selection"],
            costs[costs["device"] == costs["device"].iloc[0]] if len(costs) else costs,
            labels,
            parts.equal,
            parts.static,
        ),
        ranking=is_ranking(tables["runs"], tables["selection"]),
    )


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    table = pd.read_parquet(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    return table
