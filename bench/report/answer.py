"""Answer a comparison in a few sentences: which method to use, and at what cost."""

import numpy as np
import pandas as pd

from bench.style.numbers import relative
from bench.style.short_label import short

from .results_folder import Results
from .verdict_wording import as_predicate


def answer(results: Results) -> list[str]:
    """Return one text of one to three sentences for each problem that is not a control.

    The list is empty if the methods are not ranked. A problem whose methods have too few seeds for a verdict is left
    out.
    """
    if not results.ranking or results.baseline is None:
        return []
    texts = []
    for problem, rows in results.evidence.groupby("problem", sort=False):
        others = rows[rows["balancer"] != results.baseline]
        if (others["verdict"] != "").any():
            texts.append(f"{short(str(problem), 40)}: {_of_problem(others, results)}")
    return texts


def _of_problem(others: pd.DataFrame, results: Results) -> str:
    """Return the answer for one problem.

    ``others`` are the problem's rows without that of equal weighting, sorted from the best mean to the worst.
    """
    equal = short(results.baseline or "", 40)
    better = others[others["verdict"] == "better"]
    if better.empty:
        counts = others["verdict"].value_counts()
        rest = [f"{counts[verdict]} {verdict}" for verdict in ("worse", "tie", "not settled") if verdict in counts]
        return f"stay with {equal}. No method is better beyond noise ({', '.join(rest)})."
    best = better.iloc[0]
    text = f"try {_named(best)} {'of' if best['scale'] == 'ratio' else 'on'} {equal}'s score{_cost(best)}."
    if np.isfinite(better["step_ratio"].astype(float)).any():
        cheapest = better.sort_values("step_ratio", kind="stable").iloc[0]
        if cheapest["balancer"] != best["balancer"]:
            text += f" The cheapest better method: {_named(cheapest)}{_cost(cheapest)}."
    if results.roles.static not in (None, best["balancer"]) and best["static_verdict"] not in ("", "better"):
        static = short(results.roles.static or "", 40)
        text += f" Compared with {static}, it is {as_predicate(best['static_verdict'])}."
    if best["failed"]:
        text += f" {best['failed']} of its {best['seeds']} runs failed."
    return text


def _named(row: pd.Series) -> str:
    bounds = row["relative"], row["relative_low"], row["relative_high"]
    return f"{short(row['balancer'], 40)}, {relative(row['scale'], *bounds)}"


def _cost(row: pd.Series) -> str:
    return f", at {row['step_ratio']:.2f}× the time of a step" if np.isfinite(row["step_ratio"]) else ""
