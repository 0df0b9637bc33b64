"""Check each method on problems where its weights cannot matter: the gate that its claims have to pass.

On a control problem there is nothing to balance. A method that does better or worse there than equal weighting changes
how training proceeds in another way, such as the length of its steps, and its scores elsewhere may have that cause too.
A method passes a control if its equivalent steps there are settled to be close to 1. A method that is merely not shown
to differ does not pass.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from .equivalent_steps import VALUES, equivalent_steps
from .pooled_scores import pooled_scores
from .suite_tables import SuiteTables

MARGIN = (0.9, 1.1)
"""The interval of equivalent steps on a control must lie within these bounds."""
COLUMNS = [
    *("problem", "balancer", "seeds", *VALUES),
    *("scale", "relative", "relative_low", "relative_high", "passes"),
]


def gates(tables: SuiteTables, equal_by_factor: Mapping[float, str], balancers: Sequence[str]) -> pd.DataFrame:
    """Check ``balancers`` on every control, over both sets of seeds.

    Args:
        tables: ``problems`` and ``scores`` are read.
        equal_by_factor: The labels of equal weighting by the length of its training, as a factor of the problem's
            steps.
        balancers: The labels of the methods to check.

    Returns:
        A frame of ``COLUMNS``, one row per control problem and balancer. ``q`` to ``high_beyond`` are those of
        `equivalent_steps`; ``passes`` is true if ``low`` to ``high`` lies within `MARGIN`. ``relative`` compares the
        scores with those of equal weighting on ``scale``, for the reader; the gate doesn't look at it.
    """
    controls = tables.problems[tables.problems["control"].astype(bool)]
    checked = SuiteTables(problems=controls, scores=tables.scores)
    table = equivalent_steps(checked, equal_by_factor, balancers)
    rows = []
    for problem, of_problem in table.groupby("problem", sort=False):
        (scores,) = pooled_scores(str(problem), checked)
        for _, row in of_problem.iterrows():
            found = scores.against(row["balancer"], equal_by_factor[1.0])
            within = MARGIN[0] <= row["low"] and row["high"] <= MARGIN[1]
            flagged = row["low_beyond"] or row["high_beyond"]
            relative = (found.scale, found.mean, found.low, found.high)
            rows.append([*row.tolist(), *relative, bool(within and not flagged)])
    return pd.DataFrame(rows, columns=COLUMNS)


def passed_gates(table: pd.DataFrame) -> set[str]:
    """Return the balancers that pass on every control of ``table``, which `gates` returned.

    A balancer that was not run on one of these controls does not pass. Without a control, none passes.
    """
    passing = table[table["passes"].astype(bool)].groupby("balancer")["problem"].nunique()
    controls = table["problem"].nunique()
    return {str(balancer) for balancer in passing.index[passing == controls]}


def failed_gates(table: pd.DataFrame) -> set[str]:
    """Return the balancers of ``table`` that fail on a control, or were not run on one that others were run on."""
    return set(table["balancer"]) - passed_gates(table)
