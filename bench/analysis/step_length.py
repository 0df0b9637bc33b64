"""Tell where a method's gain depends on the optimiser's memory: the part of it that is step length, not balancing.

Weights that change with time also change how long Adam's steps are, because its second moment remembers gradients of
the past. With a short memory this matters little. If a method's score over that of equal weighting differs between
short memory and the published memory, then that difference has to do with step length. A method's balancing is the same
in both. Both are trained with the same seeds, so that the change is paired by seed.
"""

from collections.abc import Sequence

import pandas as pd

from .intervals import t_interval
from .pooled_scores import pooled_scores
from .suite_tables import SuiteTables

COLUMNS = [
    *("problem", "balancer", "seeds", "scale", "short_memory", "as_published"),
    *("change", "change_low", "change_high", "step_length"),
]


def step_length(
    short_memory: SuiteTables, as_published: SuiteTables, equal: str, balancers: Sequence[str]
) -> pd.DataFrame:
    """Compare each method's gain over equal weighting between the two tables, over both sets of seeds.

    Args:
        short_memory: Table A; ``problems`` and ``scores`` are read. It gives the order of the problems.
        as_published: Table B, of the same problems and seeds.
        equal: The label of equal weighting in both.
        balancers: The labels of the methods; one that is not in both tables, or is ``equal``, has no row.

    Returns:
        A frame of ``COLUMNS``, over the ``seeds`` that both methods have in both tables. ``short_memory`` and
        ``as_published`` compare the method with equal weighting. ``change`` is the second over the first (their
        difference on the scale "difference"), with a 95 % t-interval over seeds, not corrected for the number of
        methods and problems. ``step_length`` is true only if the interval excludes no change.
    """
    rows = []
    common = set(as_published.problems["problem"])
    for problem in (each for each in short_memory.problems["problem"] if each in common):
        both = pooled_scores(problem, short_memory, as_published)
        for balancer in balancers:
            if balancer == equal or not all({balancer, equal} <= set(scores.values) for scores in both):
                continue
            effects = [-scores.gains(balancer, equal) for scores in both]
            pairs = pd.concat(effects, axis=1).dropna()
            if pairs.empty:
                continue
            change = t_interval((pairs.iloc[:, 1] - pairs.iloc[:, 0]).tolist())
            scores = both[0]
            values = [scores.on_scale(float(pairs.iloc[:, place].mean())) for place in (0, 1)]
            bounds = sorted(scores.on_scale(bound) for bound in (change.low, change.high))
            excludes = change.low > 0 or change.high < 0
            about = {"problem": problem, "balancer": balancer, "seeds": len(pairs), "scale": scores.scale}
            numbers = (*values, scores.on_scale(change.mean), *bounds, bool(excludes))
            rows.append(about | dict(zip(COLUMNS[4:], numbers, strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS)
