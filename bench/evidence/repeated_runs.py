"""Repeat runs of the evidence, and compare their scores with those that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bench.analysis import primary_rows
from bench.execute.workforce import Workforce
from bench.run.result_store import ResultStore
from bench.suite import plan, result_tables
from bench.suite.plan import Planned

from .evidence_parts import EvidencePart

ROW = ["balancer", "seed"]


@dataclass(frozen=True)
class Repetition:
    """Scores of repeated runs of a part.

    ``scores`` has a row per run, with the columns ``kept`` and ``now``; a run that failed has no number there.
    """

    part: str
    scores: pd.DataFrame

    @property
    def differing(self) -> pd.DataFrame:
        """The rows whose score is another number now, or is there only once."""
        kept, now = self.scores["kept"], self.scores["now"]
        return self.scores[(kept != now) & ~(kept.isna() & now.isna())]

    @property
    def lines(self) -> list[str]:
        """The lines to print: one for the part, and one for each score that differs."""
        found = self.differing
        same = len(self.scores) - len(found)
        total = f"{self.part}: {same} of {len(self.scores)} scores are the same to the last bit"
        rows = zip(found["balancer"], found["seed"], found["kept"], found["now"], strict=True)
        return [total, *(f"{name}, seed {seed}: {now:.6g}, kept {kept:.6g}" for name, seed, kept, now in rows)]


def planned(part: EvidencePart, kept: Path, seeds: int) -> list[Planned]:
    """Return the reported runs of a part on its first ``seeds`` seeds, at the learning rates that are kept.

    Raises:
        FileNotFoundError: the folder ``kept`` has no such part.
    """
    selection = pd.read_parquet(kept / part.name / "selection.parquet")
    few = replace(part.suite, reported_seeds=part.suite.reported_seeds[:seeds])
    return [replace(run, pictured=False) for run in plan.reported(few, selection)]


def repeat(part: EvidencePart, runs: Sequence[Planned], kept: Path, folder: Path, workforce: Workforce) -> Repetition:
    """Do ``runs`` that are not yet stored in ``folder``, and compare their test scores with the kept ones.

    Raises:
        EngineError: no further run can be done.
        ValueError: some runs were given up.
    """
    store = ResultStore(folder, workforce.tell)
    missing = {run.key: run for run in runs if not store.has(run.key)}
    for end in workforce.do(list(missing.values()), store, part.suite.plugins, part.suite.limits):
        if end.not_done:
            raise ValueError(f"{end.run.balancer}, seed {end.run.spec.seed}: {end.not_done}")
    now = result_tables.scores(result_tables.load(part.suite, runs, folder), part.suite)
    before = pd.read_parquet(kept / part.name / "scores.parquet")
    problems = pd.read_parquet(kept / part.name / "problems.parquet")
    scores = _scores(before, problems).merge(
        _scores(now, problems), "right", on=ROW, suffixes=("_kept", "_now"), validate="one_to_one"
    )
    names = {"value_kept": "kept", "value_now": "now"}
    return Repetition(part.name, scores.rename(columns=names)[[*ROW, "kept", "now"]])


def _scores(scores: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """Return the primary test score of each reported run's last checkpoint; not a number if the run failed."""
    rows = primary_rows(scores, problems)
    rows = rows.assign(value=rows["value"].where(~rows["imputed"].astype(bool)))
    of_runs = (rows["phase"] == "reported") & (rows["checkpoint"] == "last") & (rows["split"] == "test")
    return rows.loc[of_runs, [*ROW, "value"]]
