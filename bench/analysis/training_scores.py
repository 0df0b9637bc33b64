"""Set the training score of each method beside its test score, to see whether a gain is one of generalisation."""

import operator
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from .intervals import Scale, comparison_scale, summarise
from .pooled_scores import SETS
from .primary_metric import primary_rows
from .suite_tables import SuiteTables

COLUMNS = ["problem", "balancer", "seeds", "failed", "scale", "train", "test", "train_relative", "test_relative"]
SPLITS = ("train", "test")


def training_scores(tables: SuiteTables, equal: str, balancers: Sequence[str]) -> pd.DataFrame:
    """Average the primary scores of the last checkpoints on training and on test samples, over both sets of seeds.

    A failed run has no training score, and its test score is imputed. So both means are over the runs that did not
    fail, and on whose seed equal weighting did not fail either.

    Args:
        tables: ``problems``, ``runs`` and ``scores`` are read. The training score is that of as many training samples
            as there are for validation.
        equal: The label of equal weighting.
        balancers: The labels of the methods.

    Returns:
        A frame of ``COLUMNS``, in the order of ``problems`` and ``balancers``. ``seeds`` is the number of seeds that
        the means are over, and ``failed`` the number of the method's failed runs. The means are geometric where
        ``scale`` is "ratio", the relative ones are over (or minus) equal weighting's on the same seeds. Without equal
        weighting there are no relative ones, and the means are over the method's own seeds. A method without a
        training score has a row if it failed, with means that are not-a-number.
    """
    scores = tables.scores
    scores = scores[scores["phase"].isin(SETS) & (scores["checkpoint"] == "last")]
    scores = primary_rows(scores[scores["split"].isin(SPLITS)], tables.problems)
    failed = _failed_runs(tables.runs)
    rows = []
    for problem in tables.problems["problem"]:
        of_problem = scores[scores["problem"] == problem].astype({"value": float})
        wide = of_problem.pivot(index=["balancer", "phase", "seed"], columns="split", values="value")
        if not set(SPLITS) <= set(wide):
            continue
        wide = wide[np.isfinite(wide).all(axis=1)]
        scale = comparison_scale(wide.to_numpy(), bool(of_problem["higher_is_better"].iloc[0]))
        present = set(wide.index.get_level_values("balancer"))
        of_equal = wide.loc[equal] if equal in present else None
        for label in balancers:
            num_failed = failed[problem, label]
            if label not in present and not num_failed:
                continue
            own = wide.loc[label] if label in present else wide.iloc[:0].droplevel("balancer")
            if of_equal is not None:
                own = own[own.index.isin(of_equal.index)]
            means = _means(own, scale)
            row = {"problem": problem, "balancer": label, "seeds": len(own), "failed": num_failed, "scale": scale}
            row |= means
            if of_equal is not None:
                base = _means(of_equal.loc[own.index], scale)
                relative = operator.truediv if scale == "ratio" else operator.sub
                row |= {f"{split}_relative": relative(means[split], base[split]) for split in SPLITS}
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _failed_runs(runs: pd.DataFrame) -> Counter[tuple[str, str]]:
    """Return the number of failed runs of both sets of seeds, by problem and balancer."""
    failed = runs[runs["phase"].isin(SETS) & (runs["status"] == "failed")]
    return Counter(zip(failed["problem"], failed["balancer"], strict=True))


def _means(scores: pd.DataFrame, scale: Scale) -> dict[str, float]:
    return {split: summarise(scores[split], scale).mean for split in SPLITS}
