"""The leaderboard: one row per problem and balancer, with everything the comparison rests on."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .intervals import compare, comparison_scale, summarise
from .primary_metric import primary_rows

AGAINST_EQUAL = ("relative", "relative_low", "relative_high", "verdict")
AGAINST_STATIC = ("static_relative", "static_low", "static_high", "static_verdict")
COLUMNS = [
    "problem", "balancer", "lr", "grid_edge", "seeds", "failed",
    "score", "score_low", "score_high", "best_score", "best_score_low", "best_score_high",
    "scale", *AGAINST_EQUAL, *AGAINST_STATIC,
    "step_ratio", "step_ratio_low", "step_ratio_high",
]  # fmt: skip


def is_ranking(runs: pd.DataFrame, selection: pd.DataFrame, phase: str = "reported") -> bool:
    """Whether the runs of ``phase`` may be ranked: each method's learning rate was chosen from the same grid.

    That is, on each problem every balancer ran at the rate that ``selection`` says was chosen for it, from
    rates that are the same for all balancers and at least two.
    """
    reported = runs[runs["phase"] == phase]
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
    static: str | None = None,
    phase: str = "reported",
) -> pd.DataFrame:
    """Summarise the runs of ``phase`` on the test split.

    Args:
        runs, scores, problems, selection, costs: The tables of those names; ``scores`` with failures imputed,
            ``selection`` and ``costs`` may be empty, ``costs`` is of one device.
        balancers: The labels in the suite's order.
        baseline: The label of equal weighting, which the others are compared with; None where the suite has none.
        static: The label of the static weights that the others are compared with too, or None.

    Returns:
        A frame of ``COLUMNS``. ``score`` is the mean primary test score of the last checkpoint and ``best_score`` that
        of the checkpoint that was best on validation, each with a 95 % t-interval over seeds; ``relative`` compares
        the last checkpoints with the baseline's, seed by seed, on ``scale`` (see :mod:`bench.analysis.intervals`), and
        the columns named ``static`` with those of static weights; ``step_ratio`` is the time of a step over that of
        equal weighting. Problems come in the order of ``problems``. Within a ranking (see :func:`is_ranking`) the best
        mean comes first; elsewhere, and where a balancer has fewer than two seeds, rows are in the suite's order.
        Without a ranking there are no verdicts.
    """
    test = primary_rows(scores[(scores["phase"] == phase) & (scores["split"] == "test")], problems)
    ranking = is_ranking(runs, selection, phase)
    runs = runs[runs["phase"] == phase]
    against = {label: names for label, names in ((baseline, AGAINST_EQUAL), (static, AGAINST_STATIC)) if label}
    tables = [
        _of_problem(test[test["problem"] == problem], runs[runs["problem"] == problem], balancers, against, ranking)
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
    test: pd.DataFrame,
    runs: pd.DataFrame,
    balancers: Sequence[str],
    against: Mapping[str, Sequence[str]],
    ranking: bool,
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
        mine = runs[runs["balancer"] == balancer]
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
            **_unknown(AGAINST_EQUAL),
            **_unknown(AGAINST_STATIC),
        }
        for other, names in against.items():
            if other in last and other != balancer:
                pairs = last[[balancer, other]].dropna()
                found = compare(pairs[balancer].tolist(), pairs[other].tolist(), higher_is_better, scale)
                verdict = found.verdict if ranking else ""
                row |= zip(names, (found.mean, found.low, found.high, verdict), strict=True)
        rows.append(row)
    table = pd.DataFrame(rows)
    if ranking and (table["seeds"] >= 2).all():
        table = table.sort_values("score", ascending=not higher_is_better, kind="stable", na_position="last")
    return table


def _unknown(names: Sequence[str]) -> dict[str, object]:
    return dict(zip(names, (np.nan, np.nan, np.nan, ""), strict=True))
