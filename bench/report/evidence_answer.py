"""Answer what the evidence shows, in sentences: across problems by counts, then problem by problem.

For each problem the sentences say what is claimed to be balancing, what its price is beside longer training, what plain
longer training gives, and which methods' standing depends on the length of steps.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.style.numbers import counted, decimals_off, join, p_value, relative
from bench.style.short_label import short

from .results_folder import Results

MOST_NAMED = 3
"""Maximum number of methods that a sentence on step length names; the table has all of them."""
BEYOND = {"below": "less than 1/2", "above": "more than 4"}
"""Words for equivalent steps that lie, with their whole interval, beyond the shortest or the longest training of equal
weighting."""
TWO_SIDED, ONE_SIDED = 0.05, 0.025
"""The share of uncorrected 95 % intervals that exclude no difference by chance, on any side or on a given one."""


def headlines(results: Results) -> list[str]:
    """Return sentences that count over problems, and one that names missing parts.

    They count claims, gates, changes of step length, what twice the steps give, what pays, and claims on the reserved
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


def named(row: pd.Series) -> str:
    """Return the name of a method in a row of the table of claims, with "(exploratory)" if its role is that."""
    return short(row["balancer"], 40) + (" (exploratory)" if row["role"] == "exploratory" else "")


def by_chance(count: int, share: float) -> str:
    """Write how many of ``count`` outcomes are to be expected by chance: ``about 3``, or ``fewer than 1``."""
    expected = count * share
    return f"about {expected:.0f}" if expected >= 1 else "fewer than 1"


def answers(results: Results) -> list[ProblemAnswer]:
    """Return the answers for all problems that are not controls."""
    facts = results.tables["problems"]
    problems = facts.loc[~facts["control"].astype(bool), "problem"]
    return [_of_problem(str(problem), results.only(str(problem)), results.failed_gates) for problem in problems]


def equivalent(row: pd.Series, prefix: str = "", bounds: Collection[float] = ()) -> str:
    """Write equivalent steps with their interval, ``3.06 [2.48, 3.90]``; an end beyond the curve as ``<0.5`` or ``>4``.

    If the whole interval lies beyond the curve, there are no bounds.

    Args:
        row: A row with "q" and "beyond", and its ends in columns that begin with ``prefix``.
        prefix: "q_" where the ends are called so.
        bounds: Bounds that decide on a verdict, onto which no end is rounded.
    """
    ends = [(row[f"{prefix}{end}"], row[f"{prefix}{end}_beyond"]) for end in ("low", "high")]
    return _flagged(float(row["q"]), row["beyond"], [(float(value), beyond) for value, beyond in ends], bounds)


def quotient(row: pd.Series) -> str:
    """Write *q*/*c* with its interval; an end whose *q* lies beyond the curve has ``<`` or ``>`` before it.

    An end is never rounded to 1, so that the interval agrees with its verdict.
    """
    ends = [(float(row["low"]), row["q_low_beyond"]), (float(row["high"]), row["q_high_beyond"])]
    return _flagged(float(row["q_per_cost"]), row["beyond"], ends, (1,))


def _flagged(value: float, beyond: str, ends: list[tuple[float, str]], bounds: Collection[float]) -> str:
    signs = {"below": "<", "above": ">", "": ""}
    if not np.isfinite(ends[0][0]) or (beyond and ends[0][1] == ends[1][1] == beyond):
        return f"{signs[beyond]}{value:.2f}"
    decimals = decimals_off(bounds, [end for end, _ in ends], 2)
    texts = [f"{signs[flag]}{end:.{decimals}f}" for end, flag in [(value, beyond), *ends]]
    return f"{texts[0]} [{', '.join(texts[1:])}]"


def _set(results: Results, reserved: bool) -> pd.DataFrame:
    """Return the facts about the problems of the evidence, or about the reserved ones, without controls."""
    facts = results.tables["problems"]
    rows: pd.DataFrame = facts[~facts["control"].astype(bool) & (facts["reserved"].astype(bool) == reserved)]
    return rows


def _claimed(results: Results, reserved: bool) -> str:
    """Count the claims on the problems of the evidence, or on the reserved ones; confirmatory ones come first."""
    claims = results.tables["claims"]
    claims = claims[claims["problem"].isin(_set(results, reserved)["problem"])]
    if claims.empty:
        return ""
    problems = counted(claims["problem"].nunique(), "reserved problem" if reserved else "problem")
    planned = int(claims["tests"].iloc[0])
    of = f"of {counted(len(claims), 'test')} on {problems}, corrected for the {planned} that were planned"
    found = claims[claims["claimed"].astype(bool)]
    if found.empty:
        return f"That balancing helps is claimed in none {of}."
    groups = [(role, found[found["role"] == role]) for role in ("confirmatory", "exploratory")]
    told = [f"{len(rows)} {role} ({_per_claim(rows, results)})" for role, rows in groups if len(rows)]
    return f"That balancing helps is claimed in {len(found)} {of}: {' and '.join(told)}."


