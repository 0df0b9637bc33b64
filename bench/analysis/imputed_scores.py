"""Impute the scores of failed runs, which are never dropped and never better than predicting a constant."""

import numpy as np
import pandas as pd

from .primary_metric import primary_rows

PLACE = ["problem", "phase", "split"]
"""The columns within which the worst score is looked for."""


def impute_failures(
    scores: pd.DataFrame, runs: pd.DataFrame, problems: pd.DataFrame, constants: pd.DataFrame
) -> pd.DataFrame:
    """Give every failed run the worse of two primary scores: the constant predictor's, and the worst that was reached.

    The worst that was reached is the worst finite last-checkpoint score of all balancers, learning rates and seeds on
    the same problem, phase and split. Both checkpoints of a failed run get the same value. A run that ended without an
    error, but with a primary score that is not finite, is treated like a failed run. Other metrics of a failed run stay
    as they are. If there is neither a constant predictor nor any finite score, the value stays not-a-number.

    Args:
        scores: The scores table. The rows of failed runs must be in it; their values are ignored (NaN by convention).
        runs: ``key`` and ``status`` ("ok" or "failed") of every run.
        problems: ``problem``, ``primary``, ``higher_is_better``.
        constants: The constant predictor's primary score: ``problem``, ``seed``, ``split``, ``value``. A problem
            without a constant predictor has no rows.

    Returns:
        A copy of ``scores`` with those values filled in. ``imputed`` is true exactly for those.

    Raises:
        ValueError: A failed run has no row of its primary metric, so that it would be dropped silently.
    """
    primary = primary_rows(scores, problems)
    failed = set(runs.loc[runs["status"] == "failed", "key"])
    missing = failed - set(primary["key"])
    if missing:
        raise ValueError(f"failed runs without a primary score to impute: {', '.join(sorted(map(str, missing)))}")

    # Signed so that larger is worse, whatever the direction of the problem's score.
    sign = primary["higher_is_better"].map({True: -1.0, False: 1.0})
    value = primary["value"].astype(float)
    lost = primary["key"].isin(failed) | ~np.isfinite(value)
    finals = primary.assign(badness=sign * value)[~lost & (primary["checkpoint"] == "last")]
    worst = finals.groupby(PLACE, as_index=False)["badness"].max()

    rows = primary.loc[lost, [*PLACE, "seed"]]
    reached = rows.merge(worst, on=PLACE, how="left")["badness"].to_numpy(dtype=float)
    predictor = rows.merge(constants, on=["problem", "seed", "split"], how="left", validate="many_to_one")["value"]
    constant = sign[lost].to_numpy() * predictor.to_numpy(dtype=float)

    result = scores.assign(value=scores["value"].astype(float), imputed=False)
    result.loc[rows.index, "value"] = sign[lost].to_numpy() * np.fmax(reached, constant)
    result.loc[rows.index, "imputed"] = True
    return result
