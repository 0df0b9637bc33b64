"""Answer a comparison in a few sentences: which method to use, at what cost, and what the answer does not rest on."""

from pathlib import Path

import numpy as np
import pandas as pd

import tasks
from bench.analysis import CONFIDENCE, EQUIVALENCE, label_of, loss_scales
from bench.run import suite_text
from bench.style.numbers import counted, join, number, rate, relative, span
from bench.style.short_label import short

from . import step_ratios, task_tables
from .code_line import code_line
from .results_folder import Results
from .verdict_wording import as_predicate, failures, seeds

FEW_SEEDS = 10
"""If most verdicts are not settled on fewer seeds than this, the answer suggests more."""


def answer(results: Results) -> list[str]:
    """Return one text of one to five sentences for each problem that is not a control.

    The list is empty if the methods are not ranked. A problem whose methods have too few seeds for a verdict is left
    out. Controls and yardsticks are never recommended.
    """
    if not results.ranking or results.baseline is None:
        return []
    texts = []
    for problem, rows in results.evidence.groupby("problem", sort=False):
        others = rows[(rows["balancer"] != results.baseline) & rows["balancer"].map(results.roles.is_compared)]
        equal = rows[rows["balancer"] == results.baseline].iloc[0]
        if (others["verdict"] != "").any() or (len(others) and equal["failed"] == equal["seeds"]):
            texts.append(f"{short(str(problem), 40)}: {_of_problem(others, equal, results.only(str(problem)))}")
    return texts


def caveat(results: Results) -> str:
    """Return sentences that the best of several methods needs new seeds before it is relied on.

    One of them bounds how often a method would be named if none were better: by the number of methods, times the error
    of one interval on that side.

    The text is empty if nothing is ranked, if there is one method to compare, if no method is recommended, or if the
    verdict on each that is recommended is confirmatory or was repeated on other seeds.
    """
    if not results.ranking:
        return ""
    roles = results.roles.by_label
    others = results.evidence[results.evidence["balancer"].map(results.roles.is_compared)]
    methods = results.balancers_in(others)
    if len(methods) < 3:
        return ""
    recommended = [
        (str(problem), row["balancer"])
        for problem, rows in others.groupby("problem", sort=False)
        for row in _recommended(_better(rows, results.only(str(problem))))
        if roles[row["balancer"]] != "confirmatory"
    ]
    again = _against_equal(results)
    confirmed = again[again["again_verdict"] == "better"]
    pairs = set(zip(confirmed["problem"], confirmed["balancer"], strict=True))
    open_ones = [pair for pair in recommended if pair not in pairs]
    if not open_ones:
        return ""
    what = "confirm it on new seeds (repeated, under [seeds] in the suite)"
    if len(results.tables["repeated"]):
        named = join(f"{short(label, 40)} on {short(problem, 40)}" for problem, label in open_ones)
        what = f"the repeated seeds do not confirm that {named} {'is' if len(open_ones) == 1 else 'are'} better"
    problems = results.evidence["problem"].nunique()
    chance = min(100.0, 100 * (len(methods) - (results.roles.equal in methods)) * (1 - CONFIDENCE) / 2)
    where = " on each" if problems > 1 else ""
    return (
        f"{len(methods)} methods were compared on {counted(problems, 'problem')}. Even if none were better, one would "
        f"be named in up to {number(chance, 2)} % of cases{where}, and more often if seeds are added until one is. So "
        f"the best may owe its lead to luck: {what}."
    )


def mixed(results: Results) -> str:
    """Return a sentence that several kinds of processors did the runs; empty if one did."""
    runs = results.tables["runs"]
    kinds = [kind for kind in runs["processor"].dropna().unique() if kind] if "processor" in runs else []
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
    suite = suite_text.parse(results.suite_toml).values
    if not suite.get("plugins"):
        return []
    ours = {label_of(entry) for entry in suite["problems"] if _is_ours(entry["name"])}
    first = loss_scales.first_losses(results.tables["trajectory"])
    told = (loss_scales.advice(losses, problem) for problem, losses in first.items() if problem not in ours)
    return [sentence for sentence in told if sentence]