def _gates(results: Results) -> str:
    """Tell which methods fail a gate."""
    gates, rows = results.tables["gates"], results.tables["rows"]
    controls = set(results.tables["problems"].loc[results.tables["problems"]["control"].astype(bool), "problem"])
    methods = [label for label in rows.loc[rows["kind"] == "method", "balancer"] if label in set(gates["balancer"])]
    if not methods:
        return "No control has been run, so no method is gated yet, and nothing is claimed."
    failed = [label for label in methods if label in results.failed_gates]
    where = "both controls" if len(controls) == 2 else f"{join(sorted(controls))} alone"
    text = f"{len(methods) - len(failed)} of {counted(len(methods), 'method')} pass the gate on {where}"
    if failed:
        text += f"; {join(short(label, 40) for label in failed)} {'fails' if len(failed) == 1 else 'fail'}, and "
        text += "nothing is claimed of a method that fails"
    return f"{text}.{' Before both controls are there, nothing is claimed.' if len(controls) < 2 else ''}"


def _lengths(results: Results) -> str:
    """Count where the length of steps changes a method's standing; controls are left out."""
    table, rows = results.tables["step_length"], results.tables["rows"]
    methods = rows.loc[(rows["kind"] == "method") & ~rows["balancer"].isin(results.failed_gates), "balancer"]
    table = table[table["problem"].isin(_set(results, False)["problem"]) & table["balancer"].isin(methods)]
    if table.empty:
        return ""
    found = table[table["step_length"].astype(bool)]
    of = f"of {counted(len(table), 'comparison')} of table A with B"
    if found.empty:
        return f"The length of steps changes no method's standing in any {of}.{_gated(results)}"
    text = f"The length of steps changes a method's standing in {len(found)} {of}: {_per_method(found, results)}."
    alone = int((~found["own_changes"].astype(bool)).sum())
    if alone:
        text += f" In {alone} of these, the method's own score is not shown to change."
    chance = f"Each is at 95 % and uncorrected, so {by_chance(len(table), TWO_SIDED)} are to be expected by chance."
    return f"{text} {chance}{_gated(results)}"


def _gated(results: Results) -> str:
    """Return a sentence that says that methods which fail a gate are not counted; empty if none fails."""
    rows = results.tables["rows"]
    fails = rows["balancer"].isin(results.failed_gates) & (rows["kind"] == "method")
    return " Methods that fail a gate are not counted." if fails.any() else ""


def _per_method(rows: pd.DataFrame, results: Results) -> str:
    """Write the number of rows of each method: ``famo on 4 and dwa on 1``, the most first."""
    counts = rows["balancer"].value_counts()
    order = sorted(results.balancers_in(rows), key=lambda label: -counts[label])
    return join(f"{short(label, 40)} on {counts[label]}" for label in order)


def _per_claim(rows: pd.DataFrame, results: Results) -> str:
    """Write the number of claims on each method as `_per_method` does, and whether the method is exploratory."""
    counts, names = rows["balancer"].value_counts(), {row["balancer"]: named(row) for _, row in rows.iterrows()}
    order = sorted(results.balancers_in(rows), key=lambda label: -counts[label])
    return join(f"{names[label]} on {counts[label]}" for label in order)


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
    parts, judged = [], 0
    for column, rows in practice.groupby("column", sort=False):
        passing = rows[~rows["balancer"].isin(results.failed_gates)]
        counts, failing = passing["verdict"].value_counts(), len(rows) - len(passing)
        left_out = (
            f" ({failing} more {'is' if failing == 1 else 'are'} of a method that fails a gate)" if failing else ""
        )
        parts.append(f"{column} on {counts.get('pays', 0)} of {len(passing)}{left_out}")
        judged += len(passing)
    text = f"Choices that pay, that is, give more than the same time spent on longer training: {'; '.join(parts)}."
    chance = by_chance(judged, ONE_SIDED)
    return f"{text} Each is at 95 % and uncorrected, so by chance {chance} would pay if all gave just as much."


