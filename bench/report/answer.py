"""Answer a comparison in a few sentences: which method to use, at what cost, and what the answer does not rest on."""

import numpy as np
import pandas as pd

from bench.analysis import EQUIVALENCE, loss_scales
from bench.run import suite_text
from bench.style.numbers import counted, join, rate, relative
from bench.style.short_label import short

from . import evidence, task_tables
from .results_folder import Results
from .verdict_wording import as_predicate, seeds


def answer(results: Results) -> list[str]:
    """Return one text of one to five sentences for each problem that is not a control.

    The list is empty if the methods are not ranked. A problem whose methods have too few seeds for a verdict is left
    out. Controls among the methods are never recommended.
    """
    if not results.ranking or results.baseline is None:
        return []
    texts, roles = [], results.roles.by_label
    for problem, rows in results.evidence.groupby("problem", sort=False):
        others = rows[(rows["balancer"] != results.baseline) & (rows["balancer"].map(roles) != "control")]
        if (others["verdict"] != "").any():
            equal = rows[rows["balancer"] == results.baseline].iloc[0]
            texts.append(f"{short(str(problem), 40)}: {_of_problem(others, equal, results.only(str(problem)))}")
    return texts


def caveat(results: Results) -> str:
    """Return a sentence that the best of several methods needs new seeds before it is relied on.

    It is empty if nothing is ranked, if there is one method to compare, if the runs were repeated on other seeds, or if
    verdicts are confirmatory.
    """
    methods = results.balancers_in(results.evidence)
    if not results.ranking or len(methods) < 3 or len(results.tables["repeated"]) or evidence.claims(results):
        return ""
    problems = results.evidence["problem"].nunique()
    return (
        f"{len(methods)} methods were compared on {counted(problems, 'problem')}, so the best may owe a part of its "
        "lead to luck: confirm it on new seeds (repeated, under [seeds] in the suite)."
    )


def mixed(results: Results) -> str:
    """Return a sentence that several kinds of processors did the runs; empty if one did."""
    runs = results.tables["runs"]
    kinds = [kind for kind in runs["processor"].unique() if kind] if "processor" in runs else []
    if len(kinds) < 2:
        return ""
    return (
        f"The runs were done by {len(kinds)} kinds of processors ({', '.join(sorted(kinds))}): scores are the same to "
        "the bit within one kind, and may differ in their last digits between kinds."
    )


def far_apart(results: Results) -> list[str]:
    """Return a sentence for each problem of a user whose first losses are on very different scales.

    The problems that come with the benchmark are left out: some are like that on purpose.
    """
    if not suite_text.parse(results.suite_toml).values.get("plugins"):
        return []
    first = loss_scales.first_losses(results.tables["trajectory"])
    return [sentence for problem, losses in first.items() if (sentence := loss_scales.advice(losses, problem))]


def _of_problem(others: pd.DataFrame, equal: pd.Series, results: Results) -> str:
    """Return the answer for one problem.

    Args:
        others: The problem's rows without those of equal weighting and of controls, from the best mean to the worst.
        equal: The row of equal weighting.
        results: The results of this problem alone.
    """
    better = others[others["verdict"] == "better"]
    if better.empty:
        return _none_better(others, equal, results)
    best = better.iloc[0]
    text = f"try {_named(best)} {_of_equals(best, equal)}{_cost(best)}."
    named = [best]
    if np.isfinite(better["step_ratio"].astype(float)).any():
        cheapest = better.sort_values("step_ratio", kind="stable").iloc[0]
        if cheapest["balancer"] != best["balancer"]:
            text += f" The cheapest better method: {_named(cheapest)}{_cost(cheapest)}."
            named.append(cheapest)
    if results.roles.static not in (None, best["balancer"]) and best["static_verdict"] not in ("", "better"):
        static = short(results.roles.static or "", 40)
        text += f" Compared with {static}, it is {as_predicate(best['static_verdict'])}."
    if best["failed"]:
        text += f" {best['failed']} of its {best['seeds']} runs failed."
    more = task_tables.finding(results, best["balancer"]), _at_edge(named, equal)
    return " ".join(part for part in (text, *more) if part)


def _none_better(others: pd.DataFrame, equal: pd.Series, results: Results) -> str:
    """Return the answer for a problem on which no method is better than equal weighting beyond noise.

    It is undecided if the best mean of a method that is not settled is better by more than the margin of a tie.
    """
    higher = results.facts(str(equal["problem"])).higher_is_better
    unsettled = others[others["verdict"] == "not settled"]
    leading = [row for _, row in unsettled.iterrows() if _leads(row, equal, higher)]
    if not leading:
        counts = others["verdict"].value_counts()
        rest = [f"{counts[verdict]} {verdict}" for verdict in ("worse", "tie", "not settled") if verdict in counts]
        return f"stay with {_label(equal)}. No method is better beyond noise ({', '.join(rest)})."
    best = leading[0]
    text = (
        f"undecided on {seeds(others)}. The best mean is that of {_named(best)} {_of_equals(best, equal)}. "
        "Add seeds under [seeds] reported in the suite; finished runs are kept."
    )
    return " ".join(part for part in (text, _at_edge([best], equal)) if part)


def _leads(row: pd.Series, equal: pd.Series, higher_is_better: bool) -> bool:
    """Tell whether a method's mean is better than that of equal weighting by more than the margin of a tie."""
    if row["scale"] == "ratio":  # a score on this scale is better if lower
        return bool(row["relative"] < 1 / (1 + EQUIVALENCE))
    gain = row["relative"] if higher_is_better else -row["relative"]
    return bool(gain > EQUIVALENCE * abs(equal["score"]))


def _at_edge(named: list[pd.Series], equal: pd.Series) -> str:
    """Return a sentence on those methods whose chosen learning rate is at the edge of the grid; empty if none is."""
    at_edge = [f"{_label(row)} ({rate(row['lr'])}*)" for row in (*named, equal) if row["grid_edge"]]
    if not at_edge:
        return ""
    return f"At the edge of the grid of learning rates, beyond which a better one may lie: {join(at_edge)}."


def _label(row: pd.Series) -> str:
    return short(row["balancer"], 40)


def _named(row: pd.Series) -> str:
    return f"{_label(row)}, {relative(row['scale'], row['relative'], row['relative_low'], row['relative_high'])}"


def _of_equals(row: pd.Series, equal: pd.Series) -> str:
    return f"{'of' if row['scale'] == 'ratio' else 'on'} {_label(equal)}'s score"


def _cost(row: pd.Series) -> str:
    return f", at {row['step_ratio']:.2f}× the time of a step" if np.isfinite(row["step_ratio"]) else ""
