"""Keep of each part of the evidence what the analysis reads, and join the parts again.

A part's tables hold all scores of the last checkpoints of reported, repeated and baseline runs, and the primary scores
of tuning runs and of the reported runs' best checkpoints. What each step was like is not kept.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bench.analysis import SuiteTables, primary_rows
from bench.run import atomic_file

BASE = ("problems", "metrics", "runs", "scores", "selection", "retuning", "costs")
"""The tables that are joined to the tables of a suite."""
OTHERS = ("baselines",)
"""The tables that are joined as they are."""
RUN = ["problem", "balancer", "phase", "lr", "seed"]
"""The columns that identify a run, and are written in place of its key."""


def keep(tables: Path, kept: Path) -> None:
    """Copy what is kept of the ``tables`` folder of a part's results into the folder ``kept``.

    The scores are written last: a part that has them is whole, see `evidence_parts.is_kept`.
    """
    found = {path.stem: pd.read_parquet(path) for path in tables.glob("*.parquet") if path.stem in (*BASE, *OTHERS)}
    found["scores"] = _compact(found.pop("scores"), found["problems"])
    for name, table in found.items():
        atomic_file.write_parquet(kept / f"{name}.parquet", table)


def joined(folders: Iterable[Path]) -> tuple[SuiteTables, dict[str, pd.DataFrame]]:
    """Return the tables of the parts in ``folders`` as those of one suite, and the tables of `OTHERS` by name."""
    parts = [{path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")} for folder in folders]
    tables = {
        name: pd.concat([part[name] for part in parts if name in part], ignore_index=True)
        for name in (*BASE, *OTHERS)
        if any(name in part for part in parts)
    }
    keys = tables["runs"].drop_duplicates(RUN)[[*RUN, "key"]]
    tables["scores"] = tables["scores"].merge(keys, on=RUN, how="left", validate="many_to_one")
    others = {name: tables.pop(name) for name in OTHERS if name in tables}
    return SuiteTables(**tables), others


def _compact(scores: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    whole = (scores["checkpoint"] == "last") & (scores["phase"] != "tuning")
    best = (scores["checkpoint"] == "best") & (scores["phase"] == "reported")
    part = (scores["checkpoint"] == "last") & (scores["phase"] == "tuning") | best
    primary = primary_rows(scores[part], problems)[scores.columns]
    return pd.concat([scores[whole], primary], ignore_index=True).drop(columns="key")