def _is_ours(problem: str) -> bool:
    """Return whether a problem comes with the benchmark."""
    return problem in tasks.names() and tasks.get(problem).__module__.split(".")[0] == tasks.__name__


def edge_remedy(rows: pd.DataFrame, results: Results) -> str:
    """Return how learning rates beyond the grid are tried, for the rows of a leaderboard whose rate is at its edge.

    The rates of a suite that ``lossbench try`` made follow from the recipe, so the recipe is named there.
    """
    growths = "state a larger growths under [learning_rates] in the suite"
    if _tried_file(results) is None:
        return growths
    selection, ends = results.tables["selection"], set()
    for _, row in rows[rows["grid_edge"].astype(bool)].iterrows():
        rates = selection.loc[selection["problem"] == row["problem"], "lr"]
        ends.add("raise" if row["lr"] >= rates.max() else "lower")
    return f"{' or '.join(sorted(ends, reverse=True)) or 'change'} the lr of the recipe, or {growths}"


def _tried_file(results: Results) -> str | None:
    """Return the name of the user's file if ``lossbench try`` made the suite, which it keeps in the results folder."""
    plugins = suite_text.parse(results.suite_toml).values.get("plugins")
    return Path(plugins[0]).name if plugins and (results.path / f"{results.name}.toml").is_file() else None


def _of_problem(others: pd.DataFrame, equal: pd.Series, results: Results) -> str:
    """Return the answer for one problem.

    Args:
        others: The problem's rows without those of equal weighting and of controls, from the best mean to the worst.
        equal: The row of equal weighting.
        results: The results of this problem alone.
    """
    if equal["failed"] == equal["seeds"]:
        return _without_equal(others, equal, results)
    better = _better(others, results)
    if better.empty:
        return _none_better(others, equal, results)
    named = _recommended(better)
    best = named[0]
    text = f"try {_named(best)} {_of_equals(best, equal)}{_cost(best, results)}."
    for cheapest in named[1:]:
        text += f" The cheapest better method: {_named(cheapest)}{_cost(cheapest, results)}."
    text += f"{_against_static(best, results)}{_longer(results)}{_in_code(best, results)}{_failures(others, equal)}"
    more = _reversals(results), task_tables.finding(results, best["balancer"]), _at_edge(named, equal, results)
    return " ".join(part for part in (text, *more, _more_seeds(others, results)) if part)


def _without_equal(others: pd.DataFrame, equal: pd.Series, results: Results) -> str:
    """Return the answer for a problem on which every run of equal weighting failed, so that there is no ratio to it."""
    runs = f"all {equal['seeds']} runs"
    sound = others[others["failed"] == 0]
    if sound.empty:
        return f"nothing can be compared: {runs} of {_label(equal)} failed, and runs of every other method."
    best = sound.iloc[0]
    text = f"try {_label(best)}, whose runs did not fail{_cost(best, results)}; {runs} of {_label(equal)} did"
    others_too = [_label(row) for _, row in sound.iloc[1:].iterrows()]
    also = f" No run of {join(others_too)} failed either; the first has the best mean." if others_too else ""
    return f"{text}.{also}{_in_code(best, results)}"


def _failures(others: pd.DataFrame, equal: pd.Series) -> str:
    """Return sentences on failed runs, whose methods are not recommended; empty if no run failed."""
    text = ""
    if equal["failed"]:
        text += (
            f" {equal['failed']} of {equal['seeds']} runs of {_label(equal)} failed, and count with an imputed score, "
            "which is in every ratio here."
        )
    named = failures(others)
    return f"{text} Not recommended, because runs failed: {named}." if named else text


