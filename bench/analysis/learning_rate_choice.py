"""Choose the learning rate of each method: the best on validation, over the tuning seeds alone."""

import pandas as pd

from .primary_metric import primary_rows

COLUMNS = ["problem", "balancer", "lr", "mean_validation_score", "chosen", "grid_edge"]


def choose_learning_rates(scores: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """Choose one learning rate per problem and balancer.

    The learning rate with the best mean primary validation score of the last checkpoint, over the tuning seeds, wins. A
    failed run counts with its imputed score (see :func:`~bench.analysis.impute_failures`). Of equally good rates, the
    smallest is chosen; a rate without a finite mean is worse than any other.

    Args:
        scores: The scores table. Only the rows of tuning runs, last checkpoint, validation and primary metric are read.
        problems: ``problem``, ``primary``, ``higher_is_better``.

    Returns:
        One row per problem, balancer and rate, sorted by them: ``problem``, ``balancer``, ``lr``,
        ``mean_validation_score``, ``chosen`` (true of exactly one rate per problem and balancer), ``grid_edge`` (the
        rate is the smallest or the largest of those tried on that problem).

    Raises:
        ValueError: The rates of a problem were not all tried with the same seeds, or a run has two such rows.
    """
    rows = scores[(scores["phase"] == "tuning") & (scores["checkpoint"] == "last") & (scores["split"] == "validation")]
    rows = primary_rows(rows, problems)
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    _require_equal_seeds(rows)

    cell = rows.groupby(["problem", "balancer", "lr"])
    table = cell.agg(mean_validation_score=("value", _mean), higher_is_better=("higher_is_better", "first"))
    table = table.reset_index().sort_values(["problem", "balancer", "lr"], ignore_index=True)

    badness = table["mean_validation_score"].where(~table["higher_is_better"], -table["mean_validation_score"])
    best_first = table.assign(badness=badness).sort_values(["badness", "lr"], na_position="last")
    chosen = best_first.drop_duplicates(["problem", "balancer"]).index
    grid = table.groupby("problem")["lr"]
    table["chosen"] = table.index.isin(chosen)
    table["grid_edge"] = (table["lr"] == grid.transform("min")) | (table["lr"] == grid.transform("max"))
    return table[COLUMNS]


def _mean(values: pd.Series) -> float:
    """Return the mean, not-a-number if a value is; pandas' own mean would leave that value out."""
    return float(values.to_numpy(dtype=float).mean())


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
