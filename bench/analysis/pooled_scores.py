"""Bring together the test scores of both sets of seeds on one problem, on the scale that its comparisons use.

Statements about seeds rest on the "reported" and the "repeated" runs together. The two sets have different seeds, and
each set chooses a learning rate for each method. An interval over the pooled seeds treats all of them as draws from one
population. It does not know that the runs of a set share a learning rate. Often both sets choose the same rate, because
few are tried; then all seeds share what this rate does to a method, and no comparison between the sets shows it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .intervals import Comparison, Scale, compare, comparison_scale
from .primary_metric import primary_rows
from .suite_tables import SuiteTables

SETS = ("reported", "repeated")
"""The phases that are pooled: two disjoint sets of seeds."""


@dataclass(frozen=True)
class PooledScores:
    """The primary test scores of the last checkpoints on one problem, those of failed runs imputed.

    Attributes:
        values: The scores, one row per ``phase`` and ``seed`` and one column per balancer; not-a-number where there is
            no finite score.
        scale: The scale on which they are compared.
        higher_is_better: The direction of the scores.
    """

    values: pd.DataFrame
    scale: Scale
    higher_is_better: bool

    @property
    def badness(self) -> pd.DataFrame:
        """The scores on the scale of comparisons, signed so that lower is better: logarithms for "ratio"."""
        if self.scale == "ratio":
            return self.values.apply(np.log)
        return -self.values if self.higher_is_better else self.values

    def on_scale(self, badness: float) -> float:
        """Return a difference of two `badness` as comparisons state it: a factor for "ratio", else in score units."""
        if self.scale == "ratio":
            return float(np.exp(badness))
        return -badness if self.higher_is_better else badness

    def against(self, balancer: str, baseline: str) -> Comparison:
        """Compare two balancers over the seeds that both have."""
        pairs = self.values[[balancer, baseline]].dropna()
        return compare(pairs.iloc[:, 0].tolist(), pairs.iloc[:, 1].tolist(), self.higher_is_better, self.scale)

    def against_score(self, balancer: str, score: float) -> Comparison:
        """Compare a balancer with a fixed ``score``, such as that of a constant predictor.

        There is no verdict, and nothing is a number, if ``score`` is not positive on the scale "ratio".
        """
        if self.scale == "ratio" and not score > 0:
            return Comparison(np.nan, np.nan, np.nan, self.scale, "")
        values = self.values[balancer].dropna().tolist()
        return compare(values, [score] * len(values), self.higher_is_better, self.scale)

    def gains(self, balancer: str, baseline: str) -> pd.Series:
        """Return by how much ``balancer`` is better, for each phase and seed that both have, on the scale."""
        return (self.badness[baseline] - self.badness[balancer]).dropna()


def pooled_scores(problem: str, *tables: SuiteTables) -> tuple[PooledScores, ...]:
    """Return the pooled scores of ``problem`` in each of ``tables``, on one scale for all of them.

    The scale follows from all finite scores of these tables: that of all methods and both sets of seeds.

    Raises:
        ValueError: The problem is not in the problems table of each of ``tables``, or the tables disagree on the
            direction of its score.
    """
    frames = [_scores(problem, each) for each in tables]
    directions = {bool(each.problems.set_index("problem")["higher_is_better"][problem]) for each in tables}
    if len(directions) != 1:
        raise ValueError(f"{problem}: the tables disagree on whether a higher score is better")
    higher_is_better = directions.pop()
    finite = np.concatenate([frame.to_numpy(dtype=float).ravel() for frame in frames])
    scale = comparison_scale(finite[np.isfinite(finite)], higher_is_better)
    return tuple(PooledScores(frame, scale, higher_is_better) for frame in frames)


def _scores(problem: str, tables: SuiteTables) -> pd.DataFrame:
    """Return the primary test scores of the last checkpoints, ``(phase, seed)`` by balancer."""
    if problem not in set(tables.problems["problem"]):
        raise ValueError(f"the problems table has no row for {problem!r}")
    rows = tables.scores
    rows = rows[(rows["problem"] == problem) & rows["phase"].isin(SETS)]
    rows = primary_rows(rows[(rows["split"] == "test") & (rows["checkpoint"] == "last")], tables.problems)
    values = rows.astype({"value": float}).pivot(index=["phase", "seed"], columns="balancer", values="value")
    return values.where(np.isfinite(values))
