"""The controls: comparisons whose outcome is known beforehand, so that a wrong one tells of an error."""

from typing import Any

import numpy as np
import pandas as pd

from .intervals import compare, comparison_scale
from .primary_metric import primary_rows
from .roles import Cast

COLUMNS = [
    *("control", "problem", "balancer", "pairs", "different"),
    *("scale", "relative", "low", "high", "verdict", "lr", "baseline_lr", "holds"),
]
RUN = ["problem", "phase", "lr", "seed", "checkpoint", "split", "metric"]
COMPARED = ("tuning", "reported", "repeated")

Row = dict[str, Any]


def controls(scores: pd.DataFrame, problems: pd.DataFrame, metrics: pd.DataFrame, parts: Cast) -> pd.DataFrame:
    """Every control that can be checked, and whether it holds.

    Args:
        scores: The scores table, failures imputed.
        problems: ``problem``, ``primary``, ``higher_is_better``, ``control``.
        metrics: ``problem``, ``metric``, ``task``.
        parts: Which method is which.

    Returns:
        A frame of ``COLUMNS``. ``control`` is one of:

        - "random": random weights against equal weighting, a row per problem that is no control: ``relative`` as in the
          leaderboard, over ``pairs`` of seeds. Holds unless it is better.
        - "second name": equal weighting under a second name, a row per problem: of ``pairs`` of scores of the same
          learning rate and seed so many are ``different``, in however little. Holds if none is.
        - "same tasks": static weights against the tasks trained alone, a row per problem that is a control: the primary
          score over the mean of the tasks' own scores, seed by seed, which ran at the rates ``lr`` and ``baseline_lr``.
          Holds if the interval includes no difference, or is a tie.
    """
    facts = problems.set_index("problem")
    rows: list[Row] = []
    for problem, of_problem in scores.groupby("problem", sort=False):
        known = facts["control"].astype(bool)[problem]
        higher = bool(facts["higher_is_better"][problem])
        if not known and parts.equal is not None and parts.random is not None:
            rows += _random(of_problem, problems, parts.random, parts.equal, higher)
        if parts.equal is not None and parts.second is not None:
            rows += _second(of_problem, parts.second, parts.equal)
        if known and parts.static is not None:
            rows += _same(of_problem, problems, metrics, parts.static, higher)
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = {"random": 0, "second name": 1, "same tasks": 2}
    return table.sort_values("control", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _random(scores: pd.DataFrame, problems: pd.DataFrame, random: str, equal: str, higher: bool) -> list[Row]:
    wide = _final(primary_rows(scores, problems), "reported").pivot(index="seed", columns="balancer", values="value")
    if not {random, equal} <= set(wide):
        return []
    scale = comparison_scale(wide.stack().dropna(), higher)
    pairs = wide[[random, equal]].dropna()
    row = _comparison("random", scores, random, pairs[random], pairs[equal], higher, scale)
    return [row | {"holds": row["verdict"] != "better"}]


def _second(scores: pd.DataFrame, second: str, equal: str) -> list[Row]:
    runs = scores[scores["phase"].isin(COMPARED)]
    one, other = (runs[runs["balancer"] == label][[*RUN, "value"]] for label in (second, equal))
    pairs = one.merge(other, on=RUN, suffixes=("", "_equal"), validate="one_to_one")
    if pairs.empty:
        return []
    ours, theirs = pairs["value"].to_numpy(dtype=float), pairs["value_equal"].to_numpy(dtype=float)
    different = int((~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))).sum())
    about = {"control": "second name", "problem": scores["problem"].iloc[0], "balancer": second}
    return [{**about, "pairs": len(pairs), "different": different, "holds": different == 0}]


def _same(scores: pd.DataFrame, problems: pd.DataFrame, metrics: pd.DataFrame, static: str, higher: bool) -> list[Row]:
    first = metrics[metrics["task"].notna()].drop_duplicates(["problem", "task"])[["problem", "metric", "task"]]
    alone = _final(scores, "baseline").merge(first, on=["problem", "metric", "task"])
    alone = alone[alone["balancer"] == alone["task"]]
    ours = _final(primary_rows(scores, problems), "reported")
    ours = ours[ours["balancer"] == static]
    means = alone.astype({"value": float}).groupby("seed")["value"].mean()
    pairs = pd.concat({"ours": ours.set_index("seed")["value"].astype(float), "alone": means}, axis=1).dropna()
    if pairs.empty:
        return []
    scale = comparison_scale(pairs, higher)
    row = _comparison("same tasks", scores, static, pairs["ours"], pairs["alone"], higher, scale)
    row |= {"lr": ours["lr"].iloc[0], "baseline_lr": alone["lr"].iloc[0]}
    return [row | {"holds": row["verdict"] in ("tie", "not settled", "")}]


def _final(scores: pd.DataFrame, phase: str) -> pd.DataFrame:
    return scores[(scores["phase"] == phase) & (scores["checkpoint"] == "last") & (scores["split"] == "test")]


def _comparison(
    control: str, scores: pd.DataFrame, balancer: str, ours: pd.Series, theirs: pd.Series, higher: bool, scale: Any
) -> Row:
    found = compare(ours, theirs, higher, scale)
    about = {"control": control, "problem": scores["problem"].iloc[0], "balancer": balancer, "pairs": len(ours)}
    values = {"relative": found.mean, "low": found.low, "high": found.high, "verdict": found.verdict}
    return {**about, "scale": found.scale, **values}
