"""Choose the learning rate of each method: the best on validation, over the tuning seeds alone."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .intervals import Scale, comparison_scale
from .primary_metric import primary_rows

COLUMNS = ["problem", "balancer", "lr", "mean_validation_score", "scale", "chosen", "grid_edge"]


def choose_learning_rates(scores: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """Choose one learning rate per problem and balancer.

    The learning rate with the best mean primary validation score of the last checkpoint, over the tuning seeds, wins.
    The mean is the one that comparisons use: geometric where the problem's scores are compared as ratios, arithmetic
    elsewhere (see :mod:`bench.analysis.intervals`). A failed run counts with its imputed score (see
    :func:`~bench.analysis.impute_failures`). Of equally good rates, the smallest is chosen; a rate with a score that is
    not finite is worse than any other.

    Args:
        scores: The scores table. Only the rows of tuning runs, last checkpoint, validation and primary metric are read.
        problems: ``problem``, ``primary``, ``higher_is_better``.

    Returns:
        One row per problem, balancer and rate, sorted by them:

        - ``problem``, ``balancer``, ``lr``.
        - ``mean_validation_score``: not-a-number if a score is not finite.
        - ``scale``: "ratio" if the mean is geometric, "difference" if it is arithmetic. It is the same for all rates of
          a problem, and follows from all of the problem's finite tuning scores.
        - ``chosen``: true of exactly one rate per problem and balancer.
        - ``grid_edge``: the rate is the smallest or the largest of those that this balancer tried on this problem, and
          their mean scores differ.

    Raises:
        ValueError: The rates of a problem were not all tried with the same seeds, or a run has two such rows.
    """
    rows = scores[(scores["phase"] == "tuning") & (scores["checkpoint"] == "last") & (scores["split"] == "validation")]
    rows = primary_rows(rows, problems)
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    _require_equal_seeds(rows)

    table = pd.concat([_means(of_problem) for _, of_problem in rows.groupby("problem")])
    table = table.sort_values(["problem", "balancer", "lr"], ignore_index=True)
    badness = table["mean_validation_score"].where(~table["higher_is_better"], -table["mean_validation_score"])
    best_first = table.assign(badness=badness).sort_values(["badness", "lr"], na_position="last")
    chosen = best_first.drop_duplicates(["problem", "balancer"]).index
    tried = table.groupby(["problem", "balancer"])["lr"]
    table["chosen"] = table.index.isin(chosen)
    at_edge = (table["lr"] == tried.transform("min")) | (table["lr"] == tried.transform("max"))
    table["grid_edge"] = at_edge & has_best_rate(table)
    return table[COLUMNS]


def has_best_rate(table: pd.DataFrame) -> "pd.Series[bool]":
    """Return for each row whether the rates of its problem and balancer have different mean scores."""
    return table.groupby(["problem", "balancer"])["mean_validation_score"].transform("nunique") > 1


def mean_score(values: NDArray[np.float64], scale: Scale) -> float:
    """Return the geometric mean for "ratio", else the arithmetic one; not-a-number if a value is not finite."""
    if not np.isfinite(values).all():
        return np.nan
    return float(np.exp(np.log(values).mean())) if scale == "ratio" else float(values.mean())


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean score of every balancer and rate on one problem, on the scale of the problem's comparisons."""
    higher_is_better = bool(rows["higher_is_better"].iloc[0])
    values = rows["value"].astype(float)
    scale = comparison_scale(values[np.isfinite(values)], higher_is_better)
    cells = rows.assign(value=values).groupby(["problem", "balancer", "lr"])["value"]
    means = cells.agg(lambda cell: mean_score(cell.to_numpy(dtype=float), scale)).rename("mean_validation_score")
    return means.reset_index().assign(scale=scale, higher_is_better=higher_is_better)


def _require_equal_seeds(rows: pd.DataFrame) -> None:
    """Raise if a learning rate has other seeds than the rest: an easier or a missing seed must not make it win."""
    tried = rows.groupby(["problem", "balancer", "lr"])["seed"].agg(sorted).reset_index()
    for problem, of_problem in tried.groupby("problem"):
        expected = sorted(set(rows.loc[rows["problem"] == problem, "seed"]))
        for row in of_problem.itertuples():
            if row.seed != expected:
                raise ValueError(
                    f"{problem}: {row.balancer} at learning rate {row.lr:g} has scores for the seeds {row.seed}, "
                    f"expected each of {expected} once"
                )
