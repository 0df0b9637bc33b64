"""Pick the one score of each problem by which methods are compared: its primary metric."""

import pandas as pd


def primary_rows(frame: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``frame`` that hold their problem's primary metric, with the metric's direction.

    Args:
        frame: Rows with the columns ``problem`` and ``metric``, such as ``scores`` or ``curves``.
        problems: One row per problem: ``problem``, ``primary``, ``higher_is_better``.

    Returns:
        Those rows, in their order and with their index, and a new column ``higher_is_better``.

    Raises:
        ValueError: A problem of ``frame`` is not in ``problems``.
    """
    facts = problems.set_index("problem")
    unknown = sorted(set(frame["problem"]) - set(facts.index))
    if unknown:
        raise ValueError(f"the problems table has no row for {', '.join(map(repr, unknown))}")
    rows = frame[frame["metric"] == frame["problem"].map(facts["primary"])]
    return rows.assign(higher_is_better=rows["problem"].map(facts["higher_is_better"]).astype(bool))
