"""Answer what the evidence shows, in sentences: across problems by counts, then problem by problem.

For each problem the sentences say what is claimed to be balancing, what its price is beside longer training, what plain
longer training gives, and which methods' standing depends on the length of steps.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.style.numbers import counted, join, relative
from bench.style.short_label import short

from .results_folder import Results

MOST_NAMED = 3
"""Maximum number of methods that a sentence on step length names; the table has all of them."""
BEYOND = {"below": "less than 1/2", "above": "more than 4"}
"""Words for equivalent steps beyond the shortest and the longest training of equal weighting."""


def headlines(results: Results) -> list[str]:
    """Return sentences that count over problems, and one that names missing parts.

    They count claims, gates, changes of step length, what twice the steps give, what pays, and claims on the untouched
    problems.
    """
    sentences = [_claimed(results, reserved=False), _gates(results), _lengths(results), _doublings(results)]
    sentences += [_paying(results), _claimed(results, reserved=True)]
    return [sentence for sentence in (*sentences, missing(results)) if sentence]


def missing(results: Results) -> str:
    """Return a sentence that names the parts of the evidence that have not been run; empty if all have."""
    parts = results.tables["parts"]
    absent = parts[~parts["there"].astype(bool)]
    tables = absent.groupby("table", sort=False)["problem"]
    names = {"A": "table A", "B": "table B", "reserved": "the reserved problems"}
    texts = [f"of {names[str(table)]}: {', '.join(labels)}" for table, labels in tables]
    return f"Not run yet, {'; '.join(texts)}." if texts else ""


@dataclass(frozen=True)
class ProblemAnswer:
    """The answer for a problem: a sentence or two, and ``beside`` it the price, longer training and step length."""

    problem: str
    text: str
    beside: str


def answers(results: Results) -> list[ProblemAnswer]:
    """Return the answers for all problems that are not controls."""
    facts = results.tables["problems"]
    problems = facts.loc[~facts["control"].astype(bool), "problem"]
    return [_of_problem(str(problem), results.only(str(problem))) for problem in problems]


def equivalent(row: pd.Series, prefix: str = "") -> str:
    """Write equivalent steps with their interval, ``3.06 [2.48, 3.90]``; an end beyond the curve as ``<0.5`` or ``>4``.

    If the whole interval lies beyond the curve, there are no bounds.

    Args:
        row: A row with "q" and "beyond", and its ends in columns that begin with ``prefix``.
        prefix: "q_" where the ends are called so.
    """
    ends = [(row[f"{prefix}{end}"], row[f"{prefix}{end}_beyond"]) for end in ("low", "high")]
    return _flagged(float(row["q"]), row["beyond"], [(float(value), beyond) for value, beyond in ends])


def quotient(row: pd.Series) -> str:
    """Write *q*/*c* with its interval; an end whose *q* lies beyond the curve has ``<`` or ``>`` before it."""
    ends = [(float(row["low"]), row["q_low_beyond"]), (float(row["high"]), row["q_high_beyond"])]
    return _flagged(float(row["q_per_cost"]), row["beyond"], ends)


def _flagged(value: float, beyond: str, ends: list[tuple[float, str]]) -> str:
    signs = {"below": "<", "above": ">", "": ""}
    bounds = [f"{signs[flag]}{end:.2f}" for end, flag in ends]
    inside = np.isfinite(ends[0][0]) and not (beyond and ends[0][1] == ends[1][1] == beyond)
    return f"{signs[beyond]}{value:.2f}" + (f" [{', '.join(bounds)}]" if inside else "")


def _set(results: Results, reserved: bool) -> pd.DataFrame:
    """Return the facts about the problems of the evidence, or about the reserved ones, without controls."""
    facts = results.tables["problems"]
    rows: pd.DataFrame = facts[~facts["control"].astype(bool) & (facts["reserved"].astype(bool) == reserved)]
    return rows


def _claimed(results: Results, reserved: bool) -> str:
    """Count the claims on the problems of the evidence, or on the reserved ones."""
    claims = results.tables["claims"]
    claims = claims[claims["problem"].isin(_set(results, reserved)["problem"])]
    if claims.empty:
        return ""
    problems = counted(claims["problem"].nunique(), "untouched problem" if reserved else "problem")
    of = f"of {counted(len(claims), 'test')} on {problems}, corrected for their number"
    found = claims[claims["claimed"].astype(bool)]
    if found.empty:
        return f"That balancing helps is claimed in none {of}."
    return f"That balancing helps is claimed in {len(found)} {of}: {_per_method(found, results)}."


def _gates(results: Results) -> str:
    """Tell which methods fail a gate."""
    gates, rows, parts = (results.tables[name] for name in ("gates", "rows", "parts"))
    controls = set(results.tables["problems"].loc[results.tables["problems"]["control"].astype(bool), "problem"])
    expected = parts.loc[(parts["table"] == "A") & ~parts["there"].astype(bool), "problem"]
    methods = [label for label in rows.loc[rows["kind"] == "method", "balancer"] if label in set(gates["balancer"])]
    if not methods:
        return "No control has been run, so nothing is claimed."
    failed = [label for label in methods if label in results.failed_gates]
    where = "both controls" if len(controls) == 2 else f"{join(sorted(controls))} alone"
    text = f"{len(methods) - len(failed)} of {counted(len(methods), 'method')} pass the gate on {where}"
    if failed:
        text += f"; {join(short(label, 40) for label in failed)} {'fails' if len(failed) == 1 else 'fail'}, and "
        text += "nothing is claimed of a method that fails"
    incomplete = len(controls) < 2 and len(expected) > 0
    return f"{text}.{' Before both controls are there, nothing is claimed.' if incomplete else ''}"


def _lengths(results: Results) -> str:
    """Count where the length of steps changes a method's standing; controls are left out."""
    table, rows = results.tables["step_length"], results.tables["rows"]
    methods = rows.loc[rows["kind"] == "method", "balancer"]
    table = table[table["problem"].isin(_set(results, False)["problem"]) & table["balancer"].isin(methods)]
    if table.empty:
        return ""
    found = table[table["step_length"].astype(bool)]
    of = f"of {counted(len(table), 'comparison')} of table A with B"
    if found.empty:
        return f"The length of steps changes no method's standing in any {of}."
    return f"The length of steps changes a method's standing in {len(found)} {of}: {_per_method(found, results)}."


def _per_method(rows: pd.DataFrame, results: Results) -> str:
    """Write the number of rows of each method: ``famo on 4 and dwa on 1``, the most first."""
    counts = rows["balancer"].value_counts()
    order = sorted(results.balancers_in(rows), key=lambda label: -counts[label])
    return join(f"{short(label, 40)} on {counts[label]}" for label in order)


def _doublings(results: Results) -> str:
    """Count on how many problems twice the steps still improve equal weighting."""
    table = results.tables["doubling"]
    table = table[table["problem"].isin(_set(results, False)["problem"])]
    if table.empty:
        return ""
    open_end = int((~table["converged"].astype(bool)).sum())
    problems = counted(len(table), "problem")
    return f"Training equal weighting for twice as long improves it by 5 % or more on {open_end} of {problems}."


def _paying(results: Results) -> str:
    """Count on how many problems each choice for a practitioner pays."""
    practice = results.tables["practice"]
    practice = practice[practice["problem"].isin(_set(results, False)["problem"]) & (practice["verdict"] != "")]
    if practice.empty:
        return ""
    parts = []
    for column, rows in practice.groupby("column", sort=False):
        counts = rows["verdict"].value_counts()
        parts.append(f"{column} on {counts.get('pays', 0)} of {len(rows)}")
    return f"Choices that pay, that is, give more than the same time spent on longer training: {'; '.join(parts)}."


def _of_problem(problem: str, results: Results) -> ProblemAnswer:
    """Return the answer for one problem."""
    only_static = bool(results.tables["problems"]["only_static"].astype(bool).any())
    claims = results.tables["claims"]
    found = claims[claims["claimed"].astype(bool)]
    best = _best(found if len(found) else claims, "static_relative", results)
    sentences = []
    if only_static:
        sentences.append("Equal weighting is worse than predicting zero here, so only static weights count.")
    if len(found) and best is not None:
        sentences.append(f"Balancing helps: {_compared(best, only_static)}.")
        others = [short(label, 40) for label in results.balancers_in(found) if label != best["balancer"]]
        sentences += [f"Claimed too: {join(others)}."] if others else []
        priced = best["balancer"]
    else:
        sentences += [_not_claimed(best, only_static), _static(results)]
        priced = _static_label(results) or (None if best is None else best["balancer"])
    beside = [_price(results, priced), _longer(results), _step_length(results)]
    return ProblemAnswer(problem, *(" ".join(each for each in part if each) for part in (sentences, beside)))


def _best(claims: pd.DataFrame, column: str, results: Results) -> pd.Series | None:
    """Return the row of the method with the best mean; None if there is none."""
    if claims.empty:
        return None
    higher = claims["scale"].iloc[0] == "difference" and bool(results.tables["problems"]["higher_is_better"].iloc[0])
    values = claims[column].to_numpy(dtype=float)
    return claims.iloc[int(np.nanargmax(values) if higher else np.nanargmin(values))]


def _compared(row: pd.Series, only_static: bool) -> str:
    """Write a method's comparisons with equal weighting and with the best static weights."""
    of = "of" if row["scale"] == "ratio" else "on"
    equal = relative(row["scale"], row["relative"], row["relative_low"], row["relative_high"])
    static = relative(row["scale"], row["static_relative"], row["static_low"], row["static_high"])
    against_static = f"{static} {of} that of the best static weights ({short(row['static'], 40)})"
    if only_static:
        return (
            f"{short(row['balancer'], 40)} scores {static} {of} the score of the best static weights ({row['static']})"
        )
    return f"{short(row['balancer'], 40)} scores {equal} {of} equal weighting's score and {against_static}"


def _not_claimed(best: pd.Series | None, only_static: bool) -> str:
    """Tell that nothing is claimed, and what keeps the method with the best mean from it."""
    if best is None:
        return "No method was tested."
    name = short(best["balancer"], 40)
    why = {
        "gate": f"but {name} fails the gate, so that step length may be the cause",
        "not better than equal": "which is not better than equal weighting",
        "not better than static": "which is not better than these",
        "not settled": f"which is not settled after correction (p = {_p_value(best['holm_p'])})",
        "not repeated": "but only one set of seeds was run",
        "sign differs": "but the sign differs between the two sets of seeds",
    }[best["why_not"]]
    return f"No balancing is claimed. The best mean: {_compared(best, only_static)}, {why}."


def _p_value(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def _static_label(results: Results) -> str | None:
    """Return the static row with the best mean among those that are better than equal weighting; None if none is."""
    row = _best_static(results)
    return None if row is None else str(row["balancer"])


def _best_static(results: Results) -> pd.Series | None:
    compared, rows = results.tables["comparisons"], results.tables["rows"]
    statics = rows.loc[rows["kind"] == "static", "balancer"]
    short_memory = compared["balancer"].isin(statics) & (compared["table"] != "B")
    better = compared[short_memory & (compared["verdict"] == "better")]
    return None if better.empty else better.iloc[int(better["effect"].to_numpy(dtype=float).argmin())]


def _static(results: Results) -> str:
    """Tell what static weights give where nothing is claimed."""
    row = _best_static(results)
    if row is None:
        return "No static weights are better than equal weighting either."
    value = relative(row["scale"], row["relative"], row["low"], row["high"])
    of = "of" if row["scale"] == "ratio" else "on"
    return f"Static weights help: {short(row['balancer'], 40)} scores {value} {of} equal weighting's score."


def _price(results: Results, label: str | None) -> str:
    """Tell how much longer equal weighting must train to match a row, and whether its step is worth that."""
    pays = results.tables["pays"]
    pays = pays[pays["balancer"] == label]
    if label is None or pays.empty:
        return ""
    row, name = pays.iloc[0], short(label, 40)
    factor = BEYOND.get(row["beyond"]) or equivalent(row, "q_")
    text = f"To match {name}, equal weighting must train for {factor} times the steps"
    if not np.isfinite(float(row["cost"])):
        return f"{text}."
    worth = {
        "pays": "so it pays",
        "train longer": "so training longer does better",
        "not settled": "so that it is not settled whether it pays",
        "": "",
    }[row["verdict"]]
    return f"{text}; its step costs {float(row['cost']):.2f} times as much, {worth} (q/c {quotient(row)})."


def _longer(results: Results) -> str:
    """Tell what twice the steps give equal weighting."""
    if results.tables["doubling"].empty:
        return ""
    row = results.tables["doubling"].iloc[0]
    value = relative(row["scale"], row["doubling"], row["low"], row["high"])
    text = f"Plain training for twice as long scores {value} {'of' if row['scale'] == 'ratio' else 'on'} its score"
    return f"{text}: it has converged." if row["converged"] else f"{text}."


def _step_length(results: Results) -> str:
    """Name the methods whose standing depends on the optimiser's memory, those that change most first."""
    table, rows = results.tables["step_length"], results.tables["rows"]
    table = table[table["balancer"].isin(rows.loc[rows["kind"].isin(["method", "static"]), "balancer"])]
    if table.empty:
        return ""
    found = table[table["step_length"].astype(bool)]
    if found.empty:
        return "No method's standing is shown to depend on the length of steps."
    change = found["change"].to_numpy(dtype=float)
    size = np.abs(np.log(change) if (found["scale"] == "ratio").all() else change)
    first = found.iloc[np.argsort(-size, kind="stable")]
    named = [
        f"{short(row['balancer'], 40)} ({_bare(row, 'short_memory')} in A, {_bare(row, 'as_published')} in B)"
        for _, row in first.head(MOST_NAMED).iterrows()
    ]
    rest = len(first) - len(named)
    more = [f"{counted(rest, 'other')}"] if rest else []
    return f"Step length changes the standing of {join([*named, *more])}."


def _bare(row: pd.Series, column: str) -> str:
    return relative(row["scale"], float(row[column]), np.nan, np.nan)