def _in_code(best: pd.Series, results: Results) -> str:
    """Return a sentence with the line that makes a method in one's own loop; empty if `try` did not make the suite."""
    if _tried_file(results) is None:
        return ""
    entries = suite_text.parse(results.suite_toml).values["balancers"]
    entry = next(entry for entry in entries if label_of(entry) == best["balancer"])
    line = code_line(entry, best["lr"])
    return f" {line}" if line else ""


def _longer(results: Results) -> str:
    """Return a sentence on what longer training at equal weights gives on a problem; empty if no row shows it."""
    entries = suite_text.parse(results.suite_toml).values["balancers"]
    steps = {label_of(entry): entry.get("times_steps", 1) for entry in entries}
    told = [
        f"{relative(row['scale'], row['relative'], row['relative_low'], row['relative_high'])} with "
        + ("twice" if steps[row["balancer"]] == 2 else f"{steps[row['balancer']]:g} times")
        for _, row in results.evidence.iterrows()
        if steps[row["balancer"]] > 1 and results.roles.by_label[row["balancer"]] == "yardstick"
    ]
    return f" Longer training at equal weights gives {join(told)} the steps." if told else ""


def _against_equal(results: Results) -> pd.DataFrame:
    """Return the comparisons with equal weighting that were repeated on other seeds."""
    table = results.tables["repeated"]
    rows: pd.DataFrame = table[table["against"] == "equal"]
    return rows


def _reversed(results: Results) -> set[str]:
    """Return the methods that are better than equal weighting on one set of seeds and worse on the other."""
    rows = _against_equal(results)
    return set(rows.loc[rows["flipped"].astype(bool), "balancer"])


