"""Make the leaderboard: one row per problem and balancer, with everything that the comparison rests on."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .intervals import compare, comparison_scale, summarise
from .primary_metric import primary_rows
from .roles import Roles
from .suite_tables import SuiteTables

AGAINST_EQUAL = ("relative", "relative_low", "relative_high", "verdict")
AGAINST_STATIC = ("static_relative", "static_low", "static_high", "static_verdict")
STEP_RATIO = {"ratio_to_equal": "step_ratio", "ratio_low": "step_ratio_low", "ratio_high": "step_ratio_high"}
"""Columns of the costs, and their names in the leaderboard."""
COLUMNS = [
    "problem", "balancer", "lr", "grid_edge", "seeds", "failed",
    "score", "score_low", "score_high", "best_score", "best_score_low", "best_score_high",
    "scale", *AGAINST_EQUAL, *AGAINST_STATIC, *STEP_RATIO.values(), "ranking",
]  # fmt: skip


def is_ranking(tables: SuiteTables, phase: str = "reported") -> bool:
    """Check whether the runs of ``phase`` may be ranked: the protocol's rules chose each method's learning rate.

    That is, on each problem every balancer ran at the learning rate that was chosen for it, and the balancers that try
    the grid tried at least two rates that are the same for all of them.

    Args:
        tables: ``runs``, ``selection`` and ``retuning`` are read.
        phase: "reported" or "repeated".
    """
    selection = tables.selection
    rates = tables.retuning if phase == "repeated" and len(tables.retuning) else selection
    of_phase = tables.runs[tables.runs["phase"] == phase]
    used = set(of_phase[["problem", "balancer", "lr"]].itertuples(index=False, name=None))
    chosen = rates[rates["chosen"].astype(bool)]
    if not used or used - set(chosen[["problem", "balancer", "lr"]].itertuples(index=False, name=None)):
        return False
    of_grid = selection[selection["origin"] == "grid"] if "origin" in selection else selection
    for problem in selection["problem"].unique():
        tried = of_grid[of_grid["problem"] == problem].groupby("balancer")["lr"]
        grids = {tuple(sorted(rates)) for _, rates in tried}
        if len(grids) != 1 or len(grids.pop()) < 2:
            return False
    return True


def leaderboard(tables: SuiteTables, roles: Roles, phase: str = "reported") -> pd.DataFrame:
    """Summarise the test scores of the runs of ``phase``, and compare the methods.

    Args:
        tables: ``problems``, ``runs``, ``scores``, ``selection``, ``retuning`` and ``costs`` are read; the last
            three may be empty.
        roles: Names equal weighting and the static weights, which the methods are compared with, and the order of the
            methods in the suite.

    Returns:
        A frame of ``COLUMNS``:

        - ``score`` is the mean primary score of the last checkpoint, ``best_score`` that of the checkpoint with the
          best validation score, each with a 95 % t-interval over seeds.
        - ``relative`` compares the last checkpoints with those of equal weighting, seed by seed, on ``scale`` (see
          :mod:`bench.analysis.intervals`). The columns named ``static`` compare them with those of static weights.
        - ``step_ratio`` is the time of a step over the time of a step of equal weighting, on the device that was
          measured first.
        - ``ranking`` says whether the rows may be read as a ranking (see :func:`is_ranking`); it is the same in all
          rows. Without a ranking there are no verdicts.

        Problems come in the order of ``problems``. In a ranking, the best mean score comes first. Elsewhere, and if a
        balancer has fewer than two seeds, rows are in the suite's order.
    """
    problems, scores, selection = tables.problems, tables.scores, tables.selection
    test = primary_rows(scores[(scores["phase"] == phase) & (scores["split"] == "test")], problems)
    ranking = is_ranking(tables, phase)
    runs = tables.runs[tables.runs["phase"] == phase]
    baselines = ((roles.equal, AGAINST_EQUAL), (roles.static, AGAINST_STATIC))
    against = {label: columns for label, columns in baselines if label}
    boards = [
        _of_problem(
            test[test["problem"] == problem], runs[runs["problem"] == problem], list(roles.by_label), against, ranking
        )
        for problem in problems["problem"]
    ]
    filled = [board for board in boards if not board.empty]
    if not filled:
        return pd.DataFrame(columns=COLUMNS)
    board = pd.concat(filled)
    chosen = selection.loc[selection["chosen"].astype(bool), ["problem", "balancer", "grid_edge"]]
    steps = tables.step_costs[["problem", "balancer", *STEP_RATIO]].rename(columns=STEP_RATIO)
    for beside in (chosen, steps.astype(dict.fromkeys(STEP_RATIO.values(), float))):
        board = board.merge(beside, on=["problem", "balancer"], how="left", validate="one_to_one")
    board["grid_edge"] = board["grid_edge"].eq(True)
    return board.assign(ranking=ranking)[COLUMNS]


def _of_problem(
    test: pd.DataFrame,
    runs: pd.DataFrame,
    balancers: Sequence[str],
    against: Mapping[str, Sequence[str]],
    ranking: bool,
) -> pd.DataFrame:
    """Return the rows of one problem, without the columns that come from the selection and the costs.

    Args:
        test: The problem's primary test scores.
        runs: The problem's runs.
        balancers: All labels in the suite's order.
        against: The columns of each comparison, by the label of the method that the others are compared with.
        ranking: Whether there are verdicts, and the best mean comes first.
    """
    last = test[test["checkpoint"] == "last"].pivot(index="seed", columns="balancer", values="value")
    best = test[test["checkpoint"] == "best"].pivot(index="seed", columns="balancer", values="value")
    if last.empty:
        return pd.DataFrame()
    higher_is_better = bool(test["higher_is_better"].iloc[0])
    scale = comparison_scale(last.stack().dropna(), higher_is_better)
    of_best = comparison_scale(best.stack().dropna(), higher_is_better)
    rows = []
    for balancer in (label for label in balancers if label in last):
        of_balancer = runs[runs["balancer"] == balancer]
        score = summarise(last[balancer].dropna(), scale)
        best_score = summarise(best[balancer].dropna() if balancer in best else [], of_best)
        row = {
            "problem": test["problem"].iloc[0],
            "balancer": balancer,
            "lr": of_balancer["lr"].iloc[0],
            "seeds": len(of_balancer),
            "failed": (of_balancer["status"] == "failed").sum(),
            "score": score.mean,
            "score_low": score.low,
            "score_high": score.high,
            "best_score": best_score.mean,
            "best_score_low": best_score.low,
            "best_score_high": best_score.high,
            "scale": scale,
            **_not_compared(AGAINST_EQUAL),
            **_not_compared(AGAINST_STATIC),
        }
        for other, columns in against.items():
            if other in last and other != balancer:
                pairs = last[[balancer, other]].dropna()
                found = compare(pairs[balancer].tolist(), pairs[other].tolist(), higher_is_better, scale)
                verdict = found.verdict if ranking else ""
                row |= zip(columns, (found.mean, found.low, found.high, verdict), strict=True)
        rows.append(row)
    table = pd.DataFrame(rows)
    if ranking and (table["seeds"] >= 2).all():
        table = table.sort_values("score", ascending=not higher_is_better, kind="stable", na_position="last")
    return table


def _not_compared(columns: Sequence[str]) -> dict[str, object]:
    """Return the values of the ``columns`` of a comparison that was not made."""
    return dict(zip(columns, (np.nan, np.nan, np.nan, ""), strict=True))
