"""The leaderboard: one row per problem and balancer, with everything the comparison rests on."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .intervals import compare, comparison_scale, summarise
from .primary import primary_rows

COLUMNS = [
    "problem", "balancer", "lr", "grid_edge", "seeds", "failed",
    "score", "score_low", "score_high", "best_score", "best_score_low", "best_score_high",
    "scale", "relative", "relative_low", "relative_high", "verdict",
    "step_ratio", "step_ratio_low", "step_ratio_high",
]  # fmt: skip


def is_ranking(runs: pd.DataFrame, selection: pd.DataFrame) -> bool:
    """Whether the reported runs may be ranked: each method's learning rate was chosen from the same grid.

    That is, on each problem every reported balancer ran at the rate that ``selection`` says was chosen for it, from
    rates that are the same for all balancers and at least two.
    """
    reported = runs[runs["phase"] == "reported"]
    used = set(reported[["problem", "balancer", "lr"]].itertuples(index=False, name=None))
    chosen = selection[selection["chosen"].astype(bool)]
    if not used or used - set(chosen[["problem", "balancer", "lr"]].itertuples(index=False, name=None)):
        return False
    for _, of_problem in selection.groupby("problem"):
        grids = {tuple(sorted(rates)) for _, rates in of_problem.groupby("balancer")["lr"]}
        if len(grids) > 1 or len(grids.pop()) < 2:
            return False
    return True


def leaderboard(
    runs: pd.DataFrame,
    scores: pd.DataFrame,
    problems: pd.DataFrame,
    selection: pd.DataFrame,
    costs: pd.DataFrame,
    balancers: Sequence[str],
    baseline: str | None,
) -> pd.DataFrame:
    """Summarise the reported runs on the test split.

    Args:
        runs, scores, problems, selection, costs: The tables of those names; ``scores`` with failures imputed,
            ``selection`` and ``costs`` may be empty, ``costs`` is of one device.
        balancers: The labels in the suite's order.
        baseline: The label of equal weighting, which the others are compared with; None where the suite has none.

    Returns:
        A frame of ``COLUMNS``. ``score`` is the mean primary test score of the last checkpoint and ``best_score`` that
        of the checkpoint that was best on validation, each with a 95 % t-interval over seeds; ``relative`` compares
        the last checkpoints with the baseline's, seed by seed, on ``scale`` (see :mod:`bench.analysis.intervals`);
        ``step_ratio`` is the time of a step over that of equal weighting. Problems come in the order of ``problems``.
        Within a ranking (see :func:`is_ranking`) the best mean comes first; elsewhere, and where a balancer has
        fewer than two seeds, rows are in the suite's order. Without a ranking there are no verdicts.
    """
    test = primary_rows(scores[(scores["phase"] == "reported") & (scores["split"] == "test")], problems)
    ranking = is_ranking(runs, selection)
    tables = [
        _of_problem(test[test["problem"] == problem], runs[runs["problem"] == problem], balancers, baseline, ranking)
        for problem in problems["problem"]
    ]
    filled = [table for table in tables if not table.empty]
    if not filled:
        return pd.DataFrame(columns=COLUMNS)
    board = pd.concat(filled)
    chosen = selection.loc[selection["chosen"].astype(bool), ["problem", "balancer", "grid_edge"]]
    steps = costs[costs["part"] == "step"].rename(
        columns={"ratio_to_equal": "step_ratio", "ratio_low": "step_ratio_low", "ratio_high": "step_ratio_high"}
    )[["problem", "balancer", "step_ratio", "step_ratio_low", "step_ratio_high"]]
    for beside in (chosen, steps):
        board = board.merge(beside, on=["problem", "balancer"], how="left", validate="one_to_one")
    board["grid_edge"] = board["grid_edge"].eq(True)
    return board[COLUMNS]


def _of_problem(
    test: pd.DataFrame, runs: pd.DataFrame, balancers: Sequence[str], baseline: str | None, ranking: bool
) -> pd.DataFrame:
    """The rows of one problem, without what comes from the selection and the costs."""
    last = test[test["checkpoint"] == "last"].pivot(index="seed", columns="balancer", values="value")
    best = test[test["checkpoint"] == "best"].pivot(index="seed", columns="balancer", values="value")
    if last.empty:
        return pd.DataFrame()
    higher_is_better = bool(test["higher_is_better"].iloc[0])
    scale = comparison_scale(test["value"].dropna(), higher_is_better)
    rows = []
    for balancer in (label for label in balancers if label in last):
        mine = runs[(runs["balancer"] == balancer) & (runs["phase"] == "reported")]
        score = summarise(last[balancer].dropna(), scale)
        chosen_best = summarise(best[balancer].dropna() if balancer in best else [], scale)
        row = {
            "problem": test["problem"].iloc[0],
            "balancer": balancer,
            "lr": mine["lr"].iloc[0],
            "seeds": len(mine),
            "failed": (mine["status"] == "failed").sum(),
            "score": score.mean,
            "score_low": score.low,
            "score_high": score.high,
            "best_score": chosen_best.mean,
            "best_score_low": chosen_best.low,
            "best_score_high": chosen_best.high,
            "scale": scale,
            "relative": np.nan,
            "relative_low": np.nan,
            "relative_high": np.nan,
            "verdict": "",
        }
        if baseline in last and balancer != baseline:
            pairs = last[[balancer, baseline]].dropna()
            against = compare(pairs[balancer].tolist(), pairs[baseline].tolist(), higher_is_better, scale)
            row |= {"relative": against.mean, "relative_low": against.low, "relative_high": against.high}
            row["verdict"] = against.verdict if ranking else ""
        rows.append(row)
    table = pd.DataFrame(rows)
    if ranking and (table["seeds"] >= 2).all():
        table = table.sort_values("score", ascending=not higher_is_better, kind="stable", na_position="last")
    return table
