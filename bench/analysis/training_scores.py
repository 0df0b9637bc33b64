"""Set the training score of each method beside its test score, to see whether a gain is one of generalisation."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .intervals import Scale, comparison_scale, summarise
from .pooled_scores import SETS
from .primary_metric import primary_rows
from .suite_tables import SuiteTables

COLUMNS = ["problem", "balancer", "seeds", "scale", "train", "test", "train_relative", "test_relative"]


def training_scores(tables: SuiteTables, equal: str, balancers: Sequence[str]) -> pd.DataFrame:
    """Average the primary scores of the last checkpoints on training and on test samples, over both sets of seeds.

    Args:
        tables: ``problems`` and ``scores`` are read. The training score is that of as many training samples as there
            are for validation.
        equal: The label of equal weighting.
        balancers: The labels of the methods.

    Returns:
        A frame of ``COLUMNS``, in the order of ``problems`` and ``balancers``, over the ``seeds`` that have both.
        The means are geometric where ``scale`` is "ratio", the relative ones are over (or minus) equal weighting's. A
        method without a training score has no row.
    """
    scores = tables.scores
    scores = scores[scores["phase"].isin(SETS) & (scores["checkpoint"] == "last")]
    scores = primary_rows(scores[scores["split"].isin(["train", "test"])], tables.problems)
    rows = []
    for problem in tables.problems["problem"]:
        of_problem = scores[scores["problem"] == problem].astype({"value": float})
        wide = of_problem.pivot(index=["balancer", "phase", "seed"], columns="split", values="value")
        if not {"train", "test"} <= set(wide):
            continue
        wide = wide[np.isfinite(wide).all(axis=1)]
        scale = comparison_scale(wide.to_numpy(), bool(of_problem["higher_is_better"].iloc[0]))
        present = set(wide.index.get_level_values("balancer"))
        means = {label: _means(wide.loc[label], scale) for label in (equal, *balancers) if label in present}
        for label in (label for label in balancers if label in means):
            row = {"problem": problem, "balancer": label, "seeds": len(wide.loc[label]), "scale": scale, **means[label]}
            if equal in means:
                for split in ("train", "test"):
                    own, base = means[label][split], means[equal][split]
                    row[f"{split}_relative"] = own / base if scale == "ratio" else own - base
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _means(scores: pd.DataFrame, scale: Scale) -> dict[str, float]:
    return {split: summarise(scores[split], scale).mean for split in ("train", "test")}