def _better(others: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Return the rows of methods that are better than equal weighting, without failed runs or a reversal."""
    sound = (others["failed"] == 0) & ~others["balancer"].isin(_reversed(results))
    return others[(others["verdict"] == "better") & sound]


def _recommended(better: pd.DataFrame) -> list[pd.Series]:
    """Return the rows of the best method, and of the cheapest one if that is another and steps were timed."""
    if better.empty:
        return []
    best, cheapest = better.iloc[0], better.sort_values("step_ratio", kind="stable").iloc[0]
    timed = np.isfinite(float(cheapest["step_ratio"]))
    return [best, cheapest] if timed and cheapest["balancer"] != best["balancer"] else [best]


def _reversals(results: Results) -> str:
    """Return a sentence that names the verdicts on one problem that the repeated seeds reverse; empty if none is."""
    rows = _against_equal(results)
    rows = rows[rows["flipped"].astype(bool) & rows["balancer"].map(results.roles.is_compared)]
    if rows.empty:
        return ""
    named = join(
        f"{short(row['balancer'], 40)} ({row['verdict']} at first, then {row['again_verdict']})"
        for _, row in rows.iterrows()
    )
    return f"Reversed by the repeated seeds, and therefore not counted: {named}."


def _against_static(best: pd.Series, results: Results) -> str:
    """Return a sentence on how the best method compares with static weights; empty if it is better, or was not."""
    if results.roles.static in (None, best["balancer"]) or not best["static_verdict"]:
        return ""
    verdict = as_predicate(best["static_verdict"])
    table = results.tables["repeated"]
    again = table[(table["against"] == "static") & (table["balancer"] == best["balancer"])]
    if again["flipped"].astype(bool).any():
        verdict += f" on the first seeds and {again['again_verdict'].iloc[0]} on the repeated ones"
    elif best["static_verdict"] == "better":
        return ""
    return f" Compared with {short(results.roles.static or '', 40)}, it is {verdict}."


def _none_better(others: pd.DataFrame, equal: pd.Series, results: Results) -> str:
    """Return the answer for a problem on which no method is better than equal weighting beyond noise.

    It is undecided if the best mean of a method that is not settled is better by more than the margin of a tie.
    """
    higher = results.facts(str(equal["problem"])).higher_is_better
    unsettled = others[(others["verdict"] == "not settled") & (others["failed"] == 0)]
    leading = [row for _, row in unsettled.iterrows() if _leads(row, equal, higher)]
    if not leading:
        reversed_ones = others["balancer"].isin(_reversed(results))
        verdicts = others["verdict"].mask(reversed_ones, "reversed on other seeds")
        counts = verdicts.mask((others["failed"] > 0) & (verdicts != "worse"), "with failed runs").value_counts()
        words = ("worse", "tie", "not settled", "reversed on other seeds", "with failed runs")
        rest = [f"{counts[word]} {word}" for word in words if word in counts]
        text = f"stay with {_label(equal)}. No method is better beyond noise ({', '.join(rest)}).{_longer(results)}"
        text += _failures(others, equal)
        parts = (text, _reversals(results), _costs(others), _more_seeds(others, results))
        return " ".join(part for part in parts if part)
    best = leading[0]
    text = (
        f"undecided on {seeds(others)}. Of the unsettled ones, the best mean is that of {_named(best)} "
        f"{_of_equals(best, equal)}{_cost(best, results)}.{_longer(results)}{_failures(others, equal)}"
    )
    more = _more_seeds(others, results) or "Add seeds under [seeds] reported in the suite; finished runs are kept."
    return " ".join(part for part in (text, _reversals(results), more, _at_edge([best], equal, results)) if part)


def _more_seeds(others: pd.DataFrame, results: Results) -> str:
    """Return how to compare on more seeds, if there are few and most verdicts are not settled; else an empty text."""
    unsettled = int((others["verdict"] == "not settled").sum())
    if others["seeds"].max() >= FEW_SEEDS or 2 * unsettled <= len(others):
        return ""
    file = _tried_file(results)
    how = f"give `lossbench try {file}` more --minutes" if file else "add seeds under [seeds] reported in the suite"
    verdicts = f"{unsettled} of {counted(len(others), 'verdict')} are not settled on {seeds(others)}"
    return f"{verdicts}: {how}; finished runs are kept."


def _costs(others: pd.DataFrame) -> str:
    """Return a sentence on the time of a step of all methods; empty if none was timed."""
    ratios = others["step_ratio"].astype(float).dropna()
    return f"A step of the other methods takes {span(ratios)} times as long." if len(ratios) else ""


def _leads(row: pd.Series, equal: pd.Series, higher_is_better: bool) -> bool:
    """Tell whether a method's mean is better than that of equal weighting by more than the margin of a tie."""
    if row["scale"] == "ratio":  # a score on this scale is better if lower
        return bool(row["relative"] < 1 / (1 + EQUIVALENCE))
    gain = row["relative"] if higher_is_better else -row["relative"]
    return bool(gain > EQUIVALENCE * abs(equal["score"]))


def _at_edge(named: list[pd.Series], equal: pd.Series, results: Results) -> str:
    """Return a sentence on those methods whose chosen learning rate is at the edge of the grid; empty if none is."""
    rows = [row for row in (*named, equal) if row["grid_edge"]]
    if not rows:
        return ""
    named_rates = join(f"{_label(row)} ({rate(row['lr'])}*)" for row in rows)
    return (
        f"At the edge of the grid of learning rates, beyond which a better one may lie: {named_rates}. To look there, "
        f"{edge_remedy(pd.DataFrame(rows), results)}."
    )


def _label(row: pd.Series) -> str:
    return short(row["balancer"], 40)


def _named(row: pd.Series) -> str:
    return f"{_label(row)}, {relative(row['scale'], row['relative'], row['relative_low'], row['relative_high'])}"


def _of_equals(row: pd.Series, equal: pd.Series) -> str:
    return f"{'of' if row['scale'] == 'ratio' else 'on'} {_label(equal)}'s score"


def _cost(row: pd.Series, results: Results) -> str:
    """Return the end of a clause on the time of a step; empty if it was not timed."""
    if not np.isfinite(row["step_ratio"]):
        return ""
    busy = step_ratios.busy_cores(results)
    surroundings = f" (timed while other programs used {busy:.1f} cores)" if busy > 0 else ""
    return f", at {step_ratios.brief(row, results)} the time of a step{surroundings}"