def _of_problem(problem: str, results: Results, failed: Collection[str]) -> ProblemAnswer:
    """Return the answer for one problem, from its ``results`` alone; the ``failed`` methods fail a gate."""
    only_static = bool(results.tables["problems"]["only_static"].astype(bool).any())
    claims = results.tables["claims"]
    found = claims[claims["claimed"].astype(bool)]
    confirmatory = found[found["role"] == "confirmatory"]
    best = _best(next((rows for rows in (confirmatory, found) if len(rows)), claims), "static_relative", results)
    sentences = [equal_and_constant(results.tables["problems"].iloc[0])]
    if len(found) and best is not None:
        sentences.append(f"Balancing helps: {_compared(best, only_static)}.")
        others = found[found["balancer"] != best["balancer"]].sort_values("role", kind="stable")
        sentences += [f"Claimed too: {join(named(row) for _, row in others.iterrows())}."] if len(others) else []
        sentences.append(_worse_than_constant(found))
        priced = best["balancer"]
    else:
        sentences += [_not_claimed(best, only_static), _static(results)]
        priced = _static_label(results) or (None if best is None else best["balancer"])
        priced = None if priced in failed else priced
    reserved = bool(results.tables["problems"]["reserved"].astype(bool).any())
    told = "A reserved problem, which was first run after all others." if reserved else ""
    beside = [told, _price(results, priced), _longer(results), _step_length(results, failed)]
    return ProblemAnswer(problem, *(" ".join(each for each in part if each) for part in (sentences, beside)))


def equal_and_constant(facts: pd.Series) -> str:
    """Tell how equal weighting stands beside a constant predictor, where that matters: else the text is empty.

    It matters where equal weighting is worse, and where only static weights count, which rule 28 gives that reason for.

    Args:
        facts: The problem's row of the table of problems.
    """
    only_static, worse = bool(facts["only_static"]), bool(facts["equal_is_worse"])
    if pd.isna(facts["equal_to_constant"]):
        unknown = (
            "Only static weights count here. Whether equal weighting is worse than a constant predictor is not known."
        )
        return unknown if only_static else ""
    ends = facts[["equal_to_constant", "equal_to_constant_low", "equal_to_constant_high"]].astype(float)
    value = relative(facts["constant_scale"], *ends)
    if worse:
        follows = "so only static weights count" if only_static else "so that a gain over it says little"
        return f"Equal weighting is worse than a constant predictor here ({value}), {follows}."
    if only_static:
        return (
            "Only static weights count here. The protocol's reason for that, that equal weighting is worse than a "
            f"constant predictor, does not hold ({value})."
        )
    return ""


def _worse_than_constant(found: pd.DataFrame) -> str:
    """Name the claimed methods that are worse than a constant predictor, or not shown to be better; else empty."""
    texts = []
    for verdicts, words in ((("worse",), "Worse"), (("tie", "not settled"), "Not shown to be better")):
        rows = found[found["constant_verdict"].isin(verdicts)]
        if len(rows):
            values = [
                f"{named(row)} ({relative(row['scale'], float(row['constant_relative']), np.nan, np.nan)})"
                for _, row in rows.iterrows()
            ]
            texts.append(f"{words} than a constant predictor: {join(values)}.")
    return " ".join(texts)


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
        return f"{named(row)} scores {static} {of} the score of the best static weights ({row['static']})"
    return f"{named(row)} scores {equal} {of} equal weighting's score and {against_static}"


def _not_claimed(best: pd.Series | None, only_static: bool) -> str:
    """Tell that nothing is claimed, and what keeps the method with the best mean from it."""
    if best is None:
        return "No method was tested."
    name = short(best["balancer"], 40)
    why = {
        "not gated yet": "but a control has not been run, so no method is gated yet",
        "gate": f"but {name} fails the gate, so that step length may be the cause",
        "not better than equal": "which is not better than equal weighting",
        "not better than static": "which is not better than all static weights",
        "a tie": "which counts as a tie",
        "not settled": f"which is not settled after correction (p = {p_value(best['holm_p'])})",
        "not repeated": "but only one set of seeds was run",
        "not in both sets": "but one of the two sets of seeds alone does not show it",
    }[best["why_not"]]
    return f"No balancing is claimed. The best mean: {_compared(best, only_static)}, {why}."


def _static_label(results: Results) -> str | None:
    """Return the static row with the best mean among those that are better than equal weighting; None if none is."""
    row = _best_static(results)
    return None if row is None else str(row["balancer"])


def _best_static(results: Results) -> pd.Series | None:
    compared = _statics(results)
    better = compared[compared["verdict"] == "better"]
    return None if better.empty else better.iloc[int(better["effect"].to_numpy(dtype=float).argmin())]


