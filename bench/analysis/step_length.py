"""Tell where a method's gain depends on the optimiser's memory: the part of it that is step length, not balancing.

Weights that change with time also change how long Adam's steps are, because its second moment remembers gradients of
the past. With a short memory this matters little. If a method's score over that of equal weighting differs between
short memory and the published memory, then that difference has to do with step length. A method's balancing is the same
in both. Both are trained with the same seeds, so that the change is paired by seed.

The change is shared by two scores: it may come from equal weighting alone, and then all methods of a problem change
together. So the method's own change stands beside it.
"""

from collections.abc import Sequence

import pandas as pd

from .intervals import t_interval
from .pooled_scores import PooledScores, pooled_scores
from .suite_tables import SuiteTables

COLUMNS = [
    *("problem", "balancer", "seeds", "scale", "short_memory", "as_published"),
    *("change", "change_low", "change_high", "step_length"),
    *("own_change", "own_low", "own_high", "own_changes"),
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
        methods and problems. ``step_length`` is true only if the interval excludes no change. The columns named ``own``
        compare the method's score in the second table with its own in the first, in the same way.
    """
    rows = []
    common = set(as_published.problems["problem"])
    for problem in (each for each in short_memory.problems["problem"] if each in common):
        both = pooled_scores(problem, short_memory, as_published)
        for balancer in balancers:
            if balancer == equal or not all({balancer, equal} <= set(scores.values) for scores in both):
                continue
            effects = [-scores.gains(balancer, equal) for scores in both]
            own = [scores.badness[balancer] for scores in both]
            pairs = pd.concat([*effects, *own], axis=1).dropna()
            if pairs.empty:
                continue
            in_a, in_b, own_in_a, own_in_b = (pairs.iloc[:, place] for place in range(4))
            scores = both[0]
            values = [scores.on_scale(float(each.mean())) for each in (in_a, in_b)]
            changes = [*_change(in_b - in_a, scores), *_change(own_in_b - own_in_a, scores)]
            about = {"problem": problem, "balancer": balancer, "seeds": len(pairs), "scale": scores.scale}
            rows.append(about | dict(zip(COLUMNS[4:], [*values, *changes], strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _change(differences: pd.Series, scores: PooledScores) -> tuple[float, float, float, bool]:
    """Return the mean change with its interval as comparisons state it, and whether the interval excludes no change."""
    change = t_interval(differences.tolist())
    low, high = sorted(scores.on_scale(bound) for bound in (change.low, change.high))
    return scores.on_scale(change.mean), low, high, bool(change.low > 0 or change.high < 0)
