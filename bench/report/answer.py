"""The short answer to a comparison: which method, and at what cost."""

import numpy as np
import pandas as pd

from bench.style.numbers import relative
from bench.style.short_label import short

from .results_folder import Results


def answer(results: Results) -> list[str]:
    """A sentence or three for each problem but controls.

    None where methods aren't ranked or have too few seeds to be told apart.
    """
    if not results.ranking or results.baseline is None:
        return []
    found = []
    for problem, rows in results.evidence.groupby("problem", sort=False):
        others = rows[rows["balancer"] != results.baseline]
        if (others["verdict"] != "").any():
            found.append(f"{short(str(problem), 40)}: {_of_problem(others, results)}")
    return found


def _of_problem(others: pd.DataFrame, results: Results) -> str:
    """``others`` are the rows of one problem but for equal weighting's, the best mean first where they are ranked."""
    equal = short(results.baseline or "", 40)
    better = others[others["verdict"] == "better"]
    if better.empty:
        counts = others["verdict"].value_counts()
        rest = [f"{counts[verdict]} {verdict}" for verdict in ("worse", "tie", "not settled") if verdict in counts]
        return f"stay with {equal}. No method is better beyond noise ({', '.join(rest)})."
    best = better.iloc[0]
    said = f"try {_told(best)} {'of' if best['scale'] == 'ratio' else 'on'} {equal}'s score{_cost(best)}."
    if np.isfinite(better["step_ratio"].astype(float)).any():
        cheapest = better.sort_values("step_ratio", kind="stable").iloc[0]
        if cheapest["balancer"] != best["balancer"]:
            said += f" The cheapest that is better: {_told(cheapest)}{_cost(cheapest)}."
    if results.parts.static not in (None, best["balancer"]) and best["static_verdict"] not in ("", "better"):
        against = {"tie": "a tie", "worse": "worse"}.get(best["static_verdict"], "not settled")
        said += f" Against {short(results.parts.static or '', 40)}, it is {against}."
    if best["failed"]:
        said += f" {best['failed']} of its {best['seeds']} runs failed."
    return said


def _told(row: pd.Series) -> str:
    bounds = row["relative"], row["relative_low"], row["relative_high"]
    return f"{short(row['balancer'], 40)}, {relative(row['scale'], *bounds)}"


def _cost(row: pd.Series) -> str:
    return f", at {row['step_ratio']:.2f}× the time of a step" if np.isfinite(row["step_ratio"]) else ""