def _statics(results: Results) -> pd.DataFrame:
    """Return the comparisons of static rows with equal weighting, with the short memory."""
    compared, rows = results.tables["comparisons"], results.tables["rows"]
    statics = rows.loc[rows["kind"] == "static", "balancer"]
    found: pd.DataFrame = compared[compared["balancer"].isin(statics) & (compared["table"] != "B")]
    return found


def _static(results: Results) -> str:
    """Tell what static weights give where nothing is claimed."""
    row = _best_static(results)
    if row is None:
        return "No static weights are better than equal weighting either."
    value = relative(row["scale"], row["relative"], row["low"], row["high"])
    of = "of" if row["scale"] == "ratio" else "on"
    text = f"Static weights help: {short(row['balancer'], 40)} scores {value} {of} equal weighting's score"
    count = len(_statics(results))
    chance = f"by chance alone, one of them would be better in up to {100 * ONE_SIDED * count:.0f} % of cases"
    return f"{text}. It is the best of {counted(count, 'static row')}, each at 95 % and uncorrected: {chance}."


def _price(results: Results, label: str | None) -> str:
    """Tell how much longer equal weighting must train to match a row, and whether its step is worth that."""
    pays = results.tables["pays"]
    pays = pays[pays["balancer"] == label]
    if label is None or pays.empty:
        return ""
    row, name = pays.iloc[0], short(label, 40)
    outside = row["beyond"] and row["q_low_beyond"] == row["q_high_beyond"] == row["beyond"]
    factor = BEYOND[row["beyond"]] if outside else equivalent(row, "q_")
    text = f"To match {name}, equal weighting must train for {factor} times the steps"
    if not np.isfinite(float(row["cost"])):
        return f"{text}."
    worth = {
        "pays": "so it pays",
        "train longer": "so training longer does better",
        "not settled": "so that it is not settled whether it pays",
        "": "",
    }[row["verdict"]]
    return f"{text}; a step of {name} costs {float(row['cost']):.2f} times as much, {worth} (q/c {quotient(row)})."


def _longer(results: Results) -> str:
    """Tell what twice the steps give equal weighting."""
    if results.tables["doubling"].empty:
        return ""
    row = results.tables["doubling"].iloc[0]
    value = relative(row["scale"], row["doubling"], row["low"], row["high"])
    of = "of" if row["scale"] == "ratio" else "on"
    text = f"Plain training for twice as long scores {value} {of} equal weighting's score"
    if _is_worse(row, results):
        return f"{text}: longer training does not help."
    return f"{text}: it has converged." if row["converged"] else f"{text}."


def _is_worse(row: pd.Series, results: Results) -> bool:
    """Tell whether the whole interval of a comparison on one problem lies on the side of worse scores."""
    if row["scale"] == "ratio":
        return bool(row["low"] > 1)
    higher = bool(results.tables["problems"]["higher_is_better"].iloc[0])
    return bool(row["high"] < 0) if higher else bool(row["low"] > 0)


def _step_length(results: Results, failed: Collection[str]) -> str:
    """Name the methods whose standing depends on the optimiser's memory, those that change most first.

    Those that ``failed`` a gate are left out.
    """
    table, rows = results.tables["step_length"], results.tables["rows"]
    table = table[table["balancer"].isin(rows.loc[rows["kind"].isin(["method", "static"]), "balancer"])]
    table = table[~table["balancer"].isin(failed)]
    if table.empty:
        return ""
    found = table[table["step_length"].astype(bool)]
    if found.empty:
        return "No method's standing is shown to depend on the length of steps."
    change = found["change"].to_numpy(dtype=float)
    size = np.abs(np.log(change) if (found["scale"] == "ratio").all() else change)
    first = found.iloc[np.argsort(-size, kind="stable")]
    texts = [
        f"{short(row['balancer'], 40)} ({bare(row, 'short_memory')} in A, {bare(row, 'as_published')} in B"
        f"{'' if row['own_changes'] else '; its own score is not shown to change'})"
        for _, row in first.head(MOST_NAMED).iterrows()
    ]
    rest = len(first) - len(texts)
    more = [f"{counted(rest, 'other')}"] if rest else []
    chance = f"by chance {by_chance(len(table), TWO_SIDED)} of {len(table)} would be named"
    return f"Step length changes the standing of {join([*texts, *more])}: each at 95 % and uncorrected; {chance}."


def bare(row: pd.Series, column: str) -> str:
    """Write a comparison without its interval, on the row's scale; `NOTHING` if the column has no number."""
    return relative(row["scale"], float(row[column]) if pd.notna(row[column]) else np.nan)
