"""Check the controls: comparisons whose outcome is known beforehand, so that another outcome points to an error."""

from typing import Any

import numpy as np
import pandas as pd

from .intervals import Scale, compare, comparison_scale
from .pooled_scores import SETS
from .primary_metric import primary_rows
from .roles import Roles
from .suite_tables import SuiteTables

COLUMNS = [
    *("control", "problem", "balancer", "pairs", "different"),
    *("scale", "relative", "low", "high", "verdict", "lr", "baseline_lr", "holds"),
]
RUN = ["problem", "phase", "lr", "seed", "checkpoint", "split", "metric"]
"""The columns by which a score of equal weighting and a score of its second name are paired."""
COMPARED = ("tuning", "reported", "repeated")
"""The phases in which equal weighting and its second name are compared."""

Row = dict[str, Any]


def controls(tables: SuiteTables, roles: Roles) -> pd.DataFrame:
    """Check every control for which there are runs.

    Args:
        tables: ``scores``, ``problems`` and ``metrics`` are read.
        roles: Names the methods of the controls.

    Returns:
        A frame of ``COLUMNS``. ``holds`` is true if the outcome is the known one. ``control`` is one of:

        - "random": random weights against equal weighting, one row per problem that is not itself a control.
          ``relative`` is computed as in the leaderboard, over ``pairs`` of seeds of both sets, reported and repeated.
          Holds unless random weights are better.
        - "second name": equal weighting under a second name, one row per problem. ``pairs`` counts the pairs of scores
          with the same learning rate and seed, ``different`` those that differ, however little. Holds if none differs.
        - "same tasks": static weights against the tasks trained alone, one row per problem that is itself a control,
          because fixed weights cannot matter there. On ``same-tasks`` all tasks are the same; on ``apart`` they share
          nothing. ``relative`` compares the primary score with the mean of the tasks' own scores, seed by seed, over
          the reported seeds: the tasks are trained alone on no others. ``lr`` and ``baseline_lr`` are the learning
          rates of the two sides. Holds if the interval includes no difference, however wide it is, or is a tie.
    """
    facts = tables.problems.set_index("problem")
    rows: list[Row] = []
    for problem, scores in tables.scores.groupby("problem", sort=False):
        is_control = facts["control"].astype(bool)[problem]
        higher = bool(facts["higher_is_better"][problem])
        if not is_control and roles.equal is not None and roles.random is not None:
            rows += _random(scores, tables.problems, roles.random, roles.equal, higher)
        if roles.equal is not None and roles.second is not None:
            rows += _second(scores, roles.second, roles.equal)
        if is_control and roles.static is not None:
            rows += _same(scores, tables, roles.static, higher)
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = {"random": 0, "second name": 1, "same tasks": 2}
    return table.sort_values("control", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _random(scores: pd.DataFrame, problems: pd.DataFrame, random: str, equal: str, higher: bool) -> list[Row]:
    """Return the row of the control "random" on one problem; none if a method has no reported or repeated runs."""
    final = _final(primary_rows(scores, problems), *SETS)
    wide = final.pivot(index=["phase", "seed"], columns="balancer", values="value")
    if not {random, equal} <= set(wide):
        return []
    scale = comparison_scale(wide.stack().dropna(), higher)
    pairs = wide[[random, equal]].dropna()
    row = _comparison("random", scores, random, pairs[random], pairs[equal], higher, scale)
    return [row | {"holds": row["verdict"] != "better"}]


def _second(scores: pd.DataFrame, second: str, equal: str) -> list[Row]:
    """Return the row of the control "second name" on one problem; none if there are no pairs."""
    runs = scores[scores["phase"].isin(COMPARED)]
    of_second, of_equal = (runs[runs["balancer"] == label][[*RUN, "value"]] for label in (second, equal))
    pairs = of_second.merge(of_equal, on=RUN, suffixes=("", "_equal"), validate="one_to_one")
    if pairs.empty:
        return []
    ours, theirs = pairs["value"].to_numpy(dtype=float), pairs["value_equal"].to_numpy(dtype=float)
    different = int((~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))).sum())
    about = {"control": "second name", "problem": scores["problem"].iloc[0], "balancer": second}
    return [{**about, "pairs": len(pairs), "different": different, "holds": different == 0}]


def _same(scores: pd.DataFrame, tables: SuiteTables, static: str, higher: bool) -> list[Row]:
    """Return the row of the control "same tasks" on one problem; none if there are no pairs."""
    metrics = tables.metrics
    first = metrics[metrics["task"].notna()].drop_duplicates(["problem", "task"])[["problem", "metric", "task"]]
    alone = _final(scores, "baseline").merge(first, on=["problem", "metric", "task"])
    alone = alone[alone["balancer"] == alone["task"]]
    ours = _final(primary_rows(scores, tables.problems), "reported")
    ours = ours[ours["balancer"] == static]
    means = alone.astype({"value": float}).groupby("seed")["value"].mean()
    pairs = pd.concat({"ours": ours.set_index("seed")["value"].astype(float), "alone": means}, axis=1).dropna()
    if pairs.empty:
        return []
    scale = comparison_scale(pairs, higher)
    row = _comparison("same tasks", scores, static, pairs["ours"], pairs["alone"], higher, scale)
    row |= {"lr": ours["lr"].iloc[0], "baseline_lr": alone["lr"].iloc[0]}
    return [row | {"holds": row["verdict"] in ("tie", "not settled", "")}]


def _final(scores: pd.DataFrame, *phases: str) -> pd.DataFrame:
    """Return the test scores of the last checkpoints of the runs of these phases."""
    return scores[scores["phase"].isin(phases) & (scores["checkpoint"] == "last") & (scores["split"] == "test")]


def _comparison(
    control: str, scores: pd.DataFrame, balancer: str, ours: pd.Series, theirs: pd.Series, higher: bool, scale: Scale
) -> Row:
    comparison = compare(ours, theirs, higher, scale)
    about = {"control": control, "problem": scores["problem"].iloc[0], "balancer": balancer, "pairs": len(ours)}
    values = {"relative": comparison.mean, "low": comparison.low, "high": comparison.high}
    return {**about, "scale": comparison.scale, **values, "verdict": comparison.verdict}
